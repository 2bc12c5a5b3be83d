"""A session that runs a model of `transformers` in place of a bundle's graph, and gives what an export would."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from skrr_export.bundle import Bundle
from skrr_export.dtypes import FP32
from skrr_export.manifest import Manifest, OutputEntry
from skrr_export.pipelines import find_preset
from skrr_export.plan import Plan
from skrr_export.targets.base import Arrays, Ids, Session
from tests.pipelines.encoders import Tiny


class ModelSession(Session):
    """Gives the outputs that a pipeline's preset names, of the very model that the pipeline would run."""

    def __init__(self, directory: Path, tiny: Tiny, model: Any, preset: str) -> None:
        """Lay the configuration out as a bundle does."""
        model.config.architectures = [type(model).__name__]
        model.config.save_pretrained(directory)
        super().__init__(Bundle(directory, _manifest(tiny, model, preset)), FP32)
        self._model = model

    def _run(self, feed: Mapping[str, Ids]) -> Arrays:
        inputs = {name: torch.from_numpy(array) for name, array in feed.items()}
        with torch.inference_mode():
            given = self._model(**inputs, output_hidden_states=True)
        return {entry.output.name: _value(given, entry).numpy().copy() for entry in self.bundle.manifest.outputs}


def _value(given: Any, entry: OutputEntry) -> torch.Tensor:
    output = entry.output
    if output.kind != "hidden_states":
        return given[output.kind]
    states = [given.hidden_states[layer] for layer in output.layers]
    return torch.stack(states, dim=1) if output.join == "stack" else torch.cat(states, dim=-1)


def _manifest(tiny: Tiny, model: Any, pipeline: str) -> Manifest:
    encoder = tiny.definition
    preset = find_preset(pipeline, encoder).resolve(tiny.make_tokenizer())
    config = model.config.get_text_config()
    widths = {"text_embeds": getattr(config, "projection_dim", None)}
    return Manifest(
        family=encoder.family,
        num_layers=encoder.num_layers,
        hidden_size=config.hidden_size,
        vocab_size=config.vocab_size,
        max_length=encoder.max_length,
        plan=Plan.identity(encoder.family, encoder.num_layers),
        pipeline=preset,
        dtype=FP32,
        batch=None,
        sequence=None,
        outputs=tuple(OutputEntry(output, widths.get(output.kind) or config.hidden_size) for output in preset.outputs),
        total_parameters=1,
        kept_parameters=1,
        targets={},
        files={},
    )
