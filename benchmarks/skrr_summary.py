"""What all that was measured of plans comes to: records, tables in plain text, and what is not as it must be."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from report import machine_line, print_table
from skrr_measure import PAPER, VARIANTS, Measured
from skrr_plans import DENSE, METHODS, SPARSITIES
from skrr_statistics import LEVEL, Values, correlations, mean, resample, within

from skrr_export.demo.tasks import CATEGORIES
from skrr_export.search.space import arrangement_of

Record = dict[str, Any]

_AGREES = 1e-3  # relative; a plan has six digits of its D
_RIVAL = "skrr"
"""The paper's method, which all others are held against."""


@dataclass(frozen=True, slots=True)
class Prompts:
    """What images were drawn for."""

    categories: Sequence[str]
    """Of each task."""
    draws: int
    """One after the other, of as many tasks each."""

    def shares(self, met: Values) -> dict[str, float]:
        """The share of tasks that are met, by category."""
        members = {name: np.equal(self.categories, name) for name in CATEGORIES}
        return {name: float(met[each].mean()) for name, each in members.items() if each.any()}

    def by_draw(self, met: Values) -> list[float]:
        """The score in each draw."""
        return [float(part.mean()) for part in np.split(met, self.draws)]


def records_of(prompts: Prompts, dense: Measured, plans: Sequence[Measured]) -> list[Record]:
    """One record of the dense encoder, one a plan, one a method and sparsity, and one a variant of D.

    The score is the share of all tasks that are met. All categories have as many, so it is GenEval's mean over them.
    """
    drawn = resample(prompts.categories)
    groups = {
        (label, wanted): [plan for plan in plans if (plan.subject.label, plan.subject.wanted) == (label, wanted)]
        for wanted in SPARSITIES
        for label in METHODS
    }
    records: list[Record] = [{"kind": DENSE, "subject": DENSE, **_scored(prompts, [dense], drawn)}]
    for plan in plans:
        facts = {"seed": plan.subject.seed, "plan": arrangement_of(plan.subject.plan), "key": plan.subject.key}
        records.append({"kind": "plan", **_named([plan]), **facts, **_scored(prompts, [plan], drawn)})
    for (_, wanted), group in groups.items():
        if group:
            differences = {
                "below_dense": mean(dense.met - _mean_met(group), drawn),
                "above_skrr": mean(_mean_met(group) - _mean_met(groups[_RIVAL, wanted]), drawn),
            }
            compared = {name: asdict(value) for name, value in differences.items()}
            records.append({"kind": "method", **_named(group), **_scored(prompts, group, drawn), **compared})
    return records + _correlations(plans)


def _named(group: Sequence[Measured]) -> Record:
    subjects = [plan.subject for plan in group]
    return {
        "subject": subjects[0].label,
        "sparsity": subjects[0].wanted,
        "reached": float(np.mean([subject.reached for subject in subjects])),
        "plans": len(subjects),
    }


def _scored(prompts: Prompts, group: Sequence[Measured], drawn: NDArray[np.int64]) -> Record:
    """What one or several plans come to, on average."""
    met = _mean_met(group)
    return {
        "tasks": len(met),
        "score": asdict(mean(met, drawn)),
        "by_draw": prompts.by_draw(met),
        "categories": prompts.shares(met),
        "distance": asdict(mean(np.mean([plan.distance for plan in group], axis=0), drawn)),
        "discrepancies": {name: float(np.mean([plan.discrepancies[name] for plan in group])) for name in VARIANTS},
        "calibration_discrepancy": float(np.mean([plan.calibration for plan in group])),
    }


def _mean_met(group: Sequence[Measured]) -> Values:
    met: Values = np.mean([plan.met for plan in group], axis=0)
    return met


def _correlations(plans: Sequence[Measured]) -> list[Record]:
    """Of every variant of D with the score and with the distance, over all plans that differ."""
    distinct = list({plan.subject.key: plan for plan in plans}.values())
    sparsities = [plan.subject.wanted for plan in distinct]
    scores = np.array([plan.met.mean() for plan in distinct])
    distances = np.array([plan.distance.mean() for plan in distinct])
    causes = [np.array([plan.discrepancies[name] for plan in distinct]) for name in VARIANTS]
    found = zip(VARIANTS, causes, correlations(causes, scores), correlations(causes, distances), strict=True)
    return [
        {
            "kind": "correlation",
            "subject": name,
            "plans": len(distinct),
            "score": asdict(by_score[0]),
            "beyond_paper": asdict(by_score[1]),
            "score_within_sparsity": within(sparsities, cause, scores),
            "distance": asdict(by_distance[0]),
            "distance_within_sparsity": within(sparsities, cause, distances),
        }
        for name, cause, by_score, by_distance in found
    ]


def print_tables(records: Sequence[Record], prompts: Prompts, captions: int) -> None:
    """Print what was found."""
    dense, *_ = records
    notes = (
        f"{len(prompts.categories)} tasks in {prompts.draws} draws; intervals of {LEVEL:.0%} by drawing tasks again, "
        "of differences on the same tasks and noise.\n"
        f"D on {captions} captions that no search saw; random is the mean of its plans. "
        "Distance: root mean square of channels from 0 to 1."
    )
    header = (
        "method", "reached", "score", "interval", "by draw", "below dense", "interval", "above skrr", "interval",
        "distance", "D", "not projected", "no null", "neither",
    )  # fmt: skip
    for wanted in SPARSITIES:
        chosen = [record for record in records if record["kind"] == "method" and record["sparsity"] == wanted]
        last = wanted == SPARSITIES[-1]
        print_table(
            f"The demo's encoder, wanted {wanted:.0%} of all parameters; the dense encoder scores "
            f"{_estimate(dense['score'])}",
            header,
            [_method_row(record) for record in chosen],
            notes if last else "",
        )
        print_table(
            f"By category, {wanted:.0%}",
            ("method", *CATEGORIES),
            [_category_row(record) for record in (dense, *chosen)],
            f"{machine_line()}." if last else "",
        )
    chosen = [record for record in records if record["kind"] == "correlation"]
    print_table(
        f"Does D predict the score? Spearman's rank correlation over {chosen[0]['plans']} plans",
        ("D", "with the score", "stronger than the paper's", "at one sparsity", "with the distance", "at one sparsity"),
        [_correlation_row(record) for record in chosen],
        "Intervals by drawing plans again; at one sparsity: the mean of the correlations at each.",
    )


def _estimate(value: Record) -> str:
    return f"{value['value']:.3f} ({value['low']:.3f} to {value['high']:.3f})"


def _method_row(record: Record) -> list[str]:
    row = [record["subject"], f"{record['reached']:.1%}"]
    for name in ("score", "below_dense", "above_skrr"):
        value = record[name]
        row += [f"{value['value']:.3f}", f"{value['low']:.3f} to {value['high']:.3f}"]
        if name == "score":
            row.append(", ".join(f"{share:.2f}" for share in record["by_draw"]))
    return [*row, f"{record['distance']['value']:.3f}", *(f"{record['discrepancies'][name]:.4g}" for name in VARIANTS)]


def _category_row(record: Record) -> list[str]:
    return [record["subject"], *(f"{record['categories'].get(name, math.nan):.2f}" for name in CATEGORIES)]


def _correlation_row(record: Record) -> list[str]:
    stronger = "" if record["subject"] == PAPER else _estimate(record["beyond_paper"])
    return [
        record["subject"],
        _estimate(record["score"]),
        stronger,
        f"{record['score_within_sparsity']:.3f}",
        _estimate(record["distance"]),
        f"{record['distance_within_sparsity']:.3f}",
    ]


def not_as_claimed(plans: Sequence[Measured]) -> list[str]:
    """What the searches say of their plans and is not so, on the captions that they saw."""
    wrong = []
    for plan in plans:
        found, subject = plan.subject.plan.provenance["discrepancy"]["value"], plan.subject
        if abs(plan.calibration - found) > _AGREES * found:
            name = f"{subject.label} at {subject.wanted:.0%}"
            wrong.append(f"{name}: D is {plan.calibration:.6g} through ONNX, its plan says {found:.6g}")
    values = {(plan.subject.label, plan.subject.wanted): plan.calibration for plan in plans}
    for better, worse in (("skrr+", "skrr"), ("skrr", "skrr, no re-use")):
        for wanted in SPARSITIES:
            least, most = values[better, wanted], values[worse, wanted]
            if least > most * (1 + _AGREES):
                wrong.append(f"at {wanted:.0%} {better} has D {least:.6g}, {worse} {most:.6g}")
    return wrong
