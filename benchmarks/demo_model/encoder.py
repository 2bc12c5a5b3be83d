"""Stage one: the text encoder learns what captions say, before it has seen an image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from training import Trainer
from transformers import T5Config, T5EncoderModel, T5ForConditionalGeneration, T5Tokenizer
from words import CHUNK, batches, lessons, padded

from skrr_export.demo.world import Scene

LAYERS, WIDTH = 12, 128
BATCH = 64
RATE = 7e-4
"""At 2e-3 the encoder never learned which word belongs to which of two things."""
FASTER = {"relative_attention_bias": 30.0}
"""Biases by position start near zero and must become several units large before a word can look at its neighbours."""


def configuration(tokenizer: T5Tokenizer) -> T5Config:
    """T5 v1.1, small: the share of its feed-forwards in a layer is that of T5-XXL."""
    return T5Config(
        vocab_size=-(-len(tokenizer) // 8) * 8,
        d_model=WIDTH,
        d_kv=32,
        num_heads=4,
        d_ff=320,
        num_layers=LAYERS,
        num_decoder_layers=2,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        dropout_rate=0.0,
        decoder_start_token_id=0,
    )


def pretrain(
    tokenizer: T5Tokenizer, scenes: Sequence[Scene], *, excluded: frozenset[str], steps: int, state: Path
) -> T5EncoderModel:
    """Train with a small decoder, which is left behind.

    Args:
        tokenizer: the encoder's.
        scenes: to caption.
        excluded: captions that are kept for scoring.
        steps: of training.
        state: file for going on.
    """
    model = T5ForConditionalGeneration(configuration(tokenizer))
    with torch.no_grad():
        model.lm_head.weight.mul_(WIDTH**-0.5)  # as T5 scales what goes into a head that shares the embedding
    trainer = Trainer(model, RATE, steps, state, faster=FASTER)
    for random in trainer.chunks("lessons"):
        questions, answers = lessons(random.choices(scenes, k=BATCH * CHUNK), tokenizer, excluded, random)
        for batch in trainer.limit(batches(questions, BATCH, random)):
            labels = padded([answers[row] for row in batch.rows], -100)
            with torch.autocast("cpu", torch.bfloat16):
                result = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=labels)
            trainer.step(result.loss)
    encoder = T5EncoderModel(model.config)
    weights = trainer.average.state_dict()
    encoder.load_state_dict(
        {name: weight for name, weight in weights.items() if name.startswith(("shared", "encoder"))}
    )
    return encoder
