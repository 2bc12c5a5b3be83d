"""Rotary position embeddings, with the frequencies that transformers' `modeling_rope_utils` computes.

The frequencies depend on the configuration alone, so they are computed here, once and by transformers' own operations
in fp32, whose rounding decides the last bits; a graph holds them as a constant.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from skrr_export.encoders.base import positive_int
from skrr_export.encoders.decoder.reading import positive_number
from skrr_export.errors import CheckpointError

ORIGINAL_LENGTH = "original_max_position_embeddings"


@dataclass(frozen=True, slots=True)
class Rope:
    """How much each pair of a head's features turns from one position to the next."""

    frequencies: tuple[float, ...]
    """Radians a token, fp32. The head's other features do not turn."""
    scale: float = 1.0
    """What cosines and sines are multiplied by."""
    interleaved: bool = False
    """Whether a pair are neighbours, or as far apart as there are pairs."""
    max_length: int | None = None
    """Tokens up to which the frequencies hold; `None`: any number."""

    @property
    def width(self) -> int:
        """How many features of a head turn."""
        return 2 * len(self.frequencies)

    def table(self, like: Tensor) -> Tensor:
        """Cosines and sines by position and feature, `[2, sequence, features]`, for `[batch, sequence, ...]`."""
        position = torch.arange(like.shape[1], device=like.device).float()
        # Number by number: only so is it a constant in a trace on the meta device, where tensors have no values.
        frequency = torch.stack([position.new_full((), value) for value in self.frequencies])
        angle = position[:, None] * frequency
        angle = angle.repeat_interleave(2, dim=-1) if self.interleaved else torch.cat((angle, angle), dim=-1)
        return (torch.stack((angle.cos(), angle.sin())) * self.scale).to(like.dtype)

    def turn(self, heads: Tensor, table: Tensor) -> Tensor:
        """Queries or keys `[batch, heads, sequence, size]` turned by this embedding's table, or by one as wide."""
        cosine, sine = table[0], table[1]
        turned, rest = heads[..., : self.width], heads[..., self.width :]
        if self.interleaved:
            crossed = torch.stack((-turned[..., 1::2], turned[..., ::2]), dim=-1).flatten(-2)
        else:
            half = self.width // 2
            crossed = torch.cat((-turned[..., half:], turned[..., :half]), dim=-1)
        turned = turned * cosine + crossed * sine
        return turned if self.width == heads.shape[-1] else torch.cat((turned, rest), dim=-1)


def read_rope(
    parameters: Mapping[str, Any], config: Mapping[str, Any], size: int, theta: float, *, interleaved: bool = False
) -> Rope:
    """Make the frequencies that a configuration asks for.

    Args:
        parameters: its `rope_parameters`, or `rope_scaling` in older ones.
        config: the rest of it.
        size: how many features of a head turn.
        theta: the base wavelength where `parameters` give none.
        interleaved: see `Rope`.

    Raises:
        CheckpointError: a value is malformed, or the kind is not supported.
    """
    if size < 2 or size % 2:
        raise CheckpointError(f"config.json: a rotary embedding turns pairs of features, not {size} of a head's")
    if any(isinstance(value, Mapping) for value in parameters.values()):
        raise CheckpointError("config.json: this model has one rotary embedding, not one by layer type")
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if not isinstance(kind, str) or kind not in _KINDS:
        raise CheckpointError(f"config.json: unsupported rope_type {kind!r}; supported: {', '.join(_KINDS)}")
    lengths = ("max_position_embeddings", ORIGINAL_LENGTH)  # what is said beside the parameters takes precedence
    beside = {key: config[key] for key in lengths if config.get(key) is not None}
    parameters = {"rope_theta": theta, **parameters, **beside}
    if positive_number(parameters, "rope_theta") <= 1:
        raise CheckpointError(f"config.json: 'rope_theta' must be above 1, not {parameters['rope_theta']}")
    frequencies, scale = _KINDS[kind](parameters, size)
    # A dynamic base is the plain one up to here; from here on it would follow the length of the prompt.
    max_length = positive_int(parameters, "max_position_embeddings") if kind == "dynamic" else None
    return Rope(tuple(frequencies.tolist()), scale, interleaved, max_length)


def _wavelengths(parameters: Mapping[str, Any], size: int) -> Tensor:
    exponent = torch.arange(0, size, 2, dtype=torch.float, device="cpu") / size
    return torch.pow(positive_number(parameters, "rope_theta"), exponent)


def _default(parameters: Mapping[str, Any], size: int) -> tuple[Tensor, float]:
    return 1.0 / _wavelengths(parameters, size), 1.0


def _linear(parameters: Mapping[str, Any], size: int) -> tuple[Tensor, float]:
    return 1.0 / _wavelengths(parameters, size) / positive_number(parameters, "factor"), 1.0


def _llama3(parameters: Mapping[str, Any], size: int) -> tuple[Tensor, float]:
    factor = positive_number(parameters, "factor")
    low, high = positive_number(parameters, "low_freq_factor"), positive_number(parameters, "high_freq_factor")
    if low == high:
        raise CheckpointError("config.json: 'low_freq_factor' and 'high_freq_factor' must differ")
    length = _original_length(parameters)
    frequency = 1.0 / _wavelengths(parameters, size)
    wavelength = 2 * math.pi / frequency
    scaled = torch.where(wavelength > length / low, frequency / factor, frequency)
    smooth = (length / wavelength - low) / (high - low)
    between = ~(wavelength < length / high) & ~(wavelength > length / low)
    return torch.where(between, (1 - smooth) * scaled / factor + smooth * scaled, scaled), 1.0


def _yarn(parameters: Mapping[str, Any], size: int) -> tuple[Tensor, float]:
    length = _original_length(parameters)
    if parameters.get("factor") is None:
        parameters = {**parameters, "factor": positive_int(parameters, "max_position_embeddings") / length}
    factor, theta = positive_number(parameters, "factor"), positive_number(parameters, "rope_theta")

    def dimension(rotations: float) -> float:
        return size * math.log(length / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    low = dimension(positive_number(parameters, "beta_fast", 32))
    high = dimension(positive_number(parameters, "beta_slow", 1))
    if parameters.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, size - 1)
    wavelength = _wavelengths(parameters, size)
    ramp = (torch.arange(size // 2, dtype=torch.float, device="cpu") - low) / (high - low if high != low else 0.001)
    kept = 1 - ramp.clamp(0, 1)
    frequency = 1.0 / (factor * wavelength) * (1 - kept) + 1.0 / wavelength * kept
    return frequency, _yarn_scale(parameters, factor)


def _yarn_scale(parameters: Mapping[str, Any], factor: float) -> float:
    def grown(scale: float) -> float:
        return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0

    if parameters.get("attention_factor") is not None:
        return float(positive_number(parameters, "attention_factor"))
    if parameters.get("mscale") and parameters.get("mscale_all_dim"):
        return grown(positive_number(parameters, "mscale")) / grown(positive_number(parameters, "mscale_all_dim"))
    return grown(1.0)


_KINDS: dict[str, Callable[[Mapping[str, Any], int], tuple[Tensor, float]]] = {
    "default": _default,
    "linear": _linear,
    "llama3": _llama3,
    "yarn": _yarn,
    "dynamic": _default,
}
"""By `rope_type`; the others of transformers choose their frequencies by the length of the prompt, or by more axes."""


def _original_length(parameters: Mapping[str, Any]) -> int:
    """Tokens that a model was trained on before it was extended."""
    given = parameters.get(ORIGINAL_LENGTH) is not None
    return positive_int(parameters, ORIGINAL_LENGTH if given else "max_position_embeddings")
