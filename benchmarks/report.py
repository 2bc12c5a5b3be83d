"""What the benchmarks print and write: aligned tables, and JSON records of every run; and where they write it."""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

from environments import cache_directory

if TYPE_CHECKING:
    from collections.abc import Sequence


def add_work_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `--work` and `--json`, for the benchmarks that compare no exporters."""
    parser.add_argument(
        "--work",
        type=lambda text: Path(text).resolve(),
        default=cache_directory() / "work",
        metavar="DIR",
        help="for checkpoints and outputs (default: %(default)s)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="for the records of all runs (default: in DIR)")


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


def machine() -> dict[str, Any]:
    """The machine, as far as it decides a measurement: processor, cores this process may use, memory, kernel."""
    processor = platform.processor() or "unknown"
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            processor = line.partition(":")[2].strip()
            break
    return {
        "cpu": processor,
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "kernel": platform.release(),
    }


def machine_line() -> str:
    """The machine on one line, to stand under a table."""
    facts = machine()
    return f"{facts['cpu']}, {facts['cores']} cores, {facts['memory_bytes'] / 1024**3:.0f} GiB"


def write_records(path: Path, benchmark: str, records: Sequence[dict[str, Any]]) -> None:
    """Write records as JSON, one document: what was run, where, when, and one record per run."""
    document = {
        "benchmark": benchmark,
        "finished": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "records": list(records),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(f"records: {path}")
