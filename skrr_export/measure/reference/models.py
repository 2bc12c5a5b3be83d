"""The model of `transformers` that is an encoder, from a checkpoint or from a bundle."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from pathlib import Path
from typing import Any

import torch

from skrr_export.bundle import Bundle
from skrr_export.checkpoint import open_checkpoint
from skrr_export.dtypes import READABLE
from skrr_export.errors import CheckpointError
from skrr_export.outputs import Output
from skrr_export.tensorfile import PAD_PREFIX

_VISION = ("visual", "vision_tower", "multi_modal_projector")
"""What models of text and images have beside their `language_model`."""
_SMALLEST = {
    "num_hidden_layers": 0,
    "depth": 0,
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_attention_heads": 1,
    "num_heads": 1,
    "head_dim": 8,
}
"""Of the configuration of an encoder of images, the keys that decide its size; families differ in theirs."""


def model_class(bundle: Bundle) -> Any:
    """The class by which transformers runs a bundle's encoder; imports it.

    Raises:
        CheckpointError: there is none that we know.
    """
    return _class_for(_config(bundle.directory), bundle.manifest.pipeline.outputs)


def from_checkpoint(
    directory: Path, outputs: Sequence[Output], *, dtype: torch.dtype | None = None, **options: Any
) -> Any:
    """Load the encoder that a checkpoint holds.

    Args:
        directory: of the checkpoint.
        outputs: what is read of it.
        dtype: precision of the weights; `None`: the one they are stored in.
        options: of `from_pretrained`.

    Raises:
        CheckpointError: transformers cannot load it.
    """
    try:
        config = _config(directory)
        stored = _stored_dtype(directory) if dtype is None else dtype
        loaded = _class_for(config, outputs).from_pretrained(directory, config=config, dtype=stored, **options)
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"transformers cannot load {directory}: {error}") from error
    return _prepared(loaded)


def from_bundle(bundle: Bundle, **options: Any) -> Any:
    """Load the encoder from a bundle's own weights.

    Tensors that no position uses are missing: transformers makes them up, and the plan never runs them.
    """
    from safetensors.torch import load_file

    config = _config(bundle.directory)
    if (vision := getattr(config, "vision_config", None)) is not None:
        for key in _SMALLEST.keys() & vision.to_dict().keys():
            setattr(vision, key, _SMALLEST[key])
    model_type = _class_for(config, bundle.manifest.pipeline.outputs)
    state = {name: value for name, value in load_file(bundle.weights).items() if not name.startswith(PAD_PREFIX)}
    dtype = bundle.manifest.dtype.torch
    return _prepared(model_type.from_pretrained(None, config=config, state_dict=state, dtype=dtype, **options))


def text_model(model: Any) -> Any:
    """The part of a model that has the layers; of most it is the whole."""
    for name in ("language_model", "text_model"):
        model = getattr(model, name, model)
    return model


def _config(directory: Path) -> Any:
    import transformers

    logging: Any = transformers.logging
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    config = transformers.AutoConfig.from_pretrained(directory)
    if config.model_type != "clip":
        return config
    text = config.text_config  # whose half of a CLIP is a model of its own, and the width of its projection is not
    text.projection_dim = config.projection_dim
    return text


def _class_for(config: Any, outputs: Sequence[Output]) -> Any:
    import transformers

    projected = any(output.kind == "text_embeds" for output in outputs)
    encoders = {
        "t5": "T5EncoderModel",
        "umt5": "UMT5EncoderModel",
        "clip_text_model": "CLIPTextModelWithProjection" if projected else "CLIPTextModel",
    }
    if config.model_type in encoders:
        return getattr(transformers, encoders[config.model_type])
    try:
        return transformers.MODEL_MAPPING[type(config)]  # without a head
    except KeyError as error:
        raise CheckpointError(f"no reference for the architecture '{config.model_type}'") from error


def _stored_dtype(directory: Path) -> torch.dtype:
    """The precision that holds every weight as it is stored; `config.json` often names another."""
    codes = {tensor.code for tensor in open_checkpoint(directory).tensors.values()}
    stored = [READABLE[code].torch for code in codes & READABLE.keys()]
    return reduce(torch.promote_types, stored) if stored else torch.float32


def _prepared(model: Any) -> Any:
    """Leave out what no text comes by, and the cache of keys and values, which goes by a layer's number."""
    for name in _VISION:
        if hasattr(model, name):
            setattr(model, name, None)
    for part in (model, text_model(model)):
        part.config.use_cache = False
    return model
