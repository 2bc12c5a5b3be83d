"""Small tokenizers for the pipelines of diffusers, and chat templates modelled on those of the real ones."""

from __future__ import annotations

from functools import cache
from typing import Any

QWEN3 = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{% endif %}"
)
"""Qwen3's chat template, for conversations without tools."""

MISTRAL = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message.content is string %}{% set text = message.content %}"
    "{% else %}{% set text = message.content | map(attribute='text') | join('') %}{% endif %}"
    "{% if message.role == 'system' %}{{ '[SYSTEM_PROMPT]' + text + '[/SYSTEM_PROMPT]' }}"
    "{% elif message.role == 'user' %}{{ '[INST]' + text + '[/INST]' }}"
    "{% else %}{{ raise_exception('Only user and system roles are supported!') }}{% endif %}"
    "{% endfor %}"
)
"""Mistral Small 3's chat template, for text alone."""

SPECIAL = ["<pad>", "</s>", "<unk>", "<cls>", "<|im_start|>", "<|im_end|>", "<|eot_id|>", "[INST]", "[/INST]"]
VOCABULARY = 640
"""Of every tokenizer here."""


def small_tokenizer(ending: str, *, pad: str | None = "<pad>", **settings: Any) -> Any:
    """A byte-level BPE trained on what pipelines put around prompts, so that these are a few hundred tokens at most.

    Args:
        ending: template of a tokenised prompt, for example `"<cls> $A </s>"`.
        pad: token for padding; `None`: it has none.
        settings: of the `PreTrainedTokenizerFast`.
    """
    from tokenizers import Tokenizer, processors
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer.from_str(_trained())
    backend.post_processor = processors.TemplateProcessing(
        single=ending, special_tokens=[(token, SPECIAL.index(token)) for token in ("</s>", "<cls>")]
    )
    tokens = {"eos_token": "</s>", "unk_token": "<unk>", "bos_token": "<cls>"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token=pad, **tokens, **settings)


@cache
def _trained() -> str:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    from skrr_export.pipelines.templates import HUNYUAN_VIDEO, LUMINA_INSTRUCTION, SANA_INSTRUCTION

    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=SPECIAL, initial_alphabet=alphabet)
    backend.train_from_iterator([HUNYUAN_VIDEO[0], LUMINA_INSTRUCTION, SANA_INSTRUCTION], trainer)
    text: str = backend.to_str()
    return text
