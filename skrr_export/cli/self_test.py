"""`skrr-export self-test`."""

from __future__ import annotations

from pathlib import Path

import click

from skrr_export.cli.output import Output, output_options
from skrr_export.cli.runtime import runtime_option


@click.command("self-test")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--to", "target", default="onnx", show_default=True, help="Target to test.")
@click.option("--device", default="cpu", show_default=True, type=click.Choice(["cpu", "cuda"]), help="Where to run.")
@runtime_option
@output_options
def command(bundle: Path, target: str, device: str, runtime: str, output: Output) -> None:
    """Run a bundle on the test vectors it carries; exit 1 when a result is off.

    Needs no checkpoint and no reference: what transformers gave is in the bundle, by `export --vectors`. Files are
    checked against their hashes first. `skrr-encode --self-test` does the same from C++.

    \b
    Example:
      skrr-export self-test t5.bundle --to aoti
    """
    from skrr_export.bundle import open_bundle
    from skrr_export.targets import open_target
    from skrr_export.vectors import self_test

    opened = open_bundle(bundle)
    with output.progress() as progress:
        opened.check_hashes(progress)
        result = self_test(open_target(opened, target, device=device, runtime=runtime), progress)
    output.result({"bundle": str(bundle), "target": target, **result.to_dict()}, str(result))
    if not result.passed:
        raise SystemExit(1)
