"""Every pipeline that there is a preset for, with exported encoders in the place of its own.

The graphs are replaced by the models themselves, so the embeddings have to be the same bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import torch

from skrr_export.diffusers import text_encoder
from tests.diffusers.sessions import ModelSession
from tests.pipelines.calls import PIPELINES

PROMPTS = ["A red fox, naïve & brave", "", "an old man walks along the shore at night"]
NEGATIVE = ["blurry", "ugly, low quality", ""]


@pytest.mark.parametrize("name", PIPELINES)
def test_nothing_else_changes(name: str, tmp_path: Path) -> None:
    pipeline = PIPELINES[name]
    models = {slot: tiny.make_encoder(seed) for seed, (slot, tiny) in enumerate(pipeline.encoders.items())}
    ours = {
        slot: text_encoder(ModelSession(tmp_path / slot, pipeline.encoders[slot], model, f"{name}/{slot}"))
        for slot, model in models.items()
    }
    with torch.inference_mode():
        expected = pipeline.call(pipeline.make(models), PROMPTS, NEGATIVE)
        pipe = pipeline.make(ours)
        given = pipeline.call(pipe, PROMPTS, NEGATIVE)
    for one, other in zip(flat(given), flat(expected), strict=True):
        assert one.device == other.device
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    annotations = get_type_hints(type(pipe).__init__)
    for slot, encoder in ours.items():
        assert isinstance(encoder, annotations[slot])


def flat(values: Any) -> Sequence[torch.Tensor]:
    if isinstance(values, torch.Tensor):
        return [values]
    return [tensor for value in values for tensor in flat(value)]
