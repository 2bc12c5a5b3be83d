"""The plan: which weights run at each position of an encoder.

An encoder of N layers has 2N positions, an `attention` and a `feed_forward` for each layer. At each position a plan
names the layer whose weights run there (the layer itself: keep; another: re-use) or nothing (skip: the identity).
The paper (Skrr, arXiv 2502.08690) numbers the same positions as units: `2 * layer` is the layer's attention,
`2 * layer + 1` its feed-forward.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from skrr_export import strict_json
from skrr_export.errors import PlanError

FORMAT = "skrr-plan/1"

Kind = Literal["attention", "feed_forward"]
KINDS: tuple[Kind, ...] = get_args(Kind)

MAX_LAYERS = 10_000
"""No encoder comes near; a slip of the keyboard must not make us run out of memory."""

_FAMILY = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


@dataclass(frozen=True, slots=True)
class Position:
    """One place in the encoder where a sub-block runs, or is skipped."""

    layer: int
    """Layer, from 0."""
    kind: Kind
    source: int | None
    """Layer whose weights run here; `None` skips the position."""

    @property
    def unit(self) -> int:
        """The paper's number of this position."""
        return 2 * self.layer + KINDS.index(self.kind)

    @property
    def action(self) -> Literal["keep", "re-use", "skip"]:
        """What the plan does here."""
        if self.source is None:
            return "skip"
        return "keep" if self.source == self.layer else "re-use"

    def __str__(self) -> str:
        return f"layers[{self.layer}].{self.kind}"


@dataclass(frozen=True, slots=True)
class Plan:
    """Which weights run at each position; immutable, checked when made.

    Raises:
        PlanError: a source is out of range, or is not kept at its own position; or the family is not a name.
    """

    family: str
    """Encoder family, for example `t5`."""
    sources: tuple[tuple[int | None, int | None], ...]
    """For each layer, the source of its attention and of its feed-forward."""
    provenance: Mapping[str, Any] = field(default_factory=dict, compare=False)
    """How the plan was found: free-form, carried along."""

    def __post_init__(self) -> None:
        if not _FAMILY.fullmatch(self.family):
            raise PlanError(f"the plan's family must be a name such as t5, not {self.family!r}")
        if not self.sources:
            raise PlanError("a plan needs at least one layer")
        for position in self.positions():
            if position.action == "re-use":
                self._check_source(position)

    def _check_source(self, position: Position) -> None:
        assert position.source is not None
        if not 0 <= position.source < self.num_layers:
            raise PlanError(
                f"{position} re-uses layer {position.source}, but the encoder has layers 0 to {self.num_layers - 1}"
            )
        if self.source(position.source, position.kind) != position.source:
            raise PlanError(
                f"{position} re-uses layer {position.source}, whose {position.kind} is not kept at its own position; "
                "only kept weights can be re-used"
            )

    @classmethod
    def identity(cls, family: str, num_layers: int) -> Plan:
        """The plan that keeps everything."""
        return cls(family, tuple((layer, layer) for layer in range(num_layers)))

    @classmethod
    def from_order(
        cls,
        family: str,
        num_layers: int,
        order: Sequence[int],
        *,
        drop: int,
        reuse: Mapping[int, int] | None = None,
        provenance: Mapping[str, Any] | None = None,
    ) -> Plan:
        """Make a plan from the paper's notation.

        Args:
            family: encoder family.
            num_layers: layers of the encoder.
            order: units in the order in which they are dropped.
            drop: how many units of the order are dropped.
            reuse: for a dropped unit, the kept unit of the same kind that runs in its place.
            provenance: how the order was found.

        Raises:
            PlanError: a unit is out of range or repeated, or `drop` or `reuse` do not fit the order.
        """
        _check_order(order, num_layers, drop)
        units: dict[int, int | None] = {unit: unit // 2 for unit in range(2 * num_layers)}
        units.update(dict.fromkeys(order[:drop]))
        for unit, source in (reuse or {}).items():
            if unit not in order[:drop]:
                raise PlanError(f"re-use {unit}:{source}: unit {unit} is not dropped, so nothing can take its place")
            if not 0 <= source < 2 * num_layers or source % 2 != unit % 2:
                raise PlanError(f"re-use {unit}:{source}: unit {source} is not a {KINDS[unit % 2]} of this encoder")
            if source in order[:drop]:
                raise PlanError(f"re-use {unit}:{source}: unit {source} is dropped; only kept weights can be re-used")
            units[unit] = source // 2
        sources = tuple((units[2 * layer], units[2 * layer + 1]) for layer in range(num_layers))
        return cls(family, sources, dict(provenance or {}))

    @property
    def num_layers(self) -> int:
        """Layers of the encoder the plan is for."""
        return len(self.sources)

    @property
    def is_identity(self) -> bool:
        """Whether the plan keeps everything."""
        return all(position.action == "keep" for position in self.positions())

    def source(self, layer: int, kind: Kind) -> int | None:
        """The layer whose weights run at a position, or None."""
        return self.sources[layer][KINDS.index(kind)]

    def positions(self) -> Iterator[Position]:
        """All 2N positions, in the order in which they run."""
        for layer, pair in enumerate(self.sources):
            for kind, source in zip(KINDS, pair, strict=True):
                yield Position(layer, kind, source)

    def counts(self) -> dict[str, int]:
        """How many positions are kept, re-used and skipped."""
        counts = {"keep": 0, "re-use": 0, "skip": 0}
        for position in self.positions():
            counts[position.action] += 1
        return counts

    def to_dict(self) -> dict[str, Any]:
        """The plan as the plan file holds it."""
        return {
            "format": FORMAT,
            "encoder": {"family": self.family, "num_layers": self.num_layers},
            "layers": [dict(zip(KINDS, pair, strict=True)) for pair in self.sources],
            "provenance": dict(self.provenance),
        }

    def to_json(self) -> str:
        """The text of the plan file, a layer and a fact of its provenance a line."""
        document = self.to_dict()
        layers = ",\n  ".join(json.dumps(layer) for layer in document["layers"])
        facts = sorted(document["provenance"].items())
        provenance = ",\n  ".join(f"{json.dumps(name)}: {json.dumps(fact, sort_keys=True)}" for name, fact in facts)
        return (
            f'{{"format": {json.dumps(FORMAT)},\n'
            f' "encoder": {json.dumps(document["encoder"])},\n'
            f' "layers": [\n  {layers}],\n'
            f' "provenance": {{{provenance}}}}}\n'
        )

    @classmethod
    def from_dict(cls, document: Any) -> Plan:
        """Read a plan from the content of a plan file.

        Raises:
            PlanError: a key is unknown or missing, a value has the wrong type, or a rule is broken.
        """
        _check_keys(document, "the plan", required={"format", "encoder", "layers"}, optional={"provenance"})
        if document["format"] != FORMAT:
            raise PlanError(f"the plan's format is {document['format']!r}; this release reads '{FORMAT}'")
        encoder, layers, provenance = document["encoder"], document["layers"], document.get("provenance", {})
        _check_keys(encoder, "encoder", required={"family", "num_layers"})
        if not isinstance(encoder["family"], str):
            raise PlanError(f"encoder.family must be a string, not {encoder['family']!r}")
        if not isinstance(layers, list) or not layers:
            raise PlanError("layers must be a list with one object for each layer")
        if type(encoder["num_layers"]) is not int or encoder["num_layers"] != len(layers):
            raise PlanError(f"encoder.num_layers is {encoder['num_layers']!r}, but layers has {len(layers)} entries")
        if not isinstance(provenance, dict):
            raise PlanError("provenance must be an object")
        return cls(encoder["family"], tuple(_sources(i, layer) for i, layer in enumerate(layers)), provenance)

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Read a plan from the text of a plan file.

        Raises:
            PlanError: the text is not JSON, or not a plan.
        """
        try:
            return cls.from_dict(strict_json.loads(text))
        except (ValueError, RecursionError) as error:
            raise PlanError(f"not a JSON file: {error}") from error

    @classmethod
    def load(cls, path: str | Path) -> Plan:
        """Read a plan file.

        Raises:
            PlanError: the file cannot be read, or is not a plan.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
            raise PlanError(f"cannot read the plan '{path}': {reason}") from error
        try:
            return cls.from_json(text)
        except PlanError as error:
            raise PlanError(f"{path}: {error}") from error


def parse_units(text: str) -> list[int]:
    """Read a comma-separated list of units, `"46,45,5"`.

    Raises:
        PlanError: an item is not a number.
    """
    return [_unit(item, text) for item in text.split(",")]


def parse_reuse(text: str) -> dict[int, int]:
    """Read a comma-separated list of `dropped:source` units, `"5:7,6:4"`.

    Raises:
        PlanError: an item is not a pair of numbers, or a unit is given two sources.
    """
    pairs: dict[int, int] = {}
    for item in text.split(","):
        unit, colon, source = item.partition(":")
        if not colon:
            raise PlanError(f"'{item.strip()}' is not a pair DROPPED:SOURCE, such as 5:7")
        if _unit(unit, text) in pairs:
            raise PlanError(f"unit {unit.strip()} is given two sources in '{text}'")
        pairs[_unit(unit, text)] = _unit(source, text)
    return pairs


def _unit(item: str, text: str) -> int:
    if not re.fullmatch("[0-9]{1,9}", item.strip()):
        raise PlanError(f"'{item.strip()}' in '{text}' is not a unit number")
    return int(item)


def _check_order(order: Sequence[int], num_layers: int, drop: int) -> None:
    if not 1 <= num_layers <= MAX_LAYERS:
        raise PlanError(f"an encoder has 1 to {MAX_LAYERS:,} layers, not {num_layers}")
    outside = [unit for unit in order if not 0 <= unit < 2 * num_layers]
    if outside:
        raise PlanError(f"unit {outside[0]} is out of range: {num_layers} layers have units 0 to {2 * num_layers - 1}")
    if len(set(order)) != len(order):
        repeated = next(unit for unit in order if order.count(unit) > 1)
        raise PlanError(f"unit {repeated} stands twice in the order")
    if not 0 <= drop <= len(order):
        raise PlanError(f"cannot drop {drop} units: the order names {len(order)}")


def _check_keys(value: Any, what: str, *, required: Set[str], optional: Set[str] = frozenset()) -> None:
    if not isinstance(value, dict):
        raise PlanError(f"{what} must be a JSON object, not {json.dumps(value)[:40]}")
    for missing in sorted(required - value.keys()):
        raise PlanError(f"{what} lacks the key '{missing}'")
    for unknown in sorted(value.keys() - required - optional):
        raise PlanError(f"{what} has the unknown key '{unknown}'; known: {', '.join(sorted(required | optional))}")


def _sources(index: int, layer: Any) -> tuple[int | None, int | None]:
    _check_keys(layer, f"layers[{index}]", required=set(KINDS))
    for kind in KINDS:
        if layer[kind] is not None and type(layer[kind]) is not int:
            raise PlanError(f"layers[{index}].{kind} must be a layer number or null, not {json.dumps(layer[kind])}")
    return layer["attention"], layer["feed_forward"]
