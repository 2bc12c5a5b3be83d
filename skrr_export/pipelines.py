"""Presets: what a diffusion pipeline feeds its text encoder, and what it reads of the result.

Facts from the diffusers pipelines of the same names. FLUX.1, SD3 and CogVideoX pad to the full length and pass no
mask: the encoder attends to padding and the denoiser reads it, so an export that masked it would change every image.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

from skrr_export.errors import BundleError, InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """How one pipeline calls one encoder."""

    name: str
    max_length: int
    """Tokens a prompt is truncated to."""
    padding: Literal["longest", "max_length"]
    """Pad to the longest prompt of the batch, or always to `max_length`."""
    masked: bool
    """Whether the attention mask reaches the encoder."""
    reads_padding: bool
    """Whether the denoiser reads the rows of padding."""
    lowercase: bool = False
    """Whether prompts are lower-cased and stripped first."""
    families: tuple[str, ...] | None = None
    """Families the preset is for; `None`: any."""

    def prepare(self, prompt: str) -> str:
        """The prompt as the tokenizer gets it."""
        return prompt.lower().strip() if self.lowercase else prompt

    def to_dict(self) -> dict[str, Any]:
        """The preset as the manifest holds it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Preset:
        """Read a preset from a manifest.

        Raises:
            BundleError: it is malformed.
        """
        try:
            _check(document)
            values = {field.name: document[field.name] for field in fields(cls)}  # a later release may know more
            families = document["families"]
            return cls(**{**values, "families": None if families is None else tuple(families)})
        except (KeyError, TypeError, ValueError) as error:
            raise BundleError(f"the manifest's pipeline is malformed: {error}") from error


def _check(document: Mapping[str, Any]) -> None:
    kinds = {"name": str, "max_length": int, "masked": bool, "reads_padding": bool, "lowercase": bool}
    for key, kind in kinds.items():
        if type(document[key]) is not kind:
            raise TypeError(f"{key} must not be {document[key]!r}")
    if document["max_length"] < 1:
        raise ValueError(f"max_length must not be {document['max_length']}")
    if document["padding"] not in ("longest", "max_length"):
        raise ValueError(f"padding must not be {document['padding']!r}")
    families = document["families"]
    if families is not None and not (isinstance(families, list) and all(type(name) is str for name in families)):
        raise TypeError(f"families must not be {families!r}")


PRESETS: Mapping[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset(name="plain", max_length=512, padding="longest", masked=True, reads_padding=False),
        Preset(name="flux.1", max_length=512, padding="max_length", masked=False, reads_padding=True, families=("t5",)),
        Preset(name="sd3", max_length=256, padding="max_length", masked=False, reads_padding=True, families=("t5",)),
        # diffusers also strips HTML and the like from PixArt prompts when bs4 and ftfy are installed; do that first.
        Preset(
            name="pixart-sigma",
            max_length=300,
            padding="max_length",
            masked=True,
            reads_padding=False,
            lowercase=True,
            families=("t5",),
        ),
        Preset(
            name="pixart-alpha",
            max_length=120,
            padding="max_length",
            masked=True,
            reads_padding=False,
            lowercase=True,
            families=("t5",),
        ),
        Preset(
            name="cogvideox",
            max_length=226,
            padding="max_length",
            masked=False,
            reads_padding=True,
            families=("t5",),
        ),
        # The encoder attends to padding, the denoiser masks it.
        Preset(
            name="ltx-video",
            max_length=128,
            padding="max_length",
            masked=False,
            reads_padding=False,
            families=("t5",),
        ),
    )
}


def find_preset(name: str, family: str, max_length: int | None) -> Preset:
    """Look a preset up for an encoder.

    Args:
        name: of the preset.
        family: of the encoder.
        max_length: longest sequence the encoder can take, in tokens.

    Raises:
        InputError: there is no such preset, or it does not suit the encoder.
    """
    if name not in PRESETS:
        raise InputError(f"unknown pipeline '{name}'; known: {', '.join(PRESETS)}")
    found = PRESETS[name]
    if found.families is not None and family not in found.families:
        raise InputError(f"pipeline '{name}' feeds a {' or '.join(found.families)} encoder; this one is {family}")
    if max_length is not None and max_length < found.max_length:
        if found.padding == "max_length":
            raise InputError(f"pipeline '{name}' feeds {found.max_length} tokens; this encoder takes {max_length}")
        return replace(found, max_length=max_length)
    return found
