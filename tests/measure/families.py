"""A tiny checkpoint of every family, what transformers makes of it, and bundles that give any of its outputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from skrr_export.bundle import Bundle
from skrr_export.dtypes import FP32
from skrr_export.encoders import bundle_encoder
from skrr_export.encoders.module import FunctionalEncoder
from skrr_export.outputs import LAST, Output
from skrr_export.pipelines import Preset
from skrr_export.plan import Plan
from skrr_export.targets.base import Arrays, Ids, Session
from tests import bundles, reference
from tests.bundles import soften
from tests.checkpoints import bert_checkpoint, t5_checkpoint
from tests.families import clip, decoders
from tests.families.clip import clip_checkpoint
from tests.families.decoders import FAMILIES, decoder_checkpoint
from tests.reference import Sources


@dataclass(frozen=True)
class Kind:
    """A kind of checkpoint."""

    family: str
    save: Callable[..., Path]
    """Given a directory, `layers`, `dtype` and `tokenizer`."""
    encode: Callable[..., np.ndarray]
    """The truth: given the checkpoint, the sources, ids, mask, an output's name and `rounded_to`."""
    pooled: Output | None = None


def _softened(directory: Path, **options: Any) -> Path:
    return soften(t5_checkpoint(directory, **options))


def _decoder(model_type: str, **options: Any) -> Kind:
    def save(directory: Path, **others: Any) -> Path:
        return decoder_checkpoint(directory, model_type, **options, **others)

    return Kind(FAMILIES[model_type], save, decoders.encode)


KINDS = {
    "t5": Kind("t5", _softened, reference.encode),
    "umt5": Kind("umt5", partial(_softened, umt5=True), reference.encode),
    "bert": Kind("bert", bert_checkpoint, reference.encode),
    "clip": Kind("clip", clip_checkpoint, clip.encode, Output("text_embeds")),
    "clip, no projection": Kind(
        "clip", partial(clip_checkpoint, projection=False), clip.encode, Output("pooler_output")
    ),
    "clip, whole": Kind("clip", partial(clip_checkpoint, whole=True), clip.encode, Output("text_embeds")),
    "llama, with a head": _decoder("llama", head=True),
    "mistral": _decoder("mistral"),
    "mistral3, with a head": _decoder("mistral3", head=True),
    "qwen2": _decoder("qwen2"),
    "qwen2_5_vl, with a head": _decoder("qwen2_5_vl", head=True),
    "qwen3": _decoder("qwen3"),
    "gemma2": _decoder("gemma2"),
    "gemma3": _decoder("gemma3"),
    "glm": _decoder("glm"),
}
"""All kinds, by name."""


def choose_outputs(kind: Kind, layers: int, random: np.random.Generator) -> tuple[Output, ...]:
    """One output per token, or one pooled, or both."""
    chosen = sorted(random.choice(layers + 1, 2, replace=False).tolist())
    per_token = (
        LAST,
        Output("hidden_states", (int(random.integers(layers + 1)),)),
        Output("hidden_states", tuple(chosen), "stack"),
        Output("hidden_states", tuple(chosen), "concatenate"),
    )[random.integers(4)]
    if kind.pooled is None:
        return (per_token,)
    return ((per_token,), (per_token, kind.pooled), (kind.pooled,))[random.integers(3)]


def export(
    kind: Kind,
    checkpoint: Path,
    directory: Path,
    outputs: Sequence[Output] = (LAST,),
    sources: Sources | None = None,
    **options: Any,
) -> Bundle:
    """Export a checkpoint; options that are a preset's go into the preset."""
    fields = {key: options.pop(key) for key in Preset.__dataclass_fields__ if key in options}
    usual = {"name": "test", "max_length": 60, "padding": "longest", "masked": True, "reads_padding": False}
    preset = Preset(**{**usual, "outputs": tuple(outputs), **fields})
    plan = None if sources is None else Plan(kind.family, tuple(sources))
    return bundles.export(checkpoint, directory, plan=plan, preset=preset, **options)


def true_output(
    kind: Kind,
    checkpoint: Path,
    sources: Sources | None,
    inputs: tuple[Ids, Ids | None],
    output: Output,
    **more: Any,
) -> np.ndarray:
    """What transformers gives under the plan for ids and mask, joined by hand."""
    encode = partial(kind.encode, checkpoint, sources, *inputs, **more)
    if not output.layers:
        return encode(output.kind)
    states = [encode(f"hidden_states.{layer}") for layer in output.layers]
    return np.stack(states, axis=1) if output.join == "stack" else np.concatenate(states, axis=-1)


class TorchSession(Session):
    """A bundle's own weights, run by torch in fp32, without a graph: tracing one takes seconds."""

    def __init__(self, bundle: Bundle, **changes: Any) -> None:
        """Open a bundle; changes are of the encoder's definition, and make it a wrong one."""
        super().__init__(bundle, FP32)
        plan, preset = bundle.manifest.plan, bundle.manifest.pipeline
        encoder: Any = bundle_encoder(bundle)
        self._module = FunctionalEncoder(replace(encoder, **changes), plan, preset.outputs, masked=preset.masked)
        self._weights = {name: value.float() for name, value in load_file(bundle.weights).items()}

    @torch.inference_mode()
    def _run(self, feed: Any) -> Arrays:
        outputs = self._module(self._weights, *(torch.from_numpy(value) for value in feed.values()))
        return {name: value.numpy() for name, value in outputs.items()}


class DisturbedSession(Session):
    """Another session, whose outputs are changed in place."""

    def __init__(self, session: Session, change: Callable[[Ids, dict[str, np.ndarray]], None]) -> None:
        super().__init__(session.bundle, session.computes_in)
        self.notes = session.notes
        self._session, self._change = session, change

    def _run(self, feed: Any) -> Arrays:
        outputs = {name: values.copy() for name, values in self._session._run(feed).items()}
        self._change(feed["input_ids"], outputs)
        return outputs
