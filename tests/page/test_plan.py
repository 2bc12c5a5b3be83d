"""The page about a plan."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skrr_export.page.plan import page
from skrr_export.plan import Plan
from skrr_export.plan_view import summary
from tests import bundles
from tests.page.provenances import PROVENANCES, provenance
from tests.page.reading import Reader, classed, definitions, headings, rows, section, text_of, tiles

MINUS = "\N{MINUS SIGN}"
SOURCES = ((1, 0), (1, 2), (2, 2), (None, 3))
"""Units 0 and 3 are re-used, 6 is skipped, as `provenance` has it."""


def plan(document: Mapping[str, Any] | None = None, sources: Any = SOURCES, family: str = "t5") -> Plan:
    """A plan of four layers with what a search writes about it, unless told otherwise."""
    return Plan(family, sources, provenance() if document is None else document)


def read(shown: Plan, others: Mapping[str, Plan] | None = None) -> ET.Element:
    """The page of a plan, as a tree."""
    return Reader(page(shown, others or {})).root


# The numbers at the top


def test_the_headline_has_the_numbers_of_the_plan() -> None:
    root = read(plan())
    assert text_of(root.find(".//h1")) == "text_encoder_2"
    assert (
        text_of(classed(root, "lede")[0])
        == summary(plan())
        == ("t5, 4 layers: 5 sub-blocks kept, 2 re-used, 1 skipped")
    )
    assert tiles(root) == {
        "Sparsity": ("41.9%", "40.0% wanted"),
        "Discrepancy D": ("0.0123", "4.10% of the dense mean square"),
        "Sub-blocks kept": ("5 of 8", "7 run, 1 skipped"),
    }


def test_the_two_terms_of_the_discrepancy_share_a_bar() -> None:
    (terms,) = classed(read(plan()), "terms")
    assert text_of(terms) == "0.0101 on the prompts0.00220 on the empty prompt"
    assert [part.get("style") for part in classed(terms, "split")[0]] == ["width:82.1%", "width:17.9%"]


def test_what_was_measured_and_how_is_told() -> None:
    told = definitions(read(plan()))
    assert told == {
        "Method": "Skrr+",
        "Measured": "after context_embedder.weight [3072, 4096] of diffusion_pytorch_model.safetensors",
        "Prompts": told["Prompts"],
        "Pipeline": "flux.1",
        "beam": "3",
        "granularity": "sub-block",
        "reuse": "yes",
        "seed": "0",
        "dtype": "fp32",
        "Checkpoint": f"{'7c' * 8}…",
        "Search": "123.5 million sub-block tokens",
        "Naive loop": "987.7 million, 8.0 times as much",
        "torch": "2.13.0",
        "transformers": "5.23.0",
    }
    assert "391, 70,234 tokens, 3 truncated" in text_of(read(plan()))
    assert text_of(classed(read(plan()), "headline")[0]).endswith("flux.1")
    embedding = provenance(discrepancy={"value": 1, "space": "embedding"}, source="a paper")
    told = definitions(read(plan(embedding)))
    assert (told["Measured"], told["Order from"]) == ("on the embedding itself", "a paper")


def test_the_whole_of_a_hash_can_be_had() -> None:
    titles = [code.get("title") for code in read(plan()).iter("code") if code.get("title")]
    assert titles == ["7c" * 32, "a3" * 32]


def test_a_plan_without_provenance_shows_what_it_has() -> None:
    root = read(plan({}))
    assert text_of(root.find(".//h1")) == "t5 encoder"
    assert list(tiles(root)) == ["Sub-blocks kept"]
    assert headings(root) == ["Re-uses"]
    assert definitions(root) == {}
    assert "What this plan costs is not recorded in its file." in text_of(root)
    assert rows(section(root, "Re-uses")) == [
        ["in place of", "runs", "gain"],
        ["0 layer 0 attention", "2 layer 1", "not recorded"],
        ["3 layer 1 feed-forward", "5 layer 2", "not recorded"],
    ]
    assert headings(read(Plan.identity("bert", 2))) == []


def test_the_plan_is_drawn() -> None:
    root = read(plan())
    (picture,) = classed(root, "plan")
    assert picture.get("aria-label") == summary(plan())
    cells = [shape for shape in picture.iter("rect") if shape.get("rx")]
    assert [cell.get("class") for cell in cells] == [position.action for position in plan().positions()]
    assert [text_of(cell) for cell in cells] == [f"unit {unit}" for unit in range(8)]
    assert len(classed(picture, "arrow")) == 2


# Re-uses


def test_every_re_use_has_a_row_with_its_gain() -> None:
    table = section(read(plan()), "Re-uses")
    assert rows(table) == [
        ["in place of", "runs", "D without", "D with", "gain"],
        ["3 layer 1 feed-forward", "5 layer 2", "0.0153", "0.0123", f"0.00300 ({MINUS}19.6%)"],
        ["0 layer 0 attention", "2 layer 1", "0.0128", "0.0123", f"0.00050 ({MINUS}3.9%)"],
    ]
    assert [bar[0].get("style") for bar in classed(table, "bar")] == ["width:100.0%", "width:16.7%"]


def test_a_re_use_that_is_recorded_otherwise_has_no_gain() -> None:
    """Not of another source, nor of a position that the plan keeps."""
    reuses = [
        {"unit": 3, "source": 1, "before": 0.5, "D": 0.1},
        {"unit": 5, "source": 1, "before": 0.5, "D": 0.1},
        {"unit": 0, "source": 2, "before": 0.1, "D": 0.5},
    ]
    table = rows(section(read(plan(provenance(reuses=reuses))), "Re-uses"))
    assert table[1:] == [
        ["0 layer 0 attention", "2 layer 1", "0.100", "0.500", f"{MINUS}0.4 (+400.0%)"],
        ["3 layer 1 feed-forward", "5 layer 2", "", "", "not recorded"],
    ]


@given(bundles.plans(5))
def test_no_re_use_is_missing(sources: Any) -> None:
    shown = plan({"method": "random"}, tuple(sources))
    reused = [position for position in shown.positions() if position.action == "re-use"]
    if not reused:
        assert "Re-uses" not in headings(read(shown))
        return
    assert [row[0].split()[0] for row in rows(section(read(shown), "Re-uses"))[1:]] == [
        str(position.unit) for position in reused
    ]


# The order


def test_the_order_is_told_with_what_else_was_tried() -> None:
    part = section(read(plan()), "Order of dropping")
    assert text_of(part.find(".//code")) == "6, 3, 0"
    assert rows(part) == [
        ["step", "dropped", "D after", "next best", "tried"],
        ["1", "6 layer 3 attention", "0.0010", "1 0.00120 +20.0% 4 0.00140 +40.0%", "3 measured, 1 cut short"],
        ["2", "3 layer 1 feed-forward", "0.0050", "0 0.00550 +10.0%", "2 measured"],
        ["3", "0 layer 0 attention", "0.0123", "", ""],
    ]
    assert "won in the end" not in text_of(part)


def test_only_the_best_of_many_candidates_are_named() -> None:
    candidates = {str(unit): 1.0 + unit / 8 for unit in range(8)}
    steps = [{"units": [0], "D": 1.0, "candidates": candidates}]
    (_, row) = rows(section(read(plan(provenance(steps=steps))), "Order of dropping"))
    assert row[3:] == ["1 1.12 +12.5% 2 1.25 +25.0% 3 1.38 +37.5% 4 1.50 +50.0%", "8 measured"]


def test_a_layer_that_is_dropped_whole_is_named_once() -> None:
    steps = [{"units": [2, 3], "D": 0.5, "candidates": {"2,3": 0.5, "6,7": 10}}, {"units": [0, 5], "D": 0}]
    table = rows(section(read(plan(provenance(steps=steps))), "Order of dropping"))
    assert [row[1] for row in table[1:]] == ["2, 3 layer 1", "0 layer 0 attention, 5 layer 2 feed-forward"]
    assert table[1][3] == "6,7 10.0 20.0-fold"


def test_an_order_without_steps_is_a_line() -> None:
    document = {"method": "order", "order": "6,3,0,1", "drop": 3, "reuse": ""}
    part = section(read(plan(document)), "Order of dropping")
    assert text_of(part.find(".//code")) == "6, 3, 0"
    assert part.find(".//table") is None


def test_steps_that_mean_something_else_are_explained() -> None:
    part = section(read(plan(provenance(order=[3, 6, 0]))), "Order of dropping")
    assert "the order above is the one that won in the end" in text_of(part)
    assert "plain error of the embedding" not in text_of(part)
    part = section(read(plan(provenance("finercut"))), "Order of dropping")
    assert "FinerCut chooses by the plain error of the embedding" in text_of(part)


# The comparison


def test_the_curves_of_all_methods_are_drawn_and_listed() -> None:
    finercut = provenance("finercut", curves=[{"name": "skip", "points": [[0.2, 0.01], [0.4, 0.05]]}])
    finercut["sparsity"]["reached"], finercut["discrepancy"]["value"] = 0.4, 0.05
    uniform = provenance("uniform", curves=[])
    uniform["discrepancy"]["value"] = 0.07
    others = {"runs/finercut.json": plan(finercut), "uniform.json": plan(uniform), "silent.json": plan({})}
    part = section(read(plan(), others), "What sparsity costs")
    assert rows(part) == [
        ["line", "plan", "sparsity", "D"],
        ["Skrr+, skip", "this plan", "41.9%", "0.0200"],
        ["Skrr+, skip + re-use", "this plan", "41.9%", "0.0123"],
        ["FinerCut", "runs/finercut.json", "40.0%", "0.0500"],
        ["Uniform", "uniform.json", "41.9%", "0.0700"],
    ]
    assert classed(part, "warning") == []
    wide, narrow = classed(part, "chart")
    for chart in (wide, narrow):
        lines = [line for line in chart.iter("polyline") if line.get("points")]
        assert len(lines) == 3
        assert all(line.get("stroke-dasharray") is None for line in lines)
        assert [marker.get("class") for marker in classed(chart, "marker")] == ["marker c2", "marker c5", "marker c0"]
    assert sorted(map(text_of, classed(wide, "label"))) == sorted(row[0] for row in rows(part)[1:])
    assert list(map(text_of, wide.iter("text")))[-1] == "Skrr+, skip + re-use"


def test_methods_far_apart_share_a_logarithmic_chart() -> None:
    random = provenance("random", curves=[{"name": "skip", "points": [[0.2, 0.5], [0.4, 5]]}])
    text = page(plan(), {"random.json": plan(random)})
    assert text.count("D, logarithmic") == 2
    assert "logarithmic" not in page(plan(), {})


def _changed(key: str, **changes: Any) -> dict[str, Any]:
    document = provenance("skrr")
    document[key] = {**document[key], **changes}
    return document


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (plan(_changed("calibration", sha256="other")), "other calibration prompts"),
        (plan(_changed("calibration", sha256=None)), "what it was measured on is not recorded"),
        (plan(_changed("discrepancy", space="embedding")), "another place of measurement"),
        (plan(_changed("checkpoint", sha256="other")), "another checkpoint"),
        (plan(provenance("skrr"), family="bert"), "another encoder"),
        (plan(provenance("skrr"), sources=(*SOURCES, (4, 4))), "another encoder"),
    ],
)
def test_curves_that_cannot_be_compared_are_dashed_and_said_to_be(other: Plan, reason: str) -> None:
    part = section(read(plan(), {"other.json": other}), "What sparsity costs")
    assert [text_of(warning) for warning in classed(part, "warning")] == [
        f"Dashed lines are not comparable with this plan's. Skrr: {reason}."
    ]
    dashes = [line.get("stroke-dasharray") for line in part.iter("polyline")]
    assert dashes == 2 * ["5 4", "5 4", None, None]
    assert [mark.get("class") for mark in classed(part, "dashed")] == 2 * ["stroke c1 dashed"]


def test_plans_of_one_method_are_told_apart() -> None:
    curves = [{"name": "skip", "points": [[0.1, 0.1]]}]
    twins = {
        "a/one.json": plan(provenance("skrr+", curves=curves)),
        "b/two.json": plan(provenance("skrr+", curves=curves)),
    }
    part = section(read(plan(), twins), "What sparsity costs")
    assert [row[0] for row in rows(part)[3:]] == ["Skrr+ (one.json)", "Skrr+ (two.json)"]
    strokes = [str(mark.get("class")) for mark in classed(part, "stroke")]
    assert strokes[0] == strokes[1] == "stroke c0"
    assert len(set(strokes)) == 3
    twins = {"a/plan.json": plan({**provenance(), "method": None}), "b/plan.json": plan(provenance("laco"))}
    labels = [row[0] for row in rows(section(read(plan(), twins), "What sparsity costs"))[1:]]
    assert labels[2:] == ["a/plan.json, skip", "a/plan.json, skip + re-use", "LaCo, skip", "LaCo, skip + re-use"]


def test_more_plans_than_colours_can_be_compared() -> None:
    others = {f"{index}.json": plan(provenance("skrr")) for index in range(20)}
    root = read(plan(), others)
    assert len(rows(section(root, "What sparsity costs"))) == 1 + 2 * 21
    assert {str(mark.get("class")) for mark in classed(root, "stroke")} == {f"stroke c{colour}" for colour in range(8)}


def test_a_single_point_is_a_curve() -> None:
    document = provenance(curves=[{"name": "skip", "points": [[0.419, 0.0123]]}])
    part = section(read(plan(document)), "What sparsity costs")
    assert rows(part)[1:] == [["Skrr+", "this plan", "41.9%", "0.0123"]]


# All pages


EVIL = "</style></title><script>alert('x')</script><img src=x onerror=\"alert(1)\">&amp;"


def test_what_users_wrote_is_text() -> None:
    document = provenance(
        EVIL,
        tool=EVIL,
        source=EVIL,
        settings={EVIL: EVIL},
        versions={EVIL: EVIL},
        checkpoint={"name": EVIL, "sha256": EVIL},
        calibration={"pipeline": EVIL, "prompts": 3, "sha256": EVIL},
        discrepancy={"value": 1, "space": EVIL},
        curves=[{"name": EVIL, "points": [[0.1, 0.1]]}, {"name": EVIL, "points": [[0.1, 0.1]]}],
        steps=[{"units": [0], "D": 1, "candidates": {EVIL: 2}, "above": {EVIL: 3}}],
    )
    root = read(plan(document), {EVIL: plan(document), "other.json": plan(_changed("calibration", sha256=EVIL))})
    assert {part.tag for part in root.iter()} == {part.tag for part in read(plan(), {"a": plan()}).iter()} | {"footer"}
    attributes = {key for part in root.iter() for key in part.attrib}
    assert not {key for key in attributes if key.startswith("on")}
    assert not attributes & {"src", "href"}
    assert text_of(root.find(".//h1")) == EVIL
    assert definitions(root)["Measured"] == f"after {EVIL}"
    assert definitions(root)[EVIL] == EVIL
    assert text_of(root.find(".//title")).startswith(f"{EVIL}: t5, 4 layers")


def test_names_that_are_no_text_are_shown_as_far_as_they_go() -> None:
    root = read(plan(), {"\udcff\x00.json": plan(provenance("skrr"))})
    assert rows(section(root, "What sparsity costs"))[3][1] == "\ufffd\ufffd.json"


def test_the_page_needs_nothing_from_elsewhere() -> None:
    text = page(plan(), {"other.json": plan(provenance("laco"))})
    assert not re.findall(r"https?:|url\(|<script|<link|<img|@import|\bsrc=|\bhref=|xmlns", text)
    root = Reader(text).root
    policies = [meta.get("content") for meta in root.iter("meta") if meta.get("http-equiv")]
    assert policies == ["default-src 'none'; style-src 'unsafe-inline'"]
    assert text.startswith('<!doctype html>\n<html lang="en">')


def test_every_class_of_the_chart_is_styled() -> None:
    text = page(plan(), {"other.json": plan(provenance("laco"))})
    style = text.partition("<style>")[2].partition("</style>")[0]
    root = Reader(text).root
    used = {name for svg in root.iter("svg") for part in svg.iter() for name in part.get("class", "").split()}
    assert used <= set(re.findall(r"\.([a-z][a-z0-9-]*)", style))
    assert set(re.findall(r"var\((--[a-z0-9-]+)", style)) <= set(re.findall(r"(--[a-z0-9-]+):", style))


def test_the_same_plans_give_the_same_page() -> None:
    others = {"other.json": plan(provenance("laco"))}
    again = {name: Plan.from_json(other.to_json()) for name, other in others.items()}
    assert page(plan(), others) == page(Plan.from_json(plan().to_json()), again)


def test_a_plan_of_many_layers_has_its_details_below() -> None:
    few = headings(read(plan()))
    assert few == ["Re-uses", "Details", "What sparsity costs", "Order of dropping"]
    many = plan(sources=(*SOURCES, *((layer, layer) for layer in range(4, 13))))
    assert headings(read(many)) == ["Re-uses", "What sparsity costs", "Order of dropping", "Details"]


PLANS = st.builds(plan, PROVENANCES, bundles.plans(4).map(tuple))
NUMBER = re.compile(r"(?<![a-z])(nan|inf|infinity|none|null)(?![a-z])", re.IGNORECASE)


@bundles.examples(50)
@given(PLANS, st.dictionaries(st.text(max_size=5), PLANS, max_size=3))
def test_any_provenance_gives_a_good_page(shown: Plan, others: dict[str, Plan]) -> None:
    text = page(shown, {re.sub("[nN]", "", name): other for name, other in others.items()})
    assert text.encode()
    root = Reader(text).root
    body = root.find("body")
    assert body is not None
    assert not NUMBER.search(text_of(body))
    for part in body.iter():
        for key in part.attrib.keys() - {"class", "fill", "title", "pointer-events"}:
            assert not NUMBER.search(part.get(key, "")), (key, part.get(key))
    for svg in re.findall(r"<svg.*?</svg>", text, re.DOTALL):
        ET.fromstring(svg)
