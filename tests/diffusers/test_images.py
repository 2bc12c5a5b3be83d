"""Whole tiny pipelines with exported encoders in the place of their own.

Images are in [0, 1] and computed in fp32. Encoders whose weights are off by a millionth change a pixel by up to 3e-5
here, another prompt changes one by 0.2 or more.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from skrr_export import ExportOptions, Plan, export_checkpoint
from skrr_export.diffusers import load_text_encoder
from tests.diffusers.denoisers import DENOISERS, parts
from tests.pipelines.calls import PIPELINES
from tests.pipelines.encoders import Tiny

SAME, OTHER = 1e-4, 1e-2

pytestmark = pytest.mark.usefixtures("remembered_traces")


@pytest.fixture(autouse=True)
def no_openvino(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pipelines bring their own tokenizers, and looking for a recipe for each would take most of the time."""
    monkeypatch.setitem(sys.modules, "openvino_tokenizers", None)


@pytest.mark.parametrize("name", DENOISERS)
def test_dense_bundles_keep_the_image_and_a_planned_one_changes_it(name: str, tmp_path: Path) -> None:
    tinies = PIPELINES[name].encoders
    models = {slot: tiny.make_encoder(seed) for seed, (slot, tiny) in enumerate(tinies.items())}
    bundles = {}
    for slot, model in models.items():
        model.save_pretrained(tmp_path / slot)
        tinies[slot].make_tokenizer().save_pretrained(tmp_path / slot)
        bundles[slot] = export(tmp_path / slot, f"{name}/{slot}")
    slot = [*tinies][-1]
    planned = export(tmp_path / slot, f"{name}/{slot}", one_less(tinies[slot]))

    expected = image(name, models)
    dense = {slot: load_text_encoder(bundle) for slot, bundle in bundles.items()}
    assert difference(image(name, dense), expected) < SAME
    assert difference(image(name, {**dense, slot: load_text_encoder(planned)}), expected) > OTHER


def export(checkpoint: Path, pipeline: str, plan: Plan | None = None) -> Path:
    output = checkpoint.with_suffix(".dense" if plan is None else ".planned")
    return export_checkpoint(checkpoint, output, ExportOptions(pipeline=pipeline, plan=plan)).bundle.directory


def one_less(tiny: Tiny) -> Plan:
    """The encoder without its first feed-forward."""
    family, layers = tiny.definition.family, tiny.definition.num_layers
    return Plan(family, ((0, None), *((layer, layer) for layer in range(1, layers))))


def image(name: str, encoders: Mapping[str, Any]) -> np.ndarray:
    """What the pipeline makes of a prompt in two steps."""
    pipe = PIPELINES[name].make({**parts(name), **encoders})
    pipe.set_progress_bar_config(disable=True)
    options = {"height": 16, "width": 16, "generator": torch.Generator().manual_seed(0), **DENOISERS[name].call}
    return np.asarray(pipe(prompt="A red fox", num_inference_steps=2, output_type="np", **options)[0])


def difference(one: np.ndarray, other: np.ndarray) -> float:
    """The largest of a pixel."""
    assert one.shape == other.shape
    assert one.std() > 0.1
    return float(np.abs(one - other).max())
