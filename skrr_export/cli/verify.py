"""`skrr-export verify`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from skrr_export.cli.output import NOT_MEASURED, Output, output_options
from skrr_export.cli.runtime import runtime_option
from skrr_export.measure.limits import QUANTILES

if TYPE_CHECKING:
    from rich.table import Table

    from skrr_export.measure.verify import Report


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--reference", help="The original checkpoint: covers the baking too, and measures the plan's loss.")
@click.option("--subfolder", help="The encoder's folder, where --reference is a pipeline directory.")
@click.option("--to", "target", default="onnx", show_default=True, help="Target to verify.")
@click.option("--prompts", "prompts_file", type=click.Path(path_type=Path), help="Prompts, one a line; default: ours.")
@click.option("--device", default="cpu", show_default=True, type=click.Choice(["cpu", "cuda"]), help="Where to run.")
@runtime_option
@click.option("--seed", default=0, show_default=True, help="Of the random token ids.")
@output_options
def command(
    bundle: Path,
    reference: str | None,
    subfolder: str | None,
    target: str,
    prompts_file: Path | None,
    device: str,
    runtime: str,
    seed: int,
    output: Output,
) -> None:
    """Prove a bundle against transformers; exit 1 when a limit is exceeded.

    Drift is the export's own error: the target against transformers under the same plan. Loss is what the plan costs:
    the target against the dense original (only with --reference). Files are checked against their hashes first.

    \b
    Example:
      skrr-export verify t5.bundle --reference t5-v1_1-xxl
    """
    from rich.text import Text

    from skrr_export.bundle import open_bundle
    from skrr_export.checkpoint import open_checkpoint
    from skrr_export.measure.verify import verify
    from skrr_export.prompts import read_prompts
    from skrr_export.targets import open_target

    prompts = None if prompts_file is None else read_prompts(prompts_file)
    directory = None if reference is None else open_checkpoint(reference, subfolder).directory
    opened = open_bundle(bundle)
    with output.progress() as progress:
        opened.check_hashes(progress)
        session = open_target(opened, target, device=device, runtime=runtime)
        report = verify(opened, session, prompts, reference=directory, seed=seed, progress=progress)
    verdict = ("passed", "green") if report.passed else ("FAILED", "red")
    output.result(
        {"bundle": str(bundle), "target": target, **report.to_dict()},
        _table(report),
        *([str(report.headroom)] if report.headroom else []),
        *(f"note: {note}" for note in report.notes),
        *(Text.assemble(("failed:", "red"), f" {failure}") for failure in report.failures),
        Text.assemble(f"{bundle}: ", verdict, f" ({report.cases} batches, {report.prompts} prompts)"),
    )
    if not report.passed:
        raise SystemExit(1)


_ROWS = {
    "rows": "tokens",
    "relative L2": "relative_l2",
    "cosine, min": "cosine_min",
    "cosine, 1st percentile": "cosine_p1",
    "cosine, mean": "cosine_mean",
    "max abs error": "max_abs",
    "non-finite values": "nonfinite",
}


def _table(report: Report) -> Table:
    from rich.table import Table

    from skrr_export.measure.fidelity import PARTS

    columns = {
        f"{what}, {part}": deviation
        for what, found in (("drift", report.drift), ("loss", report.loss))
        for part in PARTS
        if (deviation := getattr(found, part, None)) is not None
    }
    view = Table("", *columns)
    for label, key in _ROWS.items():
        view.add_row(label, *(_cell(getattr(deviation, key), key) for deviation in columns.values()))
    for quantile in QUANTILES:
        errors = [(deviation.error_quantiles or {}).get(str(quantile)) for deviation in columns.values()]
        view.add_row(f"abs error, quantile {quantile}", *(_cell(error, "error") for error in errors))
    return view


def _cell(value: float | None, key: str) -> str:
    if value is None:
        return NOT_MEASURED
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.7f}" if key.startswith("cosine") else f"{value:.3g}"
