"""CLIP graphs against transformers, under any plan, for any input and every output.

Tolerance: relative error of the worst row. Two orders of the same fp32 sums give up to 3e-6 here; a GELU of the other
kind, or a norm's epsilon in the wrong place, gives 1e-3 and more.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from skrr_export.bundle import Bundle
from skrr_export.checkpoint import open_checkpoint
from skrr_export.encoders import recognise
from skrr_export.encoders.clip import ClipEncoder
from skrr_export.encoders.module import FunctionalEncoder
from skrr_export.errors import CheckpointError, InputError
from skrr_export.outputs import LAST, Output
from skrr_export.pipelines import Preset
from skrr_export.plan import Plan
from skrr_export.targets.onnx.session import OnnxSession
from skrr_export.targets.torch_export.session import ProgramSession
from tests.bundles import PLAN, SPECIAL_CASES, examples, export, plans, relative_error
from tests.families.clip import CLIP_DIMENSIONS, clip_checkpoint, encode
from tests.reference import Sources

TOLERANCE = 2e-5
HALF_TOLERANCE = 0.1
"""Of torch computing in bf16 on weights of which every one matters; transformers in bf16 is as far from fp32."""

POOLED, PROJECTED = Output("pooler_output"), Output("text_embeds")

SHAPES: dict[str, dict[str, Any]] = {
    "first end": {},
    "highest id": {
        "hidden_size": 40, "num_attention_heads": 5, "intermediate_size": 24, "projection_dim": 61,
        "hidden_act": "gelu", "layer_norm_eps": 1e-2, "max_position_embeddings": 30, "eos_token_id": 2,
    },
}  # fmt: skip

pytestmark = pytest.mark.usefixtures("remembered_traces")

Checkpoints = Callable[[str, int], Path]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    @cache
    def make(shape: str, layers: int) -> Path:
        return clip_checkpoint(tmp_path_factory.mktemp("clip"), layers=layers, **SHAPES[shape])

    return make


def _export(
    checkpoint: Path,
    directory: Path,
    outputs: Sequence[Output],
    sources: Sources | None = None,
    *,
    masked: bool = True,
    **options: Any,
) -> Bundle:
    preset = Preset(
        name="test", max_length=512, padding="longest", masked=masked, reads_padding=True, outputs=tuple(outputs)
    )
    return export(checkpoint, directory / "bundle", sources, preset=preset, **options)


def _ids(random: np.random.Generator, batch: int, sequence: int) -> np.ndarray:
    """Prompts that end anywhere, even in padding, more than once, or not at all; 1 is the end, 306 the highest id."""
    ids = random.integers(0, 307, (batch, sequence))
    ends = random.integers(0, 2 * sequence, batch)
    for row, end in enumerate(ends):
        ids[row, end:] = 1
        ids[row, random.integers(0, sequence, 2)] = 306
    return ids


def _mask(random: np.random.Generator, batch: int, sequence: int) -> np.ndarray:
    """Rows padded on the right, on the left, masked anywhere, and wholly."""
    position, length = np.arange(sequence), random.integers(0, sequence + 1, (batch, 1))
    rows = np.stack([position < length, position >= length, random.integers(0, 2, (batch, sequence))])
    return rows[random.integers(0, 3, batch), np.arange(batch)].astype(np.int64)


def _errors(
    checkpoint: Path, bundle: Bundle, sources: Sources | None, ids: np.ndarray, mask: np.ndarray | None
) -> dict[str, float]:
    ours = OnnxSession(bundle).encode(ids, mask)
    return {name: relative_error(ours[name], encode(checkpoint, sources, ids, mask, name)) for name in ours}


@pytest.mark.parametrize(("shape", "masked"), [("first end", True), ("highest id", False)])
def test_any_plan_equals_transformers(shape: str, masked: bool, checkpoints: Checkpoints, tmp_path: Path) -> None:
    longest = {**CLIP_DIMENSIONS, **SHAPES[shape]}["max_position_embeddings"]

    @examples(6)
    @given(
        sources=st.integers(1, 6).flatmap(plans),
        batch=st.integers(1, 4),
        sequence=st.integers(1, longest),
        seed=st.integers(0, 2**32),
    )
    def check(sources: Sources, batch: int, sequence: int, seed: int) -> None:
        random = np.random.default_rng(seed)
        ids, mask = _ids(random, batch, sequence), _mask(random, batch, sequence) if masked else None
        checkpoint = checkpoints(shape, len(sources))
        bundle = _export(checkpoint, tmp_path, (LAST, PROJECTED), sources, masked=masked)
        errors = _errors(checkpoint, bundle, sources, ids, mask)
        assert errors.keys() == {"last_hidden_state", "text_embeds"}
        assert max(errors.values()) < TOLERANCE

    check()


@examples(40)
@given(sources=st.integers(1, 6).flatmap(plans), shape=st.sampled_from(sorted(SHAPES)), seed=st.integers(0, 2**32))
def test_every_output_of_any_plan_equals_transformers(
    sources: Sources, shape: str, seed: int, checkpoints: Checkpoints
) -> None:
    """Run by torch, where an output more costs nothing."""
    random = np.random.default_rng(seed)
    checkpoint, layers = checkpoints(shape, len(sources)), len(sources)
    mask = _mask(random, 4, 30) if random.integers(2) else None
    ids = _ids(random, 4, 30)
    hidden = [Output("hidden_states", (layer,)) for layer in range(layers + 1)]
    encoder = recognise(open_checkpoint(checkpoint))
    outputs = [LAST, *hidden, POOLED, PROJECTED]
    module = FunctionalEncoder(encoder, Plan("clip", tuple(sources)), outputs, masked=mask is not None)
    feed = [torch.from_numpy(array) for array in (ids, mask) if array is not None]
    with torch.inference_mode():
        ours = module(load_file(checkpoint / "model.safetensors"), *feed)
    for name, value in ours.items():
        assert relative_error(value.numpy(), encode(checkpoint, sources, ids, mask, name)) < TOLERANCE, name


@pytest.mark.parametrize("layer", [0, 3, 4])
def test_hidden_state_drops_what_comes_after_it(layer: int, checkpoints: Checkpoints, tmp_path: Path) -> None:
    """The last one is what goes into the final norm, not what comes out."""
    random = np.random.default_rng(0)
    checkpoint, ids, mask = checkpoints("first end", 4), _ids(random, 4, 30), _mask(random, 4, 30)
    bundle = _export(checkpoint, tmp_path, (Output("hidden_states", (layer,)),), PLAN)
    errors = _errors(checkpoint, bundle, PLAN, ids, mask)
    assert errors.keys() == {f"hidden_states.{layer}"}
    assert max(errors.values()) < TOLERANCE
    used = {source for sources in PLAN[:layer] for source in sources}
    for name in bundle.parameters():
        assert "final_layer_norm" not in name
        assert "layers." not in name or int(name.split("layers.")[1].split(".")[0]) in used


def test_sdxl_reads_a_hidden_state_and_the_projection(checkpoints: Checkpoints, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    checkpoint, ids = checkpoints("first end", 4), _ids(random, 4, 30)
    bundle = _export(checkpoint, tmp_path, (Output("hidden_states", (-2,)), PROJECTED), PLAN, masked=False)
    errors = _errors(checkpoint, bundle, PLAN, ids, None)
    assert errors.keys() == {"hidden_states.3", "text_embeds"}
    assert max(errors.values()) < TOLERANCE


@pytest.mark.parametrize(("sources", "masked"), SPECIAL_CASES)
def test_special_plan_equals_transformers(
    sources: Sources, masked: bool, checkpoints: Checkpoints, tmp_path: Path
) -> None:
    random = np.random.default_rng(0)
    ids, mask = _ids(random, 3, 71), _mask(random, 3, 71) if masked else None
    checkpoint = checkpoints("first end", len(sources))
    bundle = _export(checkpoint, tmp_path, (LAST, PROJECTED), sources, masked=masked)
    assert max(_errors(checkpoint, bundle, sources, ids, mask).values()) < TOLERANCE


def test_program_and_half_precision(checkpoints: Checkpoints, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    checkpoint, ids, mask = checkpoints("first end", 3), _ids(random, 4, 30), _mask(random, 4, 30)
    outputs, sources = (LAST, PROJECTED), [(0, 0), (None, 2), (0, 2)]
    whole = ProgramSession(_export(checkpoint, tmp_path, outputs, sources, targets=("pt2",))).encode(ids, mask)
    half = _export(checkpoint, tmp_path, outputs, sources, targets=("onnx", "pt2"), dtype="bf16")
    widened, computed = OnnxSession(half).encode(ids, mask), ProgramSession(half).encode(ids, mask)
    for name in whole:
        assert relative_error(whole[name], encode(checkpoint, sources, ids, mask, name)) < TOLERANCE
        rounded = encode(checkpoint, sources, ids, mask, name, rounded_to=torch.bfloat16)
        assert relative_error(widened[name], rounded) < TOLERANCE
        assert relative_error(computed[name], rounded) < HALF_TOLERANCE


def test_row_masked_whole_changes_no_other(checkpoints: Checkpoints, tmp_path: Path) -> None:
    checkpoint = checkpoints("first end", 4)
    ids, mask = _ids(np.random.default_rng(0), 3, 9), np.ones((3, 9), np.int64)
    bundle = _export(checkpoint, tmp_path, (LAST, PROJECTED), PLAN)
    seen = OnnxSession(bundle).encode(ids, mask)
    mask[1] = 0
    ours = OnnxSession(bundle).encode(ids, mask)
    for name in ours:
        np.testing.assert_allclose(ours[name][[0, 2]], seen[name][[0, 2]], rtol=1e-5, atol=1e-5)
    # Every key, later ones too, is equally unlikely: the attention is their plain average, in transformers as here.
    assert max(_errors(checkpoint, bundle, PLAN, ids, mask).values()) < TOLERANCE


def _whole(directory: Path) -> Path:
    return clip_checkpoint(directory, whole=True)


def _early(directory: Path) -> Path:
    """As releases before 5 wrote them: all under `text_model.`, and with the positions' numbers."""
    clip_checkpoint(directory, projection=False)
    weights = load_file(directory / "model.safetensors")
    weights = {"text_model." + name.removeprefix("text_model."): value for name, value in weights.items()}
    weights["text_model.embeddings.position_ids"] = torch.arange(71)[None]
    save_file(weights, directory / "model.safetensors")
    return directory


def _bare(directory: Path) -> Path:
    """As release 5.23 writes them."""
    clip_checkpoint(directory, projection=False)
    weights = load_file(directory / "model.safetensors")
    weights = {name.removeprefix("text_model."): value for name, value in weights.items()}
    save_file(weights, directory / "model.safetensors")
    return directory


@pytest.mark.parametrize(
    ("make", "pooled", "prefix"),
    [(_whole, PROJECTED, "text_"), (_early, POOLED, "text_model."), (_bare, POOLED, ("embeddings.", "encoder.", "f"))],
)
def test_encoder_is_found_in_any_checkpoint(
    make: Callable[[Path], Path], pooled: Output, prefix: str | tuple[str, ...], tmp_path: Path
) -> None:
    checkpoint, sources = make(tmp_path / "clip"), [(0, 0), (0, None), (2, 2)]
    ids = _ids(np.random.default_rng(0), 4, 30)
    bundle = _export(checkpoint, tmp_path, (LAST, pooled), sources, masked=False)
    assert max(_errors(checkpoint, bundle, sources, ids, None).values()) < TOLERANCE
    assert all(name.startswith(prefix) for name in bundle.parameters())
    assert not any("position_ids" in name for name in bundle.parameters())


def test_encoder_without_projection_has_no_text_embeds(tmp_path: Path) -> None:
    checkpoint = clip_checkpoint(tmp_path / "clip", layers=1, projection=False)
    assert "text_embeds" not in recognise(open_checkpoint(checkpoint)).kinds
    with pytest.raises(InputError, match="text_embeds"):
        _export(checkpoint, tmp_path, (PROJECTED,))


def test_sequence_beyond_the_positions_is_refused(checkpoints: Checkpoints, tmp_path: Path) -> None:
    session = OnnxSession(_export(checkpoints("first end", 1), tmp_path, (LAST, PROJECTED)))
    session.encode(np.zeros((1, 71), np.int64))
    with pytest.raises(InputError, match="71"):
        session.encode(np.zeros((1, 72), np.int64))


@pytest.mark.parametrize("name", ["layers.1.mlp.fc1.bias", "position_embedding.weight", "final_layer_norm.bias"])
def test_missing_tensor_is_named(name: str, tmp_path: Path) -> None:
    checkpoint = clip_checkpoint(tmp_path / "clip", layers=2)
    weights = load_file(checkpoint / "model.safetensors")
    left = {key: value for key, value in weights.items() if not key.endswith(name)}
    assert len(left) == len(weights) - 1
    save_file(left, checkpoint / "model.safetensors")
    with pytest.raises(CheckpointError, match=f"{name}' is missing"):
        _export(checkpoint, tmp_path, (LAST, PROJECTED))


def test_more_layers_than_the_configuration_says_are_refused(tmp_path: Path) -> None:
    checkpoint = clip_checkpoint(tmp_path / "clip", layers=2)
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 1}))
    with pytest.raises(CheckpointError, match=r"layers\.1\..*no place in the encoder"):
        _export(checkpoint, tmp_path, (LAST,))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"hidden_act": "mish"}, "activation 'mish'"),
        ({"hidden_size": 40}, "40 is not a multiple of 3 heads"),
        ({"vocab_size": None}, "'vocab_size' must be a positive integer"),
        ({"max_position_embeddings": 0}, "'max_position_embeddings' must be a positive integer"),
        ({"layer_norm_eps": 1}, "'layer_norm_eps' must be a number"),
        ({"projection_dim": "wide"}, "'projection_dim' must be a positive integer"),
        ({"eos_token_id": None}, "'eos_token_id' must be an integer"),
        ({"eos_token_id": [1, 2]}, "'eos_token_id' must be an integer"),
        ({"model_type": "clip", "text_config": 7}, "'text_config' must be an object"),
        ({"model_type": "clip", "text_config": {"hidden_size": 41}}, "41 is not a multiple of 8 heads"),
        ({"model_type": "clip", "text_config_dict": {"hidden_act": "mish"}}, "activation 'mish'"),
    ],
)
def test_configuration_that_is_no_supported_clip_is_refused(change: dict[str, Any], complaint: str) -> None:
    config = {"model_type": "clip_text_model", "num_hidden_layers": 1, **CLIP_DIMENSIONS, **change}
    with pytest.raises(CheckpointError, match=complaint):
        ClipEncoder.from_config(config, ["text_projection.weight"])


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"text_config": None, "projection_dim": 33},
        {"text_config": {"hidden_size": 24, "projection_dim": 7, "eos_token_id": 2}},
        {"text_config": {"hidden_size": 24, "eos_token_id": 2}, "text_config_dict": None},
        {"text_config": {"hidden_size": 24, "eos_token_id": 2}, "text_config_dict": {"num_hidden_layers": 3}},
    ],
)
def test_what_a_whole_clip_leaves_out_is_filled_in_as_by_transformers(document: dict[str, Any]) -> None:
    from transformers import CLIPConfig

    truth = CLIPConfig.from_dict(json.loads(json.dumps(document)))
    encoder = ClipEncoder.from_config({**document, "model_type": "clip"}, ["text_projection.weight"])
    text = truth.text_config
    assert (encoder.num_layers, encoder.hidden_size, encoder.vocab_size, encoder.num_heads) == (
        text.num_hidden_layers, text.hidden_size, text.vocab_size, text.num_attention_heads,
    )  # fmt: skip
    assert (encoder.intermediate_size, encoder.max_length, encoder.epsilon, encoder.eos_token_id) == (
        text.intermediate_size, text.max_position_embeddings, text.layer_norm_eps, text.eos_token_id,
    )  # fmt: skip
    assert encoder.features("text_embeds") == truth.projection_dim


def test_text_config_alone_is_filled_in_as_by_transformers() -> None:
    from transformers import CLIPTextConfig

    text = CLIPTextConfig()
    encoder = ClipEncoder.from_config({"model_type": "clip_text_model"}, ["text_projection.weight"])
    assert (encoder.num_layers, encoder.intermediate_size, encoder.features("text_embeds")) == (
        text.num_hidden_layers, text.intermediate_size, text.projection_dim,
    )  # fmt: skip
