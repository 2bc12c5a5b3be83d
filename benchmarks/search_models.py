"""Checkpoints and tokenizers that the search benchmark runs on, made without the network.

Weights are random, as checkpoints.py makes them, but layers of a trained encoder matter to very different degrees, and
a search whose candidates are all alike would be another problem. So every output projection is scaled: by a curve over
depth that is low in the middle, times noise drawn for each sub-block.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import numpy as np
from checkpoints import Shape, write_checkpoint
from safetensors.numpy import load_file, save_file

from skrr_export.prompts import calibration_prompts

if TYPE_CHECKING:
    from pathlib import Path

VOCABULARY = 4096
DEPTH_SPREAD, NOISE = 0.8, 0.6
"""Of the scales' logarithm: half of what the curve spans, and the standard deviation of the noise."""

_SPECIAL = ("<pad>", "</s>", "<unk>")  # with the ids that a T5 gives them


def scales(layers: int, seed: int = 0) -> list[tuple[float, float]]:
    """Factors of the output projections of each layer's attention and feed-forward; their geometric mean is about one.

    The logarithm is a cosine over depth, highest at both ends, plus noise.
    """
    noise = np.random.default_rng([seed, layers]).normal(0, NOISE, (layers, 2))
    curve = [DEPTH_SPREAD * math.cos(2 * math.pi * (layer + 0.5) / layers) for layer in range(layers)]
    return [
        (math.exp(base + first), math.exp(base + second)) for base, (first, second) in zip(curve, noise, strict=True)
    ]


def ensure_graded_checkpoint(directory: Path, shape: Shape, seed: int = 0) -> Path:
    """A single-file T5 encoder with scaled output projections and a tokenizer; written unless it is there already.

    Like `ensure_checkpoint`, it leaves a stamp last.
    """
    stamp = directory / "benchmark-graded.json"
    wanted = json.dumps([repr(shape), seed, VOCABULARY, DEPTH_SPREAD, NOISE])
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == wanted:
        return directory
    stamp.unlink(missing_ok=True)
    write_checkpoint(directory, shape, seed)
    weights = load_file(directory / "model.safetensors")
    for layer, (attention, feed_forward) in enumerate(scales(shape.layers, seed)):
        block = f"encoder.block.{layer}.layer"
        weights[f"{block}.0.SelfAttention.o.weight"] *= np.float32(attention)
        weights[f"{block}.1.DenseReluDense.wo.weight"] *= np.float32(feed_forward)
    save_file(weights, directory / "model.safetensors", {"format": "pt"})
    write_tokenizer(directory)
    stamp.write_text(wanted, encoding="utf-8")
    return directory


def write_tokenizer(directory: Path) -> Path:
    """A byte-level BPE trained on the shipped captions; prompts take about as many tokens as T5's own makes of them."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=_trained(), pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )
    tokenizer.save_pretrained(directory)
    return directory


def _trained() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=list(_SPECIAL), initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(calibration_prompts(), trainer)
    backend.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", backend.token_to_id("</s>"))]
    )
    return backend
