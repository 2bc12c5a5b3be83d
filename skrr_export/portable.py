"""How runtimes without `transformers` tokenise: by SentencePiece, where that gives the same ids."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from skrr_export.errors import InputError
from skrr_export.manifest import SentencePieceEntry
from skrr_export.prompts import calibration_prompts, default_prompts

if TYPE_CHECKING:
    from skrr_export.tokenization import Tokenizer

MODEL = "spiece.model"
"""SentencePiece model among a tokenizer's files; `transformers` builds its own tokenizer from it."""
_PROBES = (
    "", " ", "  two  spaces ", "tab\tand\nnewline\r\n", "ﬁ ligature ①", "zero\u200bwidth", "no-break\u00a0space",
    "e\u0301 é", "ideographic\u3000space", "\u2028 line", "\uff26\uff35\uff2c\uff2c\u3000\uff57\uff49\uff44\uff45",
    "\x01control\x7f", "👩‍👩‍👧", "▁ x ▁", "ünïcödé 漢字 слово 한국어", "x" * 300, "\ufeffbom", "soft\u00adhyphen",
)  # fmt: skip
"""What normalisers treat in different ways, compared beside ordinary prompts."""


def sentencepiece_entry(tokenizer: Tokenizer, model: Path, file: str) -> SentencePieceEntry:
    """The recipe by which SentencePiece gives the ids that a tokenizer gives, on some 400 prompts.

    Args:
        tokenizer: as `transformers` runs it.
        model: its SentencePiece model.
        file: that model's name in the bundle.

    Raises:
        InputError: it gives other ids; the message tells for which prompt.
    """
    import sentencepiece

    try:
        processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
    except (OSError, RuntimeError) as error:
        raise InputError(f"SentencePiece cannot read {model}: {error}") from error
    if not tokenizer.pads_right:
        raise InputError("it pads or truncates on the left")
    prefix, suffix = _frame(tokenizer.ids("a cat"), processor.encode("a cat"))
    for prompt in [*_PROBES, *default_prompts(), *calibration_prompts()]:
        if tokenizer.ids(prompt) != [*prefix, *processor.encode(tokenizer.preset.prepare(prompt)), *suffix]:
            raise InputError(f"SentencePiece gives other ids for {prompt!r}")
    return SentencePieceEntry(
        file=file,
        prefix=tuple(prefix),
        suffix=tuple(suffix),
        pad=tokenizer.pad_id,
        special=tuple(tokenizer.special_tokens),
    )


def _frame(ids: Sequence[int], pieces: Sequence[int]) -> tuple[Sequence[int], Sequence[int]]:
    """What stands before and after the pieces."""
    for begin in range(len(ids) - len(pieces) + 1):
        if list(ids[begin : begin + len(pieces)]) == list(pieces):
            return ids[:begin], ids[begin + len(pieces) :]
    raise InputError("SentencePiece gives other ids for 'a cat'")
