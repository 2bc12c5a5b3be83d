"""Re-use for a published order on a T5-XXL, in the memory of an ordinary machine."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from checkpoints import SHAPES, ensure_checkpoint, parameter_count
from process import MIB, Result, run_measured
from report import machine_line, print_table
from search_models import write_tokenizer
from search_speed import answer, worker, write_prompts

from skrr_export.prompts import calibration_prompts, default_prompts

ORDER, SPARSITY = "pixart-sigma", 0.419
DTYPES = ("bf16", "fp32")
PROMPTS, TRIAL_PROMPTS = 16, 2
SHORT = (20, 100)
"""Bytes of a short prompt: least and most."""
COLUMNS = (
    "computed in", "prompts", "tokens", "wall s", "cpu s", "peak RSS MiB", "peak anonymous MiB", "evaluations",
    "in forwards", "skips", "re-uses", "sparsity", "D: skips", "with re-use",
)  # fmt: skip
ESTIMATE_COLUMNS = ("computed in", "prompts", "tokens", "a dense forward s", "first s", "forwards", "job: minutes")


@dataclass(frozen=True, slots=True)
class Job:
    """One run of the command."""

    dtype: str
    prompts: int
    result: Result
    plan: dict[str, Any]

    @property
    def provenance(self) -> dict[str, Any]:
        """How its plan was found."""
        found: dict[str, Any] = self.plan["provenance"]
        return found

    @property
    def forwards(self) -> float:
        """Its work, in dense forwards over the prompts."""
        tokens = self.provenance["calibration"]["tokens"] + 1  # the null prompt is one token, the end
        work: float = self.provenance["evaluations"]["sub_blocks"] / (2 * SHAPES["xxl"].layers * tokens)
        return work


@dataclass(frozen=True, slots=True)
class Files:
    """What every job works on."""

    work: Path
    checkpoint: Path
    tokenizer: Path
    short: bool
    """Whether prompts are short, or captions of about 180 tokens as the paper calibrates on."""

    def prompts(self, count: int) -> Path:
        """A file of the first so many shipped prompts of the kind."""
        least, most = SHORT
        short = (prompt for prompt in default_prompts() if least <= len(prompt.encode()) <= most)
        texts = list(short if self.short else calibration_prompts())[:count]
        return write_prompts(self.work / "search" / f"xxl-prompts-{count}.txt", texts)


def run_job(files: Files, dtype: str, count: int, threads: int) -> Job:
    """Run `plan published` in a fresh process."""
    plan = files.work / "search" / f"xxl-{dtype}-{count}.json"
    for path in (plan, plan.with_name(f"{plan.name}.journal")):
        path.unlink(missing_ok=True)
    command = [
        sys.executable, "-m", "skrr_export", "plan", "published", ORDER, "--sparsity", str(SPARSITY), "-o", str(plan),
        "--checkpoint", str(files.checkpoint), "--tokenizer", str(files.tokenizer),
        "--prompts", str(files.prompts(count)), "--device", "cpu", "--dtype", dtype,
    ]  # fmt: skip
    result = run_measured(command, environment={"OMP_NUM_THREADS": str(threads)})
    return Job(dtype, count, result, json.loads(plan.read_text(encoding="utf-8")))


def table_row(job: Job) -> list[str]:
    """A line of the table."""
    found = job.provenance
    dropped = len(found["order"])
    return [
        job.dtype,
        str(job.prompts),
        f"{found['calibration']['tokens']:,}",
        f"{job.result.wall_seconds:,.0f}",
        f"{job.result.cpu_seconds:,.0f}",
        f"{job.result.peak_rss_bytes / MIB:,.0f}",
        f"{job.result.peak_anonymous_bytes / MIB:,.0f}",
        f"{found['evaluations']['sub_blocks'] / 1e3:,.0f} k",
        f"{job.forwards:.1f}",
        str(dropped - len(found["reuses"])),
        str(len(found["reuses"])),
        f"{found['sparsity']['reached']:.1%}",
        f"{found['curves'][0]['points'][-1][1]:.4g}",
        f"{found['discrepancy']['value']:.4g}",
    ]


def measure_xxl(
    work: Path, threads: int, prompts: int, dtypes: tuple[str, ...], *, short: bool, estimate: bool
) -> tuple[list[dict[str, Any]], list[str]]:
    """Run the job in each precision, or on two prompts only and say what it would take; print tables.

    Returns:
        The records, and what is not as claimed.
    """
    shape = SHAPES["xxl"]
    checkpoint = ensure_checkpoint(work / "checkpoints" / "xxl", shape)
    files = Files(work, checkpoint, write_tokenizer(work / "search" / "tokenizer"), short)
    count = TRIAL_PROMPTS if estimate else prompts
    jobs = []
    for dtype in dtypes:
        jobs.append(run_job(files, dtype, count, threads))
        print(f"xxl, {dtype}: {jobs[-1].result.wall_seconds:.0f} s", file=sys.stderr, flush=True)
    print_table(
        f"plan published {ORDER} --sparsity {SPARSITY} --checkpoint: re-use decided on a T5-XXL, "
        f"{parameter_count(shape) * 2 / 1e9:.2f} GB of bf16",
        COLUMNS,
        [table_row(job) for job in jobs],
        f"{machine_line()}; {threads} threads, a fresh process each. Peak RSS counts the mapped checkpoint's pages;\n"
        "anonymous is what the process allocated. Evaluations are sub-blocks times tokens; in forwards: of the dense\n"
        "encoder over the same prompts. Weights are random, so D says nothing; time and memory do.",
    )
    if estimate:
        _estimate(files, threads, prompts, jobs)
    records = []
    for job in jobs:
        facts = {"dtype": job.dtype, "prompts": job.prompts, "forwards": job.forwards, "threads": threads}
        records.append({"benchmark": "search-xxl", **facts, **job.result.facts(), "provenance": job.provenance})
    return records, []


def _estimate(files: Files, threads: int, prompts: int, jobs: list[Job]) -> None:
    """Print what the job would take on more prompts: one forward over them, times the forwards of the small job."""
    path = files.prompts(prompts)
    rows = []
    for job in jobs:
        one = answer(worker("forward", files.checkpoint, files.tokenizer, path, ORDER, job.dtype, threads=threads))
        minutes = job.forwards * one["seconds"] / 60
        cells = [f"{one['tokens']:,}", f"{one['seconds']:.1f}", f"{one['first_seconds']:.1f}", f"{job.forwards:.1f}"]
        rows.append([job.dtype, str(prompts), *cells, f"{minutes:.1f}"])
    print_table(
        f"What {prompts} prompts would take", ESTIMATE_COLUMNS, rows,
        f"{machine_line()}; a forward's second run, times the forwards of the job on {TRIAL_PROMPTS} prompts.",
    )  # fmt: skip
