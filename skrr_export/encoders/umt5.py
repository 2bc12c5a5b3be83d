"""UMT5 encoders: T5 v1.1 with a table of relative position biases in every attention. After transformers' UMT5."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from skrr_export.encoders import t5
from skrr_export.encoders.base import Shape, Step
from skrr_export.plan import Kind


@dataclass(frozen=True)
class UMT5Encoder(t5.T5Encoder):
    """A UMT5 encoder. Its attentions bring their own position bias along, wherever a plan runs them."""

    family: ClassVar[str] = "umt5"
    model_types: ClassVar[tuple[str, ...]] = ("umt5",)

    def parts(self) -> dict[str, nn.Module]:
        parts = super().parts()
        del parts["position_bias"]
        with torch.device("meta"):
            return {**parts, "attention": AttentionBlock(self)}

    def prologue(self, *, masked: bool) -> list[Step]:
        return [Step("embedding", "embedding", self.embedding_prefix, ("input_ids",), "hidden")]

    def sub_block(self, kind: Kind, source: int, *, masked: bool) -> tuple[str, str, tuple[str, ...]]:
        part, prefix, _ = super().sub_block(kind, source, masked=masked)
        return part, prefix, ("hidden", "attention_mask") if kind == "attention" and masked else ("hidden",)

    def activations(self, *, masked: bool) -> dict[str, Shape]:
        return {"hidden": ("batch", "sequence", self.hidden_size)}


class AttentionBlock(t5.AttentionBlock):
    """`hidden + attention(norm(hidden))`, with the position bias of its own table."""

    def __init__(self, encoder: UMT5Encoder) -> None:
        super().__init__(encoder)
        self.SelfAttention.relative_attention_bias = t5.PositionBias(encoder)  # the table, under its checkpoint name

    def forward(self, hidden: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        position_bias = self.SelfAttention.get_submodule("relative_attention_bias")
        return super().forward(hidden, position_bias(hidden, attention_mask))
