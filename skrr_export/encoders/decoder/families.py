"""The families of decoder-only language models: how each one's `config.json` is read, and what sets it apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from skrr_export.encoders.base import positive_int
from skrr_export.encoders.decoder.definition import DecoderEncoder
from skrr_export.encoders.decoder.reading import FULL, SLIDING, flag, mapping, positive_number, rope_parameters, windows
from skrr_export.encoders.decoder.rope import Rope, read_rope
from skrr_export.errors import CheckpointError

THETA = 10_000.0
"""The base wavelength of rotary embeddings where a configuration gives none."""


def _rope(config: Mapping[str, Any]) -> Rope:
    """The rotary embedding of a model in which all of a head turns."""
    parameters = rope_parameters(config)
    share = parameters.get("partial_rotary_factor", config.get("partial_rotary_factor"))
    if share not in (None, 1):
        raise CheckpointError(f"config.json: heads that turn in part ({share!r} of them) are glm's alone")
    return read_rope(parameters, config, config["head_dim"], config.get("rope_theta", THETA))


@dataclass(frozen=True)
class LlamaEncoder(DecoderEncoder):
    """Llama."""

    family: ClassVar[str] = "llama"
    model_types: ClassVar[tuple[str, ...]] = ("llama",)

    @classmethod
    def traits(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        bias = flag(config, "attention_bias")
        return {
            "rope": _rope(config),
            "attention_bias": bias,
            "output_bias": bias,
            "feed_forward_bias": flag(config, "mlp_bias"),
        }


@dataclass(frozen=True)
class MistralEncoder(DecoderEncoder):
    """Mistral, and the language part of Mistral 3: a window for every layer or for none."""

    family: ClassVar[str] = "mistral"
    model_types: ClassVar[tuple[str, ...]] = ("mistral", "mistral3")
    defaults: ClassVar[Mapping[str, Any]] = {"sliding_window": 4096}

    @classmethod
    def traits(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        window = None if config["sliding_window"] is None else positive_int(config, "sliding_window")
        layers = positive_int(config, "num_hidden_layers")
        return {"rope": _rope(config), "windows": (window,) * layers}


def _qwen_windows(config: Mapping[str, Any]) -> tuple[int | None, ...]:
    window: int | None = None
    first: Any = config.get("max_window_layers")
    if flag(config, "use_sliding_window") and config.get("sliding_window") is not None:
        window = positive_int(config, "sliding_window")
        if type(first) is not int:
            raise CheckpointError(f"config.json: 'max_window_layers' must be a number of layers, not {first!r}")
    return windows(config, window, lambda layer: window is not None and layer >= first)


@dataclass(frozen=True)
class Qwen25Encoder(DecoderEncoder):
    """Qwen 2 and 2.5, and the language part of Qwen2.5-VL, whose three axes of positions are one for text.

    Early releases of transformers count the positions of a Qwen2.5-VL without its padding; since attention
    depends on differences of positions alone, that shows in the rows of padding and nowhere else.
    """

    family: ClassVar[str] = "qwen2.5"
    model_types: ClassVar[tuple[str, ...]] = ("qwen2", "qwen2_5_vl", "qwen2_5_vl_text")

    @classmethod
    def traits(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        sees = config.get("model_type") != "qwen2"
        if sees and config["head_dim"] * positive_int(config, "num_attention_heads") != positive_int(
            config, "hidden_size"
        ):
            raise CheckpointError("config.json: the heads of a Qwen2.5-VL must make up its hidden size")
        parameters = dict(rope_parameters(config))
        if sees and parameters.get("rope_type", parameters.get("type")) == "mrope":
            parameters["rope_type"] = "default"
        theta = config.get("rope_theta", 1_000_000.0 if sees else THETA)
        rope = read_rope(parameters, config, config["head_dim"], theta)
        return {"rope": rope, "windows": _qwen_windows(config), "attention_bias": True}


@dataclass(frozen=True)
class Qwen3Encoder(DecoderEncoder):
    """Qwen 3."""

    family: ClassVar[str] = "qwen3"
    model_types: ClassVar[tuple[str, ...]] = ("qwen3",)
    defaults: ClassVar[Mapping[str, Any]] = {"head_dim": 128}

    @classmethod
    def traits(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        bias = flag(config, "attention_bias")
        return {
            "rope": _rope(config),
            "windows": _qwen_windows(config),
            "attention_bias": bias,
            "output_bias": bias,
            "query_key_norms": True,
        }


@dataclass(frozen=True)
class GemmaEncoder(DecoderEncoder):
    """What the generations of Gemma have in common."""

    @classmethod
    def traits(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        bias = flag(config, "attention_bias")
        return {
            "scale": positive_number(config, "query_pre_attn_scalar") ** -0.5,
            "attention_bias": bias,
            "output_bias": bias,
            "post_norms": True,
            "offset_norms": True,
            "embedding_scale": positive_int(config, "hidden_size") ** 0.5,
        }


@dataclass(frozen=True)
class Gemma2Encoder(GemmaEncoder):
    """Gemma 2: every other layer has a window."""

    family: ClassVar[str] = "gemma2"
    model_types: ClassVar[tuple[str, ...]] = ("gemma2",)
    defaults: ClassVar[Mapping[str, Any]] = {
        "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "attn_logit_softcapping": 50.0,
    }

    @classmethod
    def traits(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        capped = config["attn_logit_softcapping"] is not None
        return {
            **super().traits(config),
            "rope": _rope(config),
            "windows": windows(config, positive_int(config, "sliding_window"), lambda layer: layer % 2 == 0),
            "softcap": positive_number(config, "attn_logit_softcapping") if capped else None,
        }


@dataclass(frozen=True)
class Gemma3Encoder(GemmaEncoder):
    """Gemma 3's language model, alone or not: most layers have a window, and a rotary embedding of their own."""

    family: ClassVar[str] = "gemma3"
    model_types: ClassVar[tuple[str, ...]] = ("gemma3", "gemma3_text")
    defaults: ClassVar[Mapping[str, Any]] = {
        "vocab_size": 262_208,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh",
        "max_position_embeddings": 131_072,
        "rms_norm_eps": 1e-6,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
    }

    @classmethod
    def traits(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        if config.get("attn_logit_softcapping") is not None:
            raise CheckpointError("config.json: 'attn_logit_softcapping' is not supported for Gemma 3, which has none")
        every = positive_int({"sliding_window_pattern": 6, **config}, "sliding_window_pattern")
        return {
            **super().traits(config),
            "rope": cls._rope(config, FULL),
            "local_rope": cls._rope(config, SLIDING),
            "windows": windows(config, positive_int(config, "sliding_window"), lambda layer: (layer + 1) % every != 0),
            "query_key_norms": True,
        }

    @staticmethod
    def _rope(config: Mapping[str, Any], layer_type: str) -> Rope:
        """The rotary embedding of a layer type; early configurations have `rope_scaling`, of full attention alone."""
        by_type = mapping(config.get("rope_parameters") or {}, "rope_parameters")
        parameters = mapping(by_type.get(layer_type) or {}, "rope_parameters")
        theta = config.get("rope_local_base_freq", THETA)
        if layer_type == FULL:
            parameters = {**parameters, **mapping(config.get("rope_scaling") or {}, "rope_scaling")}
            theta = config.get("rope_theta", 1_000_000.0)
        return read_rope(parameters, config, config["head_dim"], theta)


@dataclass(frozen=True)
class GlmEncoder(DecoderEncoder):
    """GLM-4: neighbouring features turn, and only in half of a head; CogView4's text encoder."""

    family: ClassVar[str] = "glm"
    model_types: ClassVar[tuple[str, ...]] = ("glm",)
    defaults: ClassVar[Mapping[str, Any]] = {"head_dim": 128, "attention_bias": True}

    @classmethod
    def traits(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        parameters = rope_parameters(config)
        given = {"partial_rotary_factor": config.get("partial_rotary_factor", 0.5), **parameters}
        share = positive_number(given, "partial_rotary_factor")
        if share > 1:
            raise CheckpointError(f"config.json: 'partial_rotary_factor' must be a share of a head, not {share}")
        theta = config.get("rope_theta", THETA)
        return {
            "rope": read_rope(parameters, config, int(config["head_dim"] * share), theta, interleaved=True),
            "attention_bias": flag(config, "attention_bias"),
            "fused_gate": True,
        }


DECODERS: tuple[type[DecoderEncoder], ...] = (
    LlamaEncoder, MistralEncoder, Qwen25Encoder, Qwen3Encoder, Gemma2Encoder, Gemma3Encoder, GlmEncoder,
)  # fmt: skip
