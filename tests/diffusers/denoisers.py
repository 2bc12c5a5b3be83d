"""Whole tiny pipelines: what stands between the text and the image, with random weights, two steps, a few pixels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass(frozen=True)
class Denoiser:
    """The parts of a pipeline that do not encode text, and how it is called."""

    make: Callable[[], Mapping[str, Any]]
    call: Mapping[str, Any] = field(default_factory=dict)


def parts(name: str) -> dict[str, Any]:
    """Make a pipeline's parts; the same on every call."""
    torch.manual_seed(0)
    made = dict(DENOISERS[name].make())
    for part in made.values():
        if isinstance(part, torch.nn.Module):
            _randomise(part)
    return made


def _randomise(module: torch.nn.Module) -> None:
    """Weights that let the text through to the image: the initial ones are small, or zero, or not set at all."""
    with torch.no_grad():
        for name, parameter in module.eval().named_parameters():
            if "norm" in name:
                parameter.fill_(name.endswith(("weight", "gamma")))
            else:
                parameter.normal_(std=parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.1)


def _vae(channels: int, **settings: Any) -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(block_out_channels=(4,), norm_num_groups=1, latent_channels=channels, **settings)


def _flow(**settings: Any) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(**settings)


def _flux() -> Mapping[str, Any]:
    from diffusers import FluxTransformer2DModel

    transformer = FluxTransformer2DModel(
        in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=16, pooled_projection_dim=16, axes_dims_rope=(4, 4, 8), patch_size=1,
    )  # fmt: skip
    return {"transformer": transformer, "vae": _vae(1, shift_factor=0.1, scaling_factor=1.5), "scheduler": _flow()}


def _sd3() -> Mapping[str, Any]:
    from diffusers import SD3Transformer2DModel

    transformer = SD3Transformer2DModel(
        sample_size=8, patch_size=1, in_channels=4, out_channels=4, num_layers=1, attention_head_dim=8,
        num_attention_heads=4, caption_projection_dim=32, joint_attention_dim=40, pooled_projection_dim=24,
    )  # fmt: skip
    return {"transformer": transformer, "vae": _vae(4, shift_factor=0.1, scaling_factor=1.5), "scheduler": _flow()}


def _pixart() -> Mapping[str, Any]:
    from diffusers import DDIMScheduler, PixArtTransformer2DModel

    transformer = PixArtTransformer2DModel(
        sample_size=8, num_layers=1, attention_head_dim=8, num_attention_heads=3, caption_channels=16, in_channels=4,
        out_channels=8, cross_attention_dim=24,
    )  # fmt: skip
    return {"transformer": transformer, "vae": _vae(4), "scheduler": DDIMScheduler()}


def _sana() -> Mapping[str, Any]:
    from diffusers import AutoencoderDC, SanaTransformer2DModel

    transformer = SanaTransformer2DModel(
        patch_size=1, in_channels=4, out_channels=4, num_layers=1, num_attention_heads=2, attention_head_dim=4,
        num_cross_attention_heads=2, cross_attention_head_dim=4, cross_attention_dim=8, caption_channels=16,
        sample_size=8,
    )  # fmt: skip
    vae = AutoencoderDC(
        in_channels=3, latent_channels=4, attention_head_dim=2, encoder_block_types=("ResBlock", "ResBlock"),
        decoder_block_types=("ResBlock", "ResBlock"), encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8), encoder_qkv_multiscales=((), ()), decoder_qkv_multiscales=((), ()),
        encoder_layers_per_block=(1, 1), decoder_layers_per_block=(1, 1), downsample_block_type="conv",
        upsample_block_type="interpolate",
    )  # fmt: skip
    return {"transformer": transformer, "vae": vae, "scheduler": _flow(shift=7.0)}


def _unet(**settings: Any) -> Any:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=4, **settings,
    )  # fmt: skip


def _sd15() -> Mapping[str, Any]:
    from diffusers import DDIMScheduler

    return {"unet": _unet(cross_attention_dim=16), "vae": _vae(4), "scheduler": DDIMScheduler()}


def _sdxl() -> Mapping[str, Any]:
    from diffusers import EulerDiscreteScheduler

    unet = _unet(
        cross_attention_dim=32, use_linear_projection=True, addition_embed_type="text_time", addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 12,
    )  # fmt: skip
    return {"unet": unet, "vae": _vae(4), "scheduler": EulerDiscreteScheduler()}


def _klein() -> Mapping[str, Any]:
    from diffusers import AutoencoderKLFlux2, Flux2Transformer2DModel

    transformer = Flux2Transformer2DModel(
        patch_size=1, in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=48, timestep_guidance_channels=16, axes_dims_rope=(4, 4, 4, 4), guidance_embeds=False,
    )  # fmt: skip
    vae = AutoencoderKLFlux2(
        block_out_channels=(4,), down_block_types=("DownEncoderBlock2D",), up_block_types=("UpDecoderBlock2D",),
        layers_per_block=1, latent_channels=1, norm_num_groups=1,
    )  # fmt: skip
    return {"transformer": transformer, "vae": vae, "scheduler": _flow()}


def _wan() -> Mapping[str, Any]:
    from diffusers import AutoencoderKLWan, WanTransformer3DModel

    transformer = WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=16, out_channels=16,
        text_dim=16, freq_dim=16, ffn_dim=32, num_layers=1, rope_max_seq_len=32,
    )  # fmt: skip
    vae = AutoencoderKLWan(base_dim=3, dim_mult=[1, 1, 1, 1], num_res_blocks=1)
    return {"transformer": transformer, "vae": vae, "scheduler": _flow(shift=7.0)}


_GUIDED = {"guidance_scale": 3.0, "negative_prompt": "blurry"}

DENOISERS: Mapping[str, Denoiser] = {
    "flux.1": Denoiser(_flux, {"max_sequence_length": 48}),
    "sd3": Denoiser(_sd3, _GUIDED),
    "sdxl": Denoiser(_sdxl, _GUIDED),
    "sd1.5": Denoiser(_sd15, _GUIDED),
    "pixart-sigma": Denoiser(_pixart, {**_GUIDED, "use_resolution_binning": False}),
    "sana": Denoiser(_sana, {**_GUIDED, "height": 32, "width": 32, "use_resolution_binning": False}),
    "flux.2-klein": Denoiser(_klein, {"guidance_scale": 3.0}),
    "wan": Denoiser(_wan, {**_GUIDED, "num_frames": 5}),
}
"""By the pipeline's preset; the sizes are those of the encoders in `tests.pipelines`."""
