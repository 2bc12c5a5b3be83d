"""`skrr-export demo`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from skrr_export.demo import costs, plans, running
from skrr_export.demo.record import Demo
from skrr_export.demo.running import DemoOptions
from skrr_export.measure import verify as verifying
from skrr_export.plan import Plan
from tests.cli.conftest import Run
from tests.demo.reports import changed, demo, verification

FAILURE = "drift, relative L2 0.2 exceeds 5e-05"


def answer(monkeypatch: pytest.MonkeyPatch, made: Callable[[], Demo]) -> list[tuple[Any, ...]]:
    """Let the demo return a run at once; what it was called with."""
    calls: list[tuple[Any, ...]] = []

    def run_demo(output: Path, options: DemoOptions, *, progress: object) -> Demo:
        calls.append((output, options))
        return made()

    monkeypatch.setattr(running, "run_demo", run_demo)
    return calls


def test_the_result_is_a_table_and_where_the_report_is(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = answer(monkeypatch, demo)
    result = run("demo", "-o", "shown", "--sparsity", "0.42", "--force")
    assert (result.code, result.err) == (0, "")
    assert calls == [(Path("shown"), DemoOptions(sparsity=0.42, replace=True))]
    *table, last = result.out.splitlines()
    assert last == "shown/report.html: passed (123 s); open it in a browser"
    cells = [[cell.strip() for cell in line.strip("│").split("│")] for line in table if line.startswith("│")]
    assert [row[0] for row in cells] == ["Dense", "Skip only", "Skrr"]
    assert cells[2][1] == "4.959 MiB"
    assert cells[2][2].startswith(f"{demo().variant('skrr').scores['overall']:.2f} ±")
    assert cells[2][3:] == ["2.45 ms", "6e-07", "0.22"]


def test_without_options_a_plan_is_searched_into_the_usual_place(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = answer(monkeypatch, demo)
    assert run("demo", "--quiet").out == ""
    assert calls == [(Path("demo-output"), DemoOptions())]


def test_the_document_on_stdout_is_that_of_the_report(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    answer(monkeypatch, demo)
    result = run("demo", "--json")
    assert (result.code, json.loads(result.out)) == (0, json.loads(demo().to_json()))


def test_a_failed_check_is_named_and_exits_1(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    answer(monkeypatch, lambda: changed("skrr", verification=verification(0.2, FAILURE)))
    result = run("demo", "-o", "shown")
    assert result.code == 1
    assert result.out.splitlines()[-2:] == [
        f"failed: Skrr: {FAILURE}",
        "shown/report.html: FAILED (123 s); open it in a browser",
    ]


@pytest.mark.parametrize("sparsity", ["0", "1", "-0.1", "nan"])
def test_a_sparsity_that_is_no_share_is_refused(run: Run, tmp_path: Path, sparsity: str) -> None:
    result = run("demo", "-o", tmp_path / "output", "--sparsity", sparsity)
    assert result.code == 2
    assert result.err.startswith("error: a sparsity is a share above 0 and below 1")
    assert result.err.count("\n") == 1  # no step was begun
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("remembered_traces")
def test_with_shipped_plans_a_failed_proof_is_in_the_report(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole but for the proof, which fails: the report is written all the same."""
    found = {"sparsity": {"wanted": 0.05, "reached": 0.06}}
    shipped = {
        "skip.json": Plan.from_order("t5", 12, [9, 20], drop=2, provenance=found),
        "skrr+.json": Plan.from_order("t5", 12, [9, 20], drop=2, reuse={20: 18}, provenance=found),
    }
    (tmp_path / "shipped").mkdir()
    for name, plan in shipped.items():
        (tmp_path / "shipped" / name).write_text(plan.to_json())
    monkeypatch.setattr(plans, "SHIPPED", tmp_path / "shipped")
    monkeypatch.setattr(running, "FAST_TASKS", 1)
    monkeypatch.setattr(costs, "RUNS", 1)
    monkeypatch.setattr(verifying, "verify", lambda *_, **__: verification(0.2, FAILURE))
    result = run("demo", "--fast", "-o", tmp_path / "output", "--json")
    assert result.code == 1
    assert "searching" not in result.err
    assert "Skrr: drawing 6 images" in result.err.splitlines()
    document = json.loads(result.out)
    assert document == json.loads((tmp_path / "output" / "report.json").read_text())
    assert (document["passed"], document["fast"], document["sparsity"]) == (False, True, 0.05)
    assert document["failures"] == [f"{title}: {FAILURE}" for title in ("Dense", "Skip only", "Skrr")]
    page = (tmp_path / "output" / "report.html").read_text()
    assert page.count(FAILURE) == 3
    for name, plan in shipped.items():
        assert (tmp_path / "output" / "plans" / name).read_text() == plan.to_json()
