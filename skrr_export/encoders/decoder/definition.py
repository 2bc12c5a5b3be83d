"""Decoder-only language models as text encoders: one definition for all of them, and what they differ in as settings.

After transformers' `LlamaModel` and its kin: causal, pre-norm, rotary positions, a gated feed-forward. The head that
predicts tokens is left out, and so are the other parts of a model that sees images too. Positions count from the first
token, be it padding or not, as in transformers.
"""

from __future__ import annotations

import math
from abc import abstractmethod
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
from skrr_export.encoders.decoder.reading import language_part
from skrr_export.encoders.decoder.rope import Rope
from skrr_export.errors import CheckpointError
from skrr_export.outputs import Kind as OutputKind
from skrr_export.plan import Kind

EMBEDDING = "embed_tokens.weight"


@dataclass(frozen=True)
class DecoderEncoder(Encoder):
    """A decoder-only language model; `num_heads * head_size` need not be `hidden_size`."""

    norms_last: ClassVar[bool] = True
    defaults: ClassVar[Mapping[str, Any]] = {}
    """What transformers takes where `config.json` leaves a key out, of the keys that some do leave out."""

    num_layers: int
    hidden_size: int
    vocab_size: int
    num_heads: int
    num_key_value_heads: int
    head_size: int
    intermediate_size: int
    epsilon: float
    activation: Callable[[Tensor], Tensor]
    root: str
    """What stands before `embed_tokens.`, `layers.` and `norm.` in the checkpoint."""
    rope: Rope
    scale: float
    """Of the attention's logits."""
    windows: tuple[int | None, ...]
    """By layer, how many keys its attention looks back at, the query's own included; `None`: at all.

    No two layers have windows of different sizes.
    """
    local_rope: Rope | None = None
    """Of the layers with a window, where it is another than that of the rest."""
    max_length: int | None = None
    attention_bias: bool = False
    """Whether queries, keys and values have a bias."""
    output_bias: bool = False
    """Whether the attention's last matrix has one."""
    feed_forward_bias: bool = False
    fused_gate: bool = False
    """Whether the first two matrices of the feed-forward are stored as one."""
    query_key_norms: bool = False
    """Whether the queries and keys of each head are normed."""
    post_norms: bool = False
    """Whether what a sub-block adds to the stream is normed too."""
    offset_norms: bool = False
    """Whether a norm multiplies by one more than its weight."""
    embedding_scale: float | None = None
    softcap: float | None = None
    """What a hyperbolic tangent keeps the attention's logits below."""

    @classmethod
    def from_config(cls, config: Mapping[str, Any], tensor_names: Collection[str]) -> Self:
        config = {**cls.defaults, **language_part(config)}
        num_layers, hidden_size = positive_int(config, "num_hidden_layers"), positive_int(config, "hidden_size")
        num_heads = num_key_value_heads = positive_int(config, "num_attention_heads")
        if config.get("num_key_value_heads") is not None:
            num_key_value_heads = positive_int(config, "num_key_value_heads")
        if num_heads % num_key_value_heads:
            raise CheckpointError(
                f"config.json: {num_heads} attention heads cannot share {num_key_value_heads} heads of keys and values"
            )
        if config.get("head_dim") is None:
            config["head_dim"] = hidden_size // num_heads
        head_size = positive_int(config, "head_dim")
        settings: dict[str, Any] = {
            "num_layers": num_layers,
            "hidden_size": hidden_size,
            "vocab_size": positive_int(config, "vocab_size"),
            "num_heads": num_heads,
            "num_key_value_heads": num_key_value_heads,
            "head_size": head_size,
            "intermediate_size": positive_int(config, "intermediate_size"),
            "epsilon": fraction(config, "rms_norm_eps"),
            "activation": activation(config.get("hidden_activation", config.get("hidden_act"))),
            "root": _root(tensor_names),
            "scale": head_size**-0.5,
            "windows": (None,) * num_layers,
        }
        settings |= cls.traits(config)
        ropes = (settings["rope"], settings.get("local_rope"))
        lengths = [rope.max_length for rope in ropes if rope is not None and rope.max_length is not None]
        return cls(**settings, max_length=min(lengths, default=None))

    @classmethod
    @abstractmethod
    def traits(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """What sets the family apart: `rope`, and whichever fields have other values than they usually have.

        Args:
            config: of the language model, with `head_dim` always given.

        Raises:
            CheckpointError: a value is missing, malformed or not supported.
        """

    def parts(self) -> dict[str, nn.Module]:
        with torch.device("meta"):
            return {
                "embedding": Embedding(self),
                "rotary": RotaryTable(self.rope),
                "local_rotary": RotaryTable(self.local_rope or self.rope),
                "bias": CausalBias(None),
                "local_bias": CausalBias(next(filter(None, self.windows), None)),
                "attention": (PostNormedAttentionBlock if self.post_norms else AttentionBlock)(self),
                "feed_forward": (PostNormedFeedForwardBlock if self.post_norms else FeedForwardBlock)(self),
                "final_norm": norm(self),
            }

    def prologue(self, *, masked: bool) -> list[Step]:
        given = {"rotary": ("hidden",), "bias": ("hidden", "attention_mask") if masked else ("hidden",)}
        tables = dict.fromkeys(table for layer in range(self.num_layers) for table in self._tables(layer))
        return [
            Step("embedding", "embedding", f"{self.root}embed_tokens.", ("input_ids",), "hidden"),
            *(Step(table, table, "", given[table.removeprefix("local_")], table) for table in sorted(tables)),
        ]

    def sub_block(self, kind: Kind, source: int, *, masked: bool) -> tuple[str, str, tuple[str, ...]]:
        inputs = ("hidden", *self._tables(source)) if kind == "attention" else ("hidden",)
        return kind, f"{self.root}layers.{source}.", inputs

    def epilogue(self, kind: OutputKind, *, masked: bool) -> list[Step]:
        return [Step("final_norm", "final_norm", f"{self.root}norm.", ("hidden",), kind)]

    def activations(self, *, masked: bool) -> dict[str, Shape]:
        bias: Shape = ("batch" if masked else 1, 1, "sequence", "sequence")
        rotary: Shape = (2, "sequence", self.rope.width)
        hidden: Shape = ("batch", "sequence", self.hidden_size)
        return {"hidden": hidden, "bias": bias, "local_bias": bias, "rotary": rotary, "local_rotary": rotary}

    def owns(self, tensor_name: str) -> bool:
        # Early releases of transformers stored the rotary frequencies, which follow from the configuration.
        return tensor_name.startswith(f"{self.root}layers.") and not tensor_name.endswith(".rotary_emb.inv_freq")

    def _tables(self, layer: int) -> tuple[str, str]:
        """The bias and the rotary table that a layer's attention reads, wherever it runs."""
        if self.windows[layer] is None:
            return "bias", "rotary"
        return "local_bias", "rotary" if self.local_rope is None else "local_rotary"


def _root(tensor_names: Collection[str]) -> str:
    """What stands before the names of the language model's tensors: it differs by what was saved, and by which release.

    Among others `model.`, `language_model.model.`, `model.language_model.`, or nothing.
    """
    found = [name for name in tensor_names if name == EMBEDDING or name.endswith(f".{EMBEDDING}")]
    return min(found, key=len, default=f"model.{EMBEDDING}").removesuffix(EMBEDDING)


class Norm(nn.Module):
    """RMSNorm."""

    def __init__(self, size: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size))
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self.epsilon)


class OffsetNorm(Norm):
    """Gemma's RMSNorm: its weight is what is added to 1, in fp32, for half precision would round the sum."""

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.epsilon)
        return (normed * (1.0 + self.weight.float())).to(x.dtype)


def norm(encoder: DecoderEncoder, size: int | None = None) -> Norm:
    """A norm of the encoder's kind, of `hidden` or of another size."""
    return (OffsetNorm if encoder.offset_norms else Norm)(size or encoder.hidden_size, encoder.epsilon)


class Embedding(nn.Module):
    """`input_ids` `[batch, sequence]` to `hidden` `[batch, sequence, hidden_size]`."""

    def __init__(self, encoder: DecoderEncoder) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(encoder.vocab_size, encoder.hidden_size))
        self.scale = encoder.embedding_scale

    def forward(self, input_ids: Tensor) -> Tensor:
        embedded = F.embedding(input_ids, self.weight)
        return embedded if self.scale is None else embedded * rounded(self.scale, self.weight.dtype)


def rounded(value: float, dtype: torch.dtype) -> float:
    """A positive number as a type holds it; no tensor tells, for in a trace they have no values."""
    mantissa, exponent = math.frexp(value)
    steps = 2 / torch.finfo(dtype).eps  # a mantissa from a half to 1 has so many to 1
    return math.ldexp(round(mantissa * steps) / steps, exponent)


class RotaryTable(nn.Module):
    """Cosines and sines for queries and keys, `[2, sequence, features]`, typed like `hidden`."""

    def __init__(self, rope: Rope) -> None:
        super().__init__()
        self.rope = rope

    def forward(self, hidden: Tensor) -> Tensor:
        return self.rope.table(hidden)


class Attention(nn.Module):
    """Attention of `num_heads` queries to fewer keys and values, each shared by neighbouring queries."""

    def __init__(self, encoder: DecoderEncoder) -> None:
        super().__init__()
        queries, keys = encoder.num_heads * encoder.head_size, encoder.num_key_value_heads * encoder.head_size
        self.q_proj = nn.Linear(encoder.hidden_size, queries, bias=encoder.attention_bias)
        self.k_proj = nn.Linear(encoder.hidden_size, keys, bias=encoder.attention_bias)
        self.v_proj = nn.Linear(encoder.hidden_size, keys, bias=encoder.attention_bias)
        self.o_proj = nn.Linear(queries, encoder.hidden_size, bias=encoder.output_bias)
        if encoder.query_key_norms:
            self.q_norm: Norm | nn.Identity = norm(encoder, encoder.head_size)
            self.k_norm: Norm | nn.Identity = norm(encoder, encoder.head_size)
        else:
            self.q_norm = self.k_norm = nn.Identity()
        self.num_heads = encoder.num_heads
        self.num_key_value_heads = encoder.num_key_value_heads
        self.rope = encoder.rope
        self.scale = encoder.scale
        self.softcap = encoder.softcap

    def forward(self, x: Tensor, bias: Tensor, rotary: Tensor) -> Tensor:
        flat = x.flatten(0, 1)
        query = self.q_norm(split_heads(self.q_proj(flat), x, self.num_heads))
        key = self.k_norm(split_heads(self.k_proj(flat), x, self.num_key_value_heads))
        value = split_heads(self.v_proj(flat), x, self.num_key_value_heads)
        query, key = self.rope.turn(query, rotary), self.rope.turn(key, rotary)
        if query.dtype is torch.float16:
            # A query that sees no key averages all, for the bias drowns its logits; but in fp16 none is low enough.
            query = query * (bias.float().amax(-1, keepdim=True) >= 0)
        # Not left to the fused attention: ONNX Runtime 1.23 lets the wrong queries share a key.
        key, value = (_repeat(heads, self.num_heads // self.num_key_value_heads) for heads in (key, value))
        if self.softcap is None:
            context = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=self.scale)
        else:
            logits = (query * self.scale @ key.transpose(2, 3)).float()
            logits = self.softcap * torch.tanh(logits / self.softcap) + bias.float()
            context = logits.softmax(-1).to(value.dtype) @ value
        return self.o_proj(merge_heads(context)).reshape(x.shape)


def _repeat(heads: Tensor, times: int) -> Tensor:
    """`[batch, heads, sequence, size]` with every head so many times in a row."""
    return heads if times == 1 else heads[:, :, None].expand(-1, -1, times, -1, -1).flatten(1, 2)


class AttentionBlock(nn.Module):
    """`hidden + attention(norm(hidden))`."""

    def __init__(self, encoder: DecoderEncoder) -> None:
        super().__init__()
        self.input_layernorm = norm(encoder)
        self.self_attn = Attention(encoder)

    def forward(self, hidden: Tensor, bias: Tensor, rotary: Tensor) -> Tensor:
        return hidden + self.self_attn(self.input_layernorm(hidden), bias, rotary)


class PostNormedAttentionBlock(AttentionBlock):
    """`hidden + norm(attention(norm(hidden)))`."""

    def __init__(self, encoder: DecoderEncoder) -> None:
        super().__init__(encoder)
        self.post_attention_layernorm = norm(encoder)

    def forward(self, hidden: Tensor, bias: Tensor, rotary: Tensor) -> Tensor:
        return hidden + self.post_attention_layernorm(self.self_attn(self.input_layernorm(hidden), bias, rotary))


class FeedForward(nn.Module):
    """The gated feed-forward network."""

    def __init__(self, encoder: DecoderEncoder) -> None:
        super().__init__()
        self.activation = encoder.activation
        self.gate_proj = nn.Linear(encoder.hidden_size, encoder.intermediate_size, bias=encoder.feed_forward_bias)
        self.up_proj = nn.Linear(encoder.hidden_size, encoder.intermediate_size, bias=encoder.feed_forward_bias)
        self.down_proj = nn.Linear(encoder.intermediate_size, encoder.hidden_size, bias=encoder.feed_forward_bias)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(0, 1)
        return self.down_proj(self.activation(self.gate_proj(flat)) * self.up_proj(flat)).reshape(x.shape)


class FusedFeedForward(nn.Module):
    """The gated feed-forward network whose first two matrices are one."""

    def __init__(self, encoder: DecoderEncoder) -> None:
        super().__init__()
        self.activation = encoder.activation
        self.gate_up_proj = nn.Linear(encoder.hidden_size, 2 * encoder.intermediate_size, bias=False)
        self.down_proj = nn.Linear(encoder.intermediate_size, encoder.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate_up, size = self.gate_up_proj(x.flatten(0, 1)), self.down_proj.in_features
        return self.down_proj(self.activation(gate_up[:, :size]) * gate_up[:, size:]).reshape(x.shape)


class FeedForwardBlock(nn.Module):
    """`hidden + feed_forward(norm(hidden))`; the norm's name says what comes before it."""

    def __init__(self, encoder: DecoderEncoder) -> None:
        super().__init__()
        self.post_attention_layernorm = norm(encoder)
        self.mlp = (FusedFeedForward if encoder.fused_gate else FeedForward)(encoder)

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden + self.mlp(self.post_attention_layernorm(hidden))


class PostNormedFeedForwardBlock(nn.Module):
    """`hidden + norm(feed_forward(norm(hidden)))`."""

    def __init__(self, encoder: DecoderEncoder) -> None:
        super().__init__()
        self.pre_feedforward_layernorm = norm(encoder)
        self.mlp = FeedForward(encoder)
        self.post_feedforward_layernorm = norm(encoder)

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden + self.post_feedforward_layernorm(self.mlp(self.pre_feedforward_layernorm(hidden)))
