"""The paper's two algorithms as they are printed: every candidate is a whole forward over all prompts.

No cache, no bounds. It runs the package's own encoder on the package's own chunks of prompts, so that nothing but the
way of searching differs from `plan search --method skrr`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from skrr_export.calibration import Chunk
from skrr_export.encoders.eager import EagerEncoder

Positions = tuple[int | None, ...]
"""The unit that runs at each position; `None` skips it."""


class NaiveLoop:
    """Measures discrepancies by running everything each time."""

    def __init__(self, encoder: EagerEncoder, chunks: Sequence[Chunk]) -> None:
        """Run the dense encoder, with which all else is compared.

        Args:
            encoder: runs sub-blocks.
            chunks: the null prompt, then the calibration prompts.
        """
        self.encoder = encoder
        self.chunks = chunks
        self.evaluated = 0
        """Work done so far, in sub-blocks times tokens."""
        self.dense: Positions = tuple(range(2 * encoder.encoder.num_layers))
        self._rows = sum(chunk.rows for chunk in chunks[1:])
        self._targets = [self._output(self.dense, chunk) for chunk in chunks]

    @torch.inference_mode()
    def discrepancy(self, positions: Positions) -> float:
        """D of an arrangement."""
        parts = []
        for number, (chunk, target) in enumerate(zip(self.chunks, self._targets, strict=True)):
            difference = self._output(positions, chunk) - target
            rows = self._rows if number else chunk.rows
            parts.append(float(difference.square().sum(dtype=torch.float64) / (rows * difference.shape[1])))
        return math.fsum(parts)

    @torch.inference_mode()
    def _output(self, positions: Positions, chunk: Chunk) -> Tensor:
        activations = self.encoder.start(chunk.input_ids, chunk.attention_mask)
        for unit in positions:
            if unit is not None:
                activations["hidden"] = self.encoder.sub_block(unit, activations)
                self.evaluated += chunk.size
        return self.encoder.finish(activations)["last_hidden_state"][torch.from_numpy(chunk.counted)].float()


def skip_order(
    loop: NaiveLoop, beam: int, reached: Callable[[Positions], bool]
) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Algorithm 1: what to drop, first dropped first, and D after each drop; it ends where enough is dropped.

    Of lists with the same units, which would be the same arrangement, the first is kept.
    """
    lists: list[tuple[tuple[int, ...], tuple[float, ...]]] = [((), ())]
    while not reached(without(loop.dense, lists[0][0])):
        found: dict[frozenset[int], tuple[tuple[int, ...], tuple[float, ...]]] = {}
        for dropped, values in lists:
            for unit in range(len(loop.dense)):
                longer = (*dropped, unit)
                if unit not in dropped and frozenset(longer) not in found:
                    value = loop.discrepancy(without(loop.dense, longer))
                    found[frozenset(longer)] = (longer, (*values, value))
        lists = sorted(found.values(), key=lambda entry: entry[1][-1])[:beam]
    order, values = lists[0]
    count = next(count for count in range(1, len(order) + 1) if reached(without(loop.dense, order[:count])))
    return order[:count], values[:count]


def reuse(loop: NaiveLoop, order: Sequence[int], value: float) -> tuple[Positions, float]:
    """Algorithm 2: the plan in which dropped units are replaced by a kept neighbour where that makes D smaller.

    Args:
        loop: measures.
        order: what is dropped, first dropped first.
        value: D of just dropping it.
    """
    positions = without(loop.dense, order)
    for unit in order:
        same_kind = [other for other in loop.dense[unit % 2 :: 2] if other is not None and other not in order]
        neighbours = [*same_kind_before(same_kind, unit), *[other for other in same_kind if other > unit][:1]]
        options = [(*positions[:unit], other, *positions[unit + 1 :]) for other in neighbours]
        measured = [(loop.discrepancy(option), option) for option in options]
        best, option = min(measured, key=lambda entry: entry[0], default=(math.inf, positions))
        if best < value:
            value, positions = best, option
    return positions, value


def same_kind_before(units: Sequence[int], unit: int) -> list[int]:
    """The last of some units before another, if there is one."""
    return [other for other in units if other < unit][-1:]


def without(positions: Positions, units: Sequence[int]) -> Positions:
    """The arrangement that skips some units."""
    return tuple(None if unit in units else unit for unit in positions)
