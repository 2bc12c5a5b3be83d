"""Scenes: one to three flat shapes on a plain background, and which combinations are never trained on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count, permutations
from random import Random
from typing import Literal

CELL = 10
"""Pixels of a cell, each way: things stand on a grid, so that what is hard about an image is what to draw, not how."""
SIDE = 4 * CELL
"""Pixels of an image, each way."""
SHAPES = ("circle", "square", "triangle", "diamond", "cross", "ring")
COLOURS = ("red", "green", "blue", "yellow", "magenta", "cyan")
TEXTURES = ("plain", "striped", "checked")
BACKGROUNDS = ("black", "grey", "white")
SPANS = {"small": 1, "large": 2, "huge": 3}
"""Cells across, by size. Only what holds another thing is huge."""
DIAMETERS = {size: span * CELL - 1 for size, span in SPANS.items()}
"""Pixels across: what stands in the next cell does not touch."""
CONTAINERS = ("circle", "square", "diamond", "ring")
"""Shapes that a small thing fits into when they are huge."""

Kind = Literal["single", "alike", "pair", "inside", "triple"]
Relation = Literal["left of", "right of", "above", "below", "inside"]
OPPOSITES: dict[Relation, Relation] = {
    "left of": "right of",
    "right of": "left of",
    "above": "below",
    "below": "above",
}
_ATTEMPTS = 200
"""Tries to place the things of one scene before it is drawn anew."""


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
        yield next(scene for _ in count() if is_trained(scene := draw_scene(kind, random)))


def draw_scene(kind: Kind, random: Random) -> Scene:
    """Draw a scene of a kind: one thing, two or three alike, two, one inside another, or three that differ."""
    while (scene := _KINDS[kind](random)) is None:
        pass
    return scene


def _single(random: Random) -> Scene | None:
    return _placed(random, [_look(random, random.choice(SHAPES))])


def _alike(random: Random) -> Scene | None:
    look = _look(random, random.choice(SHAPES))
    return _placed(random, [look] * random.choice((2, 3)))


def _pair(random: Random) -> Scene | None:
    return _placed(random, [_look(random, shape) for shape in random.sample(SHAPES, 2)])


def _triple(random: Random) -> Scene | None:
    return _placed(random, [_look(random, shape) for shape in random.sample(SHAPES, 3)])


def _inside(random: Random) -> Scene | None:
    outer = random.choice(CONTAINERS)
    inner = random.choice([shape for shape in SHAPES if shape != outer])
    colours = random.sample(COLOURS, 2)
    x, y = _position(random, "huge"), _position(random, "huge")
    things = (
        Thing(inner, colours[0], "small", random.choice(TEXTURES), x, y),
        Thing(outer, colours[1], "huge", random.choice(TEXTURES), x, y),
    )
    return Scene(things, random.choice(BACKGROUNDS))


Look = tuple[str, str, str, str]
"""Shape, colour, size, texture."""


def _look(random: Random, shape: str) -> Look:
    texture = random.choices(TEXTURES, weights=(2, 1, 1))[0]
    return shape, random.choice(COLOURS), random.choice(("small", "large")), texture


def _placed(random: Random, looks: list[Look]) -> Scene | None:
    """Put things where none touches another and each pair has a relation; `None` if that did not work out."""
    things: list[Thing] = []
    for _ in range(_ATTEMPTS):
        look = looks[len(things)]
        thing = Thing(*look, _position(random, look[2]), _position(random, look[2]))
        if all(_are_apart(thing, other) for other in things):
            things.append(thing)
            if len(things) == len(looks):
                return Scene(tuple(things), random.choice(BACKGROUNDS))
    return None


def _position(random: Random, size: str) -> int:
    """Where the centre of a thing may be, in either direction."""
    first = random.randrange(SIDE // CELL - SPANS[size] + 1)
    return first * CELL + DIAMETERS[size] // 2


def _are_apart(one: Thing, other: Thing) -> bool:
    across, down = abs(one.x - other.x), abs(one.y - other.y)
    return max(across, down) > one.radius + other.radius and across != down


_KINDS: dict[Kind, Callable[[Random], Scene | None]] = {
    "single": _single,
    "alike": _alike,
    "pair": _pair,
    "inside": _inside,
    "triple": _triple,
}
