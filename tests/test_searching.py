"""Finding plans through the library: what a plan says of itself is true, and nothing but the options decides it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from skrr_export.errors import CheckpointError, InputError, PlanError, SkrrError
from skrr_export.pipelines import PRESETS, Preset
from skrr_export.plan import Plan
from skrr_export.prompts import calibration_prompts
from skrr_export.published import PUBLISHED
from skrr_export.searching import METHODS, SearchOptions, reuse_published, search_plans
from tests import reference
from tests.bundles import run_python, soften
from tests.checkpoints import bert_checkpoint, contents, t5_checkpoint
from tests.reference import Sources

PROMPTS = ["a cat", "Two RED cubes, and a sign that says 'café'", "", "x"]
OURS = [method for method in METHODS if method != "laco"]
"""All methods but the one that writes a checkpoint of its own."""
TOLERANCE = 1e-4
"""Relative, of D: two orders of the same fp32 sums differ by 1e-5 in an embedding, and a plan has six digits."""


def near(value: float) -> Any:
    """What equals a number but for rounding."""
    return pytest.approx(value, rel=TOLERANCE)


@dataclass(frozen=True)
class Encoder:
    """A checkpoint to search on."""

    path: Path
    layers: int
    parameters: int
    units: tuple[int, ...]
    """Parameters of each."""

    @property
    def dense(self) -> Sources:
        return [(layer, layer) for layer in range(self.layers)]


def _encoder(path: Path, units: Sequence[Sequence[str]]) -> Encoder:
    """Count a checkpoint's parameters; `units` holds the beginnings of each unit's tensor names."""
    sizes = {name: tensor.numel() for name, tensor in load_file(path / "model.safetensors").items()}
    counts = [sum(size for name, size in sizes.items() if name.startswith(tuple(begin))) for begin in units]
    assert all(counts)
    return Encoder(path, len(units) // 2, sum(sizes.values()), tuple(counts))


def _t5(path: Path, layers: int, **options: Any) -> Encoder:
    soften(t5_checkpoint(path, layers=layers, tokenizer=True, **options))
    units = [[f"encoder.block.{layer}.layer.{kind}."] for layer in range(layers) for kind in (0, 1)]
    encoder = _encoder(path, units)
    (bias,) = (
        tensor.numel()
        for name, tensor in load_file(path / "model.safetensors").items()
        if name.endswith("relative_attention_bias.weight")
    )
    return Encoder(path, layers, encoder.parameters, (encoder.units[0] - bias, *encoder.units[1:]))  # serves all layers


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    return _t5(tmp_path_factory.mktemp("searching") / "t5", 4)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    path = bert_checkpoint(tmp_path_factory.mktemp("searching") / "bert", tokenizer=True)
    units: list[list[str]] = []
    for layer in range(3):
        here = f"encoder.layer.{layer}."
        units += [[f"{here}attention."], [f"{here}intermediate.", f"{here}output."]]
    encoder = _encoder(path, units)
    pooler = sum(
        tensor.numel() for name, tensor in load_file(path / "model.safetensors").items() if name.startswith("pooler.")
    )
    return Encoder(path, 3, encoder.parameters - pooler, encoder.units)  # which no pipeline runs


@pytest.fixture(scope="module")
def denoiser(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A FLUX.1 transformer of which the text projection is all that is there."""
    generator = torch.Generator().manual_seed(1)
    path = tmp_path_factory.mktemp("denoiser") / "diffusion_pytorch_model.safetensors"
    weight, bias = 0.3 * torch.randn(29, 37, generator=generator), torch.randn(29, generator=generator)
    save_file({"context_embedder.weight": weight, "context_embedder.bias": bias}, path)
    return path


def search(encoder: Encoder, *sparsities: float, **options: Any) -> list[Plan]:
    options.setdefault("prompts", PROMPTS)
    options.setdefault("device", "cpu")
    return search_plans(encoder.path, SearchOptions(sparsities=sparsities or (0.3,), **options))


def found(plan: Plan) -> dict[str, Any]:
    """Everything that a search found, and not what it took."""
    provenance = {name: fact for name, fact in plan.provenance.items() if name != "evaluations"}
    return {**plan.to_dict(), "provenance": provenance}


def refused(encoder: Encoder, **options: Any) -> str:
    with pytest.raises(SkrrError) as caught:
        search(encoder, **options)
    return str(caught.value)


# Options


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"method": "skr"}, f"unknown method 'skr'; known: {', '.join(METHODS)}"),
        ({"sparsities": ()}, "a sparsity is a share above 0 and below 1, such as 0.42"),
        ({"sparsities": (0.3, 1.0)}, "a sparsity is a share above 0 and below 1, such as 0.42"),
        ({"sparsities": (float("nan"),)}, "a sparsity is a share above 0 and below 1, such as 0.42"),
        ({"beam": 0}, "the beam must be at least 1, not 0"),
        ({"max_prompts": 0}, "at least one prompt is needed, not 0"),
        ({"cache_gb": -1.0}, "the cache cannot have -1.0 GB"),
        ({"cache_gb": float("nan")}, "the cache cannot have nan GB"),
        ({"cache_gb": float("inf")}, "the cache cannot have inf GB"),
        ({"dtype": "fp16"}, "cannot search in 'fp16'; choose one of fp32, bf16"),
        ({"method": "shortgpt", "granularity": "sub-block"}, "shortgpt drops whole layers by its definition"),
        ({"method": "skrr+", "reuse": False}, "skrr+ is about re-use; for skips alone use --method skrr --no-reuse"),
    ],
)
def test_options_that_are_not_acceptable(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError) as caught:
        SearchOptions(**{"sparsities": (0.3,), **options})
    assert str(caught.value).startswith(words)


@pytest.mark.parametrize(
    ("options", "reuses", "grain"),
    [
        ({}, True, "sub-block"),
        ({"method": "skrr"}, True, "sub-block"),
        ({"method": "skrr", "reuse": False, "granularity": "layer"}, False, "layer"),
        ({"method": "finercut"}, False, "sub-block"),
        ({"method": "finercut", "reuse": True}, True, "sub-block"),
        ({"method": "shortgpt"}, False, "layer"),
        ({"method": "uniform"}, False, "sub-block"),
        ({"method": "random", "granularity": "layer"}, False, "layer"),
    ],
)
def test_what_a_method_does_unless_told_otherwise(options: dict[str, Any], reuses: bool, grain: str) -> None:
    chosen = SearchOptions(sparsities=(0.3,), **options)
    assert (chosen.reuses, chosen.grain) == (reuses, grain)


def test_bad_options_are_refused_before_torch_is_loaded(tmp_path: Path) -> None:
    code = """
import sys
from skrr_export.errors import SkrrError
from skrr_export.searching import SearchOptions, search_plans
for call in (
    lambda: SearchOptions(sparsities=(2.0,)),
    lambda: search_plans("/absent", SearchOptions(sparsities=(0.3,))),
    lambda: search_plans(sys.argv[1], SearchOptions(sparsities=(0.3,))),
):
    try:
        call()
    except SkrrError as error:
        print(type(error).__name__)
print(sorted({"torch", "transformers", "numpy"} & sys.modules.keys()))
"""
    assert run_python(code, tmp_path).stdout.split("\n")[:-1] == ["InputError", *["CheckpointError"] * 2, "[]"]


# What a plan says of itself


@dataclass(frozen=True)
class ByHand:
    """How a pipeline feeds its encoder, and what its denoiser sees of the result."""

    length: int | None = None
    """What prompts are padded to, and attend to; `None`: each prompt stands alone."""
    reads_padding: bool = False
    lowercase: bool = False
    denoiser: Path | None = None
    prompts: tuple[str, ...] = tuple(PROMPTS)

    def rows(self, encoder: Encoder, sources: Sources, prompts: Sequence[str]) -> np.ndarray:
        """What transformers gives under a plan, the rows of all prompts one below the other."""
        from transformers import PreTrainedTokenizerFast

        tokenizer, rows = PreTrainedTokenizerFast.from_pretrained(encoder.path), []
        for prompt in prompts:
            ids = tokenizer(prompt.lower() if self.lowercase else prompt)["input_ids"]
            padded = np.array([ids + [0] * ((self.length or 0) - len(ids))])
            mask = None if self.length else np.ones_like(padded)
            embedding = reference.encode(encoder.path, sources, padded, mask)[0].astype(np.float64)
            rows.append(embedding if self.reads_padding else embedding[: len(ids)])
        if self.denoiser is None:
            return np.concatenate(rows)
        weights = {name: value.double().numpy() for name, value in load_file(self.denoiser).items()}
        return np.concatenate(rows) @ weights["context_embedder.weight"].T + weights["context_embedder.bias"]

    def terms(self, encoder: Encoder, sources: Sources) -> tuple[float, float]:
        """D, of the prompts and of the empty prompt."""
        prompts, null = (
            self.rows(encoder, sources, group) - _dense_rows(self, encoder, group) for group in (self.prompts, ("",))
        )
        return float(np.square(prompts).mean()), float(np.square(null).mean())

    def value(self, encoder: Encoder, sources: Sources) -> float:
        """D."""
        return sum(self.terms(encoder, sources))


@cache
def _dense_rows(by_hand: ByHand, encoder: Encoder, prompts: tuple[str, ...]) -> np.ndarray:
    return by_hand.rows(encoder, encoder.dense, prompts)


LOWERED = Preset(name="lowered", max_length=120, padding="max_length", masked=True, reads_padding=False, lowercase=True)

CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    # encoder, options of the search, and how the same is computed by hand
    "t5": ("t5", {}, {}),
    "bert": ("bert", {}, {}),
    "flux.1 and its denoiser": (
        "t5",
        {"pipeline": "flux.1", "denoiser": True, "method": "skrr"},
        {"length": 512, "reads_padding": True, "denoiser": True},
    ),
    "padding attended, but not read": ("t5", {"pipeline": "ltx-video", "method": "skrr"}, {"length": 128}),
    "prompts lower-cased": ("t5", {"pipeline": "lowered", "method": "skrr"}, {"lowercase": True}),
    "layers": ("t5", {"granularity": "layer", "method": "skrr"}, {}),
    "on the embedding alone": ("t5", {"method": "finercut", "reuse": True}, {}),
    "no search": ("bert", {"method": "random", "reuse": True}, {}),
}


@pytest.mark.parametrize("case", CASES)
def test_the_numbers_of_a_plan_are_those_of_transformers(
    request: pytest.FixtureRequest, denoiser: Path, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PRESETS, "lowered", LOWERED)
    name, options, settings = CASES[case]
    encoder: Encoder = request.getfixturevalue(name)
    options, settings = ({**each, "denoiser": denoiser} if "denoiser" in each else each for each in (options, settings))
    by_hand = ByHand(**settings)
    (plan,) = search(encoder, 0.35, **options)
    numbers = plan.provenance
    prompts, null = by_hand.terms(encoder, plan.sources)
    assert numbers["discrepancy"] == {
        "prompts": near(prompts),
        "null": near(null),
        "value": near(prompts + null),
        "scale": near(np.square(by_hand.rows(encoder, encoder.dense, PROMPTS)).mean()),
        "space": "context_embedder.weight [29, 37] of diffusion_pytorch_model.safetensors"
        if "denoiser" in options
        else "embedding",
    }
    assert len(numbers["reuses"]) == plan.counts()["re-use"]
    for reuse in numbers["reuses"]:
        sources = [list(pair) for pair in plan.sources]
        assert sources[reuse["unit"] // 2][reuse["unit"] % 2] == reuse["source"] // 2
        sources[reuse["unit"] // 2][reuse["unit"] % 2] = None
        assert reuse["before"] == near(by_hand.value(encoder, [(a, b) for a, b in sources]))
        assert reuse["D"] == numbers["discrepancy"]["value"]
        if numbers["method"] == "skrr+":  # swept until nothing is better; Algorithm 2 never looks back
            assert reuse["D"] < reuse["before"]
    used = {2 * source + kind for pair in plan.sources for kind, source in enumerate(pair) if source is not None}
    reached = sum(encoder.units[unit] for unit in set(range(2 * encoder.layers)) - used) / encoder.parameters
    assert numbers["sparsity"] == {"wanted": 0.35, "reached": pytest.approx(reached, rel=1e-5)}
    assert reached >= 0.3495
    assert sorted(numbers["order"]) == sorted(set(range(2 * encoder.layers)) - used)
    rows = len(ByHand(**{**settings, "denoiser": None}).rows(encoder, encoder.dense, PROMPTS))
    assert (numbers["calibration"]["prompts"], numbers["calibration"]["tokens"]) == (len(PROMPTS), rows)


def test_the_steps_of_a_plan_are_those_of_transformers(bert: Encoder) -> None:
    """D after each drop of its order, and of the candidates of each step, of which the smallest is taken."""
    (plan,) = search(bert, 0.45, method="skrr", beam=1)
    order, (skip, *_) = plan.provenance["order"], plan.provenance["curves"]
    assert skip["name"] == "skip"
    assert len(skip["points"]) == len(order) == len(plan.provenance["steps"]) >= 3
    for count, (sparsity, value) in enumerate(skip["points"], start=1):
        assert sparsity == pytest.approx(sum(bert.units[unit] for unit in order[:count]) / bert.parameters, rel=1e-5)
        step = plan.provenance["steps"][count - 1]
        assert (step["units"], step["D"]) == ([order[count - 1]], value)
        every = {}
        for unit in set(range(6)) - set(order[: count - 1]):
            tried = Plan.from_order("bert", 3, [*order[: count - 1], unit], drop=count)
            every[str(unit)] = ByHand().value(bert, tried.sources)
        assert value == near(min(every.values())) == near(every[str(order[count - 1])])
        assert step["candidates"] == {name: near(every[name]) for name in step["candidates"]}
        assert step["candidates"].keys() | step["above"].keys() == every.keys()
        for name, bound in step["above"].items():  # abandoned: the bound is true, and already too large
            assert value <= bound <= every[name] * (1 + TOLERANCE)


def test_a_half_precision_checkpoint_is_searched_as_it_is_stored(tmp_path: Path) -> None:
    encoder = _t5(tmp_path / "t5", 3, dtype=torch.bfloat16)
    assert load_file(encoder.path / "model.safetensors")["shared.weight"].dtype == torch.bfloat16
    (plan,) = search(encoder, method="skrr")
    assert plan.provenance["settings"]["dtype"] == "fp32"
    assert plan.provenance["discrepancy"]["value"] == near(ByHand().value(encoder, plan.sources))
    (half,) = search(encoder, method="skrr", dtype="bf16")
    assert half.provenance["settings"]["dtype"] == "bf16"
    value = half.provenance["discrepancy"]["value"]
    assert value == pytest.approx(ByHand().value(encoder, half.sources), rel=0.05)
    assert value != near(ByHand().value(encoder, half.sources))  # it was not computed in fp32


# What decides a plan, and what does not


@pytest.mark.parametrize("name", ["t5", "bert"])
@pytest.mark.parametrize("method", ["skrr", "finercut"])
def test_memory_does_not_decide_a_plan(request: pytest.FixtureRequest, name: str, method: str) -> None:
    encoder = request.getfixturevalue(name)
    plain, frugal, lavish = (search(encoder, method=method, cache_gb=gb)[0] for gb in (None, 0, 1e6))
    assert found(plain) == found(frugal) == found(lavish)
    work = [plan.provenance["evaluations"]["sub_blocks"] for plan in (plain, frugal, lavish)]
    assert work[1] > work[0] == work[2]
    naive = [plan.provenance["evaluations"]["naive"] for plan in (plain, frugal, lavish)]
    assert naive[0] == naive[1] == naive[2]
    assert work[0] < naive[0]


@pytest.mark.parametrize("method", OURS)
def test_the_same_search_finds_the_same(bert: Encoder, method: str) -> None:
    one, other = (search(bert, 0.25, method=method)[0] for _ in range(2))
    assert one.to_json() == other.to_json()


@pytest.mark.parametrize("name", ["t5", "bert"])
@pytest.mark.parametrize("sparsity", [0.2, 0.45])
def test_skrr_plus_is_never_worse_than_skrr_nor_skrr_than_its_skips(
    request: pytest.FixtureRequest, name: str, sparsity: float
) -> None:
    encoder = request.getfixturevalue(name)
    plus, skrr, skips = (
        search(encoder, sparsity, **options)[0]
        for options in ({}, {"method": "skrr"}, {"method": "skrr", "reuse": False})
    )
    values = [plan.provenance["discrepancy"]["value"] for plan in (plus, skrr, skips)]
    assert values == sorted(values)
    assert skips.counts()["re-use"] == 0
    assert skips.provenance["order"] == skrr.provenance["order"]
    assert [skips.provenance["settings"]["reuse"], skrr.provenance["settings"]["reuse"]] == ["no", "nearest"]


@pytest.mark.parametrize("method", OURS)
def test_several_sparsities_are_each_reached_in_the_order_asked_for(bert: Encoder, method: str) -> None:
    wanted = (0.5, 0.2, 0.35)
    plans = search(bert, *wanted, method=method)
    assert [plan.provenance["sparsity"]["wanted"] for plan in plans] == list(wanted)
    assert all(
        plan.provenance["sparsity"]["reached"] >= plan.provenance["sparsity"]["wanted"] - 0.0006 for plan in plans
    )
    assert {plan.provenance["method"] for plan in plans} == {method}
    if method != "skrr+":  # they are prefixes of one order
        orders = sorted((plan.provenance["order"] for plan in plans), key=len)
        assert all(longer[: len(shorter)] == shorter for shorter, longer in pairwise(orders))
    assert found(search(bert, 0.5, method=method)[0]) == found(plans[0])


@pytest.mark.parametrize("method", ["shortgpt", "random", "uniform", "skrr"])
def test_layers_are_dropped_whole(t5: Encoder, method: str) -> None:
    (plan,) = search(t5, method=method, granularity="layer", reuse=False)
    assert all((attention is None) == (feed_forward is None) for attention, feed_forward in plan.sources)
    order = plan.provenance["order"]
    assert all(one % 2 == 0 and other == one + 1 for one, other in zip(order[::2], order[1::2], strict=True))
    assert plan.provenance["settings"]["granularity"] == "layer"


def test_the_seed_decides_a_random_plan_and_no_other(t5: Encoder) -> None:
    plans = [search(t5, method="random", seed=seed)[0] for seed in range(4)]
    assert len({tuple(plan.provenance["order"]) for plan in plans}) > 1
    assert [plan.provenance["settings"]["seed"] for plan in plans] == [0, 1, 2, 3]
    one, other = (search(t5, method="finercut", seed=seed)[0] for seed in (0, 1))
    assert one.sources == other.sources


@pytest.mark.parametrize(
    ("count", "chosen"), [(1, [0]), (2, [0, 3]), (3, [0, 2, 4]), (5, [0, 1, 2, 4, 5]), (7, range(7)), (9, range(7))]
)
def test_fewer_prompts_are_spread_evenly(t5: Encoder, count: int, chosen: Sequence[int]) -> None:
    prompts = [f"prompt {'x' * number}" for number in range(7)]
    (fewer,) = search(t5, method="uniform", prompts=prompts, max_prompts=count)
    (chosen_by_hand,) = search(t5, method="uniform", prompts=[prompts[index] for index in chosen])
    assert fewer.provenance["calibration"] == chosen_by_hand.provenance["calibration"]


def test_the_shipped_prompts_are_taken_where_none_are_given(t5: Encoder) -> None:
    shipped = calibration_prompts()
    (plan,) = search(t5, method="uniform", prompts=None, max_prompts=2)
    (by_hand,) = search(t5, method="uniform", prompts=[shipped[0], shipped[len(shipped) // 2]])
    assert plan.provenance["calibration"] == by_hand.provenance["calibration"]
    assert plan.provenance["calibration"]["prompts"] == 2


def test_the_order_of_prompts_does_not_matter(bert: Encoder) -> None:
    """They are sorted by length; so prompts of unlike length."""
    prompts = ["a", "bb", "ccc", "dddd"]
    one, other = (search(bert, method="skrr", prompts=order)[0] for order in (prompts, prompts[::-1]))
    assert found(one) == found(other)


# What the plan remembers of its checkpoint


def _weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def edit(checkpoint: Path) -> None:
        weights = load_file(checkpoint / "model.safetensors")
        change(weights)
        save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})

    return edit


def _config(checkpoint: Path) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps({**config, "layer_norm_epsilon": 1e-3}))


def _first(weights: dict[str, torch.Tensor]) -> None:
    weights["encoder.block.2.layer.0.SelfAttention.k.weight"].view(-1)[0] += 1e-3


def _last(weights: dict[str, torch.Tensor]) -> None:
    weights["encoder.block.3.layer.1.DenseReluDense.wo.weight"].view(-1)[-1] += 1e-3


def _norm(weights: dict[str, torch.Tensor]) -> None:
    weights["encoder.final_layer_norm.weight"][0] *= -1


@pytest.mark.parametrize("change", [_weights(_first), _weights(_last), _weights(_norm), _config])
def test_another_checkpoint_is_known_by_its_hash(t5: Encoder, tmp_path: Path, change: Callable[[Path], None]) -> None:
    copy = Encoder(Path(shutil.copytree(t5.path, tmp_path / "copy")), 4, 0, ())
    (before,), (same,) = search(t5, method="random"), search(copy, method="random")
    assert same.provenance["checkpoint"] == {"name": "copy", "sha256": before.provenance["checkpoint"]["sha256"]}
    change(copy.path)
    (changed,) = search(copy, method="random")
    assert changed.provenance["checkpoint"]["sha256"] != before.provenance["checkpoint"]["sha256"]


def test_a_search_only_reads_its_checkpoint(t5: Encoder) -> None:
    before = contents(t5.path), [path.stat().st_mtime_ns for path in sorted(t5.path.iterdir())]
    search(t5, method="skrr")
    assert (contents(t5.path), [path.stat().st_mtime_ns for path in sorted(t5.path.iterdir())]) == before


def test_an_encoder_in_a_pipeline_and_a_tokenizer_elsewhere(t5: Encoder, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(t5.path, tmp_path / "pipeline" / "text_encoder_2"))
    (tmp_path / "words").mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (copied / name).rename(tmp_path / "words" / name)
    encoder = Encoder(tmp_path / "pipeline", 4, 0, ())
    options: dict[str, Any] = {"subfolder": "text_encoder_2", "method": "skrr"}
    assert refused(encoder, **options) == f"no tokenizer in {copied}; name its directory with --tokenizer"
    (plan,) = search(encoder, **options, tokenizer=tmp_path / "words")
    (before,) = search(t5, method="skrr")
    assert plan.sources == before.sources
    assert plan.provenance["calibration"] == before.provenance["calibration"]


# Progress


@pytest.mark.parametrize("method", OURS)
def test_progress_never_exceeds_the_whole(bert: Encoder, method: str) -> None:
    told: list[tuple[str, int, int]] = []
    options = SearchOptions(sparsities=(0.3,), method=method, prompts=PROMPTS, device="cpu")
    search_plans(bert.path, options, progress=lambda *told_now: told.append(told_now))
    assert told
    for what, done, total in told:
        assert what
        assert 0 <= done <= total


# What cannot be searched


def test_prompts_that_are_none(t5: Encoder) -> None:
    assert refused(t5, prompts=[]) == "no prompts to calibrate on"


def test_a_tokenizer_that_is_none(t5: Encoder, tmp_path: Path) -> None:
    assert refused(t5, tokenizer=tmp_path) == f"no tokenizer in {tmp_path}; name its directory with --tokenizer"


def test_a_pipeline_that_is_unknown_or_for_another_encoder(t5: Encoder, bert: Encoder) -> None:
    assert refused(t5, pipeline="flux").startswith("unknown pipeline 'flux'; known: plain, flux.1")
    assert refused(bert, pipeline="flux.1") == "pipeline 'flux.1' feeds a clip or t5 encoder; this one is bert"


@pytest.mark.parametrize("method", OURS)
def test_a_sparsity_out_of_reach(bert: Encoder, method: str) -> None:
    most = sum(bert.units) / bert.parameters
    with pytest.raises(PlanError) as caught:
        search(bert, 0.2, 0.99, method=method)
    assert str(caught.value) == f"sparsity 99.0% cannot be reached: the nearest is {most:.1%}"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(tmp_path: Path, t5: Encoder, value: float) -> None:
    copy = Encoder(Path(shutil.copytree(t5.path, tmp_path / "copy")), 4, 0, ())
    _weights(lambda weights: weights["encoder.final_layer_norm.weight"].fill_(value))(copy.path)
    assert refused(copy) == "the dense encoder's embeddings are not finite in this precision; try --dtype fp32"


def test_weights_that_vanish_before_they_are_used(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is not a checkpoint"):
        search_plans(tmp_path, SearchOptions(sparsities=(0.3,)))


# A published order


def test_a_published_order_needs_the_encoder_it_was_found_on(t5: Encoder, bert: Encoder) -> None:
    for encoder, words in ((t5, "has num_layers 4, not 24"), (bert, "is bert")):
        with pytest.raises(PlanError, match=f"for T5-XXL only, and this encoder {words}; find an order for it"):
            reuse_published(encoder.path, PUBLISHED["sd3"], SearchOptions(sparsities=(0.3,), method="skrr"))


def test_a_published_order_that_ends_before_the_sparsity(tmp_path: Path) -> None:
    """Said before the checkpoint is opened."""
    with pytest.raises(PlanError, match=r"published order 'sd3', 24 units: sparsity 60.0% cannot be reached"):
        reuse_published(tmp_path / "absent", PUBLISHED["sd3"], SearchOptions(sparsities=(0.3, 0.6), method="skrr"))
