"""The report of a measurement."""

from __future__ import annotations

import json
import random
import re
import types
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from typing import Any, get_args, get_type_hints
from xml.etree import ElementTree as ET

import pytest

from skrr_export.errors import PlanError
from skrr_export.measure.record import Agreement, Measurement, SubjectRecord, Verdict
from skrr_export.page.measurement import page
from tests.page import measurements
from tests.page.measurements import CRASH, EXAMPLES, PROMPTS, SKIPPED, full, gpu, hollow, nothing, with_failures
from tests.page.reading import Reader, classed, definitions, headings, rows, section, text_of, tiles
from tests.page.test_markup import plain

ABSENT = "not measured"


def read(measurement: Measurement) -> ET.Element:
    """The page of a measurement, as a tree."""
    return Reader(page(measurement)).root


def block(root: ET.Element, heading: str) -> ET.Element:
    """The part under a smaller heading."""
    (found,) = (part for part in root.iter("div") if part.findtext("h3") == heading)
    return found


def table(part: ET.Element, number: int = 0) -> list[list[str]]:
    """The cells of one of a part's tables."""
    return [[plain(cell) for cell in row] for row in rows(list(part.iter("table"))[number])]


def bars(part: ET.Element, number: int = 0) -> dict[str, ET.Element]:
    """The rows of one of a part's charts, by their subjects."""
    found = classed(classed(part, "bars")[number], "bar-row")
    return {text_of(row.find(".//code")): row for row in found if row.find(".//code") is not None}


def sizes(row: ET.Element) -> list[float]:
    """How long the pieces of a bar are, in percent."""
    return [float(piece.get("width", "").removesuffix("%")) for piece in row.iter("rect")]


def changed(measurement: Measurement, name: str, **changes: Any) -> Measurement:
    """The same with a subject that differs."""
    subjects = (replace(one, **changes) if one.name == name else one for one in measurement.subjects)
    return replace(measurement, subjects=tuple(subjects))


# Any measurement


def check(measurement: Measurement) -> ET.Element:
    """What must hold for every page; returns its tree."""
    text = page(measurement)
    root = Reader(text).root
    body = root.find("body")
    assert body is not None
    assert not re.search(r"\b(None|nan|inf|null)\b", text_of(body))
    for part in body.iter():
        for key in part.attrib.keys() - {"class", "title", "fill"}:
            assert not re.search(r"\b(None|nan|inf)\b", part.get(key, "")), (key, part.get(key))
        if part.tag == "td" and part.get("class") != "remarks":
            assert text_of(part)
        if part.tag == "svg" or "bars" in part.get("class", "").split():
            assert part.get("role") == "img" or {"track", "scale"} & set(part.get("class", "").split())
            assert part.get("role") != "img" or part.get("aria-label")
        if part.tag in {"rect", "circle", "line"} and part.get("width", "").endswith("%"):
            assert 0 <= float(part.get("width", "").removesuffix("%")) <= 100
    identities = [part.get("id") for part in body.iter() if part.get("id")]
    assert len(set(identities)) == len(identities)
    assert {link.get("href", "").removeprefix("#") for link in body.iter("a")} <= set(identities)
    return root


@pytest.mark.parametrize("make", EXAMPLES.values(), ids=EXAMPLES)
def test_every_page_is_whole(make: Callable[[], Measurement]) -> None:
    root = check(make())
    assert headings(root)[-6:] == [
        "Memory",
        "Memory, stage by stage",
        "Latency",
        "Cold start",
        "Fidelity",
        "Environment",
    ]


def thinned(value: Any, chance: random.Random) -> Any:
    """The same with some of what may be missing taken out."""
    if isinstance(value, tuple):
        return tuple(thinned(item, chance) for item in value)
    if not is_dataclass(value) or isinstance(value, type):
        return value
    hints = get_type_hints(type(value))
    changes = {}
    for field in fields(value):
        optional = isinstance(hints[field.name], types.UnionType) and types.NoneType in get_args(hints[field.name])
        gone = optional and chance.random() < 0.3
        changes[field.name] = None if gone else thinned(getattr(value, field.name), chance)
    return replace(value, **changes)


@pytest.mark.parametrize("seed", range(12))
def test_anything_that_may_be_missing_may_be_missing(seed: int) -> None:
    chance = random.Random(seed)
    check(thinned(chance.choice([full, gpu, with_failures])(), chance))


def test_the_page_needs_nothing_from_elsewhere() -> None:
    text = page(full())
    root = Reader(text).root
    policies = [meta.get("content") for meta in root.iter("meta") if meta.get("http-equiv")]
    assert policies == ["default-src 'none'; style-src 'unsafe-inline'"]
    assert not {"script", "link", "img", "iframe"} & {part.tag for part in root.iter()}
    assert not re.search(r"url\(|@import|https?:", text)
    assert page(full()) == text


def test_every_class_of_a_chart_is_styled() -> None:
    text = page(gpu()) + page(full())
    style = text.partition("<style>")[2].partition("</style>")[0]
    used = {
        name
        for make in (gpu, full)
        for part in read(make()).iter()
        if part.tag in {"svg", "rect", "line", "circle", "text"}
        for name in part.get("class", "").split()
    }
    assert used <= set(re.findall(r"\.([a-z][a-z0-9-]*)", style))
    assert set(re.findall(r"var\((--[a-z0-9-]+)", style)) <= set(re.findall(r"(--[a-z0-9-]+):", style))


HOSTILE = "<script>alert(1)</script>\"'&<b>\ud800\x00\u202e"


def hostile(value: Any, keep: frozenset[str] = frozenset({"role", "family", "device", "format"})) -> Any:
    """The same with every text replaced, but for those that are not a user's."""
    if isinstance(value, str):
        return f"{value}{HOSTILE}"
    if isinstance(value, tuple):
        return tuple(hostile(item) for item in value)
    if not is_dataclass(value) or isinstance(value, type):
        return value
    plan_and_numbers = {"plan", "cosine_distances", "stages", "ratios", "error_quantiles", "memory_sources"}
    return replace(
        value,
        **{
            field.name: hostile(getattr(value, field.name))
            for field in fields(value)
            if field.name not in keep | plan_and_numbers
        },
    )


def test_what_a_user_wrote_stays_text() -> None:
    clean, attacked = (page(measurement) for measurement in (full(), hostile(with_failures())))
    assert attacked.encode()
    root = Reader(attacked).root
    assert {part.tag for part in root.iter()} <= {part.tag for part in Reader(clean).root.iter()} | {"li"}
    assert not [key for part in root.iter() for key in part.attrib if key.startswith("on")]
    written = HOSTILE.replace("\ud800", "\ufffd").replace("\x00", "\ufffd").replace("\u202e", "\ufffd")
    title = root.findtext("head/title")
    assert title is not None
    assert title.startswith("script>")  # the name is what follows the path's last slash
    assert f"{CRASH}{written}" in text_of(section(root, "Latency"))
    assert f"{PROMPTS[5]}{written}" in text_of(block(root, "Prompts with the largest drift"))


def test_lines_of_a_message_stay_lines() -> None:
    attacked = changed(full(), "onnx", notes=("one\ntwo\tthree",))
    assert "one\ntwo\tthree" in page(attacked)


def test_a_measurement_of_no_plan_is_refused() -> None:
    whole = full()
    with pytest.raises(PlanError):
        page(replace(whole, bundle=replace(whole.bundle, plan={})))


# The top


def test_the_title_says_what_was_measured() -> None:
    root = read(full())
    assert text_of(root.find(".//h1")) == "flux-t5-xxl-40.bundle"
    assert plain(text_of(classed(root, "lede")[0])) == "t5, 24 layers x 4,096, fp32, flux.1, on cpu"
    assert root.findtext("head/title") == "flux-t5-xxl-40.bundle: Failed: 2 of 10 checks"


@pytest.mark.parametrize(
    ("passed", "badge"),
    [
        ((), ("unchecked", "Nothing was checked")),
        ((True,), ("passed", "Passed: 1 check")),
        ((True, True), ("passed", "Passed: 2 checks")),
        ((True, False, True), ("failed", "Failed: 1 of 3 checks")),
    ],
)
def test_the_verdict_on_the_whole(passed: tuple[bool, ...], badge: tuple[str, str]) -> None:
    verdicts = tuple(Verdict(check="-", passed=one, value=1.0, limit=2.0, message="-") for one in passed)
    (shown,) = classed(read(replace(full(), verdicts=verdicts)), "badge")
    assert (shown.get("class", "").split()[1], text_of(shown)) == badge


def test_the_numbers_that_matter_most() -> None:
    root = read(full())
    assert {name: plain(value) for name, (value, _) in tiles(root).items()} == {
        "Memory saved": "38.5%",
        "Latency": "0.47x",
        "Drift, worst target": "6.20x10⁻⁵",
        "Loss against dense": "0.214",
        "Cold start": "4.71 s",
    }
    notes = {name: plain(note) for name, (_, note) in tiles(root).items()}
    assert notes["Memory saved"] == "onnx 5,912, torch-dense 9,610 MiB resident"
    assert notes["Latency"] == "aoti's time over torch-dense's, 1 x 512 tokens; 0.45 to 0.49"
    assert notes["Drift, worst target"] == "relative L2, aoti in fp32"
    assert notes["Loss against dense"] == "relative L2, aoti, mean cosine 0.9771"
    assert notes["Cold start"] == "onnx, to the first embedding; torch-dense 19.4 s"


def test_without_the_dense_encoder_the_plan_in_pytorch_is_the_base() -> None:
    root = read(measurements.without_reference())
    notes = {name: plain(note) for name, (_, note) in tiles(root).items()}
    assert notes["Memory saved"] == "onnx 5,912, torch-plan 5,990 MiB resident"
    assert "torch-plan" in notes["Latency"]
    assert "Loss against dense" not in notes
    assert "Not measured: loss." in text_of(classed(root, "headline")[0])
    assert "Not measured: it takes the original checkpoint, --reference." in text_of(block(root, "Loss"))


def test_more_memory_is_not_called_saved() -> None:
    whole = full()
    names = ("torch-plan", "onnx:prepacked")
    root = read(replace(whole, subjects=tuple(one for one in whole.subjects if one.name in names)))
    assert tiles(root)["Memory added"] == ("0.835%", "onnx:prepacked 6,040, torch-plan 5,990 MiB resident")


def test_on_a_gpu_its_memory_counts() -> None:
    assert tiles(read(gpu()))["Memory saved"] == ("38.8%", "tensorrt-rtx 6,010, torch-dense 9,820 MiB on the GPU")


def test_what_failed_comes_first_and_says_by_how_much() -> None:
    part = section(read(full()), "Checks")
    failures, successes = part.findall("ul"), classed(part, "successes")
    assert [plain(text_of(item)) for item in failures[0]] == [
        "aoti: tokens: drift, relative L2 6.2e-05 exceeds 5e-05 for fp32; the smallest limit that would pass is 6.2e-05"
        "1.24 x the limit",
        "onnx:prepacked: memory 11,350 MiB exceeds 6,144 MiB; the smallest limit that would pass is 11,400 MiB"
        "1.85 x the limit",
    ]
    assert text_of(part.find(".//summary")) == "8 passed"
    assert len(successes[0]) == 8
    (used,) = (bar for bar in classed(part, "used") if bar.get("title") == "45.5% of the limit")
    assert used[0].get("style") == "width:45.5%"


def test_a_check_without_a_number_or_a_limit_is_listed() -> None:
    verdicts = tuple(
        Verdict(check="-", passed=False, value=value, limit=limit, message=f"{value} {limit}")
        for value, limit in ((None, 1.0), (1.0, None), (3.0, 0.0))
    )
    (failures,) = classed(read(replace(full(), verdicts=verdicts)), "failures")
    assert [text_of(item) for item in failures] == ["None 1.0", "1.0 None", "3.0 0.0"]


# Memory


def test_the_plan_is_drawn() -> None:
    (picture,) = classed(section(read(full()), "Plan"), "plan")
    assert picture.get("aria-label") == "t5, 24 layers: 28 sub-blocks kept, 2 re-used, 18 skipped"


def test_the_bundle_is_described_below_its_plan() -> None:
    assert definitions(section(read(full()), "Plan")) == {
        "Parameters": "2,873,155,584 of 4,762,310,656 kept (60.3%)",
        "Weights": "5,480 MiB",
        "Path": "/data/bundles/flux-t5-xxl-40.bundle",
        "Manifest": "5c5c5c5c5c5c5c5c…",
    }


def test_memory_is_stacked_with_its_peak() -> None:
    part = section(read(full()), "Memory")
    dense, mapped = (bars(part)[name] for name in ("torch-dense", "onnx"))
    assert text_of(classed(dense, "bar-value")[0]) == "9,610 MiB9,310 of its own"
    assert [piece.get("class") for piece in dense.iter("rect")] == ["anonymous", "file-backed", "shared"]
    assert sizes(dense) == [50.11, 1.61, 0]  # of 18,580 MiB, the largest peak
    assert sizes(mapped) == [1.14, 30.68, 0]
    (peak,) = classed(dense, "peak")
    assert (peak.get("x1"), text_of(peak)) == ("100.00%", "peak RSS: 18,580 MiB")
    assert (
        classed(part, "bars")[0]
        .get("aria-label", "")
        .startswith("Resident memory in the steady state. PyTorch fp32, dense: 9,610 MiB; ")
    )


def test_several_processes_are_summed() -> None:
    part = section(read(full()), "Memory")
    assert text_of(classed(bars(part, 1)["onnx"], "bar-value")[0]) == "6,164 MiB"
    processes = table(section(read(full()), "Memory, stage by stage"), 1)
    assert processes[0] == ["subject", "peak anonymous", "processes at once", "their PSS, summed", "PSS of each"]
    assert processes[3] == ["onnx", "233", "2", "6,164", "3,082"]


def test_every_stage_has_its_numbers() -> None:
    part = section(read(full()), "Memory, stage by stage")
    found = table(part)
    assert found[0] == ["subject", "stage", "anonymous", "file-backed", "shared", "PSS", "swapped out", "peak RSS"]
    assert found[1] == ["torch-dense", "import", "279", "180", "0", "439", "0", "732"]
    assert found[4] == ["steady", "9,310", "300", "0", "9,590", "0", "18,580"]
    assert len(found) == 1 + 6 * 4
    assert definitions(part) | full().memory_sources == definitions(part)


def test_a_gpu_has_columns_and_a_chart_of_its_own() -> None:
    root = read(gpu())
    assert text_of(classed(bars(section(root, "Memory"), 2)["onnx"], "bar-value")[0]) == "6,480 MiB"
    found = table(section(root, "Memory, stage by stage"), 1)
    assert found[0][-3:] == ["GPU: process", "GPU: torch's peak", "GPU: engine"]
    assert found[3][-3:] == ["6,480", ABSENT, ABSENT]
    assert found[4][-3:] == ["6,010", ABSENT, "96"]
    assert "GPU: process" not in text_of(read(full()))


# Latency


def test_latency_shows_every_run_the_median_and_the_limit() -> None:
    measured = full()
    part = section(read(measured), "Latency")
    latency = measured.subjects[2].latencies[1]
    row = bars(part, 1)["onnx"]
    assert len(classed(row, "run")) == len(latency.seconds) == 9
    assert plain(text_of(classed(row, "bar-value")[0])) == f"{1e3 * latency.median:,.0f} ms39.0% of compute limit"
    (bar,), (mark,) = row.iter("rect"), classed(row, "bound")
    assert float(mark.get("x1", "").removesuffix("%")) == pytest.approx(0.39 * sizes(row)[0], rel=0.01)
    assert bar.get("class") == "target"
    assert text_of(mark) == "compute limit: 1,135 ms"


def test_the_table_of_latency() -> None:
    found = table(section(read(full()), "Latency"))
    assert found[0] == [
        "subject",
        "median, ms",
        "p95, ms",
        "variation",
        "tokens/s",
        "limit, ms",
        "limit's share",
        "times torch-dense's",
        "times torch-plan's",
    ]
    assert found[1] == ["1 x 77 tokens"]
    assert found[2][:1] + found[2][-2:] == ["torch-dense", "1", "1.70 (1.62\N{EN DASH}1.74)"]
    assert found[4] == [
        "onnx",
        "438",
        "447",
        "1.6%",
        "176",
        "171 (memory)",
        "39.0%",
        "0.56 (0.53\N{EN DASH}0.58)",
        "0.94 (0.91\N{EN DASH}0.98)",
    ]


def test_unsteady_times_are_flagged() -> None:
    part = section(read(full()), "Latency")
    assert [text_of(cell) for cell in classed(part, "warn")] == ["⚠ 7.1%"] * 2
    assert "vary by more than 5%" in text_of(part)
    assert "⚠" not in text_of(section(read(gpu()), "Latency"))


def test_a_cold_start_has_four_phases() -> None:
    part = section(read(full()), "Cold start")
    row = bars(part)["onnx"]
    assert [piece.get("class") for piece in row.iter("rect")] == ["interpreter", "imports", "load", "first"]
    assert table(part)[3] == ["onnx", "0.110", "0.400", "0.600", "3.600", "4.710", "3"]


# Fidelity


def test_drift_is_shown_beside_pytorchs_own() -> None:
    found = table(block(read(full()), "Drift"))
    assert found[0] == [
        "subject",
        "relative L2",
        "worst cosine",
        "cosine, p1",
        "cosine, mean",
        "largest error",
        "50% within",
        "90% within",
        "99% within",
        "99.99% within",
        "rows",
    ]
    assert [row[0] for row in found[1:]] == [
        "Tokens",
        *("torch-plan", "onnx", "onnx:prepacked", "pt2", "aoti"),
        f"Padding: {ABSENT}",
        "Empty prompt",
        *("torch-plan", "onnx", "onnx:prepacked", "pt2", "aoti"),
        "After the denoiser's projection",
        *("torch-plan", "onnx", "onnx:prepacked", "pt2", "aoti"),
    ]
    assert found[2][:3] == ["torch-plan", "1.10x10⁻⁶", "1 - 5.44x10⁻¹²"]
    assert found[2][-2:] == ["2.20x10⁻⁶", "1,800"]


def test_loss_is_of_all_subjects() -> None:
    found = table(block(read(full()), "Loss"))
    assert [row[0] for row in found[2:8]] == [one.name for one in full().subjects]
    assert found[3][1:5] == ["0.214", "0.7939", "0.9084", "0.9771"]


def test_what_is_not_finite_is_flagged() -> None:
    drift = full().subjects[2].drift
    assert drift is not None
    broken = replace(drift, tokens=replace(drift.tokens, nonfinite=4096))
    part = block(read(changed(full(), "onnx", drift=broken)), "Drift")
    assert [text_of(cell) for cell in classed(part, "warn")] == ["1,800 ⚠ 4,096 NaN or infinite"]


def with_outputs(measurement: Measurement, **parts: Any) -> Measurement:
    """The same of an encoder that gives other outputs."""

    def given(found: Agreement | None) -> Agreement | None:
        return None if found is None else replace(found, **parts)

    subjects = (replace(one, drift=given(one.drift), loss=given(one.loss)) for one in measurement.subjects)
    return replace(measurement, subjects=tuple(subjects))


def test_pooled_vectors_stand_beside_tokens_or_alone() -> None:
    pooled = measurements.deviation(3e-3, tokens=80)
    groups = [row[0] for row in table(block(read(full()), "Drift")) if len(row) == 1]
    assert not any("Pooled" in group for group in groups)
    both = check(with_outputs(full(), pooled=pooled))
    assert [row[0] for row in table(block(both, "Drift")) if len(row) == 1][:3] == [
        "Tokens",
        f"Padding: {ABSENT}",
        "Pooled vectors",
    ]
    alone = check(with_outputs(with_failures(), tokens=None, padding=None, pooled=pooled))
    found = table(block(alone, "Drift"))
    assert [row[0] for row in found[1:7]] == [
        "Pooled vectors",
        "torch-plan",
        "onnx",
        "onnx:prepacked",
        "pt2",
        "tensorrt-rtx",
    ]
    assert found[3][1] == "0.00300"
    assert found[3][-1] == "80"
    assert found[4][1].startswith(f"{ABSENT}: the process died")  # said once, whichever group comes first
    assert "Drift of single prompts" in text_of(block(alone, "Drift"))
    assert "1,8" not in text_of(block(alone, "Drift").find(".//figcaption"))


def test_the_headline_is_the_worst_output() -> None:
    pooled = with_outputs(full(), pooled=measurements.deviation(0.5, tokens=80))
    value, note = tiles(read(pooled))["Drift, worst target"]
    assert (value, note) == ("0.500", "relative L2 of pooled vectors, onnx in fp32")


def test_cosine_distances_are_small_multiples_of_one_scale() -> None:
    measured = changed(
        full(), "onnx", drift=replace(full().subjects[2].drift, cosine_distances={"1e-09": 3, "1e-08": 1})
    )
    part = block(read(measured), "Drift")
    panels = [panel for panel in part.iter("figure") if panel.find("svg") is not None]
    assert [text_of(panel.find("figcaption/b")) for panel in panels] == [one.title for one in measured.subjects[1:]]
    picture = panels[1].find("svg")
    assert picture is not None
    assert [text_of(column) for column in picture.iter("rect")] == [
        "up to 10⁻⁹: 3 tokens, 75.0%",
        "up to 10⁻⁸: 1 tokens, 25.0%",
    ]
    assert [column.get("height") for column in picture.iter("rect")] == ["70.0", "23.3"]
    axes = {tuple(text_of(text) for text in panel.iter("text")) for panel in panels if panel is not panels[1]}
    assert len(axes) == 1


def test_invariances_are_listed() -> None:
    found = table(block(read(full()), "Invariances"))
    assert found[0][1:] == ["the same batch again", "a prompt alone, not in a batch", "a prompt without its padding"]
    assert found[3] == ["onnx", "0", "2.30x10⁻⁷", "3.10x10⁻⁷"]
    assert found[6] == ["aoti", "0", "2.30x10⁻⁷", ABSENT]


@pytest.mark.parametrize("what", ["drift", "loss"])
def test_the_worst_prompts_are_sorted(what: str) -> None:
    part = block(read(full()), f"Prompts with the largest {what}")
    found = table(part)
    assert [row[0] for row in found[1:]] == [
        "empty",
        PROMPTS[5],
        f"{PROMPTS[1][:110].rstrip()}…",
        PROMPTS[6],
        PROMPTS[3],
    ]
    assert {row[1] for row in found[1:]} == {"aoti"}
    assert PROMPTS[1] in [cell.get("title") for cell in part.iter("td")]


def test_a_prompt_that_is_not_finite_is_worst() -> None:
    drift = full().subjects[2].drift
    assert drift is not None
    broken = replace(drift.prompts[0], nonfinite=2, relative_l2=None, cosine_min=None, cosine_mean=None)
    measured = changed(full(), "onnx", drift=replace(drift, prompts=(broken, *drift.prompts[1:])))
    first = table(block(read(measured), "Prompts with the largest drift"))[1]
    assert first == [PROMPTS[0], "onnx", "13 ⚠ 2 NaN or infinite", ABSENT, ABSENT, ABSENT]


# What is missing


def test_nothing_that_was_not_measured_is_a_number() -> None:
    root = read(nothing())
    assert "Not measured: memory, latency, drift, loss, cold start." in text_of(classed(root, "headline")[0])
    assert classed(root, "tile-value") == classed(root, "track") == classed(root, "panels") == []
    for heading in ("Memory, stage by stage", "Latency", "Cold start", "Fidelity"):
        part = section(root, heading)
        assert {tuple(row[1:]) for row in rows(part) if row[0] in {"torch-plan", "onnx"}} == {(ABSENT,)}
    told = definitions(section(root, "Environment"))
    assert {told[key] for key in ("Processor", "Cores", "Memory", "Copy", "Product")} == {ABSENT}
    assert [row[3:5] for row in rows(section(root, "Environment"))[1:]] == [["not known", ABSENT]] * 2


def test_an_absent_number_among_others_is_named_where_it_would_stand() -> None:
    root = read(hollow())
    assert all(row[1:] == [ABSENT] * 7 for row in table(section(root, "Memory, stage by stage"), 1)[1:])
    assert all(row[5:7] == [ABSENT] * 2 for row in table(section(root, "Latency"))[1:] if len(row) > 1)
    assert [row[0] for row in table(block(root, "Drift"))[1:]] == [
        f"{name}: {ABSENT}" for name in ("Tokens", "Padding", "Empty prompt", "After the denoiser's projection")
    ]
    assert all(row[1:] == [ABSENT] * 3 for row in table(block(root, "Invariances"))[1:])


@pytest.mark.parametrize("heading", ["Memory", "Memory, stage by stage", "Latency", "Cold start", "Fidelity"])
def test_a_subject_without_numbers_says_why(heading: str) -> None:
    text = text_of(section(read(with_failures()), heading))
    assert "not measured: cannot load model.pt2: File <truncated> & more" in text
    assert f"skipped: {SKIPPED}" in text
    assert (f"not measured: {CRASH}" in text) == (not heading.startswith("Memory"))


def test_what_was_measured_before_a_crash_is_shown() -> None:
    root = read(with_failures())
    assert text_of(classed(bars(section(root, "Memory"))["onnx:prepacked"], "bar-value")[0]).startswith("6,040 MiB")
    assert not list(bars(section(root, "Latency"))["onnx:prepacked"].iter("rect"))
    subjects = table(section(root, "Environment"))
    assert [row[-1] for row in subjects[1:]] == [
        "",
        "",
        "",
        f"not measured: {CRASH}",
        "not measured: cannot load model.pt2: File <truncated> & more",
        f"skipped: {SKIPPED}",
    ]


def test_a_subject_that_died_between_two_stages_says_so() -> None:
    held = full().subjects[2].memory
    assert held is not None
    stages = {name: held.stages[name] for name in ("import", "load")}
    measured = changed(full(), "onnx", memory=replace(held, stages=stages), error=CRASH)
    found = table(section(read(measured), "Memory, stage by stage"))
    place = [row[0] for row in found].index("onnx")
    assert [row[:2] for row in found[place : place + 3]] == [
        ["onnx", "import"],
        ["load", "127"],
        ["onnx", f"not measured: {CRASH}"],
    ]


# The end


def test_the_environment_and_how_to_measure_again() -> None:
    measured = replace(with_failures(), notes=("a note",))
    part = section(read(measured), "Environment")
    assert text_of(part.find("pre")) == measured.settings.command
    told = definitions(part)
    assert told["Copy"] == "61.4 GB/s"
    assert told["Product, fp32"] == "1,310 GFLOP/s"
    assert told["Memory"] == "65,536 MiB"
    assert told["torch"] == "2.13.0"
    assert told["Projection"] == measured.settings.denoiser
    assert text_of(block(part, "Notes")) == "Notesa note"
    assert "from 2026-11-25T09:12:44+00:00, in 1,312 s" in text_of(read(measured).find(".//footer"))


def test_the_example_has_no_numbers_that_json_lacks() -> None:
    for make in EXAMPLES.values():
        document = json.loads(make().to_json())
        assert len(document["subjects"]) == len(make().subjects)
        assert all(isinstance(one, SubjectRecord) for one in make().subjects)
