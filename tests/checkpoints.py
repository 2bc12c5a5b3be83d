"""Tiny checkpoints, made by `transformers` itself, in which every tensor matters.

Weights are drawn from a normal distribution of standard deviation 0.3 (those of norms around 1), so that a tensor that
is left out, swapped, transposed or shifted changes the output a lot; biases and norms are no exception. Dimensions are
odd, and T5's inner width differs from its hidden size, so that a shape mixed up does not fit by luck.

Nothing here needs the network, and the same arguments give the same files.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

T5_DIMENSIONS = {
    "vocab_size": 307,
    "d_model": 37,
    "num_heads": 3,
    "d_kv": 11,
    "d_ff": 53,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 20,
}
"""Of `t5_checkpoint`; `num_heads * d_kv` is 33, not `d_model`."""

BERT_DIMENSIONS = {
    "vocab_size": 307,
    "hidden_size": 39,
    "num_attention_heads": 3,
    "intermediate_size": 53,
    "max_position_embeddings": 71,
    "type_vocab_size": 2,
}
"""Of `bert_checkpoint`; no two are equal."""


def t5_checkpoint(
    directory: Path,
    *,
    layers: int = 3,
    gated: bool = True,
    decoder: bool = False,
    dtype: torch.dtype = torch.float32,
    shard_size: str | None = None,
    tokenizer: bool = False,
    seed: int = 0,
    umt5: bool = False,
    **config: Any,
) -> Path:
    """Save a T5 encoder with random weights, as `T5EncoderModel.save_pretrained` does.

    Args:
        directory: where; made if absent.
        layers: number of layers.
        gated: T5 v1.1 (gated GELU) or T5 v1.0 (ReLU).
        decoder: save a whole `T5ForConditionalGeneration`, decoder and head included.
        dtype: of the weights.
        shard_size: largest shard, for example `"20KB"`; `None`: a single file.
        tokenizer: save a byte-level tokenizer beside it that ends each prompt with `</s>`, as T5's does.
        seed: of the weights.
        umt5: save a UMT5, which has a table of position biases in every layer.
        config: further keys of `T5Config`, over `T5_DIMENSIONS`.

    Returns:
        The directory.
    """
    from transformers import T5Config, T5EncoderModel, T5ForConditionalGeneration, UMT5Config, UMT5EncoderModel

    settings = {**T5_DIMENSIONS, "feed_forward_proj": "gated-gelu" if gated else "relu", **config}
    if umt5:
        model = UMT5EncoderModel(UMT5Config(num_layers=layers, num_decoder_layers=1, **settings))
    else:
        model_class = T5ForConditionalGeneration if decoder else T5EncoderModel
        model = model_class(T5Config(num_layers=layers, num_decoder_layers=1, **settings))
    _save(model, directory, dtype, shard_size, seed)
    if tokenizer:
        byte_tokenizer(ending="$A </s>").save_pretrained(directory)
    return directory


def bert_checkpoint(
    directory: Path,
    *,
    layers: int = 3,
    head: bool = False,
    dtype: torch.dtype = torch.float32,
    shard_size: str | None = None,
    tokenizer: bool = False,
    seed: int = 0,
    **config: Any,
) -> Path:
    """Save a BERT with random weights, as `BertModel.save_pretrained` does.

    Args:
        directory: where; made if absent.
        layers: number of layers.
        head: save a `BertForMaskedLM`, whose tensors are named `bert.*` beside the head's.
        dtype: of the weights.
        shard_size: largest shard, for example `"20KB"`; `None`: a single file.
        tokenizer: save a byte-level tokenizer beside it that frames each prompt with `<cls>` and `</s>`.
        seed: of the weights.
        config: further keys of `BertConfig`, over `BERT_DIMENSIONS`.

    Returns:
        The directory.
    """
    from transformers import BertConfig, BertForMaskedLM, BertModel

    model_config = BertConfig(num_hidden_layers=layers, **{**BERT_DIMENSIONS, **config})
    model = (BertForMaskedLM if head else BertModel)(model_config)
    _save(model, directory, dtype, shard_size, seed)
    if tokenizer:
        byte_tokenizer(ending="<cls> $A </s>").save_pretrained(directory)
    return directory


def byte_tokenizer(ending: str) -> Any:
    """A tokenizer without training: a token a byte, after `<pad>` 0, `</s>` 1, `<unk>` 2, `<cls>` 3; 260 in all.

    Args:
        ending: template of a tokenised prompt, for example `"$A </s>"`.

    Returns:
        A `PreTrainedTokenizerFast`.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "</s>", "<unk>", "<cls>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([*special, *alphabet])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.TemplateProcessing(
        single=ending, special_tokens=[(token, vocabulary[token]) for token in ("</s>", "<cls>")]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", cls_token="<cls>"
    )


def sentencepiece_tokenizer(directory: Path) -> Path:
    """Train a SentencePiece model of 1,000 pieces on the shipped prompts, as T5's is: the only tokenizer file.

    With `transformers`' 100 sentinels it has 1,100 ids.

    Returns:
        The directory.
    """
    import io

    import sentencepiece

    from skrr_export.prompts import calibration_prompts

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(calibration_prompts()),
        model_writer=model,
        vocab_size=1000,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    (directory / "spiece.model").write_bytes(model.getvalue())
    return directory


def contents(directory: Path) -> dict[str, bytes | None]:
    """Everything below a directory: the bytes of files, `None` for directories; to prove that nothing changed."""
    return {
        str(path.relative_to(directory)): path.read_bytes() if path.is_file() else None
        for path in sorted(directory.rglob("*"))
    }


def _save(model: torch.nn.Module, directory: Path, dtype: torch.dtype, shard_size: str | None, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            centre = 1.0 if "norm.weight" in name.lower() else 0.0
            parameter.copy_(centre + 0.3 * torch.randn(parameter.shape, generator=generator))
    sharding = {} if shard_size is None else {"max_shard_size": shard_size}
    model.to(dtype).save_pretrained(directory, **sharding)
