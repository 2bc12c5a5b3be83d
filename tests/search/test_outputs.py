"""What a search measures, and where it drops, is what its pipeline takes: hidden states at any depth, joined, pooled.

The truth is transformers, which runs every arrangement whole and gives every hidden state; see `tests.search.naive`.
Tolerance: relative, as in test_discrepancy.py; up to 3e-6 was seen.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from skrr_export import calibration
from skrr_export.checkpoint import open_checkpoint
from skrr_export.encoders import recognise, select
from skrr_export.errors import InputError, PlanError
from skrr_export.outputs import Output
from skrr_export.pipelines import PRESETS, Preset
from skrr_export.plan import Plan
from skrr_export.search.activations import ActivationEngine
from skrr_export.search.discrepancy import Candidate
from skrr_export.search.space import Arrangement, arrangement_of, first_difference
from skrr_export.searching import METHODS, SearchOptions, search_plans
from tests.bundles import examples, plans, soften
from tests.checkpoints import bert_checkpoint, t5_checkpoint
from tests.families.clip import CLIP_DIMENSIONS, clip_checkpoint
from tests.families.decoders import DIMENSIONS, decoder_checkpoint
from tests.search import naive
from tests.search.naive import Truth
from tests.search.subjects import MASKED, PLENTY, PROMPTS, UNMASKED, linear, subject

TOLERANCE = 1e-5
LAYERS = 4
POOLED, PROJECTED = Output("pooler_output"), Output("text_embeds")


def states(*layers: int, join: Any = None) -> Output:
    return Output("hidden_states", layers, join)


CASES: dict[str, tuple[str, Preset, tuple[Output, ...], int]] = {
    # family, how the pipeline feeds it, what it takes, and how many layers decide the first of that
    "t5, on the way": ("t5", MASKED, (states(-2),), 3),
    "t5, padding read": ("t5", UNMASKED, (states(2),), 2),
    "t5, every layer": ("t5", MASKED, (states(1, 2, 3, 4, join="stack"),), 4),
    "bert, joined": ("bert", MASKED, (states(0, 3, join="concatenate"),), 3),
    "clip, last but one": ("clip", UNMASKED, (states(-2),), 3),
    "clip, before its norm": ("clip", MASKED, (states(-1),), 4),
    "clip, last but one and pooled": ("clip", UNMASKED, (states(-2), PROJECTED), 3),
    "clip, pooled": ("clip", UNMASKED, (POOLED,), 4),
    "clip, pooled and projected": ("clip", MASKED, (PROJECTED,), 4),
    "gemma3, joined": ("gemma3_text", UNMASKED, (states(1, 3, join="concatenate"),), 3),
    "llama, every layer": ("llama", MASKED, (states(1, 2, 3, 4, join="stack"),), 4),
    "qwen3, last but one": ("qwen3", MASKED, (states(-2),), 3),
}

WHOLE = {"t5, every layer", "llama, every layer", "clip, last but one and pooled", "clip, pooled and projected"}
"""Those of which every tensor is read."""

Checkpoints = Callable[[str], Path]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    @cache
    def make(family: str) -> Path:
        directory = tmp_path_factory.mktemp("checkpoint")
        if family == "t5":
            return soften(t5_checkpoint(directory, layers=LAYERS, tokenizer=True))
        if family == "bert":
            return bert_checkpoint(directory, layers=LAYERS, tokenizer=True)
        if family == "clip":
            return clip_checkpoint(directory, layers=LAYERS, tokenizer=True)
        return decoder_checkpoint(directory, family, layers=LAYERS, tokenizer=True)

    return make


def preset_of(case: str) -> Preset:
    """The pipeline, with layers counted from the start; it is called `taking`."""
    _, preset, outputs, _ = CASES[case]
    return replace(preset, name="taking", outputs=tuple(output.resolve(LAYERS) for output in outputs))


def arrangements(layers: int) -> list[Arrangement]:
    """Some of so many layers: a drop early, a drop late, re-use before and after the source, nothing at all."""
    dense = tuple(range(2 * layers))
    return [
        (None, *dense[1:]),
        (*dense[:-1], None),
        (dense[-2], *dense[1:-2], *dense[-2:]),
        (0, 1, 0, *dense[3:-1], 1),
        (None,) * len(dense),
    ]


@pytest.mark.parametrize("case", CASES)
def test_d_is_that_of_what_the_pipeline_takes(case: str, checkpoints: Checkpoints) -> None:
    family, _, _, layers = CASES[case]
    tested, truth = subject(checkpoints(family), preset_of(case)), Truth(checkpoints(family), PROMPTS, preset_of(case))
    dense = tested.space.dense
    assert (len(dense), tested.space.num_layers) == (2 * layers, LAYERS)
    assert len(tested.engine.chunks) > 3
    chosen = arrangements(layers)
    found = tested.discrepancy.exact([Candidate(each, first_difference(each, dense)) for each in chosen])
    for terms, arrangement in zip(found, chosen, strict=True):
        assert (terms.prompts, terms.null) == pytest.approx(truth.terms(arrangement), rel=TOLERANCE)
        assert terms.prompts > 0
    assert tested.discrepancy.scale() == pytest.approx(truth.scale(), rel=TOLERANCE)


# The hidden states


def without_a_cache(engine: ActivationEngine, number: int, arrangement: Arrangement) -> torch.Tensor:
    """The same sub-blocks, one after the other, every state on the way kept."""
    chunk, [output] = engine.chunks[number], engine.encoder.outputs
    with torch.inference_mode():
        activations = engine.encoder.start(chunk.input_ids, chunk.attention_mask)
        activations["hidden_states.0"] = activations["hidden"]
        for position, unit in enumerate(arrangement):
            if unit is not None:
                activations["hidden"] = engine.encoder.sub_block(unit, activations)
            if position % 2:
                activations[f"hidden_states.{position // 2 + 1}"] = activations["hidden"]
        value = engine.encoder.finish(activations)[output.name]
    if output.pooled:
        return value
    value = value if output.join != "stack" else torch.cat(list(value.unbind(1)), dim=-1)
    return value[torch.from_numpy(chunk.counted)]


@pytest.mark.parametrize("case", ["t5, every layer", "bert, joined", "clip, pooled", "gemma3, joined"])
def test_no_request_can_tell_what_was_evicted(case: str, checkpoints: Checkpoints) -> None:
    family, _, _, layers = CASES[case]
    fresh = subject(checkpoints(family), preset_of(case), cache_bytes=0).engine
    state = max(chunk.size for chunk in fresh.chunks) * fresh.encoder.encoder.hidden_size * 4
    requests = st.lists(
        st.tuples(
            st.integers(0, len(fresh.chunks) - 1),
            plans(layers).map(lambda sources: arrangement_of(Plan("t5", tuple(sources)))),
            st.integers(0, 2 * layers),
        ),
        min_size=1,
        max_size=8,
    )

    @examples(15)
    @given(st.one_of(st.sampled_from([0, PLENTY]), st.integers(0, 30 * state)), requests)
    def check(budget: int, requests: list[tuple[int, Arrangement, int]]) -> None:
        tested = ActivationEngine(fresh.encoder, fresh.chunks, budget)
        for number, arrangement, fork in requests:
            output = tested.output(number, arrangement, fork)
            assert output.dtype == torch.float32
            assert torch.equal(output, without_a_cache(fresh, number, arrangement))
            assert len(output) == sum(tested.counts(number))

    check()


def test_a_state_that_was_evicted_on_the_way_is_computed_again(checkpoints: Checkpoints) -> None:
    """The run goes on from the later one that is still there."""
    preset = replace(MASKED, outputs=(states(1, 3, join="concatenate"),))
    tested = subject(checkpoints("t5"), preset).engine
    dense = tuple(range(6))
    size = tested.chunks[1].size
    expected = tested.output(1, dense, 6)
    assert tested.evaluated == 6 * size  # both states in one run
    for length in range(1, 5):
        tested.cache.put((1, dense[:length]), torch.empty(PLENTY + 1, dtype=torch.uint8, device="meta"))
        assert tested.cache.get((1, dense[:length])) is None
    assert torch.equal(tested.output(1, dense, 0), expected)
    assert tested.evaluated == (6 + 2) * size  # the first layer again; units 0 to 4 and the last are still there
    assert torch.equal(
        tested.output(1, (0, 1, None, 3, 4, None), 0), without_a_cache(tested, 1, (0, 1, None, 3, 4, None))
    )


def test_rows_of_a_prompt(checkpoints: Checkpoints) -> None:
    per_token, pooled = (
        subject(checkpoints("clip"), replace(MASKED, outputs=(output,))).engine for output in (states(1), POOLED)
    )
    for number, chunk in enumerate(per_token.chunks):
        assert per_token.counts(number) == chunk.counted.sum(axis=1).tolist()
        assert pooled.counts(number) == [1] * len(chunk.input_ids)


# Whole searches


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "CHUNK_TOKENS", (100, 200))


def search(checkpoint: Path, preset: Preset, *sparsities: float, **options: Any) -> list[Plan]:
    kept = {name: options.pop(name) for name in ("journal", "resume") if name in options}
    options = {"prompts": PROMPTS, "device": "cpu", **options}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PRESETS, preset.name, preset)  # type: ignore[arg-type]
        return search_plans(checkpoint, SearchOptions(sparsities=sparsities, pipeline=preset.name, **options), **kept)


def check_plan(plan: Plan, checkpoint: Path, preset: Preset, layers: int, wanted: float) -> None:
    """It says how sparse a bundle will be, and leaves what cannot be judged as it is."""
    opened = open_checkpoint(checkpoint)
    selection = select(opened, recognise(opened), plan, preset.outputs)
    assert plan.provenance["sparsity"] == {"wanted": wanted, "reached": pytest.approx(selection.sparsity, rel=1e-5)}
    assert selection.sparsity >= wanted - 0.0005
    assert plan.sources[layers:] == tuple((layer, layer) for layer in range(layers, LAYERS))
    assert {source for pair in plan.sources[:layers] for source in pair} <= {None, *range(layers)}
    assert set(plan.provenance["order"]) <= set(range(2 * layers))


def unread(checkpoint: Path, preset: Preset) -> float:
    """The share of an encoder that its pipeline does not need."""
    opened = open_checkpoint(checkpoint)
    encoder = recognise(opened)
    return select(opened, encoder, Plan.identity(encoder.family, LAYERS), preset.outputs).sparsity


@pytest.mark.parametrize("case", CASES)
def test_a_plan_says_how_sparse_its_bundle_will_be_and_what_it_costs(case: str, checkpoints: Checkpoints) -> None:
    family, _, outputs, layers = CASES[case]
    checkpoint, preset = checkpoints(family), preset_of(case)
    gone = unread(checkpoint, preset)
    assert (gone == 0) == (case in WHOLE)
    wanted = round(gone + 0.12, 2), round(gone + 0.2, 2)
    preset = replace(preset, outputs=outputs)  # as presets have them, counted from the end
    truth = Truth(checkpoint, PROMPTS, preset_of(case))
    found = (plan for method in ("skrr", "random") for plan in search(checkpoint, preset, *wanted, method=method))
    for plan, share in zip(found, wanted * 2, strict=True):
        check_plan(plan, checkpoint, preset_of(case), layers, share)
        prompts, null = truth.terms(arrangement_of(plan)[: 2 * layers])
        told = plan.provenance["discrepancy"]
        assert (told["prompts"], told["null"]) == pytest.approx((prompts, null), rel=TOLERANCE)
        assert told["scale"] == pytest.approx(truth.scale(), rel=TOLERANCE)
        first = preset_of(case).outputs[0]
        assert told["space"] == (first.name if not first.join else f"hidden_states {str(list(first.layers))[1:-1]}")


@pytest.mark.parametrize("method", [method for method in METHODS if method != "laco"])
def test_every_method_keeps_within_what_it_can_judge(method: str, checkpoints: Checkpoints) -> None:
    """Layers that only the pooled output needs would seem to cost nothing: D does not see them."""
    checkpoint, preset = checkpoints("clip"), preset_of("clip, last but one and pooled")
    for plan, wanted in zip(search(checkpoint, preset, 0.25, 0.1, method=method), (0.25, 0.1), strict=True):
        check_plan(plan, checkpoint, preset, 3, wanted)


@pytest.mark.parametrize(("case", "layers"), [("clip, last but one", 3), ("gemma3, joined", 3)])
def test_skrr_is_the_papers_two_algorithms_on_what_the_pipeline_takes(
    case: str, layers: int, checkpoints: Checkpoints
) -> None:
    """All of them by brute force: transformers runs every candidate whole."""
    checkpoint, preset = checkpoints(CASES[case][0]), preset_of(case)
    truth = Truth(checkpoint, PROMPTS, preset)
    items = [(unit,) for unit in range(2 * layers)]
    wanted = round(unread(checkpoint, preset) + 0.25, 2)
    [plan] = search(checkpoint, preset, wanted, method="skrr", beam=2)
    count = len(plan.provenance["order"])
    assert count > 2
    steps = naive.skip(truth, len(items), items, 2, count)
    order = [unit for item in steps[-1][0][1] for unit in item]
    expected, lowest = naive.reuse(truth, len(items), order)
    assert plan.provenance["order"] == order
    assert arrangement_of(plan)[: len(items)] == expected
    assert plan.provenance["discrepancy"]["value"] == pytest.approx(lowest, rel=TOLERANCE)
    assert plan.provenance["curves"][0]["points"][-1][1] == pytest.approx(steps[-1][0][0], rel=TOLERANCE)


@pytest.mark.parametrize(("case", "layers"), [("clip, last but one", 3), ("gemma3, joined", 3)])
def test_laco_merges_only_what_runs(case: str, layers: int, checkpoints: Checkpoints, tmp_path: Path) -> None:
    """Gemma's layers differ in more than their weights: a merged one is of the kind of the one that took others in."""
    checkpoint, preset = checkpoints(CASES[case][0]), preset_of(case)
    wanted = round(unread(checkpoint, preset) + 0.3, 2)
    [plan] = search(checkpoint, preset, wanted, method="laco", merged=tmp_path / "merged")
    check_plan(plan, checkpoint, preset, layers, wanted)
    merges = plan.provenance["merges"]
    assert len(merges) > 1
    assert max(layer for merge in merges for layer in merge[1]) < layers
    before, after = (load_file(path / "model.safetensors") for path in (checkpoint, tmp_path / "merged"))
    assert {name for name in after if not name.startswith("_pad")} == before.keys()
    merged, dense = (Truth(path, PROMPTS, preset) for path in (tmp_path / "merged", checkpoint))
    merged._dense = dense._dense
    prompts, null = merged.terms(arrangement_of(plan)[: 2 * layers])
    told = plan.provenance["discrepancy"]
    assert (told["prompts"], told["null"]) == pytest.approx((prompts, null), rel=TOLERANCE)


def test_a_null_prompt_that_is_zeros_does_not_count(checkpoints: Checkpoints) -> None:
    """As SDXL's: whatever a plan drops, zeros stay zeros."""
    checkpoint, preset = checkpoints("clip"), preset_of("clip, last but one")
    truth = Truth(checkpoint, PROMPTS, preset, null=False)
    wanted = round(unread(checkpoint, preset) + 0.2, 2)
    [plan] = search(checkpoint, replace(preset, unconditional="zeros"), wanted, method="skrr", beam=1)
    told = plan.provenance["discrepancy"]
    assert told["value"] == told["prompts"] == pytest.approx(truth(arrangement_of(plan)[:6]), rel=TOLERANCE)
    assert told["null"] is None
    count = len(plan.provenance["order"])
    steps = naive.skip(truth, 6, [(unit,) for unit in range(6)], 1, count)
    assert plan.provenance["order"] == [unit for (unit,) in steps[-1][0][1]]


def test_a_sparsity_that_needs_no_plan_is_refused(checkpoints: Checkpoints) -> None:
    checkpoint, preset = checkpoints("clip"), preset_of("clip, last but one")
    gone = unread(checkpoint, preset)
    for wanted in (gone / 2, gone + 0.0004):
        with pytest.raises(PlanError) as caught:
            search(checkpoint, preset, 0.5, wanted)
        assert str(caught.value) == f"sparsity {wanted:.1%} needs no plan: pipeline 'taking' does without {gone:.1%}"
    [plan] = search(checkpoint, preset, gone + 0.001, method="uniform")
    assert len(plan.provenance["order"]) == 1


def test_nothing_can_be_dropped_of_an_embedding(checkpoints: Checkpoints) -> None:
    with pytest.raises(PlanError, match="no sparsity can be reached: there is nothing to drop"):
        search(checkpoints("t5"), replace(MASKED, outputs=(states(0),)), 0.9)


# Journals


def test_a_journal_is_about_its_outputs(checkpoints: Checkpoints, tmp_path: Path) -> None:
    """What they are decides every D; and a journal that does not say is from before there were any but one."""
    checkpoint, journal = checkpoints("clip"), tmp_path / "journal"
    preset = preset_of("clip, last but one")
    options: dict[str, Any] = {"method": "skrr", "journal": journal}
    [plan] = search(checkpoint, preset, 0.4, **options)
    for outputs in ((states(2),), (states(3), PROJECTED), (states(3, 2, join="concatenate"),)):
        with pytest.raises(InputError, match="is the journal of another search: its outputs is "):
            search(checkpoint, replace(preset, outputs=outputs), 0.4, resume=True, **options)
    with pytest.raises(InputError, match="its null prompt is true, this one's false"):
        search(checkpoint, replace(preset, unconditional="zeros"), 0.4, resume=True, **options)
    [again] = search(checkpoint, preset, 0.4, resume=True, **options)
    assert again.sources == plan.sources
    head, *decisions = journal.read_text().splitlines(keepends=True)
    old = {key: value for key, value in json.loads(head).items() if key != "outputs"}
    journal.write_text("".join([json.dumps(old) + "\n", *decisions]))
    with pytest.raises(InputError, match="its outputs is null"):
        search(checkpoint, preset, 0.4, resume=True, **options)


# Denoisers


def denoiser(directory: Path, width: int, name: str = "context_embedder") -> tuple[Path, naive.Project]:
    """A file with a linear projection, and what it does."""
    weight, bias = linear(3, width, 19)
    file = directory / "diffusion_pytorch_model.safetensors"
    save_file({f"{name}.weight": torch.from_numpy(weight), f"{name}.bias": torch.from_numpy(bias)}, file)
    return file, lambda rows: rows @ weight.astype(float).T + bias


def test_a_denoiser_that_projects_joined_layers(checkpoints: Checkpoints, tmp_path: Path) -> None:
    """As FLUX.2's."""
    checkpoint, preset = checkpoints("gemma3_text"), preset_of("gemma3, joined")
    preset = replace(preset, projection=("context_embedder.weight",))
    file, project = denoiser(tmp_path, 2 * DIMENSIONS["hidden_size"])
    wanted = round(unread(checkpoint, preset) + 0.2, 2)
    [plan] = search(checkpoint, preset, wanted, method="skrr", denoiser=file)
    truth = Truth(checkpoint, PROMPTS, preset, project=project)
    assert plan.provenance["discrepancy"]["value"] == pytest.approx(truth(arrangement_of(plan)[:6]), rel=TOLERANCE)
    assert plan.provenance["discrepancy"]["space"] == "context_embedder.weight [19, 72] of " + file.name
    file, _ = denoiser(tmp_path, DIMENSIONS["hidden_size"])
    with pytest.raises(InputError, match="takes 36 features, the encoder gives 72; give the denoiser that this"):
        search(checkpoint, preset, wanted, denoiser=file)


def test_a_denoiser_that_reads_a_pooled_vector_has_no_projection_of_rows(
    checkpoints: Checkpoints, tmp_path: Path
) -> None:
    """Though one of the right width is there."""
    names = ("time_text_embed.text_embedder.linear_1.weight",)
    preset = replace(preset_of("clip, pooled"), projection=names)
    file, _ = denoiser(tmp_path, CLIP_DIMENSIONS["hidden_size"])
    with pytest.raises(InputError, match=f"reads this encoder by {names[0]}: no text projection that we know; leave"):
        search(checkpoints("clip"), preset, 0.3, denoiser=file)
