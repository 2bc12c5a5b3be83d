"""Tokenizers built as those of real encoders are: the same steps and expressions, on a vocabulary of our own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

from skrr_export.prompts import calibration_prompts
from tests.pipelines.tokenizers import MISTRAL, QWEN3

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_QWEN = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA_3 = _QWEN.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
VOCABULARY = 1000


def _byte_level(expression: str, special: list[str], beginning: str, **settings: Any) -> Any:
    """A byte-level BPE that splits text by an expression first."""
    backend = Tokenizer(models.BPE(ignore_merges=expression is _LLAMA_3))
    split = pre_tokenizers.Split(Regex(expression), "isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    if expression is _QWEN:
        backend.normalizer = normalizers.NFC()
    return _trained(backend, special, beginning, sorted(pre_tokenizers.ByteLevel.alphabet()), **settings)


def _trained(backend: Any, special: list[str], beginning: str, alphabet: list[str], **settings: Any) -> Any:
    from transformers import PreTrainedTokenizerFast

    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=special, initial_alphabet=alphabet)
    backend.train_from_iterator(calibration_prompts(), trainer)
    backend.post_processor = processors.TemplateProcessing(
        single=f"{beginning} $A".strip(),
        special_tokens=[(token, backend.token_to_id(token)) for token in beginning.split()],
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, **settings)


def _gemma() -> Any:
    """BPE on text whose spaces are marked, with bytes for what is not in the vocabulary."""
    backend = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    backend.normalizer = normalizers.Replace(" ", "\u2581")
    backend.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    special = ["<pad>", "<eos>", "<bos>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    names = {f"{name}_token": f"<{name}>" for name in ("pad", "eos", "bos", "unk")}
    return _trained(backend, special, "<bos>", [], **names)


def _clip() -> Any:
    from transformers import CLIPTokenizer

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("a", "t</w>"), ("c", "at</w>"), ("t", "h"), ("th", "e</w>"), ("d", "o"), ("do", "g</w>")]
    tokens = [*alphabet, *(byte + "</w>" for byte in alphabet), *(one + other for one, other in merges)]
    vocabulary = {token: number for number, token in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}
    return CLIPTokenizer(vocab=vocabulary, merges=merges)


BUILT: dict[str, Callable[[], Any]] = {
    "CLIP": _clip,
    "Gemma": _gemma,
    "Qwen": lambda: _byte_level(
        _QWEN, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], "", chat_template=QWEN3, pad_token="<|endoftext|>"
    ),
    "Llama 3": lambda: _byte_level(
        _LLAMA_3,
        ["<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"],
        "<|begin_of_text|>",
        bos_token="<|begin_of_text|>",
        eos_token="<|eot_id|>",
        pad_token="<|eot_id|>",
    ),
    "Mistral": lambda: _byte_level(
        _TEKKEN,
        ["<s>", "</s>", "<pad>", "[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[IMG]"],
        "<s>",
        chat_template=MISTRAL,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        padding_side="left",
    ),
    "GLM": lambda: _byte_level(
        _LLAMA_3,
        ["<|endoftext|>", "[gMASK]", "<sop>"],
        "[gMASK] <sop>",
        pad_token="<|endoftext|>",
        padding_side="left",
    ),
}
"""By their family's name."""
