"""Which of an encoder's rows a pipeline hands on to its denoiser, and as what."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from skrr_export.outputs import Output
from skrr_export.pipelines.preset import Preset

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """The rows that a pipeline keeps of a batch, in its order."""

    index: npt.NDArray[np.int64]
    """Where each comes from, `[batch, rows]`."""
    mask: Mask
    """Whether the denoiser is told that it is a token, `[batch, rows]`."""

    @classmethod
    def of(cls, preset: Preset, attention_mask: npt.NDArray[Any]) -> Rows:
        """The rows of a batch.

        Args:
            preset: what the pipeline does.
            attention_mask: `[batch, sequence]`, not 0 for tokens, whether or not the encoder sees it.
        """
        mask = attention_mask != 0
        index = np.broadcast_to(np.arange(mask.shape[1]), mask.shape)
        if preset.padding_rows == "packed":
            index = np.argsort(~mask, axis=1, kind="stable")
        begin, end = preset.crop
        index = np.delete(index, slice(begin, end), axis=1)
        mask = np.take_along_axis(mask, index, axis=1)
        if preset.padding_rows == "packed":
            width = int(mask.sum(axis=1).max(initial=0))
            index, mask = index[:, :width], mask[:, :width]
        index, mask = index[:, : preset.max_rows], mask[:, : preset.max_rows]
        if preset.extra_rows:
            mask = np.arange(mask.shape[1]) < mask.sum(axis=1, keepdims=True) + preset.extra_rows
        return cls(index, mask)

    def take(self, preset: Preset, output: Output, value: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """What the pipeline makes of an output.

        Args:
            preset: what the pipeline does.
            output: which output of the encoder it is; a pooled one stays as it is.
            value: the output, as the encoder gives it.
        """
        if output.pooled:
            return value
        index, mask = self.index[..., None], self.mask[..., None]
        if output.join == "stack":
            index, mask = index[:, None], mask[:, None]
        taken = np.take_along_axis(value, index, axis=-2)
        return taken if preset.padding_rows == "kept" else np.where(mask, taken, np.zeros((), value.dtype))


def rearranged(preset: Preset) -> bool:
    """Whether the pipeline's own rows or mask differ from those that the encoder got."""
    return preset.crop != (0, 0) or preset.padding_rows == "packed" or bool(preset.max_rows or preset.extra_rows)


def finish(
    preset: Preset, outputs: Mapping[str, npt.NDArray[Any]], attention_mask: npt.NDArray[np.int64]
) -> dict[str, npt.NDArray[Any]]:
    """What a pipeline makes of an encoder's outputs.

    Args:
        preset: what the pipeline does.
        outputs: of the encoder, by name.
        attention_mask: `[batch, sequence]`, 1 for tokens, whether or not the encoder saw it.

    Returns:
        The outputs, by the same names, and where the pipeline rearranges rows the `output_mask` of theirs,
        `[batch, rows]`, 1 for those that it tells its denoiser to read.
    """
    rows = Rows.of(preset, attention_mask)
    finished = {output.name: rows.take(preset, output, outputs[output.name]) for output in preset.outputs}
    return {**finished, "output_mask": rows.mask.astype(np.int64)} if rearranged(preset) else finished


def read_rows(preset: Preset, attention_mask: npt.NDArray[Any]) -> Mask:
    """Which rows of an encoder's output per token reach the denoiser.

    Args:
        preset: what the pipeline does.
        attention_mask: `[batch, sequence]`, not 0 for tokens, whether or not the encoder sees it.

    Returns:
        `[batch, sequence]`.
    """
    rows = Rows.of(preset, attention_mask)
    read = np.zeros(attention_mask.shape, bool)
    np.put_along_axis(read, rows.index, rows.mask | preset.reads_padding, axis=1)
    return read
