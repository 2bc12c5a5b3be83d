"""What a search moves in: arrangements of sub-blocks.

An *arrangement* says for each of the 2N positions which unit's weights run there, or `None`. It is a plan in the
paper's numbering, as a tuple, because a search makes, hashes and compares many.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from skrr_export.plan import Plan

Arrangement = tuple[int | None, ...]
"""For each position the unit that runs there; `None` skips it."""

Item = tuple[int, ...]
"""Units that are dropped together: one sub-block, or both of a layer."""

Granularity = Literal["sub-block", "layer"]


@dataclass(frozen=True, slots=True)
class Space:
    """The arrangements of one encoder, up to the last layer that decides what is measured; the rest stays as it is."""

    family: str
    num_layers: int
    """Of the encoder."""
    unit_parameters: tuple[int, ...]
    """Parameters of each unit that decides what is measured."""
    total_parameters: int
    """Parameters of the whole encoder, embedding included."""
    unread_parameters: int = 0
    """Of them, those that the pipeline needs not even of the dense encoder: they are gone from the start."""

    @property
    def dense(self) -> Arrangement:
        """Every unit in its own place."""
        return tuple(range(len(self.unit_parameters)))

    def items(self, granularity: Granularity) -> list[Item]:
        """Everything that can be dropped, in the order in which it runs."""
        if granularity == "layer":
            return [(unit, unit + 1) for unit in range(0, len(self.unit_parameters), 2)]
        return [(unit,) for unit in self.dense if unit is not None]

    def sparsity(self, arrangement: Arrangement) -> float:
        """Parameters that no position uses, as a share of all: the paper's definition."""
        unused = [self.unit_parameters[unit] for unit in set(self.dense) - set(arrangement) if unit is not None]
        return (sum(unused) + self.unread_parameters) / self.total_parameters

    def sparsities(self, order: Sequence[Item]) -> list[float]:
        """The sparsity after each item of an order is dropped, and nothing re-used but what is kept."""
        return [self.sparsity(drop(self.dense, order[: count + 1])) for count in range(len(order))]

    def plan(self, arrangement: Arrangement, provenance: dict[str, object]) -> Plan:
        """The arrangement as a plan, which keeps the layers beyond."""
        whole = (*arrangement, *range(len(arrangement), 2 * self.num_layers))
        layers = [None if unit is None else unit // 2 for unit in whole]
        return Plan(self.family, tuple(zip(layers[::2], layers[1::2], strict=True)), provenance)


def arrangement_of(plan: Plan) -> Arrangement:
    """A plan as an arrangement."""
    return tuple(None if p.source is None else 2 * p.source + p.unit % 2 for p in plan.positions())


def executed(arrangement: Arrangement) -> tuple[int, ...]:
    """The units that run, in order. All that the result depends on: a sub-block does not know its position."""
    return tuple(unit for unit in arrangement if unit is not None)


def drop(arrangement: Arrangement, items: Iterable[Item]) -> Arrangement:
    """Without some units: their own places are skipped, and so is every place that re-used them."""
    gone = {unit for item in items for unit in item}
    return tuple(None if unit in gone else unit for unit in arrangement)


def put(arrangement: Arrangement, position: int, unit: int | None) -> Arrangement:
    """With another unit at one position."""
    return (*arrangement[:position], unit, *arrangement[position + 1 :])


def kept(arrangement: Arrangement, kind: int) -> list[int]:
    """The units of a kind (0: attention, 1: feed-forward) that run in their own place."""
    return [unit for unit in range(kind, len(arrangement), 2) if arrangement[unit] == unit]


def holes(arrangement: Arrangement) -> list[int]:
    """Positions where the unit of that place does not run."""
    return [position for position, unit in enumerate(arrangement) if unit != position]


def first_difference(a: Arrangement, b: Arrangement) -> int:
    """The first position at which two arrangements differ; their length if none does."""
    return next((position for position, (x, y) in enumerate(zip(a, b, strict=True)) if x != y), len(a))
