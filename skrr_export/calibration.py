"""The prompts a search looks at, as the pipeline feeds them, in chunks that are encoded together."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from skrr_export.errors import InputError
from skrr_export.pipelines import Preset
from skrr_export.pipelines.rows import read_rows
from skrr_export.tokenization import Tokenizer, Tokens

CHUNKS = 16
"""Chunks that are made where the prompts allow: a candidate can be abandoned after each."""
CHUNK_TOKENS = (512, 8192)
"""Least and most tokens of a chunk, padding included. Fewer leave the processor idle between two weights; more fill
the memory. Neither depends on the machine, so that every machine adds the same sums."""
LOGITS = 1 << 21
"""Most `batch * sequence**2` of a chunk: with the 64 heads of a T5-XXL, 512 MiB of fp32 position bias."""


@dataclass(frozen=True, slots=True, eq=False)
class Chunk:
    """Prompts that are encoded together."""

    input_ids: npt.NDArray[np.int64]
    """`[batch, sequence]`."""
    attention_mask: npt.NDArray[np.int64] | None
    """`[batch, sequence]`; `None` where the pipeline gives its encoder none."""
    counted: npt.NDArray[np.bool_]
    """`[batch, sequence]`: the rows that the denoiser reads."""

    @property
    def rows(self) -> int:
        """How many rows count."""
        return int(self.counted.sum())

    @property
    def size(self) -> int:
        """Tokens that are computed, padding included."""
        return self.input_ids.size


@dataclass(frozen=True, slots=True, eq=False)
class Calibration:
    """Everything that is encoded to measure a discrepancy."""

    null: Chunk
    """The null prompt alone."""
    chunks: tuple[Chunk, ...]
    prompts: int
    truncated: int
    """Prompts that were longer than the pipeline takes."""
    sha256: str
    """Of the ids, the masks and the rows that count: two searches with the same one saw the same prompts."""

    @property
    def tokens(self) -> int:
        """Rows of the prompts that count."""
        return sum(chunk.rows for chunk in self.chunks)


def calibrate(tokenizer: Tokenizer, prompts: Sequence[str]) -> Calibration:
    """Tokenise prompts and arrange them in chunks.

    Where the encoder does not see padding and nobody reads it, prompts of like length share a chunk and its padding is
    cut to the longest of them, which changes no row that counts. The null prompt is what the pipeline encodes where it
    is given no negative one.

    Raises:
        InputError: there is no prompt; or the null prompt has no row that counts.
    """
    preset = tokenizer.preset
    tokens = tokenizer(prompts)
    trimmed = preset.masked and not preset.reads_padding
    lengths = _lengths(tokens, preset) if trimmed else np.full(len(prompts), tokens.input_ids.shape[1])
    order = [int(row) for row in np.argsort(lengths, kind="stable")]
    groups = _groups(order, lengths)
    # From the middle outwards: the first chunk, on which every candidate is measured, holds prompts of usual length.
    groups = [groups[i] for i in sorted(range(len(groups)), key=lambda i: abs(2 * i + 1 - len(groups)))]
    chunks = tuple(_chunk(tokens, group, int(lengths[group].max()), preset) for group in groups)
    null = tokenizer([preset.unconditional_text], negative=True)
    null_length = int(_lengths(null, preset)[0]) if trimmed else null.input_ids.shape[1]
    null_chunk = _chunk(null, [0], null_length, preset.negative)
    if not null_chunk.rows:
        raise InputError("the tokenizer gives the empty prompt no token, not even an end: it is not this encoder's")
    return Calibration(
        null=null_chunk,
        chunks=chunks,
        prompts=len(prompts),
        truncated=sum(length > preset.max_length for length in tokenizer.lengths(prompts)),
        sha256=_sha256([null_chunk, *chunks]),
    )


def _lengths(tokens: Tokens, preset: Preset) -> npt.NDArray[np.int64]:
    """Columns of each row up to the last that is read; at least one."""
    columns = np.arange(1, tokens.attention_mask.shape[1] + 1)
    lengths: npt.NDArray[np.int64] = (tokens.attention_mask * columns).max(axis=1, initial=1)
    return np.minimum(lengths + preset.extra_rows, len(columns))


def _groups(order: Sequence[int], lengths: npt.NDArray[np.int64]) -> list[list[int]]:
    """Split rows, sorted by length, into runs that fit a chunk."""
    least, most = CHUNK_TOKENS
    tokens = min(max(math.ceil(int(lengths.sum()) / CHUNKS), least), most)
    groups: list[list[int]] = [[]]
    for row in order:
        batch, length = len(groups[-1]) + 1, int(lengths[row])  # the longest so far, for they are sorted
        if groups[-1] and (batch * length > tokens or batch * length**2 > LOGITS):
            groups.append([])
        groups[-1].append(row)
    return groups


def _chunk(tokens: Tokens, rows: Sequence[int], length: int, preset: Preset) -> Chunk:
    ids = np.ascontiguousarray(tokens.input_ids[rows, :length])
    mask = np.ascontiguousarray(tokens.attention_mask[rows, :length])
    return Chunk(ids, mask if preset.masked else None, read_rows(preset, mask))


def _sha256(chunks: Sequence[Chunk]) -> str:
    digest = hashlib.sha256()
    for chunk in chunks:
        mask = chunk.counted if chunk.attention_mask is None else chunk.attention_mask
        for array in (chunk.input_ids, mask.astype(np.int64), chunk.counted.astype(np.int64)):
            digest.update(np.asarray(array.shape, np.int64).tobytes() + array.tobytes())
    return digest.hexdigest()
