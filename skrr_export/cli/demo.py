"""`skrr-export demo`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from skrr_export.cli.output import NOT_MEASURED, Output, output_options, size

if TYPE_CHECKING:
    from rich.table import Table

    from skrr_export.demo.record import Demo

_DIRECTORY = Path("demo-output")


@click.command()
@click.option(
    "-o",
    "--output",
    "directory",
    default=_DIRECTORY,
    show_default=True,
    type=click.Path(path_type=Path),
    help="Directory to write.",
)
@click.option("--sparsity", type=float, help="Share of the encoder's parameters to do without.  [default: 0.33]")
@click.option("--fast", is_flag=True, help="Take the shipped plans instead of a search, and draw half as many images.")
@click.option("--force", is_flag=True, help="Replace the directory, if a demo wrote it.")
@output_options
def command(directory: Path, sparsity: float | None, fast: bool, force: bool, output: Output) -> None:
    """Show what Skrr does, on a small trained text-to-image model; offline; exit 1 when an export is not exact.

    Searches plans for its text encoder, exports it whole, with skips alone and under Skrr's plan, proves each against
    transformers, draws the same prompts with each, and has an exact judge look at the images. The directory gets
    report.html for a browser, report.json, the plans and the bundles. Two to four minutes on two cores, --fast one.

    \b
    Examples:
      skrr-export demo
      skrr-export demo --fast -o demo
      skrr-export demo --sparsity 0.57 -o demo --force
    """
    from rich.text import Text

    from skrr_export.demo.running import REPORT, DemoOptions, run_demo

    options = DemoOptions(sparsity=sparsity, fast=fast, replace=force)
    with output.progress(lines=True) as progress:
        demo = run_demo(directory, options, progress=progress)
    verdict = ("passed", "green") if demo.passed else ("FAILED", "red")
    output.result(
        demo.to_dict(),
        _table(demo),
        *(Text.assemble(("failed:", "red"), f" {failure}") for failure in demo.failures),
        Text.assemble(f"{directory / REPORT}: ", verdict, f" ({demo.seconds:.0f} s); open it in a browser"),
    )
    if not demo.passed:
        raise SystemExit(1)


def _table(demo: Demo) -> Table:
    from rich.table import Table

    view = Table("encoder", "weights", "score", "one prompt", "drift", "loss")
    for variant in demo.variants:
        one = next(iter(variant.measured.latencies), None)
        drift = None if variant.verification.drift.tokens is None else variant.verification.drift.tokens.relative_l2
        view.add_row(
            variant.title,
            size(variant.weights_bytes),
            f"{variant.scores['overall']:.2f} \N{PLUS-MINUS SIGN} {variant.margin:.2f}",
            NOT_MEASURED if one is None else f"{1e3 * one.median:.2f} ms",
            _number(drift),
            "" if variant.plan_file is None else _number(variant.loss.relative_l2),
        )
    return view


def _number(value: float | None) -> str:
    return NOT_MEASURED if value is None else f"{value:.3g}"
