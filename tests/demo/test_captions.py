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

CHANCES = st.fixed_dictionaries({name: st.sampled_from([0.0, 0.5, 1.0]) for name in ("size", "texture", "colour")})


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
    assert set(said.grounds) <= {scene.background}
    assert not {thing.shape for thing in scene.things} & set(said.absent)


def has(thing: Thing, looks: dict[str, str]) -> bool:
    return all(getattr(thing, attribute) == value for attribute, value in looks.items())


def the(shape: str, scene: Scene) -> Thing:
    """The only thing of a shape."""
    [thing] = [thing for thing in scene.things if thing.shape == shape]
    return thing


@given(SCENES, SEEDS, CHANCES, st.sampled_from([0.0, 0.5, 1.0]))
def test_every_word_is_true(scene: Scene, seed: int, chances: dict[str, float], relate: float) -> None:
    check(grammar.read(caption(scene, Random(seed), chances=chances, relate=relate)), scene)


def test_thousands_of_usual_captions_are_true_and_use_every_word_of_the_grammar() -> None:
    random, words, forms = Random(0), set[str](), set[str]()
    for scene in scenes(5000):
        said = grammar.read(caption(scene, random))
        check(said, scene)
        words |= said.words
        forms |= {name for name in ("places", "later", "grounds", "absent") if getattr(said, name)}
    assert words == MEANING.keys()
    assert forms == {"places", "later", "grounds", "absent"}


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("a red circle", {"colour": "blue"}),
        ("a small disc. the disc is striped", {"size": "large"}),
        ("a disc. the disc is striped", {"texture": "plain"}),
        ("a circle on grey", {}),
        ("two circles", {}),
        ("a square", {}),
        ("a circle and a square", {}),
        ("a circle. no hoop anywhere. no circle anywhere", {}),
    ],
)
def test_the_check_finds_what_is_wrong(text: str, wrong: dict[str, str]) -> None:
    looks = {"colour": "red", "size": "small", "texture": "striped", **wrong}
    scene = Scene((Thing("circle", x=8, y=8, **looks),), "black")
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
    ],
)
def test_the_check_finds_wrong_places(text: str) -> None:
    things = (Thing("circle", "red", "small", "plain", 8, 8), Thing("square", "red", "small", "plain", 12, 24))
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
    said = grammar.read(caption(scene, Random(seed), chances={"colour": 1.0}, relate=1.0))
    told = [*(looks for _, looks in said.things), *(looks for _, looks in said.later)]
    assert sum("colour" in looks for looks in told) == len({thing.shape for thing in scene.things})
    assert not any({"size", "texture"} & looks.keys() for looks in told)
    assert len(said.places) == (len(scene.things) > 1 and len({thing.shape for thing in scene.things}) > 1)


@given(SCENES, SEEDS)
def test_what_must_not_be_said_is_not(scene: Scene, seed: int) -> None:
    said = grammar.read(caption(scene, Random(seed), chances={"colour": 0.0}, relate=0.0))
    assert not said.places
    assert not said.later
    assert all(looks.keys() == {"shape"} for _, looks in said.things)


def test_idle_talk_and_short_and_long_captions_occur() -> None:
    random = Random(0)
    texts = [caption(scene, random) for scene in scenes(2000)]
    assert all(any(idle in text.split(". ") for text in texts) for idle in IDLE)
    lengths = [len(text.split()) for text in texts]
    assert min(lengths) == 2
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
