"""What a plan says about how it was found.

A plan's provenance is free-form: anyone may have written anything into it. It is read with care, and what does not fit
is left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from skrr_export.errors import PlanError
from skrr_export.plan import KINDS, Plan, parse_units

METHODS = {
    "skrr+": "Skrr+",
    "skrr": "Skrr",
    "finercut": "FinerCut",
    "shortgpt": "ShortGPT",
    "laco": "LaCo",
    "uniform": "Uniform",
    "random": "Random",
    "published": "Published",
    "order": "Given order",
}
"""How the methods are written."""

_LONGEST = 200
_SMALLEST, _LARGEST = 1e-30, 1e30


@dataclass(frozen=True, slots=True)
class Curve:
    """How the discrepancy grows with the sparsity."""

    name: str
    points: tuple[tuple[float, float], ...]
    """Sparsity and discrepancy, by rising sparsity."""


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a search: what was dropped, and what else was tried."""

    units: tuple[int, ...]
    after: float | None
    """Discrepancy after the step."""
    candidates: Mapping[str, float]
    """Discrepancy of each candidate that was evaluated whole."""
    above: Mapping[str, float]
    """What the discrepancy of a candidate exceeds whose evaluation was abandoned."""

    def others(self) -> list[tuple[str, float]]:
        """The candidates that were not taken, best first."""
        taken = set(map(str, self.units))
        found = [(name, value) for name, value in self.candidates.items() if not set(name.split(",")) <= taken]
        return sorted(found, key=lambda candidate: candidate[1])


@dataclass(frozen=True, slots=True)
class ReuseStep:
    """A kept unit put in a dropped one's place."""

    unit: int
    source: int
    without: float | None
    """Discrepancy without it."""
    after: float | None

    @property
    def gain(self) -> float | None:
        """How much less the discrepancy is with it."""
        return None if self.without is None or self.after is None else self.without - self.after


@dataclass(frozen=True, slots=True)
class Discrepancy:
    """How far the plan's embeddings are from the dense encoder's."""

    value: float | None = None
    prompts: float | None = None
    """Its part from the calibration prompts."""
    null: float | None = None
    """Its part from the empty prompt."""
    scale: float | None = None
    """Mean square of the dense embedding, measured in the same place."""
    space: str | None = None
    """What it is measured after."""

    @property
    def share(self) -> float | None:
        """The discrepancy as a share of the scale."""
        return None if self.value is None or not self.scale else self.value / self.scale


@dataclass(frozen=True, slots=True)
class Calibration:
    """The prompts that the discrepancy was measured on."""

    pipeline: str | None = None
    prompts: int | None = None
    tokens: int | None = None
    truncated: int | None = None
    sha256: str | None = None


@dataclass(frozen=True, slots=True)
class Record:
    """Everything a provenance tells; what it does not tell is None or empty."""

    tool: str | None = None
    method: str | None = None
    source: str | None = None
    """Where the order was published."""
    wanted: float | None = None
    """Sparsity that was asked for."""
    reached: float | None = None
    discrepancy: Discrepancy = Discrepancy()
    calibration: Calibration = Calibration()
    settings: Mapping[str, str] = field(default_factory=dict)
    checkpoint: str | None = None
    checkpoint_sha256: str | None = None
    order: tuple[int, ...] = ()
    """Units that were dropped, first dropped first."""
    curves: tuple[Curve, ...] = ()
    steps: tuple[Step, ...] = ()
    reuses: tuple[ReuseStep, ...] = ()
    evaluated: int | None = None
    """Sub-blocks that the search ran, each counted once a token."""
    naive: int | None = None
    """What a search would have run that evaluates every candidate from the first layer on."""
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def method_name(self) -> str | None:
        """The method as it is written in a text."""
        return None if self.method is None else METHODS.get(self.method, self.method)

    @property
    def final(self) -> tuple[float, float] | None:
        """Sparsity and discrepancy of the plan itself."""
        value = self.discrepancy.value
        return None if self.reached is None or value is None else (self.reached, value)

    def headline(self) -> str | None:
        """One line for a terminal, which may know ASCII only: what is known of method, sparsity and discrepancy."""
        wanted = "" if self.wanted is None else f" ({self.wanted:.1%} wanted)"
        share = (
            "" if self.discrepancy.share is None else f" ({100 * self.discrepancy.share:.3g}% of the dense mean square)"
        )
        parts = [
            None if self.method_name is None else f"method {self.method_name}",
            None if self.reached is None else f"sparsity {self.reached:.1%}{wanted}",
            None if self.discrepancy.value is None else f"D {self.discrepancy.value:.3g}{share}",
        ]
        line = ", ".join(part for part in parts if part)
        return line.encode("ascii", "replace").decode() or None


def read_record(plan: Plan) -> Record:
    """Read a plan's provenance."""
    top = _Fields(plan.provenance)
    sparsity, checkpoint, work = top.fields("sparsity"), top.fields("checkpoint"), top.fields("evaluations")
    return Record(
        tool=top.text("tool"),
        method=top.text("method"),
        source=top.text("source"),
        wanted=sparsity.share("wanted"),
        reached=sparsity.share("reached"),
        discrepancy=_discrepancy(top.fields("discrepancy")),
        calibration=_calibration(top.fields("calibration")),
        settings=top.fields("settings").texts(),
        checkpoint=checkpoint.text("name"),
        checkpoint_sha256=checkpoint.text("sha256"),
        order=_order(top, plan),
        curves=tuple(_curves(top)),
        steps=tuple(_steps(top, plan)),
        reuses=tuple(_reuses(top, plan)),
        evaluated=work.count("sub_blocks"),
        naive=work.count("naive"),
        versions=top.fields("versions").texts(),
    )


def incomparable(record: Record, other: Record) -> str | None:
    """Why the discrepancies of two plans must not be compared; None if they may be."""
    pairs = {
        "other calibration prompts": (record.calibration.sha256, other.calibration.sha256),
        "another place of measurement": (record.discrepancy.space, other.discrepancy.space),
    }
    for reason, (ours, theirs) in pairs.items():
        if ours is None or theirs is None:
            return "what it was measured on is not recorded"
        if ours != theirs:
            return reason
    checkpoints = {record.checkpoint_sha256, other.checkpoint_sha256} - {None}
    return "another checkpoint" if len(checkpoints) > 1 else None


def printable(text: str) -> str:
    """A text without what a terminal or a browser could take for a command, and without what is no text."""
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in text)


@dataclass(frozen=True, slots=True)
class _Fields:
    """An object of the provenance, read key by key; what has another type than the one asked for is not there."""

    content: Mapping[str, Any]

    def text(self, key: str) -> str | None:
        return _text(self.content.get(key))

    def number(self, key: str) -> float | None:
        return _number(self.content.get(key))

    def share(self, key: str) -> float | None:
        value = self.number(key)
        return value if value is not None and 0 <= value <= 1 else None

    def size(self, key: str) -> float | None:
        """A number that is not negative."""
        value = self.number(key)
        return value if value is not None and value >= 0 else None

    def count(self, key: str) -> int | None:
        value = self.content.get(key)
        return value if type(value) is int and 0 <= value < 10**18 else None

    def unit(self, key: str, plan: Plan) -> int | None:
        return _unit(self.content.get(key), plan)

    def units(self, key: str, plan: Plan) -> tuple[int, ...]:
        units = [_unit(value, plan) for value in _items(self.content.get(key))]
        return tuple(unit for unit in units if unit is not None)

    def fields(self, key: str) -> _Fields:
        value = self.content.get(key)
        return _Fields(value if isinstance(value, dict) else {})

    def list(self, key: str) -> list[_Fields]:
        return [_Fields(value) for value in _items(self.content.get(key)) if isinstance(value, dict)]

    def texts(self) -> dict[str, str]:
        """All keys whose values can be written on a line, by name, as a plan file has them."""
        pairs = ((_text(key), _setting(value)) for key, value in self.content.items())
        return dict(sorted((key, value) for key, value in pairs if key is not None and value is not None))

    def sizes(self) -> dict[str, float]:
        """All keys whose values are numbers that are not negative."""
        pairs = ((_text(key), self.size(key)) for key in self.content)
        return {key: value for key, value in pairs if key is not None and value is not None}


def _discrepancy(fields: _Fields) -> Discrepancy:
    numbers = {key: fields.size(key) for key in ("value", "prompts", "null", "scale")}
    return Discrepancy(**numbers, space=fields.text("space"))


def _calibration(fields: _Fields) -> Calibration:
    counts = {key: fields.count(key) for key in ("prompts", "tokens", "truncated")}
    return Calibration(**counts, pipeline=fields.text("pipeline"), sha256=fields.text("sha256"))


def _order(top: _Fields, plan: Plan) -> tuple[int, ...]:
    """The order as a list of units, or in the notation of the command line with how many of them are dropped."""
    written = top.content.get("order")
    if not isinstance(written, str):
        return top.units("order", plan)
    try:
        units = [_unit(unit, plan) for unit in parse_units(written)]
    except PlanError:
        return ()
    return tuple(unit for unit in units[: top.count("drop")] if unit is not None)


def _curves(top: _Fields) -> Iterator[Curve]:
    for fields in top.list("curves"):
        points = []
        for item in _items(fields.content.get("points")):
            sparsity, discrepancy = (_number(value) for value in _pair(item))
            if sparsity is not None and 0 <= sparsity <= 1 and discrepancy is not None and discrepancy >= 0:
                points.append((sparsity, discrepancy))
        if points:
            yield Curve(fields.text("name") or "curve", tuple(sorted(points, key=lambda point: point[0])))


def _steps(top: _Fields, plan: Plan) -> Iterator[Step]:
    for fields in top.list("steps"):
        units = fields.units("units", plan)
        if units:
            yield Step(units, fields.size("D"), fields.fields("candidates").sizes(), fields.fields("above").sizes())


def _reuses(top: _Fields, plan: Plan) -> Iterator[ReuseStep]:
    for fields in top.list("reuses"):
        unit, source = fields.unit("unit", plan), fields.unit("source", plan)
        if unit is not None and source is not None and unit % len(KINDS) == source % len(KINDS):
            yield ReuseStep(unit, source, fields.size("before"), fields.size("D"))


def _unit(value: object, plan: Plan) -> int | None:
    return value if type(value) is int and 0 <= value < len(KINDS) * plan.num_layers else None


def _items(value: object) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else []


def _pair(value: object) -> tuple[object, object]:
    return (value[0], value[1]) if isinstance(value, list | tuple) and len(value) == 2 else (None, None)


def _number(value: object) -> float | None:
    """A number of a size that can be drawn; what is next to nothing counts as nothing."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if not abs(value) <= _LARGEST:  # true of nan, too
        return None
    return 0.0 if abs(value) < _SMALLEST else float(value)


def _text(value: object) -> str | None:
    """A text that fits on a line."""
    if not isinstance(value, str):
        return None
    text = printable(value).strip()
    return (text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…") or None


def _setting(value: object) -> str | None:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        texts = [_setting(item) for item in value if not isinstance(item, list | tuple)]
        return _text(", ".join(text for text in texts if text is not None))
    if isinstance(value, int):
        return str(value) if abs(value) < 10**18 else None
    if isinstance(value, float):
        return f"{value:.6g}" if math.isfinite(value) else None
    return _text(value)
