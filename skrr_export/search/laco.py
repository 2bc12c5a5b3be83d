"""LaCo, which merges layers: after Yang, Cao and Zhao 2024 (arXiv 2402.11187), algorithm 1.

A merge adds to a layer how those after it differ from it, `theta_l + sum_k (theta_{l+k} - theta_l)`, and removes them.
LaCo walks from the top layer down, and makes a merge if the embeddings stay like the dense encoder's: if their cosine,
averaged over the prompts, exceeds a threshold. The paper sets the threshold by hand. Here the walk is repeated under a
threshold that falls from 1 in steps of `STEP`, each time on the encoder as merged so far, until enough layers are gone.
So a smaller sparsity takes the first of the same merges.

As in the authors' code, a layer's linear maps are merged, and its norms stay.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from skrr_export.bake import WRITE_BYTES
from skrr_export.checkpoint import SINGLE, TOKENIZER_FILES, Checkpoint
from skrr_export.encoders import Encoder, recognise, select
from skrr_export.encoders.eager import Weights, unit_prefix
from skrr_export.errors import CheckpointError, InputError
from skrr_export.manifest import CONFIG
from skrr_export.plan import KINDS, Kind, Plan
from skrr_export.progress import Progress, silent
from skrr_export.search.activations import TensorCache
from skrr_export.search.discrepancy import Candidate, Discrepancy
from skrr_export.search.journal import Journal
from skrr_export.search.space import Item, drop
from skrr_export.staging import StagedDirectory
from skrr_export.tensorfile import PAD_PREFIX, TensorSpec, lay_out

COMBINED = 2
"""Layers that a merge makes one, the paper's C. Of two the formula leaves the second one's linear maps, as the authors'
code does. Of more that code leaves the last one's, and the formula a sum that resembles none of them: on a trained BERT
of six layers the best merge of three by the formula has a cosine of 0.09, the best of two 0.91."""
INTERVAL = 2
"""Layers from a merge down to the next one of the same walk, the paper's I."""
STEP = 0.01
"""By which the threshold falls after each walk."""

Sum = tuple[tuple[int, int], ...]
"""Layers of a checkpoint, and how many times each is added."""


@dataclass(frozen=True, slots=True)
class Merge:
    """Layers that the one before them takes in, all by their numbers in the checkpoint."""

    layer: int
    merged: tuple[int, ...]

    @property
    def dropped(self) -> Item:
        """The units that are gone."""
        return tuple(2 * layer + kind for layer in self.merged for kind in range(2))


def layer_sums(merges: Sequence[Merge]) -> dict[int, Sum]:
    """What the layers that took others in, and are still there, are sums of."""
    sums: dict[int, Counter[int]] = {}
    for merge in merges:
        own, *others = (sums.pop(layer, Counter([layer])) for layer in (merge.layer, *merge.merged))
        sums[merge.layer] = Counter(own)
        for other in others:
            sums[merge.layer].update(other)
            sums[merge.layer].subtract(own)
    return {layer: tuple(sorted((each, n) for each, n in terms.items() if n)) for layer, terms in sums.items()}


class MergedWeights(Weights):
    """A checkpoint's tensors, and those of layers merged from its own, which are numbered after its last.

    So encoders that are merged in different ways run side by side, and share what they have in common. By its number
    modulo the layers, a merged layer is of the kind of the one that took the others in; see `EagerEncoder.sub_block`.
    """

    def __init__(self, encoder: Encoder, weights: Weights, cache: TensorCache) -> None:
        """Prepare to merge.

        Args:
            encoder: names the tensors.
            weights: the checkpoint's.
            cache: where merged tensors are kept.
        """
        self._encoder = encoder
        self._weights = weights
        self._cache = cache
        self._parameters = list(_parameters(encoder))
        self._numbers: dict[tuple[int, Sum], int] = {}
        self._merged: dict[str, tuple[str, list[tuple[str, int]]]] = {}

    def stand_ins(self, merges: Sequence[Merge]) -> dict[int, int]:
        """For each unit of the layers that took others in, the unit that runs for it."""
        numbers = {layer: self._number(layer, terms) for layer, terms in layer_sums(merges).items()}
        return {2 * layer + kind: 2 * number + kind for layer, number in numbers.items() for kind in range(2)}

    def replaced(self, merges: Sequence[Merge]) -> dict[str, str]:
        """For each tensor that merges change, by its name in the checkpoint, the name of what it becomes."""
        return {
            self._name(kind, layer, parameter): self._name(kind, self._number(layer, terms), parameter)
            for layer, terms in layer_sums(merges).items()
            for kind, parameter, linear in self._parameters
            if linear
        }

    def stored(self, name: str) -> Tensor:
        if name not in self._merged:
            return self._weights.stored(name)
        own, terms = self._merged[name]
        total = reduce(torch.add, (self._weights.stored(source).float() * factor for source, factor in terms))
        return total.to(self._weights.stored(own).dtype)

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._merged:
            return self._weights[name]
        tensor = self._cache.get(name)
        if tensor is None:
            own, _ = self._merged[name]
            tensor = self.stored(name).to(self._weights[own])  # its device, its precision
            self._cache.put(name, tensor)
        return tensor

    def _number(self, layer: int, terms: Sum) -> int:
        """The number of a layer that has the norms of one, and a sum's linear maps."""
        if (layer, terms) not in self._numbers:
            number = layer + self._encoder.num_layers * (1 + len(self._numbers))
            self._numbers[layer, terms] = number
            for kind, parameter, linear in self._parameters:
                sources = terms if linear else ((layer, 1),)
                self._merged[self._name(kind, number, parameter)] = (
                    self._name(kind, layer, parameter),
                    [(self._name(kind, source, parameter), factor) for source, factor in sources],
                )
        return self._numbers[layer, terms]

    def _name(self, kind: Kind, layer: int, parameter: str) -> str:
        return unit_prefix(self._encoder, 2 * layer + KINDS.index(kind)) + parameter


def _parameters(encoder: Encoder) -> Iterator[tuple[Kind, str, bool]]:
    """The parameters of a layer: in which sub-block, under which name, and whether they are a linear map's."""
    parts = encoder.parts()
    for kind in KINDS:
        key, _, _ = encoder.sub_block(kind, 0, masked=True)
        for path, module in parts[key].named_modules():
            for name, _ in module.named_parameters(path, recurse=False):
                yield kind, name, isinstance(module, nn.Linear)


def collapse(
    embedding: Discrepancy,
    weights: MergedWeights,
    *,
    reached: Callable[[Sequence[Merge]], bool],
    journal: Journal,
    report: Callable[[int], None],
) -> list[Merge]:
    """Merge layers until enough are gone.

    Args:
        embedding: knows the rows of the dense encoder and of candidates, as they are; runs on `weights`.
        weights: the checkpoint's, and those of merged layers.
        reached: whether so many merges are enough; once a single layer is left they are.
        journal: keeps the cosines.
        report: called with the number of merges whenever cosines are to be computed.

    Returns:
        The merges, in the order in which they are to be made.

    Raises:
        InputError: the embeddings overflow.
    """
    merges: list[Merge] = []
    left = list(range(len(embedding.dense) // 2))

    def cosines() -> list[float]:
        report(len(merges))
        return _cosines(embedding, weights, merges, [_merge(left, at) for at in range(len(left) - 1)])

    for step in itertools.count(1):
        threshold, before = 1 - STEP * step, len(merges)
        at = max(len(left) - COMBINED, 0)
        while at >= 0:
            if journal.remember(f"laco: cosines after {len(merges)} merges", cosines)[at] > threshold:
                merges.append(_merge(left, at))
                left = [layer for layer in left if layer not in merges[-1].merged]
                if reached(merges):
                    return merges
                at = min(at - INTERVAL, len(left) - COMBINED)
            else:
                at -= 1
        if threshold < -1 and len(merges) == before:
            raise InputError("the embeddings overflow whatever is merged next; try --dtype fp32 or a lower --sparsity")
    raise AssertionError


def _merge(left: Sequence[int], at: int) -> Merge:
    """The merge into one of the layers that are left."""
    return Merge(left[at], tuple(left[at + 1 : at + COMBINED]))


def _cosines(
    embedding: Discrepancy, weights: MergedWeights, merges: Sequence[Merge], tried: Sequence[Merge]
) -> list[float]:
    """How like the dense embeddings those are after some merges and one more: the mean of the prompts' cosines.

    NaN where they overflow.
    """
    engine, workers = embedding.engine, embedding.workers
    dense = embedding.dense
    candidates = [
        Candidate(drop(dense, [each.dropped for each in (*merges, merge)]), 2 * merge.layer) for merge in tried
    ]
    views = [embedding.merged(weights.stand_ins([*merges, merge])) for merge in tried]
    sums = np.zeros((len(tried), len(engine.chunks)))
    for number in range(1, len(engine.chunks)):
        if number % workers.size == workers.rank:
            counts = engine.counts(number)
            for row, (view, candidate) in enumerate(zip(views, candidates, strict=True)):
                sums[row, number] = _cosine_sum(view.rows(number, candidate), view.target(number), counts)
    embedding.count(candidates)
    prompts = sum(len(chunk.input_ids) for chunk in engine.chunks[1:])
    return [math.fsum(row) / prompts for row in workers.gather(sums).tolist()]


def _cosine_sum(rows: Tensor, target: Tensor, counts: list[int]) -> float:
    """The sum of the cosines of prompts that have so many rows each; a prompt's rows count as one long vector."""
    pairs = zip(torch.split(rows.double(), counts), torch.split(target.double(), counts), strict=True)
    return torch.stack([F.cosine_similarity(a.flatten(), b.flatten(), dim=0) for a, b in pairs]).sum().item()


def write_merged(
    directory: Path,
    checkpoint: Checkpoint,
    tokenizer: Path,
    merges: Sequence[Merge],
    progress: Progress = silent,
) -> None:
    """Write a checkpoint whose merged layers hold merged tensors under their own names; all else is as it was.

    The directory appears whole or not at all. It holds the encoder alone, in one file, and the tokenizer.

    Args:
        directory: to be made.
        checkpoint: to be merged.
        tokenizer: directory of its tokenizer.
        merges: in the order in which they are made.
        progress: told how many bytes of how many are written.

    Raises:
        OutputError: the directory exists, or cannot be written.
        CheckpointError: the checkpoint cannot be read.
    """
    encoder = recognise(checkpoint)
    tensors = select(checkpoint, encoder, Plan.identity(encoder.family, encoder.num_layers)).tensors
    layout = lay_out((TensorSpec(tensor.name, tensor.code, tensor.shape) for tensor in tensors), directory / SINGLE)
    plain = Weights(checkpoint.tensors, torch.device("cpu"), torch.float32, budget_bytes=0)
    weights = MergedWeights(encoder, plain, TensorCache(0))
    replaced = weights.replaced(merges)
    companions = _companions(checkpoint, tokenizer)
    with StagedDirectory(directory, replace=False, marker=SINGLE) as stage:
        stage.require_space(layout.nbytes)
        file = stage.create(SINGLE)
        file.write(layout.header)
        for placed in layout.tensors:
            if placed.name.startswith(PAD_PREFIX):
                content = memoryview(bytes(placed.nbytes))
            else:
                stored = weights.stored(replaced.get(placed.name, placed.name))
                content = stored.flatten().view(torch.uint8).numpy().data
            for begin in range(0, len(content), WRITE_BYTES):
                file.write(content[begin : begin + WRITE_BYTES])
            progress(f"writing {directory}", placed.offset + placed.nbytes, layout.nbytes)
        for name, text in companions.items():
            stage.write(name, text)


def _companions(checkpoint: Checkpoint, tokenizer: Path) -> dict[str, bytes]:
    """The small files beside the weights: the configuration and the tokenizer."""
    sources = [checkpoint.directory / CONFIG, *(tokenizer / name for name in TOKENIZER_FILES)]
    try:
        return {source.name: source.read_bytes() for source in sources if source.is_file()}
    except OSError as error:
        raise CheckpointError(f"cannot read {error.filename}: {error.strerror}") from error
