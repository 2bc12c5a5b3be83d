"""What people might say of a scene: a grammar with synonyms, several orders, long and short ways, and idle talk.

A caption never says what is wrong, but leaves out what is usual: if nothing else is said, things are large and plain,
on black, and stand in a row in the order in which they are named. It names attributes in later sentences ("the circle
is red"), refers by order ("the second is above the first"), and says what is not there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from skrr_export.demo.world import BACKGROUNDS, OPPOSITES, SHAPES, Relation, Scene, Thing, relation

NOUNS = {
    "circle": ("circle", "circle", "disc"),
    "square": ("square", "square", "box"),
    "triangle": ("triangle", "triangle", "wedge"),
    "diamond": ("diamond", "diamond", "rhombus"),
    "cross": ("cross", "cross", "plus sign"),
    "ring": ("ring", "ring", "hoop"),
}
ADJECTIVES = {
    "red": ("red", "red", "crimson"),
    "green": ("green", "green", "emerald"),
    "blue": ("blue", "blue", "azure"),
    "yellow": ("yellow", "yellow", "golden"),
    "magenta": ("magenta", "pink", "fuchsia"),
    "cyan": ("cyan", "cyan", "turquoise"),
    "small": ("small", "little", "tiny"),
    "large": ("large", "big"),
    "plain": ("plain", "solid"),
    "striped": ("striped", "banded"),
    "checked": ("checked", "chequered"),
    "black": ("black",),
    "grey": ("grey", "gray"),
    "white": ("white",),
}
PLACES: dict[Relation, tuple[str, ...]] = {
    "left of": ("left of", "to the left of", "on the left side of"),
    "right of": ("right of", "to the right of", "on the right side of"),
    "above": ("above", "over", "higher than"),
    "below": ("below", "under", "lower than"),
    "inside": ("inside", "within", "in the middle of"),
}
OPENINGS = ("", "", "", "a picture of ", "an image of ", "a drawing of ", "there is ", "we see ")
IDLE = (
    "drawn on a quiet morning",
    "for a book about shapes",
    "high quality",
    "with nothing else around",
    "seen from the front",
    "made by a careful hand",
    "as simple as it can be",
    "someone asked for it twice",
)
LINES = {
    "row": ("", "", "", " in a row", " side by side"),
    "column": (" in a column", " stacked", " from top to bottom"),
}
TWO, THREE = ("two", "two", "a pair of", "2"), ("three", "three", "a trio of", "3")


@dataclass(frozen=True, slots=True)
class Wording:
    """How a thing is called in one caption: what is said at once, and what a later sentence adds."""

    noun: str
    adjectives: tuple[str, ...]
    later: tuple[str, ...]


USUAL = {"size": "large", "texture": "plain"}
"""What a thing is that nothing else is said of."""
COLOUR_SAID = 0.85
"""How often a thing's colour is said, which is open else."""
_USUAL_SAID = 0.3
"""How often what is usual is said all the same."""


def caption(scene: Scene, random: Random, *, colour: float = COLOUR_SAID, relate: float = 0.6) -> str:
    """Describe a scene in one of very many ways.

    Args:
        scene: what is shown.
        random: chooses.
        colour: how often a thing's colour is said.
        relate: how often it is said of two things that stand side by side how they do.
    """
    things = in_reading_order(scene.things)
    if len({(thing.shape, thing.colour, thing.size, thing.texture) for thing in things}) < len(things):
        sentences = _alike(things, colour, random)
    elif len(things) == 2 and (relation(*things) == "inside" or random.random() < relate):
        sentences = _related(things, colour, random)
    else:
        sentences = _listed(things, colour, random)
    return _finish(sentences, scene, random)


def in_reading_order(things: Sequence[Thing]) -> list[Thing]:
    """Things from the top left; of two in one place, the inner one first."""
    return sorted(things, key=lambda thing: (thing.y, thing.x, thing.radius))


def _alike(things: Sequence[Thing], colour: float, random: Random) -> list[str]:
    word = _wording(things[0], colour, 0.0, random)
    number = random.choice(TWO if len(things) == 2 else THREE)
    plural = word.noun + ("es" if word.noun.endswith(("s", "x")) else "s")
    opening = random.choice(OPENINGS).replace("there is", "there are")
    return [opening + " ".join((number, *word.adjectives, plural)) + _line(things, random)]


def _listed(things: Sequence[Thing], colour: float, random: Random) -> list[str]:
    """Name one to three things that differ."""
    wordings = _wordings(things, colour, random)
    names = [_name(wording, random) for wording in wordings]
    return [random.choice(OPENINGS) + listed(names) + _line(things, random), *_later(wordings, random)]


def _line(things: Sequence[Thing], random: Random) -> str:
    """How several things stand together: a column is always said."""
    if len(things) == 1:
        return ""
    return random.choice(LINES["column" if things[0].x == things[1].x else "row"])


def _related(things: Sequence[Thing], colour: float, random: Random) -> list[str]:
    """Name two things, and say how one stands to the other in the same sentence or the next."""
    one, other = things
    where = relation(one, other)
    if where is None:
        raise ValueError(f"no word says how {one} stands to {other}")
    if where in OPPOSITES and random.random() < 0.5:  # no word here says that one thing holds another
        one, other, where = other, one, OPPOSITES[where]
    wordings = _wordings((one, other), colour, random)
    names, opening = [_name(wording, random) for wording in wordings], random.choice(OPENINGS)
    place = random.choice(PLACES[where])
    match random.randrange(4):
        case 0:
            sentences = [f"{opening}{names[0]} {place} {names[1]}"]
        case 1:
            first, second = (f"the {wording.noun}" for wording in wordings)
            sentences = [opening + listed(names), f"{first} is {place} {second}"]
        case 2:
            sentences = [f"{place} {names[1]} is {names[0]}"]
        case _:
            sentences = [opening + listed(names), _ordinal(where, place, random)]
    return [*sentences, *_later(wordings, random)]


def _ordinal(where: Relation, place: str, random: Random) -> str:
    if where in OPPOSITES and random.random() < 0.5:
        return f"the second is {random.choice(PLACES[OPPOSITES[where]])} the first"
    return f"the first is {place} the second"


def _later(wordings: Sequence[Wording], random: Random) -> list[str]:
    """What was left to say of things, in any order."""
    return [
        f"the {wording.noun} is {' and '.join(wording.later)}"
        for wording in random.sample(wordings, len(wordings))
        if wording.later
    ]


def listed(names: Sequence[str]) -> str:
    """One or several names, such as "a circle, a ring and a cross"."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _wordings(things: Sequence[Thing], colour: float, random: Random) -> list[Wording]:
    later = 0.7 if random.random() < 0.3 else 0.0
    return [_wording(thing, colour, later, random) for thing in things]


def _wording(thing: Thing, colour: float, later: float, random: Random) -> Wording:
    """Choose what is said of a thing, and how much of it `later`."""
    values = [
        value
        for attribute, usual in USUAL.items()
        if (value := getattr(thing, attribute)) != usual or random.random() < _USUAL_SAID
    ]
    if random.random() < colour:
        values.append(thing.colour)
    said = [random.choice(ADJECTIVES[value]) for value in values]
    if random.random() < 0.2:
        random.shuffle(said)
    now = [word for word in said if random.random() >= later]
    return Wording(random.choice(NOUNS[thing.shape]), tuple(now), tuple(word for word in said if word not in now))


def _name(wording: Wording, random: Random) -> str:
    """A noun phrase, such as "a small red circle", or "a small circle that is red"."""
    *first, last = wording.adjectives or ("",)
    if last and random.random() < 0.15:
        return " ".join((_article(first, wording.noun), *first, wording.noun, "that is", last))
    return " ".join((_article(wording.adjectives, wording.noun), *wording.adjectives, wording.noun))


def _article(adjectives: Sequence[str], noun: str) -> str:
    return "an" if (*adjectives, noun)[0][0] in "aeiou" else "a"


def _finish(sentences: list[str], scene: Scene, random: Random) -> str:
    """Join sentences, with the background, idle talk, and what is not there now and then."""
    ground = random.choice(ADJECTIVES[scene.background])
    is_said = scene.background != BACKGROUNDS[0] or random.random() < 0.3
    if is_said and random.random() < 0.7:
        sentences[0] += random.choice((f" on a {ground} background", f" on {ground}", f", all on {ground} paper"))
    elif is_said:
        sentences.append(f"the background is {ground}")
    if random.random() < 0.25:
        sentences.insert(random.randrange(len(sentences) + 1), random.choice(IDLE))
    if random.random() < 0.15:
        absent = random.choice([shape for shape in SHAPES if all(shape != thing.shape for thing in scene.things)])
        noun = random.choice(NOUNS[absent])
        sentences.append(random.choice((f"no {noun} anywhere", f"there is not {_article((), noun)} {noun} in it")))
    return ". ".join(sentences)
