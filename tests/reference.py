"""The independent truth: `transformers` running the original checkpoint in fp32, under a plan applied by hand.

Shares nothing with `skrr_export`, not even with `skrr_export.measure.reference`; a plan is plain pairs of sources here.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

Sources = Sequence[tuple[int | None, int | None]]
"""For each layer, the layer whose attention and the one whose feed-forward runs there; `None`: skipped."""


def encode(
    checkpoint: Path,
    sources: Sources | None,
    input_ids: np.ndarray,
    attention_mask: np.ndarray | None = None,
    output: str = "last_hidden_state",
    *,
    rounded_to: torch.dtype = torch.float32,
) -> np.ndarray:
    """An output of a T5, UMT5 or BERT checkpoint.

    Args:
        checkpoint: its directory.
        sources: the plan; `None`: the model as it is, run by nothing but transformers.
        input_ids: `[batch, sequence]`.
        attention_mask: `[batch, sequence]`, or none.
        output: `last_hidden_state` or `hidden_states.K`.
        rounded_to: precision that the weights are rounded to; the computing is always in fp32.
    """
    model, original = _load(checkpoint)
    weights = {name: value.to(rounded_to).float() for name, value in original.items()}
    run = {"t5": _run_t5, "umt5": _run_umt5, "bert": _run_bert}[model.config.model_type]
    ids, mask = torch.from_numpy(input_ids), None if attention_mask is None else torch.from_numpy(attention_mask)
    _, _, layer = output.partition(".")
    with torch.inference_mode():
        model.load_state_dict(weights)
        states = _hidden_states(model, ids, mask) if sources is None else run(model, weights, sources, ids, mask)
        return states[int(layer) if layer else -1].numpy()


@cache
def _load(checkpoint: Path) -> tuple[Any, dict[str, torch.Tensor]]:
    from transformers import AutoConfig, BertModel, T5EncoderModel, UMT5EncoderModel

    family = AutoConfig.from_pretrained(checkpoint).model_type
    model = {"t5": T5EncoderModel, "umt5": UMT5EncoderModel, "bert": BertModel}[family].from_pretrained(
        checkpoint, dtype=torch.float32, attn_implementation="eager"
    )
    return model.eval(), {name: value.clone() for name, value in model.state_dict().items()}


def _hidden_states(model: Any, ids: torch.Tensor, mask: torch.Tensor | None) -> Sequence[torch.Tensor]:
    """Of a T5 or BERT, whose last is the last hidden state."""
    return model(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states


def _run_umt5(
    model: Any, weights: dict[str, torch.Tensor], sources: Sources, ids: torch.Tensor, mask: torch.Tensor | None
) -> Sequence[torch.Tensor]:
    """As T5, but the position bias goes along with its attention."""
    return _run_t5(model, weights, sources, ids, mask, shared_bias=False)


def _run_t5(
    model: Any,
    weights: dict[str, torch.Tensor],
    sources: Sources,
    ids: torch.Tensor,
    mask: torch.Tensor | None,
    *,
    shared_bias: bool = True,
) -> Sequence[torch.Tensor]:
    """Surgery on the weights: T5 is pre-norm, so a sub-block whose output projection is zero adds nothing."""
    outputs = ("SelfAttention.o.weight", "DenseReluDense.wo.weight")
    planned = dict(weights)
    for layer, pair in enumerate(sources):
        for kind, source in enumerate(pair):
            here = f"encoder.block.{layer}.layer.{kind}."
            if source is None:
                planned[here + outputs[kind]] = torch.zeros_like(weights[here + outputs[kind]])
                continue
            for name in weights:
                if name.startswith(here) and not (shared_bias and "relative_attention_bias" in name):
                    planned[name] = weights[f"encoder.block.{source}.layer.{kind}." + name.removeprefix(here)]
    model.load_state_dict(planned)
    return _hidden_states(model, ids, mask)


def _run_bert(
    model: Any, weights: dict[str, torch.Tensor], sources: Sources, ids: torch.Tensor, mask: torch.Tensor | None
) -> Sequence[torch.Tensor]:
    """A loop over transformers' own modules: BERT is post-norm, so a skipped sub-block's norm must not run either."""
    bias = None if mask is None else (1.0 - mask[:, None, None, :].float()) * torch.finfo(torch.float32).min
    hidden = model.embeddings(input_ids=ids)
    states = [hidden]
    for attention, feed_forward in sources:
        if attention is not None:
            hidden = model.encoder.layer[attention].attention(hidden, bias)[0]
        if feed_forward is not None:
            layer = model.encoder.layer[feed_forward]
            hidden = layer.output(layer.intermediate(hidden), hidden)
        states.append(hidden)
    return states
