"""T5 encoders: v1.0 (ReLU) and v1.1 (gated GELU). After Raffel et al. 2020, and transformers' `T5EncoderModel`."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from skrr_export.encoders.base import (
    Encoder,
    Rescaling,
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

DEFAULT_EPSILON = 1e-6
"""Of the norms, where `config.json` gives none."""


@dataclass(frozen=True)
class T5Encoder(Encoder):
    """A T5 encoder; `num_heads * head_size` need not be `hidden_size`."""

    family: ClassVar[str] = "t5"
    model_types: ClassVar[tuple[str, ...]] = ("t5", "mt5")
    norms_last: ClassVar[bool] = True

    num_layers: int
    hidden_size: int
    vocab_size: int
    num_heads: int
    head_size: int
    intermediate_size: int
    num_buckets: int
    max_distance: int
    epsilon: float
    gated: bool
    activation: Callable[[Tensor], Tensor]
    embedding_prefix: str
    """`shared.`, or `encoder.embed_tokens.` where a checkpoint holds the encoder alone."""
    max_length: int | None = None

    @classmethod
    def from_config(cls, config: Mapping[str, Any], tensor_names: Collection[str]) -> Self:
        gate, _, name = str(config.get("feed_forward_proj", "relu")).rpartition("-")
        if gate not in ("", "gated"):
            raise CheckpointError(f"config.json: unknown feed_forward_proj {config['feed_forward_proj']!r}")
        if gate and name == "gelu":
            name = "gelu_new"  # what T5 v1.1 means by gated-gelu, and transformers runs
        defaults = {
            "relative_attention_num_buckets": 32,
            "relative_attention_max_distance": 128,
            "layer_norm_epsilon": DEFAULT_EPSILON,
        }
        config = {**defaults, **config}  # early checkpoints leave these out
        encoder = cls(
            num_layers=positive_int(config, "num_layers"),
            hidden_size=positive_int(config, "d_model"),
            vocab_size=positive_int(config, "vocab_size"),
            num_heads=positive_int(config, "num_heads"),
            head_size=positive_int(config, "d_kv"),
            intermediate_size=positive_int(config, "d_ff"),
            num_buckets=positive_int(config, "relative_attention_num_buckets"),
            max_distance=positive_int(config, "relative_attention_max_distance"),
            epsilon=fraction(config, "layer_norm_epsilon"),
            gated=bool(gate),
            activation=activation(name),
            embedding_prefix="shared." if "shared.weight" in tensor_names else "encoder.embed_tokens.",
        )
        if encoder.num_buckets % 4 or encoder.max_distance <= encoder.num_buckets // 4:
            raise CheckpointError(
                f"config.json: {encoder.num_buckets} relative attention buckets up to a distance of "
                f"{encoder.max_distance} make no T5 position bias"
            )
        return encoder

    def parts(self) -> dict[str, nn.Module]:
        with torch.device("meta"):
            return {
                "embedding": Embedding(self),
                "position_bias": PositionBias(self),
                "attention": AttentionBlock(self),
                "feed_forward": FeedForwardBlock(self),
                "final_norm": Norm(self),
            }

    def prologue(self, *, masked: bool) -> list[Step]:
        # The bias table lies in layer 0's attention but serves every layer: it stays when that attention is skipped.
        table = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias."
        inputs = ("input_ids", "attention_mask") if masked else ("input_ids",)
        return [
            Step("embedding", "embedding", self.embedding_prefix, ("input_ids",), "hidden"),
            Step("position_bias", "position_bias", table, inputs, "bias"),
        ]

    def sub_block(self, kind: Kind, source: int, *, masked: bool) -> tuple[str, str, tuple[str, ...]]:
        if kind == "attention":
            return kind, f"encoder.block.{source}.layer.0.", ("hidden", "bias")
        return kind, f"encoder.block.{source}.layer.1.", ("hidden",)

    def epilogue(self, kind: OutputKind, *, masked: bool) -> list[Step]:
        return [Step("final_norm", "final_norm", "encoder.final_layer_norm.", ("hidden",), kind)]

    def activations(self, *, masked: bool) -> dict[str, Shape]:
        return {
            "hidden": ("batch", "sequence", self.hidden_size),
            "bias": ("batch" if masked else 1, self.num_heads, "sequence", "sequence"),
        }

    def rescaling(self, maxima: Mapping[str, float], limit: float) -> Rescaling:
        output, dense = "attention.SelfAttention.o", "feed_forward.DenseReluDense"
        linear = "wi_1" if self.gated else "wi"  # what the inner activations are proportional to
        residual = _power(maxima, limit, "hidden", f"{output}.out", f"{dense}.wo.out")
        free = self.gated or self.activation is F.relu  # relu(2x) is 2 relu(x)
        inner = _power(maxima, limit, f"{dense}.{linear}.out", f"{dense}.wo.in") if free else 0
        return Rescaling(
            residual=residual,
            inner=inner,
            weights={
                f"{self.embedding_prefix}weight": -residual,
                ".SelfAttention.o.weight": -residual,
                f".DenseReluDense.{linear}.weight": -inner,
                ".DenseReluDense.wo.weight": inner - residual,
            },
            activations={
                "hidden": -residual,
                f"{output}.out": -residual,
                f"{dense}.wo.out": -residual,
                f"{dense}.wo.in": -inner,
                f"{dense}.{linear}.out": -inner,
            },
        )

    def rescaled(self, rescaling: Rescaling) -> Self:
        return replace(self, epsilon=math.ldexp(self.epsilon, -2 * rescaling.residual))

    def config(self, original: Mapping[str, Any]) -> dict[str, Any]:
        changed = self.epsilon != original.get("layer_norm_epsilon", DEFAULT_EPSILON)
        return {**original, "layer_norm_epsilon": self.epsilon} if changed else dict(original)

    def owns(self, tensor_name: str) -> bool:
        return tensor_name.startswith("encoder.") and tensor_name != "encoder.embed_tokens.weight"


def _power(maxima: Mapping[str, float], limit: float, *names: str) -> int:
    """The smallest power of two by which the largest of some activations has to be divided; at least 0."""
    largest = max((maxima.get(name, 0.0) for name in names), default=0.0)  # a plan may skip every attention
    return max(0, math.ceil(math.log2(largest / limit))) if largest else 0


class Norm(nn.Module):
    """RMSNorm."""

    def __init__(self, encoder: T5Encoder) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(encoder.hidden_size))
        self.epsilon = encoder.epsilon

    def forward(self, hidden: Tensor) -> Tensor:
        return F.rms_norm(hidden, self.weight.shape, self.weight, self.epsilon)


class Embedding(nn.Module):
    """`input_ids` `[batch, sequence]` to `hidden` `[batch, sequence, hidden_size]`."""

    def __init__(self, encoder: T5Encoder) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(encoder.vocab_size, encoder.hidden_size))

    def forward(self, input_ids: Tensor) -> Tensor:
        return F.embedding(input_ids, self.weight)


class PositionBias(nn.Module):
    """What every attention adds to its logits: the relative position bias, and the mask where one is given.

    Returns `[1, heads, sequence, sequence]`, or `[batch, heads, sequence, sequence]` with a mask.
    """

    def __init__(self, encoder: T5Encoder) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(encoder.num_buckets, encoder.num_heads))
        self.side = encoder.num_buckets // 2  # buckets for keys to the left; as many for keys to the right
        self.exact = self.side // 2  # distances that have a bucket of their own
        self.edges = bucket_edges(self.side, encoder.max_distance)

    def forward(self, like: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        length = like.shape[1]  # [batch, sequence, ...]
        offset = torch.arange(1 - length, length, device=like.device)  # key - query, every value once
        distance = offset.abs()
        far = torch.full_like(distance, self.exact)
        for edge in self.edges:
            far = far + (distance >= edge).long()
        bucket = torch.where(distance < self.exact, distance, far) + (offset > 0).long() * self.side
        by_offset = F.embedding(bucket, self.weight).t()  # [heads, 2 * sequence - 1]
        position = torch.arange(length, device=like.device)
        index = position[None, :] - position[:, None] + (length - 1)
        bias = by_offset.index_select(1, index.flatten()).reshape(1, -1, length, length)
        if attention_mask is None:
            return bias
        return torch.where(attention_mask[:, None, None, :] != 0, bias, masked_bias(bias))


def bucket_edges(side: int, max_distance: int) -> list[int]:
    """The distances at which the logarithmic position buckets begin, after the first.

    transformers computes buckets with a float32 logarithm, whose rounding decides the edges. Computing them once, the
    same way, turns the graph's part into integer comparisons that no runtime can round differently.
    """
    exact = side // 2
    distance = torch.arange(exact, max_distance + 1, device="cpu")
    scale = math.log(max_distance / exact)
    bucket = exact + (torch.log(distance.float() / exact) / scale * (side - exact)).long()
    bucket = bucket.clamp(max=side - 1)
    return [int(distance[bucket >= first][0]) for first in range(exact + 1, side)]


class Attention(nn.Module):
    """The projections of an attention, under their checkpoint names."""

    def __init__(self, encoder: T5Encoder) -> None:
        super().__init__()
        inner = encoder.num_heads * encoder.head_size
        self.q = nn.Linear(encoder.hidden_size, inner, bias=False)
        self.k = nn.Linear(encoder.hidden_size, inner, bias=False)
        self.v = nn.Linear(encoder.hidden_size, inner, bias=False)
        self.o = nn.Linear(inner, encoder.hidden_size, bias=False)


class AttentionBlock(nn.Module):
    """`hidden + attention(norm(hidden))`; T5 does not scale the logits."""

    def __init__(self, encoder: T5Encoder) -> None:
        super().__init__()
        self.layer_norm = Norm(encoder)
        self.SelfAttention = Attention(encoder)
        self.num_heads = encoder.num_heads

    def forward(self, hidden: Tensor, bias: Tensor) -> Tensor:
        attention = self.SelfAttention
        x = self.layer_norm(hidden).flatten(0, 1)
        query, key, value = (
            split_heads(project(x), hidden, self.num_heads) for project in (attention.q, attention.k, attention.v)
        )
        context = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=1.0)
        return hidden + attention.o(merge_heads(context)).reshape(hidden.shape)


class PlainDense(nn.Module):
    """The feed-forward network of T5 v1.0, under its checkpoint names."""

    def __init__(self, encoder: T5Encoder) -> None:
        super().__init__()
        self.activation = encoder.activation
        self.wi = nn.Linear(encoder.hidden_size, encoder.intermediate_size, bias=False)
        self.wo = nn.Linear(encoder.intermediate_size, encoder.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.wo(self.activation(self.wi(x)))


class GatedDense(nn.Module):
    """The feed-forward network of T5 v1.1, under its checkpoint names."""

    def __init__(self, encoder: T5Encoder) -> None:
        super().__init__()
        self.activation = encoder.activation
        self.wi_0 = nn.Linear(encoder.hidden_size, encoder.intermediate_size, bias=False)
        self.wi_1 = nn.Linear(encoder.hidden_size, encoder.intermediate_size, bias=False)
        self.wo = nn.Linear(encoder.intermediate_size, encoder.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.wo(self.activation(self.wi_0(x)) * self.wi_1(x))


class FeedForwardBlock(nn.Module):
    """`hidden + feed_forward(norm(hidden))`."""

    def __init__(self, encoder: T5Encoder) -> None:
        super().__init__()
        self.layer_norm = Norm(encoder)
        self.DenseReluDense = GatedDense(encoder) if encoder.gated else PlainDense(encoder)

    def forward(self, hidden: Tensor) -> Tensor:
        x = self.layer_norm(hidden).flatten(0, 1)
        return hidden + self.DenseReluDense(x).reshape(hidden.shape)
