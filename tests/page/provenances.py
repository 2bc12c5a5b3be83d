"""What plans say about how they were found: one as a search writes it, and any that a hand could have written."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

SPACE = "context_embedder.weight [3072, 4096] of diffusion_pytorch_model.safetensors"


def provenance(method: str = "skrr+", **changes: Any) -> dict[str, Any]:
    """As a search writes it, for a plan of at least four layers that drops units 6, 3 and 0, the last two re-used."""
    return {
        "tool": "skrr-export 0.1.0",
        "method": method,
        "sparsity": {"wanted": 0.4, "reached": 0.419},
        "discrepancy": {"value": 0.0123, "prompts": 0.0101, "null": 0.0022, "scale": 0.3, "space": SPACE},
        "calibration": {"pipeline": "flux.1", "prompts": 391, "tokens": 70234, "truncated": 3, "sha256": "a3" * 32},
        "settings": {"beam": 3, "granularity": "sub-block", "reuse": True, "seed": 0, "dtype": "fp32"},
        "checkpoint": {"name": "text_encoder_2", "sha256": "7c" * 32},
        "order": [6, 3, 0],
        "curves": [
            {"name": "skip", "points": [[0.1, 0.001], [0.3, 0.006], [0.419, 0.02]]},
            {"name": "skip + re-use", "points": [[0.1, 0.001], [0.3, 0.005], [0.419, 0.0123]]},
        ],
        "steps": [
            {"units": [6], "D": 0.001, "candidates": {"6": 0.001, "4": 0.0014, "1": 0.0012}, "above": {"7": 0.2}},
            {"units": [3], "D": 0.005, "candidates": {"3": 0.005, "0": 0.0055}, "above": {}},
            {"units": [0], "D": 0.0123, "candidates": {}, "above": {}},
        ],
        "reuses": [
            {"unit": 3, "source": 5, "before": 0.0153, "D": 0.0123},
            {"unit": 0, "source": 2, "before": 0.0128, "D": 0.0123},
        ],
        "evaluations": {"sub_blocks": 123_456_789, "naive": 987_654_312},
        "versions": {"torch": "2.13.0", "transformers": "5.23.0"},
        **changes,
    }


TEXTS = st.text(st.sampled_from(["<", ">", "&", '"', "'", "/", "x", " ", "\0", "\n", "\x1b", "\ud800", "\u202e", "é"]))
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 12),
    st.integers(),
    st.just(10**400),
    st.floats(0, 1),
    st.floats(),
    TEXTS,
)
ANYTHING = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3), max_leaves=6
)


@st.composite
def _damaged(draw: st.DrawFn) -> dict[str, Any]:
    """What a search writes, with a few places in it, deep or not, taken out or replaced by anything."""
    document = provenance(draw(st.sampled_from(["skrr+", "finercut", "other"])))
    for _ in range(draw(st.integers(0, 6))):
        place: Any = document
        while place:
            key = draw(st.sampled_from(list(place) if isinstance(place, dict) else range(len(place))))
            if isinstance(place[key], dict | list) and draw(st.integers(0, 3)):
                place = place[key]
                continue
            if draw(st.booleans()):
                place[key] = draw(LEAVES if draw(st.booleans()) else ANYTHING)
            else:
                del place[key]
            break
    return document


PROVENANCES = _damaged()
"""Any provenance: nearly as a search writes it, or hardly."""
