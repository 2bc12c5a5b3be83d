"""Which units to drop, and in which order: Algorithm 1 of the paper, and ours, which looks at re-use at once.

Both are one beam search. Each of the best few arrangements is extended by each item that it still keeps; the best few
of all extensions go on. In the paper's search an extension leaves the item's places empty, and re-use comes later. In
ours (`skrr+`) an extension may also run the nearest kept units there, so that a drop is judged by what re-use recovers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from skrr_export.errors import InputError
from skrr_export.search.discrepancy import Candidate, Discrepancy
from skrr_export.search.journal import Journal
from skrr_export.search.race import Finish, Tick, race
from skrr_export.search.space import Arrangement, Item, Space, drop, first_difference, kept


@dataclass(frozen=True, slots=True)
class State:
    """An arrangement on its way through the beam."""

    arrangement: Arrangement
    order: tuple[Item, ...]
    """What was dropped, first dropped first."""
    values: tuple[float, ...]
    """D after each drop."""

    @property
    def value(self) -> float:
        """D; 0 for the dense encoder."""
        return self.values[-1] if self.values else 0.0

    def to_json(self) -> dict[str, Any]:
        """For the journal."""
        return {"arrangement": self.arrangement, "order": self.order, "values": self.values}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> State:
        """From the journal."""
        order = tuple(tuple(item) for item in record["order"])
        return cls(tuple(record["arrangement"]), order, tuple(record["values"]))


@dataclass(frozen=True, slots=True)
class Step:
    """What one step of the beam saw and chose."""

    beam: tuple[State, ...]
    """The states that go on, the best first."""
    candidates: Mapping[str, float]
    """For each item that could be dropped, as its units joined by commas, the least D found."""
    above: Mapping[str, float]
    """For items that were abandoned early, a lower bound of D."""

    def to_json(self) -> dict[str, Any]:
        """For the journal."""
        beam = [state.to_json() for state in self.beam]
        return {"beam": beam, "candidates": self.candidates, "above": self.above}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Step:
        """From the journal."""
        beam = tuple(State.from_json(state) for state in record["beam"])
        return cls(beam, record["candidates"], record["above"])


@dataclass(frozen=True, slots=True)
class _Extension:
    """A state with one more item dropped."""

    parent: State
    item: Item
    candidate: Candidate


def beam_search(
    discrepancy: Discrepancy,
    space: Space,
    items: list[Item],
    *,
    beam: int,
    reached: Callable[[State], bool],
    reuse: bool,
    journal: Journal,
    name: str,
    report: Callable[[int, State], Tick],
) -> list[Step]:
    """Drop item after item until the best state is sparse enough.

    Args:
        discrepancy: what is to stay small.
        space: the encoder's arrangements.
        items: what can be dropped.
        beam: how many states go on; the paper takes 3.
        reached: whether a state is sparse enough.
        reuse: whether an extension may fill the dropped item's places with kept units (`skrr+`).
        journal: keeps each step.
        name: of this search, in the journal.
        report: called before each step with its number and the best state; returns what is told of its progress.

    Returns:
        The steps. Of a set of items that several states reach in different order, one state goes on: else copies of it
        would fill the beam.

    Raises:
        InputError: the embeddings of every extension overflow.
    """
    steps: list[Step] = []
    states = [State(space.dense, (), ())]
    while not reached(states[0]):
        tick = report(len(steps), states[0])

        def decide(states: list[State] = states, tick: Tick = tick) -> dict[str, Any]:
            return _step(discrepancy, states, items, beam=beam, reuse=reuse, tick=tick).to_json()

        steps.append(Step.from_json(journal.remember(f"{name} {len(steps) + 1}", decide)))
        states = list(steps[-1].beam)
    return steps


def _step(
    discrepancy: Discrepancy, states: list[State], items: list[Item], *, beam: int, reuse: bool, tick: Tick
) -> Step:
    extensions = list(_extensions(states, items, reuse=reuse))
    groups = [frozenset((*extension.parent.order, extension.item)) for extension in extensions]
    candidates = [extension.candidate for extension in extensions]
    finishes = race(discrepancy, candidates, keep=beam, groups=groups, tick=tick)
    ranked = sorted(range(len(finishes)), key=lambda row: (finishes[row].bound, row))
    chosen: dict[frozenset[Item], State] = {}
    for row in ranked:
        if not finishes[row].whole or not math.isfinite(finishes[row].bound) or len(chosen) == beam:
            continue
        extension, value = extensions[row], finishes[row].bound
        order = (*extension.parent.order, extension.item)
        state = State(extension.candidate.arrangement, order, (*extension.parent.values, value))
        chosen.setdefault(groups[row], state)
    if not chosen:
        raise InputError("the embeddings overflow whatever is dropped next; try --dtype fp32 or a lower --sparsity")
    whole, above = _by_item(extensions, finishes)
    return Step(tuple(chosen.values()), whole, above)


def _extensions(states: list[State], items: list[Item], *, reuse: bool) -> Iterator[_Extension]:
    """Every state with every item dropped, and with re-use, for each kept layer in its place.

    Places that re-used the dropped item's units go the same way as the item's own.
    """
    seen: set[Arrangement] = set()
    for state in states:
        for item in items:
            if item in state.order:
                continue
            dropped = drop(state.arrangement, [item])
            arrangements = [dropped]
            if reuse:
                arrangements += filled(state.arrangement, dropped, item)
            for arrangement in arrangements:
                if arrangement not in seen:  # two states that differ in their last items meet here
                    seen.add(arrangement)
                    fork = first_difference(arrangement, state.arrangement)
                    yield _Extension(state, item, Candidate(arrangement, fork))


def filled(before: Arrangement, dropped: Arrangement, item: Item) -> Iterator[Arrangement]:
    """The arrangements in which the nearest kept layer on either side runs where the item's units did.

    The nearest promise most; every other layer is tried once the drops are settled.
    """
    layers = sorted(set.intersection(*({unit // 2 for unit in kept(dropped, unit % 2)} for unit in item)))
    here = item[0] // 2
    for layer in [*[layer for layer in layers if layer < here][-1:], *[layer for layer in layers if layer > here][:1]]:
        yield tuple(
            2 * layer + was % 2 if now is None and was is not None else now
            for was, now in zip(before, dropped, strict=True)
        )


def _by_item(extensions: list[_Extension], finishes: list[Finish]) -> tuple[dict[str, float], dict[str, float]]:
    """The least D of each item, and for items of which no extension was measured whole the least bound."""
    whole: dict[str, float] = {}
    above: dict[str, float] = {}
    for extension, finish in zip(extensions, finishes, strict=True):
        if math.isfinite(finish.bound):
            found = whole if finish.whole else above
            name = ",".join(map(str, extension.item))
            found[name] = min(finish.bound, found.get(name, math.inf))
    return whole, {name: bound for name, bound in above.items() if name not in whole}
