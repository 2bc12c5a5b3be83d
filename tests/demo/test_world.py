"""Scenes hold together: things lie apart within the image, relations fit each other, and what is held out stays out."""

from __future__ import annotations

from collections import Counter
from itertools import combinations, islice, permutations, product
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skrr_export.demo.world import (
    BACKGROUNDS,
    CELL,
    COLOURS,
    CONTAINERS,
    DIAMETERS,
    OPPOSITES,
    SHAPES,
    SIDE,
    TEXTURES,
    Kind,
    Scene,
    Thing,
    draw_scene,
    is_held_out,
    is_held_out_relation,
    is_trained,
    relation,
    training_scenes,
)
from tests.demo.scenes import KINDS, SCENES, SEEDS, scenes

THINGS = st.builds(
    Thing, st.sampled_from(SHAPES), st.sampled_from(COLOURS), st.sampled_from([*DIAMETERS]), st.sampled_from(TEXTURES),
    st.integers(0, SIDE - 1), st.integers(0, SIDE - 1),
)  # fmt: skip


def thing(shape: str = "circle", colour: str = "red", size: str = "small", x: int = 16, y: int = 16) -> Thing:
    return Thing(shape, colour, size, "plain", x, y)


@pytest.mark.parametrize(
    ("one", "other", "where"),
    [
        ((4, 16), (20, 16), "left of"),
        ((20, 12), (8, 16), "right of"),
        ((16, 4), (20, 24), "above"),
        ((16, 24), (8, 12), "below"),
        ((4, 4), (20, 20), None),
    ],
)
def test_relations_of_places(one: tuple[int, int], other: tuple[int, int], where: str | None) -> None:
    """Rows count from the top: what has the smaller number is above."""
    assert relation(thing(x=one[0], y=one[1]), thing(x=other[0], y=other[1])) == where


@pytest.mark.parametrize(("x", "where"), [(16, "inside"), (21, "inside"), (22, "right of")])
def test_a_thing_is_inside_another_when_its_box_is(x: int, where: str) -> None:
    assert relation(thing(x=x), thing(size="large")) == where


@given(THINGS, THINGS)
def test_seen_from_the_other_side_a_relation_is_its_opposite(one: Thing, other: Thing) -> None:
    where, back = relation(one, other), relation(other, one)
    if where == "inside":
        assert one.radius < other.radius
        assert back in {None, *OPPOSITES}
    elif back != "inside":
        assert back == (where and OPPOSITES[where])


def test_opposites_are_each_others() -> None:
    assert all(OPPOSITES[opposite] == where for where, opposite in OPPOSITES.items())


@given(SCENES)
def test_things_lie_within_the_image_and_apart_or_one_inside_the_other(scene: Scene) -> None:
    for each in scene.things:
        assert each.radius <= min(each.x, each.y)
        assert max(each.x, each.y) + each.radius < SIDE
        assert each.x % CELL == each.y % CELL == CELL // 2
        assert (each.shape in SHAPES, each.colour in COLOURS, each.texture in TEXTURES) == (True,) * 3
    assert scene.background in BACKGROUNDS
    for one, other in combinations(scene.things, 2):
        between = max(abs(one.x - other.x), abs(one.y - other.y)) - one.radius - other.radius - 1
        assert between >= 1 or relation(one, other) == "inside"
        assert relation(one, other) is not None  # never on a diagonal: a caption can always say where it is


@given(st.sampled_from(KINDS), SEEDS)
def test_kinds_are_what_they_are_called(kind: Kind, seed: int) -> None:
    scene = draw_scene(kind, Random(seed))
    shapes = [each.shape for each in scene.things]
    looks = {(each.shape, each.colour, each.size, each.texture) for each in scene.things}
    assert len(shapes) in {"single": {1}, "alike": {2, 3}, "pair": {2}, "inside": {2}, "triple": {3}}[kind]
    assert len(looks) == (1 if kind == "alike" else len(shapes))
    assert len(set(shapes)) == (1 if kind == "alike" else len(shapes))
    if kind == "inside":
        inner, outer = scene.things
        assert relation(inner, outer) == "inside"
        assert (inner.size, outer.size, outer.shape in CONTAINERS) == ("small", "large", True)
        assert inner.colour != outer.colour  # or one could not be seen on the other


@given(st.sampled_from(KINDS), SEEDS)
def test_a_seed_gives_the_same_scene_again(kind: Kind, seed: int) -> None:
    assert draw_scene(kind, Random(seed)) == draw_scene(kind, Random(seed))


def test_scenes_differ() -> None:
    assert len(set(scenes(1000))) > 900


def test_each_shape_lacks_one_colour_in_training_and_each_colour_one_shape() -> None:
    held_out = [pair for pair in product(SHAPES, COLOURS) if is_held_out(*pair)]
    assert sorted(shape for shape, _ in held_out) == sorted(SHAPES)
    assert sorted(colour for _, colour in held_out) == sorted(COLOURS)


def test_three_shapes_in_five_lack_a_direction_beside_each_shape_and_none_lacks_both() -> None:
    """Whichever of the two is named, and from whichever side it is seen."""
    for shape, other in permutations(SHAPES, 2):
        lacking = [where for where in OPPOSITES if is_held_out_relation(shape, where, other)]
        assert set(lacking) in (set(), {"left of", "right of"}, {"above", "below"})
        assert lacking == [where for where in OPPOSITES if is_held_out_relation(other, where, shape)]
        assert not is_held_out_relation(shape, "inside", other)
    for shape in SHAPES:
        assert sum(any(is_held_out_relation(shape, where, other) for where in OPPOSITES) for other in SHAPES) == 3


def test_training_has_everything_but_what_is_held_out() -> None:
    seen, places, numbers = set[tuple[str, str]](), set[tuple[str, str, str]](), Counter[int]()
    for scene in islice(training_scenes(Random(0)), 3000):
        assert is_trained(scene)
        numbers[len(scene.things)] += 1
        seen |= {(each.shape, each.colour) for each in scene.things}
        places |= {
            (one.shape, where, other.shape)
            for one, other in permutations(scene.things, 2)
            if (where := relation(one, other)) is not None
        }
    assert seen == {pair for pair in product(SHAPES, COLOURS) if not is_held_out(*pair)}
    beside = {place for place in product(SHAPES, OPPOSITES, SHAPES) if not is_held_out_relation(*place)}
    inside = {(inner, "inside", outer) for inner, outer in product(SHAPES, CONTAINERS) if inner != outer}
    assert places == beside | inside
    assert min(numbers[1], numbers[2], numbers[3]) > 100


def test_a_scene_with_anything_held_out_is_not_for_training() -> None:
    """A circle is never cyan, never beside a diamond, and never above or below a triangle."""
    red, diamond, triangle = thing(), thing("diamond", x=26, y=14), thing("triangle", x=14, y=26)
    assert is_trained(Scene((red,), "black"))
    assert not is_trained(Scene((thing(colour="cyan"),), "black"))
    assert not is_trained(Scene((red, diamond), "black"))
    assert not is_trained(Scene((red, triangle), "black"))
    assert is_trained(Scene((red, thing("diamond", x=14, y=26)), "black"))
    assert is_trained(Scene((red, thing("triangle", x=26, y=14)), "black"))
    assert not is_trained(Scene((red, thing("triangle", x=26, y=14), diamond), "black"))


def test_held_out_combinations_exist_outside_training() -> None:
    assert 0.2 < sum(map(is_trained, scenes(1000))) / 1000 < 0.8
