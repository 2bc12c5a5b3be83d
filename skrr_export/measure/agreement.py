"""How a subject's embeddings agree with a reference's, and with its own under changes that must not matter."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from skrr_export.measure.cases import Case
from skrr_export.measure.fidelity import Deviation, DeviationMeter
from skrr_export.measure.record import Agreement, Invariance, PromptDeviation
from skrr_export.measure.worker import Embeddings, Encode
from skrr_export.pipelines import Preset

Project = Callable[[Embeddings], Embeddings]
"""The denoiser's projection: `[rows, hidden_size]` to float32 `[rows, features]`."""

BOUNDS = tuple(10.0 ** (exponent / 4) for exponent in range(-56, 1))
"""Of the cosine distances that are counted together: quarter decades from 1e-14 to 1; the last is 2, the largest."""
_INVARIANCE_ROWS = 4
"""Prompts that are run alone."""


class AgreementMeter:
    """Compares batch by batch."""

    def __init__(self, preset: Preset, project: Project | None = None) -> None:
        """Prepare to compare.

        Args:
            preset: says which rows the denoiser reads.
            project: the denoiser's projection, if it is known.
        """
        self._preset = preset
        self._project = project
        self._tokens, self._padding, self._projected = DeviationMeter(), DeviationMeter(), DeviationMeter()
        self._prompts: list[PromptDeviation] = []
        self._null: Deviation | None = None

    def add(self, case: Case, ours: Embeddings, reference: Embeddings) -> None:
        """Take in a batch `[batch, sequence, hidden_size]` of both."""
        self._tokens.add(ours[case.real], reference[case.real])
        self._padding.add(ours[~case.real], reference[~case.real])
        read = case.read(self._preset)
        if self._project is not None and read.any():
            self._projected.add(self._project(ours[read]), self._project(reference[read]))
        for row, prompt in enumerate(case.prompts):
            deviation = _deviation(ours[row][read[row]], reference[row][read[row]])
            self._prompts.append(
                PromptDeviation(
                    prompt=prompt,
                    tokens=int(case.real[row].sum()),
                    relative_l2=deviation.relative_l2,
                    cosine_min=deviation.cosine_min,
                    cosine_mean=deviation.cosine_mean,
                    nonfinite=deviation.nonfinite,
                )
            )
            if not prompt:
                self._null = deviation

    def result(self) -> Agreement:
        """The numbers over all batches so far."""
        return Agreement(
            tokens=self._tokens.result(),
            padding=self._padding.result(),
            null=self._null,
            projected=None if self._project is None else self._projected.result(),
            cosine_distances=_histogram(self._tokens.cosines()),
            prompts=tuple(self._prompts),
        )


def invariance(
    encode: Encode, cases: Sequence[Case], preset: Preset, *, free_batch: bool, free_length: bool
) -> Invariance:
    """Run the largest ragged batch again, its shortest prompts alone, and these without their padding.

    Args:
        encode: runs the subject.
        cases: batches to choose from.
        preset: says whether a mask is given, which promises that padding does not matter, and which rows are read.
        free_batch: whether the subject takes any batch size.
        free_length: whether it takes any length.
    """
    # Rows of several lengths, so that there is padding to leave out; of these batches the largest.
    case = max(cases, key=lambda one: (len(set(one.real.sum(axis=1).tolist())) > 1, one.input_ids.size))
    mask, read = case.given(preset), case.read(preset)
    whole = encode(case.input_ids, mask)
    lengths = case.real.sum(axis=1)
    rows = [int(row) for row in np.argsort(lengths, kind="stable") if lengths[row]][:_INVARIANCE_ROWS]
    alone, unpadded = [], []
    for row in rows:
        ids, own_mask = case.input_ids[row : row + 1], None if mask is None else mask[row : row + 1]
        if free_batch and len(case.input_ids) > 1:
            alone.append(_distance(encode(ids, own_mask)[0][read[row]], whole[row][read[row]]))
        if free_batch and free_length and own_mask is not None:
            length = int(np.flatnonzero(case.real[row])[-1]) + 1
            output = encode(ids[:, :length], own_mask[:, :length])[0]
            real = case.real[row]
            unpadded.append(_distance(output[real[:length]], whole[row][real]))
    return Invariance(
        repeat=_distance(encode(case.input_ids, mask), whole),
        batch=max(alone, default=None),
        sequence=max(unpadded, default=None),
    )


def _deviation(ours: Embeddings, reference: Embeddings) -> Deviation:
    meter = DeviationMeter()
    meter.add(ours, reference)
    return meter.result()


def _distance(ours: Embeddings, reference: Embeddings) -> float:
    """Relative L2; infinite values agree with themselves only."""
    if np.array_equal(ours, reference, equal_nan=True):
        return 0.0
    difference = float(np.linalg.norm(ours.astype(np.float64) - reference.astype(np.float64)))
    scale = float(np.linalg.norm(reference.astype(np.float64)))
    return difference / scale if math.isfinite(difference) and scale > 0 else 2.0  # as far as opposite vectors


def _histogram(cosines: npt.NDArray[np.float64]) -> dict[str, int]:
    """How many cosine distances lie up to each bound, and above the bound before it."""
    bounds = np.array([*BOUNDS, 2.0])
    places = np.searchsorted(bounds, np.clip(1 - cosines, 0, 2), side="left")
    counts = np.bincount(places, minlength=len(bounds))
    return {text: int(count) for text, count in zip(_texts(bounds), counts, strict=True)}


def _texts(bounds: npt.NDArray[np.float64]) -> Iterator[str]:
    return (f"{bound:.3g}" for bound in bounds.tolist())
