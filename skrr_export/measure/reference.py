"""The truth that an export is compared with: `transformers`, under the same plan.

Shares no code with `skrr_export.encoders`. The plan is applied to transformers' own modules by putting one layer's
sub-block in another's place, or the identity.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
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

    def __init__(self, model: Any, device: str = "cpu") -> None:
        """Take over a model; its half-precision matrices are cast where they are used, and so stay small."""
        self._device = device
        self._model = model.eval().to(device)
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
        return run_model(self._model, input_ids, attention_mask, self._device)


class _AsFloat32(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight.float()


@torch.inference_mode()
def run_model(
    model: Any, input_ids: npt.NDArray[np.int64], attention_mask: npt.NDArray[np.int64] | None, device: str
) -> npt.NDArray[Any]:
    """`last_hidden_state` of a transformers model, `[batch, sequence, hidden_size]`; NumPy lacks bf16: as fp32."""
    mask = None if attention_mask is None else torch.from_numpy(attention_mask).to(device)
    output = model(input_ids=torch.from_numpy(input_ids).to(device), attention_mask=mask).last_hidden_state
    values: npt.NDArray[Any] = (output.float() if output.dtype is torch.bfloat16 else output).cpu().numpy()
    return values


def dense_reference(directory: Path, device: str = "cpu") -> Reference:
    """The original checkpoint, all of it, in its own precision.

    Raises:
        CheckpointError: transformers cannot load it.
    """
    return Reference(_from_checkpoint(directory, **_PLAIN), device)


def planned_reference(bundle: Bundle, directory: Path | None, device: str = "cpu") -> Reference:
    """The same plan on the same weights as a bundle.

    Args:
        bundle: says which plan and which precision.
        directory: the checkpoint to take the weights from, rounded to the bundle's precision; without one they are
            taken from the bundle, and what went wrong in baking goes unseen.
        device: where to run.

    Raises:
        CheckpointError: transformers cannot load the checkpoint.
    """
    if directory is None:
        model = _from_bundle(bundle, **_PLAIN)
    else:
        powers = (bundle.manifest.rescaling or {}).get("weights", {})
        model = _round(_from_checkpoint(directory, **_PLAIN), bundle.manifest.dtype.torch, powers)
    apply_plan(model, bundle.manifest.plan)
    return Reference(model, device)


def eager_model(bundle: Bundle, directory: Path | None, *, planned: bool) -> Any:
    """The encoder as a user of transformers runs it: in the bundle's precision, with transformers' own choices.

    Args:
        bundle: says which plan and which precision.
        directory: the checkpoint to take the weights from; `None`: from the bundle.
        planned: whether it runs the plan, or the dense encoder.

    Raises:
        CheckpointError: transformers cannot load the checkpoint.
    """
    dtype = bundle.manifest.dtype.torch
    model = _from_bundle(bundle) if directory is None else _from_checkpoint(directory, dtype=dtype)
    if planned:
        apply_plan(model, bundle.manifest.plan)
    return model.eval()


def _round(model: Any, dtype: torch.dtype, powers: Mapping[str, int]) -> Any:
    """Round to a precision where the bundle does: fp16 has fewer bits for what its powers of two make very small.

    What is rounded so stays in fp32, for in fp16 it might overflow, or lose bits a second time.
    """
    rounded = {}
    for name, parameter in model.named_parameters():
        power = next((power for end, power in powers.items() if name.endswith(end)), 0)
        if power:
            rounded[name] = (parameter.detach().float() * 2.0**power).to(dtype).float() * 2.0**-power
    model.to(dtype)
    for name, value in rounded.items():
        model.get_parameter(name).data = value
    return model


def apply_plan(model: Any, plan: Plan) -> None:
    """Make a transformers encoder run a plan."""
    if plan.family == "t5":
        table = model.encoder.block[0].layer[0].SelfAttention
        _apply_to_t5(model.encoder.block, plan, lambda source: _T5Attention(table, source))
    elif plan.family == "umt5":  # whose attentions own their position biases
        _apply_to_t5(model.encoder.block, plan, lambda source: source or _SkippedAttention())
    elif plan.family == "bert":
        _apply_to_bert(model.encoder.layer, plan)
    else:
        raise CheckpointError(f"no reference for the family '{plan.family}'")


def _apply_to_t5(blocks: Any, plan: Plan, place: Callable[[nn.Module | None], nn.Module]) -> None:
    """Put sub-blocks in their places; `place` makes of an attention, or of none, what can stand anywhere."""
    attention = [block.layer[0] for block in blocks]
    feed_forward = [block.layer[-1] for block in blocks]
    for block, (attention_source, feed_forward_source) in zip(blocks, plan.sources, strict=True):
        block.layer[0] = place(None if attention_source is None else attention[attention_source])
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


def model_class(family: str) -> Any:
    """The class by which transformers runs a family's encoder.

    Raises:
        CheckpointError: there is none that we know.
    """
    import transformers

    logging: Any = transformers.logging
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    classes = {"t5": transformers.T5EncoderModel, "umt5": transformers.UMT5EncoderModel, "bert": transformers.BertModel}
    if family not in classes:
        raise CheckpointError(f"no reference for the architecture '{family}'")
    return classes[family]


_PLAIN = {"attn_implementation": "eager"}
"""The plain formula; the fused ones treat a fully masked row as they please."""


def _from_checkpoint(directory: Path, *, dtype: torch.dtype | str = "auto", **options: Any) -> Any:
    import transformers

    try:
        config = transformers.AutoConfig.from_pretrained(directory)
        return model_class(config.model_type).from_pretrained(directory, dtype=dtype, **options)
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"transformers cannot load {directory}: {error}") from error


def _from_bundle(bundle: Bundle, **options: Any) -> Any:
    import transformers
    from safetensors.torch import load_file

    config = transformers.AutoConfig.from_pretrained(bundle.directory)
    state = {name: value for name, value in load_file(bundle.weights).items() if not name.startswith(PAD_PREFIX)}
    # Tensors of skipped sub-blocks are missing: transformers makes them up, and the plan never runs them.
    dtype = bundle.manifest.dtype.torch
    return model_class(config.model_type).from_pretrained(None, config=config, state_dict=state, dtype=dtype, **options)
