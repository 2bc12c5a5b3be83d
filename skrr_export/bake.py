"""Bake: stream the tensors a plan keeps from a checkpoint into one weights file, cast on the way.

Reads go through one buffer of `CHUNK_BYTES` and not through a memory map, because mapped pages count as resident
memory: a T5-XXL is baked in a few hundred megabytes, most of them torch itself.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import torch

from skrr_export.dtypes import FP16, READABLE, DType
from skrr_export.encoders.base import NO_RESCALING, Rescaling
from skrr_export.errors import CheckpointError
from skrr_export.progress import Progress, silent
from skrr_export.tensorfile import PAD_PREFIX, Layout, StoredTensor, TensorSpec, lay_out

CHUNK_BYTES = 1 << 20
"""What is read, cast, checked and hashed at a time."""
WRITE_BYTES = 256 << 10
"""What is written at a time: Linux takes 1.4 GB in 0.5 s by 256 KiB, and in 3.5 s by 8 MiB (6.18, ext4; measured)."""

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Baked:
    """What was written."""

    sha256: str
    nbytes: int
    warnings: tuple[str, ...]
    """Tensors that hold NaN or infinity, by name."""
    subnormal: int
    """Values that fp16 holds with fewer bits than its eleven, or as zero, because they are so small."""


@dataclass(slots=True)
class _Lost:
    """What a cast lost."""

    nonfinite: dict[str, str] = field(default_factory=dict)
    subnormal: int = 0


def weights_layout(tensors: Sequence[StoredTensor], dtype: DType, file: Path) -> Layout:
    """Where each tensor will lie in the weights file; cheap, so that a graph can be made before the weights."""
    return lay_out((TensorSpec(tensor.name, dtype.code, tensor.shape) for tensor in tensors), file)


def bake(
    tensors: Sequence[StoredTensor],
    layout: Layout,
    dtype: DType,
    output: BinaryIO,
    progress: Progress = silent,
    *,
    rescaling: Rescaling = NO_RESCALING,
) -> Baked:
    """Write the weights file.

    Args:
        tensors: the tensors to keep, where they lie in the checkpoint.
        layout: where they go.
        dtype: what they are cast to (rounding to nearest even, as torch does).
        output: an empty binary file.
        progress: told how many bytes of how many are written.
        rescaling: powers of two to multiply by before the cast.

    Raises:
        CheckpointError: the checkpoint changed or cannot be read.
        OSError: the output cannot be written.
    """
    sources = {tensor.name: tensor for tensor in tensors}
    digest = hashlib.sha256(layout.header)
    output.write(layout.header)
    lost = _Lost()
    done = len(layout.header)
    # One thread hashes and writes a chunk while this one reads, casts and checks the next: hashing releases the GIL.
    with ThreadPoolExecutor(1) as writer:
        pending: Future[None] | None = None
        for chunk in _chunks(layout, sources, dtype, rescaling, lost):
            if pending is not None:
                pending.result()
            pending = writer.submit(_emit, digest.update, output, chunk)
            done += len(chunk)
            progress("baking", done, layout.nbytes)
        if pending is not None:
            pending.result()
    return Baked(digest.hexdigest(), layout.nbytes, tuple(lost.nonfinite.values()), lost.subnormal)


def _emit(update: Callable[[memoryview], None], output: BinaryIO, chunk: memoryview) -> None:
    update(chunk)
    for begin in range(0, len(chunk), WRITE_BYTES):
        output.write(chunk[begin : begin + WRITE_BYTES])


def _chunks(
    layout: Layout, sources: dict[str, StoredTensor], dtype: DType, rescaling: Rescaling, lost: _Lost
) -> Iterator[memoryview]:
    # Two buffers in turn: the writer is done with the one before last. Fresh ones would cost a page fault every 4 KiB.
    buffers = cycle([np.empty(CHUNK_BYTES, np.uint8), np.empty(CHUNK_BYTES, np.uint8)])
    for placed in layout.tensors:
        if placed.name.startswith(PAD_PREFIX):
            yield memoryview(bytes(placed.nbytes))
            continue
        source = sources[placed.name]
        exponent = rescaling.exponent(placed.name)
        for chunk in _read(source, buffers):
            cast = _cast(chunk, READABLE[source.code], dtype, exponent)
            if placed.name not in lost.nonfinite and _has_nonfinite(cast, dtype):
                lost.nonfinite[placed.name] = _describe_nonfinite(source, chunk, dtype)
            if dtype is FP16:
                lost.subnormal += _subnormals(cast) - _zeros(chunk, READABLE[source.code])
            yield cast.data


def _read(tensor: StoredTensor, buffers: Iterator[Bytes]) -> Iterator[Bytes]:
    """A tensor's bytes in chunks, each in the next of the buffers."""
    try:
        with tensor.file.open("rb", buffering=0) as file:
            file.seek(tensor.offset)
            for begin in range(0, tensor.nbytes, CHUNK_BYTES):
                chunk = next(buffers)[: tensor.nbytes - begin]
                filled = 0
                while filled < len(chunk):
                    count = file.readinto(chunk[filled:].data)
                    if not count:
                        raise CheckpointError(f"{tensor.file} was truncated while '{tensor.name}' was being read")
                    filled += count
                yield chunk
    except OSError as error:
        raise CheckpointError(f"cannot read '{tensor.name}' from {tensor.file}: {error.strerror}") from error


def _cast(chunk: Bytes, source: DType, target: DType, exponent: int) -> Bytes:
    if source is target and not exponent:
        return chunk
    values = torch.from_numpy(chunk).view(source.torch)
    if exponent:
        values = values.to(torch.promote_types(source.torch, torch.float32)) * 2.0**exponent
    return values.to(target.torch).view(torch.uint8).numpy()


def _subnormals(chunk: Bytes) -> int:
    """How many fp16 values have no exponent bit: zeros and subnormals."""
    return int(np.count_nonzero((chunk.view(np.uint16) & FP16.exponent_mask) == 0))


def _zeros(chunk: Bytes, dtype: DType) -> int:
    """How many values are zero, of either sign."""
    bits = chunk.view(f"u{dtype.itemsize}")
    return int(np.count_nonzero((bits << 1) == 0))


def _has_nonfinite(chunk: Bytes, dtype: DType) -> bool:
    """Whether any value is NaN or infinite: its exponent bits are all ones. Integer tests run at memory speed."""
    bits = chunk.view(f"u{dtype.itemsize}")
    return bool(((bits & dtype.exponent_mask) == dtype.exponent_mask).any())


def _describe_nonfinite(source: StoredTensor, chunk: Bytes, dtype: DType) -> str:
    if _has_nonfinite(chunk, READABLE[source.code]):
        return f"tensor '{source.name}' of {source.file} holds NaN or infinity"
    advice = "; bake to bf16 or fp32" if dtype is FP16 else ""
    return f"tensor '{source.name}' holds values that overflow {dtype.name}{advice}"
