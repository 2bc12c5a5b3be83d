"""Prompts to token ids, as the bundle's pipeline makes them; run by Triton's Python backend."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from skrr_export.errors import InputError
from skrr_export.triton.config import MAX_CHARACTERS
from skrr_export.triton.serving import Arrays, Model, Settings, says_negative, tensor
from skrr_export.triton.tokenizer import open_tokenizer


class TritonPythonModel(Model):
    """One instance."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Load the tokenizer, after checking its files."""
        settings = Settings(args)
        self._tokenizer = open_tokenizer(settings.directory)
        self._max_characters = int(settings.parameter("max_characters") or MAX_CHARACTERS)

    def read(self, request: Any) -> Arrays:
        text = tensor(request, "text")
        if text.ndim != 2 or text.shape[1] != 1:
            raise InputError(f"text must be [batch, 1], not {list(text.shape)}")
        return {"text": np.array([[self._prompt(row, content)] for row, (content,) in enumerate(text)], dtype=object)}

    def _prompt(self, row: int, content: bytes) -> str:
        try:
            prompt = content.decode()
        except UnicodeDecodeError as error:
            raise InputError(f"prompt {row} is not UTF-8 text: {error.reason} at byte {error.start}") from error
        if len(prompt) > self._max_characters:
            raise InputError(
                f"prompt {row} has {len(prompt)} characters, more than the {self._max_characters} this server takes"
            )
        return prompt

    def negative(self, request: Any) -> bool:
        preset = self._tokenizer.preset
        return preset.negative != preset and says_negative(request)

    def run(self, inputs: Arrays, *, negative: bool) -> Arrays:
        tokens = self._tokenizer(list(inputs["text"][:, 0]), negative=negative)
        return {"input_ids": tokens.input_ids, "attention_mask": tokens.attention_mask}

    def finish(self, outputs: Arrays) -> Arrays:
        """Pad to the longest prompt of the request, as if it had come alone."""
        preset = self._tokenizer.preset
        if preset.padding == "max_length":
            return outputs
        used = outputs["attention_mask"].any(axis=0)
        missing = ((0, 0), (-int(used.sum()) % preset.multiple_of, 0))
        padding = {"input_ids": self._tokenizer.pad_id, "attention_mask": 0}
        return {name: np.pad(array[:, used], missing, constant_values=padding[name]) for name, array in outputs.items()}
