"""How two sets of embeddings differ: the numbers of a fidelity report."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from skrr_export.measure.limits import QUANTILES

Array = npt.NDArray[np.float64]

_KEPT = 8192
"""Errors that are kept of a row, about, for their quantiles: all those of many stacked layers would fill the memory."""


@dataclass(frozen=True, slots=True)
class Deviation:
    """How far rows lie from their reference; what could not be measured is `None`.

    Of stacked layers each counts on its own: a row's cosine is that of its worst layer, and the relative L2 is the
    worst layer's, for one layer may be a thousand times as large as another, and the denoiser reads both.
    """

    tokens: int
    """Rows that were compared: tokens, or prompts of a pooled output."""
    nonfinite: int
    """Values that are NaN or infinite, of ours or of the reference; the other numbers leave such rows out."""
    relative_l2: float | None
    """Norm of the difference over the norm of the reference, all rows together; undefined for a zero reference."""
    cosine_min: float | None
    cosine_p1: float | None
    """First percentile over rows."""
    cosine_mean: float | None
    max_abs: float | None
    error_quantiles: dict[str, float] | None
    """Quantiles of the absolute error over all values; of very wide rows, over some of theirs, evenly spread."""

    def to_dict(self) -> dict[str, Any]:
        """For the JSON report."""
        return asdict(self)


PARTS = ("tokens", "padding", "pooled")
"""What is compared apart; the fields of `Comparison`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """An encoder's outputs against a reference's; `None` where it gives no such output."""

    tokens: Deviation | None
    """Rows of tokens, of prompts and of random ids."""
    padding: Deviation | None
    """Rows of padding."""
    pooled: Deviation | None
    """Vectors of whole prompts, and of rows of random ids."""

    def to_dict(self) -> dict[str, Any]:
        """For the JSON report."""
        return asdict(self)


class DeviationMeter:
    """Collects rows batch by batch."""

    def __init__(self) -> None:
        self._cosines: list[Array] = []
        self._errors: list[npt.NDArray[np.float32]] = []
        self._largest = 0.0
        self._difference_squared: Array | float = 0.0
        self._reference_squared: Array | float = 0.0
        self._tokens = 0
        self._nonfinite = 0

    def add(self, ours: npt.NDArray[np.floating[Any]], reference: npt.NDArray[np.floating[Any]]) -> None:
        """Take in rows `[rows, features]`, or `[rows, layers, features]`; differences are taken in float64.

        Raises:
            ValueError: the shapes differ.
        """
        if ours.shape != reference.shape or ours.ndim not in (2, 3):
            raise ValueError(f"shapes {ours.shape} and {reference.shape} cannot be compared")
        if ours.ndim == 2:
            ours, reference = ours[:, None], reference[:, None]
        self._tokens += len(ours)
        finite = np.isfinite(ours) & np.isfinite(reference)
        self._nonfinite += int((~finite).sum())
        rows = finite.all(axis=(1, 2))
        a, b = ours[rows].astype(np.float64), reference[rows].astype(np.float64)
        difference = a - b
        norms = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
        dots = (a * b).sum(axis=-1)
        # Two zero vectors agree; a zero against a non-zero one does not.
        cosines = np.where(norms > 0, dots / np.where(norms > 0, norms, 1), (difference == 0).all(axis=-1))
        self._cosines.append(cosines.min(axis=1))
        errors = np.abs(difference).astype(np.float32).ravel()
        self._largest = max(self._largest, float(errors.max(initial=0)))
        self._errors.append(errors[:: _stride(ours[0].size)] if len(ours) else errors)
        self._difference_squared += (difference**2).sum(axis=(0, 2))
        self._reference_squared += (b**2).sum(axis=(0, 2))

    def cosines(self) -> Array:
        """Of every finite row with its reference."""
        return np.concatenate(self._cosines) if self._cosines else np.empty(0)

    def result(self) -> Deviation:
        """The numbers over all rows so far."""
        cosines = self.cosines()
        if not cosines.size:
            return Deviation(self._tokens, self._nonfinite, None, None, None, None, None, None)
        errors = np.concatenate(self._errors)
        quantiles = np.quantile(errors, QUANTILES)
        return Deviation(
            tokens=self._tokens,
            nonfinite=self._nonfinite,
            relative_l2=_ratio(self._difference_squared, self._reference_squared),
            cosine_min=float(cosines.min()),
            cosine_p1=float(np.quantile(cosines, 0.01)),
            cosine_mean=float(cosines.mean()),
            max_abs=self._largest,
            error_quantiles={str(q): float(value) for q, value in zip(QUANTILES, quantiles, strict=True)},
        )


def _stride(width: int) -> int:
    """Odd, so that from row to row other features are kept."""
    return 1 if width <= _KEPT else width // _KEPT | 1


def _ratio(difference_squared: Array | float, reference_squared: Array | float) -> float | None:
    """Of the worst layer; a layer that is zero has none."""
    if not np.all(reference_squared):
        return None
    return float(np.sqrt(np.max(np.divide(difference_squared, reference_squared))))
