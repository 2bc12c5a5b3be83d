"""How long exporting takes, how much memory, and what it writes.

    python benchmarks/export.py --shape large     a dense fp32 T5 v1.1 large encoder: ours beside the peers
    python benchmarks/export.py --shape xxl       T5-XXL under a published Skrr plan, beside copying as many bytes
    python benchmarks/export.py --shape depth     12, 24 and 48 layers: tracing must not take longer with depth

Every export is a fresh process, the subjects take turns, and the checkpoint is in the page cache. The disk is idle at
the start of each export. Exporters differ in whether they wait for the disk, so the time until everything written has
reached it is given too ("wall + sync").
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from checkpoints import BYTES_PER_ELEMENT, SHAPES, Shape, ensure_checkpoint, parameter_count
from exporters import LABELS, OURS, REPOSITORY, Exporter, add_common_arguments, exporter, positive
from process import MIB, CommandError, Result, run_measured
from report import machine_line, print_table, write_records

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

FLUX_DEV_ORDER = (
    46, 45, 5, 6, 11, 20, 19, 22, 23, 30, 29, 47, 2, 44, 32, 31, 18, 17, 37, 36, 43, 40, 39, 42,
)  # fmt: skip
"""The skip order that the Skrr paper publishes for FLUX.1-dev. A unit is `2 * layer` for attention and `2 * layer + 1`
for feed-forward."""
DROPPED, REUSED = 21, 9
DEPTHS = (12, 24, 48)
LARGE_COLUMNS = (
    "exporter", "wall s", "ratio", "wall + sync s", "peak RSS MiB", "ratio", "peak anonymous MiB", "ratio",
    "files bytes", "beyond weights",
)  # fmt: skip
XXL_COLUMNS = (
    "", "wall s", "ratio", "wall + sync s", "ratio", "peak RSS MiB", "peak anonymous MiB", "files bytes",
    "beyond weights",
)  # fmt: skip
DEPTH_SHAPE = Shape(layers=0, width=256, heads=4, d_kv=64, d_ff=704, vocab=32128)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One export and what it left behind."""

    result: Result
    synced_seconds: float
    """Wall seconds of the export and of the sync after it."""
    output_bytes: int


def run_export(command: Sequence[str], output: Path) -> Run:
    """Export once, into a directory that does not exist, with an idle disk."""
    shutil.rmtree(output, ignore_errors=True)
    output.parent.mkdir(parents=True, exist_ok=True)
    os.sync()
    result = run_measured(command, cwd=REPOSITORY)
    start = time.perf_counter()
    os.sync()
    size = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
    return Run(result=result, synced_seconds=result.wall_seconds + time.perf_counter() - start, output_bytes=size)


def record(benchmark: str, subject: Exporter, run: Run, **facts: Any) -> dict[str, Any]:
    """A run as it goes into the JSON file."""
    return {
        "benchmark": benchmark,
        "subject": subject.title(),
        **facts,
        **run.result.facts(),
        "synced_seconds": run.synced_seconds,
        "output_bytes": run.output_bytes,
        "versions": subject.versions(),
    }


def median_of(runs: Sequence[Run], field: str) -> float:
    """Median over runs of a field of the result."""
    return statistics.median(float(getattr(run.result, field)) for run in runs)


def read_through(directory: Path) -> None:
    """Read every file once, so that the page cache holds it."""
    for path in directory.rglob("*"):
        if path.is_file():
            with path.open("rb", buffering=0) as file:
                while file.read(4 * MIB):
                    pass


def measure_large(work: Path, runs: int, subjects: Sequence[str]) -> list[dict[str, Any]]:
    """Ours and the peers on a dense fp32 checkpoint."""
    shape = SHAPES["large"]
    checkpoint = ensure_checkpoint(work / "checkpoints" / "large", shape)
    chosen = [exporter(name) for name in subjects]
    results: dict[str, list[Run]] = {subject.name: [] for subject in chosen}
    weight_bytes = parameter_count(shape) * BYTES_PER_ELEMENT[shape.dtype]
    records = []
    read_through(checkpoint)
    for repetition in range(runs):
        for subject in chosen:
            output = work / "exports" / "timed" / subject.name
            run = run_export(subject.command(checkpoint, output), output)
            shutil.rmtree(output)
            results[subject.name].append(run)
            facts = {"repetition": repetition, "weight_bytes": weight_bytes}
            records.append(record("export-large", subject, run, **facts))
    base = results[chosen[0].name]
    rows = [_large_row(LABELS[name], results[name], base, weight_bytes) for name in results]
    print_table(
        f"Export of a dense fp32 encoder, 24 layers, 1024 wide, {weight_bytes / 1e9:.3f} GB of weights",
        LARGE_COLUMNS,
        rows,
        f"{machine_line()}; medians of {runs}; ratios are to the first row.\n"
        "Peak RSS counts the checkpoint's pages where an exporter maps it; peak anonymous is what it allocated.",
    )
    return records


def _large_row(label: str, runs: Sequence[Run], base: Sequence[Run], weight_bytes: int) -> list[str]:
    def with_ratio(field: str, unit: float, digits: int) -> list[str]:
        value, reference = median_of(runs, field), median_of(base, field)
        return [f"{value / unit:,.{digits}f}", f"{value / reference:.2f}"]

    size = runs[-1].output_bytes
    return [
        label,
        *with_ratio("wall_seconds", 1, 1),
        f"{statistics.median(run.synced_seconds for run in runs):.1f}",
        *with_ratio("peak_rss_bytes", MIB, 0),
        *with_ratio("peak_anonymous_bytes", MIB, 0),
        f"{size:,}",
        f"{size - weight_bytes:,}",
    ]


def nearest_kept(unit: int, dropped: frozenset[int], units: int) -> int:
    """The kept unit of the same kind (attention or feed-forward) nearest to a dropped one; of two, the earlier."""
    kept = [other for other in range(unit % 2, units, 2) if other not in dropped]
    return min(kept, key=lambda other: (abs(other - unit), other))


def plan_command(python: Path, plan: Path, layers: int) -> list[str]:
    """The command that writes the plan: the order's first units dropped, and the first nine of these re-used."""
    dropped = FLUX_DEV_ORDER[:DROPPED]
    pairs = [f"{unit}:{nearest_kept(unit, frozenset(dropped), 2 * layers)}" for unit in dropped[:REUSED]]
    order = ",".join(map(str, FLUX_DEV_ORDER))
    options = ["--num-layers", str(layers), "--drop", str(DROPPED), "--reuse", ",".join(pairs), "-o", str(plan)]
    return [str(python), "-m", "skrr_export", "plan", "from-order", order, *options]


def kept_parameters(shape: Shape) -> int:
    """Parameters the plan keeps, by arithmetic: all, less those of the dropped units. Each unit has its norm."""
    attention = 4 * shape.width * shape.heads * shape.d_kv + shape.width
    feed_forward = 3 * shape.width * shape.d_ff + shape.width
    return parameter_count(shape) - sum(feed_forward if unit % 2 else attention for unit in FLUX_DEV_ORDER[:DROPPED])


def stored_parameters(weights: Path) -> int:
    """Elements in a safetensors file, by its header. Tensors called `_pad.*` are padding and do not count."""
    with weights.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    total = 0
    for name, entry in header.items():
        if name != "__metadata__" and not name.startswith("_pad."):
            elements = 1
            for size in entry["shape"]:
                elements *= size
            total += elements
    return total


def measure_xxl(work: Path, runs: int) -> list[dict[str, Any]]:
    """Ours on T5-XXL under the FLUX.1-dev plan, beside the time to copy the weights it writes.

    Raises:
        SystemExit: the bundle does not hold exactly the kept parameters.
    """
    shape, ours, plan = SHAPES["xxl"], exporter(OURS), work / "flux-dev-plan.json"
    checkpoint, output = ensure_checkpoint(work / "checkpoints" / "xxl", shape), work / "exports" / "xxl"
    plan.unlink(missing_ok=True)
    run_measured(plan_command(ours.python, plan, shape.layers), cwd=REPOSITORY)
    exports, copies, records = [], [], []
    for repetition in range(runs):
        read_through(checkpoint)
        run = run_export(ours.command(checkpoint, output, "--plan", str(plan), "--dtype", "bf16"), output)
        exports.append(run)
        copies.append(copy_seconds(output / "weights.safetensors", output.with_name("xxl-copy")))
        facts = {"repetition": repetition, "copy_seconds": copies[-1][0], "copy_synced_seconds": copies[-1][1]}
        records.append(record("export-xxl", ours, run, **facts))
    stored, kept = stored_parameters(output / "weights.safetensors"), kept_parameters(shape)
    if stored != kept:
        raise SystemExit(f"the bundle holds {stored:,} parameters; the plan keeps {kept:,}")
    _print_xxl(exports, copies, parameter_count(shape), kept)
    shutil.rmtree(output)
    return records


def _print_xxl(exports: Sequence[Run], copies: Sequence[tuple[float, float]], total: int, kept: int) -> None:
    copied, copied_synced = (statistics.median(times) for times in zip(*copies, strict=True))
    wall, synced = median_of(exports, "wall_seconds"), statistics.median(run.synced_seconds for run in exports)
    peaks = [f"{median_of(exports, f'peak_{kind}_bytes') / MIB:,.0f}" for kind in ("rss", "anonymous")]
    weight_bytes, file_bytes = 2 * kept, exports[-1].output_bytes
    times = [f"{wall:.1f}", f"{wall / copied:.2f}", f"{synced:.1f}", f"{synced / copied_synced:.2f}"]
    limits = [f"{copied:.1f}", "1.00", f"{copied_synced:.1f}", "1.00"]
    print_table(
        f"Export of T5-XXL bf16 ({total * 2 / 1e9:.2f} GB), {DROPPED} units dropped, {REUSED} of them re-used",
        XXL_COLUMNS,
        [
            [LABELS[OURS], *times, *peaks, f"{file_bytes:,}", f"{file_bytes - weight_bytes:,}"],
            ["copying the weights", *limits, "-", "-", f"{weight_bytes:,}", "0"],
        ],
        f"{machine_line()}; medians of {len(exports)}. The weights file holds just the {kept:,} parameters the plan\n"
        f"keeps ({1 - kept / total:.1%} sparsity).",
    )


def copy_seconds(source: Path, target: Path) -> tuple[float, float]:
    """Seconds to copy a file on the same disk without sharing its blocks: until copied, and until on the disk.

    The source has just been written, so it is read from the page cache: what is left is the cost of writing.
    """
    target.unlink(missing_ok=True)
    os.sync()
    copied = run_measured(["cp", "--reflink=never", str(source), str(target)]).wall_seconds
    synced = copied + run_measured(["sync", str(target)]).wall_seconds
    target.unlink()
    return copied, synced


def measure_depth(work: Path, runs: int) -> list[dict[str, Any]]:
    """Ours at several depths of the same width."""
    ours, records, rows = exporter(OURS), [], []
    shapes = {depth: replace(DEPTH_SHAPE, layers=depth) for depth in DEPTHS}
    exports: dict[int, list[Run]] = {depth: [] for depth in DEPTHS}
    graph_bytes: dict[int, int] = {}
    for repetition in range(runs):
        for depth, shape in shapes.items():
            checkpoint = ensure_checkpoint(work / "checkpoints" / f"depth-{depth}", shape)
            output = work / "exports" / f"depth-{depth}"
            run = run_export(ours.command(checkpoint, output), output)
            exports[depth].append(run)
            graph_bytes[depth] = (output / "model.onnx").stat().st_size
            shutil.rmtree(output)
            records.append(record("export-depth", ours, run, repetition=repetition, layers=depth))
    for depth in DEPTHS:
        wall, first = (median_of(exports[d], "wall_seconds") for d in (depth, DEPTHS[0]))
        cpu, peak = median_of(exports[depth], "cpu_seconds"), median_of(exports[depth], "peak_rss_bytes")
        weights = parameter_count(shapes[depth]) * BYTES_PER_ELEMENT["fp32"]
        times = [f"{wall:.2f}", f"{wall / first:.2f}", f"{cpu:.2f}"]
        rows.append([str(depth), *times, f"{peak / MIB:,.0f}", f"{graph_bytes[depth]:,}", f"{weights:,}"])
    print_table(
        f"Export by depth, {DEPTH_SHAPE.width} wide, fp32 ({LABELS[OURS]})",
        ["layers", "wall s", f"ratio to {DEPTHS[0]}", "cpu s", "peak RSS MiB", "graph bytes", "weight bytes"],
        rows,
        f"{machine_line()}; medians of {runs}.",
    )
    return records


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=("large", "xxl", "depth"), default="large")
    parser.add_argument("--runs", type=positive, default=3, help="exports per subject (default: 3)")
    add_common_arguments(parser)
    arguments = parser.parse_args()
    work, shape = arguments.work, arguments.shape
    try:
        if shape == "large":
            records = measure_large(work, arguments.runs, arguments.subjects)
        else:
            records = (measure_xxl if shape == "xxl" else measure_depth)(work, arguments.runs)
    except CommandError as error:
        raise SystemExit(f"a measured command failed: {error}") from error
    write_records(work, f"export-{shape}", records)


if __name__ == "__main__":
    main()
