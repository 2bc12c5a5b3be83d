"""What a plan does to embeddings and to images, through the exported ONNX; images are kept from run to run."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from skrr_plans import ENCODER, MODEL, Settings, Subject, dense
from skrr_statistics import Values

from skrr_export import ExportOptions, export_checkpoint, open_session
from skrr_export.demo.sampling import Embedded, Images, Sampler, distances, embed
from skrr_export.search.projection import open_projection
from skrr_export.staging import write_file

Rows = NDArray[Any]
"""Of an encoder's output, or what the denoiser's projection makes of them: `[rows, features]`."""

VARIANTS = {
    "projected, with the null prompt": (True, True),
    "not projected, with the null prompt": (False, True),
    "projected, without the null prompt": (True, False),
    "not projected, without the null prompt": (False, False),
}
"""Ways to take D: whether after the denoiser's projection, whether with the null prompt. The first is the paper's."""
PAPER = next(iter(VARIANTS))


@dataclass(frozen=True, slots=True)
class Measured:
    """What was found of a plan; of prompts in the order of the tasks."""

    subject: Subject
    met: Values
    """For each task 1 if its image shows what was asked, else 0."""
    distance: Values
    """Of each image from the dense encoder's: root mean square over channels from 0 to 1."""
    discrepancies: dict[str, float]
    """D on captions that no search saw, by `VARIANTS`."""
    calibration: float
    """The paper's D on the captions that plans were searched on."""


def measure(settings: Settings, subject: Subject) -> Measured:
    """Measure a plan; the images of one that was drawn before are read back."""
    file = settings.directory / f"{subject.key}.npz"
    if not file.is_file():
        images, discrepancies = _draw(settings, subject)
        _write(file, images=images, discrepancies=discrepancies)
    with np.load(file) as kept:
        images, (calibration, *others) = kept["images"], kept["discrepancies"].tolist()
    if subject == dense():
        reference = images
    else:
        with np.load(settings.directory / f"{dense().key}.npz") as kept:
            reference = kept["images"]
    return Measured(
        subject,
        np.array([task.is_met(image) for task, image in zip(settings.tasks, images, strict=True)], np.float64),
        distances(images, reference),
        dict(zip(VARIANTS, others, strict=True)),
        calibration,
    )


def discrepancy(
    rows: tuple[Embedded, Embedded], others: tuple[Embedded, Embedded], project: Callable[[Rows], Rows], null: bool
) -> float:
    """D: the mean squared error on the prompts, and perhaps that on the null prompt; not by the search's own code.

    Args:
        rows: under a plan, of the prompts and of the null prompt.
        others: of the dense encoder.
        project: what the denoiser does to rows, `[rows, hidden]`.
        null: whether the null prompt counts.
    """
    errors = []
    for one, other in zip(rows, others, strict=True):
        counted = other.mask == 1
        errors.append(float(np.square(project(one.rows[counted]) - project(other.rows[counted])).mean()))
    return errors[0] + (errors[1] if null else 0.0)


def _draw(settings: Settings, subject: Subject) -> tuple[Images, list[float]]:
    """Images for all tasks; and D on the calibration captions, and on others by `VARIANTS`."""
    calibration, others, empty, prompts = _embed(settings, subject)
    before = _dense(settings)
    ways = {True: _projection(others.rows.shape[-1]), False: np.float64}
    found = [discrepancy((calibration, empty), (before[0], before[2]), ways[True], null=True)]
    found += [
        discrepancy((others, empty), (before[1], before[2]), ways[projected], null=null)
        for projected, null in VARIANTS.values()
    ]
    # A noise of its own for each image; the same under every plan.
    return _sampler().draw(prompts, empty, range(len(prompts.mask))), found


def _embed(settings: Settings, subject: Subject) -> list[Embedded]:
    """What the exported encoder makes of calibration captions, other captions, the null prompt, and the tasks."""
    texts: Sequence[Sequence[str]] = (
        settings.calibration, settings.others, [""], [task.prompt for task in settings.tasks],
    )  # fmt: skip
    options = ExportOptions(plan=subject.plan, subfolder=ENCODER if subject.checkpoint == MODEL else None)
    with tempfile.TemporaryDirectory() as directory:
        export_checkpoint(subject.checkpoint, Path(directory) / "bundle", options)
        session = open_session(Path(directory) / "bundle", threads=1)
        return [embed(session, each) for each in texts]


@cache
def _dense(settings: Settings) -> list[Embedded]:
    return _embed(settings, dense())


@cache
def _sampler() -> Sampler:
    return Sampler(MODEL)


@cache
def _projection(width: int) -> Callable[[Rows], Rows]:
    projection = open_projection(MODEL, width)

    def project(rows: Rows) -> Rows:
        with torch.inference_mode():
            return projection(torch.from_numpy(rows)).numpy().astype(np.float64)

    return project


def _write(file: Path, **arrays: Any) -> None:
    """Write arrays in one step."""
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    write_file(file, content.getvalue())
