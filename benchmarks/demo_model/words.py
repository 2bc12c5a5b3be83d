"""Texts for the encoder: its tokenizer, and the lessons that it learns language by."""

from __future__ import annotations

import io
import math
import string
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from random import Random

import torch
from sentencepiece import SentencePieceTrainer
from sentencepiece.sentencepiece_model_pb2 import ModelProto
from torch import Tensor
from transformers import T5Tokenizer

from skrr_export.demo.captions import caption, in_reading_order
from skrr_export.demo.world import Scene, relation

CHUNK = 16
"""Batches that are drawn at once and sorted by length, so that few tokens are padding."""
_CHARACTERS = string.ascii_letters + string.digits + string.punctuation
_SPELLED = -14.0
"""Log-probability of a single character: a word that the captions lack is spelled."""


def train_tokenizer(captions: Iterable[str], directory: Path) -> T5Tokenizer:
    """A T5 tokenizer whose pieces are the words of captions, by how often they occur, and single characters.

    SentencePiece's own training would split words as often as `left`, for so small a language.

    Args:
        captions: to count words in.
        directory: for its files, a SentencePiece model among them, as other T5s have one.
    """
    words = Counter(word for text in captions for word in _spaced(text).split())
    total = words.total()
    pieces = [(word if word in ",." else f"▁{word}", math.log(count / total)) for word, count in words.most_common()]
    known = {piece for piece, _ in pieces}
    pieces += [(character, _SPELLED) for character in f"▁{_CHARACTERS}" if character not in known]
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "spiece.model").write_bytes(_sentencepiece_model(pieces))
    tokenizer = T5Tokenizer.from_pretrained(directory, model_max_length=512)
    tokenizer.save_pretrained(directory)
    return tokenizer


def _sentencepiece_model(pieces: Iterable[tuple[str, float]]) -> bytes:
    """A SentencePiece model with T5's special tokens and these pieces, each with its log-probability."""
    trained = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(["its pieces are replaced"]),
        model_writer=trained,
        vocab_size=20,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    model = ModelProto.FromString(trained.getvalue())
    del model.pieces[3:]  # pad, end and unknown
    for piece, score in pieces:
        model.pieces.add(piece=piece, score=score)
    model.trainer_spec.vocab_size = len(model.pieces)
    return model.SerializeToString()


def _spaced(text: str) -> str:
    return text.replace(".", " .").replace(",", " ,")


@dataclass(frozen=True, slots=True)
class Batch:
    """Token ids of one training step."""

    input_ids: Tensor
    """int64 `[batch, sequence]`, padded with 0."""
    rows: list[int]
    """Which of the drawn examples they are."""

    @property
    def attention_mask(self) -> Tensor:
        """int64 `[batch, sequence]`."""
        return (self.input_ids != 0).long()


def batches(ids: Sequence[Sequence[int]], size: int, random: Random) -> Iterator[Batch]:
    """Batches of texts that are about as long, in random order."""
    order = sorted(range(len(ids)), key=lambda index: (len(ids[index]), index))
    groups = [order[start : start + size] for start in range(0, len(order), size)]
    for group in random.sample(groups, len(groups)):
        yield Batch(padded([ids[index] for index in group], 0), group)


def padded(rows: Sequence[Sequence[int]], filler: int) -> Tensor:
    """Rows as one tensor `[rows, longest]`."""
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[filler] * (longest - len(row))] for row in rows])


def new_caption(scene: Scene, excluded: frozenset[str], random: Random) -> str:
    """A caption that is none of those that are kept for scoring."""
    while (text := caption(scene, random)) in excluded:
        pass
    return text


def lessons(
    scenes: Sequence[Scene], tokenizer: T5Tokenizer, excluded: frozenset[str], random: Random
) -> tuple[list[list[int]], list[list[int]]]:
    """What the encoder reads, captions, and what the decoder shall answer: what they are of."""
    captions = tokenizer([new_caption(scene, excluded, random) for scene in scenes])
    return captions.input_ids, tokenizer([describe(scene) for scene in scenes]).input_ids


def describe(scene: Scene) -> str:
    """All there is to say of a scene, in one fixed way."""
    things = in_reading_order(scene.things)
    looks = [f"{thing.shape} {thing.colour} {thing.size} {thing.texture}" for thing in things]
    places = [relation(one, other) for one, other in pairwise(things)]
    words = [word for look, place in zip(looks, [*places, "on"], strict=True) for word in (look, place)]
    return " ".join([*words, scene.background])
