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
from skrr_export.progress import Progress, silent

if TYPE_CHECKING:
    from skrr_export.targets.base import Session

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
    """A tokenizer that pads, truncates and prepares prompts as a pipeline does."""

    def __init__(self, directory: Path, config: Path, preset: Preset) -> None:
        """Load it.

        Args:
            directory: where the tokenizer's files lie.
            config: directory of the encoder's `config.json`, which decides the tokenizer's class where its own files
                do not.
            preset: what the pipeline does.

        Raises:
            InputError: it cannot be loaded, or cannot pad.
        """
        import transformers

        self.preset = preset
        try:
            model_config = transformers.AutoConfig.from_pretrained(config)
            self._tokenizer = transformers.AutoTokenizer.from_pretrained(directory, config=model_config)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"cannot load the tokenizer in {directory}: {error}") from error
        if self._tokenizer.pad_token is None:
            raise InputError(f"the tokenizer in {directory} has no padding token")

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

    def __call__(self, prompts: Sequence[str]) -> Tokens:
        """Tokenise, truncate and pad a batch.

        Raises:
            InputError: there is no prompt.
        """
        if not prompts:
            raise InputError("no prompt given")
        batch = self._tokenizer(
            [self.preset.prepare(prompt) for prompt in prompts],
            padding=self.preset.padding,
            max_length=self.preset.max_length,
            truncation=True,
            return_attention_mask=True,
            return_tensors="np",
        )
        return Tokens(batch["input_ids"].astype(np.int64), batch["attention_mask"].astype(np.int64))

    @property
    def backend(self) -> Any:
        """The tokenizer of `transformers`."""
        return self._tokenizer

    @property
    def pads_right(self) -> bool:
        """Whether padding goes, and truncation takes, on the right."""
        return bool(self._tokenizer.padding_side == self._tokenizer.truncation_side == "right")

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
        return list(self._tokenizer(self.preset.prepare(prompt), truncation=False, verbose=False)["input_ids"])

    def lengths(self, prompts: Sequence[str]) -> list[int]:
        """How many tokens each prompt has before it is truncated."""
        batch = self._tokenizer([self.preset.prepare(prompt) for prompt in prompts], truncation=False, verbose=False)
        return [len(ids) for ids in batch["input_ids"]]


def encode_prompts(
    session: Session, prompts: Sequence[str], *, progress: Progress = silent
) -> dict[str, npt.NDArray[np.generic]]:
    """Tokenise and encode prompts, as the bundle's pipeline would.

    Returns:
        The session's outputs, and the `input_ids` and `attention_mask` they come from, a row a prompt.

    Raises:
        BundleError: the bundle carries no tokenizer.
        InputError: there is no prompt.
    """
    tokens = Tokenizer.of_bundle(session.bundle)(prompts)
    fixed = session.bundle.manifest.batch
    outputs = []
    for begin in range(0, len(prompts), fixed or BATCH):
        rows = np.arange(begin, begin + (fixed or min(BATCH, len(prompts) - begin)))
        rows = np.minimum(rows, len(prompts) - 1)  # a fixed batch is filled up with the last prompt
        mask = tokens.attention_mask[rows] if session.bundle.manifest.pipeline.masked else None
        outputs.append(session.encode(tokens.input_ids[rows], mask))
        progress("encoding", min(begin + len(rows), len(prompts)), len(prompts))
    arrays = {name: np.concatenate([output[name] for output in outputs])[: len(prompts)] for name in outputs[0]}
    return {"input_ids": tokens.input_ids, "attention_mask": tokens.attention_mask, **arrays}
