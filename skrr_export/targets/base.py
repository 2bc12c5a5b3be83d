"""What every target is: built from baked weights, opened as a session."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from skrr_export.bundle import Bundle
from skrr_export.dtypes import DType
from skrr_export.errors import InputError
from skrr_export.pipelines import Preset
from skrr_export.plan import Plan

if TYPE_CHECKING:
    from skrr_export.encoders import Encoder
    from skrr_export.tensorfile import Layout

Ids = npt.NDArray[np.int64]
Arrays = dict[str, npt.NDArray[np.generic]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """What a target is built from."""

    encoder: Encoder
    """The definition that the baked weights are for."""
    plan: Plan
    layout: Layout
    """Where each tensor lies in the weights file."""
    weights: Path
    """The weights file, whole; of a bundle in the making it has another name than in the bundle."""
    dtype: DType
    preset: Preset
    """Its outputs' layers are counted from the start."""
    batch: int | None
    """Fixed batch size; `None`: free."""
    sequence: int | None
    """Fixed sequence length, in tokens; `None`: free."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """A target, built."""

    files: Mapping[str, bytes]
    """Content of its files, by their names in the bundle."""
    entry: Mapping[str, Any]
    """What the manifest says of it; `file` is the one that is opened."""
    report: Mapping[str, Any] = field(default_factory=dict)
    """What making it took, which differs from run to run and so has no place in a bundle."""


class Session(ABC):
    """An encoder that is loaded and ready to run."""

    notes: tuple[str, ...] = ()
    """What a user should know about how this session computes."""
    engine_bytes: int | None = None
    """Memory on the GPU by the engine's own figure, without its weights; `None` for what is no engine."""

    def __init__(self, bundle: Bundle, computes_in: DType) -> None:
        self.bundle = bundle
        self.computes_in = computes_in
        """Precision of the activations."""

    def encode(self, input_ids: Ids, attention_mask: Ids | None = None) -> Arrays:
        """Run the encoder.

        Args:
            input_ids: `[batch, sequence]`.
            attention_mask: `[batch, sequence]`, 1 for tokens and 0 for padding. Where the pipeline passes its encoder
                no mask the graph has none, and only `None` is accepted; elsewhere `None` means all ones.

        Returns:
            The manifest's outputs by name, in `computes_in`; a bf16 result as fp32.

        Raises:
            InputError: the inputs do not fit the encoder.
        """
        self._check(input_ids, attention_mask)
        feed = {"input_ids": np.ascontiguousarray(input_ids, np.int64)}
        if self.bundle.manifest.pipeline.masked:
            mask = np.ones_like(input_ids) if attention_mask is None else attention_mask
            feed["attention_mask"] = np.ascontiguousarray(mask, np.int64)
        return self._run(feed)

    @abstractmethod
    def _run(self, feed: Mapping[str, Ids]) -> Arrays:
        """Run on inputs that were checked, by the names of the manifest's `inputs` and in their order."""

    def _check(self, input_ids: Ids, attention_mask: Ids | None) -> None:
        manifest = self.bundle.manifest
        if input_ids.ndim != 2 or 0 in input_ids.shape or not np.issubdtype(input_ids.dtype, np.integer):
            raise InputError(
                f"input_ids must be integers [batch, sequence], not {input_ids.dtype} {list(input_ids.shape)}"
            )
        for axis, fixed in enumerate((manifest.batch, manifest.sequence)):
            if fixed is not None and input_ids.shape[axis] != fixed:
                raise InputError(
                    f"this bundle's {('batch', 'sequence')[axis]} size is fixed at {fixed}, not {input_ids.shape[axis]}"
                )
        if manifest.max_length is not None and input_ids.shape[1] > manifest.max_length:
            raise InputError(f"{input_ids.shape[1]} tokens exceed this encoder's maximum of {manifest.max_length}")
        if input_ids.min() < 0 or input_ids.max() >= manifest.vocab_size:
            raise InputError(
                f"input_ids must lie in 0 to {manifest.vocab_size - 1}; "
                f"these span {input_ids.min()} to {input_ids.max()}"
            )
        if attention_mask is None:
            return
        if not manifest.pipeline.masked:
            raise InputError(f"the pipeline '{manifest.pipeline.name}' passes its encoder no attention_mask; pass none")
        if attention_mask.shape != input_ids.shape:
            raise InputError(f"attention_mask is {list(attention_mask.shape)}, input_ids {list(input_ids.shape)}")
