"""Captions never say what is wrong: each is read by a grammar of the tests' own, and held against its scene."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skrr_export.demo.captions import IDLE, caption
from skrr_export.demo.model import calibration_captions
from skrr_export.demo.world import SHAPES, Scene, Thing, draw_scene
from tests.demo import grammar
from tests.demo.grammar import MEANING, Said
from tests.demo.scenes import KINDS, SCENES, SEEDS, scenes

CHANCES = st.sampled_from([0.0, 0.5, 1.0])


def is_true(where: str, one: Thing, other: Thing) -> bool:
    """Whether a thing is there as seen from another, by their edges and centres."""
    right, down = one.x - other.x, one.y - other.y
    if where == "inside":
        return abs(right) + one.radius <= other.radius and abs(down) + one.radius <= other.radius
    if where in ("left of", "right of"):
        return abs(right) > abs(down) and (right < 0) == (where == "left of")
    return abs(down) > abs(right) and (down < 0) == (where == "above")


def check(said: Said, scene: Scene) -> None:
    """Hold what is said against a scene."""
    assert sum(number for number, _ in said.things) == len(scene.things)  # all are named, each once
    for number, looks in said.things:
        assert number == sum(has(thing, looks) for thing in scene.things), looks
    for shape, looks in said.later:
        assert has(the(shape, scene), looks), (shape, looks)
    for one, where, other in said.places:
        assert is_true(where, the(one, scene), the(other, scene)), (one, where, other)
    check_what_is_usual(said, scene)
    assert (said.grounds or ["black"]) == [scene.background]
    assert not {thing.shape for thing in scene.things} & set(said.absent)


def check_what_is_usual(said: Said, scene: Scene) -> None:
    """What nothing is said of is as it always is."""
    told: dict[str, dict[str, str]] = {looks["shape"]: dict(looks) for _, looks in said.things}
    for shape, looks in said.later:
        told[shape] |= looks
    for thing in scene.things:
        looks = {"size": "large", "texture": "plain", **told[thing.shape]}
        assert has(thing, looks), looks
    assert not said.line or len(scene.things) > 1
    if not said.places:
        assert {thing.x if said.line == "column" else thing.y for thing in scene.things} == {31}
        number = dict.fromkeys(looks["shape"] for _, looks in said.things)
        in_order = sorted(scene.things, key=lambda thing: (thing.y, thing.x))
        assert list(dict.fromkeys(thing.shape for thing in in_order)) == list(number)


def has(thing: Thing, looks: dict[str, str]) -> bool:
    return all(getattr(thing, attribute) == value for attribute, value in looks.items())


def the(shape: str, scene: Scene) -> Thing:
    """The only thing of a shape."""
    [thing] = [thing for thing in scene.things if thing.shape == shape]
    return thing


@given(SCENES, SEEDS, CHANCES, CHANCES)
def test_every_word_is_true_and_all_that_is_unusual_is_said(
    scene: Scene, seed: int, colour: float, relate: float
) -> None:
    check(grammar.read(caption(scene, Random(seed), colour=colour, relate=relate)), scene)


def test_thousands_of_usual_captions_are_true_and_use_every_word_of_the_grammar() -> None:
    random, words, forms = Random(0), set[str](), set[str]()
    for scene in scenes(5000):
        said = grammar.read(caption(scene, random))
        check(said, scene)
        words |= said.words
        forms |= {name for name in ("places", "line", "later", "grounds", "absent") if getattr(said, name)}
    assert words == MEANING.keys()
    assert forms == {"places", "line", "later", "grounds", "absent"}


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("a red circle", {"colour": "blue"}),
        ("a red circle", {"size": "small"}),
        ("a circle", {"texture": "striped"}),
        ("a small disc", {}),
        ("a disc. the disc is striped", {}),
        ("a circle on grey", {}),
        ("a circle on black. the background is black", {}),
        ("a circle in a column", {}),
        ("two circles", {}),
        ("a square", {}),
        ("a circle and a square", {}),
        ("a circle. no hoop anywhere. no circle anywhere", {}),
    ],
)
def test_the_check_finds_what_is_wrong(text: str, wrong: dict[str, str]) -> None:
    looks = {"colour": "red", "size": "large", "texture": "plain", **wrong}
    scene = Scene((Thing("circle", x=31, y=31, **looks),), "black")
    with pytest.raises(AssertionError):
        check(grammar.read(text), scene)


@pytest.mark.parametrize(
    "text",
    [
        "below a square is a circle",
        "a circle lower than a square",
        "a circle and a square. the second is above the first",
        "a square and a circle. the square is on the right side of the circle",
        "a square to the left of a circle",
        "a circle within a square",
        "a circle and a square",
        "a square and a circle in a column",
    ],
)
def test_the_check_finds_wrong_places(text: str) -> None:
    things = (Thing("circle", "red", "large", "plain", 31, 10), Thing("square", "red", "large", "plain", 31, 52))
    with pytest.raises(AssertionError):
        check(grammar.read(text), Scene(things, "black"))


@pytest.mark.parametrize(
    "text", ["a circle or a square", "a red red circle", "two circle", "a azure disc", "a mauve box"]
)
def test_the_grammar_of_the_tests_knows_no_other_sentence(text: str) -> None:
    with pytest.raises(AssertionError):
        grammar.read(text)


@given(SCENES, SEEDS)
def test_what_must_be_said_is(scene: Scene, seed: int) -> None:
    """As prompts of tasks need it: every colour, and of two things where one is."""
    said = grammar.read(caption(scene, Random(seed), colour=1.0, relate=1.0))
    told = [*(looks for _, looks in said.things), *(looks for _, looks in said.later)]
    assert sum("colour" in looks for looks in told) == len({thing.shape for thing in scene.things})
    assert len(said.places) == (len(said.things) == 2)


@given(SCENES, SEEDS)
def test_what_must_not_be_said_is_not(scene: Scene, seed: int) -> None:
    said = grammar.read(caption(scene, Random(seed), colour=0.0, relate=0.0))
    assert all(where == "inside" for _, where, _ in said.places)
    told = [*(looks for _, looks in said.things), *(looks for _, looks in said.later)]
    assert not any("colour" in looks for looks in told)


def test_idle_talk_and_short_and_long_captions_occur() -> None:
    random = Random(0)
    texts = [caption(scene, random) for scene in scenes(2000)]
    assert all(any(idle in text.split(". ") for text in texts) for idle in IDLE)
    lengths = [len(text.split()) for text in texts]
    assert min(lengths) <= 3
    assert max(lengths) > 35
    assert len(set(texts)) > 1900


@pytest.mark.parametrize("kind", KINDS)
def test_a_scene_is_described_in_many_ways(kind: str) -> None:
    scene = draw_scene(kind, Random(1))  # type: ignore[arg-type]
    assert len({caption(scene, Random(seed)) for seed in range(200)}) > 80


def test_a_caption_needs_only_its_seed() -> None:
    scene = draw_scene("triple", Random(0))
    assert caption(scene, Random(5)) == caption(scene, Random(5))


def test_calibration_captions_are_the_same_again_and_another_seed_gives_others() -> None:
    first = calibration_captions(64)
    assert first == calibration_captions(64)
    assert first[:16] == calibration_captions(16)
    assert len(set(first) & set(calibration_captions(64, seed=1))) < 8
    assert all(grammar.read(text).things for text in first)


def test_calibration_captions_say_nothing_that_is_held_out() -> None:
    """The only colour of each shape that training lacks; see `is_held_out`."""
    colours = ("red", "green", "blue", "yellow", "magenta", "cyan")
    lacking = dict(zip(SHAPES, reversed(colours), strict=True))
    for text in calibration_captions(500):
        said = grammar.read(text)
        told = [looks for _, looks in said.things] + [{"shape": shape, **looks} for shape, looks in said.later]
        assert all(looks.get("colour") != lacking[looks["shape"]] for looks in told), text
