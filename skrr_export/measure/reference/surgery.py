"""A plan on transformers' own modules: each sub-block's modules are put where the plan runs them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from skrr_export.errors import CheckpointError
from skrr_export.measure.reference.models import text_model
from skrr_export.outputs import Output
from skrr_export.plan import Plan

Sources = Sequence[tuple[int | None, int | None]]
"""For each layer, whose attention and whose feed-forward runs there."""
Names = tuple[tuple[str, ...], tuple[str, ...]]
"""The modules of a layer that make up its attention and its feed-forward, norms included."""

_LLAMA: Names = ("input_layernorm", "self_attn"), ("post_attention_layernorm", "mlp")
_GEMMA: Names = (
    ("input_layernorm", "self_attn", "post_attention_layernorm"),
    ("pre_feedforward_layernorm", "mlp", "post_feedforward_layernorm"),
)
_DECODERS: dict[str, Names] = {
    **dict.fromkeys(("llama", "mistral", "qwen2.5", "qwen3", "glm"), _LLAMA),
    **dict.fromkeys(("gemma2", "gemma3"), _GEMMA),
}
_CLIP: Names = ("layer_norm1", "self_attn"), ("layer_norm2", "mlp")


def apply_plan(model: Any, plan: Plan, outputs: Sequence[Output]) -> None:
    """Make a transformers encoder run a plan; layers that no output comes by are skipped, which it does not notice.

    Raises:
        CheckpointError: there is no reference for the plan's family.
    """
    depth = max(max(output.layers, default=plan.num_layers) for output in outputs)
    sources = [*plan.sources[:depth], *[(None, None)] * (plan.num_layers - depth)]
    if plan.family == "t5":
        table = model.encoder.block[0].layer[0].SelfAttention
        _apply_to_t5(model.encoder.block, sources, lambda source: _T5Attention(table, source))
    elif plan.family == "umt5":  # whose attentions own their position biases
        _apply_to_t5(model.encoder.block, sources, lambda source: source or _SkippedAttention())
    elif plan.family == "bert":
        _apply_to_bert(model.encoder.layer, sources)
    elif plan.family == "clip":
        _apply_pre_norm(text_model(model).encoder.layers, sources, _CLIP)
    elif plan.family in _DECODERS:
        decoder = text_model(model)
        _apply_pre_norm(decoder.layers, sources, _DECODERS[plan.family])
        _move_layer_types(decoder, sources)
    else:
        raise CheckpointError(f"no reference for the family '{plan.family}'")


def _apply_pre_norm(layers: Any, sources: Sources, names: Names) -> None:
    """In layers that add their sub-blocks to the stream themselves; what is skipped adds nothing to it."""
    originals = [{name: getattr(layer, name) for kind in names for name in kind} for layer in layers]
    for layer, pair in zip(layers, sources, strict=True):
        for kind, source in zip(names, pair, strict=True):
            if source is not None:
                for name in kind:
                    setattr(layer, name, originals[source][name])
            elif "mlp" in kind:
                layer.mlp = _NoFeedForward()
            else:
                layer.self_attn = _NoAttention()


class _NoAttention(nn.Module):
    def forward(self, hidden_states: Tensor, **_: Any) -> tuple[Tensor, None]:
        return torch.zeros_like(hidden_states), None


class _NoFeedForward(nn.Module):
    def forward(self, hidden_states: Tensor) -> Tensor:
        return torch.zeros_like(hidden_states)


def _move_layer_types(decoder: Any, sources: Sources) -> None:
    """A layer's type decides the mask and the rotary base that its attention is given: it goes along with that."""
    types = getattr(decoder.config, "layer_types", None)
    if types is None:
        return
    moved = [types[here if source is None else source] for here, (source, _) in enumerate(sources)]
    decoder.config.layer_types = moved
    for layer, kind in zip(decoder.layers, moved, strict=True):
        if hasattr(layer, "attention_type"):  # where transformers 5.0 looks
            layer.attention_type = kind


def _apply_to_t5(blocks: Any, sources: Sources, place: Callable[[nn.Module | None], nn.Module]) -> None:
    """Put sub-blocks in their places; `place` makes of an attention, or of none, what can stand anywhere."""
    attention = [block.layer[0] for block in blocks]
    feed_forward = [block.layer[-1] for block in blocks]
    for block, (attention_source, feed_forward_source) in zip(blocks, sources, strict=True):
        block.layer[0] = place(None if attention_source is None else attention[attention_source])
        block.layer[-1] = nn.Identity() if feed_forward_source is None else feed_forward[feed_forward_source]


class _T5Attention(nn.Module):
    """A T5 attention in any position: the position bias always comes from layer 0's table.

    Every attention hands it on to the next. The mask is in it from the first on: some releases of transformers add the
    mask to each attention, others only to the one that makes the bias.
    """

    def __init__(self, table: Any, source: nn.Module | None) -> None:
        super().__init__()
        self.table = table
        self.source = source

    def forward(
        self, hidden: Tensor, attention_mask: Tensor | None = None, position_bias: Tensor | None = None, **rest: Any
    ) -> Any:
        if position_bias is None:
            bias = self.table.compute_bias(hidden.shape[1], hidden.shape[1], device=hidden.device)
            position_bias = _masked(bias, attention_mask)
        if self.source is None:
            return hidden, position_bias, None
        return self.source(hidden, attention_mask=None, position_bias=position_bias, **rest)


def _masked(bias: Tensor, mask: Tensor | None) -> Tensor:
    """With a mask that says where to look, or that is to be added."""
    if mask is None:
        return bias
    return torch.where(mask, bias, torch.finfo(bias.dtype).min) if mask.dtype is torch.bool else bias + mask


def _apply_to_bert(layers: Any, sources: Sources) -> None:
    originals = [(layer.attention, layer.intermediate, layer.output) for layer in layers]
    for layer, (attention, feed_forward) in zip(layers, sources, strict=True):
        layer.attention = _SkippedAttention() if attention is None else originals[attention][0]
        if feed_forward is None:
            layer.intermediate, layer.output = nn.Identity(), _BertSkippedOutput()
        else:
            _, layer.intermediate, layer.output = originals[feed_forward]


class _SkippedAttention(nn.Module):
    """In layers whose attention adds itself to the stream."""

    def forward(self, hidden: Tensor, *_: Any, **__: Any) -> tuple[Tensor, None]:
        return hidden, None


class _BertSkippedOutput(nn.Module):
    def forward(self, _: Tensor, hidden: Tensor) -> Tensor:
        return hidden
