"""Language models, run by torch, against transformers: any plan, any mask, every hidden state.

Tolerance: relative error of the worst row. Two orders of the same fp32 sums give up to 5e-6 here; a window off by one
token, or a norm's epsilon in the wrong place, gives 1e-3 and more.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from skrr_export.encoders.decoder import DECODERS
from skrr_export.encoders.decoder.definition import rounded
from skrr_export.encoders.module import FunctionalEncoder
from skrr_export.outputs import LAST, Join, Output
from skrr_export.plan import Plan
from tests.bundles import SPECIAL_PLANS, examples, plans, random_ids, relative_error
from tests.families.decoders import FAMILIES, LANGUAGE_PARTS, WINDOW, decoder_checkpoint, encode
from tests.reference import Sources

TOLERANCE = 2e-5
LANGUAGE_MODELS = sorted(FAMILIES.keys() - LANGUAGE_PARTS.keys())

Checkpoints = Callable[..., Path]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    @cache
    def make(model_type: str, layers: int = 4) -> Path:
        return decoder_checkpoint(tmp_path_factory.mktemp(model_type), model_type, layers=layers)

    return make


def run(
    checkpoint: Path,
    sources: Sources | None,
    ids: np.ndarray,
    mask: np.ndarray | None,
    *outputs: Output,
    dtype: torch.dtype = torch.float32,
) -> list[np.ndarray]:
    """The outputs that are asked for, or the last hidden state, as our parts compute them."""
    config = json.loads((checkpoint / "config.json").read_text())
    weights = {name: value.to(dtype) for name, value in load_file(checkpoint / "model.safetensors").items()}
    [family] = [each for each in DECODERS if config["model_type"] in each.model_types]
    encoder = family.from_config(config, weights.keys())
    pairs = sources or [(layer, layer) for layer in range(encoder.num_layers)]
    outputs = outputs or (LAST,)
    module = FunctionalEncoder(encoder, Plan(encoder.family, tuple(pairs)), outputs, masked=mask is not None)
    with torch.inference_mode():
        results = module(weights, torch.from_numpy(ids), None if mask is None else torch.from_numpy(mask))
    return [results[output.name].float().numpy() for output in outputs]


def any_mask(random: np.random.Generator, batch: int, sequence: int) -> np.ndarray:
    """Rows padded on the right or on the left, masked anywhere, and wholly."""
    position, length = np.arange(sequence), random.integers(0, sequence + 1, (batch, 1))
    rows = np.stack([position < length, position >= length, random.integers(0, 2, (batch, sequence))])
    return rows[random.integers(0, 3, batch), np.arange(batch)].astype(np.int64)


@pytest.mark.parametrize("model_type", LANGUAGE_MODELS)
def test_any_plan_equals_transformers(model_type: str, checkpoints: Checkpoints) -> None:
    @examples(10)
    @given(
        sources=st.integers(1, 5).flatmap(plans),
        masked=st.booleans(),
        sequence=st.one_of(st.integers(1, WINDOW + 1), st.integers(1, 40)),
        seed=st.integers(0, 2**32),
    )
    def check(sources: Sources, masked: bool, sequence: int, seed: int) -> None:
        random = np.random.default_rng(seed)
        batch, layer = int(random.integers(1, 4)), int(random.integers(len(sources) + 1))
        ids, mask = random_ids(random, batch, sequence), any_mask(random, batch, sequence) if masked else None
        checkpoint, middle = checkpoints(model_type, len(sources)), Output("hidden_states", (layer,))
        for output, ours in zip((LAST, middle), run(checkpoint, sources, ids, mask, LAST, middle), strict=True):
            assert relative_error(ours, encode(checkpoint, sources, ids, mask, output.name)) < TOLERANCE

    check()


@pytest.mark.parametrize("plan", SPECIAL_PLANS)
@pytest.mark.parametrize("model_type", ["gemma3_text", "llama"])
def test_special_plan_equals_transformers(model_type: str, plan: str, checkpoints: Checkpoints) -> None:
    sources, random = SPECIAL_PLANS[plan], np.random.default_rng(0)
    checkpoint = checkpoints(model_type, len(sources))
    ids, mask = random_ids(random, 3, 20), any_mask(random, 3, 20)
    ours, truth = run(checkpoint, sources, ids, mask)[0], encode(checkpoint, sources, ids, mask)
    assert relative_error(ours, truth) < TOLERANCE


@pytest.mark.parametrize("model_type", FAMILIES)
def test_every_hidden_state_equals_transformers(model_type: str, checkpoints: Checkpoints) -> None:
    """Of the whole model, one that sees images too as it is; by nothing but transformers."""
    checkpoint, random = checkpoints(model_type), np.random.default_rng(0)
    position = np.arange(30)
    ids, mask = random_ids(random, 3, 30), np.stack([position < 21, position >= 12, position >= 0]).astype(np.int64)
    outputs = (LAST, *(Output("hidden_states", (layer,)) for layer in range(5)))
    for output, ours in zip(outputs, run(checkpoint, None, ids, mask, *outputs), strict=True):
        truth = encode(checkpoint, None, ids, mask, output.name)
        # Qwen2.5-VL's rows of padding depend on the release of transformers: early ones give them other positions.
        rows = mask != 0 if model_type == "qwen2_5_vl" else np.ones_like(mask, bool)
        assert relative_error(ours[rows], truth[rows]) < TOLERANCE


@pytest.mark.parametrize("join", ["concatenate", "stack"])
def test_joined_layers_are_those_of_transformers(join: Join, checkpoints: Checkpoints) -> None:
    checkpoint, ids = checkpoints("qwen3"), random_ids(np.random.default_rng(0), 2, 9)
    states = [encode(checkpoint, None, ids, None, f"hidden_states.{layer}") for layer in (4, 0, 2)]
    [ours] = run(checkpoint, None, ids, None, Output("hidden_states", (4, 0, 2), join))
    truth = np.concatenate(states, axis=-1) if join == "concatenate" else np.stack(states, axis=1)
    assert relative_error(ours, truth) < TOLERANCE


@pytest.mark.parametrize("model_type", ["gemma2", "mistral"])
def test_inputs_far_beyond_the_window(model_type: str, checkpoints: Checkpoints) -> None:
    random = np.random.default_rng(0)
    ids, mask = random_ids(random, 2, 400), any_mask(random, 2, 400)
    [ours] = run(checkpoints(model_type), None, ids, mask)
    assert relative_error(ours, encode(checkpoints(model_type), None, ids, mask)) < TOLERANCE


@pytest.mark.parametrize("model_type", LANGUAGE_MODELS)
def test_row_masked_whole_is_finite_and_changes_no_other(model_type: str, checkpoints: Checkpoints) -> None:
    checkpoint, random = checkpoints(model_type), np.random.default_rng(0)
    ids, mask = random_ids(random, 3, 20), np.ones((3, 20), np.int64)
    [unmasked] = run(checkpoint, None, ids, mask)
    mask[1] = 0
    [ours] = run(checkpoint, None, ids, mask)
    np.testing.assert_array_equal(ours[[0, 2]], unmasked[[0, 2]])
    # Every key is equally unlikely, so the attention is their plain average, later ones included, as in transformers.
    assert relative_error(ours, encode(checkpoint, None, ids, mask)) < TOLERANCE
    ids[1, -1] += 1
    assert (run(checkpoint, None, ids, mask)[0][1, 0] != ours[1, 0]).any()


LLAMAS: dict[str, dict[str, Any]] = {
    "as many keys as queries": {"num_key_value_heads": 4},
    "one key for all queries": {"num_key_value_heads": 1},
    "no bias": {"attention_bias": False, "mlp_bias": False},
    "dynamic": {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 100.0, "factor": 4.0}},
    "gelu": {"hidden_act": "gelu", "rms_norm_eps": 0.1},
}


@pytest.mark.parametrize("case", LLAMAS)
def test_other_settings_equal_transformers(case: str, tmp_path: Path) -> None:
    checkpoint = decoder_checkpoint(tmp_path, "llama", layers=2, **LLAMAS[case])
    ids = random_ids(np.random.default_rng(0), 2, 128)
    assert relative_error(run(checkpoint, None, ids, None)[0], encode(checkpoint, None, ids)) < TOLERANCE


@pytest.mark.parametrize("softcap", [None, 0.5])
def test_gemma2_with_other_logits(softcap: float | None, tmp_path: Path) -> None:
    checkpoint = decoder_checkpoint(tmp_path, "gemma2", layers=2, attn_logit_softcapping=softcap)
    ids = random_ids(np.random.default_rng(0), 2, 20)
    assert relative_error(run(checkpoint, None, ids, None)[0], encode(checkpoint, None, ids)) < TOLERANCE


@given(
    value=st.floats(2**-10, 2**10),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
)
def test_number_is_rounded_as_torch_rounds_it(value: float, dtype: torch.dtype) -> None:
    assert rounded(value, dtype) == torch.tensor(value, dtype=torch.float64).to(dtype).item()


@pytest.mark.parametrize("model_type", ["gemma2", "gemma3_text"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_gemmas_embedding_in_half_precision_is_exactly_that_of_transformers(
    model_type: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    """The scale is rounded too; the root of 38, 6.1644, is 6.15625 in bf16."""
    checkpoint = decoder_checkpoint(tmp_path, model_type, layers=1, hidden_size=38, num_attention_heads=2)
    ids = random_ids(np.random.default_rng(0), 4, 100)
    [ours] = run(checkpoint, None, ids, None, Output("hidden_states", (0,)), dtype=dtype)
    model = transformers.AutoModel.from_pretrained(checkpoint, dtype=dtype)
    with torch.inference_mode():
        truth = model(input_ids=torch.from_numpy(ids), output_hidden_states=True).hidden_states[0]
    np.testing.assert_array_equal(ours, truth.float().numpy())
