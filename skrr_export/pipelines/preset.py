"""What a preset is: how one pipeline of diffusers feeds one of its text encoders, and what it makes of the result."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

from skrr_export.errors import BundleError, InputError
from skrr_export.outputs import LAST, Output
from skrr_export.pipelines.chat import Chat
from skrr_export.pipelines.cleaning import clean_caption, clean_text, cleans_captions

UNRESOLVED = ("chat", "prefix_on_top")
"""Fields that mean nothing without a tokenizer; `Preset.resolve` works them into others, and no manifest has them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """How one pipeline calls one encoder.

    The fields stand in the order in which they act: on the prompt, at the tokenizer, at the encoder, on its output.
    """

    name: str
    """Of the pipeline."""
    encoder: str | None = None
    """The encoder's slot in the pipeline, such as `text_encoder_2`; `None` where there is no pipeline."""
    families: tuple[str, ...] | None = None
    """Families the preset is for; `None`: any."""

    clean: Literal["caption", "text"] | None = None
    """How the prompt is cleaned: by diffusers' `_clean_caption`, twice, or by Wan's `prompt_clean`."""
    lowercase: bool = False
    """Whether prompts that are not cleaned are lower-cased and stripped; those to be cleaned are so where a library for
    it is missing."""
    removed: tuple[str, ...] = ()
    """What is taken out of the prompt, in this order."""
    prefix: str = ""
    """Text before the prompt, tokenised with it."""
    suffix: str = ""
    """Text after it."""
    chat: Chat | None = None
    """The tokenizer's chat template makes `prefix` and `suffix`."""
    special_tokens: bool = True
    """Whether the tokenizer adds its own, such as a beginning or an end."""

    max_length: int
    """Tokens a prompt is truncated to, all that stands around it included."""
    padding: Literal["longest", "max_length"]
    """Pad to the longest prompt of the batch, or always to `max_length`."""
    multiple_of: int = 1
    """Then the whole batch is padded on the left to a multiple of this."""
    padding_side: Literal["left", "right"] | None = None
    """Where the tokenizer pads; `None`: as it is set."""
    pad: Literal["eos"] | None = None
    """The token to pad with: its end token, or its own padding."""
    prefix_on_top: bool = False
    """Whether `max_length` and `crop` grow by the prefix's tokens less two, as Sana's do."""

    masked: bool
    """Whether the attention mask reaches the encoder."""
    outputs: tuple[Output, ...] = (LAST,)
    """What the pipeline takes of the encoder: one output per token, or one pooled, or both in this order."""

    crop: tuple[int, int] = (0, 0)
    """The rows from the first up to the second are left out of outputs per token, and of their mask; where rows are
    packed, they count from each prompt's first token."""
    max_rows: int | None = None
    """Rows that are kept after that, at most."""
    padding_rows: Literal["kept", "zeroed", "packed"] = "kept"
    """Rows of padding stay, or become zeros, or are taken out: those of tokens move to the left, and zeros fill up to
    the prompt with most."""
    reads_padding: bool
    """Whether what the encoder gives for padding reaches the denoiser."""
    extra_rows: int = 0
    """Rows of padding that the denoiser reads after those of tokens, where it reads no others."""

    unconditional: Literal["encoded", "bare", "zeros"] = "encoded"
    """Negative prompts are encoded like others, or without `prefix`, `suffix` and `crop`. Where there is none,
    `unconditional_text` is; with `zeros`, zeros take its place."""
    unconditional_text: str = ""
    """The negative prompt where there is none."""
    projection: tuple[str, ...] = ()
    """Parameters of the denoiser that read the outputs first."""

    def prepare(self, prompt: str) -> str:
        """The text that the tokenizer gets for a prompt.

        Raises:
            InputError: the prompt cannot be cleaned.
        """
        if self.clean == "caption" and cleans_captions():
            text = clean_caption(clean_caption(prompt))
        elif self.clean == "text":
            text = clean_text(prompt)
        else:
            text = prompt.lower().strip() if self.lowercase else prompt
        for removed in self.removed:
            text = text.replace(removed, "")
        return self.prefix + text + self.suffix

    @property
    def negative(self) -> Preset:
        """What is done with negative prompts."""
        if self.unconditional != "bare":
            return self
        begin, end = self.crop
        return replace(self, prefix="", suffix="", chat=None, crop=(0, 0), max_length=self.max_length - (end - begin))

    @property
    def resolved(self) -> bool:
        """Whether everything is known without the tokenizer."""
        return self.chat is None and not self.prefix_on_top

    def resolve(self, tokenizer: Any) -> Preset:
        """The same preset, with what depends on the tokenizer worked in.

        Args:
            tokenizer: of `transformers`.

        Raises:
            InputError: it has no chat template, or one that does not put the prompt unchanged between two texts.
        """
        preset = self
        if preset.chat is not None:
            prefix, suffix = preset.chat.render(tokenizer)
            preset = replace(preset, chat=None, prefix=prefix, suffix=suffix)
        if preset.prefix_on_top:
            more = len(tokenizer.encode(preset.prefix)) - 2  # not its beginning, and not the prompt's first
            if more < 0:
                raise InputError(f"the tokenizer makes nothing of the text before a prompt of '{preset.name}'")
            begin, end = preset.crop
            longer = preset.max_length + more
            preset = replace(preset, prefix_on_top=False, max_length=longer, crop=(begin, end + more))
        return preset

    def to_dict(self) -> dict[str, Any]:
        """The preset, resolved, as the manifest holds it."""
        assert self.resolved
        document = {key: value for key, value in asdict(self).items() if key not in UNRESOLVED}
        return {
            **{key: list(value) if isinstance(value, tuple) else value for key, value in document.items()},
            "outputs": [output.to_dict() for output in self.outputs],
        }

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Preset:
        """Read a preset from a manifest.

        Raises:
            BundleError: it is malformed.
        """
        try:
            for key, valid in _CHECKS.items():
                if not valid(document[key]):
                    raise ValueError(f"{key} must not be {document[key]!r}")
            names = [field.name for field in fields(cls) if field.name not in UNRESOLVED]
            values = {name: document[name] for name in names}  # a later release may know more
            values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
            return cls(**{**values, "outputs": tuple(Output.from_dict(output) for output in document["outputs"])})
        except (KeyError, TypeError, ValueError) as error:
            raise BundleError(f"the manifest's pipeline is malformed: {error}") from error


def _is(kind: type) -> Callable[[Any], bool]:
    return lambda value: type(value) is kind


def _one_of(*choices: str | None) -> Callable[[Any], bool]:
    return lambda value: value in choices and type(value) is not bool


def _optional(valid: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or valid(value)


def _at_least(least: int) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and value >= least


def _texts(value: Any) -> bool:
    return type(value) is list and all(type(text) is str for text in value)


def _range(value: Any) -> bool:
    return type(value) is list and len(value) == 2 and all(map(_at_least(0), value)) and value[0] <= value[1]


def _list(value: Any) -> bool:
    return type(value) is list and bool(value)


_CHECKS: Mapping[str, Callable[[Any], bool]] = {
    "name": _is(str),
    "encoder": _optional(_is(str)),
    "families": _optional(_texts),
    "clean": _one_of("caption", "text", None),
    "lowercase": _is(bool),
    "removed": _texts,
    "prefix": _is(str),
    "suffix": _is(str),
    "special_tokens": _is(bool),
    "max_length": _at_least(1),
    "padding": _one_of("longest", "max_length"),
    "multiple_of": _at_least(1),
    "padding_side": _one_of("left", "right", None),
    "pad": _one_of("eos", None),
    "masked": _is(bool),
    "outputs": _list,
    "crop": _range,
    "max_rows": _optional(_at_least(1)),
    "padding_rows": _one_of("kept", "zeroed", "packed"),
    "reads_padding": _is(bool),
    "extra_rows": _at_least(0),
    "unconditional": _one_of("encoded", "bare", "zeros"),
    "unconditional_text": _is(str),
    "projection": _texts,
}
"""What each field of a manifest's pipeline may hold."""
