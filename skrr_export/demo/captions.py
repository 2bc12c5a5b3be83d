"""What people might say of a scene: a grammar with synonyms, several orders, long and short ways, and idle talk.

A caption never says what is wrong, but leaves things out (a background that is not mentioned is black), names
attributes in later sentences ("the circle is red"), refers by order ("the second one is above the first"), and says
what is not there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
TWO, THREE = ("two", "two", "a pair of", "2"), ("three", "three", "a trio of", "3")


@dataclass(frozen=True, slots=True)
class Wording:
    """How a thing is called in one caption: what is said at once, and what a later sentence adds."""

    noun: str
    adjectives: tuple[str, ...]
    later: tuple[str, ...]


Chances = Mapping[str, float]
"""How often each of a thing's attributes is said."""
USUAL: Chances = {"size": 0.35, "texture": 0.35, "colour": 0.85}


def caption(scene: Scene, random: Random, *, chances: Chances = USUAL, relate: float = 0.6) -> str:
    """Describe a scene in one of very many ways.

    Args:
        scene: what is shown.
        random: chooses.
        chances: how often each attribute is said, of a shape that always is.
        relate: how often it is said where one thing is as seen from another.
    """
    looks = {(thing.shape, thing.colour, thing.size, thing.texture) for thing in scene.things}
    if len(looks) < len(scene.things):
        return _finish(_alike(scene.things, chances, random), scene, random)
    things = random.sample(scene.things, len(scene.things))
    if len(things) == 2 and relation(things[0], things[1]) is None:
        things.reverse()  # the inner one first: no word here says that one thing holds another
    later = 0.7 if random.random() < 0.3 else 0.0
    wordings = [_wording(thing, chances, later, random) for thing in things]
    return _finish(_several(things, wordings, relate, random), scene, random)


def _alike(things: Sequence[Thing], chances: Chances, random: Random) -> list[str]:
    word = _wording(things[0], chances, 0.0, random)
    number = random.choice(TWO if len(things) == 2 else THREE)
    plural = word.noun + ("es" if word.noun.endswith(("s", "x")) else "s")
    opening = random.choice(OPENINGS).replace("there is", "there are")
    return [opening + " ".join((number, *word.adjectives, plural))]


def _several(things: Sequence[Thing], wordings: Sequence[Wording], relate: float, random: Random) -> list[str]:
    """One to three things that differ: all of them, perhaps how two of them stand, and what was left for later."""
    names = [_name(wording, random) for wording in wordings]
    opening = random.choice(OPENINGS)
    where = relation(things[0], things[1]) if len(things) > 1 else None
    sentences = []
    if where is not None and random.random() < relate:
        sentences += _related(names, wordings, where, opening, random)
    else:
        sentences.append(opening + listed(names))
    sentences += [
        f"the {wording.noun} is {' and '.join(wording.later)}"
        for wording in random.sample(wordings, len(wordings))
        if wording.later
    ]
    return sentences


def _related(
    names: Sequence[str], wordings: Sequence[Wording], where: Relation, opening: str, random: Random
) -> list[str]:
    """Say how the first thing stands to the second, in the same sentence or the next."""
    place = random.choice(PLACES[where])
    more = [f"and {name}" for name in names[2:]]
    match random.randrange(4 if len(names) == 2 else 2):
        case 0:
            return [" ".join((opening + names[0], place, names[1], *more))]
        case 1:
            first, second = (f"the {wording.noun}" for wording in wordings[:2])
            return [opening + listed(names), f"{first} is {place} {second}"]
        case 2:
            return [f"{place} {names[1]} is {names[0]}"]
        case _:
            if where not in OPPOSITES or random.random() < 0.5:
                return [opening + listed(names), f"the first is {place} the second"]
            return [opening + listed(names), f"the second is {random.choice(PLACES[OPPOSITES[where]])} the first"]


def listed(names: Sequence[str]) -> str:
    """One or several names, such as "a circle, a ring and a cross"."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _wording(thing: Thing, chances: Chances, later: float, random: Random) -> Wording:
    """Choose what is said of a thing, and how much of it `later`."""
    said = [
        random.choice(ADJECTIVES[getattr(thing, attribute)])
        for attribute, chance in chances.items()
        if random.random() < chance
    ]
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
