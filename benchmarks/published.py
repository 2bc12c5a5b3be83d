"""The text encoders that pipelines ship: the dimensions in the `config.json` of the published checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

PROJECTION = "text_projection.weight"
"""The tensor by which a CLIP with a projection is known."""


@dataclass(frozen=True, slots=True)
class Published:
    """A checkpoint that is not here: its name, and enough of its configuration to know the shape of every tensor."""

    name: str
    config: Mapping[str, Any] = field(repr=False)
    tensors: tuple[str, ...] = ()
    """Names of tensors that decide what the encoder is."""


def _t5(**config: Any) -> dict[str, Any]:
    v11 = {"model_type": "t5", "feed_forward_proj": "gated-gelu", "d_kv": 64, "num_layers": 24, "vocab_size": 32128}
    return {**v11, **config}


def _clip(**config: Any) -> dict[str, Any]:
    common = {"model_type": "clip_text_model", "vocab_size": 49408, "max_position_embeddings": 77, "eos_token_id": 2}
    return {**common, "layer_norm_eps": 1e-5, "projection_dim": config["hidden_size"], **config}


def _decoder(model_type: str, **config: Any) -> dict[str, Any]:
    common = {"rms_norm_eps": 1e-6, "hidden_act": "silu", "rope_theta": 1e6, "max_position_embeddings": 32768}
    return {"model_type": model_type, **common, **config}


T5_XXL = Published("T5 v1.1 XXL", _t5(d_model=4096, d_ff=10240, num_heads=64))
T5_11B = Published("T5 11B", _t5(d_model=1024, d_ff=65536, num_heads=128, d_kv=128, feed_forward_proj="relu"))
MT5_XL = Published("mT5 XL", _t5(d_model=2048, d_ff=5120, num_heads=32, vocab_size=250112))
PILE_T5_XL = Published("Pile-T5 XL", _t5(model_type="umt5", d_model=2048, d_ff=5120, num_heads=32))
UMT5_XXL = Published("UMT5 XXL", _t5(model_type="umt5", d_model=4096, d_ff=10240, num_heads=64, vocab_size=256384))
_L = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
_G = {"hidden_size": 1280, "num_hidden_layers": 32, "num_attention_heads": 20, "intermediate_size": 5120}
CLIP_L = Published("CLIP ViT-L/14", _clip(**_L, hidden_act="quick_gelu"))
CLIP_L_PROJECTED = Published("CLIP ViT-L/14, projected", _clip(**_L, hidden_act="quick_gelu"), (PROJECTION,))
CLIP_G = Published("OpenCLIP ViT-bigG/14, projected", _clip(**_G, hidden_act="gelu"), (PROJECTION,))
LONG_CLIP_L = Published(
    "Long-CLIP L, projected", _clip(**_L, hidden_act="quick_gelu", max_position_embeddings=248), (PROJECTION,)
)
LONG_CLIP_G = Published(
    "Long-CLIP bigG, projected", _clip(**_G, hidden_act="gelu", max_position_embeddings=248), (PROJECTION,)
)
BERT_ZH = Published(
    "BERT large, Chinese",
    {
        "model_type": "bert", "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16,
        "intermediate_size": 4096, "vocab_size": 47020, "max_position_embeddings": 512, "type_vocab_size": 2,
        "layer_norm_eps": 1e-12, "hidden_act": "gelu",
    },
)  # fmt: skip
GEMMA2_2B = Published(
    "Gemma 2 2B",
    _decoder(
        "gemma2", hidden_size=2304, num_hidden_layers=26, num_attention_heads=8, num_key_value_heads=4, head_dim=256,
        intermediate_size=9216, vocab_size=256000, sliding_window=4096, query_pre_attn_scalar=256,
        attn_logit_softcapping=50.0, hidden_activation="gelu_pytorch_tanh", rope_theta=1e4,
    ),
)  # fmt: skip
_LLAMA = {
    "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
    "intermediate_size": 14336, "rope_theta": 5e5, "rms_norm_eps": 1e-5,
}  # fmt: skip
LLAMA3_8B = Published("LLaVA-Llama 3 8B, language part", _decoder("llama", **_LLAMA, vocab_size=128320))
LLAMA31_8B = Published("Llama 3.1 8B", _decoder("llama", **_LLAMA, vocab_size=128256))
QWEN25_VL_7B = Published(
    "Qwen2.5-VL 7B, language part",
    _decoder(
        "qwen2_5_vl", hidden_size=3584, num_hidden_layers=28, num_attention_heads=28, num_key_value_heads=4,
        intermediate_size=18944, vocab_size=152064,
        rope_scaling={"type": "mrope", "mrope_section": [16, 24, 24]},
    ),
)  # fmt: skip
QWEN3_4B = Published(
    "Qwen3 4B",
    _decoder(
        "qwen3", hidden_size=2560, num_hidden_layers=36, num_attention_heads=32, num_key_value_heads=8, head_dim=128,
        intermediate_size=9728, vocab_size=151936,
    ),
)  # fmt: skip
MISTRAL_24B = Published(
    "Mistral Small 3.2 24B, language part",
    _decoder(
        "mistral", hidden_size=5120, num_hidden_layers=40, num_attention_heads=32, num_key_value_heads=8, head_dim=128,
        intermediate_size=32768, vocab_size=131072, rope_theta=1e9, rms_norm_eps=1e-5,
    ),
)  # fmt: skip
GLM4_9B = Published(
    "GLM-4 9B",
    _decoder(
        "glm", hidden_size=4096, num_hidden_layers=40, num_attention_heads=32, num_key_value_heads=2, head_dim=128,
        intermediate_size=13696, vocab_size=151552, attention_bias=True, partial_rotary_factor=0.5, rope_theta=1e4,
        rms_norm_eps=1.5625e-7,
    ),
)  # fmt: skip

ENCODERS: Mapping[str, Published] = {
    "flux.1/text_encoder": CLIP_L,
    "flux.1/text_encoder_2": T5_XXL,
    "sd3/text_encoder": CLIP_L_PROJECTED,
    "sd3/text_encoder_2": CLIP_G,
    "sd3/text_encoder_3": T5_XXL,
    "sdxl/text_encoder": CLIP_L,
    "sdxl/text_encoder_2": CLIP_G,
    "sd1.5/text_encoder": CLIP_L,
    "pixart-alpha/text_encoder": T5_XXL,
    "pixart-sigma/text_encoder": T5_XXL,
    "sana/text_encoder": GEMMA2_2B,
    "lumina2/text_encoder": GEMMA2_2B,
    "auraflow/text_encoder": PILE_T5_XL,
    "hunyuandit/text_encoder": BERT_ZH,
    "hunyuandit/text_encoder_2": MT5_XL,
    "hunyuanvideo/text_encoder": LLAMA3_8B,
    "hunyuanvideo/text_encoder_2": CLIP_L,
    "cogvideox/text_encoder": T5_XXL,
    "mochi/text_encoder": T5_XXL,
    "ltx-video/text_encoder": T5_XXL,
    "wan/text_encoder": UMT5_XXL,
    "chroma/text_encoder": T5_XXL,
    "hidream/text_encoder": LONG_CLIP_L,
    "hidream/text_encoder_2": LONG_CLIP_G,
    "hidream/text_encoder_3": T5_XXL,
    "hidream/text_encoder_4": LLAMA31_8B,
    "qwen-image/text_encoder": QWEN25_VL_7B,
    "z-image/text_encoder": QWEN3_4B,
    "flux.2/text_encoder": MISTRAL_24B,
    "flux.2-klein/text_encoder": QWEN3_4B,
    "cogview4/text_encoder": GLM4_9B,
    "deepfloyd-if/text_encoder": T5_XXL,
    "allegro/text_encoder": T5_XXL,
    "cosmos/text_encoder": T5_11B,
    "stable-cascade/text_encoder": CLIP_G,
    "kandinsky2.2-prior/text_encoder": CLIP_G,
}
"""By preset: what the pipeline's best known checkpoint ships."""
