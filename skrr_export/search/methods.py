"""The methods, all through one interface: from what there is to drop to an arrangement for each sparsity."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from skrr_export.plan import Position
from skrr_export.progress import Progress
from skrr_export.search.baselines import random_order, shortgpt_order, uniform_order
from skrr_export.search.beam import State, Step, beam_search
from skrr_export.search.discrepancy import Candidate, Discrepancy, Terms
from skrr_export.search.exchange import exchange
from skrr_export.search.goal import reaches, units_needed
from skrr_export.search.journal import Journal
from skrr_export.search.laco import Merge, MergedWeights, collapse
from skrr_export.search.race import Tick
from skrr_export.search.reuse import fill, nearest, sweep
from skrr_export.search.space import Arrangement, Item, Space, drop, first_difference, put

Reuse = Literal["no", "nearest", "every"]

SKIP, REUSE = "skip", "skip + re-use"
"""Names of curves."""

Curve = list[tuple[float, float]]
"""Sparsities and the D there."""


@dataclass(frozen=True, slots=True)
class Found:
    """What a method found for one sparsity."""

    arrangement: Arrangement
    order: tuple[Item, ...]
    """What was dropped, first dropped first."""
    value: float
    """D."""
    curves: Mapping[str, Curve]
    """D after each drop: of the order alone (`skip`), and where re-use went along (`skip + re-use`)."""
    steps: tuple[Step, ...] = ()
    """What the beam saw on the way, if there was one."""
    merges: tuple[Merge, ...] = ()
    """What was merged into kept layers; the arrangement is of the merged checkpoint."""
    stand_ins: Mapping[int, int] = field(default_factory=dict)
    """For units of layers that others were merged into, the units that run for them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """What every method works with."""

    space: Space
    items: list[Item]
    discrepancy: Discrepancy
    plain: Discrepancy
    """The mean squared error of the embedding alone, which FinerCut looks at."""
    wanted: tuple[float, ...]
    beam: int
    reuse: Reuse
    """What may run in a dropped unit's place, once the order is known: nothing, a neighbour, or every kept unit."""
    seed: int
    journal: Journal
    progress: Progress


def run_method(search: Search, method: str) -> list[Found]:
    """Run a method; a result for each wanted sparsity, in that order.

    Raises:
        PlanError: a sparsity cannot be reached.
    """
    everything = search.space.sparsities(search.items)
    for wanted in search.wanted:
        units_needed(everything, wanted)  # or the search would find out at its very end
    if method == "skrr+":
        return _skrr_plus(search)
    if method in ("skrr", "finercut"):
        return _by_beam(search, method, search.reuse)
    if method == "laco":
        return _laco(search)
    order = _order(search, method)
    return refine_order(search, order, method)


def refine_order(search: Search, order: Sequence[Item], name: str, *, whole_curve: bool = True) -> list[Found]:
    """Plans from the prefixes of an order that something else decided; with re-use where it is asked for.

    Args:
        search: what there is to work with.
        order: first dropped first.
        name: of the order, for the journal.
        whole_curve: measure D after each drop, not only where a plan is wanted.
    """
    counts = [units_needed(search.space.sparsities(order), wanted) for wanted in search.wanted]
    points = list(range(1, max(counts) + 1)) if whole_curve else sorted(set(counts))
    curve = dict(zip(points, _prefix_values(search, order, points, name), strict=True))
    found = [_prefix(search.space, order[:count], curve) for count in counts]
    return [_refilled(search, each, name, search.reuse) for each in found]


def _by_beam(search: Search, method: str, reuse: Reuse) -> list[Found]:
    """Algorithm 1, and unless told otherwise Algorithm 2 on each prefix of its order; FinerCut with its own measure."""
    steps = _beam(search, method, reuse=False)
    order = steps[-1].beam[0].order
    if method == "finercut":
        found = refine_order(search, order, method)
        return [replace(each, steps=tuple(steps[: len(each.order)])) for each in found]
    found = []
    for wanted in search.wanted:
        count = units_needed(search.space.sparsities(order), wanted)
        prefix = _prefix(search.space, order[:count], dict(enumerate(steps[-1].beam[0].values, start=1)))
        found.append(replace(prefix, steps=tuple(steps[:count])))
    return [_refilled(search, each, method, reuse) for each in found]


def _skrr_plus(search: Search) -> list[Found]:
    """Whichever has the smaller D: Skrr's plan, swept; or a beam that judges drops by what re-use recovers, swept."""
    paper = [_swept(search, each, "skrr, swept") for each in _by_beam(search, "skrr", "nearest")]
    steps = _beam(search, "skrr+", reuse=True)
    found = []
    for wanted, theirs in zip(search.wanted, paper, strict=True):
        reached = (state for step in steps for state in step.beam if _reaches(search.space, state, wanted))
        best = min(reached, key=lambda state: state.value)
        curves = {
            SKIP: theirs.curves[SKIP],
            REUSE: list(zip(search.space.sparsities(best.order), best.values, strict=True)),
        }
        joint = Found(best.arrangement, best.order, best.value, curves, tuple(steps[: len(best.order)]))
        ours = _swept(search, joint, f"skrr+ for {wanted}, swept")
        found.append(_exchanged(search, min(theirs, ours, key=lambda each: each.value), wanted))
    return found


def _exchanged(search: Search, found: Found, wanted: float) -> Found:
    """Exchange and sweep in turn until neither finds anything better."""

    def report(made: int, value: float) -> Tick:
        what = f"skrr+: {made} exchanges, D {value:.4g}"
        return lambda share: search.progress(what, int(share * 1000), 1000)

    for round_ in itertools.count(1):
        arrangement, value, made = exchange(
            search.discrepancy,
            found.arrangement,
            found.value,
            search.items,
            lambda arrangement: reaches(search.space.sparsity(arrangement), wanted),
            journal=search.journal,
            name=f"exchange at {wanted}, round {round_}",
            report=report,
        )
        if not made:
            return found
        order = list(found.order)
        for each in made:
            order.remove(each.back)
            order += [each.gone] if each.gone is not None else []
        found = replace(found, arrangement=arrangement, value=value, order=tuple(order))
        found = _swept(search, found, f"exchange at {wanted}, round {round_}, swept")
    raise AssertionError


def _laco(search: Search) -> list[Found]:
    """For each sparsity the first of LaCo's merges; and unless told otherwise Algorithm 2 on what they leave."""
    space, engine, until = search.space, search.discrepancy.engine, max(search.wanted)
    weights = MergedWeights(engine.encoder.encoder, engine.encoder.weights, engine.cache)
    engine.encoder.weights = weights  # from here on it also runs merged layers
    needed = units_needed(space.sparsities(search.items[1:]), until)  # the first layer stays, to take the others in
    merges = collapse(
        search.plain,
        weights,
        reached=lambda merges: reaches(space.sparsity(drop(space.dense, [each.dropped for each in merges])), until),
        journal=search.journal,
        report=lambda made: search.progress(f"laco: {made} merges", made, max(needed, made + 1)),
    )
    order = [merge.dropped for merge in merges]
    stand_ins = [weights.stand_ins(merges[:count]) for count in range(1, len(merges) + 1)]

    def decide() -> list[float]:
        search.progress(f"laco: D of {len(merges)} prefixes", 0, 1)
        prefixes = [Candidate(drop(space.dense, order[:count]), 0) for count in range(1, len(merges) + 1)]
        measured = zip(prefixes, stand_ins, strict=True)
        return [search.discrepancy.merged(units).exact([prefix])[0].value for prefix, units in measured]

    curve = dict(enumerate(search.journal.remember("laco, D of prefixes", decide), start=1))
    found = []
    for wanted in search.wanted:
        count = units_needed(space.sparsities(order), wanted)
        prefix = _prefix(space, order[:count], curve)
        found.append(replace(prefix, merges=tuple(merges[:count]), stand_ins=stand_ins[count - 1]))
    return [_refilled(search, each, "laco", search.reuse) for each in found]


def _order(search: Search, method: str) -> list[Item]:
    if method == "uniform":
        return uniform_order(search.items)
    if method == "random":
        return random_order(search.items, search.seed)
    assert method == "shortgpt"
    discrepancy = search.discrepancy

    def decide() -> list[Item]:
        search.progress("shortgpt: block influence", 0, 1)
        return shortgpt_order(discrepancy.engine, discrepancy.workers, search.items, search.space.dense)

    return [tuple(item) for item in search.journal.remember("shortgpt", decide)]


def _beam(search: Search, method: str, *, reuse: bool) -> list[Step]:
    until = max(search.wanted)
    needed = units_needed(search.space.sparsities(sorted(search.items, key=lambda item: _size(search, item))), until)

    def report(done: int, best: State) -> Tick:
        last = f", last {_name(best.order[-1])}, D {best.value:.4g}" if best.order else ""
        what, total = f"{method}: dropped {done}{last}", max(needed, done + 1) * 1000
        search.progress(what, done * 1000, total)
        return lambda share: search.progress(what, int((done + share) * 1000), total)

    return beam_search(
        search.plain if method == "finercut" else search.discrepancy,
        search.space,
        search.items,
        beam=1 if method == "finercut" else search.beam,
        reached=lambda state: _reaches(search.space, state, until),
        reuse=reuse,
        journal=search.journal,
        name=method,
        report=report,
    )


def _refilled(search: Search, found: Found, name: str, reuse: Reuse) -> Found:
    """Decide what runs in the dropped units' places; a neighbour is chosen by Algorithm 2."""
    if reuse == "no":
        return found
    if reuse == "every":
        # From Algorithm 2's result on, so that it never ends with a larger D.
        return _swept(search, _refilled(search, found, name, "nearest"), f"{name}, swept")
    name = f"{name}, re-use"
    positions = [unit for item in found.order for unit in item]
    arrangement, value = fill(
        search.discrepancy.merged(found.stand_ins),
        found.arrangement,
        found.value,
        positions,
        nearest,
        journal=search.journal,
        name=f"{name} at {len(found.order)}",
        report=_reporter(search, name, len(positions)),
    )
    return replace(found, arrangement=arrangement, value=value)


def _swept(search: Search, found: Found, name: str) -> Found:
    """Every kept unit in every place, until nothing improves."""
    positions = [unit for item in found.order for unit in item]
    arrangement, value = sweep(
        search.discrepancy,
        found.arrangement,
        found.value,
        positions,
        journal=search.journal,
        name=f"{name} at {len(found.order)}",
        report=_reporter(search, name, len(positions)),
    )
    return replace(found, arrangement=arrangement, value=value)


def _reporter(search: Search, name: str, total: int) -> Callable[[int, float], None]:
    return lambda done, value: search.progress(f"{name}: D {value:.4g}", done, total)


def _prefix_values(search: Search, order: Sequence[Item], counts: Sequence[int], name: str) -> list[float]:
    """D after some numbers of drops of an order."""
    dense = search.space.dense
    prefixes = [drop(dense, order[:count]) for count in counts]
    candidates = [Candidate(prefix, first_difference(prefix, dense)) for prefix in prefixes]

    def decide() -> list[float]:
        search.progress(f"{name}: D of {len(prefixes)} prefixes", 0, 1)
        return [terms.value for terms in search.discrepancy.exact(candidates)]

    values: list[float] = search.journal.remember(f"{name}, D of prefixes", decide)
    return values


def _prefix(space: Space, order: Sequence[Item], values: Mapping[int, float]) -> Found:
    """The result that only skips; `values` holds D by the number of drops."""
    curve = [(sparsity, values[count]) for count, sparsity in enumerate(space.sparsities(order), 1) if count in values]
    return Found(drop(space.dense, order), tuple(order), values[len(order)], {SKIP: curve})


def _reaches(space: Space, state: State, wanted: float) -> bool:
    return reaches(space.sparsity(state.arrangement), wanted)


def _size(search: Search, item: Item) -> int:
    return -sum(search.space.unit_parameters[unit] for unit in item)


def _name(item: Item) -> str:
    return " and ".join(str(Position(unit // 2, "feed_forward" if unit % 2 else "attention", None)) for unit in item)


def terms_of(search: Search, found: Sequence[Found]) -> list[Terms]:
    """The two parts of each result's D."""

    def decide() -> Any:
        whole = [search.discrepancy.merged(each.stand_ins).exact([Candidate(each.arrangement, 0)])[0] for each in found]
        return [(terms.prompts, terms.null) for terms in whole]

    return [Terms(*pair) for pair in search.journal.remember("terms", decide)]


def gains_of(search: Search, found: Found) -> list[tuple[int, int, float]]:
    """For each re-use of a result the position, the unit that runs there, and D if nothing ran there instead."""
    reused = [(at, unit) for at, unit in enumerate(found.arrangement) if unit is not None and unit != at]

    def decide() -> list[float]:
        candidates = [Candidate(put(found.arrangement, at, None), at) for at, _ in reused]
        return [terms.value for terms in search.discrepancy.merged(found.stand_ins).exact(candidates)]

    without: list[float] = search.journal.remember(f"gains of {found.arrangement}", decide)
    return [(at, unit, value) for (at, unit), value in zip(reused, without, strict=True)]
