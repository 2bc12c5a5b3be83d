"""What a caption says, read without the code that wrote it: every word is known, every sentence of one of six forms."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from skrr_export.demo.captions import IDLE

SYNONYMS: Mapping[str, Mapping[str, str]] = {
    "shape": {
        "circle": "circle disc", "square": "square box", "triangle": "triangle wedge",
        "diamond": "diamond rhombus", "cross": "cross plus_sign", "ring": "ring hoop",
    },
    "colour": {
        "red": "red crimson", "green": "green emerald", "blue": "blue azure", "yellow": "yellow golden",
        "magenta": "magenta pink fuchsia", "cyan": "cyan turquoise",
    },
    "size": {"small": "small little tiny", "large": "large big"},
    "texture": {"plain": "plain solid", "striped": "striped banded", "checked": "checked chequered"},
    "background": {"black": "black", "grey": "grey gray", "white": "white"},
    "where": {
        "left of": "left_of to_the_left_of on_the_left_side_of",
        "right of": "right_of to_the_right_of on_the_right_side_of",
        "above": "above over higher_than", "below": "below under lower_than",
        "inside": "inside within in_the_middle_of",
    },
    "count": {"1": "a an", "2": "two a_pair_of 2", "3": "three a_trio_of 3"},
}  # fmt: skip
"""By attribute and value, the words for it; `_` stands for a space."""
MEANING = {
    word.replace("_", " "): (attribute, value)
    for attribute, values in SYNONYMS.items()
    for value, words in values.items()
    for word in words.split()
}
PLURALS = {"boxes": "box", "crosses": "cross", "rhombuses": "rhombus"}


def _any(*attributes: str) -> str:
    """A pattern for any word of some attributes, the longest first."""
    words = [word for word, (attribute, _) in MEANING.items() if attribute in attributes]
    return "|".join(sorted(map(re.escape, words), key=len, reverse=True))


LOOK, NOUN, GROUND = _any("size", "colour", "texture"), _any("shape"), _any("background")
PLACE, COUNT = _any("where"), _any("count")
PHRASE = f"(?:{COUNT}) (?:(?:{LOOK}) )*(?:{NOUN}|{'|'.join(PLURALS)})s?(?: that is (?:{LOOK}))?"
OPENING = re.compile("(?:a picture of|an image of|a drawing of|there is|there are|we see) ")
LINE = re.compile(" (?:(in a row|side by side)|(in a column|stacked|from top to bottom))$")
ON = re.compile(f"(?: on a ({GROUND}) background| on ({GROUND})|, all on ({GROUND}) paper)$")


@dataclass
class Said:
    """What a caption says."""

    things: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    """How many there are, and their attributes; in the order in which they are named."""
    places: list[tuple[str, str, str]] = field(default_factory=list)
    """A shape, where it is, and the shape as seen from which."""
    line: str = ""
    """"row" or "column", where several things are said to stand in one."""
    later: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    """A shape, and what another sentence says of it."""
    grounds: list[str] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)
    words: set[str] = field(default_factory=set)
    """Every word with a meaning."""

    def meaning(self, word: str) -> tuple[str, str]:
        """The attribute and the value that a word stands for."""
        self.words.add(word)
        return MEANING[word]

    def shape(self, word: str) -> str:
        """The shape that a noun stands for, in the singular or the plural."""
        singular = PLURALS.get(word) or (word if word in MEANING else word.removesuffix("s"))
        attribute, shape = self.meaning(singular)
        assert attribute == "shape"
        return shape

    def looks(self, text: str) -> dict[str, str]:
        """The attributes in a text; none twice."""
        found = [self.meaning(word) for word in re.findall(rf"\b(?:{LOOK})\b", text)]
        assert len(dict(found)) == len(found), text
        return dict(found)


def read(caption: str) -> Said:
    """What a caption says.

    Raises:
        AssertionError: it has a sentence that is of no known form.
    """
    said = Said()
    for sentence in caption.split(". "):
        if sentence not in IDLE:
            _read_sentence(sentence, said)
    return said


def _read_sentence(sentence: str, said: Said) -> None:
    if ground := ON.search(sentence):
        said.grounds.append(said.meaning(next(filter(None, ground.groups())))[1])
        sentence = sentence[: ground.start()]
    if opening := OPENING.match(sentence):
        sentence = sentence[opening.end() :]
    if not (_read_remark(sentence, said) or _read_place(sentence, said) or _read_places_of_new(sentence, said)):
        if line := LINE.search(sentence):
            assert not said.line
            said.line = "row" if line[1] else "column"
            sentence = sentence[: line.start()]
        found = re.fullmatch(f"({PHRASE})((?:, {PHRASE})*)(?: and ({PHRASE}))?", sentence)
        assert found, sentence
        for phrase in (found[1], *re.findall(PHRASE, found[2]), found[3]):
            if phrase:
                _read_thing(phrase, said)


def _read_remark(sentence: str, said: Said) -> bool:
    """The background, what is absent, or more of a thing."""
    if found := re.fullmatch(f"the background is ({GROUND})", sentence):
        said.grounds.append(said.meaning(found[1])[1])
    elif found := re.fullmatch(f"no ({NOUN}) anywhere", sentence) or re.fullmatch(f"not an? ({NOUN}) in it", sentence):
        said.absent.append(said.shape(found[1]))
    elif found := re.fullmatch(f"the ({NOUN}) is ((?:{LOOK})(?: and (?:{LOOK}))*)", sentence):
        said.later.append((said.shape(found[1]), said.looks(found[2])))
    return found is not None


def _read_place(sentence: str, said: Said) -> bool:
    """Where a thing is as seen from another, of things that were named before."""
    if found := re.fullmatch(f"the ({NOUN}) is ({PLACE}) the ({NOUN})", sentence):
        one, other = said.shape(found[1]), said.shape(found[3])
    elif found := re.fullmatch(f"the (first|second) is ({PLACE}) the (first|second)", sentence):
        one, other = (said.things[("first", "second").index(found[index])][1]["shape"] for index in (1, 3))
    else:
        return False
    said.places.append((one, said.meaning(found[2])[1], other))
    return True


def _read_places_of_new(sentence: str, said: Said) -> bool:
    """Likewise, in the sentence that names them."""
    if found := re.fullmatch(f"({PLACE}) ({PHRASE}) is ({PHRASE})", sentence):
        other, one = (_read_thing(found[index], said) for index in (2, 3))
        place = found[1]
    elif found := re.fullmatch(f"({PHRASE}) ({PLACE}) ({PHRASE})", sentence):
        one, other = (_read_thing(found[index], said) for index in (1, 3))
        place = found[2]
    else:
        return False
    said.places.append((one, said.meaning(place)[1], other))
    return True


def _read_thing(phrase: str, said: Said) -> str:
    """Note a thing, or several alike; returns its shape."""
    found = re.match(f"(?:{COUNT})(?= )", phrase)
    assert found, phrase
    count = found[0]
    words = phrase.removeprefix(count).split(" that is ")[0]
    noun = re.search(rf"\b(?:{NOUN}|{'|'.join(PLURALS)})s?$", words)
    assert noun, phrase
    shape = said.shape(noun[0])
    number = int(said.meaning(count)[1])
    assert (number > 1) is (noun[0] not in MEANING), phrase  # the plural, and only then
    if number == 1:
        first = words.split()[0]
        assert count == ("an" if first[0] in "aeiou" else "a"), phrase
    said.things.append((number, {"shape": shape, **said.looks(phrase.removeprefix(count))}))
    return shape
