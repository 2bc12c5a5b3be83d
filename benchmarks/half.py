"""What half-precision weights cost on a CPU, whose provider computes in fp32: memory and latency beside fp32 weights.

    python benchmarks/half.py [--runs N] [--work DIR] [--json FILE]

The dense T5 v1.1 large encoder, baked to fp32, bf16 and fp16, each in a process of its own, asked in turn. ONNX Runtime
maps the weights of all three; the half-precision ones are cast to fp32 where they are used.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
from dataclasses import asdict

from checkpoints import SHAPES, ensure_checkpoint
from exporters import add_common_arguments, positive
from process import MIB, run_measured
from report import machine_line, print_table, write_records
from run import LENGTHS, THREADS, Subject, Worker, make_inputs

DTYPES = ("fp32", "bf16", "fp16")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=positive, default=7, help="timed runs per subject and length (default: 7)")
    add_common_arguments(parser)
    arguments = parser.parse_args()
    checkpoint = ensure_checkpoint(arguments.work / "checkpoints" / "large", SHAPES["large"])
    directory = arguments.work / "half"
    inputs = {length: make_inputs(directory, f"S{length}", length, length) for length in LENGTHS}
    subjects = []
    for dtype in DTYPES:
        bundle = directory / dtype
        export = (sys.executable, "-m", "skrr_export", "export", checkpoint, "-o", bundle, "--dtype", dtype, "--force")
        run_measured([str(word) for word in export])
        subjects.append(Subject(f"bundle, {dtype} weights, mapped", "mapped", bundle))
    with contextlib.ExitStack() as stack:
        workers = [stack.enter_context(Worker(subject, directory / "worker.log")) for subject in subjects]
        for subject, worker in zip(subjects, workers, strict=True):
            subject.load_seconds = worker.answer()["load_seconds"]
        for length, given in inputs.items():
            for subject, worker in zip(subjects, workers, strict=True):
                worker.run(given)
                subject.seconds[length] = []
            for _ in range(arguments.runs):
                for subject, worker in zip(subjects, workers, strict=True):
                    subject.seconds[length].append(worker.run(given))
        for subject, worker in zip(subjects, workers, strict=True):
            subject.memory = worker.memory()
    rows = []
    for subject in subjects:
        assert subject.memory is not None
        weights = (subject.path / "weights.safetensors").stat().st_size
        cells = [f"{size / MIB:,.0f}" for size in (weights, subject.memory.anonymous, subject.memory.file_backed)]
        for length in LENGTHS:
            median, base = (statistics.median(one.seconds[length]) for one in (subject, subjects[0]))
            cells += [f"{median:.3f}", f"{median / base:.2f}"]
        rows.append([subject.label, *cells])
    columns = ["", "weights MiB", "anonymous MiB", "file-backed MiB"]
    columns += [text for length in LENGTHS for text in (f"S{length} s", "ratio")]
    notes = f"{machine_line()}; batch 1, {THREADS} threads, medians of {arguments.runs}; ratios are to fp32 weights."
    print_table("Half-precision weights, computed in fp32 on a CPU", columns, rows, notes)
    records = [{**asdict(subject), "path": str(subject.path)} for subject in subjects]
    write_records(arguments.json or arguments.work / "half.json", "half", records)


if __name__ == "__main__":
    main()
