"""Drawing scenes, and reading them back from images: an exact parser, nothing learned.

A thing is a component of pixels of one hue. Its shape and size are the template that overlaps it most, its texture the
pattern that its bright and dark pixels agree with most. Images are uint8 `[SIDE, SIDE, 3]`.
"""

from __future__ import annotations

from functools import cache
from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from skrr_export.demo.world import BACKGROUNDS, COLOURS, DIAMETERS, SHAPES, SIDE, TEXTURES, Scene, Thing

Image = NDArray[np.uint8]
Mask = NDArray[np.bool_]

_RGB = {
    "red": (230, 40, 40),
    "green": (40, 200, 60),
    "blue": (40, 70, 240),
    "yellow": (240, 220, 40),
    "magenta": (220, 50, 220),
    "cyan": (40, 220, 220),
    "black": (16, 16, 16),
    "grey": (120, 120, 120),
    "white": (240, 240, 240),
}
_DARK = 0.55
"""Brightness of the second tone of a texture."""
_OVERLAP = 0.7
"""Intersection over union below which pixels are no known shape. Two templates of a size overlap by 0.79 at most."""
_LEAST_AREA = 8
"""Pixels below which a component is a speck."""


def draw(scene: Scene) -> Image:
    """Draw a scene; what is inside another thing lies over it."""
    image = np.empty((SIDE, SIDE, 3), np.uint8)
    image[:] = _RGB[scene.background]
    for thing in sorted(scene.things, key=lambda thing: -thing.radius):
        box = _box(thing.x, thing.y, thing.radius)
        mask, bright = template(thing.shape, thing.size), pattern(thing.texture, thing.size)
        tones = np.where(bright[..., None], 1, _DARK) * _RGB[thing.colour]
        image[box][mask] = tones[mask].round().astype(np.uint8)
    return image


def read(image: Image) -> Scene:
    """Read what an image shows. Things come from the top left; pixels that are no known shape are left out."""
    hues, bright = _classify(image)
    things = [
        thing
        for colour in range(len(COLOURS))
        for component in _components(hues == colour)
        if (thing := _recognise(component, hues, bright, colour)) is not None
    ]
    empty = [int((hues == -1 - index).sum()) for index in range(len(BACKGROUNDS))]
    return Scene(tuple(sorted(things, key=lambda thing: (thing.y, thing.x))), BACKGROUNDS[int(np.argmax(empty))])


@cache
def template(shape: str, size: str) -> Mask:
    """The pixels of a shape within its box."""
    across = DIAMETERS[size]
    radius = across // 2
    down, right = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    distance = np.hypot(down, right)
    masks: dict[str, Mask] = {
        "circle": distance <= radius + 0.35,
        "square": np.ones((across, across), bool),
        "triangle": np.abs(right) <= (down + radius) / 2,
        "diamond": np.abs(down) + np.abs(right) <= radius,
        "cross": np.minimum(np.abs(down), np.abs(right)) <= across // 7,
        "ring": (distance <= radius + 0.35) & (distance > radius * 0.65),
    }
    return masks[shape]


@cache
def pattern(texture: str, size: str) -> Mask:
    """Which pixels of a thing's box are bright: bands or fields of two pixels."""
    down, right = np.indices((DIAMETERS[size],) * 2) // 2 % 2
    patterns: dict[str, Mask] = {"plain": down >= 0, "striped": down == 0, "checked": down == right}
    return patterns[texture]


def _box(x: int, y: int, radius: int) -> tuple[slice, slice]:
    return slice(y - radius, y + radius + 1), slice(x - radius, x + radius + 1)


@cache
def _palette() -> tuple[NDArray[np.float32], NDArray[np.int64], Mask]:
    """Every colour there is, the index of its hue (backgrounds count down from -1), and whether it is bright."""
    tones = [(name, index, 1.0) for index, name in enumerate(COLOURS)]
    tones += [(name, index, _DARK) for index, name in enumerate(COLOURS)]
    tones += [(name, -1 - index, 1.0) for index, name in enumerate(BACKGROUNDS)]
    names, hues, brightness = zip(*tones, strict=True)
    colours = np.array([_RGB[name] for name in names]) * np.array(brightness)[:, None]
    return colours.astype(np.float32), np.array(hues), np.array(brightness) == 1


def _classify(image: Image) -> tuple[NDArray[np.int64], Mask]:
    """The hue and the brightness of each pixel: those of the nearest colour there is."""
    colours, hues, bright = _palette()
    nearest = np.linalg.norm(image[:, :, None] - colours, axis=-1).argmin(-1)
    return hues[nearest], bright[nearest]


def _components(mask: Mask) -> list[Mask]:
    """The connected parts of a mask, corners included."""
    labels, count = ndimage.label(mask, structure=np.ones((3, 3)))
    parts = [labels == label for label in range(1, count + 1)]
    return [part for part in parts if part.sum() >= _LEAST_AREA]


def _recognise(component: Mask, hues: NDArray[np.int64], bright: Mask, colour: int) -> Thing | None:
    """The thing that a component is; another in its middle may hide part of it."""
    hidden = ndimage.binary_fill_holes(component) & (hues >= 0) & (hues != colour)
    rows, columns = (np.flatnonzero(component.any(axis)) for axis in (1, 0))
    y, x = (int(edge[0] + edge[-1]) // 2 for edge in (rows, columns))
    overlap, shape, size, (x, y) = max(_candidates(component, hidden, x, y), default=(0.0, "", "", (x, y)))
    if overlap < _OVERLAP:
        return None
    return Thing(shape, COLOURS[colour], size, _texture(component, bright, size, x, y), x, y)


def _candidates(component: Mask, hidden: Mask, x: int, y: int) -> list[tuple[float, str, str, tuple[int, int]]]:
    """How well each template fits about there, within the image."""
    found, area = [], int(component.sum())
    for size, diameter in DIAMETERS.items():
        radius = diameter // 2
        inside = range(radius, SIDE - radius)
        for at_x, at_y in product((x - 1, x, x + 1), (y - 1, y, y + 1)):
            if at_x not in inside or at_y not in inside:
                continue
            box = _box(at_x, at_y, radius)
            outside = area - int(component[box].sum())
            for shape in SHAPES:
                mask = template(shape, size) & ~hidden[box]
                both, either = int((mask & component[box]).sum()), int((mask | component[box]).sum()) + outside
                found.append((both / either, shape, size, (at_x, at_y)))
    return found


def _texture(component: Mask, bright: Mask, size: str, x: int, y: int) -> str:
    box = _box(x, y, DIAMETERS[size] // 2)
    within = component[box]

    def agreement(texture: str) -> float:
        return float((pattern(texture, size) == bright[box])[within].mean())

    return max(TEXTURES, key=agreement)
