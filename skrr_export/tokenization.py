"""Prompts to token ids, as a pipeline does it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from skrr_export.bundle import Bundle
from skrr_export.errors import BundleError, InputError
from skrr_export.manifest import TOKENIZER
from skrr_export.pipelines import Preset
from skrr_export.pipelines.cleaning import note
from skrr_export.pipelines.rows import finish
from skrr_export.progress import Progress, silent

if TYPE_CHECKING:
    from skrr_export.targets.base import Arrays, Session

BATCH = 8
"""Prompts a call, where the bundle does not fix it."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """A tokenised batch."""

    input_ids: npt.NDArray[np.int64]
    """`[batch, sequence]`."""
    attention_mask: npt.NDArray[np.int64]
    """`[batch, sequence]`, 1 for tokens and 0 for padding, whether or not the encoder gets to see it."""


class Tokenizer:
    """A tokenizer that prepares, truncates and pads prompts as a pipeline does."""

    def __init__(self, directory: Path, config: Path, preset: Preset) -> None:
        """Load it.

        Args:
            directory: where the tokenizer's files lie.
            config: directory of the encoder's `config.json`, which decides the tokenizer's class where its own files
                do not.
            preset: what the pipeline does.

        Raises:
            InputError: it cannot be loaded, cannot pad, or has not the chat template that the pipeline needs.
        """
        import transformers

        try:
            model_config = transformers.AutoConfig.from_pretrained(config)
            self._tokenizer = transformers.AutoTokenizer.from_pretrained(directory, config=model_config)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"cannot load the tokenizer in {directory}: {error}") from error
        if preset.pad == "eos":
            self._tokenizer.pad_token = self._tokenizer.eos_token
        if self._tokenizer.pad_token is None:
            raise InputError(f"the tokenizer in {directory} has no padding token")
        if preset.padding_side is not None:
            self._tokenizer.padding_side = preset.padding_side
        self.preset = preset.resolve(self._tokenizer)
        """What the pipeline does, with all that depends on the tokenizer."""

    @classmethod
    def of_bundle(cls, bundle: Bundle) -> Tokenizer:
        """The tokenizer that a bundle carries, under the preset it was exported for.

        Raises:
            BundleError: it carries none, or a damaged one.
        """
        if not bundle.carries_tokenizer:
            raise BundleError(
                f"{bundle.directory} carries no tokenizer, so it takes token ids only; "
                "export again with --tokenizer DIRECTORY to give it one"
            )
        try:
            return cls(bundle.directory / TOKENIZER, bundle.directory, bundle.manifest.pipeline)
        except InputError as error:
            raise BundleError(str(error)) from error

    def __call__(self, prompts: Sequence[str], *, negative: bool = False) -> Tokens:
        """Tokenise, truncate and pad a batch.

        Args:
            prompts: any text.
            negative: whether they are negative prompts, which some pipelines put no text around.

        Raises:
            InputError: there is no prompt, or one that cannot be cleaned.
        """
        if not prompts:
            raise InputError("no prompt given")
        preset = self.preset.negative if negative else self.preset
        batch = self._tokenizer(
            [preset.prepare(prompt) for prompt in prompts],
            padding=preset.padding,
            max_length=preset.max_length,
            truncation=True,
            add_special_tokens=preset.special_tokens,
            return_attention_mask=True,
            return_tensors="np",
        )
        ids, mask = (batch[name].astype(np.int64) for name in ("input_ids", "attention_mask"))
        missing = ((0, 0), (-ids.shape[1] % preset.multiple_of, 0))
        return Tokens(np.pad(ids, missing, constant_values=self.pad_id), np.pad(mask, missing))

    @property
    def backend(self) -> Any:
        """The tokenizer of `transformers`."""
        return self._tokenizer

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know about how prompts are tokenised here."""
        found = note(self.preset.clean)
        return () if found is None else (found,)

    @property
    def pad_id(self) -> int:
        """Id of padding."""
        return int(self._tokenizer.pad_token_id)

    @property
    def special_tokens(self) -> list[str]:
        """Tokens that are found in a prompt where they are spelled out."""
        return sorted(str(token) for token in self._tokenizer.added_tokens_decoder.values())

    def ids(self, prompt: str) -> list[int]:
        """A prompt's ids before it is truncated and padded."""
        return self._untruncated([prompt])[0]

    def lengths(self, prompts: Sequence[str]) -> list[int]:
        """How many tokens each prompt has before it is truncated."""
        return [len(ids) for ids in self._untruncated(prompts)]

    def _untruncated(self, prompts: Sequence[str]) -> list[list[int]]:
        batch = self._tokenizer(
            [self.preset.prepare(prompt) for prompt in prompts],
            truncation=False,
            add_special_tokens=self.preset.special_tokens,
            verbose=False,
        )
        return list(batch["input_ids"])


def encode_prompts(
    session: Session, prompts: Sequence[str], *, negative: bool = False, progress: Progress = silent
) -> Arrays:
    """Tokenise and encode prompts, as the bundle's pipeline would.

    Args:
        session: the bundle, opened.
        prompts: any text; one batch, whose padding is that of its longest prompt where the pipeline's is.
        negative: whether they are negative prompts, which some pipelines put no text around.
        progress: told how many are done.

    Returns:
        The `input_ids` and `attention_mask` of the encoder, a row a prompt; its outputs, with the rows that the
        pipeline gives its denoiser; and `output_mask`, 1 for rows that the denoiser is told to read, if these are not
        the encoder's rows.

    Raises:
        BundleError: the bundle carries no tokenizer.
        InputError: there is no prompt, or one that cannot be cleaned.
    """
    tokenizer = Tokenizer.of_bundle(session.bundle)
    tokens = tokenizer(prompts, negative=negative)
    outputs = _encode(session, tokens, progress)
    preset = tokenizer.preset.negative if negative else tokenizer.preset
    return {
        "input_ids": tokens.input_ids,
        "attention_mask": tokens.attention_mask,
        **finish(preset, outputs, tokens.attention_mask),
    }


def encode_unconditional(session: Session, count: int) -> Arrays:
    """What the bundle's pipeline guides away from where it is given no negative prompt.

    Args:
        session: the bundle, opened.
        count: how many rows.

    Returns:
        As `encode_prompts`; of a pipeline that takes zeros, outputs of zeros.

    Raises:
        BundleError: the bundle carries no tokenizer.
    """
    preset = session.bundle.manifest.pipeline
    encoded = encode_prompts(session, [preset.unconditional_text] * count, negative=True)
    if preset.unconditional == "zeros":
        encoded |= {output.name: np.zeros_like(encoded[output.name]) for output in preset.outputs}
    return encoded


def _encode(session: Session, tokens: Tokens, progress: Progress) -> Arrays:
    """Run the encoder on a batch of any size."""
    manifest, count = session.bundle.manifest, len(tokens.input_ids)
    outputs = []
    for begin in range(0, count, manifest.batch or BATCH):
        rows = np.arange(begin, begin + (manifest.batch or min(BATCH, count - begin)))
        rows = np.minimum(rows, count - 1)  # a fixed batch is filled up with the last prompt
        mask = tokens.attention_mask[rows] if manifest.pipeline.masked else None
        outputs.append(session.encode(tokens.input_ids[rows], mask))
        progress("encoding", min(begin + len(rows), count), count)
    return {name: np.concatenate([output[name] for output in outputs])[:count] for name in outputs[0]}
