"""The truth that an export is compared with: `transformers`, under the same plan.

Shares no code with `skrr_export.encoders`. The plan is applied to transformers' own modules by putting one layer's
sub-block in another's place, or nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from skrr_export.bundle import Bundle
from skrr_export.measure.reference.models import from_bundle, from_checkpoint, model_class
from skrr_export.measure.reference.running import Reference, run_model
from skrr_export.measure.reference.surgery import apply_plan
from skrr_export.outputs import Output

__all__ = ["Reference", "dense_reference", "eager_model", "model_class", "planned_reference", "run_model"]

_PLAIN: dict[str, Any] = {"attn_implementation": "eager"}
"""The plain formula; the fused ones treat a fully masked row as they please."""


def dense_reference(directory: Path, outputs: Sequence[Output], device: str = "cpu") -> Reference:
    """The original checkpoint, all of it, in its own precision.

    Args:
        directory: of the checkpoint.
        outputs: what is read of it.
        device: where to run.

    Raises:
        CheckpointError: transformers cannot load it.
    """
    return Reference(from_checkpoint(directory, outputs, **_PLAIN), outputs, device)


def planned_reference(bundle: Bundle, directory: Path | None, device: str = "cpu") -> Reference:
    """The same plan on the same weights as a bundle, and the same outputs.

    Args:
        bundle: says which plan, which outputs and which precision.
        directory: the checkpoint to take the weights from, rounded to the bundle's precision; without one they are
            taken from the bundle, and what went wrong in baking goes unseen.
        device: where to run.

    Raises:
        CheckpointError: transformers cannot load the checkpoint.
    """
    manifest = bundle.manifest
    if directory is None:
        model = from_bundle(bundle, **_PLAIN)
    else:
        powers = (manifest.rescaling or {}).get("weights", {})
        model = from_checkpoint(directory, manifest.pipeline.outputs, **_PLAIN)
        _round(model, manifest.dtype.torch, powers)
    apply_plan(model, manifest.plan, manifest.pipeline.outputs)
    return Reference(model, manifest.pipeline.outputs, device)


def eager_model(bundle: Bundle, directory: Path | None, *, planned: bool) -> Any:
    """The encoder as a user of transformers runs it: in the bundle's precision, with transformers' own choices.

    Args:
        bundle: says which plan, which outputs and which precision.
        directory: the checkpoint to take the weights from; `None`: from the bundle.
        planned: whether it runs the plan, or the dense encoder.

    Raises:
        CheckpointError: transformers cannot load the checkpoint.
    """
    manifest = bundle.manifest
    if directory is None:
        model = from_bundle(bundle)
    else:
        model = from_checkpoint(directory, manifest.pipeline.outputs, dtype=manifest.dtype.torch)
    if planned:
        apply_plan(model, manifest.plan, manifest.pipeline.outputs)
    return model.eval()


def _round(model: Any, dtype: torch.dtype, powers: Mapping[str, int]) -> None:
    """Round to a precision where the bundle does: fp16 has fewer bits for what its powers of two make very small.

    What is rounded so stays in fp32, for in fp16 it might overflow, or lose bits a second time.
    """
    for name, parameter in model.named_parameters():
        power = next((power for end, power in powers.items() if name.endswith(end)), 0)
        if power:
            parameter.data = (parameter.data.float() * 2.0**power).to(dtype).float() * 2.0**-power
        else:
            parameter.data = parameter.data.to(dtype)
