"""The batches that encoders are compared on: prompts as the pipeline feeds them, and random ids of many sizes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from skrr_export.bundle import Bundle
from skrr_export.pipelines import Preset
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
        """Which rows a pipeline's denoiser reads, `[batch, sequence]`."""
        return np.ones_like(self.real) if preset.reads_padding else self.real


def chosen_prompts(bundle: Bundle, prompts: Sequence[str] | None) -> list[str]:
    """The prompts to compare on; by default the shipped ones, or none for a bundle that takes only ids."""
    if prompts is not None:
        return list(prompts)
    return default_prompts() if bundle.carries_tokenizer else []


def prompt_cases(bundle: Bundle, prompts: Sequence[str]) -> Iterator[Case]:
    """The prompts in batches.

    Raises:
        BundleError: there are prompts, but no tokenizer.
    """
    if not prompts:
        return
    tokenizer = Tokenizer.of_bundle(bundle)
    size = bundle.manifest.batch or BATCH
    for begin in range(0, len(prompts), size):
        batch = tuple(prompts[begin : begin + size])
        filling = [""] * (size - len(batch)) if bundle.manifest.batch is not None else []
        tokens = tokenizer([*batch, *filling])
        name = f"prompts {begin + 1} to {begin + len(batch)}"
        yield Case(name, tokens.input_ids, tokens.attention_mask, batch)


def random_cases(bundle: Bundle, random: np.random.Generator) -> Iterator[Case]:
    """Random ids from one token to the longest sequence, with ragged masks; one row of a batch is masked whole."""
    longest = bundle.manifest.pipeline.max_length
    for batch, sequence in ((1, 1), (1, 2), (3, 7), (2, 33), (1, 77), (4, 65), (1, longest)):
        shape = (bundle.manifest.batch or batch, bundle.manifest.sequence or min(sequence, longest))
        lengths = random.integers(1, shape[1] + 1, shape[0])
        lengths[0] = shape[1]
        if shape[0] > 2:
            lengths[-1] = 0
        yield random_case(f"random ids {shape[0]} x {shape[1]}", shape, lengths, bundle.manifest.vocab_size, random)


def random_case(
    name: str, shape: tuple[int, int], lengths: npt.NDArray[np.int64], vocab_size: int, random: np.random.Generator
) -> Case:
    """Random ids of a shape `(batch, sequence)`, of which each row has so many tokens and then padding."""
    mask = (np.arange(shape[1]) < lengths[:, None]).astype(np.int64)
    return Case(name, random.integers(0, vocab_size, shape), mask)
