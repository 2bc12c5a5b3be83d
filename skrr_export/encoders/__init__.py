"""Encoder families: one file each, and how a checkpoint is recognised as one of them."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from skrr_export.bundle import Bundle
from skrr_export.checkpoint import Checkpoint, fingerprint
from skrr_export.dtypes import READABLE
from skrr_export.encoders.base import Encoder, Shape, Step, parameter_shapes
from skrr_export.encoders.bert import BertEncoder
from skrr_export.encoders.clip import ClipEncoder
from skrr_export.encoders.decoder import DECODERS
from skrr_export.encoders.t5 import T5Encoder
from skrr_export.encoders.umt5 import UMT5Encoder
from skrr_export.errors import BundleError, CheckpointError
from skrr_export.manifest import CONFIG
from skrr_export.outputs import Output
from skrr_export.plan import Plan
from skrr_export.tensorfile import StoredTensor

__all__ = [
    "FAMILIES", "Encoder", "Selection", "Shape", "Step", "bundle_encoder", "encoder_of",
    "parameter_shapes", "recognise", "select", "wrong_weights",
]  # fmt: skip

_CLASSES: tuple[type[Encoder], ...] = (T5Encoder, UMT5Encoder, BertEncoder, ClipEncoder, *DECODERS)

FAMILIES: Mapping[str, type[Encoder]] = {family.family: family for family in _CLASSES}
"""Known families by name."""
_BY_MODEL_TYPE = {model_type: family for family in _CLASSES for model_type in family.model_types}


@dataclass(frozen=True, slots=True)
class Selection:
    """What a plan, and what is read of the encoder, leave of a checkpoint."""

    tensors: tuple[StoredTensor, ...]
    """Every tensor that some position uses, once, in the order of first use."""
    total_parameters: int
    """Parameters of the whole encoder, embedding included."""
    unread_parameters: int
    """Of them, those that the dense encoder would not need either for the outputs that are read."""

    @property
    def kept_parameters(self) -> int:
        """Parameters that some position uses."""
        return sum(tensor.numel for tensor in self.tensors)

    @property
    def sparsity(self) -> float:
        """Parameters that no position uses, as a share of all: the paper's definition."""
        return 1 - self.kept_parameters / self.total_parameters


def encoder_of(config: Mapping[str, Any], tensor_names: Collection[str]) -> Encoder:
    """The encoder that a configuration describes.

    Args:
        config: content of `config.json`.
        tensor_names: of the checkpoint, which tell how they are prefixed, and whether it has what is optional.

    Raises:
        CheckpointError: its architecture is unknown, or the configuration malformed.
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in _BY_MODEL_TYPE:
        raise CheckpointError(f"unknown architecture {model_type!r}; known: {', '.join(sorted(_BY_MODEL_TYPE))}")
    return _BY_MODEL_TYPE[model_type].from_config(config, tensor_names)


def recognise(checkpoint: Checkpoint) -> Encoder:
    """The encoder that a checkpoint holds.

    Raises:
        CheckpointError: its architecture is unknown, or its configuration malformed.
    """
    try:
        return encoder_of(checkpoint.config, checkpoint.tensors.keys())
    except CheckpointError as error:
        raise CheckpointError(f"{checkpoint.directory}: {error}") from error


def bundle_encoder(bundle: Bundle) -> Encoder:
    """The encoder that a bundle's weights are for.

    Raises:
        BundleError: its configuration or its weights file is damaged.
    """
    tensors = bundle.parameters()
    try:
        config = json.loads((bundle.directory / CONFIG).read_text(encoding="utf-8"))
        return encoder_of(config, tensors)
    except (OSError, ValueError, AttributeError, CheckpointError) as error:
        raise BundleError(f"{bundle.directory / CONFIG} is damaged: {error}") from error


def select(checkpoint: Checkpoint, encoder: Encoder, plan: Plan, outputs: Sequence[Output] | None = None) -> Selection:
    """Choose the tensors that a plan needs, after checking every tensor of the encoder.

    Args:
        checkpoint: what to choose from.
        encoder: its definition.
        plan: which weights run where.
        outputs: what is read; `None`: everything that the encoder gives.

    Raises:
        CheckpointError: a tensor is missing, has the wrong shape or an unreadable type, or has no place in the encoder.
        InputError: the encoder has no such output.
        PlanError: the plan does not fit the encoder.
    """
    kept = parameter_shapes(encoder, plan, outputs)
    identity = Plan.identity(encoder.family, encoder.num_layers)
    dense = parameter_shapes(encoder, identity)
    read = parameter_shapes(encoder, identity, outputs)
    for name, shape in dense.items():
        _check_tensor(checkpoint, name, shape)
    for name in checkpoint.tensors.keys() - dense.keys():
        if encoder.owns(name):
            raise CheckpointError(
                f"{checkpoint.directory}: tensor '{name}' has no place in the encoder that config.json describes "
                f"({encoder.num_layers} layers)"
            )
    total = sum(checkpoint.tensors[name].numel for name in dense)
    unread = sum(checkpoint.tensors[name].numel for name in dense.keys() - read.keys())
    return Selection(tuple(checkpoint.tensors[name] for name in kept), total, unread)


def wrong_weights(plan: Plan, checkpoint: Checkpoint) -> str | None:
    """Why a plan should not be used with a checkpoint that it fits: its method merged layers, and wrote them elsewhere.

    Raises:
        CheckpointError: a file cannot be read.
    """
    merged = plan.provenance.get("merged")
    if not isinstance(merged, dict) or merged.get("sha256") == fingerprint(checkpoint):
        return None
    return (
        f"the plan is for the merged checkpoint '{merged.get('name')}' that its search wrote, not for "
        f"{checkpoint.directory}: what was merged into the kept layers will be missing"
    )


def _check_tensor(checkpoint: Checkpoint, name: str, shape: tuple[int, ...]) -> None:
    tensor = checkpoint.tensors.get(name)
    if tensor is None:
        raise CheckpointError(f"{checkpoint.directory}: the tensor '{name}' is missing")
    if tensor.shape != shape:
        raise CheckpointError(
            f"{tensor.file}: the tensor '{name}' has shape {list(tensor.shape)}, config.json asks for {list(shape)}"
        )
    if tensor.code not in READABLE:
        raise CheckpointError(
            f"{tensor.file}: the tensor '{name}' is stored as {tensor.code}; readable: {', '.join(READABLE)}"
        )
