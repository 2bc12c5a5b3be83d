"""An encoder run by torch, a sub-block at a time, on weights that stay in the checkpoint's files.

Any sub-block can be called at any time, on any activations: what a search over plans needs, and what no whole model
offers. A tensor is mapped, not read; where the device or the precision differs from the file's it is copied when used,
and the copy is kept as long as the memory allowed for that lasts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.func import functional_call

from skrr_export.dtypes import READABLE
from skrr_export.encoders.base import KEEP, Encoder, Step, parts_of
from skrr_export.outputs import LAST, Output
from skrr_export.plan import KINDS
from skrr_export.tensorfile import StoredTensor

Activations = Mapping[str, Tensor]
"""What steps hand to each other, by name: `input_ids`, `attention_mask`, `hidden`, `bias`."""


class Weights:
    """The tensors of a checkpoint on a device and in a precision, each read when it is used."""

    def __init__(
        self,
        tensors: Mapping[str, StoredTensor],
        device: torch.device,
        dtype: torch.dtype,
        *,
        budget_bytes: int,
        replaced: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Map the files of `tensors`.

        Args:
            tensors: where each tensor lies.
            device: where they are wanted.
            dtype: in which precision.
            budget_bytes: how much memory converted copies may hold; beyond it a tensor is converted at each use.
            replaced: tensors that take the place of the checkpoint's.
        """
        self._tensors = tensors
        self._device = device
        self._dtype = dtype
        self._left = budget_bytes
        self._replaced = dict(replaced or {})
        self._files: dict[Path, Tensor] = {}
        self._kept: dict[str, Tensor] = {}

    def stored(self, name: str) -> Tensor:
        """A tensor as the file has it; shares the file's pages where alignment allows."""
        if name in self._replaced:
            return self._replaced[name]
        tensor = self._tensors[name]
        if tensor.file not in self._files:
            size = tensor.file.stat().st_size
            self._files[tensor.file] = torch.from_file(str(tensor.file), shared=False, size=size, dtype=torch.uint8)
        raw = self._files[tensor.file][tensor.offset : tensor.offset + tensor.nbytes]
        if not _aligned(tensor):
            raw = raw.clone()
        return raw.view(READABLE[tensor.code].torch).view(tensor.shape)

    def __getitem__(self, name: str) -> Tensor:
        if name in self._kept:
            return self._kept[name]
        stored = self.stored(name)
        tensor = stored.to(self._device, self._dtype)
        # First come, first kept: a search walks the layers in a circle, on which the least recently used is next.
        nbytes = tensor.nbytes
        if tensor is stored and (name in self._replaced or _aligned(self._tensors[name])):
            nbytes = 0  # no copy
        if nbytes <= self._left:
            self._left -= nbytes
            self._kept[name] = tensor
        return tensor


def _aligned(tensor: StoredTensor) -> bool:
    """Whether a tensor can be used where it lies: a view needs an address that is a multiple of the element's size."""
    return tensor.offset % READABLE[tensor.code].itemsize == 0


class EagerEncoder:
    """Calls the sub-blocks of an encoder on activations `[batch, sequence, hidden_size]`."""

    def __init__(
        self,
        encoder: Encoder,
        weights: Weights,
        device: torch.device,
        *,
        masked: bool,
        outputs: Sequence[Output] = (LAST,),
    ) -> None:
        """Prepare to run.

        Args:
            encoder: the definition.
            weights: its tensors, on `device`.
            device: where to run.
            masked: whether an `attention_mask` will be given.
            outputs: what is read.
        """
        self.encoder = encoder
        self.device = device
        self.masked = masked
        self.weights = weights
        self.outputs = tuple(outputs)
        self.parts = parts_of(encoder)
        """By name; a hook on one of their modules sees every call."""
        self._names = {name: [key for key, _ in part.named_parameters()] for name, part in self.parts.items()}

    def start(
        self, input_ids: npt.NDArray[np.int64], attention_mask: npt.NDArray[np.int64] | None
    ) -> dict[str, Tensor]:
        """Run what comes before the first layer.

        Returns:
            `hidden`, and whatever the sub-blocks read beside it.
        """
        activations = {"input_ids": torch.from_numpy(input_ids).to(self.device)}
        if self.masked:
            assert attention_mask is not None
            activations["attention_mask"] = torch.from_numpy(attention_mask).to(self.device)
        for step in self.encoder.prologue(masked=self.masked):
            activations[step.output] = self._run(step, activations)
        return activations

    def sub_block(self, unit: int, activations: Activations) -> Tensor:
        """`hidden` after one more sub-block.

        Args:
            unit: whose weights: `2 * layer` for an attention, `2 * layer + 1` for a feed-forward. Numbers beyond the
                encoder's stand for the same sub-blocks in turn, on other weights; see `unit_prefix`.
            activations: `hidden` before it, and the rest of what `start` returned.
        """
        part, _, inputs = self.encoder.sub_block(
            KINDS[unit % 2], unit // 2 % self.encoder.num_layers, masked=self.masked
        )
        return self._run(Step("", part, unit_prefix(self.encoder, unit), inputs, "hidden"), activations)

    def finish(self, activations: Activations) -> dict[str, Tensor]:
        """The outputs by name, from what `start` returned, and `hidden` after the last layer that is needed.

        Args:
            activations: besides, the `hidden_states.K` that `Encoder.read_on_the_way` asks for.
        """
        activations = dict(activations)
        for step in self.encoder.closing(self.outputs, masked=self.masked):
            activations[step.output] = self._run(step, activations)
        return {output.name: activations[output.name] for output in self.outputs}

    def _run(self, step: Step, activations: Activations) -> Tensor:
        inputs = tuple(activations[name] for name in step.inputs)
        if step.part == KEEP:
            return inputs[0]
        weights = {name: self.weights[step.prefix + name] for name in self._names[step.part]}
        output: Tensor = functional_call(self.parts[step.part], weights, inputs)
        return output


def unit_prefix(encoder: Encoder, unit: int) -> str:
    """What the names of a unit's tensors begin with; those of a unit beyond the encoder's own also tell which turn."""
    turn, layer = divmod(unit // 2, encoder.num_layers)
    _, prefix, _ = encoder.sub_block(KINDS[unit % 2], layer, masked=True)
    return f"{turn}:{prefix}" if turn else prefix


def unit_parameters(encoder: Encoder) -> tuple[int, ...]:
    """How many parameters each sub-block has, by unit; embedding and final norm are not among them."""
    parts = encoder.parts()
    counts = []
    for unit in range(2 * encoder.num_layers):
        part, _, _ = encoder.sub_block(KINDS[unit % 2], unit // 2, masked=True)
        counts.append(sum(math.prod(parameter.shape) for parameter in parts[part].parameters()))
    return tuple(counts)
