"""A run of the demo, on the shipped model, with as little of everything as makes a run."""

from __future__ import annotations

import importlib.util
import json
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from skrr_export import open_session
from skrr_export.bundle import open_bundle
from skrr_export.demo import costs, plans, running
from skrr_export.demo.model import MODEL
from skrr_export.demo.plans import shipped_plan
from skrr_export.demo.record import TITLES, Demo
from skrr_export.demo.running import DemoOptions, margin, run_demo
from skrr_export.demo.sampling import Sampler, embed
from skrr_export.demo.tasks import CATEGORIES, Task, draw_tasks
from skrr_export.errors import DependencyError, InputError, OutputError
from skrr_export.plan import Plan
from skrr_export.search.goal import reaches
from tests.checkpoints import contents
from tests.demo.test_report import pictures
from tests.page.reading import Reader

SPARSITY = 0.04
"""One or two sub-blocks of the shipped encoder."""
BUNDLES = {name: f"{name}.bundle" for name in TITLES}


@dataclass(frozen=True)
class Ran:
    """A run, and what it wrote and told."""

    demo: Demo
    output: Path
    told: list[tuple[str, float]]
    """What was being done, and which share of all was done."""


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory, remembered_traces: None) -> Ran:
    """One run, that no test changes."""
    output, told = tmp_path_factory.mktemp("demo") / "output", []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plans, "CAPTIONS", 3)
        patch.setattr(running, "TASKS", 2)
        patch.setattr(costs, "RUNS", 2)
        demo = run_demo(
            output,
            DemoOptions(sparsity=SPARSITY),
            progress=lambda what, done, total: told.append((what, done / total)),
        )
    return Ran(demo, output, told)


@pytest.fixture
def shipped(ran: Ran, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The plans of that run, as if the package had them."""
    directory = Path(shutil.copytree(ran.output / "plans", tmp_path / "shipped"))
    monkeypatch.setattr(plans, "SHIPPED", directory)
    return directory


# What a run gives


def test_the_directory_holds_the_report_the_plans_and_the_bundles(ran: Ran) -> None:
    assert sorted(path.name for path in ran.output.iterdir()) == sorted(
        [*BUNDLES.values(), "plans", "report.html", "report.json"]
    )
    assert sorted(path.name for path in (ran.output / "plans").iterdir()) == ["skip.json", "skrr+.json"]
    assert [path.name for path in ran.output.parent.iterdir()] == [ran.output.name]


def test_the_bundles_are_whole_and_run_the_plans_beside_them(ran: Ran) -> None:
    expected = {
        "dense": Plan.identity("t5", 12),
        "skip": Plan.load(ran.output / "plans" / "skip.json"),
        "skrr": Plan.load(ran.output / "plans" / "skrr+.json"),
    }
    for name, folder in BUNDLES.items():
        bundle = open_bundle(ran.output / folder)
        bundle.check_hashes()
        assert bundle.manifest.plan == expected[name] == ran.demo.variant(name).plan
        assert bundle.weights.stat().st_size == ran.demo.variant(name).weights_bytes
    assert ran.demo.variant("skrr").weights_bytes < ran.demo.variant("dense").weights_bytes


def test_both_plans_are_as_sparse_as_was_asked_and_judged_by_what_the_denoiser_sees(ran: Ran) -> None:
    for name, method in (("skip", "skrr"), ("skrr", "skrr+")):
        found = ran.demo.variant(name).plan.provenance
        assert found["method"] == method
        assert found["sparsity"]["wanted"] == ran.demo.sparsity == SPARSITY
        assert reaches(found["sparsity"]["reached"], SPARSITY)
        assert "caption_projection" in found["discrepancy"]["space"]
        assert found["calibration"]["prompts"] == 3
    assert ran.demo.variant("skip").plan.counts()["re-use"] == 0


def test_exports_are_proven_and_a_plan_costs_something(ran: Ran) -> None:
    assert ran.demo.passed
    dense, skip, skrr = ran.demo.variants
    for variant in ran.demo.variants:
        assert variant.verification.prompts == len(ran.demo.tasks)
        drift = variant.verification.drift.tokens
        assert drift is not None
        assert drift.relative_l2 is not None
        assert drift.relative_l2 < 5e-5
    assert (dense.loss.relative_l2, dense.distance) == (0, 0)
    for variant in (skip, skrr):
        assert variant.loss.relative_l2 is not None
        assert variant.loss.relative_l2 > 1e-3
        assert variant.distance > 0


def test_the_images_of_the_report_are_what_the_bundles_draw(ran: Ran) -> None:
    """Drawn again, with the bundle that lies beside the report, and one by one."""
    shown = pictures(Reader((ran.output / "report.html").read_text()).root)
    assert len(shown) == 3 * len(ran.demo.tasks)
    last = len(ran.demo.tasks) - 1
    for column, folder in enumerate(BUNDLES.values()):
        session = open_session(ran.output / folder)
        task = ran.demo.tasks[last]
        [image] = Sampler(MODEL).draw(embed(session, [task.prompt]), embed(session, [""]), [last])
        found = shown[3 * last + column]
        assert np.abs(found.astype(int) - image.astype(int)).max() <= 2
        assert task.is_met(found) == ran.demo.variants[column].met[last]
    assert not np.array_equal(shown[3 * last], shown[3 * last + 1])


def test_tasks_are_of_every_category_and_scored(ran: Ran) -> None:
    assert ran.demo.tasks == tuple(draw_tasks(running.SEED, 2))
    for variant in ran.demo.variants:
        assert list(variant.scores) == [*CATEGORIES, "overall"]
        assert variant.scores["overall"] == pytest.approx(sum(variant.met) / len(variant.met))


def test_each_encoder_was_measured_in_a_process_of_its_own(ran: Ran) -> None:
    for variant in ran.demo.variants:
        assert variant.measured.error is None
        assert variant.measured.steady is not None
        assert [(one.batch, len(one.seconds)) for one in variant.measured.latencies] == [(1, 2), (32, 2)]
        assert all(list(one.ratios) == (["dense"] if variant.plan_file else []) for one in variant.measured.latencies)


def test_the_document_is_that_of_the_run(ran: Ran) -> None:
    assert json.loads((ran.output / "report.json").read_text()) == json.loads(ran.demo.to_json())
    assert ran.demo.seconds > 0
    assert ran.demo.denoiser_parameters > 1_000_000


def test_every_step_is_told_in_turn(ran: Ran) -> None:
    steps = list(dict.fromkeys(what for what, _ in ran.told))
    searches = [f"{title}: searching a plan" for title in ("Skip only", "Skrr")]
    exports = [f"{title}: exporting to ONNX" for title in TITLES.values()]
    drawings = [
        f"{title}: {what}"
        for title in TITLES.values()
        for what in ("verifying against transformers", "drawing 12 images")
    ]
    assert steps == [*searches, *exports, *drawings, "measuring memory and latency"]
    first = dict(reversed(ran.told))
    assert [first[step] for step in steps] == pytest.approx([number / len(steps) for number in range(len(steps))])
    assert max(share for _, share in ran.told) <= 1


# Shipped plans


@pytest.mark.usefixtures("shipped")
def test_shipped_plans_are_taken_for_their_own_sparsity(ran: Ran) -> None:
    for name in ("skip", "skrr"):
        for sparsity in (None, SPARSITY):
            assert shipped_plan(name, sparsity) == ran.demo.variant(name).plan


@pytest.mark.usefixtures("shipped")
def test_shipped_plans_are_refused_for_another_sparsity(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"are for --sparsity 0\.04; leave --fast out to search for 0\.42"):
        run_demo(tmp_path / "output", DemoOptions(fast=True, sparsity=0.42))
    assert not (tmp_path / "output").exists()


def test_a_plan_that_is_not_shipped_is_named(shipped: Path, tmp_path: Path) -> None:
    (shipped / "skrr+.json").unlink()
    with pytest.raises(InputError, match=rf"no plan is shipped as {shipped}/skrr\+\.json; leave --fast out"):
        run_demo(tmp_path / "output", DemoOptions(fast=True))
    assert not (tmp_path / "output").exists()


# Whole or not at all


def instead(call: Callable[..., Any]) -> Callable[[pytest.MonkeyPatch], None]:
    """Nothing is searched or exported; exporting calls this with the bundle's path."""

    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(running, "search_plan", lambda *_, **__: Plan.identity("t5", 12))
        monkeypatch.setattr(running, "export_checkpoint", lambda _, path, *__, **___: call(path))

    return patch


@pytest.mark.parametrize("error", [KeyboardInterrupt, InputError, OSError])
def test_what_ends_half_way_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    def write_and_fail(path: Path) -> None:
        path.mkdir()
        (path / "weights").write_bytes(b"half")
        assert list(tmp_path.iterdir())
        raise error("no more")

    instead(write_and_fail)(monkeypatch)
    threads = torch.get_num_threads()
    with pytest.raises(OutputError if error is OSError else error):
        run_demo(tmp_path / "output")
    assert list(tmp_path.iterdir()) == []
    assert torch.get_num_threads() == threads


def test_an_older_demo_stays_if_the_new_one_fails(ran: Ran, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = Path(shutil.copytree(ran.output, tmp_path / "output"))
    before = contents(output)

    def fail(_: Path) -> None:
        raise InputError("no more")

    instead(fail)(monkeypatch)
    with pytest.raises(InputError, match="no more"):
        run_demo(output, DemoOptions(replace=True))
    assert contents(output) == before


def never(*_: Any, **__: Any) -> Any:
    """What must not be called."""
    raise AssertionError


@pytest.fixture
def idle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever takes long must not begin."""
    for name in ("search_plan", "shipped_plan", "export_checkpoint", "Sampler"):
        monkeypatch.setattr(running, name, never)


@pytest.mark.usefixtures("idle")
def test_a_directory_that_exists_is_kept(ran: Ran) -> None:
    with pytest.raises(OutputError, match="exists; --force replaces it"):
        run_demo(ran.output)


@pytest.mark.usefixtures("idle")
def test_a_directory_that_is_not_a_demos_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text("{}")
    with pytest.raises(OutputError, match="is not a demo's output"):
        run_demo(tmp_path, DemoOptions(replace=True))
    assert contents(tmp_path) == {"report.json": b"{}"}


@pytest.mark.usefixtures("idle")
def test_what_a_user_put_beside_a_demos_output_is_not_removed(ran: Ran, tmp_path: Path) -> None:
    output = Path(shutil.copytree(ran.output, tmp_path / "output"))
    (output / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"also holds notes\.txt, which --force would remove"):
        run_demo(output, DemoOptions(replace=True))
    assert (output / "notes.txt").read_text() == "mine"


@pytest.mark.usefixtures("idle")
@pytest.mark.parametrize(
    ("modules", "packages"), [(["diffusers"], "diffusers"), (["PIL", "scipy"], "scipy, pillow")], ids=str
)
def test_missing_packages_are_named_with_the_extra_that_brings_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, modules: list[str], packages: str
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in modules else find(name))
    with pytest.raises(DependencyError, match=rf"^the demo needs {packages}: pip install 'skrr-export\[demo\]'$"):
        run_demo(tmp_path / "output")


# Numbers


def judged(*shares: tuple[int, int]) -> tuple[list[Task], list[bool]]:
    """Tasks of a category for each pair: how many are met, and how many there are."""
    asked, met = [], []
    for number, (yes, count) in enumerate(shares):
        asked += [Task("", f"category {number}", ())] * count
        met += [True] * yes + [False] * (count - yes)
    return asked, met


def test_the_margin_of_one_category_is_that_of_a_share() -> None:
    assert margin(*judged((9, 18))) == pytest.approx(1.96 * math.sqrt(0.25 / 18))


def test_the_margin_of_several_is_that_of_their_mean() -> None:
    assert margin(*judged((9, 18), (9, 18), (9, 18), (9, 18))) == pytest.approx(margin(*judged((9, 18))) / 2)


def test_where_all_are_met_something_is_still_uncertain_and_less_of_more() -> None:
    assert 0 < margin(*judged((40, 40))) < margin(*judged((10, 10))) < 0.3


def test_the_margin_covers_the_score_of_most_samples() -> None:
    random, shares = np.random.default_rng(0), np.array([0.95, 0.7, 0.5, 0.8])
    hits = 0
    for _ in range(300):
        yes = random.binomial(20, shares)
        hits += abs(yes.mean() / 20 - shares.mean()) <= margin(*judged(*((int(each), 20) for each in yes)))
    assert 0.9 < hits / 300 <= 1
