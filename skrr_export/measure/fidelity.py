"""How two sets of embeddings differ: the numbers of a fidelity report."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from skrr_export.measure.limits import QUANTILES

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Deviation:
    """How far tokens lie from their reference; what could not be measured is `None`."""

    tokens: int
    nonfinite: int
    """Values that are NaN or infinite, of ours or of the reference; the other numbers leave such tokens out."""
    relative_l2: float | None
    """Norm of the difference over the norm of the reference, all tokens together; undefined for a zero reference."""
    cosine_min: float | None
    cosine_p1: float | None
    """First percentile over tokens."""
    cosine_mean: float | None
    max_abs: float | None
    error_quantiles: dict[str, float] | None
    """Quantiles of the absolute error over all values."""

    def to_dict(self) -> dict[str, Any]:
        """For the JSON report."""
        return asdict(self)


class DeviationMeter:
    """Collects tokens batch by batch."""

    def __init__(self) -> None:
        self._cosines: list[Array] = []
        self._errors: list[npt.NDArray[np.float32]] = []
        self._difference_squared = 0.0
        self._reference_squared = 0.0
        self._tokens = 0
        self._nonfinite = 0

    def add(self, ours: npt.NDArray[np.floating[Any]], reference: npt.NDArray[np.floating[Any]]) -> None:
        """Take in tokens `[tokens, hidden_size]`; differences are taken in float64.

        Raises:
            ValueError: the shapes differ.
        """
        if ours.shape != reference.shape or ours.ndim != 2:
            raise ValueError(f"shapes {ours.shape} and {reference.shape} cannot be compared")
        self._tokens += len(ours)
        finite = np.isfinite(ours) & np.isfinite(reference)
        self._nonfinite += int((~finite).sum())
        rows = finite.all(axis=1)
        a, b = ours[rows].astype(np.float64), reference[rows].astype(np.float64)
        difference = a - b
        norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        dots = (a * b).sum(axis=1)
        # Two zero vectors agree; a zero against a non-zero one does not.
        self._cosines.append(
            np.where(norms > 0, dots / np.where(norms > 0, norms, 1), (difference == 0).all(axis=1).astype(np.float64))
        )
        self._errors.append(np.abs(difference).astype(np.float32).ravel())
        self._difference_squared += float((difference**2).sum())
        self._reference_squared += float((b**2).sum())

    def cosines(self) -> Array:
        """Of every finite token with its reference."""
        return np.concatenate(self._cosines) if self._cosines else np.empty(0)

    def result(self) -> Deviation:
        """The numbers over all tokens so far."""
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
            max_abs=float(errors.max()),
            error_quantiles={str(q): float(value) for q, value in zip(QUANTILES, quantiles, strict=True)},
        )


def _ratio(difference_squared: float, reference_squared: float) -> float | None:
    return math.sqrt(difference_squared / reference_squared) if reference_squared > 0 else None
