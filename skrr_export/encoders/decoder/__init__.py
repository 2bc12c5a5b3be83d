"""Decoder-only language models: Llama, Mistral, Qwen, Gemma, GLM."""

from __future__ import annotations

from skrr_export.encoders.decoder.definition import DecoderEncoder
from skrr_export.encoders.decoder.families import DECODERS

__all__ = ["DECODERS", "DecoderEncoder"]
