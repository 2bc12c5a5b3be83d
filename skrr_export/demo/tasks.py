"""What a text-to-image model is asked, and whether its image shows it: the six categories of GenEval.

GenEval (Ghosh, Hajishirzi, Schmidt, 2023) asks for objects, and has a detector look for them. Here a shape stands for
an object, and `images.read` for the detector. As there, other things may be in the image too, but for counting.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from random import Random

from skrr_export.demo.captions import COLOUR_SAID, caption, in_reading_order
from skrr_export.demo.images import Image, read
from skrr_export.demo.world import Kind, Relation, Thing, draw_scene, is_trained, relation

_KINDS: dict[str, tuple[Kind, ...]] = {
    "single object": ("single",),
    "two objects": ("pair",),
    "counting": ("alike",),
    "colours": ("single",),
    "position": ("pair", "pair", "pair", "pair", "inside"),
    "colour attribution": ("pair",),
}
_COLOURS_COUNT, _PLACE_COUNTS = ("colours", "colour attribution"), "position"
CATEGORIES = tuple(_KINDS)


@dataclass(frozen=True, slots=True)
class Task:
    """A prompt, and what its image must show."""

    prompt: str
    category: str
    wanted: tuple[tuple[str, str | None], ...]
    """Shapes, each with its colour if that counts; as often as it must be there."""
    where: Relation | None = None
    """Where the first is as seen from the second, if that counts."""
    is_trained: bool = True
    """Whether the scene that the prompt is of has nothing that is held out of training."""

    def is_met(self, image: Image) -> bool:
        """Whether an image, uint8 `[SIDE, SIDE, 3]`, shows what was asked."""
        things = read(image).things
        if self.category == "counting":
            return Counter(thing.shape for thing in things) == Counter(shape for shape, _ in self.wanted)
        found = [[thing for thing in things if _is(thing, *wanted)] for wanted in self.wanted]
        if self.where is None:
            return all(found)
        first, second = found
        return any(relation(one, other) == self.where for one in first for other in second)


def draw_tasks(seed: int, count: int) -> list[Task]:
    """Draw prompts; half of those whose colours or places count are of scenes with something held out of training.

    Args:
        seed: two seeds give two sets.
        count: tasks in each category.
    """
    random = Random(f"tasks {seed}")  # noqa: S311
    return [
        _draw(category, random, trained=category not in (*_COLOURS_COUNT, _PLACE_COUNTS) or index % 2 == 0)
        for category in CATEGORIES
        for index in range(count)
    ]


def _draw(category: str, random: Random, *, trained: bool) -> Task:
    while is_trained(scene := draw_scene(random.choice(_KINDS[category]), random)) != trained:
        pass
    colours_count, place_counts = category in _COLOURS_COUNT, category == _PLACE_COUNTS
    things = in_reading_order(scene.things)
    return Task(
        prompt=caption(scene, random, colour=1.0 if colours_count else COLOUR_SAID, relate=float(place_counts)),
        category=category,
        wanted=tuple((thing.shape, thing.colour if colours_count else None) for thing in things),
        where=relation(*things) if place_counts else None,
        is_trained=trained,
    )


def score(tasks: Sequence[Task], images: Iterable[Image]) -> dict[str, float]:
    """The share of tasks that their images meet, in each category.

    Returns:
        By category; `overall` is the mean of them, as in GenEval.
    """
    return scores(
        [task.category for task in tasks], [task.is_met(image) for task, image in zip(tasks, images, strict=True)]
    )


def scores(categories: Sequence[str], met: Sequence[bool]) -> dict[str, float]:
    """As `score`, of tasks that are judged already."""
    results: dict[str, list[bool]] = {}
    for category, is_met in zip(categories, met, strict=True):
        results.setdefault(category, []).append(is_met)
    shares = {category: sum(each) / len(each) for category, each in results.items()}
    return {**shares, "overall": sum(shares.values()) / len(shares)}


def _is(thing: Thing, shape: str, colour: str | None) -> bool:
    return thing.shape == shape and colour in {None, thing.colour}
