"""Reading pages: the tree of one, and its parts."""

from __future__ import annotations

from html.parser import HTMLParser
from xml.etree import ElementTree as ET

VOID = {"meta", "img"}


class Reader(HTMLParser):
    """Builds the tree of a page; every tag that opens must close, in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.builder = ET.TreeBuilder()
        self.feed(text)
        self.close()
        assert self.open == []
        self.root = self.builder.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs)
        self.builder.start(tag, {key: value or "" for key, value in attrs})
        if tag in VOID:
            self.builder.end(tag)
        else:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert "svg" in self.open  # elsewhere a browser takes it for an opening tag
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        self.builder.end(tag)

    def handle_data(self, data: str) -> None:
        if self.open:
            self.builder.data(data)


def text_of(part: ET.Element | None) -> str:
    """The words of a part of the page."""
    assert part is not None
    return " ".join("".join(part.itertext()).split())


def classed(root: ET.Element, name: str) -> list[ET.Element]:
    """The parts of a class."""
    return [part for part in root.iter() if name in part.get("class", "").split()]


def section(root: ET.Element, heading: str) -> ET.Element:
    """The section under a heading."""
    (found,) = (part for part in root.iter("section") if part.findtext("h2") == heading)
    return found


def headings(root: ET.Element) -> list[str]:
    """The headings of the page's sections."""
    return [text_of(heading) for heading in root.iter("h2")]


def rows(part: ET.Element) -> list[list[str]]:
    """The cells of a table."""
    return [[text_of(cell) for cell in row] for row in part.iter("tr")]


def definitions(root: ET.Element) -> dict[str, str]:
    """All pairs of a term and its definition."""
    return {
        text_of(pair.find("dt")): text_of(pair.find("dd")) for pair in root.iter("div") if pair.find("dt") is not None
    }


def tiles(root: ET.Element) -> dict[str, tuple[str, str]]:
    """The numbers at the top."""
    (part,) = classed(root, "tiles")
    return {text_of(name): (text_of(value), text_of(note)) for name, value, note in part}
