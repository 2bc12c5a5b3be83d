"""Decoder-only language models: tiny checkpoints made by `transformers`, and `transformers` running them under a plan.

See `tests.checkpoints` and `tests.reference`, whose rules hold here too.
"""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.checkpoints import byte_tokenizer
from tests.reference import Sources

DIMENSIONS = {
    "vocab_size": 307,
    "hidden_size": 36,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 10,
    "intermediate_size": 53,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 3,
    "eos_token_id": 1,
}
"""Of `decoder_checkpoint`; `num_attention_heads * head_dim` is 40, not `hidden_size`."""

FAMILIES = {
    "llama": "llama",
    "mistral": "mistral",
    "mistral3": "mistral",
    "qwen2": "qwen2.5",
    "qwen2_5_vl": "qwen2.5",
    "qwen2_5_vl_text": "qwen2.5",
    "qwen3": "qwen3",
    "gemma2": "gemma2",
    "gemma3": "gemma3",
    "gemma3_text": "gemma3",
    "glm": "glm",
}
"""The family of plans and manifests, by the `model_type` of a checkpoint."""

WINDOW = 7
"""Keys that an attention with a sliding window looks back at."""

PECULIAR: dict[str, dict[str, Any]] = {
    "llama": {
        "attention_bias": True,
        "mlp_bias": True,
        "rope_parameters": {
            "rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    },
    "mistral": {"sliding_window": WINDOW, "rope_parameters": {"rope_type": "default", "rope_theta": 1e9}},
    "qwen2": {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 2, "head_dim": 10},
    "qwen2_5_vl_text": {
        "hidden_size": 40,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [1, 2, 2]},
    },
    "qwen3": {
        "attention_bias": True,
        "rope_parameters": {
            "rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 32,
        },
    },
    "gemma2": {"sliding_window": WINDOW, "query_pre_attn_scalar": 13, "attn_logit_softcapping": 3.0},
    "gemma3_text": {
        "sliding_window": WINDOW,
        "query_pre_attn_scalar": 13,
        "sliding_window_pattern": 2,
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
        },
    },
    "glm": {"head_dim": 12, "partial_rotary_factor": 0.5, "attention_bias": True},
}  # fmt: skip
"""What sets a family apart, at a size at which it shows."""

LANGUAGE_PARTS = {"mistral3": "mistral", "qwen2_5_vl": "qwen2_5_vl_text", "gemma3": "gemma3_text"}
VISION_PARTS: dict[str, dict[str, Any]] = {
    "mistral3": {
        "model_type": "pixtral", "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1,
        "num_attention_heads": 1, "head_dim": 8, "image_size": 4, "patch_size": 2,
    },
    "qwen2_5_vl": {
        "depth": 1, "hidden_size": 8, "intermediate_size": 8, "num_heads": 1, "patch_size": 2, "window_size": 8,
        "fullatt_block_indexes": [0], "out_hidden_size": 40, "spatial_merge_size": 1,
    },
    "gemma3": {
        "model_type": "siglip_vision_model", "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1,
        "num_attention_heads": 1, "image_size": 4, "patch_size": 2,
    },
}  # fmt: skip
"""Of models that see images, which none of our graphs do."""


def decoder_checkpoint(
    directory: Path,
    model_type: str,
    *,
    layers: int = 3,
    head: bool = False,
    dtype: torch.dtype = torch.float32,
    tokenizer: bool = False,
    seed: int = 0,
    **config: Any,
) -> Path:
    """Save a decoder-only language model with random weights, as its `save_pretrained` does.

    Args:
        directory: where; made if absent.
        model_type: of its configuration, which says of which family it is, and whether it sees images too.
        layers: number of layers.
        head: save the model with the head that predicts tokens: `LlamaForCausalLM` and the like.
        dtype: of the weights.
        tokenizer: save a byte-level tokenizer beside it that starts each prompt with `<cls>`.
        seed: of the weights.
        config: further keys of the configuration, of the language part's where there are others, over `DIMENSIONS` and
            `PECULIAR`.

    Returns:
        The directory.
    """
    import transformers

    part = LANGUAGE_PARTS.get(model_type, model_type)
    settings = {**DIMENSIONS, **PECULIAR[part], "num_hidden_layers": layers, **config}
    settings = copy.deepcopy(settings)  # configurations complete what they are given
    if part == model_type:
        model_config = transformers.AutoConfig.for_model(model_type, **settings)
        model_class = transformers.AutoModelForCausalLM if head else transformers.AutoModel
    else:
        parts = {"text_config": {"model_type": part, **settings}, "vision_config": VISION_PARTS[model_type]}
        model_config = transformers.AutoConfig.for_model(model_type, **copy.deepcopy(parts))
        model_class = transformers.AutoModelForImageTextToText if head else transformers.AutoModel
    model = model_class.from_config(model_config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Gemma's norms add their weight to 1.
            centre = 1.0 if "norm" in name and name.endswith("weight") and not part.startswith("gemma") else 0.0
            parameter.copy_(centre + 0.3 * torch.randn(parameter.shape, generator=generator))
    model.to(dtype).save_pretrained(directory)
    if tokenizer:
        byte_tokenizer(ending="<cls> $A").save_pretrained(directory)
    return directory


def encode(
    checkpoint: Path,
    sources: Sources | None,
    input_ids: np.ndarray,
    attention_mask: np.ndarray | None = None,
    output: str = "last_hidden_state",
    *,
    rounded_to: torch.dtype = torch.float32,
) -> np.ndarray:
    """An output of a decoder-only language model.

    Args:
        checkpoint: its directory.
        sources: the plan; `None`: the model as it is, vision part and all, run by nothing but transformers.
        input_ids: `[batch, sequence]`.
        attention_mask: `[batch, sequence]`, or none.
        output: `last_hidden_state` or `hidden_states.K`.
        rounded_to: precision that the weights are rounded to; the computing is always in fp32.
    """
    model = _load(checkpoint, rounded_to)
    ids, mask = torch.from_numpy(input_ids), None if attention_mask is None else torch.from_numpy(attention_mask)
    _, _, layer = output.partition(".")
    with torch.inference_mode():
        if sources is not None:
            return _run(_language_model(model), sources, ids, mask)[int(layer) if layer else -1].numpy()
        result = model(input_ids=ids, attention_mask=mask, output_hidden_states=True)
        return (result.hidden_states[int(layer)] if layer else result.last_hidden_state).numpy()


@cache
def _load(checkpoint: Path, rounded_to: torch.dtype) -> Any:
    import transformers

    model = transformers.AutoModel.from_pretrained(checkpoint, dtype=torch.float32, attn_implementation="eager").eval()
    embedding = _language_model(model).embed_tokens
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.to(rounded_to))
        if _language_model(model).config.model_type.startswith("gemma"):  # which rounds its embedding's scale too
            scale = torch.tensor(embedding.embedding_dim**0.5)
            embedding.weight.mul_(scale.to(rounded_to) / scale)
    return model


def _language_model(model: Any) -> Any:
    """The language part: the model itself where it has no other."""
    return getattr(model, "language_model", model)


def _run(model: Any, sources: Sources, ids: torch.Tensor, mask: torch.Tensor | None) -> list[torch.Tensor]:
    """The hidden states under a plan, by a model of which each layer is one sub-block: the other half adds nothing.

    A layer is a copy of its source, and says of which type it is, so its window and its rotary embedding go along.
    """
    model = copy.deepcopy(model)
    originals, types = list(model.layers), getattr(model.config, "layer_types", None)
    layers, kept, ends = [], [], []
    for pair in sources:
        for silent, source in zip(("mlp.down_proj", "self_attn.o_proj"), pair, strict=True):
            if source is not None:
                layers.append(copy.deepcopy(originals[source]))
                kept.append(source)
                for parameter in layers[-1].get_submodule(silent).parameters():
                    parameter.zero_()
        ends.append(len(layers))
    model.layers = torch.nn.ModuleList(layers)
    model.config.num_hidden_layers = len(layers)
    if types:
        model.config.layer_types = [types[source] for source in kept]
    streams: list[torch.Tensor] = []
    for module in (*layers, model.norm):
        module.register_forward_pre_hook(lambda _, inputs: streams.append(inputs[0]))
    last = model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
    return [streams[0], *(streams[end] for end in ends[:-1]), last]
