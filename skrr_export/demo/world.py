"""Scenes: one to three flat shapes on a plain background, and which combinations are never trained on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import permutations
from random import Random
from typing import Literal

CELL = 21
"""Pixels of a cell, each way. Things stand in the middle of cells: what is hard about an image is what, not where."""
SIDE = 3 * CELL
"""Pixels of an image, each way."""
SHAPES = ("circle", "square", "triangle", "diamond", "cross", "ring")
COLOURS = ("red", "green", "blue", "yellow", "magenta", "cyan")
TEXTURES = ("plain", "striped", "checked")
BACKGROUNDS = ("black", "grey", "white")
DIAMETERS = {"small": 9, "large": 19}
"""Pixels across, by size."""
CONTAINERS = ("circle", "square", "diamond", "ring")
"""Shapes that a small thing fits into when they are large."""

Kind = Literal["single", "alike", "pair", "inside", "triple"]
Relation = Literal["left of", "right of", "above", "below", "inside"]
OPPOSITES: dict[Relation, Relation] = {
    "left of": "right of",
    "right of": "left of",
    "above": "below",
    "below": "above",
}
_PLACES = {1: (1,), 2: (0, 2), 3: (0, 1, 2)}
"""Where so many things stand in a row or a column of three cells."""


@dataclass(frozen=True, slots=True)
class Thing:
    """A shape somewhere in an image."""

    shape: str
    colour: str
    size: str
    texture: str
    x: int
    """Column of its centre."""
    y: int
    """Row of its centre."""

    @property
    def radius(self) -> int:
        """Pixels from its centre to its edge."""
        return DIAMETERS[self.size] // 2


@dataclass(frozen=True, slots=True)
class Scene:
    """What an image shows."""

    things: tuple[Thing, ...]
    background: str


def relation(one: Thing, other: Thing) -> Relation | None:
    """Where a thing is as seen from another: the axis on which they are further apart decides; `None` on a diagonal."""
    across, down = one.x - other.x, one.y - other.y
    if one.radius < other.radius and max(abs(across), abs(down)) + one.radius <= other.radius:
        return "inside"
    if abs(across) == abs(down):
        return None
    if abs(across) > abs(down):
        return "left of" if across < 0 else "right of"
    return "above" if down < 0 else "below"


def is_held_out(shape: str, colour: str) -> bool:
    """Whether a shape never has this colour in training: each shape lacks one colour, each colour one shape."""
    return (SHAPES.index(shape) + COLOURS.index(colour)) % 6 == 5


def is_held_out_relation(shape: str, where: Relation, other: str) -> bool:
    """Whether a shape never stands there beside another in training.

    Of shapes three apart in `SHAPES` none is left or right of the other, of those two apart none above or below.
    """
    apart = (SHAPES.index(shape) - SHAPES.index(other)) % 6
    return apart == 3 if where in {"left of", "right of"} else where != "inside" and apart in {2, 4}


def is_trained(scene: Scene) -> bool:
    """Whether a scene has nothing that is held out."""
    if any(is_held_out(thing.shape, thing.colour) for thing in scene.things):
        return False
    return not any(
        (where := relation(one, other)) is not None and is_held_out_relation(one.shape, where, other.shape)
        for one, other in permutations(scene.things, 2)
    )


def training_scenes(random: Random) -> Iterator[Scene]:
    """Scenes without end, and without what is held out; most are of two things that differ."""
    while True:
        [kind] = random.choices(list(_KINDS), weights=(15, 15, 45, 10, 15))
        while not is_trained(scene := draw_scene(kind, random)):
            pass
        yield scene


def draw_scene(kind: Kind, random: Random) -> Scene:
    """Draw a scene of a kind: one thing, two or three alike, two, one inside another, or three that differ."""
    return _KINDS[kind](random)


def _single(random: Random) -> Scene:
    return _lined_up(random, [_look(random, random.choice(SHAPES))])


def _alike(random: Random) -> Scene:
    look = _look(random, random.choice(SHAPES))
    return _lined_up(random, [look] * random.choice((2, 3)))


def _pair(random: Random) -> Scene:
    return _lined_up(random, [_look(random, shape) for shape in random.sample(SHAPES, 2)])


def _triple(random: Random) -> Scene:
    return _lined_up(random, [_look(random, shape) for shape in random.sample(SHAPES, 3)])


def _inside(random: Random) -> Scene:
    outer = random.choice(CONTAINERS)
    inner = random.choice([shape for shape in SHAPES if shape != outer])
    colours, middle = random.sample(COLOURS, 2), _centre(1)
    things = (
        Thing(inner, colours[0], "small", random.choice(TEXTURES), middle, middle),
        Thing(outer, colours[1], "large", random.choice(TEXTURES), middle, middle),
    )
    return Scene(things, random.choice(BACKGROUNDS))


Look = tuple[str, str, str, str]
"""Shape, colour, size, texture."""


def _look(random: Random, shape: str) -> Look:
    texture = random.choices(TEXTURES, weights=(2, 1, 1))[0]
    return shape, random.choice(COLOURS), random.choice(("small", "large")), texture


def _lined_up(random: Random, looks: list[Look]) -> Scene:
    """Things in the middle row or the middle column, in any order."""
    is_row, middle = random.random() < 0.5, _centre(1)
    places = map(_centre, random.sample(_PLACES[len(looks)], len(looks)))
    things = [
        Thing(*look, *((place, middle) if is_row else (middle, place)))
        for look, place in zip(looks, places, strict=True)
    ]
    return Scene(tuple(things), random.choice(BACKGROUNDS))


def _centre(cell: int) -> int:
    return cell * CELL + CELL // 2


_KINDS: dict[Kind, Callable[[Random], Scene]] = {
    "single": _single,
    "alike": _alike,
    "pair": _pair,
    "inside": _inside,
    "triple": _triple,
}
