"""The check of Skrr: its statistics against definitions, tables and the picture of made-up results, and going on."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from scipy import stats

from skrr_export.demo.sampling import Embedded
from skrr_export.demo.tasks import CATEGORIES, draw_tasks, score
from skrr_export.demo.world import SIDE
from skrr_export.plan import Plan
from tests.benchmarks import scripts

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
MODULES = ("skrr", "skrr_measure", "skrr_plans", "skrr_plot", "skrr_statistics", "skrr_summary", "readme")
DRAWS, COUNT = 2, 5
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def bench() -> Iterator[SimpleNamespace]:
    """The scripts, which import each other by their plain names."""
    with scripts(BENCHMARKS, MODULES) as modules:
        yield modules


# Statistics


def test_rank_correlation_is_scipys_also_of_ties(bench: SimpleNamespace) -> None:
    random = np.random.default_rng(0)
    one, other = random.integers(0, 6, (2, 20, 12)).astype(float)
    found = bench.skrr_statistics.spearman(one, other)
    expected = [stats.spearmanr(*pair).statistic for pair in zip(one, other, strict=True)]
    assert np.allclose(found, expected)


def test_rank_correlation_sees_order_only(bench: SimpleNamespace) -> None:
    spearman, values = bench.skrr_statistics.spearman, np.arange(7.0)
    assert spearman(values, np.exp(values)) == pytest.approx(1)
    assert spearman(values, -(values**3)) == pytest.approx(-1)
    assert np.isnan(spearman(values, np.ones(7)))


def test_prompts_are_drawn_again_within_their_categories(bench: SimpleNamespace) -> None:
    groups = ["a", "b", "a", "c", "b", "a"]
    drawn = bench.skrr_statistics.resample(groups, times=500)
    assert drawn.shape == (500, 6)
    assert all(groups[number] == group for row in drawn for number, group in zip(row, groups, strict=True))
    assert {tuple(row) for row in drawn[:, [0, 2, 5]]} > {(0, 0, 0), (5, 5, 5), (0, 2, 5)}
    assert (drawn == bench.skrr_statistics.resample(groups, times=500)).all()
    assert (drawn != bench.skrr_statistics.resample(groups, times=500, seed=1)).any()


def test_intervals_are_as_wide_as_theory_has_them(bench: SimpleNamespace) -> None:
    met = (np.arange(400) % 4 > 0).astype(float)
    found = bench.skrr_statistics.mean(met, bench.skrr_statistics.resample(["a"] * 400))
    assert found.value == 0.75
    half = 1.96 * np.sqrt(0.75 * 0.25 / 400)
    assert found.low == pytest.approx(0.75 - half, abs=0.006)
    assert found.high == pytest.approx(0.75 + half, abs=0.006)


def test_differences_are_taken_on_the_same_prompts(bench: SimpleNamespace) -> None:
    random = np.random.default_rng(0)
    one = random.integers(0, 2, 200).astype(float)
    drawn = bench.skrr_statistics.resample(["a"] * 200)
    same = bench.skrr_statistics.mean(one - one, drawn)
    assert (same.value, same.low, same.high) == (0, 0, 0)
    other = one.copy()
    other[:10] = 0
    paired, alone = (bench.skrr_statistics.mean(each, drawn) for each in (one - other, one))
    assert paired.high - paired.low < 0.5 * (alone.high - alone.low)


def test_correlations_are_compared_on_the_same_plans(bench: SimpleNamespace) -> None:
    random = np.random.default_rng(0)
    effect = random.normal(size=30)
    causes = [-np.exp(effect), effect + random.normal(0, 0.5, 30), random.normal(size=30)]
    perfect, good, none = bench.skrr_statistics.correlations(causes, effect, times=300)
    assert (perfect[0].value, perfect[0].low, perfect[0].high) == pytest.approx((-1, -1, -1))
    assert (perfect[1].value, perfect[1].low, perfect[1].high) == (0, 0, 0)
    assert 0.3 < good[0].low < good[0].value < good[0].high < 1
    assert good[1].value == pytest.approx(good[0].value - 1)  # strength, whatever the sign
    assert none[0].low < 0 < none[0].high
    assert none[1].high < 0


def test_within_groups_a_correlation_may_be_another(bench: SimpleNamespace) -> None:
    groups = [0.25] * 4 + [0.42] * 4
    one, other = np.array([1.0, 2, 3, 4, 11, 12, 13, 14]), np.array([4.0, 3, 2, 1, 14, 13, 12, 11])
    assert bench.skrr_statistics.spearman(one, other) > 0
    assert bench.skrr_statistics.within(groups, one, other) == pytest.approx(-1)


# Measures


def test_discrepancy_is_the_mean_square_on_tokens_of_prompts_plus_that_on_the_null_prompt(
    bench: SimpleNamespace,
) -> None:
    mask = np.array([[1, 1, 0], [1, 0, 0]])
    dense = Embedded(np.zeros((2, 3, 2), np.float32), mask), Embedded(np.zeros((1, 1, 2), np.float32), np.ones((1, 1)))
    rows = np.array([[[1, 1], [2, 0], [9, 9]], [[0, 3], [9, 9], [9, 9]]], np.float32)
    planned = Embedded(rows, mask), Embedded(np.full((1, 1, 2), 2, np.float32), np.ones((1, 1)))
    discrepancy = bench.skrr_measure.discrepancy
    assert discrepancy(planned, dense, np.float64, null=False) == pytest.approx((1 + 1 + 4 + 9) / 6)
    assert discrepancy(planned, dense, np.float64, null=True) == pytest.approx(15 / 6 + 4)
    assert discrepancy(planned, dense, lambda values: 3 * values[:, :1], null=True) == pytest.approx(45 / 3 + 36)
    assert discrepancy(dense, dense, np.float64, null=True) == 0


def subject(bench: SimpleNamespace, label: str, wanted: float, sources: Sequence[Any], **facts: Any) -> Any:
    provenance = {"sparsity": {"wanted": wanted, "reached": wanted + 0.01}, "discrepancy": {"value": wanted}, **facts}
    return bench.skrr_plans.Subject(label, 0, wanted, Plan("t5", tuple(sources), provenance), Path())


def test_a_plan_that_two_methods_found_is_one(bench: SimpleNamespace) -> None:
    sources = [(0, 0), (None, 0)]
    one, other = (subject(bench, label, 0.25, sources) for label in ("skrr", "skrr+"))
    assert one.key == other.key
    assert one.key != subject(bench, "skrr", 0.25, [(0, 0), (None, 1)]).key
    assert one.key != subject(bench, "laco", 0.25, sources, merged={"name": "m", "sha256": "0"}).key


def test_results_lie_elsewhere_for_other_prompts(bench: SimpleNamespace, tmp_path: Path) -> None:
    made = [bench.skrr_plans.Settings(tmp_path, *counts) for counts in ((4, 2, 1), (5, 2, 1), (4, 3, 1), (4, 2, 2))]
    assert len({settings.directory for settings in made}) == len(made)
    assert bench.skrr_plans.Settings(tmp_path, 4, 2, 1).directory == made[0].directory
    many = bench.skrr_plans.Settings(tmp_path, 200, 1, 1)
    assert not set(many.calibration) & set(many.others)
    assert len(many.calibration) == len(many.others) == 200
    assert [task.prompt for task in made[0].tasks] == [task.prompt for seed in (0, 1) for task in draw_tasks(seed, 1)]


def test_what_was_measured_is_read_back(
    bench: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = bench.skrr_plans.Settings(tmp_path, 2, 1, 1)
    settings.directory.mkdir(parents=True)
    calls = []

    def draw(_: Any, asked: Any) -> Any:
        calls.append(asked.label)
        return np.full((len(settings.tasks), 32, 32, 3), 0 if asked.label == "dense" else 51, np.uint8), [1, 2, 3, 4, 5]

    monkeypatch.setattr(bench.skrr_measure, "_draw", draw)
    whole = bench.skrr_measure.measure(settings, bench.skrr_plans.dense())
    planned = subject(bench, "skrr", 0.25, [(0, 0), (None, 0)])
    first, again = (bench.skrr_measure.measure(settings, planned) for _ in range(2))
    assert calls == ["dense", "skrr"]
    assert whole.distance == pytest.approx(0)
    assert first.distance == pytest.approx(0.2)
    assert (first.calibration, [*first.discrepancies.values()]) == (1, [2, 3, 4, 5])
    assert (again.met == first.met).all()


# Tables and the picture


@pytest.fixture
def prompts(bench: SimpleNamespace) -> Any:
    tasks = [task for seed in range(DRAWS) for task in draw_tasks(seed, COUNT)]
    return bench.skrr_summary.Prompts([task.category for task in tasks], DRAWS)


@pytest.fixture
def measured(bench: SimpleNamespace, prompts: Any) -> list[Any]:
    """The dense encoder and a plan of each method and sparsity; the larger D, the lower the score; two plans equal."""
    random = np.random.default_rng(0)
    chance = random.random(len(prompts.categories))

    def one(found: Any, loss: float) -> Any:
        ways = {name: loss * factor for name, factor in zip(bench.skrr_measure.VARIANTS, (1, 3, 0.5, 1), strict=True)}
        met = (chance > loss).astype(float)
        return bench.skrr_measure.Measured(found, met, np.full(len(met), loss / 2), ways, found.wanted)

    result = [one(bench.skrr_plans.dense(), 0.1)]
    numbers = itertools.count(1)
    for wanted, (place, label) in itertools.product(bench.skrr_plans.SPARSITIES, enumerate(bench.skrr_plans.METHODS)):
        sources = [(0, 0)] + [(None if bit == "1" else 1 + at, 0) for at, bit in enumerate(f"{next(numbers):06b}")]
        if label == "skrr":
            sources = [(part, 0) for part, _ in result[-1].subject.plan.sources]  # what skrr+ found
        found = subject(bench, label, wanted, sources)
        result.append(one(found, 0.2 + wanted / 2 + max(place, 1) / 20))
    return result


def test_scores_are_the_demos(bench: SimpleNamespace, prompts: Any) -> None:
    tasks = [task for seed in range(DRAWS) for task in draw_tasks(seed, COUNT)]
    images = np.random.default_rng(0).integers(0, 256, (len(tasks), SIDE, SIDE, 3), np.uint8)
    met = np.array([task.is_met(image) for task, image in zip(tasks, images, strict=True)], float)
    met[:7] = 1
    assert [*prompts.shares(met)] == [*CATEGORIES]
    assert np.mean([*prompts.shares(met).values()]) == pytest.approx(met.mean())
    assert prompts.shares(np.zeros(len(tasks))) | {"overall": 0} == score(tasks, np.zeros_like(images))
    assert prompts.by_draw(met) == [met[: len(met) // 2].mean(), met[len(met) // 2 :].mean()]


def test_records_say_it_all_and_are_json(bench: SimpleNamespace, prompts: Any, measured: list[Any]) -> None:
    records = bench.skrr_summary.records_of(prompts, *measured[:1], measured[1:])
    assert json.loads(json.dumps(records, allow_nan=False)) == json.loads(json.dumps(records))
    kinds = [record["kind"] for record in records]
    methods, sparsities = len(bench.skrr_plans.METHODS), len(bench.skrr_plans.SPARSITIES)
    assert {kind: kinds.count(kind) for kind in kinds} == {
        "dense": 1, "plan": sparsities * methods, "method": sparsities * methods, "correlation": 4,
    }  # fmt: skip
    dense = records[0]
    for record in records:
        if record["kind"] == "method":
            assert record["below_dense"]["value"] == pytest.approx(dense["score"]["value"] - record["score"]["value"])
            assert record["reached"] == pytest.approx(record["sparsity"] + 0.01)
            assert record["above_skrr"]["value"] <= 0
            assert (record["above_skrr"]["low"] == 0) is (record["subject"] in ("skrr+", "skrr"))
    paper = next(record for record in records if record["kind"] == "correlation")
    assert paper["plans"] == sparsities * (methods - 1)  # skrr+ and skrr found the same
    assert paper["score"]["value"] < -0.95
    assert paper["distance"]["value"] == pytest.approx(1)


def test_of_several_plans_the_mean_counts(bench: SimpleNamespace, prompts: Any, measured: list[Any]) -> None:
    one, other = (plan for plan in measured[1:] if plan.subject.label == "random" and plan.subject.wanted < 0.4)
    moved = bench.skrr_plans.Subject("random", 1, one.subject.wanted, other.subject.plan, Path())
    extra = bench.skrr_measure.Measured(moved, other.met, other.distance, other.discrepancies, other.calibration)
    records = bench.skrr_summary.records_of(prompts, measured[0], [*measured[1:], extra])
    [found] = [
        record for record in records
        if (record["kind"], record["subject"], record.get("sparsity")) == ("method", "random", one.subject.wanted)
    ]  # fmt: skip
    assert found["plans"] == 2
    assert found["score"]["value"] == pytest.approx((one.met.mean() + other.met.mean()) / 2)
    assert found["distance"]["value"] == pytest.approx((one.distance.mean() + other.distance.mean()) / 2)


def test_tables_are_printed(
    bench: SimpleNamespace, prompts: Any, measured: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    records = bench.skrr_summary.records_of(prompts, measured[0], measured[1:])
    bench.skrr_summary.print_tables(records, prompts, captions=7)
    printed = capsys.readouterr().out
    assert printed.count("\nskrr, no re-use ") == 2 * len(bench.skrr_plans.SPARSITIES)
    assert "60 tasks in 2 draws" in printed
    assert all(name in printed for name in (*CATEGORIES, *bench.skrr_measure.VARIANTS))


def test_the_readme_gets_a_row_a_method_the_best_first(
    bench: SimpleNamespace, prompts: Any, measured: list[Any], tmp_path: Path
) -> None:
    records = bench.skrr_summary.records_of(prompts, measured[0], measured[1:])
    document = {
        "machine": {"cpu": "C", "cores": 2, "memory_bytes": 2**30, "gpu": None},
        "versions": {"torch": "1"},
        "records": records,
    }
    (tmp_path / "skrr.json").write_text(json.dumps(document), encoding="utf-8")
    text = bench.readme.TABLES["skrr"](tmp_path)
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")]
    head, dense, *methods = rows[: 2 + len(bench.skrr_plans.METHODS)]
    assert head[2:6] == ["score at 25%", "score at 33%", "score at 41%", "score at 57%"]
    assert dense[0] == "| dense"
    assert [row[0].strip("| *") for row in methods] == [*bench.skrr_plans.METHODS]  # as they were made up
    assert methods[0][1] == "25.5% / 33.7% / 41.9% / 58.3%"
    assert len({len(row) for row in rows[: 2 + len(methods)]}) == 1
    assert sum(row[0].strip("| ") in bench.skrr_measure.VARIANTS for row in rows) == 4
    apart = max(max(record["by_draw"]) - min(record["by_draw"]) for record in records if "by_draw" in record)
    [line] = [line for line in text.splitlines() if line.startswith("28 plans")]
    assert line.startswith(f"28 plans; 60 tasks in 2 draws, whose scores are {apart:.2f} apart at most. C, 2 cores")
    assert "\n\n\n" not in text


def test_the_picture_has_a_panel_for_each_way_and_a_point_for_each_plan(
    bench: SimpleNamespace, prompts: Any, measured: list[Any]
) -> None:
    drawn = bench.skrr_plot.picture(bench.skrr_summary.records_of(prompts, measured[0], measured[1:]))
    root = ET.fromstring(drawn)
    titles = [text.text for text in root.iter(f"{SVG}text") if text.get("class") == "title"]
    assert titles == [f"D {name}" for name in bench.skrr_measure.VARIANTS]
    points = list(root.iter(f"{SVG}g"))
    assert len(points) == 4 * len(bench.skrr_plans.SPARSITIES) * len(bench.skrr_plans.METHODS)
    assert {point.get("class") for point in points} == {f"c{index}" for index in range(8)}
    width, height = (float(root.get(name, "")) for name in ("width", "height"))
    for place in (*root.iter(f"{SVG}text"), *root.iter(f"{SVG}line")):
        x, y = (float(place.get(name) or place.get(f"{name}1") or "") for name in ("x", "y"))
        assert 0 <= x <= width
        assert 0 <= y <= height
    labels = [text.text for text in root.iter(f"{SVG}text")]
    assert {"finercut", "dense encoder", "25%", "57%"} <= set(labels)
    assert labels.count("D, logarithmic") == 4


@pytest.mark.filterwarnings("ignore:All-NaN:RuntimeWarning")
def test_a_model_that_draws_rubbish_has_tables_and_a_picture_too(
    bench: SimpleNamespace, prompts: Any, measured: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """No correlation can be told where all scores are the same."""
    zero = [
        bench.skrr_measure.Measured(one.subject, 0 * one.met, one.distance, one.discrepancies, one.calibration)
        for one in measured
    ]
    records = bench.skrr_summary.records_of(prompts, zero[0], zero[1:])
    bench.skrr_summary.print_tables(records, prompts, captions=7)
    assert "nan" in capsys.readouterr().out
    ET.fromstring(bench.skrr_plot.picture(records))


def test_higher_scores_lie_higher(bench: SimpleNamespace, prompts: Any, measured: list[Any]) -> None:
    drawn = bench.skrr_plot.picture(bench.skrr_summary.records_of(prompts, measured[0], measured[1:]))
    points = list(ET.fromstring(drawn).iter(f"{SVG}g"))
    first = points[: len(points) // 4]
    found = []
    for group in first:
        title, line = group.findtext(f"{SVG}title") or "", group.find(f"{SVG}line")
        assert line is not None
        found.append(
            (float(title.split("score ")[1].split(",")[0]), float(line.get("y1", "")), float(line.get("y2", "")))
        )
    assert all(low > high for _, low, high in found)  # rows count from the top
    best, worst = max(found), min(found)
    assert best[2] < worst[2]


def test_what_is_not_as_claimed_is_said(bench: SimpleNamespace, measured: list[Any]) -> None:
    plans = measured[1:]
    assert bench.skrr_summary.not_as_claimed(plans) == []
    odd = bench.skrr_measure.Measured(plans[1].subject, plans[1].met, plans[1].distance, plans[1].discrepancies, 0.2)
    wrong = bench.skrr_summary.not_as_claimed([plans[0], odd, *plans[2:]])
    assert wrong == ["skrr at 25%: D is 0.2 through ONNX, its plan says 0.2454", "at 25% skrr+ has D 0.2454, skrr 0.2"]
