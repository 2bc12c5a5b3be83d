"""The truth that an export is compared with: `transformers`, under the same plan.

Shares no code with `skrr_export.encoders`. The plan is applied to transformers' own modules by putting one layer's
sub-block in another's place, or the identity.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from skrr_export.bundle import Bundle
from skrr_export.errors import CheckpointError
from skrr_export.plan import Plan
from skrr_export.tensorfile import PAD_PREFIX


class Reference:
    """A transformers model that computes in fp32 from weights as they are stored."""

    def __init__(self, model: Any) -> None:
        """Take over a model; its half-precision matrices are cast where they are used, and so stay small."""
        self._model = model.eval()
        linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
        matrices = {id(module.weight) for module in linear}
        for parameter in model.parameters():
            if id(parameter) not in matrices:
                parameter.data = parameter.data.float()
        for module in linear:
            if module.weight.dtype is not torch.float32:
                parametrize.register_parametrization(module, "weight", _AsFloat32(), unsafe=True)

    def __call__(
        self, input_ids: npt.NDArray[np.int64], attention_mask: npt.NDArray[np.int64] | None
    ) -> npt.NDArray[np.float32]:
        """`last_hidden_state`, float32 `[batch, sequence, hidden_size]`."""
        mask = None if attention_mask is None else torch.from_numpy(attention_mask)
        with torch.inference_mode():
            output = self._model(input_ids=torch.from_numpy(input_ids), attention_mask=mask).last_hidden_state
        values: npt.NDArray[np.float32] = output.float().numpy()
        return values


class _AsFloat32(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight.float()


def dense_reference(directory: Path) -> Reference:
    """The original checkpoint, all of it, in its own precision.

    Raises:
        CheckpointError: transformers cannot load it.
    """
    return Reference(_from_checkpoint(directory))


def planned_reference(bundle: Bundle, directory: Path | None) -> Reference:
    """The same plan on the same weights as a bundle.

    Args:
        bundle: says which plan and which precision.
        directory: the checkpoint to take the weights from, rounded to the bundle's precision; without one they are
            taken from the bundle, and what went wrong in baking goes unseen.

    Raises:
        CheckpointError: transformers cannot load the checkpoint.
    """
    dtype = bundle.manifest.dtype.torch
    if directory is None:
        model = _from_bundle(bundle, dtype)
    else:
        model = _round(_from_checkpoint(directory), dtype, (bundle.manifest.rescaling or {}).get("weights", {}))
    apply_plan(model, bundle.manifest.plan)
    return Reference(model)


def _round(model: Any, dtype: torch.dtype, powers: Mapping[str, int]) -> Any:
    """Round to a precision where the bundle does: fp16 has fewer bits for what its powers of two make very small."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            power = next((power for end, power in powers.items() if name.endswith(end)), 0)
            parameter.copy_((parameter.float() * 2.0**power).to(dtype).float() * 2.0**-power)
    return model.to(dtype)


def apply_plan(model: Any, plan: Plan) -> None:
    """Make a transformers encoder run a plan."""
    if plan.family == "t5":
        _apply_to_t5(model.encoder.block, plan)
    elif plan.family == "umt5":
        _apply_to_umt5(model.encoder.block, plan)
    elif plan.family == "bert":
        _apply_to_bert(model.encoder.layer, plan)
    else:
        raise CheckpointError(f"no reference for the family '{plan.family}'")


def _apply_to_t5(blocks: Any, plan: Plan) -> None:
    attention = [block.layer[0] for block in blocks]
    feed_forward = [block.layer[-1] for block in blocks]
    for block, (attention_source, feed_forward_source) in zip(blocks, plan.sources, strict=True):
        source = None if attention_source is None else attention[attention_source]
        block.layer[0] = _T5Attention(attention[0].SelfAttention, source)
        block.layer[-1] = nn.Identity() if feed_forward_source is None else feed_forward[feed_forward_source]


class _T5Attention(nn.Module):
    """A T5 attention in any position: the position bias always comes from layer 0's table."""

    def __init__(self, table: Any, source: nn.Module | None) -> None:
        super().__init__()
        self.table = table
        self.source = source

    def forward(
        self, hidden: Tensor, attention_mask: Tensor | None = None, position_bias: Tensor | None = None, **rest: Any
    ) -> Any:
        if position_bias is None:
            position_bias = self.table.compute_bias(hidden.shape[1], hidden.shape[1], device=hidden.device)
        if self.source is None:
            return hidden, position_bias, None
        return self.source(hidden, attention_mask=attention_mask, position_bias=position_bias, **rest)


def _apply_to_umt5(blocks: Any, plan: Plan) -> None:
    attention = [block.layer[0] for block in blocks]
    feed_forward = [block.layer[-1] for block in blocks]
    for block, (attention_source, feed_forward_source) in zip(blocks, plan.sources, strict=True):
        block.layer[0] = _SkippedAttention() if attention_source is None else attention[attention_source]
        block.layer[-1] = nn.Identity() if feed_forward_source is None else feed_forward[feed_forward_source]


def _apply_to_bert(layers: Any, plan: Plan) -> None:
    originals = [(layer.attention, layer.intermediate, layer.output) for layer in layers]
    for layer, (attention, feed_forward) in zip(layers, plan.sources, strict=True):
        layer.attention = _SkippedAttention() if attention is None else originals[attention][0]
        if feed_forward is None:
            layer.intermediate, layer.output = nn.Identity(), _BertSkippedOutput()
        else:
            _, layer.intermediate, layer.output = originals[feed_forward]


class _SkippedAttention(nn.Module):
    def forward(self, hidden: Tensor, *_: Any, **__: Any) -> tuple[Tensor, None]:
        return hidden, None


class _BertSkippedOutput(nn.Module):
    def forward(self, _: Tensor, hidden: Tensor) -> Tensor:
        return hidden


def _model_class(config: Any) -> Any:
    import transformers

    logging: Any = transformers.logging
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    classes = {"t5": transformers.T5EncoderModel, "umt5": transformers.UMT5EncoderModel, "bert": transformers.BertModel}
    if config.model_type not in classes:
        raise CheckpointError(f"no reference for the architecture '{config.model_type}'")
    return classes[config.model_type]


def _from_checkpoint(directory: Path) -> Any:
    import transformers

    try:
        config = transformers.AutoConfig.from_pretrained(directory)
        # Eager attention is the plain formula; the fused ones treat a fully masked row as they please.
        return _model_class(config).from_pretrained(directory, dtype="auto", attn_implementation="eager")
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"transformers cannot load {directory}: {error}") from error


def _from_bundle(bundle: Bundle, dtype: torch.dtype) -> Any:
    import transformers
    from safetensors.torch import load_file

    config = transformers.AutoConfig.from_pretrained(bundle.directory)
    state = {name: value for name, value in load_file(bundle.weights).items() if not name.startswith(PAD_PREFIX)}
    # Tensors of skipped sub-blocks are missing: transformers makes them up, and the plan never runs them.
    return _model_class(config).from_pretrained(
        None, config=config, state_dict=state, dtype=dtype, attn_implementation="eager"
    )
