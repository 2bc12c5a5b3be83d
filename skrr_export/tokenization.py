"""Prompts to token ids, as the bundle's pipeline does it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from skrr_export.bundle import TOKENIZER, Bundle
from skrr_export.errors import BundleError, InputError
from skrr_export.progress import Progress, silent

if TYPE_CHECKING:
    from skrr_export.targets.onnx.session import OnnxSession

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
    """The bundle's tokenizer under the bundle's preset."""

    def __init__(self, bundle: Bundle) -> None:
        """Load it.

        Raises:
            BundleError: the bundle carries no tokenizer, or a damaged one.
        """
        import transformers

        directory = bundle.directory / TOKENIZER
        if not directory.is_dir():
            raise BundleError(
                f"{bundle.directory} carries no tokenizer, so it takes token ids only; "
                "export again with --tokenizer DIRECTORY to give it one"
            )
        self.preset = bundle.manifest.pipeline
        try:
            config = transformers.AutoConfig.from_pretrained(bundle.directory)
            self._tokenizer = transformers.AutoTokenizer.from_pretrained(directory, config=config)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BundleError(f"cannot load the tokenizer in {directory}: {error}") from error
        if self._tokenizer.pad_token is None:
            raise BundleError(f"the tokenizer in {directory} has no padding token")

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


def encode_prompts(
    session: OnnxSession, prompts: Sequence[str], *, progress: Progress = silent
) -> dict[str, npt.NDArray[np.generic]]:
    """Tokenise and encode prompts, as the bundle's pipeline would.

    Returns:
        The session's outputs, and the `input_ids` and `attention_mask` they come from, a row a prompt.

    Raises:
        BundleError: the bundle carries no tokenizer.
        InputError: there is no prompt.
    """
    tokens = Tokenizer(session.bundle)(prompts)
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
