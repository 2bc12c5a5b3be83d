"""The demo's report: what it shows of a run, and that a browser needs nothing else to show it."""

from __future__ import annotations

import base64
import io
import json
import re
from collections import Counter
from dataclasses import replace
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from PIL import Image

from skrr_export import strict_json
from skrr_export.demo.record import TITLES, Demo
from skrr_export.demo.report.grid import SHOWN, describe
from skrr_export.demo.report.page import page
from skrr_export.demo.tasks import CATEGORIES
from skrr_export.demo.world import SIDE, Scene, Thing
from skrr_export.plan import Plan
from tests.demo.reports import changed, demo, images, tasks, variant, verification
from tests.page.measurements import subject
from tests.page.reading import Reader, classed, definitions, headings, rows, section, text_of, tiles
from tests.page.test_markup import plain


def read(run: Demo) -> ET.Element:
    """The report of a run, as a tree; what must hold for every one is checked."""
    text = page(run, images())
    root = Reader(text).root
    body = root.find("body")
    assert body is not None
    assert not re.search(r"\b(None|nan|inf|null)\b", text_of(body))
    identities = {part.get("id") for part in body.iter() if part.get("id")}
    assert {link.get("href", "").removeprefix("#") for link in body.iter("a")} <= identities
    assert all(text_of(cell) for cell in body.iter("td"))
    return root


def table(root: ET.Element, heading: str) -> list[list[str]]:
    """The cells of a section's table."""
    return [[plain(cell) for cell in row] for row in rows(section(root, heading))]


def pictures(root: ET.Element) -> list[np.ndarray]:
    """What a browser shows of the images, in order."""
    found = []
    for part in root.iter("img"):
        kind, _, content = part.get("src", "").partition(",")
        assert kind == "data:image/png;base64"
        found.append(np.asarray(Image.open(io.BytesIO(base64.b64decode(content, validate=True)))))
    return found


def badges(root: ET.Element) -> list[str]:
    return [part.get("class", "") for part in classed(root, "badge")]


def test_the_report_is_whole() -> None:
    root = read(demo())
    assert headings(root) == ["Images", "Scores", "Memory and time", "Fidelity", "Plans", "Limits", "Go on"]
    assert text_of(root.find(".//title")) == "Skrr in pictures: 35.0% of the text encoder gone"
    assert badges(root) == ["badge passed"]


def test_it_needs_nothing_from_elsewhere_and_may_show_its_own_images() -> None:
    text = page(demo(), images())
    root = Reader(text).root
    policies = [meta.get("content") for meta in root.iter("meta") if meta.get("http-equiv")]
    assert policies == ["default-src 'none'; style-src 'unsafe-inline'; img-src data:"]
    assert not {"script", "link", "iframe"} & {part.tag for part in root.iter()}
    assert not re.search(r"url\(|@import|https?:", text)
    assert page(demo(), images()) == text


def test_the_numbers_that_matter_come_first() -> None:
    found = tiles(read(demo()))
    assert list(found) == ["Encoder's size saved", "Score kept", "Drift"]
    assert found["Encoder's size saved"] == ("35.0%", "5.0 MiB of weights, 7.6 MiB before")
    whole, skip, kept = (variant(name).scores["overall"] for name in TITLES)
    assert float(found["Score kept"][0].rstrip("%")) == pytest.approx(100 * kept / whole, abs=0.05)
    assert all(f"{score:.2f}" in found["Score kept"][1] for score in (whole, skip, kept))
    assert plain(found["Drift"][0]) == "6.00x10⁻⁷"


def test_a_model_that_draws_nothing_right_has_no_score_to_keep() -> None:
    root = read(changed("dense", scores={**variant("dense").scores, "overall": 0.0}))
    assert tiles(root)["Score kept"][0] == "nothing to keep"


def test_drift_that_is_not_finite_is_said_to_be_so() -> None:
    root = read(changed("skip", verification=verification(None, "drift is not finite")))
    assert tiles(root)["Drift"][0] == "not finite"
    assert table(root, "Fidelity")[2][1:3] == ["FAILED", "not measured"]


# Images


def test_the_images_are_those_of_the_first_prompts_of_each_category() -> None:
    root = read(demo())
    first: Counter[str] = Counter()
    expected = []
    for index, task in enumerate(tasks()):
        first[task.category] += 1
        if first[task.category] <= SHOWN:
            expected.append(index)
    assert len(expected) == SHOWN * len(CATEGORIES)
    assert [text_of(part) for part in classed(root, "asked")] == [tasks()[index].prompt for index in expected]
    shown = pictures(root)
    assert len(shown) == 3 * len(expected)
    for row, index in enumerate(expected):
        for column, name in enumerate(TITLES):
            assert np.array_equal(shown[3 * row + column], images()[name][index])


def test_every_image_has_the_judges_mark_and_what_it_sees() -> None:
    root = read(demo())
    assert not all(variant("skip").met)
    for part in (row for row in section(root, "Images").iter("tr") if row.find("td") is not None):
        prompt = text_of(classed(part, "asked")[0])
        index = [task.prompt for task in tasks()].index(prompt)
        marks = [mark.get("class") for cell in part.iter("td") for mark in cell.iter("span")]
        expected = ["mark-yes" if variant(name).met[index] else "mark-no" for name in TITLES]
        assert marks == expected
        for name, image in zip(TITLES, part.iter("img"), strict=True):
            assert image.get("alt") == f"{TITLES[name]}: {describe(images()[name][index])}"


def test_images_are_shown_pixel_by_pixel() -> None:
    text = page(demo(), images())
    assert re.search(r"\.images img \{[^}]*image-rendering: pixelated", text)
    assert {part.get("width") for part in Reader(text).root.iter("img")} == {str(SIDE)}


def test_what_was_held_out_of_training_is_marked() -> None:
    root = read(demo())
    asked = {task.prompt: task for task in tasks()}
    for row in (row for row in section(root, "Images").iter("tr") if row.find("td") is not None):
        task = asked[text_of(classed(row, "asked")[0])]
        assert ("never trained" in text_of(classed(row, "category")[0])) == (not task.is_trained)


def test_a_prompt_cannot_become_markup() -> None:
    hostile = replace(tasks()[0], prompt="<script>alert(1)</script>")
    root = read(demo(tasks=(hostile, *tasks()[1:])))
    assert text_of(classed(root, "asked")[0]) == hostile.prompt


def test_what_the_judge_sees_in_words() -> None:
    from skrr_export.demo.images import draw

    circle = Thing("circle", "red", "small", "plain", 8, 8)
    ring = Thing("ring", "blue", "large", "striped", 20, 20)
    assert describe(draw(Scene((), "grey"))) == "no shape that it knows"
    assert describe(draw(Scene((circle,), "grey"))) == "a small plain red circle"
    assert describe(draw(Scene((circle, ring), "white"))) == ("a small plain red circle and a large striped blue ring")


# Numbers


def test_scores_stand_by_category() -> None:
    head, *body = table(read(demo()), "Scores")
    assert head == ["category", *TITLES.values()]
    assert [row[0] for row in body] == [*CATEGORIES, "overall", "distance to the dense images"]
    for category, row in zip(CATEGORIES, body, strict=False):
        assert row[1:] == [f"{variant(name).scores[category]:.2f}" for name in TITLES]
    assert body[-2][3] == f"{variant('skrr').scores['overall']:.2f} ± {variant('skrr').margin:.2f}"
    assert body[-1][1] == "0"
    assert float(body[-1][2]) == pytest.approx(variant("skip").distance, rel=0.01)


def test_costs_are_in_charts_and_a_table() -> None:
    root = read(demo())
    head, *body = table(root, "Memory and time")
    assert [row[0] for row in body] == list(TITLES.values())
    assert body[0] == ["Dense", "7.6", "219", "36", "183", "230", "3.16", "101"]
    assert head[-2:] == ["one prompt, ms", "32 prompts at once, ms"]
    charts = classed(root, "bars")
    assert [chart.get("role") for chart in charts] == ["img"] * 3
    assert "Skrr: 2.45 ms" in str(charts[1].get("aria-label"))
    assert "0.77 x dense" in plain(text_of(charts[1]))


def test_an_encoder_that_was_not_measured_says_why() -> None:
    root = read(changed("skrr", measured=subject("skrr", "Skrr", role="target", error="its process was killed")))
    assert "not measured: its process was killed" in text_of(classed(root, "bars")[1])
    assert table(root, "Memory and time")[3][2:] == ["not measured"] * 6


def test_drift_and_loss_stand_side_by_side() -> None:
    assert table(read(demo()), "Fidelity")[1:] == [
        ["Dense", "passed", "4.00x10⁻⁷", "5.00x10⁻⁵", "1 - 7.20x10⁻¹³", "none", "none"],
        ["Skip only", "passed", "5.00x10⁻⁷", "5.00x10⁻⁵", "1 - 1.12x10⁻¹²", "0.310", "0.9519"],
        ["Skrr", "passed", "6.00x10⁻⁷", "5.00x10⁻⁵", "1 - 1.62x10⁻¹²", "0.220", "0.9758"],
    ]


def test_a_check_that_failed_stands_at_the_top() -> None:
    run = changed("skrr", verification=verification(0.2, "drift, relative L2 0.2 exceeds 5e-05"))
    assert not run.passed
    root = read(run)
    assert badges(root) == ["badge failed"]
    assert [text_of(item) for item in section(root, "What failed").iter("li")] == [
        "Skrr: drift, relative L2 0.2 exceeds 5e-05"
    ]
    assert [row[1] for row in table(root, "Fidelity")[1:]] == ["passed", "passed", "FAILED"]


# Plans and files


def test_both_plans_are_drawn_with_what_they_cost() -> None:
    part = section(read(demo()), "Plans")
    assert [drawing.get("class") for drawing in part.iter("svg")] == ["plan", "plan"]
    skip, skrr = classed(part, "plans")[0]
    assert definitions(skip)["Method"] == "Skrr, without re-use"
    assert definitions(skrr)["Method"] == "Skrr+"
    assert definitions(skrr)["Captions"] == "391"
    assert definitions(skrr)["D"].startswith("0.0123")
    assert "searched in this run" in text_of(part)


def test_a_plan_without_provenance_is_drawn_all_the_same() -> None:
    part = section(read(changed("skrr", plan=Plan.identity("t5", 4))), "Plans")
    assert set(definitions(classed(part, "plans")[0][1])) == {"Parameters", "File"}


def test_shipped_plans_are_said_to_be_so() -> None:
    assert "come with the package" in text_of(section(read(demo(fast=True)), "Plans"))


def test_limits_are_stated() -> None:
    text = text_of(section(read(demo()), "Limits"))
    assert "toy world" in text
    assert "33.3% of this model" in text
    assert f"{len(tasks())} images" in text


def test_the_commands_name_files_beside_the_page() -> None:
    (code,) = section(read(demo()), "Go on").iter("code")
    assert {"skrr.bundle", "plans/skrr+.json", "plans/skip.json"} <= set(text_of(code).split())


# The document


def test_the_document_holds_what_the_report_shows() -> None:
    run = demo()
    document = strict_json.loads(run.to_json())
    assert document == json.loads(json.dumps(run.to_dict()))
    assert (document["format"], document["passed"]) == ("skrr-demo/1", True)
    assert [one["bundle"] for one in document["encoders"]] == ["dense.bundle", "skip.bundle", "skrr.bundle"]
    assert [one["plan"] for one in document["encoders"]] == [None, "plans/skip.json", "plans/skrr+.json"]
    for one in document["encoders"]:
        name = one["name"]
        assert one["scores"] == variant(name).scores
        assert tuple(task["met"][name] for task in document["tasks"]) == variant(name).met
    assert [task["prompt"] for task in document["tasks"]] == [task.prompt for task in tasks()]
    assert {task["trained"] for task in document["tasks"]} == {True, False}
