"""Whole searches, by every method: what is found is what the method's definition finds, run with transformers.

Tolerance: relative, of D. Plans have six digits of it; what transformers gives differs by 1e-6 (test_discrepancy.py).
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from skrr_export import calibration
from skrr_export.checkpoint import open_checkpoint
from skrr_export.encoders import recognise, select
from skrr_export.errors import InputError
from skrr_export.pipelines import PRESETS
from skrr_export.plan import Plan
from skrr_export.search.journal import Journal
from skrr_export.search.space import arrangement_of
from skrr_export.searching import METHODS, SearchOptions, search_plans
from tests.bundles import soften
from tests.checkpoints import BERT_DIMENSIONS, T5_DIMENSIONS, bert_checkpoint, t5_checkpoint
from tests.search import naive
from tests.search.naive import Item, Truth
from tests.search.subjects import KINDS, PROMPTS, UNMASKED, edit, linear, relate
from tests.search.test_discrepancy import _guarded

TOLERANCE = 1e-5
OURS = [method for method in METHODS if method != "laco"]
LAYERS = {"t5": 3, "deep t5": 4, "bert": 3}
WIDTHS = {"t5": T5_DIMENSIONS["d_model"], "bert": BERT_DIMENSIONS["hidden_size"]}

Checkpoints = Callable[..., Path]
Truths = Callable[..., Truth]


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several chunks of the few prompts; and a pipeline like FLUX.1's on prompts as short."""
    monkeypatch.setattr(calibration, "CHUNK_TOKENS", (100, 200))
    monkeypatch.setitem(PRESETS, "unmasked", UNMASKED)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    @cache
    def make(family: str, seed: int = 0) -> Path:
        directory = tmp_path_factory.mktemp("checkpoint")
        if family == "bert":
            return bert_checkpoint(directory, layers=3, tokenizer=True, seed=seed)
        return relate(soften(t5_checkpoint(directory, layers=LAYERS[family], tokenizer=True, seed=seed)))

    return make


@pytest.fixture(scope="module")
def denoisers(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, naive.Project]]:
    """A denoiser's file for a family, and what its projection does."""

    @cache
    def make(family: str) -> tuple[Path, naive.Project]:
        file = tmp_path_factory.mktemp("denoiser") / "diffusion_pytorch_model.safetensors"
        weight, bias = linear(7, WIDTHS[family], 19)
        weight[:, 5:] = 0  # it looks at little of an embedding
        tensors = {"context_embedder.weight": torch.from_numpy(weight), "context_embedder.bias": torch.from_numpy(bias)}
        save_file(tensors, file)
        return file, lambda rows: rows @ weight.astype(float).T + bias

    return make


@pytest.fixture(scope="module")
def truths(checkpoints: Checkpoints, denoisers: Any) -> Truths:
    @cache
    def make(family: str, seed: int = 0, preset: str = "masked", *, denoiser: bool = False, null: bool = True) -> Truth:
        project = denoisers(family)[1] if denoiser else None
        return Truth(checkpoints(family, seed), PROMPTS, KINDS[preset], project=project, null=null)

    return make


@cache
def search(checkpoint: Path, *sparsities: float, **options: Any) -> list[Plan]:
    """Plans; of the same search the same."""
    return search_plans(checkpoint, SearchOptions(**{"sparsities": sparsities, "prompts": PROMPTS, **options}))


search_anew = search.__wrapped__


def sizes(checkpoint: Path, family: str) -> tuple[list[int], int]:
    """Parameters of each unit and of the encoder, from the names of the tensors."""
    tensors = {name: value.numel() for name, value in load_file(checkpoint / "model.safetensors").items()}
    tensors = {name: size for name, size in tensors.items() if not name.startswith("pooler.")}
    own = {name: size for name, size in tensors.items() if "relative_attention_bias" not in name}
    units = []
    for unit in range(2 * LAYERS[family]):
        here = f"encoder.layer.{unit // 2}." if family == "bert" else f"encoder.block.{unit // 2}.layer.{unit % 2}."
        inside = {name: size for name, size in own.items() if name.startswith(here)}
        if family == "bert":
            inside = {name: size for name, size in inside.items() if (".attention." in name) == (unit % 2 == 0)}
        units.append(sum(inside.values()))
    return units, sum(tensors.values())


def prefix(order: list[Item], checkpoint: Path, family: str, wanted: float) -> list[Item]:
    """What has to be dropped of an order, at least; sparsities are printed to a tenth of a per cent."""
    units, total = sizes(checkpoint, family)
    for count in range(1, len(order) + 1):
        if sum(units[unit] for item in order[:count] for unit in item) / total >= wanted - 0.0005:
            return order[:count]
    raise AssertionError


def value(plan: Plan) -> float:
    return plan.provenance["discrepancy"]["value"]


def dropped(plan: Plan) -> set[int]:
    return set(range(2 * plan.num_layers)) - set(arrangement_of(plan))


@pytest.mark.parametrize("method", OURS)
@pytest.mark.parametrize(
    ("family", "denoiser", "preset"),
    [("t5", False, "plain"), ("t5", True, "unmasked"), ("bert", True, "plain")],
)
def test_every_plan_is_valid_and_tells_the_truth(
    family: str, denoiser: bool, preset: str, method: str, *, checkpoints: Checkpoints, truths: Truths, denoisers: Any
) -> None:
    checkpoint = checkpoints(family)
    file = denoisers(family)[0] if denoiser else None
    truth = truths(family, preset="masked" if preset == "plain" else preset, denoiser=denoiser)
    units, total = sizes(checkpoint, family)
    for wanted, plan in zip(
        (0.3, 0.15), search(checkpoint, 0.3, 0.15, method=method, denoiser=file, pipeline=preset), strict=True
    ):
        opened = open_checkpoint(checkpoint)
        select(opened, recognise(opened), plan)  # raises where it does not fit
        assert Plan.from_json(plan.to_json()) == plan
        reached = sum(units[unit] for unit in dropped(plan)) / total
        assert reached >= wanted - 0.0005
        assert reached - wanted < max(sum(units[:2]), sum(units[2:4])) / total  # and not by more than a layer
        assert plan.provenance["sparsity"] == {"wanted": wanted, "reached": pytest.approx(reached, rel=TOLERANCE)}
        prompts, null = truth.terms(arrangement_of(plan))
        told = plan.provenance["discrepancy"]
        assert told["value"] == pytest.approx(prompts + null, rel=TOLERANCE)
        assert (told["prompts"], told["null"]) == pytest.approx((prompts, null), rel=TOLERANCE)
        assert told["scale"] == pytest.approx(truth.scale(), rel=TOLERANCE)
        assert set(plan.provenance["order"]) == dropped(plan)


@pytest.mark.parametrize("beam", [1, 3])
@pytest.mark.parametrize("grain", ["sub-block", "layer"])
@pytest.mark.parametrize("family", ["t5", "bert"])
def test_skrr_is_algorithm_1_and_then_algorithm_2(
    family: str, grain: Any, beam: int, *, checkpoints: Checkpoints, truths: Truths
) -> None:
    checkpoint, truth, count = checkpoints(family), truths(family), 2 * LAYERS[family]
    items: list[Item] = [(unit,) for unit in range(count)]
    if grain == "layer":
        items = [(unit, unit + 1) for unit in range(0, count, 2)]
    steps = naive.skip(truth, count, items, beam, len(items))
    # The search stops as soon as the best list is sparse enough.
    lists = next(step for step in steps if _reaches(step[0][1], checkpoint, family, 0.35))
    order = [unit for item in lists[0][1] for unit in item]
    expected, lowest = naive.reuse(truth, count, order)
    [plan] = search(checkpoint, 0.35, method="skrr", granularity=grain, beam=beam)
    assert plan.provenance["order"] == order
    assert arrangement_of(plan) == expected
    assert value(plan) == pytest.approx(lowest, rel=TOLERANCE)


def _reaches(order: tuple[Item, ...], checkpoint: Path, family: str, wanted: float) -> bool:
    units, total = sizes(checkpoint, family)
    return sum(units[unit] for item in order for unit in item) / total >= wanted - 0.0005


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("family", ["t5", "bert"])
def test_skrr_plus_is_never_worse_than_skrr(family: str, seed: int, checkpoints: Checkpoints, truths: Truths) -> None:
    for sparsity in (0.2, 0.42):
        [plain] = search(checkpoints(family, seed), sparsity, method="skrr")
        [plus] = search(checkpoints(family, seed), sparsity)
        assert value(plus) <= value(plain)
        for plan in (plain, plus):
            assert value(plan) == pytest.approx(truths(family, seed)(arrangement_of(plan)), rel=TOLERANCE)


def test_skrr_plus_is_often_better(checkpoints: Checkpoints) -> None:
    pairs = [
        (
            value(search(checkpoints("t5", seed), sparsity)[0]),
            value(search(checkpoints("t5", seed), sparsity, method="skrr")[0]),
        )
        for seed, sparsity in itertools.product((0, 1), (0.2, 0.42))
    ]
    assert sum(plus < 0.95 * plain for plus, plain in pairs) >= 2


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_skrr_plus_with_a_wide_beam_beats_every_set_of_skips(
    seed: int, checkpoints: Checkpoints, truths: Truths
) -> None:
    checkpoint, truth = checkpoints("bert", seed), truths("bert", seed)
    [plan] = search(checkpoint, 0.25, beam=64)
    subsets = itertools.chain.from_iterable(itertools.combinations(range(6), count) for count in range(1, 7))
    sparse = [naive.without(6, [units]) for units in subsets if _reaches((units,), checkpoint, "bert", 0.25)]
    assert len(sparse) > 20
    assert value(plan) <= min(map(truth, sparse)) * (1 + TOLERANCE)


@pytest.mark.parametrize("family", ["t5", "bert"])
def test_skrr_plus_ends_where_no_single_step_is_better(family: str, checkpoints: Checkpoints, truths: Truths) -> None:
    """Neither another unit in some place, nor one unit back and one gone."""
    checkpoint, truth = checkpoints(family), truths(family)
    for plan in search(checkpoint, 0.2, 0.35):
        arrangement = arrangement_of(plan)
        wanted = plan.provenance["sparsity"]["wanted"]
        units, total = sizes(checkpoint, family)
        steps = [
            each
            for each in (*naive.single_changes(arrangement), *naive.single_exchanges(arrangement))
            if sum(units[unit] for unit in set(range(len(each))) - set(each)) / total >= wanted - 0.0005
        ]
        assert len(steps) > 3
        assert min(map(truth, steps)) >= value(plan) * (1 - TOLERANCE)


@pytest.mark.parametrize("family", ["t5", "bert"])
def test_skrr_with_a_beam_of_one_has_one_order_for_all_sparsities(family: str, checkpoints: Checkpoints) -> None:
    sparsities = (0.3, 0.15, 0.42)
    together = search(checkpoints(family), *sparsities, method="skrr", beam=1)
    for plan, sparsity in zip(together, sparsities, strict=True):
        [alone] = search(checkpoints(family), sparsity, method="skrr", beam=1)
        assert alone == plan
        assert alone.provenance["order"] == plan.provenance["order"]
        assert alone.provenance["discrepancy"] == plan.provenance["discrepancy"]
        assert alone.provenance["steps"] == plan.provenance["steps"]


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("family", ["t5", "bert"])
def test_the_sparsest_plan_does_not_depend_on_the_others(family: str, seed: int, checkpoints: Checkpoints) -> None:
    *_, plan = search(checkpoints(family, seed), 0.15, 0.3, 0.42, method="skrr")
    [alone] = search(checkpoints(family, seed), 0.42, method="skrr")
    assert alone == plan
    assert alone.provenance["discrepancy"] == plan.provenance["discrepancy"]


@pytest.mark.parametrize("method", ["skrr", "uniform", "random", "finercut"])
def test_sparser_plans_drop_more_of_the_same_order(method: str, checkpoints: Checkpoints) -> None:
    plans = search(checkpoints("t5"), 0.15, 0.3, 0.42, method=method)
    orders = [plan.provenance["order"] for plan in plans]
    for plan, order in zip(plans, orders, strict=True):
        assert order == orders[-1][: len(order)]
        wanted = plan.provenance["sparsity"]["wanted"]
        items = [(unit,) for unit in orders[-1]]
        assert [(unit,) for unit in order] == prefix(items, checkpoints("t5"), "t5", wanted)


def _forgetful(journal: Journal, name: str, decide: Callable[[], Any]) -> Any:
    """A journal that takes every decision again, and wants it to be the one on record."""
    known = journal._records.get(name)
    value = json.loads(json.dumps(decide()))
    assert name not in journal._records or value == known, f"two questions are called '{name}'"
    journal._records[name] = value
    return value


@pytest.mark.parametrize(
    ("family", "method"),
    [
        ("deep t5", "skrr+"),
        ("deep t5", "skrr"),
        ("deep t5", "finercut"),
        ("bert", "skrr+"),
    ],
)
def test_no_two_decisions_of_a_search_share_a_name(
    family: str, method: str, checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or the answer to one would be taken for the other's."""
    monkeypatch.setattr(Journal, "remember", _forgetful)
    search_anew(checkpoints(family), 0.45, 0.5, method=method)


def test_uniform_plans_are_spread_evenly(checkpoints: Checkpoints) -> None:
    [plan] = search(checkpoints("deep t5"), 0.24, method="uniform", granularity="sub-block")
    assert plan.provenance["order"] == [3, 1, 5]
    assert dropped(plan) == {1, 3, 5}


def test_random_plans_depend_on_the_seed_alone(checkpoints: Checkpoints) -> None:
    def order(weights: int, **options: Any) -> list[int]:
        return search(checkpoints("t5", weights), 0.42, method="random", **options)[0].provenance["order"]

    assert order(0) == order(1) == order(0, prompts=("other prompts",), beam=1, seed=0)
    assert len({tuple(order(0, seed=seed)) for seed in range(6)}) > 3


@pytest.mark.parametrize("preset", ["plain", "unmasked"])
@pytest.mark.parametrize("family", ["t5", "bert"])
def test_shortgpt_drops_layers_by_block_influence(family: str, preset: str, checkpoints: Checkpoints) -> None:
    checkpoint = checkpoints(family, 1)
    influence = naive.block_influence(checkpoint, PROMPTS, KINDS["masked" if preset == "plain" else preset])
    layers = sorted(range(LAYERS[family]), key=influence.__getitem__)
    [plan] = search(checkpoint, 0.42, method="shortgpt", pipeline=preset)
    order = [(2 * layer, 2 * layer + 1) for layer in layers]
    expected = prefix(order, checkpoint, family, 0.42)
    assert plan.provenance["order"] == [unit for item in expected for unit in item]
    assert arrangement_of(plan) == naive.without(2 * LAYERS[family], expected)


@pytest.mark.parametrize("denoiser", [False, True])
@pytest.mark.parametrize(("family", "seed"), [("t5", 4), ("bert", 6)])
def test_finercut_is_greedy_on_the_embedding_of_the_prompts_alone(
    family: str, seed: int, denoiser: bool, *, checkpoints: Checkpoints, truths: Truths, denoisers: Any
) -> None:
    """Whatever the denoiser makes of it; only the plan's own D is after its projection, and with the null prompt."""
    checkpoint, count = checkpoints(family, seed), 2 * LAYERS[family]

    def order_by(measure: Truth) -> list[int]:
        [*_, ((_, order),)] = naive.skip(measure, count, [(unit,) for unit in range(count)], 1, count)
        return [unit for (unit,) in prefix(list(order), checkpoint, family, 0.35)]

    plain, full = truths(family, seed, null=False), truths(family, seed, denoiser=denoiser)
    expected = order_by(plain)
    assert order_by(full) != expected  # else this would prove little
    assert order_by(truths(family, seed, denoiser=True, null=False)) != expected
    [plan] = search(checkpoint, 0.35, method="finercut", denoiser=denoisers(family)[0] if denoiser else None)
    assert plan.provenance["order"] == expected
    assert value(plan) == pytest.approx(full(arrangement_of(plan)), rel=TOLERANCE)
    values = [plain(naive.without(count, [(unit,) for unit in expected[: at + 1]])) for at in range(len(expected))]
    assert [step["D"] for step in plan.provenance["steps"]] == pytest.approx(values, rel=TOLERANCE)
    assert plan.provenance["curves"][0]["points"][-1][1] == value(plan)


@pytest.mark.parametrize("method", OURS)
def test_layers_are_dropped_whole(method: str, checkpoints: Checkpoints) -> None:
    for plan in search(checkpoints("t5"), 0.2, 0.4, method=method, granularity="layer"):
        gone = dropped(plan)
        assert gone == {unit ^ 1 for unit in gone}
        order = plan.provenance["order"]
        assert [unit ^ 1 for unit in order[::2]] == order[1::2]


@pytest.mark.parametrize("method", [method for method in OURS if method != "skrr+"])
def test_without_re_use_nothing_is_re_used(method: str, checkpoints: Checkpoints) -> None:
    for plan in search(checkpoints("t5"), 0.2, 0.4, method=method, reuse=False):
        order = [(unit,) for unit in plan.provenance["order"]]
        assert arrangement_of(plan) == naive.without(6, order)


@pytest.mark.parametrize("method", ["finercut", "shortgpt", "uniform", "random"])
def test_with_re_use_other_methods_fill_their_holes_by_algorithm_2(
    method: str, checkpoints: Checkpoints, truths: Truths
) -> None:
    reused = 0
    for plan in search(checkpoints("t5"), 0.2, 0.4, method=method, reuse=True):
        expected, lowest = naive.reuse(truths("t5"), 6, plan.provenance["order"])
        assert arrangement_of(plan) == expected
        assert value(plan) == pytest.approx(lowest, rel=TOLERANCE)
        reused += sum(unit not in (None, at) for at, unit in enumerate(expected))
    assert reused > 0


@pytest.mark.parametrize("method", OURS)
@pytest.mark.parametrize("family", ["t5", "bert"])
def test_the_same_search_writes_the_same_file(family: str, method: str, checkpoints: Checkpoints) -> None:
    first, second = (
        [plan.to_json() for plan in search_anew(checkpoints(family), 0.2, 0.35, method=method)] for _ in "12"
    )
    assert first == second


def test_what_was_re_used_and_what_it_gained(checkpoints: Checkpoints, truths: Truths) -> None:
    [plan] = search(checkpoints("t5"), 0.4, method="skrr")
    arrangement = arrangement_of(plan)
    reused = {at: unit for at, unit in enumerate(arrangement) if unit not in (None, at)}
    assert reused
    assert {each["unit"]: each["source"] for each in plan.provenance["reuses"]} == reused
    for each in plan.provenance["reuses"]:
        without = tuple(None if at == each["unit"] else unit for at, unit in enumerate(arrangement))
        assert each["before"] == pytest.approx(truths("t5")(without), rel=TOLERANCE)
        assert each["D"] == value(plan) < each["before"]


@pytest.mark.parametrize("method", ["skrr+", "skrr", "uniform"])
def test_curves_are_d_of_what_they_say(method: str, checkpoints: Checkpoints, truths: Truths) -> None:
    truth, (units, total) = truths("t5"), sizes(checkpoints("t5"), "t5")
    [plan] = search(checkpoints("t5"), 0.4, method=method)
    skips = next(curve["points"] for curve in plan.provenance["curves"] if curve["name"] == "skip")
    order = search(checkpoints("t5"), 0.4, method="skrr")[0].provenance[
        "order"
    ]  # skrr+ shows the paper's beside its own
    order = plan.provenance["order"] if method == "uniform" else order
    assert len(skips) == len(order)
    for count, (sparsity, d) in enumerate(skips, start=1):
        assert sparsity == pytest.approx(sum(units[unit] for unit in order[:count]) / total, rel=TOLERANCE)
        assert d == pytest.approx(truth(naive.without(6, [(unit,) for unit in order[:count]])), rel=TOLERANCE)


@pytest.fixture
def overflowing(tmp_path: Path) -> Path:
    """Without unit 1, but with unit 3, its embeddings are infinite."""
    return edit(soften(t5_checkpoint(tmp_path, gated=False, tokenizer=True)), _guarded)


def test_a_search_goes_round_what_overflows(overflowing: Path) -> None:
    truth = Truth(overflowing, PROMPTS, KINDS["masked"])
    for method in ("skrr", "skrr+"):
        for plan in search(overflowing, 0.25, 0.4, method=method):
            assert dropped(plan) & {1, 3} != {1}
            assert value(plan) == pytest.approx(truth(arrangement_of(plan)), rel=TOLERANCE)


def test_a_plan_that_overflows_is_refused_and_one_that_did_on_the_way_is_not(overflowing: Path) -> None:
    truth = Truth(overflowing, PROMPTS, KINDS["masked"])
    outcomes = set()
    for seed in range(10):
        try:
            [plan] = search(overflowing, 0.4, method="random", seed=seed)
        except InputError as error:
            outcomes.add("refused" if "overflow" in str(error) else str(error))
            continue
        assert Plan.from_json(plan.to_json()) == plan
        order = plan.provenance["order"]
        values = [truth(naive.without(6, [(unit,) for unit in order[: at + 1]])) for at in range(len(order))]
        finite = [each for each in values if math.isfinite(each)]
        [curve] = plan.provenance["curves"]
        assert [d for _, d in curve["points"]] == pytest.approx(finite, rel=TOLERANCE)
        outcomes.add("finite" if finite == values else "finite again")
    assert outcomes == {"refused", "finite", "finite again"}
