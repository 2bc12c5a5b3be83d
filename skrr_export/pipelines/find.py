"""The preset for an encoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from skrr_export.errors import InputError
from skrr_export.pipelines.preset import Preset
from skrr_export.pipelines.presets import PRESETS

if TYPE_CHECKING:
    from skrr_export.encoders import Encoder


def pipeline_names() -> list[str]:
    """The pipelines that there are presets for."""
    return list(dict.fromkeys(preset.name for preset in PRESETS.values()))


def pipeline_encoders(name: str) -> tuple[str, ...]:
    """The slots of a pipeline's text encoders, which are their folders' names.

    Raises:
        InputError: there is no such pipeline, or it is nobody's.
    """
    slots = tuple(preset.encoder for preset in _named(name) if preset.encoder is not None)
    if not slots:
        raise InputError(f"pipeline '{name}' names no encoders, so it exports one at a time: use --subfolder")
    return slots


def find_preset(name: str, encoder: Encoder, slot: str | None = None) -> Preset:
    """Look the preset of an encoder up.

    Args:
        name: of a pipeline, as `sdxl`, or of one encoder of it, as `sdxl/text_encoder_2`.
        encoder: what is fed.
        slot: where in its pipeline the encoder lies, if that is known, as its sub-folder's name; decides between
            encoders of a pipeline that are alike.

    Returns:
        The preset, with the layers of its outputs counted from the start, and no longer than the encoder takes.

    Raises:
        InputError: there is no such preset, or none that suits the encoder, or several.
    """
    named = _named(name)
    reasons = [_misfit(preset, encoder) for preset in named]
    fitting = [preset for preset, reason in zip(named, reasons, strict=True) if reason is None]
    if not fitting:
        raise InputError(_refusal(name, named, [reason for reason in reasons if reason is not None], encoder))
    chosen = fitting if len(fitting) == 1 else [preset for preset in fitting if preset.encoder == slot]
    if not chosen:
        slots = ", ".join(f"{preset.name}/{preset.encoder}" for preset in fitting)
        raise InputError(f"pipeline '{name}' feeds several encoders like this one; give one of {slots}")
    return _shortened(chosen[0], encoder)


def _named(name: str) -> list[Preset]:
    pipeline, _, slot = name.partition("/")
    found = [preset for preset in PRESETS.values() if preset.name == pipeline]
    if not found:
        raise InputError(f"unknown pipeline '{name}'; known: {', '.join(pipeline_names())}")
    if pipeline == name:
        return found
    slots = [preset.encoder for preset in found if preset.encoder is not None]
    if slot not in slots:
        has = f"it has {', '.join(slots)}" if slots else "it names no encoder"
        raise InputError(f"pipeline '{pipeline}' has no encoder '{slot}'; {has}")
    return [preset for preset in found if preset.encoder == slot]


def _misfit(preset: Preset, encoder: Encoder) -> str | None:
    """Why a preset does not suit an encoder of a family that it feeds; "" where it feeds others."""
    if preset.families is not None and encoder.family not in preset.families:
        return ""
    for output in preset.outputs:
        if output.kind not in encoder.kinds:
            return f"takes {output.kind} of its encoder; this one gives {', '.join(encoder.kinds)}"
        try:
            output.resolve(encoder.num_layers)
        except InputError as error:
            return f"does not suit this encoder: {error}"
    return None


def _refusal(name: str, named: Sequence[Preset], reasons: Sequence[str], encoder: Encoder) -> str:
    closest = next((reason for reason in reasons if reason), None)
    if closest is not None:
        return f"pipeline '{name}' {closest}"
    families = dict.fromkeys(family for preset in named for family in preset.families or ())
    return f"pipeline '{name}' feeds a {' or '.join(families)} encoder; this one is {encoder.family}"


def _shortened(preset: Preset, encoder: Encoder) -> Preset:
    """The preset for an encoder of this depth and longest sequence."""
    preset = replace(preset, outputs=tuple(output.resolve(encoder.num_layers) for output in preset.outputs))
    longest = encoder.max_length
    if longest is None or preset.max_length <= longest:
        return preset
    if preset.padding == "max_length" or longest < preset.multiple_of:
        raise InputError(f"pipeline '{preset.name}' feeds {preset.max_length} tokens; this encoder takes {longest}")
    return replace(preset, max_length=longest - longest % preset.multiple_of)
