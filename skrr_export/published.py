"""The skip orders that the paper prints for T5-XXL, as data.

An order says which units to drop first; the paper found one for each denoiser, since its projection of the embedding
decides what can be missed. Its prefix is a skip plan. What to re-use in place of the dropped units depends on the
weights and is not printed for most of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import accumulate
from typing import TYPE_CHECKING

from skrr_export.errors import InputError, PlanError
from skrr_export.search.goal import units_needed

if TYPE_CHECKING:
    from skrr_export.encoders import Encoder

SOURCE = "Seo et al., Skrr: Skip and Re-use Text Encoder Layers, arXiv 2502.08690, Table A3"
"""Where the orders are printed."""

XXL: Mapping[str, int | bool] = {
    "num_layers": 24,
    "hidden_size": 4096,
    "num_heads": 64,
    "head_size": 64,
    "intermediate_size": 10240,
    "gated": True,
    "vocab_size": 32128,
    "num_buckets": 32,
}
"""T5-XXL (v1.1): everything that decides the shapes of its weights, by the names of `T5Encoder`."""


@dataclass(frozen=True, slots=True)
class PublishedOrder:
    """A skip order for T5-XXL."""

    name: str
    denoiser: str
    """Title of the model whose projection judged the units."""
    units: tuple[int, ...]
    """Units, first dropped first: `2 * layer` is a layer's attention, `2 * layer + 1` its feed-forward."""
    pipeline: str
    """Preset of the pipeline that the denoiser belongs to."""


PUBLISHED: Mapping[str, PublishedOrder] = {
    order.name: order
    for order in (
        PublishedOrder(
            name="pixart-sigma",
            denoiser="PixArt-Sigma",
            units=(
                46, 5, 6, 47, 44, 2, 11, 24, 23, 17, 18, 45,
                10, 30, 29, 40, 39, 38, 37, 42, 25, 22, 43, 36,
            ),
            pipeline="pixart-sigma",
        ),
        PublishedOrder(
            name="sd3",
            denoiser="SD3",
            units=(
                46, 5, 45, 6, 11, 2, 22, 23, 17, 18, 30, 29,
                43, 44, 20, 1, 41, 42, 40, 39, 38, 37, 21, 16,
            ),
            pipeline="sd3",
        ),
        PublishedOrder(
            name="flux.1-dev",
            denoiser="FLUX.1-dev",
            units=(
                46, 45, 5, 6, 11, 20, 19, 22, 23, 30, 29, 47,
                2, 44, 32, 31, 18, 17, 37, 36, 43, 40, 39, 42,
            ),
            pipeline="flux.1",
        ),
    )
}  # fmt: skip
"""The published orders by name."""


def find_published(name: str) -> PublishedOrder:
    """Look a published order up.

    Raises:
        InputError: there is none of that name.
    """
    if name not in PUBLISHED:
        close = get_close_matches(name.lower(), PUBLISHED, n=1, cutoff=0.5)
        hint = f"did you mean '{close[0]}'? " if close else ""
        raise InputError(f"unknown published order {name!r}; {hint}known: {', '.join(PUBLISHED)}")
    return PUBLISHED[name]


def published_sparsities(order: PublishedOrder) -> list[float]:
    """The sparsity of T5-XXL without the first unit of the order, without the first two, and so on.

    The paper's definition: dropped parameters as a share of all, embedding included.
    """
    attention, feed_forward, total = _parameters()
    dropped = accumulate(feed_forward if unit % 2 else attention for unit in order.units)
    return [parameters / total for parameters in dropped]


def check_xxl(encoder: Encoder) -> None:
    """Make sure that the published orders are about an encoder.

    Raises:
        PlanError: it is not shaped as T5-XXL.
    """
    if encoder.family != "t5":
        raise _not_xxl(f"this encoder is {encoder.family}")
    for dimension, expected in XXL.items():
        found = getattr(encoder, dimension)
        if found != expected:
            raise _not_xxl(f"this encoder has {dimension} {found}, not {expected}")


def prefix_for(order: PublishedOrder, sparsity: float) -> int:
    """How many units of an order to drop, at least, so that T5-XXL reaches a sparsity; see `units_needed`.

    Raises:
        PlanError: the order does not reach it, or it is not above 0 and below 1.
    """
    try:
        return units_needed(published_sparsities(order), sparsity)
    except PlanError as error:
        raise PlanError(f"published order '{order.name}', {len(order.units)} units: {error}") from error


def _parameters() -> tuple[int, int, int]:
    """Parameters of an attention, of a feed-forward, and of the whole of T5-XXL."""
    norm = XXL["hidden_size"]
    attention = 4 * XXL["hidden_size"] * XXL["num_heads"] * XXL["head_size"] + norm
    feed_forward = 3 * XXL["hidden_size"] * XXL["intermediate_size"] + norm  # gated: two matrices in, one out
    embedding = XXL["vocab_size"] * XXL["hidden_size"]
    # The table of position biases serves every layer: no unit's dropping saves it.
    position_bias = XXL["num_buckets"] * XXL["num_heads"]
    total = embedding + position_bias + XXL["num_layers"] * (attention + feed_forward) + norm
    return attention, feed_forward, total


def _not_xxl(what: str) -> PlanError:
    return PlanError(f"the paper's orders are for T5-XXL only, and {what}; find an order for it with `plan search`")
