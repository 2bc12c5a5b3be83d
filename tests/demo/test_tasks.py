"""Tasks: a prompt asks for exactly what is judged; images that show it pass, and those that nearly do fail."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from random import Random

import numpy as np
import pytest

from skrr_export.demo.images import draw
from skrr_export.demo.tasks import CATEGORIES, Task, draw_tasks, score
from skrr_export.demo.world import COLOURS, OPPOSITES, SHAPES, Scene, Thing, is_held_out, is_held_out_relation
from tests.demo import grammar

COUNT = 20
TASKS = [task for seed in range(3) for task in draw_tasks(seed, COUNT)]
SPOTS = ((6, 8), (24, 8), (6, 24), (24, 24))
"""Centres of small things that lie apart."""
SAYING_COLOURS = ("colours", "colour attribution")


def of(category: str) -> list[Task]:
    return [task for task in TASKS if task.category == category]


def shown(task: Task, seed: int = 0) -> Scene:
    """A scene with exactly what a task asks for."""
    random = Random(seed)
    places, sizes = list(SPOTS), ["small"] * len(task.wanted)
    if task.where == "inside":
        places, sizes = [(16, 16), (16, 16)], ["small", "large"]
    elif task.where is not None:
        low, high = (6, 18), (24, 14)
        turned = task.where in ("above", "below")
        places = [low, high] if task.where in ("left of", "above") else [high, low]
        places = [(y, x) for x, y in places] if turned else places
    colours = [colour or random.choice(COLOURS) for _, colour in task.wanted]
    if task.where == "inside" and len(set(colours)) == 1:
        colours[1] = another_colour(colours[0])  # or one could not be seen on the other
    things = [
        Thing(shape, colour, size, "plain", x, y)
        for (shape, _), colour, size, (x, y) in zip(task.wanted, colours, sizes, places, strict=False)
    ]
    return Scene(tuple(things), "black")


def another_colour(colour: str) -> str:
    return COLOURS[(COLOURS.index(colour) + 1) % len(COLOURS)]


def another_shape(scene: Scene) -> str:
    return next(shape for shape in SHAPES if all(thing.shape != shape for thing in scene.things))


def changed(scene: Scene, index: int, **changes: object) -> Scene:
    things = list(scene.things)
    things[index] = replace(things[index], **changes)  # type: ignore[arg-type]
    return replace(scene, things=tuple(things))


def with_one_more(scene: Scene, shape: str) -> Scene:
    extra = Thing(shape, "red", "small", "plain", *SPOTS[3])
    return replace(scene, things=(*scene.things, extra))


def is_met(task: Task, scene: Scene) -> bool:
    return task.is_met(draw(scene))


@pytest.mark.parametrize("category", CATEGORIES)
def test_an_image_that_shows_it_meets_a_task(category: str) -> None:
    assert all(is_met(task, shown(task, seed)) for seed, task in enumerate(of(category)))


@pytest.mark.parametrize("category", CATEGORIES)
def test_an_image_of_something_else_does_not(category: str) -> None:
    for task in of(category):
        scene = shown(task)
        for index in range(len(scene.things)):
            assert not is_met(task, replace(scene, things=scene.things[:index] + scene.things[index + 1 :]))
            assert not is_met(task, changed(scene, index, shape=another_shape(scene)))
        assert not is_met(task, Scene((), "black"))


@pytest.mark.parametrize("category", CATEGORIES)
def test_colours_count_where_they_are_asked_for(category: str) -> None:
    for task in of(category):
        scene = shown(task)
        for index, (_, colour) in enumerate(task.wanted):
            wrong = changed(scene, index, colour=another_colour(scene.things[index].colour))
            assert (colour is not None) is (category in SAYING_COLOURS)
            if task.where != "inside":  # where a thing may get the colour of what it lies on
                assert is_met(task, wrong) is (category not in SAYING_COLOURS)


def test_colours_of_two_things_must_not_be_swapped() -> None:
    tasks = [task for task in of("colour attribution") if len({colour for _, colour in task.wanted}) == 2]
    assert len(tasks) > COUNT
    for task in tasks:
        (first, second) = shown(task).things
        swapped = (replace(first, colour=second.colour), replace(second, colour=first.colour))
        assert not is_met(task, Scene(swapped, "black"))


def test_places_must_not_be_swapped() -> None:
    for task in of("position"):
        (first, second) = shown(task).things
        swapped = (replace(first, x=second.x, y=second.y), replace(second, x=first.x, y=first.y))
        if task.where == "inside":
            swapped = (replace(first, size="large", x=9, y=9), replace(second, size="small", x=30, y=14))
        assert not is_met(task, Scene(swapped, "black"))


def test_places_do_not_count_where_none_is_said() -> None:
    for task in of("two objects"):
        (first, second) = shown(task).things
        assert task.where is None
        assert is_met(task, Scene((replace(first, x=24, y=24), replace(second, x=8, y=8)), "black"))


def test_of_several_things_any_two_may_stand_as_asked() -> None:
    task = Task("a circle left of a square", "position", (("circle", None), ("square", None)), "left of")
    circle, square = Thing("circle", "red", "small", "plain", 24, 8), Thing("square", "red", "small", "plain", 6, 8)
    assert not is_met(task, Scene((circle, square), "black"))
    assert is_met(task, Scene((circle, square, replace(circle, x=4, y=24), replace(square, x=24, y=24)), "black"))


def test_one_too_many_is_wrong_where_things_are_counted() -> None:
    for task in of("counting"):
        scene = shown(task)
        assert len(task.wanted) in (2, 3)
        assert len(set(task.wanted)) == 1
        assert not is_met(task, with_one_more(scene, task.wanted[0][0]))
        assert not is_met(task, with_one_more(scene, another_shape(scene)))


def test_other_things_do_no_harm_elsewhere_as_in_geneval() -> None:
    for task in TASKS:
        if task.category != "counting" and task.where is None:
            assert is_met(task, with_one_more(shown(task), another_shape(shown(task))))


@pytest.mark.parametrize("category", CATEGORIES)
def test_a_prompt_asks_for_what_is_judged(category: str) -> None:
    """As the tests' own grammar reads it: every shape, every colour that counts, the same place from either side."""
    for task in of(category):
        said = grammar.read(task.prompt)
        shapes = Counter({looks["shape"]: number for number, looks in said.things})
        assert shapes == Counter(shape for shape, _ in task.wanted)
        told = [looks for _, looks in said.things] + [{"shape": shape, **looks} for shape, looks in said.later]
        colours = {looks["shape"]: looks["colour"] for looks in told if "colour" in looks}
        assert colours.items() >= {shape: colour for shape, colour in task.wanted if colour is not None}.items()
        assert len(said.places) == (category == "position") == (task.where is not None)
        for one, where, other in said.places:
            expected = [(task.wanted[0][0], task.where, task.wanted[1][0])]
            if task.where in OPPOSITES:
                expected.append((task.wanted[1][0], OPPOSITES[task.where], task.wanted[0][0]))
            assert (one, where, other) in expected


def test_half_of_those_whose_colours_or_places_count_are_of_scenes_with_something_held_out() -> None:
    for category in CATEGORIES:
        new = [task for task in of(category) if not task.is_trained]
        can = category in (*SAYING_COLOURS, "position")
        assert len(new) == (len(of(category)) // 2 if can else 0)
    for task in TASKS:
        asked = any(colour is not None and is_held_out(shape, colour) for shape, colour in task.wanted)
        placed = task.where is not None and is_held_out_relation(task.wanted[0][0], task.where, task.wanted[1][0])
        assert not (task.is_trained and (asked or placed))
    assert all(not task.is_trained for task in of("colours") if is_held_out(*task.wanted[0]))


def test_every_shape_colour_and_place_is_asked_for() -> None:
    tasks = draw_tasks(0, 300)
    pairs = {pair for task in tasks for pair in task.wanted if task.category in SAYING_COLOURS}
    assert pairs == set(product(SHAPES, COLOURS))
    said = [grammar.read(task.prompt).places for task in tasks if task.category == "position"]
    assert {place for [(_, place, _)] in said} == {*OPPOSITES, "inside"}


def test_a_seed_gives_the_same_tasks_again_and_another_gives_others() -> None:
    assert draw_tasks(0, 10) == draw_tasks(0, 10)
    prompts = [{task.prompt for task in draw_tasks(seed, 50)} for seed in (0, 1)]
    assert len(prompts[0] & prompts[1]) < 20  # "a ring" is short enough to come again
    assert [task.category for task in draw_tasks(0, 2)] == [name for name in CATEGORIES for _ in range(2)]


def images_of(tasks: Sequence[Task]) -> list[np.ndarray]:
    return [draw(shown(task)) for task in tasks]


def test_the_score_is_the_share_by_category_and_their_mean() -> None:
    tasks = [of("counting")[0], of("counting")[1], of("counting")[2], of("counting")[3], of("colours")[0]]
    images = images_of(tasks)
    assert score(tasks, images) == {"counting": 1.0, "colours": 1.0, "overall": 1.0}
    images[0] = draw(Scene((), "white"))
    assert score(tasks, images) == {"counting": 0.75, "colours": 1.0, "overall": 0.875}


def test_images_must_be_as_many_as_tasks() -> None:
    tasks = of("colours")[:2]
    with pytest.raises(ValueError, match="shorter"):
        score(tasks, images_of(tasks)[:1])
