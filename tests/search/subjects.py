"""The search's parts, put together on tiny checkpoints; and the kinds of pipelines there are, on short prompts."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from skrr_export import calibration
from skrr_export.calibration import Calibration, calibrate
from skrr_export.checkpoint import open_checkpoint
from skrr_export.encoders import parameter_shapes, recognise
from skrr_export.encoders.eager import EagerEncoder, Weights, unit_parameters
from skrr_export.outputs import LAST, Output
from skrr_export.pipelines import Preset
from skrr_export.plan import Plan
from skrr_export.search.activations import ActivationEngine
from skrr_export.search.discrepancy import Discrepancy
from skrr_export.search.journal import Journal
from skrr_export.search.space import Space
from skrr_export.search.workers import Workers
from skrr_export.tokenization import Tokenizer

CPU = torch.device("cpu")
ALONE = Workers(0, 1, CPU)
PLENTY = 1 << 30

PROMPTS = [
    "A red fox", "the sea at night, in winter", "x", "Seven small boats off a grey coast", "an old man", "dog",
    "two cats", "green hills under a sky of lead", "a", "portrait, oil on canvas", "moon", "rain on a tin roof",
]  # fmt: skip
"""Between 2 and 35 tokens of a byte-level tokenizer."""

CHUNK_TOKENS = (40, 100)
"""So small that the prompts make several chunks."""

KINDS = {
    preset.name: preset
    for preset in (
        Preset(name="masked", max_length=40, padding="longest", masked=True, reads_padding=False),
        Preset(
            name="masked, fixed", max_length=30, padding="max_length", masked=True, reads_padding=False, lowercase=True
        ),
        Preset(name="unmasked", max_length=20, padding="max_length", masked=False, reads_padding=True),
        Preset(name="read masked", max_length=20, padding="max_length", masked=False, reads_padding=False),
        Preset(name="masked, padding read", max_length=20, padding="max_length", masked=True, reads_padding=True),
    )
}
"""Every combination of what the encoder sees of padding and what the denoiser reads of it: FLUX.1 is `unmasked`,
LTX-Video `read masked`, PixArt `masked, fixed`."""
MASKED, UNMASKED = KINDS["masked"], KINDS["unmasked"]


def eager(
    checkpoint: Path, output: Output = LAST, *, masked: bool = True, budget_bytes: int = 0, **options: Any
) -> EagerEncoder:
    """A checkpoint run a sub-block at a time, in fp32; `output` counts layers from the start."""
    opened = open_checkpoint(checkpoint)
    weights = Weights(opened.tensors, CPU, torch.float32, budget_bytes=budget_bytes, **options)
    return EagerEncoder(recognise(opened), weights, CPU, masked=masked, outputs=[output])


def calibration_of(
    checkpoint: Path, preset: Preset, prompts: Sequence[str], chunk_tokens: tuple[int, int] = CHUNK_TOKENS
) -> Calibration:
    """The prompts in small chunks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calibration, "CHUNK_TOKENS", chunk_tokens)
        return calibrate(Tokenizer(checkpoint, checkpoint, preset), prompts)


@dataclass(frozen=True)
class Subject:
    """What a search works on."""

    space: Space
    engine: ActivationEngine
    discrepancy: Discrepancy


def subject(
    checkpoint: Path,
    preset: Preset = MASKED,
    prompts: Sequence[str] = PROMPTS,
    *,
    cache_bytes: int = PLENTY,
    workers: Any = ALONE,
    **options: Any,
) -> Subject:
    """Everything up to the discrepancy.

    Args:
        checkpoint: a checkpoint with a tokenizer.
        preset: how its pipeline calls it, and what it takes first.
        prompts: to calibrate on.
        cache_bytes: for hidden states.
        workers: that share the chunks.
        options: of the discrepancy.
    """
    definition = recognise(open_checkpoint(checkpoint))
    output = preset.outputs[0].resolve(definition.num_layers)
    chosen = calibration_of(checkpoint, preset, prompts)
    engine = ActivationEngine(
        eager(checkpoint, output, masked=preset.masked), (chosen.null, *chosen.chunks), cache_bytes
    )
    everything = parameter_shapes(definition, Plan.identity(definition.family, definition.num_layers))
    total = sum(math.prod(shape) for shape in everything.values())
    units = unit_parameters(definition)[: 2 * definition.depth([output])]
    space = Space(definition.family, definition.num_layers, units, total)
    return Subject(space, engine, Discrepancy(engine, workers, space.dense, **options))


def journal() -> Journal:
    """A journal without a file."""
    return Journal(None, {}, ALONE, resume=False)


def edit(checkpoint: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    """Change a checkpoint's weights, in place."""
    file = checkpoint / "model.safetensors"
    weights = load_file(file)
    change(weights)
    save_file({name: value.contiguous() for name, value in weights.items()}, file, metadata={"format": "pt"})
    return checkpoint


def relate(checkpoint: Path, own: float = 0.35) -> Path:
    """Make every layer resemble the first, as trained layers resemble their neighbours; in place.

    Between random layers there is hardly ever anything to re-use. `own` is the share of a layer's own weights.
    """

    def change(weights: dict[str, torch.Tensor]) -> None:
        for name in sorted(weights):
            first = re.sub(r"(block|layer)\.\d+\.", r"\1.0.", name, count=1)
            if first != name:
                weights[name] = own * weights[name] + (1 - own) * weights[first]

    return edit(checkpoint, change)


def linear(seed: int, inputs: int, outputs: int) -> tuple[np.ndarray, np.ndarray]:
    """Weight and bias of a projection."""
    random = np.random.default_rng(seed)
    return random.normal(size=(outputs, inputs)).astype(np.float32), random.normal(size=outputs).astype(np.float32)
