"""Presets: what diffusion pipelines feed their text encoders, and what they read of the result.

`presets` is the table; `preset` says what its columns mean.
"""

from __future__ import annotations

from skrr_export.pipelines.find import find_preset, pipeline_encoders, pipeline_names
from skrr_export.pipelines.preset import Preset
from skrr_export.pipelines.presets import PRESETS

__all__ = ["PRESETS", "Preset", "find_preset", "pipeline_encoders", "pipeline_names"]
