"""From the prompt to what the denoiser gets, through exported bundles: a pipeline for every family of encoders.

What a bundle gives is compared with what the pipeline of diffusers itself gives, which runs `transformers`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from skrr_export.exporting import ExportOptions, export_checkpoint
from skrr_export.targets import open_target
from skrr_export.tokenization import encode_prompts
from tests.pipelines.calls import PIPELINES

CHOSEN = (
    "cogview4", "flux.2", "hunyuandit", "hunyuanvideo", "qwen-image", "sana", "sdxl", "wan", "z-image",
)  # fmt: skip
"""Between them they feed every family, and take a last, an earlier and several hidden states, and pooled vectors."""
PROMPTS = ["A red fox, naïve & brave", "", "an old man walks along the shore at night"]
NEGATIVE = ["blurry", "ugly, low quality", ""]
TOLERANCE = 2e-4
"""Of a row. Rows of random encoders this small are badly conditioned: normed, they magnify rounding a hundredfold."""


@pytest.mark.parametrize("name", CHOSEN)
def test_a_prompt_becomes_what_the_pipeline_makes_of_it(name: str, tmp_path: Path) -> None:
    pipeline = PIPELINES[name]
    models = {slot: tiny.make_encoder(seed) for seed, (slot, tiny) in enumerate(pipeline.encoders.items())}
    with torch.inference_mode():
        truth = pipeline.call(pipeline.make(models), PROMPTS, NEGATIVE)
    sessions = {}
    for slot, model in models.items():
        model.save_pretrained(tmp_path / slot)
        pipeline.encoders[slot].make_tokenizer().save_pretrained(tmp_path / slot)
        options = ExportOptions(pipeline=f"{name}/{slot}")
        sessions[slot] = open_target(export_checkpoint(tmp_path / slot, tmp_path / f"{slot}.bundle", options).bundle)
    for prompts, negative, expected in ((PROMPTS, False, truth[0]), (NEGATIVE, True, truth[1])):
        encoded = {slot: encode_prompts(each, prompts, negative=negative) for slot, each in sessions.items()}
        for ours, theirs in zip(_flat(pipeline.ours(encoded)), _flat(expected), strict=True):
            assert ours.shape == theirs.shape
            difference = np.linalg.norm(ours.astype(np.float64) - theirs, axis=-1)
            assert (difference <= TOLERANCE * np.maximum(np.linalg.norm(theirs, axis=-1), 1e-6)).all()


def _flat(values: Any) -> list[np.ndarray]:
    if isinstance(values, (torch.Tensor, np.ndarray)):
        return [np.asarray(values)]
    return [array for value in values if value is not None for array in _flat(value)]
