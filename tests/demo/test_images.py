"""The judge's eyes: what `draw` draws `read` reads, exactly, also under noise; what is no shape it leaves out."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from skrr_export.demo.images import Image, draw, pattern, read, template
from skrr_export.demo.world import BACKGROUNDS, COLOURS, DIAMETERS, SHAPES, SIDE, TEXTURES, Scene, Thing
from tests.demo.scenes import SCENES, scenes

NOISE = 10.0


def in_order(scene: Scene) -> Scene:
    """A scene with its things sorted; a thing and what is inside it share a centre, and the order is free."""
    return replace(scene, things=tuple(sorted(scene.things, key=lambda thing: (thing.y, thing.x, thing.size))))


def noisy(image: Image, seed: int) -> Image:
    """An image with noise on every channel of every pixel."""
    noise = np.random.default_rng(seed).normal(0, NOISE, image.shape)
    return (image + noise).round().clip(0, 255).astype(np.uint8)


def test_ground_truth_is_read_without_a_mistake() -> None:
    assert [scene for scene in scenes(2000) if in_order(read(draw(scene))) != in_order(scene)] == []


def test_ground_truth_is_read_under_noise() -> None:
    """Generated images are not quite clean; 99% is what the judge is for."""
    right = [in_order(read(noisy(draw(scene), seed))) == in_order(scene) for seed, scene in enumerate(scenes(1000))]
    assert sum(right) >= 0.99 * len(right)


@given(SCENES)
def test_reading_undoes_drawing(scene: Scene) -> None:
    assert in_order(read(draw(scene))) == in_order(scene)


@pytest.mark.parametrize(("shape", "size", "texture"), product(SHAPES, DIAMETERS, TEXTURES))
def test_every_look_is_read_in_every_colour_on_every_background(shape: str, size: str, texture: str) -> None:
    for number, (colour, background) in enumerate(product(COLOURS, BACKGROUNDS)):
        scene = Scene((Thing(shape, colour, size, texture, 15, 17),), background)
        assert read(draw(scene)) == scene
        assert read(noisy(draw(scene), number)) == scene


def test_things_are_told_from_the_top_left() -> None:
    places = [(24, 4), (8, 8), (20, 16), (8, 24)]
    things = [Thing("square", "red", "small", "plain", x, y) for x, y in places]
    assert read(draw(Scene(tuple(reversed(things)), "white"))).things == tuple(things)


def test_images_are_small_and_have_a_known_form() -> None:
    image = draw(scenes(1)[0])
    assert (image.shape, image.dtype) == ((SIDE, SIDE, 3), np.uint8)


def test_what_is_inside_lies_on_top() -> None:
    outer = Thing("square", "blue", "large", "plain", 16, 16)
    inner = Thing("circle", "yellow", "small", "plain", 16, 16)
    one, other = (draw(Scene(things, "black")) for things in ((outer, inner), (inner, outer)))
    assert (one == other).all()
    assert tuple(one[16, 16]) == (240, 220, 40)
    assert tuple(one[16, 10]) == (40, 70, 240)


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_an_empty_image_shows_nothing(background: str) -> None:
    scene = Scene((), background)
    assert read(draw(scene)) == scene
    assert read(noisy(draw(scene), 0)) == scene


@given(arrays(np.uint8, (SIDE, SIDE, 3), elements=st.integers(0, 255)) | st.integers(0, 99).map(
    lambda seed: np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
))  # fmt: skip
def test_any_image_is_read(image: Image) -> None:
    assert read(image).background in BACKGROUNDS


def test_chaos_shows_hardly_anything() -> None:
    """A judge that finds shapes in noise would reward a model that draws noise."""
    found = [
        thing for seed in range(100)
        for thing in read(np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)).things
    ]  # fmt: skip
    assert len(found) < 10


@pytest.mark.parametrize(
    "box",
    [
        (slice(2, 38), slice(2, 38)),  # larger than any shape
        (slice(4, 6), slice(4, 28)),  # a bar
        (slice(4, 6), slice(4, 6)),  # a speck
        (slice(0, SIDE), slice(0, SIDE // 2)),  # half the image
    ],
)
def test_pixels_that_are_no_known_shape_are_left_out(box: tuple[slice, slice]) -> None:
    image = draw(Scene((), "black"))
    image[box] = (230, 40, 40)
    assert read(image) == Scene((), "black")


def test_half_a_shape_is_none() -> None:
    image = draw(Scene((Thing("circle", "red", "large", "plain", 16, 16),), "black"))
    image[:, 16:] = 16
    assert read(image).things == ()


def test_two_that_touch_are_not_taken_for_one() -> None:
    """Of one colour they are one component, which no template fits."""
    image = draw(Scene((Thing("square", "red", "small", "plain", 8, 8),), "black"))
    image[4:13, 13:22] = (230, 40, 40)
    assert read(image).things == ()


def test_templates_and_patterns_differ_in_every_size() -> None:
    for size, across in DIAMETERS.items():
        masks = [template(shape, size) for shape in SHAPES]
        assert {mask.shape for mask in masks} == {(across, across)}
        overlaps = [(one & other).sum() / (one | other).sum() for one in masks for other in masks if one is not other]
        assert max(overlaps) < 0.8
        assert len({pattern(texture, size).tobytes() for texture in TEXTURES}) == len(TEXTURES)


def test_mistakes_can_be_seen() -> None:
    """What differs in one respect is read as different in that respect only."""
    thing = Thing("triangle", "green", "large", "striped", 16, 12)
    for change in ({"shape": "diamond"}, {"colour": "cyan"}, {"size": "small"}, {"texture": "plain"}, {"x": 20}):
        other = replace(thing, **change)  # type: ignore[arg-type]
        assert read(draw(Scene((other,), "grey"))).things == (other,)


def test_the_scenes_of_these_tests_are_of_all_sorts() -> None:
    things = [thing for scene in scenes(2000) for thing in scene.things]
    looks = {(thing.shape, thing.colour, thing.texture) for thing in things}
    assert looks == set(product(SHAPES, COLOURS, TEXTURES))
