"""The same prompts drawn by every encoder, side by side, and what the judge says of each image."""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from skrr_export.demo.captions import listed
from skrr_export.demo.images import Image, read
from skrr_export.demo.record import Demo, Variant
from skrr_export.demo.sampling import Images
from skrr_export.demo.tasks import Task
from skrr_export.demo.world import SIDE
from skrr_export.page.markup import Markup, element, joined

SHOWN = 2
"""Prompts of each category that are shown."""
_COLUMNS = 2
"""Tables side by side, where the window is wide enough."""


def grid_section(demo: Demo, images: Mapping[str, Images]) -> Markup:
    """The images of the first prompts of each category.

    Args:
        demo: of the run.
        images: by the names of the encoders.
    """
    note = (
        f"The first {SHOWN} prompts of each category, not the best ones; in a row all three images start from the same "
        "noise. The mark is the judge's, a program that reads shapes, colours and places from the pixels: does the "
        "image show what was asked? A pointer over an image tells what it sees there."
    )
    shown = list(_first(demo.tasks))
    half = -(-len(shown) // _COLUMNS)
    tables = [_table(demo, images, shown[begin : begin + half]) for begin in range(0, len(shown), half)]
    return element(
        "section",
        element("h2", "Images"),
        element("p", note, class_="note"),
        element("div", *tables, class_="grids"),
        id="images",
    )


def _first(tasks: Sequence[Task]) -> Iterator[int]:
    """Numbers of the tasks that are shown."""
    seen: Counter[str] = Counter()
    for index, task in enumerate(tasks):
        seen[task.category] += 1
        if seen[task.category] <= SHOWN:
            yield index


def _table(demo: Demo, images: Mapping[str, Images], shown: Sequence[int]) -> Markup:
    heads = [element("th", title, scope="col") for title in ("prompt", *(one.title for one in demo.variants))]
    rows = [
        element(
            "tr",
            _prompt(demo.tasks[index]),
            *(_cell(variant, images[variant.name][index], variant.met[index]) for variant in demo.variants),
        )
        for index in shown
    ]
    return element(
        "table", element("thead", element("tr", *heads)), element("tbody", joined(rows, "\n")), class_="images"
    )


def _prompt(task: Task) -> Markup:
    held_out = "" if task.is_trained else ", with something that was never trained together"
    return element(
        "th",
        element("span", task.prompt, class_="asked"),
        element("span", f"{task.category}{held_out}", class_="category"),
        scope="row",
    )


def _cell(variant: Variant, image: Image, met: bool) -> Markup:
    seen = describe(image)
    drawn = element(
        "img",
        src=_data(image),
        alt=f"{variant.title}: {seen}",
        title=f"{variant.title}. The judge sees {seen}.",
        width=SIDE,
        height=SIDE,
    )
    verdict = "shows what was asked" if met else "does not show what was asked"
    kind = "mark-yes" if met else "mark-no"
    mark = element("span", "✓" if met else "✕", class_=kind, role="img", aria_label=verdict, title=verdict)
    return element("td", element("div", drawn, mark, class_="drawn"))


def describe(image: Image) -> str:
    """What the judge sees in an image, in words."""
    things = [f"a {thing.size} {thing.texture} {thing.colour} {thing.shape}" for thing in read(image).things]
    return listed(things) if things else "no shape that it knows"


def _data(image: Image) -> str:
    """An image as a PNG in an address."""
    from PIL import Image as Pillow

    buffer = io.BytesIO()
    Pillow.fromarray(image).save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
