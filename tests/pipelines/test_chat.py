"""Chat templates: what they put around a prompt, and the tokenizers that have none that fits."""

from __future__ import annotations

from typing import Any

import pytest

from skrr_export.errors import InputError
from skrr_export.pipelines import PRESETS
from skrr_export.pipelines.chat import Chat
from tests.pipelines.tokenizers import MISTRAL, QWEN3, small_tokenizer

USER = Chat(add_generation_prompt=True)


def tokenizer(template: str | None) -> Any:
    return small_tokenizer("<cls> $A", chat_template=template)


@pytest.mark.parametrize(
    ("chat", "template", "prefix", "suffix"),
    [
        (USER, QWEN3, "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"),
        (Chat(add_generation_prompt=False), QWEN3, "<|im_start|>user\n", "<|im_end|>\n"),
        (
            Chat(add_generation_prompt=True, enable_thinking=False),
            QWEN3,
            "<|im_start|>user\n",
            "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
        ),
        (
            Chat(add_generation_prompt=True, enable_thinking=True),
            QWEN3,
            "<|im_start|>user\n",
            "<|im_end|>\n<|im_start|>assistant\n",
        ),
        (
            Chat(system="Be brief.", add_generation_prompt=False, parts=True),
            MISTRAL,
            "<cls>[SYSTEM_PROMPT]Be brief.[/SYSTEM_PROMPT][INST]",
            "[/INST]",
        ),
        (USER, "{{ messages[0].content }}", "", ""),
    ],
)
def test_what_stands_around_the_prompt(chat: Chat, template: str, prefix: str, suffix: str) -> None:
    assert chat.render(tokenizer(template)) == (prefix, suffix)


@pytest.mark.parametrize(
    "template",
    [
        "[INST]{{ messages[0].content | trim }}[/INST]",
        "[INST]{{ messages[0].content | upper }}[/INST]",
        "[INST]{{ messages[0].content | e }}[/INST]",
        "{% if messages[0].content %}[INST]{{ messages[0].content }}[/INST]{% endif %}",
        "{{ messages[0].content }} or {{ messages[0].content }}",
        "{{ messages[0].content | length }}: {{ messages[0].content }}",
        "nothing",
    ],
)
def test_a_template_that_changes_the_prompt_is_refused(template: str) -> None:
    with pytest.raises(InputError, match="does not put the prompt unchanged between two texts"):
        USER.render(tokenizer(template))


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (None, "chat_template is not set"),
        ("{{ raise_exception('no system role') }}", "no system role"),
        ("{% if %}", "Expected an expression"),
        ("{{ 'a' + messages[0].content + 1 }}", "can only concatenate str"),
        ("{{ messages[7].content.strip() }}", "has no element 7"),
    ],
)
def test_a_template_that_fails_is_an_error_in_one_line(template: str | None, reason: str) -> None:
    with pytest.raises(InputError, match=reason) as caught:
        USER.render(tokenizer(template))
    assert "the pipeline needs the tokenizer's chat template" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_parts_need_a_template_that_knows_them() -> None:
    with pytest.raises(InputError, match="can only concatenate str"):
        Chat(add_generation_prompt=True, parts=True).render(tokenizer(QWEN3))


@pytest.mark.parametrize("name", ["z-image", "flux.2", "flux.2-klein"])
def test_a_preset_is_resolved_once(name: str) -> None:
    preset = PRESETS[name]
    found = preset.resolve(tokenizer(MISTRAL if name == "flux.2" else QWEN3))
    assert (preset.resolved, found.resolved) == (False, True)
    assert (found.prefix != "", found.suffix != "", found.chat) == (True, True, None)
    assert found.resolve(None) is found
    assert found.max_length == preset.max_length  # the template counts among its tokens


def test_sana_grows_by_its_instruction() -> None:
    preset = PRESETS["sana"]
    tokens = small_tokenizer("<cls> $A")
    count = len(tokens(preset.prefix)["input_ids"])  # its beginning included
    found = preset.resolve(tokens)
    assert (preset.resolved, found.resolved) == (False, True)
    assert (found.max_length, found.crop) == (300 + count - 2, (1, count - 1))
    assert found.max_length - (found.crop[1] - found.crop[0]) == 300
    assert (found.negative.max_length, found.negative.crop, found.negative.prefix) == (300, (0, 0), "")


def test_a_tokenizer_that_loses_the_instruction_is_refused() -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    empty = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()))
    with pytest.raises(InputError, match="makes nothing of the text before a prompt of 'sana'"):
        PRESETS["sana"].resolve(empty)
