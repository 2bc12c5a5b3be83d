"""The discrepancy D: how far an arrangement's embeddings are from the dense encoder's, as the denoiser sees them.

After the paper (section 3.1): the mean squared error over the calibration prompts, after the denoiser's own projection
of the text embedding, plus the mean squared error on the null prompt, which guidance divides by and which some pairs
of dropped blocks blow up a hundredfold while the prompts' cosine hardly moves.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor

from skrr_export.errors import InputError
from skrr_export.search.activations import ActivationEngine
from skrr_export.search.space import Arrangement, executed
from skrr_export.search.workers import Values, Workers

Projection = Callable[[Tensor], Tensor]
"""Rows of the encoder's output to float32 `[rows, features]`."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """An arrangement to be measured."""

    arrangement: Arrangement
    fork: int
    """The first position at which it differs from the arrangement it comes from."""


@dataclass(frozen=True, slots=True)
class Terms:
    """A discrepancy in its two parts."""

    prompts: float
    null: float

    @property
    def value(self) -> float:
        """D."""
        return self.prompts + self.null


class Discrepancy:
    """Measures arrangements. A chunk's share of D is never negative, so a sum of some shares is a lower bound."""

    def __init__(
        self,
        engine: ActivationEngine,
        workers: Workers,
        dense: Arrangement,
        *,
        projection: Projection | None = None,
        null: bool = True,
    ) -> None:
        """Prepare to measure.

        Args:
            engine: runs arrangements; its chunk 0 is the null prompt, the others are the prompts.
            workers: share the chunks.
            dense: the arrangement to compare with.
            projection: of the denoiser; `None`: the embedding itself.
            null: whether the null prompt counts; not where the pipeline has zeros in its place.
        """
        self.engine = engine
        self.workers = workers
        self.dense = dense
        self._stand_ins: Mapping[int, int] = {}
        self._targets = object()  # the key of what candidates are compared with
        self._project = projection or (lambda rows: rows)
        self.null = null
        self._rows = sum(sum(engine.counts(number)) for number in range(1, len(engine.chunks)))

    def merged(self, stand_ins: Mapping[int, int]) -> Self:
        """The same measure, against the same dense encoder, of candidates that run other units for some.

        Args:
            stand_ins: for units of layers that others were merged into, the units that run for them.
        """
        other = copy.copy(self)
        other._stand_ins = stand_ins
        return other

    @property
    def naive(self) -> int:
        """Work that measuring every candidate whole would have been, in sub-blocks times tokens; the engine's count."""
        return self.engine.naive

    @property
    def chunks(self) -> range:
        """Numbers of the chunks that count."""
        return range(0 if self.null else 1, len(self.engine.chunks))

    def shares(self, candidates: Sequence[Candidate], chunks: Sequence[int]) -> Values:
        """What chunks contribute to the candidates' D, float64 `[candidates, chunks]`; overflow counts as infinite.

        Every process works on its own chunks and gets the result of all.

        Raises:
            InputError: the dense encoder itself overflows.
        """
        shares = np.zeros((len(candidates), len(chunks)))
        for column, number in enumerate(chunks):
            if number % self.workers.size == self.workers.rank:
                shares[:, column] = self._column(candidates, number)
        shares = self.workers.gather(shares)
        if np.isnan(shares).any():
            raise InputError("the dense encoder's embeddings are not finite in this precision; try --dtype fp32")
        return shares

    def exact(self, candidates: Sequence[Candidate]) -> list[Terms]:
        """The whole D of each candidate."""
        if not candidates:
            return []
        shares = self.shares(candidates, self.chunks)
        self.count(candidates)
        first = 1 if self.null else 0
        return [Terms(math.fsum(row[first:]), math.fsum(row[:first])) for row in shares.tolist()]

    def scale(self) -> float:
        """The mean square of the dense embeddings where D is taken, over the prompts: what D can be compared with."""
        shares = np.zeros(len(self.engine.chunks))
        for number in range(1, len(shares)):
            if number % self.workers.size == self.workers.rank:
                shares[number] = self._mean_squares(self.target(number), number).item()
        return math.fsum(self.workers.gather(shares).tolist())

    def count(self, candidates: Sequence[Candidate]) -> None:
        """Add to the engine's `naive` what measuring these one by one, from the first layer, would take."""
        tokens = sum(self.engine.chunks[number].size for number in self.chunks)
        self.engine.naive += tokens * sum(len(executed(candidate.arrangement)) for candidate in candidates)

    @torch.inference_mode()
    def target(self, number: int) -> Tensor:
        """What a chunk's candidates are compared with: the dense encoder's rows, projected, `[rows, features]`."""
        key = (number, self._targets)
        target = self.engine.cache.get(key)
        if target is None:
            target = self._project(self.engine.output(number, self.dense, len(self.dense)))
            self.engine.cache.put(key, target)
        return target

    @torch.inference_mode()
    def rows(self, number: int, candidate: Candidate) -> Tensor:
        """What is compared with it: a candidate's rows, projected, `[rows, features]`."""
        runs = tuple(None if unit is None else self._stand_ins.get(unit, unit) for unit in candidate.arrangement)
        return self._project(self.engine.output(number, runs, candidate.fork))

    @torch.inference_mode()
    def _column(self, candidates: Sequence[Candidate], number: int) -> list[float]:
        target = self.target(number)
        if not bool(target.isfinite().all()):
            return [math.nan] * len(candidates)
        sums = [self._mean_squares(self.rows(number, candidate) - target, number) for candidate in candidates]
        column: list[float] = torch.stack(sums).nan_to_num(nan=math.inf, posinf=math.inf).tolist()
        return column

    def _mean_squares(self, difference: Tensor, number: int) -> Tensor:
        """The chunk's part of the mean over all values of the prompts, or of the null prompt; 0-d float64."""
        rows = sum(self.engine.counts(0)) if number == 0 else self._rows
        return difference.square().sum(dtype=torch.float64) / (rows * difference.shape[1])
