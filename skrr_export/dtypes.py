"""The element types a tensor can be stored in, and the three a bundle can be baked to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from skrr_export.errors import InputError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class DType:
    """A floating-point element type, under the name each tool gives it."""

    name: str
    """On the command line and in the manifest: `fp32`, `fp16`, `bf16`."""
    code: str
    """In a safetensors header: `F32`, `F16`, `BF16`."""
    torch_name: str
    """Attribute of the `torch` module."""
    onnx_name: str | None
    """Member of ONNX's `DataType`; `None` for types we never write."""
    itemsize: int
    """Bytes an element."""
    exponent_mask: int
    """The exponent's bits; all of them are set in NaN and infinity, and in nothing else."""

    @property
    def torch(self) -> torch.dtype:
        """The `torch.dtype`; imports torch."""
        import torch

        dtype = getattr(torch, self.torch_name)
        assert isinstance(dtype, torch.dtype)
        return dtype


FP64 = DType("fp64", "F64", "float64", None, 8, 0x7FF0_0000_0000_0000)
FP32 = DType("fp32", "F32", "float32", "FLOAT", 4, 0x7F80_0000)
FP16 = DType("fp16", "F16", "float16", "FLOAT16", 2, 0x7C00)
BF16 = DType("bf16", "BF16", "bfloat16", "BFLOAT16", 2, 0x7F80)

READABLE = {dtype.code: dtype for dtype in (FP64, FP32, FP16, BF16)}
"""Types of weights we can read, by safetensors code."""
BAKEABLE = {dtype.name: dtype for dtype in (FP32, FP16, BF16)}
"""Types a bundle can hold, by our name."""

ITEMSIZE = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "F8_E4M3FNUZ": 1, "F8_E5M2FNUZ": 1,
    "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4,
    "U64": 8, "I64": 8, "F64": 8, "C64": 8,
}  # fmt: skip
"""Bytes an element of every whole-byte type the safetensors format defines."""


def bakeable(name: str) -> DType:
    """Look a bundle type up by name.

    Raises:
        InputError: no bundle can be baked to that type.
    """
    try:
        return BAKEABLE[name]
    except KeyError:
        raise InputError(f"unknown dtype '{name}'; choose one of {', '.join(BAKEABLE)}") from None
