"""The batches that encoders are compared on: prompts as the pipeline feeds them, and random ids of many sizes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from skrr_export.bundle import Bundle
from skrr_export.encoders import bundle_encoder
from skrr_export.pipelines import Preset
from skrr_export.pipelines.rows import read_rows
from skrr_export.prompts import default_prompts
from skrr_export.targets.base import Ids
from skrr_export.tokenization import BATCH, Tokenizer


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """A batch to compare on."""

    name: str
    input_ids: Ids
    attention_mask: Ids
    """Which rows are tokens; given to the encoder only where the pipeline does."""
    prompts: tuple[str, ...] = ()
    """The prompts of its first rows; none for random ids. A fixed batch is filled up with empty ones."""

    @property
    def real(self) -> npt.NDArray[np.bool_]:
        """Which rows are tokens, `[batch, sequence]`."""
        real: npt.NDArray[np.bool_] = self.attention_mask != 0
        return real

    def given(self, preset: Preset) -> Ids | None:
        """The mask as a pipeline's encoder gets it, if it does."""
        return self.attention_mask if preset.masked else None

    def read(self, preset: Preset) -> npt.NDArray[np.bool_]:
        """Which rows of an output per token a pipeline's denoiser reads, `[batch, sequence]`."""
        return read_rows(preset, self.attention_mask)


def chosen_prompts(bundle: Bundle, prompts: Sequence[str] | None) -> list[str]:
    """The prompts to compare on; by default the shipped ones, or none for a bundle that takes only ids."""
    if prompts is not None:
        return list(prompts)
    return default_prompts() if bundle.carries_tokenizer else []


def cases_of(bundle: Bundle, prompts: Sequence[str], seed: int) -> list[Case]:
    """Everything that a bundle's encoder is compared on.

    Args:
        bundle: of the encoder.
        prompts: may be none.
        seed: of the random ids.

    Raises:
        BundleError: there are prompts, but no tokenizer; or it is damaged.
    """
    tokenizer = Tokenizer.of_bundle(bundle) if prompts or bundle.carries_tokenizer else None
    in_words = [] if tokenizer is None else _prompt_cases(bundle, tokenizer, prompts)
    side = bundle.manifest.pipeline.padding_side
    if side is None and tokenizer is not None:
        side = tokenizer.backend.padding_side
    return [*in_words, *_random_cases(bundle, np.random.default_rng(seed), left=side == "left")]


def reads_padding(preset: Preset) -> bool:
    """Whether rows of padding reach a pipeline's denoiser."""
    return preset.reads_padding or preset.extra_rows > 0


def _prompt_cases(bundle: Bundle, tokenizer: Tokenizer, prompts: Sequence[str]) -> Iterator[Case]:
    """The prompts in batches."""
    size = bundle.manifest.batch or BATCH
    for begin in range(0, len(prompts), size):
        batch = tuple(prompts[begin : begin + size])
        filling = [""] * (size - len(batch)) if bundle.manifest.batch is not None else []
        tokens = tokenizer([*batch, *filling])
        name = f"prompts {begin + 1} to {begin + len(batch)}"
        yield Case(name, tokens.input_ids, tokens.attention_mask, batch)


def _random_cases(bundle: Bundle, random: np.random.Generator, *, left: bool) -> Iterator[Case]:
    """Random ids from one token to the longest sequence, with ragged masks; one row of a batch is masked whole."""
    manifest = bundle.manifest
    longest = min(manifest.pipeline.max_length, manifest.max_length or manifest.pipeline.max_length)
    # Where a pooled vector is that of the token which ends the prompt, random ids would hardly ever have one.
    ending = None if manifest.pooled is None else bundle_encoder(bundle).ending
    for batch, sequence in ((1, 1), (1, 2), (3, 7), (2, 33), (1, 77), (4, 65), (1, longest)):
        shape = (manifest.batch or batch, manifest.sequence or min(sequence, longest))
        lengths = random.integers(1, shape[1] + 1, shape[0])
        lengths[0] = shape[1]
        if shape[0] > 2:
            lengths[-1] = 0
        name = f"random ids {shape[0]} x {shape[1]}"
        yield random_case(name, shape, lengths, manifest.vocab_size, random, left=left, ending=ending)


def random_case(
    name: str,
    shape: tuple[int, int],
    lengths: npt.NDArray[np.int64],
    vocab_size: int,
    random: np.random.Generator,
    *,
    left: bool = False,
    ending: int | None = None,
) -> Case:
    """Random ids, padded.

    Args:
        name: of the case.
        shape: batch and sequence.
        lengths: how many tokens each row has; the rest is padding.
        vocab_size: ids are below it.
        random: makes them.
        left: whether padding is on the left.
        ending: an id that each row's tokens shall end with.
    """
    ids = random.integers(0, vocab_size, shape)
    end = np.full((shape[0], 1), shape[1]) if left else lengths[:, None]
    position = np.arange(shape[1])
    if ending is not None:
        ids[position == end - 1] = ending
    return Case(name, ids, ((position < end) & (position >= end - lengths[:, None])).astype(np.int64))
