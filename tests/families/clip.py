"""CLIP text encoders: tiny checkpoints made by `transformers`, and `transformers` running them under a plan.

See `tests.checkpoints` and `tests.reference`, whose rules hold here too.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.checkpoints import byte_tokenizer
from tests.reference import Sources

CLIP_DIMENSIONS = {
    "vocab_size": 307,
    "hidden_size": 39,
    "num_attention_heads": 3,
    "intermediate_size": 53,
    "max_position_embeddings": 71,
    "projection_dim": 29,
    "eos_token_id": 1,  # what `byte_tokenizer` ends a prompt with
}
"""Of `clip_checkpoint`; no two are equal."""

VISION_DIMENSIONS = {
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "image_size": 4,
    "patch_size": 2,
}
"""Of the other half of a whole CLIP."""


def clip_checkpoint(
    directory: Path,
    *,
    layers: int = 3,
    projection: bool = True,
    whole: bool = False,
    dtype: torch.dtype = torch.float32,
    tokenizer: bool = False,
    seed: int = 0,
    **config: Any,
) -> Path:
    """Save a CLIP text encoder with random weights, as `CLIPTextModel.save_pretrained` does.

    Args:
        directory: where; made if absent.
        layers: number of layers.
        projection: save a `CLIPTextModelWithProjection`.
        whole: save a `CLIPModel`, image encoder and all; it has a projection.
        dtype: of the weights.
        tokenizer: save a byte-level tokenizer beside it that frames each prompt with `<cls>` and `</s>`.
        seed: of the weights.
        config: further keys of `CLIPTextConfig`, over `CLIP_DIMENSIONS`.

    Returns:
        The directory.
    """
    from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    settings = {"num_hidden_layers": layers, **CLIP_DIMENSIONS, **config}
    if whole:
        width = settings["projection_dim"]
        model = CLIPModel(CLIPConfig(text_config=settings, vision_config=VISION_DIMENSIONS, projection_dim=width))
    else:
        model = (CLIPTextModelWithProjection if projection else CLIPTextModel)(CLIPTextConfig(**settings))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            parameter.copy_(centre + 0.3 * torch.randn(parameter.shape, generator=generator))
    model.to(dtype).save_pretrained(directory)
    if tokenizer:
        byte_tokenizer(ending="<cls> $A </s>").save_pretrained(directory)
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
    """An output of a CLIP text encoder.

    Args:
        checkpoint: its directory.
        sources: the plan; `None`: the model as it is, run by nothing but transformers.
        input_ids: `[batch, sequence]`.
        attention_mask: `[batch, sequence]`, or none.
        output: `last_hidden_state`, `hidden_states.K`, `pooler_output` or `text_embeds`.
        rounded_to: precision that the weights are rounded to; the computing is always in fp32.
    """
    model, original = _load(checkpoint)
    weights = {name: value.to(rounded_to).float() for name, value in original.items()}
    ids, mask = torch.from_numpy(input_ids), None if attention_mask is None else torch.from_numpy(attention_mask)
    kind, _, layer = output.partition(".")
    with torch.inference_mode():
        model.load_state_dict(weights if sources is None else _planned(weights, sources))
        result = model(input_ids=ids, attention_mask=mask, output_hidden_states=True)
        if kind == "pooler_output" and kind not in result:  # a model with a projection keeps it to itself
            result = model.text_model(input_ids=ids, attention_mask=mask)
        return (result[kind][int(layer)] if layer else result[kind]).numpy()


def _planned(weights: dict[str, torch.Tensor], sources: Sources) -> dict[str, torch.Tensor]:
    """Surgery on the weights: CLIP is pre-norm, so a sub-block of nothing but zeros adds nothing."""
    planned = dict(weights)
    for name, own in weights.items():
        if found := re.fullmatch(r"(.*\blayers\.)(\d+)(\.(layer_norm1|self_attn)?.*)", name):
            before, layer, rest, attention = found.groups()
            source = sources[int(layer)][0 if attention else 1]
            planned[name] = torch.zeros_like(own) if source is None else weights[f"{before}{source}{rest}"]
    return planned


@cache
def _load(checkpoint: Path) -> tuple[Any, dict[str, torch.Tensor]]:
    from transformers import AutoConfig, CLIPTextModel, CLIPTextModelWithProjection

    [architecture] = AutoConfig.from_pretrained(checkpoint).architectures
    model_class = CLIPTextModel if architecture == "CLIPTextModel" else CLIPTextModelWithProjection
    model = model_class.from_pretrained(checkpoint, dtype=torch.float32, attn_implementation="eager")
    return model.eval(), {name: value.clone() for name, value in model.state_dict().items()}
