"""BERT encoders: post-norm, with biases and learned positions. After Devlin et al. 2018, and transformers' `BertModel`.

Only the encoder proper: the pooler and task heads of a checkpoint are left out, token types are all 0.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from skrr_export.encoders.base import (
    KEEP,
    Encoder,
    Shape,
    Step,
    activation,
    fraction,
    masked_bias,
    merge_heads,
    positive_int,
    split_heads,
)
from skrr_export.errors import CheckpointError
from skrr_export.outputs import Kind as OutputKind
from skrr_export.plan import Kind


@dataclass(frozen=True)
class BertEncoder(Encoder):
    """A BERT encoder."""

    family: ClassVar[str] = "bert"
    model_types: ClassVar[tuple[str, ...]] = ("bert",)
    norms_last: ClassVar[bool] = False

    num_layers: int
    hidden_size: int
    vocab_size: int
    num_heads: int
    intermediate_size: int
    max_length: int
    type_vocab_size: int
    epsilon: float
    activation: Callable[[Tensor], Tensor]
    root: str
    """What stands before `embeddings.` and `encoder.` in the checkpoint: nothing, or `bert.` beside a task head."""

    @classmethod
    def from_config(cls, config: Mapping[str, Any], tensor_names: Collection[str]) -> Self:
        if config.get("position_embedding_type", "absolute") != "absolute" or config.get("is_decoder"):
            raise CheckpointError("config.json: only BERT encoders with absolute positions are supported")
        encoder = cls(
            num_layers=positive_int(config, "num_hidden_layers"),
            hidden_size=positive_int(config, "hidden_size"),
            vocab_size=positive_int(config, "vocab_size"),
            num_heads=positive_int(config, "num_attention_heads"),
            intermediate_size=positive_int(config, "intermediate_size"),
            max_length=positive_int(config, "max_position_embeddings"),
            type_vocab_size=positive_int(config, "type_vocab_size"),
            epsilon=fraction(config, "layer_norm_eps"),
            activation=activation(config.get("hidden_act")),
            root="bert." if any(name.startswith("bert.") for name in tensor_names) else "",
        )
        if encoder.hidden_size % encoder.num_heads:
            raise CheckpointError(
                f"config.json: hidden_size {encoder.hidden_size} is not a multiple of {encoder.num_heads} heads"
            )
        return encoder

    def parts(self) -> dict[str, nn.Module]:
        with torch.device("meta"):
            return {
                "embedding": Embedding(self),
                "mask_bias": MaskBias(),
                "attention": AttentionBlock(self),
                "feed_forward": FeedForwardBlock(self),
            }

    def prologue(self, *, masked: bool) -> list[Step]:
        embedding = Step("embedding", "embedding", f"{self.root}embeddings.", ("input_ids",), "hidden")
        return [embedding, Step("mask_bias", "mask_bias", "", ("attention_mask", "hidden"), "bias")][: 1 + masked]

    def sub_block(self, kind: Kind, source: int, *, masked: bool) -> tuple[str, str, tuple[str, ...]]:
        inputs = ("hidden", "bias") if masked and kind == "attention" else ("hidden",)
        return kind, f"{self.root}encoder.layer.{source}.", inputs

    def epilogue(self, kind: OutputKind, *, masked: bool) -> list[Step]:
        return [Step(kind, KEEP, "", ("hidden",), kind)]

    def activations(self, *, masked: bool) -> dict[str, Shape]:
        return {"hidden": ("batch", "sequence", self.hidden_size), "bias": ("batch", 1, "sequence", "sequence")}

    def owns(self, tensor_name: str) -> bool:
        return tensor_name.startswith(f"{self.root}encoder.")


class Embedding(nn.Module):
    """`input_ids` `[batch, sequence]` to `hidden` `[batch, sequence, hidden_size]`: word + type + position, normed."""

    def __init__(self, encoder: BertEncoder) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(encoder.vocab_size, encoder.hidden_size)
        self.position_embeddings = nn.Embedding(encoder.max_length, encoder.hidden_size)
        self.token_type_embeddings = nn.Embedding(encoder.type_vocab_size, encoder.hidden_size)
        self.LayerNorm = nn.LayerNorm(encoder.hidden_size, eps=encoder.epsilon)

    def forward(self, input_ids: Tensor) -> Tensor:
        position = torch.arange(input_ids.shape[1], device=input_ids.device)
        token_type = self.token_type_embeddings(torch.zeros_like(position))
        # The order of the sum is transformers' own; it decides the last bit.
        return self.LayerNorm(self.word_embeddings(input_ids) + token_type + self.position_embeddings(position))


class MaskBias(nn.Module):
    """`attention_mask` `[batch, sequence]` to an additive bias `[batch, 1, sequence, sequence]`, typed like `hidden`.

    The query axis is written out because ONNX Runtime's Attention does not broadcast it (1.32).
    """

    def forward(self, attention_mask: Tensor, hidden: Tensor) -> Tensor:
        bias = torch.where(attention_mask[:, None, None, :] != 0, hidden.new_zeros(()), masked_bias(hidden))
        return bias.expand(-1, -1, attention_mask.shape[1], -1)


class SelfAttention(nn.Module):
    """The projections of an attention, under their checkpoint names."""

    def __init__(self, encoder: BertEncoder) -> None:
        super().__init__()
        self.query = nn.Linear(encoder.hidden_size, encoder.hidden_size)
        self.key = nn.Linear(encoder.hidden_size, encoder.hidden_size)
        self.value = nn.Linear(encoder.hidden_size, encoder.hidden_size)


class Output(nn.Module):
    """`norm(hidden + dense(x))`, which ends both sub-blocks."""

    def __init__(self, encoder: BertEncoder, in_features: int) -> None:
        super().__init__()
        self.dense = nn.Linear(in_features, encoder.hidden_size)
        self.LayerNorm = nn.LayerNorm(encoder.hidden_size, eps=encoder.epsilon)

    def forward(self, x: Tensor, hidden: Tensor) -> Tensor:
        return self.LayerNorm(self.dense(x).reshape(hidden.shape) + hidden)


class Attention(nn.Module):
    """The two halves of an attention, under their checkpoint names."""

    def __init__(self, encoder: BertEncoder) -> None:
        super().__init__()
        self.self = SelfAttention(encoder)
        self.output = Output(encoder, encoder.hidden_size)


class AttentionBlock(nn.Module):
    """`norm(hidden + attention(hidden))`."""

    def __init__(self, encoder: BertEncoder) -> None:
        super().__init__()
        self.attention = Attention(encoder)
        self.num_heads = encoder.num_heads

    def forward(self, hidden: Tensor, bias: Tensor | None = None) -> Tensor:
        project = self.attention.self
        x = hidden.flatten(0, 1)
        query, key, value = (
            split_heads(linear(x), hidden, self.num_heads) for linear in (project.query, project.key, project.value)
        )
        context = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        return self.attention.output(merge_heads(context), hidden)


class Intermediate(nn.Module):
    """The first half of the feed-forward network, under its checkpoint name."""

    def __init__(self, encoder: BertEncoder) -> None:
        super().__init__()
        self.dense = nn.Linear(encoder.hidden_size, encoder.intermediate_size)


class FeedForwardBlock(nn.Module):
    """`norm(hidden + feed_forward(hidden))`."""

    def __init__(self, encoder: BertEncoder) -> None:
        super().__init__()
        self.activation = encoder.activation
        self.intermediate = Intermediate(encoder)
        self.output = Output(encoder, encoder.intermediate_size)

    def forward(self, hidden: Tensor) -> Tensor:
        x = self.activation(self.intermediate.dense(hidden.flatten(0, 1)))
        return self.output(x, hidden)
