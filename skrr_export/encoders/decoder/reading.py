"""What the `config.json` of a language model says, in the forms that releases of transformers have given it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from skrr_export.encoders.base import positive_int
from skrr_export.errors import CheckpointError

LANGUAGE_PARTS = {"gemma3": "gemma3_text", "mistral3": "mistral", "qwen2_5_vl": "qwen2_5_vl_text"}
"""The `model_type` of the language part, by that of a model that sees images too."""
FULL, SLIDING = "full_attention", "sliding_attention"
"""What `layer_types` may say of a layer."""


def language_part(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of a configuration that is the language model's; all of it, where there is nothing else.

    Raises:
        CheckpointError: there is no such part, or it is not one that we support.
    """
    whole, part = config, config.get("text_config")
    expected = LANGUAGE_PARTS.get(str(config.get("model_type")))
    if expected is not None and (part is not None or expected != "qwen2_5_vl_text"):  # which used to be written flat
        config = {"model_type": expected, **mapping(part, "text_config")}
        if config["model_type"] != expected:
            raise CheckpointError(
                f"config.json: a {whole['model_type']} whose language model is {config['model_type']!r} is not "
                f"supported, only one with {expected}"
            )
    if whole.get("quantization_config") or config.get("quantization_config"):
        raise CheckpointError("config.json: quantised weights are not supported; give the checkpoint they were made of")
    if config.get("use_bidirectional_attention") or config.get("is_causal") is False:
        raise CheckpointError("config.json: bidirectional attention is not supported, only causal")
    if any(config.get(key) for key in ("num_experts", "num_local_experts", "n_routed_experts")):
        raise CheckpointError("config.json: mixtures of experts are not supported")
    return config


def rope_parameters(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The parameters of a model's one rotary embedding; as `rope_scaling`, their early name, they take precedence.

    Raises:
        CheckpointError: they are malformed.
    """
    parameters = config.get("rope_scaling") or config.get("rope_parameters") or {}
    return mapping(parameters, "rope_parameters")


def mapping(value: Any, key: str) -> Mapping[str, Any]:
    """An object out of `config.json`.

    Raises:
        CheckpointError: it is none.
    """
    if not isinstance(value, Mapping):
        raise CheckpointError(f"config.json: '{key}' must be an object, not {value!r}")
    return value


def windows(config: Mapping[str, Any], window: int | None, slides: Callable[[int], bool]) -> tuple[int | None, ...]:
    """By layer, how far its attention looks back.

    Args:
        config: says which layers have a window, perhaps.
        window: its size.
        slides: which layers have one if the configuration does not say.

    Raises:
        CheckpointError: `layer_types` is malformed.
    """
    num_layers = positive_int(config, "num_hidden_layers")
    types = config.get("layer_types")
    if types is None:
        types = [SLIDING if slides(layer) else FULL for layer in range(num_layers)]
    if not isinstance(types, list) or len(types) != num_layers or not all(each in (FULL, SLIDING) for each in types):
        raise CheckpointError(f"config.json: 'layer_types' must say {FULL} or {SLIDING} of each layer, not {types!r}")
    if window is None and SLIDING in types:
        raise CheckpointError("config.json: some layers have a sliding window, and 'sliding_window' gives no size")
    return tuple(window if each == SLIDING else None for each in types)


def flag(config: Mapping[str, Any], key: str) -> bool:
    """A switch from `config.json`; off where it is missing.

    Raises:
        CheckpointError: it is neither true nor false.
    """
    value = config.get(key)
    if value not in (None, False, True):
        raise CheckpointError(f"config.json: '{key}' must be true or false, not {value!r}")
    return bool(value)


def positive_number(config: Mapping[str, Any], key: str, default: float | None = None) -> float:
    """A number from `config.json`.

    Raises:
        CheckpointError: it is missing and has no default, or is not positive, or beyond reason.
    """
    value = config.get(key)
    if value is None:
        value = default
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e18:
        raise CheckpointError(f"config.json: '{key}' must be a positive number, not {value!r}")
    return value
