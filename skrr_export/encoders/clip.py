"""CLIP's text encoder: causal, pre-norm, with learned positions. After Radford et al. 2021, and `CLIPTextModel`.

A checkpoint may hold the encoder alone, the encoder and its projection (`CLIPTextModelWithProjection`), or a whole
`CLIPModel`, whose image half is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from skrr_export.encoders.base import (
    CausalBias,
    Encoder,
    Shape,
    Step,
    activation,
    fraction,
    merge_heads,
    positive_int,
    split_heads,
)
from skrr_export.errors import CheckpointError
from skrr_export.outputs import Kind as OutputKind
from skrr_export.plan import Kind

PROJECTION = "text_projection."
DEFAULTS = {
    "vocab_size": 49408,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "projection_dim": 512,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "eos_token_id": 49407,
}
"""Of transformers' `CLIPTextConfig`; older checkpoints leave out what equals them."""
HIGHEST_ID_ENDS = 2
"""An `eos_token_id` that stands for the highest id in the prompt: early configurations gave it, and no such token."""


@dataclass(frozen=True)
class ClipEncoder(Encoder):
    """A CLIP text encoder."""

    family: ClassVar[str] = "clip"
    model_types: ClassVar[tuple[str, ...]] = ("clip_text_model", "clip")
    norms_last: ClassVar[bool] = False

    num_layers: int
    hidden_size: int
    vocab_size: int
    num_heads: int
    intermediate_size: int
    max_length: int
    epsilon: float
    activation: Callable[[Tensor], Tensor]
    eos_token_id: int
    """The token whose first row is pooled; see `HIGHEST_ID_ENDS`."""
    projection_size: int | None
    """Width of `text_embeds`; `None` where the checkpoint has no projection."""
    root: str
    """What stands before `embeddings.` and `encoder.` in the checkpoint: `text_model.`, or nothing."""

    @classmethod
    def from_config(cls, config: Mapping[str, Any], tensor_names: Collection[str]) -> Self:
        config = _text_config(config)
        encoder = cls(
            num_layers=positive_int(config, "num_hidden_layers"),
            hidden_size=positive_int(config, "hidden_size"),
            vocab_size=positive_int(config, "vocab_size"),
            num_heads=positive_int(config, "num_attention_heads"),
            intermediate_size=positive_int(config, "intermediate_size"),
            max_length=positive_int(config, "max_position_embeddings"),
            epsilon=fraction(config, "layer_norm_eps"),
            activation=activation(config.get("hidden_act")),
            eos_token_id=config["eos_token_id"],
            projection_size=positive_int(config, "projection_dim") if f"{PROJECTION}weight" in tensor_names else None,
            root="text_model." if any(name.startswith("text_model.") for name in tensor_names) else "",
        )
        if encoder.hidden_size % encoder.num_heads:
            raise CheckpointError(
                f"config.json: hidden_size {encoder.hidden_size} is not a multiple of {encoder.num_heads} heads"
            )
        if type(encoder.eos_token_id) is not int:
            raise CheckpointError(f"config.json: 'eos_token_id' must be an integer, not {encoder.eos_token_id!r}")
        return encoder

    @property
    def kinds(self) -> tuple[OutputKind, ...]:
        own: tuple[OutputKind, ...] = ("last_hidden_state", "hidden_states", "pooler_output")
        return own if self.projection_size is None else (*own, "text_embeds")

    @property
    def ending(self) -> int | None:
        return self.eos_token_id

    def parts(self) -> dict[str, nn.Module]:
        with torch.device("meta"):
            parts: dict[str, nn.Module] = {
                "embedding": Embedding(self),
                "causal_bias": CausalBias(),
                "attention": AttentionBlock(self),
                "feed_forward": FeedForwardBlock(self),
                "final_norm": Norm(self),
                "pooler": Pooler(self),
            }
            if self.projection_size is not None:
                parts["text_projection"] = nn.Linear(self.hidden_size, self.projection_size, bias=False)
            return parts

    def prologue(self, *, masked: bool) -> list[Step]:
        inputs = ("hidden", "attention_mask") if masked else ("hidden",)
        return [
            Step("embedding", "embedding", f"{self.root}embeddings.", ("input_ids",), "hidden"),
            Step("causal_bias", "causal_bias", "", inputs, "bias"),
        ]

    def sub_block(self, kind: Kind, source: int, *, masked: bool) -> tuple[str, str, tuple[str, ...]]:
        inputs = ("hidden", "bias") if kind == "attention" else ("hidden",)
        return kind, f"{self.root}encoder.layers.{source}.", inputs

    def epilogue(self, kind: OutputKind, *, masked: bool) -> list[Step]:
        if kind == "last_hidden_state":
            return [Step("final_norm", "final_norm", f"{self.root}final_layer_norm.", ("hidden",), kind)]
        pooler = Step("pooler", "pooler", self.root, ("hidden", "input_ids"), "pooler_output")
        projection = Step("text_projection", "text_projection", PROJECTION, ("pooler_output",), "text_embeds")
        return [pooler] if kind == "pooler_output" else [pooler, projection]

    def features(self, kind: OutputKind) -> int:
        return self.projection_size if kind == "text_embeds" and self.projection_size else self.hidden_size

    def activations(self, *, masked: bool) -> dict[str, Shape]:
        return {
            "hidden": ("batch", "sequence", self.hidden_size),
            "bias": ("batch" if masked else 1, 1, "sequence", "sequence"),
        }

    def owns(self, tensor_name: str) -> bool:
        return tensor_name.startswith(f"{self.root}encoder.")


def _text_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The text encoder's configuration, complete; as transformers reads it out of a whole CLIP's."""
    if config.get("model_type") != "clip":
        return {**DEFAULTS, **config}
    halves = [config.get(key) or {} for key in ("text_config", "text_config_dict")]
    if not all(isinstance(half, Mapping) for half in halves):
        raise CheckpointError("config.json: 'text_config' must be an object")
    text, early = halves
    # Early checkpoints have both, and their `text_config_dict`, filled up with defaults, overrules.
    merged = {**DEFAULTS, **text, **({**DEFAULTS, **early} if early else {})}
    return {**merged, "projection_dim": config.get("projection_dim", DEFAULTS["projection_dim"])}


class Norm(nn.LayerNorm):
    """Layer normalisation at the encoder's width."""

    def __init__(self, encoder: ClipEncoder) -> None:
        super().__init__(encoder.hidden_size, eps=encoder.epsilon)


class Embedding(nn.Module):
    """`input_ids` `[batch, sequence]` to `hidden` `[batch, sequence, hidden_size]`: token + position."""

    def __init__(self, encoder: ClipEncoder) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(encoder.vocab_size, encoder.hidden_size)
        self.position_embedding = nn.Embedding(encoder.max_length, encoder.hidden_size)

    def forward(self, input_ids: Tensor) -> Tensor:
        position = torch.arange(input_ids.shape[1], device=input_ids.device)
        return self.token_embedding(input_ids) + self.position_embedding(position)


class Attention(nn.Module):
    """The projections of an attention, under their checkpoint names."""

    def __init__(self, encoder: ClipEncoder) -> None:
        super().__init__()
        self.q_proj = nn.Linear(encoder.hidden_size, encoder.hidden_size)
        self.k_proj = nn.Linear(encoder.hidden_size, encoder.hidden_size)
        self.v_proj = nn.Linear(encoder.hidden_size, encoder.hidden_size)
        self.out_proj = nn.Linear(encoder.hidden_size, encoder.hidden_size)


class AttentionBlock(nn.Module):
    """`hidden + attention(norm(hidden))`."""

    def __init__(self, encoder: ClipEncoder) -> None:
        super().__init__()
        self.layer_norm1 = Norm(encoder)
        self.self_attn = Attention(encoder)
        self.num_heads = encoder.num_heads

    def forward(self, hidden: Tensor, bias: Tensor) -> Tensor:
        attention = self.self_attn
        x = self.layer_norm1(hidden).flatten(0, 1)
        query, key, value = (
            split_heads(project(x), hidden, self.num_heads)
            for project in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        context = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        return hidden + attention.out_proj(merge_heads(context)).reshape(hidden.shape)


class FeedForward(nn.Module):
    """The feed-forward network, under its checkpoint names."""

    def __init__(self, encoder: ClipEncoder) -> None:
        super().__init__()
        self.activation = encoder.activation
        self.fc1 = nn.Linear(encoder.hidden_size, encoder.intermediate_size)
        self.fc2 = nn.Linear(encoder.intermediate_size, encoder.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.activation(self.fc1(x)))


class FeedForwardBlock(nn.Module):
    """`hidden + feed_forward(norm(hidden))`."""

    def __init__(self, encoder: ClipEncoder) -> None:
        super().__init__()
        self.layer_norm2 = Norm(encoder)
        self.mlp = FeedForward(encoder)

    def forward(self, hidden: Tensor) -> Tensor:
        x = self.layer_norm2(hidden).flatten(0, 1)
        return hidden + self.mlp(x).reshape(hidden.shape)


class Pooler(nn.Module):
    """The normed row of `hidden` at which a prompt ends, or its first where nothing ends it; `[batch, hidden_size]`."""

    def __init__(self, encoder: ClipEncoder) -> None:
        super().__init__()
        self.final_layer_norm = Norm(encoder)
        self.eos_token_id = encoder.eos_token_id
        self.max_length = encoder.max_length

    def forward(self, hidden: Tensor, input_ids: Tensor) -> Tensor:
        highest = self.eos_token_id == HIGHEST_ID_ENDS
        ending = input_ids == (input_ids.amax(-1, keepdim=True) if highest else self.eos_token_id)
        # The first of them, by a minimum: padding is often the same token, and a runtime's ArgMax may return any.
        position = torch.arange(input_ids.shape[1], device=hidden.device)
        end = torch.where(ending, position, self.max_length).amin(-1) % self.max_length
        return self.final_layer_norm(hidden[torch.arange(hidden.shape[0], device=hidden.device), end])
