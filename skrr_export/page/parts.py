"""What all pages are made of: the document around them, tables, pairs of a name and a value, tiles."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources

from skrr_export.page.markup import Markup, element, joined, number
from skrr_export.page.record import printable
from skrr_export.plan import Plan
from skrr_export.plan_view import inset

NOTHING = Markup()

_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
_HASH = re.compile("[0-9a-f]{64}")
_LAYOUT = re.compile("([\n\t])")


def document(title: str, body: Markup, styles: Sequence[str], *, images: bool = False) -> str:
    """A whole page, which needs no network and no script.

    Args:
        title: of the browser's window.
        body: what is on the page.
        styles: names of style sheets of this package, the more general first.
        images: whether it may show images, which it then holds itself.
    """
    policy = f"{_POLICY}; img-src data:" if images else _POLICY
    sheets = [resources.files("skrr_export.page").joinpath(name).read_text(encoding="utf-8") for name in styles]
    head = joined(
        [
            Markup('<meta charset="utf-8">'),
            Markup(f'<meta http-equiv="Content-Security-Policy" content="{policy}">'),
            Markup('<meta name="viewport" content="width=device-width, initial-scale=1">'),
            Markup('<meta name="color-scheme" content="light dark">'),
            element("title", title),
            element("style", Markup("".join(sheets))),
        ],
        "\n",
    )
    text = f'<!doctype html>\n<html lang="en">\n<head>\n{head}\n</head>\n<body>\n{body}\n</body>\n</html>\n'
    return "".join(part if _LAYOUT.fullmatch(part) else printable(part) for part in _LAYOUT.split(text))


def tile(name: str, value: str, note: str) -> Markup:
    """A number that matters, in large type."""
    return element(
        "div",
        element("p", name, class_="tile-name"),
        element("p", value, class_="tile-value"),
        element("p", note, class_="tile-note"),
    )


def key(entries: Mapping[str, str]) -> Markup:
    """What the colours of a picture mean: by the class of each, in words."""
    items = [element("li", element("span", class_=f"swatch {kind}"), text) for kind, text in entries.items()]
    return element("ul", *items, class_="key")


def picture(plan: Plan) -> Markup:
    """A plan, drawn, and what its colours mean."""
    meanings = {"keep": "kept", "re-use": "another layer runs here", "skip": "skipped"}
    return element("figure", Markup(inset(plan)), element("figcaption", key(meanings)))


def definitions(pairs: Iterable[tuple[str, str | None]]) -> Markup:
    """Names and their values; those without one are left out."""
    rows = [
        element("div", element("dt", name), element("dd", _hash(value) if _HASH.fullmatch(value) else value))
        for name, value in pairs
        if value
    ]
    return element("dl", *rows) if rows else NOTHING


def groups(blocks: Mapping[str, Markup]) -> Markup:
    """Blocks side by side, each under its heading; empty ones are left out."""
    written = [element("div", element("h3", name), block, class_="group") for name, block in blocks.items() if block]
    return element("div", *written, class_="groups") if written else NOTHING


def table(heads: Mapping[str, str | None], rows: Sequence[Markup]) -> Markup:
    """A table of rows under headings, each with its class."""
    cells = [element("th", head, scope="col", class_=kind) for head, kind in heads.items()]
    body = element("tbody", joined(rows, "\n"))
    return element("div", element("table", element("thead", element("tr", *cells)), body), class_="scroll")


def change(share: float) -> str:
    """A relative change, with its sign."""
    return f"{share:+.1%}".replace("-", "\N{MINUS SIGN}") if abs(share) < 10 else f"{number(share + 1)}-fold"


def width(share: float) -> str:
    """The style of something that is as wide as a share of its surroundings."""
    return f"width:{100 * share:.1f}%"


def _hash(text: str) -> Markup:
    return element("code", f"{text[:16]}…", title=text)
