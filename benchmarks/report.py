"""What the benchmarks print and write: aligned tables, JSON records of every run, measurements; and where."""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from environments import cache_directory

from skrr_export.errors import SkrrError
from skrr_export.measure.machine import machine, versions

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from skrr_export.measuring import MeasureOptions

PROMPTS = 16
"""Shipped prompts that embeddings are compared on."""


def add_work_argument(parser: argparse.ArgumentParser) -> None:
    """Add `--work`."""
    parser.add_argument(
        "--work",
        type=lambda text: Path(text).resolve(),
        default=cache_directory() / "work",
        metavar="DIR",
        help="for checkpoints and outputs (default: %(default)s)",
    )


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]], notes: str = "") -> None:
    """Print a table in plain text: the first column flush left, the others flush right."""
    lines = [list(header), *map(list, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]

    def render(line: Sequence[str]) -> str:
        cells = [line[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(line[1:], widths[1:], strict=True))]
        return "  ".join(cells).rstrip()

    print(f"\n{title}\n\n{render(header)}\n{'  '.join('-' * width for width in widths)}")
    print("\n".join(render(row) for row in rows))
    if notes:
        print(f"\n{notes}")


def machine_line() -> str:
    """The machine on one line, to stand under a table."""
    return describe(machine(None))


def describe(facts: Mapping[str, Any]) -> str:
    """A machine on one line."""
    gpu = f", {facts['gpu']}" if facts["gpu"] else ""
    return f"{facts['cpu']}, {facts['cores']} cores, {facts['memory_bytes'] / 1024**3:.0f} GiB{gpu}"


def write_records(work: Path, benchmark: str, records: Sequence[Mapping[str, Any]]) -> None:
    """Write records as one JSON document: what was run, where, when, with which versions, and one record per run."""
    document = {
        "benchmark": benchmark,
        "finished": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "machine": machine(None),
        "versions": versions(),
        "records": list(records),
    }
    path = work / f"{benchmark}.json"
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(f"records: {path}")


def measure(name: str, bundle: Path, options: MeasureOptions, work: Path) -> bool:
    """Measure a bundle as `skrr-export measure` does, print its tables, and write its JSON.

    Returns:
        Whether every check passed.

    Raises:
        SystemExit: the request makes no sense here.
    """
    from skrr_export.bundle import open_bundle
    from skrr_export.cli.measure_tables import tables
    from skrr_export.cli.output import Output
    from skrr_export.measuring import measure_bundle

    here = Path(__file__).resolve().parent  # where subjects find openers.py, and runtimes beside it
    paths = (str(here), str(here.parent), os.environ.get("PYTHONPATH"))
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    output, file = Output(json=False, quiet=False), work / f"{name}.json"
    try:
        with output.progress(lines=True) as progress:
            measurement = measure_bundle(open_bundle(bundle), options, progress)
    except SkrrError as error:
        raise SystemExit(str(error)) from error
    file.write_text(measurement.to_json(), encoding="utf-8")
    output.result({}, *tables(measurement), f"written to {file}")
    return measurement.passed
