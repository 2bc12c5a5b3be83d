"""The trained model that ships with this package."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from random import Random

from skrr_export.demo.captions import caption
from skrr_export.demo.world import training_scenes

MODEL = Path(__file__).parent / "model"
"""Its directory, laid out as that of a pipeline: `text_encoder`, `tokenizer`, `transformer`, `scheduler`."""


def calibration_captions(count: int, seed: int = 0) -> list[str]:
    """Captions to search plans on, of scenes that training might have drawn."""
    random = Random(f"calibration {seed}")  # noqa: S311
    return [caption(scene, random) for scene in islice(training_scenes(random), count)]
