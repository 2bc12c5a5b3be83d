"""LaCo: the merges are those of the paper's walk, their tensors those of its formula, and D that of what is exported.

The truth is transformers: a model whose linear maps are replaced by the formula's, and layers left out by
`tests.reference`.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from skrr_export import calibration
from skrr_export.cli import cli
from skrr_export.errors import InputError, OutputError, PlanError, SkrrError
from skrr_export.exporting import ExportOptions, export_checkpoint
from skrr_export.page.record import incomparable, read_record
from skrr_export.pipelines import PRESETS
from skrr_export.plan import Plan
from skrr_export.search import laco
from skrr_export.searching import SearchOptions, search_plans
from tests import reference
from tests.bundles import error_against_transformers, soften
from tests.checkpoints import bert_checkpoint, contents, t5_checkpoint
from tests.search import naive
from tests.search.subjects import CHUNK_TOKENS, PROMPTS, linear

TOLERANCE = 1e-4
"""Relative, of D, which a plan holds to six digits."""
PLAIN = PRESETS["plain"]
LAYERS = {"t5": 7, "bert": 4}
SPARSITIES = {"t5": (0.12, 0.24, 0.36), "bert": (0.15, 0.3, 0.45)}
"""A layer each."""

ROUNDING = {torch.float32: 1e-6, torch.float16: 2**-10, torch.bfloat16: 0.0}
"""Relative, of a merged tensor; fp32 holds a sum of bf16 numbers whole, and one of fp16 numbers nearly so."""

Merges = list[list[Any]]
"""As a plan tells them: pairs of a layer and a list of those that it takes in."""


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Of random layers a walk would always merge the top ones: the T5's do more or less."""
    here = tmp_path_factory.mktemp("laco")
    t5 = soften(t5_checkpoint(here / "t5", layers=LAYERS["t5"], tokenizer=True))
    weights = load_file(t5 / "model.safetensors")
    for layer, factor in enumerate((1.0, 0.2, 0.9, 0.4, 0.8, 0.3, 0.7)):
        for output in ("0.SelfAttention.o", "1.DenseReluDense.wo"):
            weights[f"encoder.block.{layer}.layer.{output}.weight"] *= factor
    save_file(weights, t5 / "model.safetensors", metadata={"format": "pt"})
    return {"t5": t5, "bert": bert_checkpoint(here / "bert", layers=LAYERS["bert"], tokenizer=True)}


@pytest.fixture(autouse=True)
def _several_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "CHUNK_TOKENS", CHUNK_TOKENS)


@pytest.fixture(scope="module")
def denoiser(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("denoiser") / "diffusion_pytorch_model.safetensors"
    weight, bias = (torch.from_numpy(array) for array in linear(1, 37, 29))
    save_file({"context_embedder.weight": weight, "context_embedder.bias": bias}, path)
    return path


def search(checkpoint: Path, merged: Path, *sparsities: float, **options: Any) -> list[Plan]:
    kept = {name: options.pop(name) for name in ("journal", "resume") if name in options}
    options = {"method": "laco", "prompts": PROMPTS, "device": "cpu", **options}
    return search_plans(checkpoint, SearchOptions(sparsities=sparsities, merged=merged, **options), **kept)


def found(plan: Plan) -> dict[str, Any]:
    """What a search found, and neither what it took nor under which name it wrote it."""
    facts = {name: fact for name, fact in plan.provenance.items() if name not in {"evaluations", "merged"}}
    return {**plan.to_dict(), "provenance": facts, "merged": plan.provenance["merged"]["sha256"]}


def records(journal: Path) -> list[tuple[str, Any]]:
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    return [(line["name"], line["value"]) for line in lines[1:]]


# The truth


Weights = dict[str, torch.Tensor]


@cache
def opened(checkpoint: Path) -> tuple[Weights, Callable[[int], dict[str, str]]]:
    """The weights as transformers has them; and for a layer those that merges change, by names without its number."""
    from transformers import AutoConfig, BertModel, T5EncoderModel

    family = AutoConfig.from_pretrained(checkpoint).model_type
    model = {"t5": T5EncoderModel, "bert": BertModel}[family].from_pretrained(checkpoint, dtype="auto")
    root = {"t5": "encoder.block.{}.", "bert": "encoder.layer.{}."}[family]
    modules = {name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    weights = {name: value for name, value in model.state_dict().items() if name != "encoder.embed_tokens.weight"}

    def of(layer: int) -> dict[str, str]:
        here = root.format(layer)
        names = [name for name in weights if name.startswith(here) and name.rpartition(".")[0] in modules]
        return {name.removeprefix(here): name for name in names}

    return weights, of


def by_formula(checkpoint: Path, merges: Merges, directory: Path) -> Path:
    """Save the merged model, each merge made on what the merges before it left."""
    stored, of = opened(checkpoint)
    weights = {name: value.double() for name, value in stored.items()}
    for layer, merged in merges:
        for name, here in of(layer).items():
            own = weights[here]
            weights[here] = own + sum(weights[of(other)[name]] - own for other in merged)
    shutil.copytree(checkpoint, directory, ignore=shutil.ignore_patterns("*.safetensors*"))
    rounded = {name: value.to(stored[name].dtype) for name, value in weights.items()}
    save_file(rounded, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def gone(merges: Merges) -> list[int]:
    return [layer for _, merged in merges for layer in merged]


def without(merges: Merges, layers: int) -> reference.Sources:
    return [(None, None) if layer in gone(merges) else (layer, layer) for layer in range(layers)]


class Walk:
    """The paper's algorithm 1 on one checkpoint, under a threshold that falls after each walk."""

    def __init__(self, checkpoint: Path, layers: int, folder: Path) -> None:
        self.checkpoint, self.layers, self.folder = checkpoint, layers, folder
        self.prompts = [naive.tokenise(checkpoint, [prompt], PLAIN) for prompt in PROMPTS]
        self.cosines: dict[str, float] = {}
        """By what is merged, as JSON."""

    def cosine(self, merges: Merges) -> float:
        """The mean of the prompts' cosines to the dense embeddings, each prompt on its own."""
        key = json.dumps(merges)
        if key not in self.cosines:
            merged = by_formula(self.checkpoint, merges, self.folder / str(len(self.cosines)))
            cosines = []
            for inputs in self.prompts:
                a = reference.encode(self.checkpoint, None, *inputs).astype(np.float64).ravel()
                b = reference.encode(merged, without(merges, self.layers), *inputs).astype(np.float64).ravel()
                cosines.append(a @ b / math.sqrt((a @ a) * (b @ b)))
            self.cosines[key] = sum(cosines) / len(cosines)
        return self.cosines[key]

    def merges(self, count: int, *, combined: int, step: int) -> Merges:
        """Until so many layers are gone; the threshold falls by so many hundredths."""
        merges: Merges = []
        left = list(range(self.layers))
        for hundredths in range(100 - step, -1000, -step):
            place = max(len(left) - combined, 0)
            while place >= 0:
                merge = [left[place], left[place + 1 : place + combined]]
                cosine = 100 * self.cosine([*merges, merge])
                assert abs(cosine - round(cosine)) > 1e-3, "too close to call"
                if cosine <= hundredths:
                    place -= 1
                    continue
                merges.append(merge)
                left = [layer for layer in left if layer not in merge[1]]
                if len(gone(merges)) >= count:
                    return merges
                place = min(place - 2, len(left) - combined)
        raise AssertionError


def truth(checkpoint: Path, merged: Path, **options: Any) -> naive.Truth:
    """D of arrangements of a merged checkpoint, against the checkpoint that it was."""
    measure, dense = (naive.Truth(path, PROMPTS, PLAIN, **options) for path in (merged, checkpoint))
    measure._dense = dense._dense
    return measure


def check_tensors(checkpoint: Path, merges: Merges, merged: Path, folder: Path) -> None:
    """The merged checkpoint holds the formula's tensors, the encoder's other ones as they were, and no others."""
    before, of = opened(checkpoint)
    expected = load_file(by_formula(checkpoint, merges, folder) / "model.safetensors")
    changed = {name for layer, _ in merges for name in of(layer).values() if layer not in gone(merges)}
    written = {name: value for name, value in load_file(merged / "model.safetensors").items() if name[:5] != "_pad."}
    assert written.keys() == {name for name in before if not name.startswith("pooler.")}
    assert changed <= written.keys()
    for name, value in written.items():
        assert value.dtype == before[name].dtype
        if name in changed:
            torch.testing.assert_close(value, expected[name], rtol=ROUNDING[value.dtype], atol=1e-6)
            assert not torch.equal(value, before[name])
        else:
            assert value.view(torch.uint8).equal(before[name].view(torch.uint8))


def arrangement(sources: reference.Sources) -> naive.Arrangement:
    return tuple(None if layer is None else 2 * layer + kind for pair in sources for kind, layer in enumerate(pair))


# The merges, and the checkpoint


@pytest.mark.parametrize(
    "case",
    [
        ("t5", 3, 2, 1),
        ("t5", 3, 3, 1),
        ("t5", 5, 2, 200),
        ("t5", 5, 4, 200),
        ("bert", 3, 2, 1),
        ("bert", 3, 3, 1),
        ("bert", 3, 2, 20),
    ],
    ids=str,
)
def test_the_merges_are_those_of_the_walk(
    case: tuple[str, int, int, int], request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step of 200 hundredths accepts everything at once. A projection changes D, and no cosine."""
    family, count, combined, step = case
    checkpoints = request.getfixturevalue("checkpoints")
    denoiser = request.getfixturevalue("denoiser") if family == "t5" else None
    monkeypatch.setattr(laco, "COMBINED", combined)
    monkeypatch.setattr(laco, "STEP", step / 100)
    checkpoint, layers, journal = checkpoints[family], LAYERS[family], tmp_path / "journal"
    [plan] = search(checkpoint, tmp_path / "merged", count * SPARSITIES[family][0], journal=journal, denoiser=denoiser)
    walk = Walk(checkpoint, layers, tmp_path)
    expected = walk.merges(count, combined=combined, step=step)
    ours = {cosine for name, values in records(journal) if "cosines" in name for cosine in values}
    for cosine in walk.cosines.values():
        assert min(abs(cosine - each) for each in ours) < 1e-5
    assert plan.provenance["merges"] == expected
    assert list(plan.sources) == without(expected, layers)
    assert plan.provenance["order"] == [2 * layer + kind for layer in gone(expected) for kind in (0, 1)]
    check_tensors(checkpoint, expected, tmp_path / "merged", tmp_path / "formula")


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (t5_checkpoint, {"decoder": True, "shard_size": "20KB"}),
        (t5_checkpoint, {"dtype": torch.bfloat16}),
        (bert_checkpoint, {"dtype": torch.float16}),
    ],
    ids=["shards and a decoder", "bf16", "fp16"],
)
def test_the_merged_checkpoint_is_the_encoder_in_one_file_and_its_own_types(
    make: Callable[..., Path], options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(laco, "COMBINED", 3)
    checkpoint = make(tmp_path / "checkpoint", layers=4, tokenizer=True, **options)
    before = contents(checkpoint)
    [plan] = search(checkpoint, tmp_path / "merged", 0.15)
    assert contents(checkpoint) == before
    check_tensors(checkpoint, plan.provenance["merges"], tmp_path / "merged", tmp_path / "formula")
    companions = {name for name in before if "safetensors" not in name and name != "generation_config.json"}
    assert contents(tmp_path / "merged").keys() == {"model.safetensors", *companions}
    for name in companions:
        assert contents(tmp_path / "merged")[name] == before[name]


def test_the_merged_checkpoint_is_one_for_transformers_and_for_export(
    checkpoints: dict[str, Path], tmp_path: Path, remembered_traces: None
) -> None:
    from transformers import AutoTokenizer, BertModel

    [plan] = search(checkpoints["bert"], tmp_path / "merged", 0.15)
    _, info = BertModel.from_pretrained(tmp_path / "merged", output_loading_info=True)
    assert info["missing_keys"] == {"pooler.dense.weight", "pooler.dense.bias"}
    prompt = AutoTokenizer.from_pretrained(tmp_path / "merged")(PROMPTS[:1], return_tensors="np")
    ids, mask = (prompt[name].astype(np.int64) for name in ("input_ids", "attention_mask"))
    assert error_against_transformers(tmp_path / "merged", tmp_path, plan.sources, ids, mask) < 2e-5


def test_a_plan_for_merged_weights_warns_of_others(
    checkpoints: dict[str, Path], tmp_path: Path, remembered_traces: None
) -> None:
    [plan] = search(checkpoints["bert"], tmp_path / "merged", 0.15)
    (tmp_path / "plan.json").write_text(plan.to_json(), encoding="utf-8")
    for name, checkpoint in (("right", tmp_path / "merged"), ("wrong", checkpoints["bert"])):
        checked = CliRunner().invoke(cli, ["plan", "check", str(tmp_path / "plan.json"), str(checkpoint)])
        exported = export_checkpoint(checkpoint, tmp_path / name, ExportOptions(plan=plan))
        assert checked.exit_code == 0, checked.output
        if name == "right":
            assert (checked.stderr, exported.warnings) == ("", ())
        else:
            [warning] = exported.warnings
            assert checked.stderr == f"warning: {warning}\n"
            assert warning.startswith("the plan is for the merged checkpoint 'merged' that its search wrote, not for")


def test_layers_hold_their_merged_maps_and_their_own_norms() -> None:
    sums = laco.layer_sums([laco.Merge(2, (3, 4)), laco.Merge(1, (2,)), laco.Merge(5, (6, 7, 8))])
    # 2 becomes 3 + 4 - 2; so 1 becomes 1 + (3 + 4 - 2 - 1); 5 becomes 6 + 7 + 8 - 2 * 5; 2 is gone
    assert sums == {1: ((2, -1), (3, 1), (4, 1)), 5: ((5, -2), (6, 1), (7, 1), (8, 1))}


# Its plan


@pytest.mark.parametrize("family", LAYERS)
def test_d_is_that_of_the_merged_checkpoint_against_the_original(
    family: str, checkpoints: dict[str, Path], denoiser: Path, tmp_path: Path
) -> None:
    checkpoint, options, project = checkpoints[family], {}, {}
    if family == "t5":
        weights = {name: value.double().numpy() for name, value in load_file(denoiser).items()}
        weight, bias = weights["context_embedder.weight"], weights["context_embedder.bias"]
        options, project = {"denoiser": denoiser}, {"project": lambda rows: rows @ weight.T + bias}
    plans = search(checkpoint, tmp_path / "merged", *SPARSITIES[family], **options)
    for plan, sparsity in zip(plans, SPARSITIES[family], strict=True):
        measure = truth(checkpoint, tmp_path / f"merged-{sparsity}", **project)
        prompts, null = measure.terms(arrangement(plan.sources))
        told = plan.provenance["discrepancy"]
        assert (told["prompts"], told["null"]) == pytest.approx((prompts, null), rel=TOLERANCE)
        assert told["scale"] == pytest.approx(measure.scale(), rel=TOLERANCE)
        assert min(prompts, null) > 0
        [curve] = plan.provenance["curves"]
        assert curve["points"][-1] == [plan.provenance["sparsity"]["reached"], told["value"]]
        assert curve["points"] == plans[-1].provenance["curves"][0]["points"][: len(curve["points"])]


def test_several_sparsities_are_those_found_alone(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    checkpoint = checkpoints["t5"]
    sparsities = (0.36, 0.12, 0.24)
    plans = search(checkpoint, tmp_path / "all", *sparsities)
    assert [len(gone(plan.provenance["merges"])) for plan in plans] == [3, 1, 2]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["all-0.12", "all-0.24", "all-0.36"]
    for plan, sparsity in zip(plans, sparsities, strict=True):
        [alone] = search(checkpoint, tmp_path / f"alone-{sparsity}", sparsity)
        assert found(alone) == found(plan)
        assert contents(tmp_path / f"alone-{sparsity}") == contents(tmp_path / f"all-{sparsity}")
        assert plan.provenance["merged"]["name"] == f"all-{sparsity}"


@pytest.mark.parametrize(("family", "sparsity"), [("t5", 0.48), ("bert", 0.15), ("bert", 0.3)])
def test_reuse_is_decided_on_the_merged_weights(
    family: str, sparsity: float, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    checkpoint, layers = checkpoints[family], LAYERS[family]
    if family == "t5":  # where layers are weak there is nothing to make up for
        checkpoint, layers = soften(t5_checkpoint(tmp_path / "t5", layers=5, tokenizer=True)), 5
    [plan] = search(checkpoint, tmp_path / "merged", sparsity, reuse=True)
    measure = truth(checkpoint, tmp_path / "merged")
    best, value = naive.reuse(measure, 2 * layers, plan.provenance["order"])
    assert arrangement(plan.sources) == best
    assert plan.provenance["discrepancy"]["value"] == pytest.approx(value, rel=TOLERANCE)
    assert plan.provenance["reuses"]
    for reuse in plan.provenance["reuses"]:
        without_it = tuple(None if place == reuse["unit"] else unit for place, unit in enumerate(best))
        assert reuse["before"] == pytest.approx(measure(without_it), rel=TOLERANCE)


def test_a_plan_names_both_checkpoints_and_compares_with_others(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    checkpoint = checkpoints["bert"]
    [plan] = search(checkpoint, tmp_path / "merged", 0.3)
    options = {"prompts": PROMPTS, "device": "cpu", "method": "uniform"}
    [other] = search_plans(checkpoint, SearchOptions(sparsities=(0.3,), **options))
    [on_merged] = search_plans(tmp_path / "merged", SearchOptions(sparsities=(0.3,), **options))
    assert plan.provenance["checkpoint"] == other.provenance["checkpoint"]
    assert plan.provenance["merged"] == on_merged.provenance["checkpoint"]
    assert "merges" not in other.provenance
    assert incomparable(read_record(plan), read_record(other)) is None
    assert Plan.from_json(plan.to_json()) == plan


@pytest.mark.parametrize("cache_gb", [0, 3e-5])
def test_memory_does_not_decide(cache_gb: float, checkpoints: dict[str, Path], tmp_path: Path) -> None:
    plans = [
        search(checkpoints["t5"], tmp_path / str(cache), 0.36, reuse=True, cache_gb=cache)[0]
        for cache in (None, cache_gb)
    ]
    assert found(plans[0]) == found(plans[1])
    assert contents(tmp_path / "None") == contents(tmp_path / str(cache_gb))


def test_a_search_goes_on_where_it_was_killed(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    checkpoint, journal = checkpoints["t5"], tmp_path / "journal"
    options = {"reuse": True, "journal": journal}
    whole = search(checkpoint, tmp_path / "whole", 0.12, 0.36, **options)
    lines = journal.read_bytes().splitlines(keepends=True)
    assert len(lines) > 8
    work = []
    for number, kept in enumerate((1, 2, 4, len(lines) - 2, len(lines))):
        journal.write_bytes(b"".join(lines[:kept]) + b'{"name": "la')
        again = search(checkpoint, tmp_path / f"resumed{number}", 0.12, 0.36, resume=True, **options)
        assert [found(plan) for plan in again] == [found(plan) for plan in whole]
        work.append(again[-1].provenance["evaluations"]["sub_blocks"])
        for sparsity in (0.12, 0.36):
            before, after = tmp_path / f"whole-{sparsity}", tmp_path / f"resumed{number}-{sparsity}"
            assert contents(after) == contents(before)
    assert work == sorted(work, reverse=True)
    assert work[-1] == 0


PROCESS = """
import json, sys
from pathlib import Path
from skrr_export.searching import SearchOptions, search_plans
from skrr_export import calibration
checkpoint, merged, prompts = sys.argv[1:]
calibration.CHUNK_TOKENS = (40, 100)
options = SearchOptions(
    sparsities=(0.3,), method="laco", merged=Path(merged), reuse=True, prompts=json.loads(prompts), device="cpu"
)
[plan] = search_plans(checkpoint, options, journal=Path(merged + ".journal"))
print(plan.to_json())
"""


def test_two_processes_find_what_one_does(
    checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of them is this one."""
    checkpoint, merged = checkpoints["bert"], tmp_path / "merged"
    [alone] = search(checkpoint, tmp_path / "alone", 0.3, reuse=True, journal=tmp_path / "alone.journal")
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    command = [sys.executable, "-c", PROCESS, str(checkpoint), str(merged), json.dumps(PROMPTS)]
    other = subprocess.Popen(
        command, stdout=subprocess.PIPE, env={**os.environ, **shared, "RANK": "1", "LOCAL_RANK": "1"}
    )
    try:
        for name, value in {**shared, "RANK": "0", "LOCAL_RANK": "0"}.items():
            monkeypatch.setenv(name, value)
        [here] = search(checkpoint, merged, 0.3, reuse=True, journal=tmp_path / "merged.journal")
        there = Plan.from_json(other.communicate(timeout=300)[0].decode())
    finally:
        other.kill()
    assert found(here) == found(there) == found(alone)
    assert contents(merged) == contents(tmp_path / "alone")
    assert (tmp_path / "merged.journal").read_bytes() == (tmp_path / "alone.journal").read_bytes()


# What is refused, and what is left then


def test_the_merged_directory_belongs_to_this_method() -> None:
    with pytest.raises(InputError) as caught:
        SearchOptions(sparsities=(0.3,), method="laco")
    assert str(caught.value) == "laco merges layers: name a directory for the merged checkpoint with --merged"
    with pytest.raises(InputError) as caught:
        SearchOptions(sparsities=(0.3,), method="shortgpt", merged=Path("merged"))
    assert str(caught.value) == "shortgpt merges no layers; --merged is for --method laco"
    with pytest.raises(InputError, match="laco drops whole layers by its definition"):
        SearchOptions(sparsities=(0.3,), method="laco", merged=Path("merged"), granularity="sub-block")


def refused(kind: type[SkrrError], *arguments: Any, **options: Any) -> str:
    with pytest.raises(kind) as caught:
        search(*arguments, **options)
    return str(caught.value)


@pytest.mark.parametrize("sparsities", [(0.3,), (0.3, 0.16)])
def test_nothing_is_replaced(sparsities: tuple[float, ...], tmp_path: Path) -> None:
    """Which is noticed before anything else, such as that there is no checkpoint."""
    taken = tmp_path / ("merged" if len(sparsities) == 1 else "merged-0.16")
    taken.symlink_to(tmp_path / "nowhere")
    words = refused(OutputError, "/absent", tmp_path / "merged", *sparsities)
    assert words == f"{taken} exists; remove it, or choose another --merged"


def test_a_place_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    words = refused(OutputError, "/absent", tmp_path / "file" / "merged", 0.3)
    assert words.endswith(f"{tmp_path / 'file'} is not a directory that can be written to")


def test_one_layer_stays(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    layer = SPARSITIES["bert"][-1] / 3
    words = refused(PlanError, checkpoints["bert"], tmp_path / "merged", 4 * layer, max_prompts=1)
    assert "cannot be reached: the nearest is" in words
    assert not any(tmp_path.iterdir())
    [plan] = search(checkpoints["bert"], tmp_path / "merged", 3 * layer, max_prompts=1)
    assert plan.counts()["keep"] == 2


def test_weights_that_overflow(tmp_path: Path) -> None:
    checkpoint = t5_checkpoint(tmp_path / "t5", tokenizer=True)
    weights = load_file(checkpoint / "model.safetensors")
    weights["encoder.block.1.layer.0.SelfAttention.o.weight"] *= math.inf
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    assert "overflow whatever is merged" in refused(InputError, checkpoint, tmp_path / "merged", 0.3)


def test_a_checkpoint_appears_whole_or_not_at_all(
    checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = laco.MergedWeights.stored

    def full(self: laco.MergedWeights, name: str) -> torch.Tensor:
        if name.endswith("final_layer_norm.weight"):
            raise OSError(28, "No space left on device")
        return stored(self, name)

    journal = tmp_path / "journal"
    with monkeypatch.context() as patch:
        patch.setattr(laco.MergedWeights, "stored", full)
        words = refused(OutputError, checkpoints["t5"], tmp_path / "merged", 0.3, journal=journal)
    assert words == f"cannot write {tmp_path / 'merged'}: No space left on device; nothing was changed"
    assert list(tmp_path.iterdir()) == [journal]
    [plan] = search(checkpoints["t5"], tmp_path / "merged", 0.3, journal=journal, resume=True)
    assert plan.provenance["merges"]


def test_the_command(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    files = {"--prompts": "prompts.txt", "--merged": "merged", "-o": "plan.json"}
    options = [word for name, file in files.items() for word in (name, str(tmp_path / file))]
    method = ["--method", "laco", "--sparsity", "0.3", "--device", "cpu"]
    line = ["plan", "search", str(checkpoints["bert"]), *method, *options]
    result = CliRunner().invoke(cli, line, catch_exceptions=False)
    assert "2 merges: export merged under this plan" in result.output
    [plan] = search(checkpoints["bert"], tmp_path / "other", 0.3)
    assert found(Plan.load(tmp_path / "plan.json")) == found(plan)
    assert contents(tmp_path / "merged") == contents(tmp_path / "other")
