"""How a plan was found, as its plan file tells it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from skrr_export.errors import InputError
from skrr_export.search.beam import Step
from skrr_export.search.discrepancy import Terms
from skrr_export.search.methods import REUSE, Found, Search, gains_of

_DIGITS = 6  # of every D: far more than it is worth, and a tenth of the file


def provenance(search: Search, found: Found, wanted: float, terms: Terms, scale: float) -> dict[str, Any]:
    """What this result has of its own: its numbers, its order, every step.

    Args:
        search: that found it.
        found: the result.
        wanted: the sparsity that was asked for.
        terms: of its D.
        scale: mean square of the dense embeddings where D is taken.

    Raises:
        InputError: D is not finite.
    """
    if not math.isfinite(terms.value):
        raise InputError(f"the embeddings of the plan for sparsity {wanted:.1%} overflow; try --dtype fp32, or less")
    reached = search.space.sparsity(found.arrangement)
    gains = gains_of(search, found)
    curves = {name: list(curve) for name, curve in found.curves.items()}
    if gains:
        curves.setdefault(REUSE, []).append((reached, terms.value))
    return {
        "sparsity": {"wanted": wanted, "reached": _short(reached)},
        "discrepancy": {
            "value": _short(terms.value),
            "prompts": _short(terms.prompts),
            "null": _short(terms.null) if search.discrepancy.null else None,
            "scale": _short(scale),
        },
        "order": [unit for item in found.order for unit in item],
        **({"merges": [[merge.layer, list(merge.merged)] for merge in found.merges]} if found.merges else {}),
        "curves": [
            {"name": name, "points": [[_short(x), _short(y)] for x, y in curve if math.isfinite(y)]}
            for name, curve in curves.items()
        ],
        "steps": [_step(step, index) for index, step in enumerate(found.steps)],
        "reuses": [
            {"unit": position, "source": unit, "before": _short(before), "D": _short(terms.value)}
            for position, unit, before in gains
            if math.isfinite(before)  # a place that must not stay empty has no gain that a number could tell
        ],
        "evaluations": {
            "sub_blocks": search.discrepancy.workers.total(search.discrepancy.engine.evaluated),
            "naive": search.discrepancy.naive,
        },
    }


def _step(step: Step, index: int) -> dict[str, Any]:
    best = step.beam[0]
    return {
        "units": list(best.order[index]),
        "D": _short(best.value),
        "candidates": _shortened(step.candidates),
        "above": _shortened(step.above),
    }


def _shortened(values: Mapping[str, float]) -> dict[str, float]:
    return {name: _short(value) for name, value in values.items()}


def _short(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")
