"""The safetensors format at the level we need it: where every tensor's bytes lie.

The `safetensors` library loads tensors but does not say where they are; zero-copy export and bounded-memory baking
both stand on (file, offset, length). The format: an 8-byte little-endian header length, a JSON header, then the data.
`read_header` accepts what the library accepts, and says more about what it refuses.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skrr_export import strict_json
from skrr_export.dtypes import ITEMSIZE
from skrr_export.errors import CheckpointError

MAX_HEADER_BYTES = 100_000_000
"""The library's own limit."""
PAGE_BYTES = 4096
"""Our data section starts on a page, so that a memory map of it does too."""
ALIGNMENT_BYTES = 256
"""Our tensors start on multiples of this: cuBLAS wants it of a matrix."""
PAD_PREFIX = "_pad."
"""Names of the tensors that fill what would be holes, which the format forbids."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where a tensor lies."""

    name: str
    code: str
    """Element type in the safetensors spelling, for example `BF16`."""
    shape: tuple[int, ...]
    file: Path
    offset: int
    """Bytes from the start of the file."""
    nbytes: int

    @property
    def numel(self) -> int:
        """Elements of the tensor."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor to be written."""

    name: str
    code: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor."""
        return math.prod(self.shape) * ITEMSIZE[self.code]


@dataclass(frozen=True, slots=True)
class Layout:
    """A file about to be written: its header, and where each tensor goes."""

    header: bytes
    """Everything before the data section, length prefix included."""
    tensors: tuple[StoredTensor, ...]
    """In file order, padding included."""

    @property
    def nbytes(self) -> int:
        """Size of the whole file."""
        return len(self.header) + sum(tensor.nbytes for tensor in self.tensors)


def lay_out(specs: Iterable[TensorSpec], file: Path) -> Layout:
    """Arrange tensors in a file so that each starts on `ALIGNMENT_BYTES` and the data section on a page.

    Tensors whose size is a multiple of the alignment keep the order given (the order of execution, so that a memory
    map is read forwards); the others follow, each padded to the next boundary.
    """
    specs = list(specs)
    ordered = [spec for spec in specs if spec.nbytes % ALIGNMENT_BYTES == 0]
    for spec in sorted((spec for spec in specs if spec.nbytes % ALIGNMENT_BYTES), key=lambda spec: -spec.nbytes):
        ordered += [spec, TensorSpec(f"{PAD_PREFIX}{len(ordered)}", "U8", (-spec.nbytes % ALIGNMENT_BYTES,))]
    if ordered and ordered[-1].name.startswith(PAD_PREFIX):
        ordered.pop()  # nothing follows it
    document: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers refuses a file that lacks this
    begin = 0
    for spec in ordered:
        end = begin + spec.nbytes
        document[spec.name] = {"dtype": spec.code, "shape": list(spec.shape), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(document, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % PAGE_BYTES)
    header = len(text).to_bytes(8, "little") + text
    return Layout(header, tuple(_placed(ordered, file, len(header))))


def _placed(specs: Iterable[TensorSpec], file: Path, offset: int) -> Iterator[StoredTensor]:
    for spec in specs:
        yield StoredTensor(spec.name, spec.code, spec.shape, file, offset, spec.nbytes)
        offset += spec.nbytes


def read_header(path: Path) -> dict[str, StoredTensor]:
    """Read where every tensor of a safetensors file lies; reads no weights.

    Raises:
        CheckpointError: the file is missing, truncated, or its header is damaged or lies about the data.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            prefix = file.read(8)
            length = int.from_bytes(prefix, "little")
            if len(prefix) < 8 or length > size - 8:
                raise CheckpointError(
                    f"{path} is truncated or not a safetensors file: it is {size} bytes long, "
                    f"and its header claims {length if len(prefix) == 8 else 'at least 8'} bytes"
                )
            if length > MAX_HEADER_BYTES:
                raise CheckpointError(f"{path}: a header of {length} bytes exceeds the limit of {MAX_HEADER_BYTES}")
            text = file.read(length)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
    try:
        document = strict_json.loads(text.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: damaged header: {error}") from error
    if not isinstance(document, dict):
        raise CheckpointError(f"{path}: damaged header: not a JSON object")
    document.pop("__metadata__", None)
    tensors = [_stored(path, name, entry, 8 + length) for name, entry in document.items()]
    _check_coverage(path, tensors, 8 + length, size)
    return {tensor.name: tensor for tensor in tensors}


def _stored(path: Path, name: str, entry: Any, data: int) -> StoredTensor:
    if not isinstance(entry, dict) or not entry.keys() >= {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(f"{path}: damaged header: tensor '{name}' needs dtype, shape and data_offsets")
    code, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(code, str) or code not in ITEMSIZE:
        raise CheckpointError(f"{path}: tensor '{name}' has the unknown dtype {code!r}")
    if not _naturals(shape) or not _naturals(offsets) or len(offsets) != 2:
        raise CheckpointError(f"{path}: damaged header: tensor '{name}' has a malformed shape or data_offsets")
    nbytes = math.prod(shape) * ITEMSIZE[code]
    if offsets[1] - offsets[0] != nbytes:
        raise CheckpointError(
            f"{path}: tensor '{name}' of {code} {shape} needs {nbytes} bytes, but its offsets {offsets} "
            f"span {offsets[1] - offsets[0]}"
        )
    return StoredTensor(name, code, tuple(shape), path, data + offsets[0], nbytes)


def _naturals(value: Any) -> bool:
    """Whether it is a list of natural numbers, small and few enough that Python can also print their product."""
    if not isinstance(value, list) or len(value) > 64:
        return False
    return all(type(item) is int and 0 <= item < 1 << 63 for item in value)


def _check_coverage(path: Path, tensors: list[StoredTensor], data: int, size: int) -> None:
    """The format wants the tensors to tile the data section: no overlap, no hole, nothing before or after."""
    end = data
    for tensor in sorted(tensors, key=lambda tensor: (tensor.offset, tensor.nbytes)):
        if tensor.offset + tensor.nbytes > size:
            raise CheckpointError(
                f"{path} is truncated: tensor '{tensor.name}' ends at byte {tensor.offset + tensor.nbytes}, "
                f"the file at {size}"
            )
        if tensor.offset != end:
            fault = "overlaps the tensor before it" if tensor.offset < end else "leaves a hole before it"
            raise CheckpointError(f"{path}: damaged header: tensor '{tensor.name}' {fault}")
        end = tensor.offset + tensor.nbytes
    if end != size:
        raise CheckpointError(f"{path}: {size - end} bytes at the end belong to no tensor")
