"""`skrr-export compare`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from skrr_export.cli.output import NOT_MEASURED, Output, output_options, size

if TYPE_CHECKING:
    from rich.table import Table

    from skrr_export.measure.comparing import Change, ComparisonReport


@click.command()
@click.argument("before", type=click.Path(path_type=Path))
@click.argument("after", type=click.Path(path_type=Path))
@click.option(
    "--tolerance",
    default=0.1,
    show_default=True,
    type=click.FloatRange(0),
    help="Share by which a number may grow.",
)
@output_options
def command(before: Path, after: Path, tolerance: float, output: Output) -> None:
    """Compare two measurements; exit 1 when something got worse.

    BEFORE and AFTER are files of `measure --json`. A number that was measured before and is not any more counts as
    worse. Times are compared as ratios to PyTorch in the same run where both have it.

    \b
    Example:
      skrr-export compare release.json today.json --tolerance 0.05
    """
    from rich.text import Text

    from skrr_export.measure.comparing import compare, read_measurement

    report = compare(read_measurement(before), read_measurement(after), tolerance)
    worse = [change for change in report.changes if change.regressed]
    verdict = ("nothing got worse", "green") if report.passed else (f"{len(worse)} got worse", "red")
    output.result(
        report.to_dict(),
        _table(report),
        *(f"note: {note}" for note in report.notes),
        *(Text.assemble(("worse:", "red"), f" {_sentence(change)}") for change in worse),
        Text.assemble(f"{after} against {before}, tolerance {tolerance:.1%}: ", verdict),
    )
    if not report.passed:
        raise SystemExit(1)


def _table(report: ComparisonReport) -> Table:
    from rich.table import Table

    view = Table("subject", "metric", "before", "after", "change")
    for change in report.changes:
        style = "red" if change.regressed else None
        row = (_value(change.before, change.unit), _value(change.after, change.unit), _share(change))
        view.add_row(change.subject, change.metric, *row, style=style)
    return view


def _sentence(change: Change) -> str:
    values = f"{_value(change.before, change.unit)} to {_value(change.after, change.unit)}"
    return f"{change.subject}, {change.metric}: {values} {_share(change)}".rstrip()


def _share(change: Change) -> str:
    return "" if change.share is None else f"{change.share:+.1%}"


def _value(value: float | None, unit: str) -> str:
    if value is None:
        return NOT_MEASURED
    if unit == "bytes":
        return size(int(value))
    return {"seconds": f"{value:.3g} s", "times": f"{value:.3g} x", "error": f"{value:.3g}"}[unit]
