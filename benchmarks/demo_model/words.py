"""Texts for the encoder: its tokenizer, and the two tasks that it learns language by."""

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

SENTINELS = 32
"""Tokens that stand for what span corruption took out; T5 has 100."""
CHUNK = 16
"""Batches that are drawn at once and sorted by length, so that few tokens are padding."""
CORRUPTED = 0.25
"""Share of lessons that are span corruption."""
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
    tokenizer = T5Tokenizer.from_pretrained(directory, extra_ids=SENTINELS, model_max_length=512)
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
    """What the encoder reads and the decoder shall answer: span corruption, or saying what a caption is of."""
    end = tokenizer.eos_token_id
    sentinels = tokenizer.convert_tokens_to_ids([f"<extra_id_{index}>" for index in range(SENTINELS)])
    texts = [new_caption(scene, excluded, random) for scene in scenes]
    captions = tokenizer(texts, add_special_tokens=False).input_ids
    facts = tokenizer([describe(scene) for scene in scenes], add_special_tokens=False).input_ids
    questions, answers = [], []
    for text, fact in zip(captions, facts, strict=True):
        question, answer = _corrupt(text, sentinels, random) if random.random() < CORRUPTED else (text, fact)
        questions.append([*question, end])
        answers.append([*answer, end])
    return questions, answers


def describe(scene: Scene) -> str:
    """All there is to say of a scene, in one fixed way."""
    things = in_reading_order(scene.things)
    looks = [f"{thing.shape} {thing.colour} {thing.size} {thing.texture}" for thing in things]
    places = [relation(one, other) for one, other in pairwise(things)]
    words = [word for look, place in zip(looks, [*places, "on"], strict=True) for word in (look, place)]
    return " ".join([*words, scene.background])


def _corrupt(ids: Sequence[int], sentinels: Sequence[int], random: Random) -> tuple[list[int], list[int]]:
    """Take spans of one to three tokens out, about a fifth of all, and ask for them."""
    starts = set(random.sample(range(len(ids)), max(1, len(ids) // 10)))
    question: list[int] = []
    answer: list[int] = []
    index = used = 0
    while index < len(ids):
        if index in starts and used < len(sentinels):
            length = random.randint(1, 3)
            question.append(sentinels[used])
            answer += [sentinels[used], *ids[index : index + length]]
            index, used = index + length, used + 1
        else:
            question.append(ids[index])
            index += 1
    return question, answer
