"""How fast encoders run, how fast they load, and what memory they hold: PyTorch, ours, and the peers' ONNX files.

    python benchmarks/run.py [--runs N] [--subjects NAMES] [--work DIR] [--json FILE]

All run the same dense fp32 T5 v1.1 large encoder on the same ids. Each subject is a process of its own which stays
alive; they are asked in turn, so a drift of the machine hits all alike. Files are in the page cache, so loading is not
the disk's time. What is timed is also compared with PyTorch's output, and the command fails if it differs.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from checkpoints import SHAPES, ensure_checkpoint
from environments import versions
from exporters import LABELS, OURS, add_common_arguments, ensure_export, positive
from process import MIB, CommandError, Memory, memory_of
from report import machine_line, print_table, write_records

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

LENGTHS = (77, 256, 512)
"""Tokens of a prompt; the batch is one."""
PADDED_LENGTH, PADDED_TOKENS = 77, 20
THREADS = 2
MAX_DIFFERENCE = 1e-3
"""Largest difference from PyTorch with which a subject counts as running the same encoder. Outputs have a standard
deviation of one; exact rewrites in fp32 stay below 1e-4, and a wrong operator is far above."""
STEADY = 0.05
"""Median coefficient of variation above which latencies say more about the machine's other work than about subjects."""
COLUMNS = (
    "subject", "load s", "anonymous MiB", "file-backed MiB", "peak RSS MiB",
    *(text for length in LENGTHS for text in (f"S{length} s", "ratio")), "max difference", "with padding",
)  # fmt: skip
PAIR_COLUMNS = ("subject", "one alone: PSS MiB", "two: first", "second", "sum", "sum / one")


@dataclass(slots=True)
class Subject:
    """One way to run the encoder, and what was measured of it."""

    label: str
    kind: str
    """A key of `OPENERS` in run_worker.py."""
    path: Path
    """What it opens."""
    load_seconds: float = 0.0
    seconds: dict[int, list[float]] = field(default_factory=dict)
    """Seconds of every run, by number of tokens."""
    memory: Memory | None = None
    """After these runs."""
    difference: float = 0.0
    """Largest absolute difference from PyTorch over all lengths, no token masked."""
    padded_difference: float = 0.0
    """The same for a prompt that is mostly padding, over the tokens that are not."""

    def command(self) -> list[str]:
        """The worker that runs it."""
        worker = Path(__file__).resolve().with_name("run_worker.py")
        return [sys.executable, str(worker), self.kind, str(self.path), str(THREADS)]


class Worker:
    """A process that runs a subject; a context manager."""

    def __init__(self, subject: Subject, log: Path) -> None:
        self._subject, self._log = subject, log
        # Set for all alike: PyTorch and NumPy take it, ONNX Runtime is told separately.
        environment = {**os.environ, "OMP_NUM_THREADS": str(THREADS)}
        with log.open("w", encoding="utf-8") as errors:
            self._process = subprocess.Popen(
                subject.command(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=environment,
                text=True,
            )

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()

    def answer(self) -> dict[str, float]:
        """The next line of the worker.

        Raises:
            CommandError: it has ended instead.
        """
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            tail = self._log.read_text(encoding="utf-8")[-3000:]
            raise CommandError(f"{self._subject.label}: {' '.join(self._subject.command())} ended early\n{tail}")
        result: dict[str, float] = json.loads(line)
        return result

    def run(self, inputs: Inputs, output: Path | None = None) -> float:
        """Run once; returns seconds."""
        assert self._process.stdin is not None
        request = {"ids": str(inputs.ids), "mask": str(inputs.mask), "output": str(output) if output else None}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self.answer()["seconds"]

    def memory(self) -> Memory:
        """Its memory now."""
        return memory_of(self._process.pid)


@dataclass(frozen=True, slots=True)
class Inputs:
    """Ids and mask, as .npy files of int64 `[1, tokens]`."""

    ids: Path
    mask: Path


def make_inputs(directory: Path, name: str, tokens: int, unmasked: int, vocab: int = SHAPES["large"].vocab) -> Inputs:
    """Random ids of which the first `unmasked` count; the rest are padding, as a tokenizer would pad."""
    directory.mkdir(parents=True, exist_ok=True)
    ids = np.random.default_rng(tokens).integers(2, vocab, (1, tokens), dtype=np.int64)
    mask = np.zeros_like(ids)
    mask[:, :unmasked] = 1
    inputs = Inputs(directory / f"{name}-ids.npy", directory / f"{name}-mask.npy")
    np.save(inputs.ids, ids * mask)
    np.save(inputs.mask, mask)
    return inputs


def make_subjects(work: Path, exporters: Sequence[str]) -> list[Subject]:
    """Export the checkpoint with every exporter; PyTorch comes first, the others are compared with it."""
    checkpoint = ensure_checkpoint(work / "checkpoints" / "large", SHAPES["large"])
    paths = {name: ensure_export(name, checkpoint, work / "exports" / "large" / name) for name in exporters}
    subjects = [Subject("PyTorch eager", "eager", checkpoint)]
    for name, path in paths.items():
        if name == OURS:
            subjects.append(Subject(f"{LABELS[OURS]} mapped", "mapped", path))
            subjects.append(Subject(f"{LABELS[OURS]} pre-packed", "prepacked", path))
        else:
            subjects.append(Subject(LABELS[name], "onnx", path))
    return subjects


def difference(reference: Path, output: Path, tokens: int) -> float:
    """Largest absolute difference over the first tokens of two outputs; infinite if shapes differ or one is a NaN."""
    expected, got = np.load(reference).astype(np.float64), np.load(output).astype(np.float64)
    if expected.shape != got.shape or not np.isfinite(got).all():
        return float("inf")
    return float(np.abs(expected - got)[:, :tokens].max())


def relative_error(reference: Path, output: Path) -> float:
    """Norm of the difference of two outputs over the norm of the first; infinite if shapes differ or one is a NaN."""
    expected, got = np.load(reference).astype(np.float64), np.load(output).astype(np.float64)
    if expected.shape != got.shape or not np.isfinite(got).all():
        return float("inf")
    return float(np.linalg.norm(got - expected) / np.linalg.norm(expected))


def spread(seconds: Sequence[float]) -> float:
    """The coefficient of variation."""
    return statistics.pstdev(seconds) / statistics.mean(seconds)


def compare_outputs(subjects: Sequence[Subject], workers: Sequence[Worker], inputs: Inputs, tokens: int) -> list[float]:
    """Run every subject once; the differences of their outputs from the first subject's, over the first tokens."""
    outputs = [inputs.ids.with_name(f"output-{number}.npy") for number in range(len(subjects))]
    for worker, output in zip(workers, outputs, strict=True):
        worker.run(inputs, output)
    return [difference(outputs[0], output, tokens) for output in outputs]


def measure(subjects: Sequence[Subject], work: Path, runs: int) -> None:
    """Load every subject, run all in turn, and read their memory; fills the subjects in."""
    directory = work / "run"
    inputs = {length: make_inputs(directory, f"S{length}", length, length) for length in LENGTHS}
    with contextlib.ExitStack() as stack:
        workers = []
        for number, subject in enumerate(subjects):
            worker = stack.enter_context(Worker(subject, directory / f"worker-{number}.log"))
            subject.load_seconds = worker.answer()["load_seconds"]
            workers.append(worker)
        pairs = list(zip(subjects, workers, strict=True))
        for length in LENGTHS:
            # Comparing comes first and is the warm-up: buffers are allocated and weights paged in.
            for subject, found in zip(
                subjects, compare_outputs(subjects, workers, inputs[length], length), strict=True
            ):
                subject.difference = max(subject.difference, found)
                subject.seconds[length] = []
            for repetition in range(runs):
                first = repetition % len(pairs)  # so that nobody always runs after the same neighbour
                for subject, worker in pairs[first:] + pairs[:first]:
                    subject.seconds[length].append(worker.run(inputs[length]))
        for subject, worker in pairs:
            subject.memory = worker.memory()
        padded = make_inputs(directory, "padded", PADDED_LENGTH, PADDED_TOKENS)
        for subject, found in zip(subjects, compare_outputs(subjects, workers, padded, PADDED_TOKENS), strict=True):
            subject.padded_difference = found


def measure_pair(subject: Subject, work: Path) -> list[float]:
    """PSS in bytes of one process that runs the subject alone, then of two at the same time."""
    directory = work / "run"
    inputs = make_inputs(directory, f"S{LENGTHS[0]}", LENGTHS[0], LENGTHS[0])
    with contextlib.ExitStack() as stack:
        workers = []
        sizes = []
        for number in range(2):
            workers.append(stack.enter_context(Worker(subject, directory / f"pair-{number}.log")))
            workers[-1].answer()
            workers[-1].run(inputs)
            sizes += [worker.memory().proportional for worker in workers]
    return [float(size) for size in sizes]


def table_row(subject: Subject, eager: Subject) -> list[str]:
    """A subject's row of the table."""
    assert subject.memory is not None
    memory = (subject.memory.anonymous, subject.memory.file_backed, subject.memory.peak_rss)
    cells = [subject.label, f"{subject.load_seconds:.2f}", *(f"{size / MIB:,.0f}" for size in memory)]
    for length in LENGTHS:
        median, base = statistics.median(subject.seconds[length]), statistics.median(eager.seconds[length])
        cells += [f"{median:.3f}", f"{median / base:.2f}"]
    if subject is eager:
        return [*cells, "-", "-"]
    return [*cells, f"{subject.difference:.1e}", f"{subject.padded_difference:.1e}"]


def print_results(subjects: Sequence[Subject], runs: int) -> None:
    """Print the table of latency and memory."""
    spreads = [spread(times) for subject in subjects for times in subject.seconds.values()]
    unsteady = (
        "\nThe machine was not idle: do not quote these latencies." if statistics.median(spreads) > STEADY else ""
    )
    print_table(
        f"A dense fp32 encoder, 24 layers, 1024 wide; batch 1, {THREADS} threads",
        COLUMNS,
        [table_row(subject, subjects[0]) for subject in subjects],
        f"{machine_line()}; medians of {runs}, the subjects in turn; ratios are to PyTorch in the same run.\n"
        f"Coefficient of variation: {statistics.median(spreads):.1%} in the median, {max(spreads):.1%} at most.\n"
        "Loading is without imports; memory is after all runs. Differences are of last_hidden_state from PyTorch;\n"
        f"with padding: {PADDED_TOKENS} tokens padded to {PADDED_LENGTH}, the mask given where the graph takes one."
        + ("\nThe machine was not idle: do not quote these latencies." if unsteady else ""),
    )


def records_of(subjects: Sequence[Subject], pairs: dict[str, list[float]]) -> list[dict[str, Any]]:
    """What goes into the JSON file."""
    found = versions(Path(sys.executable))
    names = ("alone", "first_of_two", "second_of_two")
    records = []
    for subject in subjects:
        assert subject.memory is not None
        records.append(
            {
                "benchmark": "run",
                "subject": subject.label,
                "command": subject.command(),
                "threads": THREADS,
                "load_seconds": subject.load_seconds,
                "seconds_by_tokens": subject.seconds,
                "memory_bytes": asdict(subject.memory),
                "max_difference": subject.difference,
                "max_difference_padded": subject.padded_difference,
                "pss_bytes": dict(zip(names, pairs[subject.label], strict=True)),
                "versions": found,
            }
        )
    return records


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=positive, default=9, help="timed runs per subject and length (default: 9)")
    add_common_arguments(parser)
    arguments = parser.parse_args()
    work = arguments.work
    try:
        subjects = make_subjects(work, arguments.subjects)
        measure(subjects, work, arguments.runs)
        print_results(subjects, arguments.runs)
        pairs = {subject.label: measure_pair(subject, work) for subject in subjects}
    except CommandError as error:
        raise SystemExit(str(error)) from error
    rows = []
    for label, (alone, first, second) in pairs.items():
        sizes = (alone, first, second, first + second)
        rows.append([label, *(f"{size / MIB:,.0f}" for size in sizes), f"{(first + second) / alone:.2f}"])
    print_table(f"Two processes on the same files, after one run of {LENGTHS[0]} tokens each", PAIR_COLUMNS, rows)
    write_records(arguments.json or work / "run.json", "run", records_of(subjects, pairs))
    wrong = [subject.label for subject in subjects if not subject.difference <= MAX_DIFFERENCE]
    if wrong:
        raise SystemExit(f"differs from PyTorch by more than {MAX_DIFFERENCE}: {', '.join(wrong)}")


if __name__ == "__main__":
    main()
