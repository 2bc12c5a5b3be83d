"""What running an encoder takes at least: bytes of weights to read, and multiplications to do."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
from torch.utils.flop_counter import FlopCounterMode

from skrr_export.encoders import Encoder, parameter_shapes
from skrr_export.encoders.module import FunctionalEncoder
from skrr_export.manifest import Manifest
from skrr_export.measure.record import Bound, Hardware
from skrr_export.outputs import Output
from skrr_export.plan import Plan


@dataclass(frozen=True, slots=True)
class Work:
    """An encoder's work under a plan."""

    weights_bytes: int
    """Of all tensors that it uses, each once."""
    _read_bytes: int
    """Of those that every run reads whole: without the vocabulary, of which it looks up rows."""
    _encoder: FunctionalEncoder
    _dtype: torch.dtype

    @classmethod
    def dense(cls, encoder: Encoder, manifest: Manifest) -> Work:
        """The work of the encoder that a bundle was made from, in the bundle's precision: all of it."""
        return cls._of(encoder, Plan.identity(encoder.family, encoder.num_layers), encoder.every_output, manifest)

    @classmethod
    def planned(cls, encoder: Encoder, manifest: Manifest) -> Work:
        """The work of a bundle's encoder under the plan: what its outputs need."""
        return cls._of(encoder, manifest.plan, manifest.pipeline.outputs, manifest)

    @classmethod
    def _of(cls, encoder: Encoder, plan: Plan, outputs: Sequence[Output], manifest: Manifest) -> Work:
        shapes = parameter_shapes(encoder, plan, outputs)
        itemsize = manifest.dtype.itemsize
        read = [shape for shape in shapes.values() if shape[0] != encoder.vocab_size]
        return cls(
            itemsize * sum(map(math.prod, shapes.values())),
            itemsize * sum(map(math.prod, read)),
            FunctionalEncoder(encoder, plan, outputs, masked=manifest.pipeline.masked),
            manifest.dtype.torch,
        )

    def flops(self, batch: int, sequence: int, *, masked: bool) -> int:
        """Multiplications and additions of all matrix products, as torch counts them on the meta device."""
        return _flops(self._encoder, self._dtype, batch, sequence, masked)

    def bound(self, hardware: Hardware, computes_in: str, flops: int, median: float) -> Bound | None:
        """The nearest physical limit of a run; `None` where the hardware was not measured.

        Args:
            hardware: what the machine can do.
            computes_in: precision of the products.
            flops: of the run.
            median: seconds that a run takes.
        """
        peak, copy = hardware.matmul_flops_per_second.get(computes_in), hardware.copy_bytes_per_second
        if peak is None or copy is None:
            return None
        limits: dict[Literal["memory", "compute"], float] = {
            "memory": self._read_bytes / copy,
            "compute": flops / peak,
        }
        name = max(limits, key=lambda key: limits[key])
        return Bound(name=name, seconds=limits[name], share=limits[name] / median)


@cache  # subjects of one plan share their work
def _flops(encoder: FunctionalEncoder, dtype: torch.dtype, batch: int, sequence: int, masked: bool) -> int:
    weights = {name: torch.empty(shape, dtype=dtype, device="meta") for name, shape in encoder.shapes.items()}
    ids = torch.empty((batch, sequence), dtype=torch.int64, device="meta")
    with FlopCounterMode(display=False) as counter:
        encoder(weights, ids, ids if masked else None)
    return int(counter.get_total_flops())
