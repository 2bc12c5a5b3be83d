"""What compiling gives on a CPU: latency, load and memory of our targets in bf16 beside PyTorch, and what they take.

    python benchmarks/compiled.py [--runs N] [--layers N] [--width N] [--work DIR] [--json FILE]

The dense T5 v1.1 large encoder. Every subject is a process of its own which stays alive; they are asked in turn, as in
run.py. Outputs are compared with ONNX Runtime in fp32: the command fails if one of ours in bf16 is further away from it
than twice what PyTorch's bf16 is.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from checkpoints import BYTES_PER_ELEMENT, SHAPES, Shape, ensure_checkpoint, parameter_count, resized
from environments import versions
from exporters import positive
from process import MIB, CommandError, Result, run_measured
from report import add_work_arguments, machine_line, print_table, write_records
from run import LENGTHS, STEADY, THREADS, Inputs, Subject, Worker, make_inputs, relative_error, spread

EAGER = "PyTorch eager bf16"
FURTHER = 2.0
"""How many times PyTorch's own error in bf16 ours may have."""
EXPORT_COLUMNS = ("target", "weights", "export s", "cpu s", "peak RSS MiB", "peak anonymous MiB", "target's bytes")
COLUMNS = (
    "subject", "load s", "anonymous MiB", "file-backed MiB",
    *(text for length in LENGTHS for text in (f"S{length} s", "ratio", "CV")), "relative error",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Export:
    """A bundle with one target, and what it took to make."""

    target: str
    dtype: str
    bundle: Path
    result: Result
    nbytes: int
    """Of the target's files, weights and all that is not the target's aside."""


def export(checkpoint: Path, target: str, dtype: str, work: Path) -> Export:
    """Export in a fresh process."""
    bundle = work / f"{target}-{dtype}"
    words = ("export", checkpoint, "-o", bundle, "--dtype", dtype, "--to", target, "--force", "--json")
    result = run_measured([sys.executable, "-m", "skrr_export", *map(str, words)])
    entry = json.loads(result.stdout)["targets"][target]
    names = entry.get("packages", {"file": entry["file"]}).values()
    return Export(target, dtype, bundle, result, sum((bundle / name).stat().st_size for name in names))


def make_subjects(checkpoint: Path, exports: dict[tuple[str, str], Export]) -> list[Subject]:
    """ONNX Runtime in fp32 comes first: the others are compared with it."""
    return [
        Subject("ONNX Runtime fp32, mapped", "mapped", exports["onnx", "fp32"].bundle),
        Subject(EAGER, "eager-bf16", checkpoint),
        Subject("torch.export program bf16", "pt2", exports["pt2", "bf16"].bundle),
        Subject("AOTInductor bf16", "aoti", exports["aoti", "bf16"].bundle),
        Subject("ONNX Runtime, bf16 weights", "mapped", exports["onnx", "bf16"].bundle),
    ]


def measure(subjects: list[Subject], inputs: dict[int, Inputs], directory: Path, runs: int) -> None:
    """Load every subject, compare what it computes, run all in turn, read their memory; fills the subjects in."""
    with contextlib.ExitStack() as stack:
        workers = []
        for number, subject in enumerate(subjects):
            workers.append(stack.enter_context(Worker(subject, directory / f"worker-{number}.log")))
            subject.load_seconds = workers[-1].answer()["load_seconds"]
        pairs = list(zip(subjects, workers, strict=True))
        outputs = [directory / f"output-{number}.npy" for number in range(len(subjects))]
        for length, given in inputs.items():
            for (subject, worker), output in zip(pairs, outputs, strict=True):
                worker.run(given, output)  # and warm up
                subject.difference = max(subject.difference, relative_error(outputs[0], output))
                subject.seconds[length] = []
            for repetition in range(runs):
                first = repetition % len(pairs)  # so that nobody always runs after the same neighbour
                for subject, worker in pairs[first:] + pairs[:first]:
                    subject.seconds[length].append(worker.run(given))
        for subject, worker in pairs:
            subject.memory = worker.memory()


def table_row(subject: Subject, eager: Subject) -> list[str]:
    """A line of the table of latencies."""
    assert subject.memory is not None
    sizes = (subject.memory.anonymous, subject.memory.file_backed)
    cells = [subject.label, f"{subject.load_seconds:.2f}", *(f"{size / MIB:,.0f}" for size in sizes)]
    for length, seconds in subject.seconds.items():
        median = statistics.median(seconds)
        cells += [f"{median:.3f}", f"{median / statistics.median(eager.seconds[length]):.2f}", f"{spread(seconds):.1%}"]
    return [*cells, f"{subject.difference:.1e}" if subject.difference else "-"]


def print_results(shape: Shape, exports: list[Export], subjects: list[Subject], runs: int) -> None:
    """Print both tables."""
    name = f"dense T5, {shape.layers} layers x {shape.width}"
    rows = []
    for one in exports:
        times = [f"{seconds:.1f}" for seconds in (one.result.wall_seconds, one.result.cpu_seconds)]
        sizes = [f"{size / MIB:,.0f}" for size in (one.result.peak_rss_bytes, one.result.peak_anonymous_bytes)]
        rows.append([one.target, one.dtype, *times, *sizes, f"{one.nbytes:,}"])
    parameters = parameter_count(shape)
    weights = ", ".join(f"{parameters * BYTES_PER_ELEMENT[dtype]:,} in {dtype}" for dtype in ("fp32", "bf16"))
    print_table(
        f"Export, {name}",
        EXPORT_COLUMNS,
        rows,
        f"{machine_line()}; a fresh process each, once; the whole command, baking included. Peak RSS is of the\n"
        f"largest process, compilers included. Bytes of weights, in a file that targets share: {weights}.",
    )
    eager = next(subject for subject in subjects if subject.label == EAGER)
    spreads = [spread(seconds) for subject in subjects for seconds in subject.seconds.values()]
    unsteady = statistics.median(spreads) > STEADY
    print_table(
        f"Latency on a CPU, {name}; batch 1, {THREADS} threads",
        COLUMNS,
        [table_row(subject, eager) for subject in subjects],
        f"{machine_line()}; medians of {runs}, the subjects in turn; ratios are to {EAGER} in the same run.\n"
        f"Coefficient of variation (CV): {statistics.median(spreads):.1%} in the median, {max(spreads):.1%} at most.\n"
        "Loading is without imports; memory is after all runs. The error is the largest over the lengths, relative L2\n"
        f"of last_hidden_state from {subjects[0].label}."
        + ("\nThe machine was not idle: do not quote these latencies." if unsteady else ""),
    )
    aoti = next(subject for subject in subjects if subject.kind == "aoti")
    for length in LENGTHS:
        ratio = statistics.median(aoti.seconds[length]) / statistics.median(eager.seconds[length])
        print(f"{length} tokens: AOTInductor takes {ratio:.2f} times as long as eager")


def records_of(shape: Shape, exports: list[Export], subjects: list[Subject]) -> list[dict[str, Any]]:
    """What goes into the JSON file."""
    common = {"shape": asdict(shape), "versions": versions(Path(sys.executable))}
    records: list[dict[str, Any]] = []
    for one in exports:
        measured = asdict(one.result)
        del measured["stdout"], measured["stderr"]
        facts = {"benchmark": "compiled-export", "target": one.target, "dtype": one.dtype, "target_bytes": one.nbytes}
        records.append({**facts, **measured, **common})
    for subject in subjects:
        assert subject.memory is not None
        records.append(
            {
                "benchmark": "compiled",
                "subject": subject.label,
                "command": subject.command(),
                "threads": THREADS,
                "load_seconds": subject.load_seconds,
                "seconds_by_tokens": subject.seconds,
                "memory_bytes": asdict(subject.memory),
                "relative_error": subject.difference,
                **common,
            }
        )
    return records


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=positive, default=9, help="timed runs per subject and length (default: 9)")
    parser.add_argument("--layers", type=positive, help="to try it on something smaller")
    parser.add_argument("--width", type=positive, help="likewise; a multiple of 64")
    add_work_arguments(parser)
    arguments = parser.parse_args()
    shape, work = resized(SHAPES["large"], layers=arguments.layers, width=arguments.width), arguments.work
    directory = work / "compiled"
    folder = "large" if shape == SHAPES["large"] else f"large-{shape.layers}x{shape.width}"
    try:
        checkpoint = ensure_checkpoint(work / "checkpoints" / folder, shape)
        kinds = [("onnx", "fp32"), ("onnx", "bf16"), ("pt2", "bf16"), ("aoti", "bf16")]
        exports = {kind: export(checkpoint, *kind, directory) for kind in kinds}
        subjects = make_subjects(checkpoint, exports)
        inputs = {length: make_inputs(directory, f"S{length}", length, length, shape.vocab) for length in LENGTHS}
        measure(subjects, inputs, directory, arguments.runs)
    except CommandError as error:
        raise SystemExit(str(error)) from error
    print_results(shape, list(exports.values()), subjects, arguments.runs)
    write_records(
        arguments.json or work / "compiled.json", "compiled", records_of(shape, list(exports.values()), subjects)
    )
    limit = FURTHER * next(subject.difference for subject in subjects if subject.label == EAGER)
    if wrong := [subject.label for subject in subjects if not subject.difference <= limit]:
        raise SystemExit(f"further than {limit:.1e} from fp32: {', '.join(wrong)}")


if __name__ == "__main__":
    main()
