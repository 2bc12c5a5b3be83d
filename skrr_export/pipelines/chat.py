"""Chat templates: what a tokenizer's own puts around a prompt, found out once instead of rendered for each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from skrr_export.errors import InputError

_MARK = "a cat 7 on the mat"
"""A prompt that no template contains."""
_PROBES = ("", " ", "  two  spaces\n", "\n\ttabs\r\n", "{braces} {{ x }} {% if %}", '<b>&amp;</b> "it\'s" 漢字 🦊')
"""Prompts that a template must leave as they are: white space, and what templates, HTML and JSON could mean by it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chat:
    """The conversation that a pipeline has rendered: a system message or none, then the prompt as the user's."""

    system: str | None = None
    add_generation_prompt: bool
    """Whether the assistant's turn is opened."""
    enable_thinking: bool | None = None
    """What Qwen3's template is told; `None`: nothing."""
    parts: bool = False
    """Whether a message is a list of parts, one text here, as processors take it; otherwise the text itself."""

    def render(self, tokenizer: Any) -> tuple[str, str]:
        """What a tokenizer's template puts before and after the prompt.

        Args:
            tokenizer: of `transformers`.

        Raises:
            InputError: it has no chat template, or one that fails, or changes a prompt.
        """
        before, mark, after = self._text(tokenizer, _MARK).partition(_MARK)
        for probe in (_MARK, *_PROBES):
            if not mark or self._text(tokenizer, probe) != before + probe + after:
                raise InputError(
                    "the tokenizer's chat template does not put the prompt unchanged between two texts; "
                    f"it fails for {probe!r}"
                )
        return before, after

    def _text(self, tokenizer: Any, prompt: str) -> str:
        messages = [] if self.system is None else [self._message("system", self.system)]
        thinking = {} if self.enable_thinking is None else {"enable_thinking": self.enable_thinking}
        try:
            text: str = tokenizer.apply_chat_template(
                [*messages, self._message("user", prompt)],
                tokenize=False,
                add_generation_prompt=self.add_generation_prompt,
                **thinking,
            )
        except Exception as error:  # a template is a program, and may do anything
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise InputError(f"the pipeline needs the tokenizer's chat template, which fails: {reason}") from error
        return text

    def _message(self, role: str, text: str) -> dict[str, Any]:
        return {"role": role, "content": [{"type": "text", "text": text}] if self.parts else text}
