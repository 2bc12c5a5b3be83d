"""Compares an encoder's outputs with a reference's: tokens, padding and pooled vectors, apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from skrr_export.measure.cases import Case
from skrr_export.measure.fidelity import PARTS, Comparison, DeviationMeter
from skrr_export.measure.worker import Embeddings
from skrr_export.outputs import Output

Rows = npt.NDArray[Any]


def token_rows(outputs: Sequence[Output], embeddings: Embeddings) -> Rows | None:
    """The output with a row a token: `[batch, sequence, features]`, or `[batch, sequence, layers, features]`."""
    for output in outputs:
        if not output.pooled:
            values = embeddings[output.name]
            return values.swapaxes(1, 2) if output.join == "stack" else values
    return None


def prompt_rows(outputs: Sequence[Output], embeddings: Embeddings) -> Rows | None:
    """The output with a row a prompt: `[batch, features]`."""
    return next((embeddings[output.name] for output in outputs if output.pooled), None)


def of_prompt(outputs: Sequence[Output], embeddings: Embeddings, row: int, where: npt.NDArray[np.bool_]) -> list[Rows]:
    """Some of the rows of one prompt of a batch, and its pooled vector; of these what the encoder gives."""
    rows, vectors = token_rows(outputs, embeddings), prompt_rows(outputs, embeddings)
    found = [] if rows is None else [rows[row][where]]
    return found if vectors is None else [*found, vectors[row : row + 1]]


class ComparisonMeter:
    """Compares batch by batch."""

    def __init__(self, outputs: Sequence[Output]) -> None:
        """Prepare to compare some outputs."""
        self._outputs = tuple(outputs)
        self._meters: dict[str, DeviationMeter] = {}
        if not all(output.pooled for output in outputs):
            self._meters |= {"tokens": DeviationMeter(), "padding": DeviationMeter()}
        if any(output.pooled for output in outputs):
            self._meters["pooled"] = DeviationMeter()

    def add(self, case: Case, ours: Embeddings, reference: Embeddings) -> None:
        """Take in a batch of both."""
        rows, expected = (token_rows(self._outputs, embeddings) for embeddings in (ours, reference))
        if rows is not None and expected is not None:
            self._meters["tokens"].add(rows[case.real], expected[case.real])
            self._meters["padding"].add(rows[~case.real], expected[~case.real])
        vectors, expected = (prompt_rows(self._outputs, embeddings) for embeddings in (ours, reference))
        if vectors is not None and expected is not None:
            self._meters["pooled"].add(vectors, expected)

    def cosines(self) -> npt.NDArray[np.float64]:
        """Of every finite token with its reference, or of every prompt where there are no tokens."""
        return next(iter(self._meters.values())).cosines()

    def result(self) -> Comparison:
        """The numbers over all batches so far."""
        return Comparison(**{part: self._meters[part].result() if part in self._meters else None for part in PARTS})
