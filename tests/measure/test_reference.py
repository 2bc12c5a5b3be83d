"""Two independent truths agree: `skrr_export.measure.reference` and those of the tests, which share no code.

They run the same fp32 kernels of torch on the same numbers; what differs is how the plan is applied. Where T5's skipped
sub-blocks add an exact zero, and BERT's are not run, even the bits are the same.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from skrr_export.bundle import Bundle
from skrr_export.errors import CheckpointError
from skrr_export.measure.reference import dense_reference, eager_model, models, planned_reference, run_model
from skrr_export.measure.reference.surgery import apply_plan
from skrr_export.outputs import LAST, Output
from skrr_export.plan import Plan
from tests import reference
from tests.bundles import SPECIAL_PLANS, examples, plans, random_ids, random_mask, relative_error
from tests.checkpoints import bert_checkpoint, t5_checkpoint
from tests.families.clip import clip_checkpoint
from tests.families.decoders import decoder_checkpoint
from tests.measure.families import KINDS, Kind, choose_outputs, export, true_output
from tests.reference import Sources

TOLERANCE = 1e-6
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
LAYERS = 3

Checkpoints = Callable[[str], Path]


@pytest.fixture(scope="module", autouse=True)
def _without_graphs() -> Iterator[None]:
    """No reference reads the graph, which is what takes an export its time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("skrr_export.targets.onnx.graph.build", lambda *_, **__: b"")
        patch.setattr("skrr_export.targets.onnx.lower.computing_in_fp32", lambda _: b"")
        yield


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    @cache
    def make(name: str) -> Path:
        return KINDS[name].save(tmp_path_factory.mktemp("checkpoint"), layers=LAYERS)

    return make


def _inputs(random: np.random.Generator, *, masked: bool) -> tuple[np.ndarray, np.ndarray | None]:
    """Ids, each row of which has the token that ends CLIP's prompts, and a mask padded on either side."""
    batch, sequence = 3, int(random.integers(3, 60))
    ids = random_ids(random, batch, sequence)
    ids[np.arange(batch), random.integers(0, sequence, batch)] = 1
    position, length = np.arange(sequence), random.integers(1, sequence, (batch, 1))
    sides = np.stack([position < length, position >= length])
    return ids, sides[[0, 1, 0], np.arange(batch)].astype(np.int64) if masked else None


def _check(
    kind: Kind, bundle: Bundle, checkpoint: Path, sources: Sources | None, *, directory: Path | None, seed: int = 0
) -> None:
    preset = bundle.manifest.pipeline
    ids, mask = _inputs(np.random.default_rng(seed), masked=preset.masked)
    rounded_to = DTYPES[bundle.manifest.dtype.name]
    found = planned_reference(bundle, directory)(ids, mask)
    assert list(found) == [output.name for output in preset.outputs]
    for output in preset.outputs:
        ours = found[output.name]
        theirs = true_output(kind, checkpoint, sources, (ids, mask), output, rounded_to=rounded_to)
        assert ours.dtype == np.float32
        assert ours.shape == theirs.shape
        if kind is KINDS["qwen2_5_vl, with a head"] and mask is not None:
            # Early releases of transformers give its padding other positions, when it sees images too.
            ours, theirs = (values.swapaxes(1, -2)[mask != 0] for values in (ours, theirs))
        assert relative_error(ours, theirs) < TOLERANCE


@pytest.mark.parametrize("name", KINDS)
def test_truths_agree_on_any_plan(name: str, checkpoints: Checkpoints, tmp_path: Path) -> None:
    kind, checkpoint = KINDS[name], checkpoints(name)

    @examples(4)
    @given(sources=plans(LAYERS), masked=st.booleans(), from_bundle=st.booleans(), seed=st.integers(0, 2**32))
    def check(sources: Sources, masked: bool, from_bundle: bool, seed: int) -> None:
        outputs = choose_outputs(kind, LAYERS, np.random.default_rng(seed))
        bundle = export(kind, checkpoint, tmp_path / "bundle", outputs, sources, masked=masked)
        _check(kind, bundle, checkpoint, sources, directory=None if from_bundle else checkpoint, seed=seed)

    check()


@pytest.mark.parametrize("name", ["t5", "umt5", "bert", "clip", "qwen2", "gemma2"])
@pytest.mark.parametrize("sources", [plan for plan in SPECIAL_PLANS.values() if len(plan) == LAYERS])
def test_truths_agree_on_special_plans(name: str, sources: Sources, checkpoints: Checkpoints, tmp_path: Path) -> None:
    kind, checkpoint = KINDS[name], checkpoints(name)
    bundle = export(kind, checkpoint, tmp_path / "bundle", sources=sources)
    for directory in (None, checkpoint):
        _check(kind, bundle, checkpoint, sources, directory=directory)


@pytest.mark.parametrize("name", ["t5", "bert", "clip, whole", "llama, with a head", "gemma2", "gemma3"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_truths_agree_on_every_precision(name: str, dtype: str, checkpoints: Checkpoints, tmp_path: Path) -> None:
    """transformers keeps T5's `wo` in fp32 where it loads fp16; a bundle rounds it, and so must its reference.

    And it rounds the number that Gemma's embedding is multiplied by, as if it were a weight.
    """
    sources: Sources = [(0, 2), (0, None), (2, 2)]
    kind, checkpoint = KINDS[name], checkpoints(name)
    bundle = export(kind, checkpoint, tmp_path / "bundle", sources=sources, dtype=dtype, rescale=False)
    for directory in (None, checkpoint):
        _check(kind, bundle, checkpoint, sources, directory=directory)


@pytest.mark.parametrize("name", ["gemma2", "gemma3", "qwen2"])
def test_an_attention_takes_its_layer_type_along(name: str, checkpoints: Checkpoints, tmp_path: Path) -> None:
    """Its window, and in Gemma 3 its rotary base: at another layer's they would give other numbers."""
    kind, checkpoint = KINDS[name], checkpoints(name)
    sources: Sources = [(0, 0), (0, 1), (2, 2)]
    bundle = export(kind, checkpoint, tmp_path / "bundle", sources=sources)
    _check(kind, bundle, checkpoint, sources, directory=None)
    ids, _ = _inputs(np.random.default_rng(0), masked=False)
    right = planned_reference(bundle, None)(ids, None)[LAST.name]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("skrr_export.measure.reference.surgery._move_layer_types", lambda *_: None)
        wrong = planned_reference(bundle, None)(ids, None)[LAST.name]
    types = json.loads((checkpoint / "config.json").read_text())
    types = types.get("text_config", types)["layer_types"]
    assert (types[0] == types[1]) == np.array_equal(right, wrong)
    if name != "qwen2":
        assert types[0] != types[1]


@pytest.mark.parametrize("name", KINDS)
def test_dense_reference_is_the_plain_model(name: str, checkpoints: Checkpoints) -> None:
    kind, checkpoint = KINDS[name], checkpoints(name)
    outputs = (LAST,) if kind.pooled is None else (Output("hidden_states", (LAYERS,)), kind.pooled)
    for masked in (True, False):
        ids, mask = _inputs(np.random.default_rng(0), masked=masked)
        found = dense_reference(checkpoint, outputs)(ids, mask)
        for output in outputs:
            assert np.array_equal(found[output.name], true_output(kind, checkpoint, None, (ids, mask), output))


@pytest.mark.parametrize(("decoder", "gated"), [(True, False), (True, True)])
def test_a_whole_t5_and_a_bert_with_a_head_are_read(decoder: bool, gated: bool, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    ids, mask = random_ids(random, 3, 20), random_mask(random, 3, 20)
    for checkpoint in (
        t5_checkpoint(tmp_path / "t5", decoder=decoder, gated=gated),
        bert_checkpoint(tmp_path / "bert", head=True),
    ):
        truth = reference.encode(checkpoint, None, ids, mask)
        assert np.array_equal(dense_reference(checkpoint, (LAST,))(ids, mask)[LAST.name], truth)


@pytest.mark.parametrize("name", ["t5", "bert", "clip", "gemma3"])
def test_truth_itself_is_the_plain_model_when_everything_is_kept(name: str, checkpoints: Checkpoints) -> None:
    everything = [(layer, layer) for layer in range(LAYERS)]
    for masked in (True, False):
        ids, mask = _inputs(np.random.default_rng(0), masked=masked)
        plain, planned = (
            true_output(KINDS[name], checkpoints(name), sources, (ids, mask), LAST) for sources in (None, everything)
        )
        assert relative_error(planned, plain) < TOLERANCE


def test_half_precision_checkpoint_stays_small(tmp_path: Path) -> None:
    """A T5-XXL reference must fit: its matrices are cast where they are used."""
    model = dense_reference(t5_checkpoint(tmp_path / "t5", dtype=torch.bfloat16), (LAST,))._model
    by_size = {parameter.dtype for parameter in model.parameters() if parameter.ndim == 2}
    assert by_size == {torch.bfloat16, torch.float32}
    linear = [parameter for name, parameter in model.named_parameters() if ".original" in name]
    assert len(linear) in (3 * 7, 3 * 6)  # early releases of transformers keep one of a layer in fp32
    assert {parameter.dtype for parameter in linear} == {torch.bfloat16}


def test_weights_are_taken_as_they_are_stored_whatever_the_configuration_says(tmp_path: Path) -> None:
    """Published pipelines have encoders in fp32 whose configuration says fp16."""
    checkpoint = clip_checkpoint(tmp_path / "clip")
    ids, mask = _inputs(np.random.default_rng(0), masked=True)
    before = dense_reference(checkpoint, (LAST,))(ids, mask)[LAST.name]
    config = json.loads((checkpoint / "config.json").read_text())
    config |= {"dtype": "float16", "torch_dtype": "float16"}
    (checkpoint / "config.json").write_text(json.dumps(config))
    assert np.array_equal(dense_reference(checkpoint, (LAST,))(ids, mask)[LAST.name], before)


@pytest.mark.parametrize("model_type", ["mistral3", "qwen2_5_vl", "gemma3"])
def test_no_encoder_of_images_is_made_up_for_a_bundle(
    model_type: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = KINDS[next(name for name in KINDS if name.startswith(model_type))]
    checkpoint = decoder_checkpoint(tmp_path / "checkpoint", model_type, layers=2)
    bundle = export(kind, checkpoint, tmp_path / "bundle")
    ids, _ = _inputs(np.random.default_rng(0), masked=False)
    small = planned_reference(bundle, None)(ids, None)[LAST.name]
    config = json.loads((bundle.directory / "config.json").read_text())
    sizes = {"hidden_size": 64, "num_hidden_layers": 9, "depth": 9, "intermediate_size": 5000}
    config["vision_config"] |= {key: size for key, size in sizes.items() if key in config["vision_config"]}
    (bundle.directory / "config.json").write_text(json.dumps(config))
    assert np.array_equal(planned_reference(bundle, None)(ids, None)[LAST.name], small)
    monkeypatch.setattr(models, "_VISION", ())
    made = sum(parameter.numel() for parameter in models.from_bundle(bundle).parameters())
    assert made < bundle.manifest.total_parameters + 20_000  # of 9 layers, far above a million


@pytest.mark.parametrize(("name", "matrices"), [("t5", 7), ("clip", 6), ("llama, with a head", 7), ("gemma3", 7)])
def test_layers_that_nobody_reads_are_not_run(
    name: str, matrices: int, checkpoints: Checkpoints, tmp_path: Path
) -> None:
    """Their tensors are not in the bundle; what transformers makes up for them may be anything."""
    kind, checkpoint = KINDS[name], checkpoints(name)
    bundle = export(kind, checkpoint, tmp_path / "bundle", (Output("hidden_states", (1,)),))
    _check(kind, bundle, checkpoint, None, directory=None)
    ran = []
    model = eager_model(bundle, None, planned=True)
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(lambda module, *_: ran.append(module))
    ids, _ = _inputs(np.random.default_rng(0), masked=False)
    run_model(model, bundle.manifest.pipeline.outputs, ids, None, "cpu")
    assert len(ran) == matrices


def test_directory_that_transformers_cannot_load_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=f"transformers cannot load {tmp_path}"):
        dense_reference(tmp_path, (LAST,))


def test_a_family_without_a_reference_is_refused(checkpoints: Checkpoints) -> None:
    model = models.from_checkpoint(checkpoints("t5"), (LAST,))
    with pytest.raises(CheckpointError, match="no reference for the family 'gpt'"):
        apply_plan(model, Plan("gpt", ((0, 0),) * LAYERS), (LAST,))
