"""How a subject's embeddings agree with a reference's, and with its own under changes that must not matter."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from skrr_export.measure.cases import Case
from skrr_export.measure.comparison import ComparisonMeter, Rows, of_prompt, token_rows
from skrr_export.measure.fidelity import Deviation, DeviationMeter
from skrr_export.measure.record import Agreement, Invariance, PromptDeviation
from skrr_export.measure.worker import Embeddings, Encode
from skrr_export.pipelines import Preset

Project = Callable[[Rows], Rows]
"""The denoiser's projection: `[rows, width]` to float32 `[rows, features]`."""

BOUNDS = tuple(10.0 ** (exponent / 4) for exponent in range(-56, 1))
"""Of the cosine distances that are counted together: quarter decades from 1e-14 to 1; the last is 2, the largest."""
_INVARIANCE_ROWS = 4
"""Prompts that are run alone."""


class AgreementMeter:
    """Compares batch by batch."""

    def __init__(self, preset: Preset, project: Project | None = None) -> None:
        """Prepare to compare.

        Args:
            preset: says what the encoder gives, and which rows the denoiser reads.
            project: the denoiser's projection of the output per token, if it is known.
        """
        self._preset = preset
        self._project = project
        self._whole, self._projected = ComparisonMeter(preset.outputs), DeviationMeter()
        self._prompts: list[PromptDeviation] = []
        self._null: Deviation | None = None

    def add(self, case: Case, ours: Embeddings, reference: Embeddings) -> None:
        """Take in a batch of both."""
        self._whole.add(case, ours, reference)
        read = case.read(self._preset)
        rows, expected = (token_rows(self._preset.outputs, embeddings) for embeddings in (ours, reference))
        if self._project is not None and rows is not None and expected is not None and read.any():
            self._projected.add(self._project(rows[read]), self._project(expected[read]))
        for row, prompt in enumerate(case.prompts):
            # Of what the denoiser reads: the rows, or the pooled vector where there are none.
            both = (of_prompt(self._preset.outputs, embeddings, row, read[row])[0] for embeddings in (ours, reference))
            deviation = _deviation(*both)
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
        whole = self._whole.result()
        return Agreement(
            tokens=whole.tokens,
            padding=whole.padding,
            pooled=whole.pooled,
            null=self._null,
            projected=None if self._project is None else self._projected.result(),
            cosine_distances=_histogram(self._whole.cosines()),
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
    outputs, mask, read = preset.outputs, case.given(preset), case.read(preset)
    whole = encode(case.input_ids, mask)
    lengths = case.real.sum(axis=1)
    rows = [int(row) for row in np.argsort(lengths, kind="stable") if lengths[row]][:_INVARIANCE_ROWS]
    alone, unpadded = [], []
    for row in rows:
        ids, own_mask = case.input_ids[row : row + 1], None if mask is None else mask[row : row + 1]
        real = case.real[row]
        if free_batch and len(case.input_ids) > 1:
            single = encode(ids, own_mask)
            alone.append(_change(of_prompt(outputs, single, 0, read[row]), of_prompt(outputs, whole, row, read[row])))
        if free_batch and free_length and own_mask is not None:
            where = np.flatnonzero(real)
            kept = slice(int(where[0]), int(where[-1]) + 1)
            single = encode(ids[:, kept], own_mask[:, kept])
            unpadded.append(_change(of_prompt(outputs, single, 0, real[kept]), of_prompt(outputs, whole, row, real)))
    again = encode(case.input_ids, mask)
    return Invariance(
        repeat=_change([again[name] for name in whole], list(whole.values())),
        batch=max(alone, default=None),
        sequence=max(unpadded, default=None),
    )


def _change(ours: Sequence[Rows], theirs: Sequence[Rows]) -> float:
    return max(_distance(a, b) for a, b in zip(ours, theirs, strict=True))


def _deviation(ours: Rows, reference: Rows) -> Deviation:
    meter = DeviationMeter()
    meter.add(ours, reference)
    return meter.result()


def _distance(ours: Rows, reference: Rows) -> float:
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
