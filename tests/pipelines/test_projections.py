"""The parameters that presets name are the denoisers', and take what the encoders give."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch

from skrr_export.pipelines import PRESETS, pipeline_names

_UNET = {"layers_per_block": 1, "cross_attention_dim": 32, "block_out_channels": (32, 64)}
_PAIR = {"num_layers": 1, "num_single_layers": 1}

DENOISERS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "flux.1": ("FluxTransformer2DModel", _PAIR),
    "sd3": ("SD3Transformer2DModel", {"num_layers": 1}),
    "sdxl": (
        "UNet2DConditionModel",
        {
            **_UNET,
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 80,
        },
    ),
    "sd1.5": (
        "UNet2DConditionModel",
        {
            **_UNET,
            "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        },
    ),
    "deepfloyd-if": (
        "UNet2DConditionModel",
        {
            **_UNET,
            "down_block_types": ("SimpleCrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "SimpleCrossAttnUpBlock2D"),
            "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
            "addition_embed_type": "text",
            "addition_embed_type_num_heads": 2,
            "encoder_hid_dim": 32,
        },
    ),
    "stable-cascade": (
        "StableCascadeUNet",
        {
            "clip_text_in_channels": 16,
            "clip_text_pooled_in_channels": 16,
            "clip_image_in_channels": 16,
            "block_out_channels": (32, 32),
            "num_attention_heads": (2, 2),
            "down_num_layers_per_block": (1, 1),
            "up_num_layers_per_block": (1, 1),
            "conditioning_dim": 16,
        },
    ),
    "kandinsky2.2-prior": ("PriorTransformer", {"num_layers": 1}),
    "pixart-alpha": ("PixArtTransformer2DModel", {"num_layers": 1, "caption_channels": 16}),
    "pixart-sigma": ("PixArtTransformer2DModel", {"num_layers": 1, "caption_channels": 16}),
    "allegro": ("AllegroTransformer3DModel", {"num_layers": 1}),
    "auraflow": ("AuraFlowTransformer2DModel", {"num_mmdit_layers": 1, "num_single_dit_layers": 1}),
    "chroma": ("ChromaTransformer2DModel", _PAIR),
    "cogvideox": ("CogVideoXTransformer3DModel", {"num_layers": 1}),
    "cosmos": ("CosmosTransformer3DModel", {"num_layers": 1}),
    "ltx-video": ("LTXVideoTransformer3DModel", {"num_layers": 1}),
    "mochi": ("MochiTransformer3DModel", {"num_layers": 1}),
    "wan": ("WanTransformer3DModel", {"num_layers": 1}),
    "hunyuandit": (
        "HunyuanDiT2DModel",
        {
            "num_layers": 2,
            "num_attention_heads": 2,
            "attention_head_dim": 16,
            "hidden_size": 32,
            "patch_size": 2,
            "in_channels": 4,
        },
    ),
    "sana": ("SanaTransformer2DModel", {"num_layers": 1}),
    "lumina2": ("Lumina2Transformer2DModel", {"num_layers": 1}),
    "hunyuanvideo": ("HunyuanVideoTransformer3DModel", _PAIR),
    "qwen-image": ("QwenImageTransformer2DModel", {"num_layers": 1}),
    "z-image": ("ZImageTransformer2DModel", {"n_layers": 1}),
    "flux.2": ("Flux2Transformer2DModel", _PAIR),
    "flux.2-klein": ("Flux2Transformer2DModel", _PAIR),
    "cogview4": ("CogView4Transformer2DModel", {"num_layers": 1}),
    "hidream": (
        "HiDreamImageTransformer2DModel",
        {
            "patch_size": 2,
            "num_layers": 16,
            "num_single_layers": 32,
            "attention_head_dim": 8,
            "num_attention_heads": 2,
            "caption_channels": [32, 32],
            "text_emb_dim": 32,
            "num_routed_experts": 1,
            "num_activated_experts": 1,
            "axes_dims_rope": (2, 4, 2),
            "max_resolution": (8, 8),
        },
    ),
}
"""Class of a pipeline's denoiser, and what makes it small without renaming a parameter that reads text."""


@pytest.mark.parametrize("name", pipeline_names()[1:])
def test_the_denoiser_has_the_parameters_that_a_preset_names(name: str) -> None:
    import diffusers

    class_name, config = DENOISERS[name]
    with torch.device("meta"):
        parameters = getattr(diffusers, class_name)(**config).state_dict()
    for preset in PRESETS.values():
        if preset.name == name:
            assert preset.projection
            assert set(preset.projection) <= parameters.keys()
