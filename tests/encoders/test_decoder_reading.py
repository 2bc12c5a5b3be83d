"""What is read of a language model's `config.json` is what transformers reads, in old forms and in new ones."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from skrr_export.checkpoint import open_checkpoint
from skrr_export.encoders import recognise, select
from skrr_export.encoders.decoder import DECODERS, DecoderEncoder
from skrr_export.errors import CheckpointError
from skrr_export.plan import Plan
from tests.families.decoders import DIMENSIONS, FAMILIES, LANGUAGE_PARTS, PECULIAR, decoder_checkpoint

ENCODERS = {model_type: encoder for encoder in DECODERS for model_type in encoder.model_types}
HEADLESS = ("qwen2_5_vl_text", True)
"""It has a head only where it is part of a Qwen2.5-VL."""
LANGUAGE_MODELS = sorted(FAMILIES.keys() - LANGUAGE_PARTS.keys())
REQUIRED = {
    "vocab_size": 307, "hidden_size": 2048, "intermediate_size": 64, "num_hidden_layers": 7, "num_attention_heads": 16,
    "num_key_value_heads": 4, "rms_norm_eps": 1e-5, "hidden_act": "silu", "max_position_embeddings": 512,
}  # fmt: skip
"""What no configuration leaves out; but Gemma 3's may."""


def read(model_type: str, config: Mapping[str, Any]) -> DecoderEncoder:
    return ENCODERS[model_type].from_config({"model_type": model_type, **config}, [])


def complete(model_type: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """What transformers makes of a configuration, with every default filled in."""
    given = {key: value for key, value in copy.deepcopy(dict(config)).items() if key != "model_type"}
    made = transformers.AutoConfig.for_model(model_type, **given)
    return json.loads(json.dumps(made.to_dict()))


def test_every_model_type_has_its_family() -> None:
    assert {model_type: encoder.family for model_type, encoder in ENCODERS.items()} == FAMILIES


@pytest.mark.parametrize("model_type", LANGUAGE_MODELS)
def test_what_a_configuration_leaves_out_is_what_transformers_takes(model_type: str) -> None:
    sparse = {} if model_type == "gemma3_text" else REQUIRED
    assert read(model_type, sparse) == read(model_type, complete(model_type, sparse))


def test_published_gemma3_configuration_is_read() -> None:
    """As google/gemma-3-4b-it has it."""
    text = {
        "hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text", "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024,
    }  # fmt: skip
    encoder = read("gemma3", {"text_config": text, "vision_config": {"hidden_size": 1152}})
    assert encoder == read("gemma3_text", complete("gemma3_text", text))
    assert (encoder.vocab_size, encoder.num_heads, encoder.num_key_value_heads, encoder.head_size) == (
        262208,
        8,
        4,
        256,
    )
    assert [window is None for window in encoder.windows] == [layer % 6 == 5 for layer in range(34)]
    assert encoder.windows[0] == 1024
    assert encoder.local_rope is not None
    assert encoder.rope.frequencies[0] == 0.125
    assert encoder.local_rope.frequencies[0] == 1


OLD_AND_NEW: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "theta": ("llama", {"rope_theta": 500.0}, {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}),
    "scaling": (
        "llama",
        {"rope_theta": 500.0, "rope_scaling": {"type": "linear", "factor": 2.0}},
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0}},
    ),
    "no scaling": ("llama", {"rope_scaling": None, "rope_theta": 9.0}, {"rope_parameters": {"rope_theta": 9.0}}),
    "two axes of three": (
        "qwen2_5_vl_text",
        {"rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}, "rope_theta": 2e6},
        {"rope_parameters": {"rope_type": "default", "mrope_section": [16, 24, 24], "rope_theta": 2e6}},
    ),
    "local": (
        "gemma3_text",
        {"rope_theta": 2e6, "rope_local_base_freq": 99.0, "rope_scaling": {"rope_type": "linear", "factor": 8.0}},
        {
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 2e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 99.0},
            }
        },
    ),
    "share of a head": (
        "glm",
        {"partial_rotary_factor": 0.25, "rope_theta": 9.0},
        {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.25, "rope_theta": 9.0}},
    ),
    "windows of the last": (
        "qwen3",
        {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 3},
        {
            "use_sliding_window": True,
            "sliding_window": 9,
            "max_window_layers": 7,
            "layer_types": ["full_attention"] * 3 + ["sliding_attention"] * 4,
        },
    ),
    "windows": (
        "gemma3_text",
        {"sliding_window_pattern": 3},
        {"layer_types": [*(["sliding_attention"] * 2 + ["full_attention"]) * 2, "sliding_attention"]},
    ),
}


@pytest.mark.parametrize("case", OLD_AND_NEW)
def test_old_and_new_forms_say_the_same_as_to_transformers(case: str) -> None:
    model_type, old, new = OLD_AND_NEW[case]
    old, new = {**REQUIRED, **old}, {**REQUIRED, **new}
    assert read(model_type, old) == read(model_type, new) == read(model_type, complete(model_type, old))
    assert read(model_type, old) != read(model_type, REQUIRED)


def test_qwen_vl_may_be_written_flat() -> None:
    nested = {**REQUIRED, "model_type": "qwen2_5_vl_text"}
    flat = read("qwen2_5_vl", {**REQUIRED, "vision_config": {"hidden_size": 8}})
    assert flat == read("qwen2_5_vl", {"text_config": nested, "hidden_size": 99})


ROPES: dict[str, dict[str, Any]] = {
    "default": {},
    "linear": {"factor": 3.0},
    "dynamic": {"factor": 4.0},
    "llama3": {
        "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
    },
    "llama3, of its own length": {"factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 128},
    "yarn, of its own length": {"factor": 2.5},
    "yarn, scaled": {"factor": 4.0, "attention_factor": 0.7},
    "yarn, by two scales": {"factor": 40.0, "mscale": 0.7, "mscale_all_dim": 1.3},
    "yarn, bounded": {"factor": 4.0, "beta_fast": 20, "beta_slow": 2.5, "truncate": False},
}  # fmt: skip


def _assert_turns_as_transformers(parameters: dict[str, Any], config: Mapping[str, Any]) -> None:
    made = transformers.LlamaConfig(**config, rope_parameters=dict(parameters))
    truth = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding(made)
    rope = read("llama", {**config, "rope_parameters": parameters}).rope
    assert torch.equal(torch.tensor(rope.frequencies), truth.inv_freq)
    assert rope.scale == truth.attention_scaling
    like = torch.zeros(2, 300, 1)
    cosine, sine = truth(like, torch.arange(300)[None])
    assert torch.equal(rope.table(like), torch.cat((cosine, sine)))


@pytest.mark.parametrize("case", ROPES)
@pytest.mark.parametrize("theta", [10_000.0, 500_000, 1e9])
def test_rotary_table_is_exactly_that_of_transformers(case: str, theta: float) -> None:
    parameters = {"rope_type": case.partition(",")[0], "rope_theta": theta, **ROPES[case]}
    _assert_turns_as_transformers(parameters, {**REQUIRED, "head_dim": 64})


BOUNDS = {"llama3": ("low_freq_factor", "high_freq_factor"), "yarn": ("beta_slow", "beta_fast")}


@given(
    kind=st.sampled_from(sorted(BOUNDS)),
    size=st.integers(1, 128).map(lambda half: 2 * half),
    bounds=st.tuples(st.floats(0.5, 8), st.floats(0.5, 40)),
    others=st.fixed_dictionaries(
        {
            "rope_theta": st.floats(2, 1e9),
            "factor": st.floats(1, 100),
            "original_max_position_embeddings": st.integers(16, 100_000),
        }
    ),
)
def test_rotary_table_of_any_scaling_is_exactly_that_of_transformers(
    kind: str, size: int, bounds: tuple[float, float], others: dict[str, Any]
) -> None:
    low, more = bounds
    parameters = {"rope_type": kind, **others, **dict(zip(BOUNDS[kind], (low, low + more), strict=True))}
    _assert_turns_as_transformers(parameters, {**REQUIRED, "head_dim": size})


def test_original_length_beside_the_parameters_takes_precedence() -> None:
    parameters = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0, "original_max_position_embeddings": 64}
    _assert_turns_as_transformers(parameters, {**REQUIRED, "original_max_position_embeddings": 200})


def test_dynamic_base_ends_where_it_would_change() -> None:
    rope = {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}
    assert read("llama", {**REQUIRED, **rope}).max_length == 512
    assert read("llama", REQUIRED).max_length is None


@pytest.mark.parametrize(
    ("model_type", "change", "complaint"),
    [
        ("llama", {"hidden_size": 0}, "'hidden_size' must be a positive integer"),
        ("llama", {"num_key_value_heads": 3}, "16 attention heads cannot share 3 heads of keys and values"),
        ("llama", {"head_dim": 63}, "turns pairs of features, not 63"),
        ("llama", {"hidden_size": 8}, "'head_dim' must be a positive integer up to .*, not 0"),
        ("llama", {"rms_norm_eps": None}, "'rms_norm_eps' must be a number"),
        ("llama", {"hidden_act": "mish"}, "activation 'mish'"),
        ("llama", {"attention_bias": "yes"}, "'attention_bias' must be true or false, not 'yes'"),
        ("llama", {"partial_rotary_factor": 0.5}, r"turn in part \(0.5 of them\) are glm's alone"),
        ("llama", {"rope_scaling": {"type": "longrope"}}, "rope_type 'longrope'; supported: default, linear, llama3"),
        ("llama", {"rope_scaling": {"type": ["yarn"]}}, r"rope_type \['yarn'\]"),
        ("llama", {"rope_scaling": 2.0}, "'rope_parameters' must be an object"),
        ("llama", {"rope_scaling": {"type": "linear"}}, "'factor' must be a positive number, not None"),
        ("llama", {"rope_scaling": {"type": "linear", "factor": 10**400}}, "'factor' must be a positive number"),
        ("llama", {"rope_theta": 1}, "'rope_theta' must be above 1"),
        ("llama", {"rope_theta": True}, "'rope_theta' must be a positive number"),
        ("llama", {"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, "not one by layer type"),
        (
            "llama",
            {"rope_scaling": {"type": "llama3", "factor": 8.0, "low_freq_factor": 4, "high_freq_factor": 4}},
            "'high_freq_factor' must differ",
        ),
        ("llama", {"quantization_config": {"quant_method": "fp8"}}, "quantised weights are not supported"),
        ("llama", {"is_causal": False}, "bidirectional attention is not supported"),
        ("qwen2", {"num_experts": 8}, "mixtures of experts are not supported"),
        ("mistral", {"sliding_window": 0}, "'sliding_window' must be a positive integer"),
        ("mistral3", {}, "'text_config' must be an object, not None"),
        ("mistral3", {"text_config": {"model_type": "ministral3"}}, "a mistral3 whose language model is 'ministral3'"),
        ("gemma3", {"text_config": {"quantization_config": {"bits": 4}}}, "quantised weights"),
        ("gemma3", {"text_config": {}, "quantization_config": {"bits": 4}}, "quantised weights"),
        ("gemma3", {"text_config": {"use_bidirectional_attention": True}}, "bidirectional attention"),
        ("gemma3_text", {"attn_logit_softcapping": 50.0}, "not supported for Gemma 3"),
        ("gemma3_text", {"rope_parameters": [1]}, "'rope_parameters' must be an object"),
        ("gemma3_text", {"rope_parameters": {"full_attention": 1e6}}, "'rope_parameters' must be an object"),
        ("gemma3_text", {"sliding_window_pattern": 0}, "'sliding_window_pattern' must be a positive integer"),
        ("gemma2", {"query_pre_attn_scalar": -1}, "'query_pre_attn_scalar' must be a positive number"),
        ("gemma2", {"attn_logit_softcapping": 0}, "'attn_logit_softcapping' must be a positive number"),
        ("gemma2", {"layer_types": ["full_attention"]}, "'layer_types' must say full_attention or sliding_attention"),
        ("gemma2", {"layer_types": ["chunked_attention"] * 7}, "'layer_types' must say"),
        ("qwen3", {"layer_types": ["sliding_attention"] * 7}, "'sliding_window' gives no size"),
        ("qwen3", {"use_sliding_window": True, "sliding_window": 4}, "'max_window_layers' must be a number of layers"),
        ("qwen2_5_vl_text", {"head_dim": 64}, "heads of a Qwen2.5-VL must make up its hidden size"),
        ("glm", {"partial_rotary_factor": 1.5}, "must be a share of a head, not 1.5"),
    ],
)
def test_configuration_that_is_not_supported_is_refused(
    model_type: str, change: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(CheckpointError, match=complaint):
        read(model_type, {**REQUIRED, **change})


KEYS = sorted(
    {*REQUIRED, *(key for encoder in DECODERS for key in encoder.defaults), *PECULIAR["gemma3_text"], "head_dim"}
    | {"rope_theta", "rope_scaling", "rope_parameters", "partial_rotary_factor", "layer_types", "max_window_layers"}
    | {"use_sliding_window", "attention_bias", "text_config", "original_max_position_embeddings", "is_causal"}
)
ROPE_KEYS = ["rope_type", "type", "factor", "rope_theta", "partial_rotary_factor", *sum(BOUNDS.values(), ())]
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.sampled_from([0, 1, 2, 10**400, 1e-300, *ROPES, *ROPE_KEYS]),
)
OBJECTS = st.dictionaries(st.sampled_from([*ROPE_KEYS, "full_attention", "sliding_attention"]), SCALARS)
VALUES = st.one_of(SCALARS, st.lists(SCALARS, max_size=3), OBJECTS, st.dictionaries(st.sampled_from(KEYS), OBJECTS))


@given(
    model_type=st.sampled_from(sorted(FAMILIES)),
    change=st.dictionaries(st.sampled_from(KEYS), VALUES, min_size=1, max_size=3),
)
def test_any_configuration_is_read_or_refused(model_type: str, change: dict[str, Any]) -> None:
    config = {**REQUIRED, **change}
    try:
        encoder = read(model_type, {"text_config": config, **config})
    except CheckpointError:
        return
    assert isinstance(encoder.parts()["attention"], torch.nn.Module)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return decoder_checkpoint(tmp_path_factory.mktemp("llama"), "llama", layers=2)


def _renamed(checkpoint: Path, directory: Path, rename: Any, **more: torch.Tensor) -> Path:
    weights = {rename(name): value for name, value in load_file(checkpoint / "model.safetensors").items()}
    save_file({**weights, **more}, directory / "model.safetensors")
    (directory / "config.json").write_bytes((checkpoint / "config.json").read_bytes())
    return directory


@pytest.mark.parametrize(
    "root", ["", "model.", "language_model.", "language_model.model.", "model.language_model.", "elsewhere."]
)
def test_language_model_is_found_wherever_it_lies(root: str, checkpoint: Path, tmp_path: Path) -> None:
    others = ("lm_head.weight", "vision_tower.layers.0.norm.weight", "visual.embed.weight", "norm_of_another.weight")
    more = {name: torch.zeros(3) for name in others}
    opened = open_checkpoint(_renamed(checkpoint, tmp_path, lambda name: root + name, **more))
    encoder = recognise(opened)
    tensors = [tensor.name for tensor in select(opened, encoder, Plan.identity("llama", 2)).tensors]
    assert sorted(tensors) == sorted(root + name for name in load_file(checkpoint / "model.safetensors"))


def test_rotary_frequencies_that_early_releases_stored_are_left_out(checkpoint: Path, tmp_path: Path) -> None:
    stored = {f"layers.{layer}.self_attn.rotary_emb.inv_freq": torch.zeros(5) for layer in range(2)}
    opened = open_checkpoint(_renamed(checkpoint, tmp_path, str, **stored))
    names = {tensor.name for tensor in select(opened, recognise(opened), Plan.identity("llama", 2)).tensors}
    assert names == opened.tensors.keys() - stored.keys()


@pytest.mark.parametrize("more", ["layers.2.mlp.up_proj.weight", "layers.0.self_attn.q_norm.weight"])
def test_tensor_that_has_no_place_is_refused(more: str, checkpoint: Path, tmp_path: Path) -> None:
    opened = open_checkpoint(_renamed(checkpoint, tmp_path, str, **{more: torch.zeros(3)}))
    with pytest.raises(CheckpointError, match=f"'{more}' has no place"):
        select(opened, recognise(opened), Plan.identity("llama", 2))


def test_checkpoint_without_an_embedding_says_so(checkpoint: Path, tmp_path: Path) -> None:
    opened = open_checkpoint(_renamed(checkpoint, tmp_path, lambda name: name.replace("embed_tokens", "wte")))
    with pytest.raises(CheckpointError, match=r"the tensor 'model\.embed_tokens\.weight' is missing"):
        select(opened, recognise(opened), Plan.identity("llama", 2))


@pytest.mark.parametrize(
    ("model_type", "head"),
    [(model_type, head) for model_type in FAMILIES for head in (False, True) if (model_type, head) != HEADLESS],
)
def test_checkpoints_of_transformers_are_read(model_type: str, head: bool, tmp_path: Path) -> None:
    opened = open_checkpoint(decoder_checkpoint(tmp_path, model_type, layers=2, head=head))
    encoder = recognise(opened)
    selection = select(opened, encoder, Plan.identity(encoder.family, 2))
    language = [name for name in opened.tensors if "vis" not in name and "projector" not in name]
    assert len(selection.tensors) == len(set(language) - {"lm_head.weight", "language_model.lm_head.weight"})
    part = LANGUAGE_PARTS.get(model_type, model_type)
    settings = {**DIMENSIONS, **PECULIAR[part], "num_hidden_layers": 2}
    assert dataclasses.replace(encoder, root="") == dataclasses.replace(read(part, complete(part, settings)), root="")
    assert np.prod(encoder.parts()["embedding"].weight.shape) == 307 * encoder.hidden_size
