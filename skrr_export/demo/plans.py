"""The plans that the demo shows, at one sparsity: Skrr's, and one that skips and re-uses nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from skrr_export.demo.model import MODEL, calibration_captions
from skrr_export.errors import InputError
from skrr_export.plan import Plan
from skrr_export.progress import Progress, silent
from skrr_export.searching import SearchOptions, search_plans

SPARSITY = 0.33
"""Share of the encoder's parameters to do without, where none is asked for."""
CAPTIONS = 24
"""To search on. The time of a search goes with their number."""
FILES = {"skip": "skip.json", "skrr": "skrr+.json"}
"""The plans' files, by the name of the encoder that runs them."""
SHIPPED = MODEL / "plans"
"""Where plans lie that were searched when the model was made."""

_METHODS: dict[str, dict[str, Any]] = {"skip": {"method": "skrr", "reuse": False}, "skrr": {"method": "skrr+"}}


def search_plan(name: str, sparsity: float, *, model: Path = MODEL, progress: Progress = silent) -> Plan:
    """Search a plan for the shipped encoder.

    Args:
        name: of the encoder that will run it, a key of `FILES`.
        sparsity: share of the parameters to do without.
        model: directory of another encoder and denoiser, laid out as `MODEL` is.
        progress: told how far the search is.

    Raises:
        InputError: the sparsity is no share, or cannot be reached.
    """
    options = SearchOptions(
        sparsities=(sparsity,),
        denoiser=model / "transformer",
        prompts=calibration_captions(CAPTIONS),
        subfolder="text_encoder",
        tokenizer=model / "tokenizer",
        **_METHODS[name],
    )
    [plan] = search_plans(model, options, progress=progress)
    return plan


def shipped_plan(name: str, sparsity: float | None) -> Plan:
    """Read a shipped plan.

    Args:
        name: of the encoder that will run it, a key of `FILES`.
        sparsity: that it must have been searched for; `None`: any.

    Raises:
        InputError: there is none, or it is for another sparsity.
    """
    file = SHIPPED / FILES[name]
    if not file.is_file():
        raise InputError(f"no plan is shipped as {file}; leave --fast out to search one")
    plan = Plan.load(file)
    wanted = wanted_sparsity(plan)
    if sparsity not in (None, wanted):
        raise InputError(f"the shipped plans are for --sparsity {wanted}; leave --fast out to search for {sparsity}")
    return plan


def wanted_sparsity(plan: Plan) -> float:
    """The sparsity that a searched plan was searched for."""
    return float(plan.provenance["sparsity"]["wanted"])
