"""Tiny text encoders with random weights, made by `transformers`, and a session that runs one in place of a bundle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from skrr_export.manifest import TOKENIZER
from skrr_export.pipelines import Preset, find_preset
from skrr_export.tokenization import Tokenizer
from tests.pipelines.tokenizers import VOCABULARY, small_tokenizer

_T5 = {"d_model": 16, "d_kv": 4, "d_ff": 20, "num_heads": 3, "num_layers": 2, "vocab_size": VOCABULARY}
_BERT = {
    "hidden_size": 16,
    "num_attention_heads": 2,
    "intermediate_size": 20,
    "num_hidden_layers": 3,
    "vocab_size": VOCABULARY,
}
_DECODER = {**_BERT, "num_key_value_heads": 1, "head_dim": 8, "pad_token_id": 0, "bos_token_id": 3, "eos_token_id": 1}
_CLIP = {**_BERT, "projection_dim": 12, "pad_token_id": 1, "bos_token_id": 3, "eos_token_id": 1}
_MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
_VISION = {"hidden_size": 16, "depth": 1, "num_hidden_layers": 1, "num_heads": 2, "num_attention_heads": 2}

_TEXT_ENCODERS: Mapping[str, tuple[str, str, dict[str, Any]]] = {
    # family and variant: class of the model, class of its configuration, its values
    "t5": ("T5EncoderModel", "T5Config", {**_T5, "feed_forward_proj": "gated-gelu"}),
    "umt5": ("UMT5EncoderModel", "UMT5Config", _T5),
    "bert": ("BertModel", "BertConfig", _BERT),
    "clip": ("CLIPTextModel", "CLIPTextConfig", _CLIP),
    "clip projected": ("CLIPTextModelWithProjection", "CLIPTextConfig", _CLIP),
    "gemma2": ("Gemma2Model", "Gemma2Config", _DECODER),
    "llama": ("LlamaModel", "LlamaConfig", _DECODER),
    "llama causal": ("LlamaForCausalLM", "LlamaConfig", _DECODER),
    "qwen2.5": (
        "Qwen2_5_VLForConditionalGeneration",
        "Qwen2_5_VLConfig",
        {"text_config": {**_DECODER, "rope_parameters": _MROPE}, "vision_config": {**_VISION, "out_hidden_size": 16}},
    ),
    "qwen3": ("Qwen3Model", "Qwen3Config", _DECODER),
    "qwen3 of 28": ("Qwen3ForCausalLM", "Qwen3Config", {**_DECODER, "num_hidden_layers": 28}),
    "mistral": (
        "Mistral3ForConditionalGeneration",
        "Mistral3Config",
        {
            "text_config": {**_DECODER, "num_hidden_layers": 31, "model_type": "mistral"},
            "vision_config": {**_VISION, "intermediate_size": 20, "model_type": "pixtral"},
        },
    ),
    "glm": ("GlmModel", "GlmConfig", _DECODER),
}


@dataclass(frozen=True)
class Tiny:
    """A text encoder and its tokenizer, as a pipeline's components."""

    kind: str
    """Key of a tiny text encoder."""
    ending: str
    """Of the tokenizer."""
    tokenizer: Mapping[str, Any] = field(default_factory=dict)
    """Its settings."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """Of the encoder, over the usual."""

    def make_encoder(self, seed: int) -> Any:
        """The encoder, in fp32, with weights large enough to tell two prompts apart."""
        import transformers

        model_class, config_class, values = _TEXT_ENCODERS[self.kind]
        config = getattr(transformers, config_class)(**{**values, **self.config})
        config._attn_implementation = "eager"
        torch.manual_seed(seed)
        model = getattr(transformers, model_class)(config).float().eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.normal_(1 if "norm" in name and name.endswith("weight") else 0, 0.3)
        return model

    def make_tokenizer(self) -> Any:
        """A tokenizer of its own."""
        return small_tokenizer(self.ending, **self.tokenizer)

    @property
    def definition(self) -> Any:
        """As much of an encoder's definition as a preset is chosen by."""
        family = self.kind.split()[0]
        values = {**_TEXT_ENCODERS[self.kind][2], **self.config}
        values = values.get("text_config", values)
        kinds = ["last_hidden_state", "hidden_states"]
        kinds += ["pooler_output"] if family == "clip" else []
        kinds += ["text_embeds"] if self.kind == "clip projected" else []
        return SimpleNamespace(
            family=family,
            kinds=tuple(kinds),
            num_layers=values.get("num_layers", values.get("num_hidden_layers")),
            max_length=self.config.get("max_position_embeddings", 77) if family == "clip" else None,
        )


class FakeSession:
    """Runs a `transformers` encoder, and gives the outputs that a preset names."""

    def __init__(self, directory: Path, tiny: Tiny, encoder: Any, pipeline: str, slot: str) -> None:
        """Lay the tokenizer and the configuration out as a bundle does; the preset comes out of a manifest's text."""
        tiny.make_tokenizer().save_pretrained(directory / TOKENIZER)
        encoder.config.save_pretrained(directory)
        found = find_preset(f"{pipeline}/{slot}", tiny.definition)
        preset = Tokenizer(directory / TOKENIZER, directory, found).preset
        preset = Preset.from_dict(json.loads(json.dumps(preset.to_dict())))
        manifest = SimpleNamespace(pipeline=preset, batch=None)
        self.bundle: Any = SimpleNamespace(directory=directory, carries_tokenizer=True, manifest=manifest)
        self._encoder = encoder

    @property
    def preset(self) -> Preset:
        preset: Preset = self.bundle.manifest.pipeline
        return preset

    def encode(self, input_ids: np.ndarray, attention_mask: np.ndarray | None = None) -> dict[str, np.ndarray]:
        mask = {} if attention_mask is None else {"attention_mask": torch.from_numpy(attention_mask)}
        with torch.inference_mode():
            given = self._encoder(torch.from_numpy(input_ids), **mask, output_hidden_states=True)
        arrays = {}
        for output in self.preset.outputs:
            if output.kind != "hidden_states":
                value = given[output.kind]
            elif output.join == "stack":
                value = torch.stack([given.hidden_states[layer] for layer in output.layers], dim=1)
            else:
                value = torch.cat([given.hidden_states[layer] for layer in output.layers], dim=-1)
            arrays[output.name] = value.numpy()
        return arrays
