"""The denoiser's text projection: against diffusers' own classes, and every way in which it can be refused."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from skrr_export.errors import CheckpointError, InputError
from skrr_export.pipelines import PRESETS
from skrr_export.search.projection import Projection, open_projection

WIDTH = 37
"""Of the encoder; no projection below has another dimension like it."""
TOLERANCE = 1e-6
"""Relative, of two orders of the same fp32 sums over fewer than 50 terms."""
SINGLE = "diffusion_pytorch_model.safetensors"
INDEX = "diffusion_pytorch_model.safetensors.index.json"

TWO_LAYERS = ["linear_1.weight", "linear_1.bias", "linear_2.weight", "linear_2.bias"]
CAPTION = [f"caption_projection.{name}" for name in TWO_LAYERS]
DENOISERS: dict[str, tuple[dict[str, Any], list[str], list[str]]] = {
    # class in diffusers: its arguments, the submodules that its forward sends the text through, and their tensors
    "FluxTransformer2DModel": (
        {
            "in_channels": 5,
            "num_layers": 1,
            "num_single_layers": 1,
            "attention_head_dim": 14,
            "num_attention_heads": 3,
            "joint_attention_dim": WIDTH,
            "pooled_projection_dim": 11,
            "axes_dims_rope": (2, 4, 8),
        },
        ["context_embedder"],
        ["context_embedder.weight", "context_embedder.bias"],
    ),
    "SD3Transformer2DModel": (
        {
            "sample_size": 6,
            "in_channels": 3,
            "num_layers": 1,
            "attention_head_dim": 12,
            "num_attention_heads": 3,
            "joint_attention_dim": WIDTH,
            "caption_projection_dim": 36,
            "pooled_projection_dim": 11,
            "out_channels": 3,
            "pos_embed_max_size": 5,
        },
        ["context_embedder"],
        ["context_embedder.weight", "context_embedder.bias"],
    ),
    "PixArtTransformer2DModel": (
        {
            "num_attention_heads": 3,
            "attention_head_dim": 12,
            "in_channels": 3,
            "out_channels": 6,
            "num_layers": 1,
            "norm_num_groups": 1,
            "cross_attention_dim": 36,
            "sample_size": 6,
            "caption_channels": WIDTH,
        },
        ["caption_projection"],
        CAPTION,
    ),
    "AuraFlowTransformer2DModel": (
        {
            "sample_size": 6,
            "in_channels": 3,
            "num_mmdit_layers": 1,
            "num_single_dit_layers": 1,
            "attention_head_dim": 7,
            "num_attention_heads": 3,
            "joint_attention_dim": WIDTH,
            "caption_projection_dim": 21,
            "out_channels": 3,
            "pos_embed_max_size": 9,
        },
        ["context_embedder"],
        ["context_embedder.weight"],
    ),
    "CogVideoXTransformer3DModel": (
        {
            "num_attention_heads": 3,
            "attention_head_dim": 16,
            "in_channels": 3,
            "out_channels": 3,
            "time_embed_dim": 5,
            "text_embed_dim": WIDTH,
            "num_layers": 1,
            "sample_width": 6,
            "sample_height": 6,
            "sample_frames": 5,
            "max_text_seq_length": 7,
        },
        ["patch_embed.text_proj"],
        ["patch_embed.text_proj.weight", "patch_embed.text_proj.bias"],
    ),
    "LTXVideoTransformer3DModel": (
        {
            "in_channels": 3,
            "out_channels": 3,
            "num_attention_heads": 3,
            "attention_head_dim": 14,
            "cross_attention_dim": 42,
            "num_layers": 1,
            "caption_channels": WIDTH,
        },
        ["caption_projection"],
        CAPTION,
    ),
    "SanaTransformer2DModel": (
        {
            "in_channels": 3,
            "out_channels": 3,
            "num_attention_heads": 3,
            "attention_head_dim": 7,
            "num_layers": 1,
            "num_cross_attention_heads": 3,
            "cross_attention_head_dim": 7,
            "cross_attention_dim": 21,
            "caption_channels": WIDTH,
            "sample_size": 6,
        },
        ["caption_projection", "caption_norm"],
        [*CAPTION, "caption_norm.weight"],
    ),
    "AllegroTransformer3DModel": (
        {
            "num_attention_heads": 3,
            "attention_head_dim": 12,
            "in_channels": 3,
            "out_channels": 3,
            "num_layers": 1,
            "cross_attention_dim": 36,
            "sample_height": 6,
            "sample_width": 6,
            "sample_frames": 5,
            "caption_channels": WIDTH,
        },
        ["caption_projection"],
        CAPTION,
    ),
    "ChromaTransformer2DModel": (
        {
            "in_channels": 5,
            "num_layers": 1,
            "num_single_layers": 1,
            "attention_head_dim": 14,
            "num_attention_heads": 3,
            "joint_attention_dim": WIDTH,
            "axes_dims_rope": (2, 4, 8),
            "approximator_num_channels": 8,
            "approximator_hidden_dim": 10,
            "approximator_layers": 1,
        },
        ["context_embedder"],
        ["context_embedder.weight", "context_embedder.bias"],
    ),
    "Flux2Transformer2DModel": (
        {
            "in_channels": 5,
            "num_layers": 1,
            "num_single_layers": 1,
            "attention_head_dim": 14,
            "num_attention_heads": 3,
            "joint_attention_dim": WIDTH,
            "timestep_guidance_channels": 6,
            "axes_dims_rope": (2, 4, 4, 4),
        },
        ["context_embedder"],
        ["context_embedder.weight"],
    ),
    "CogView4Transformer2DModel": (
        {
            "in_channels": 3,
            "out_channels": 3,
            "num_layers": 1,
            "attention_head_dim": 14,
            "num_attention_heads": 3,
            "text_embed_dim": WIDTH,
            "time_embed_dim": 10,
            "condition_dim": 6,
        },
        ["patch_embed.text_proj"],
        ["patch_embed.text_proj.weight", "patch_embed.text_proj.bias"],
    ),
    "HunyuanVideoTransformer3DModel": (
        {
            "in_channels": 3,
            "out_channels": 3,
            "num_attention_heads": 3,
            "attention_head_dim": 14,
            "num_layers": 1,
            "num_single_layers": 1,
            "num_refiner_layers": 1,
            "text_embed_dim": WIDTH,
            "pooled_projection_dim": 11,
            "rope_axes_dim": (2, 4, 8),
        },
        ["context_embedder.proj_in"],
        ["context_embedder.proj_in.weight", "context_embedder.proj_in.bias"],
    ),
    "WanTransformer3DModel": (
        {
            "num_attention_heads": 3,
            "attention_head_dim": 14,
            "in_channels": 3,
            "out_channels": 3,
            "text_dim": WIDTH,
            "freq_dim": 6,
            "ffn_dim": 13,
            "num_layers": 1,
        },
        ["condition_embedder.text_embedder"],
        [f"condition_embedder.text_embedder.{name}" for name in TWO_LAYERS],
    ),
    "HunyuanDiT2DModel": (
        {
            "num_attention_heads": 3,
            "attention_head_dim": 14,
            "in_channels": 3,
            "patch_size": 2,
            "sample_size": 6,
            "hidden_size": 42,
            "num_layers": 2,
            "cross_attention_dim": 21,
            "cross_attention_dim_t5": WIDTH,
            "pooled_projection_dim": 11,
            "text_len": 3,
            "text_len_t5": 4,
        },
        ["text_embedder"],
        [f"text_embedder.{name}" for name in TWO_LAYERS],
    ),
    "MochiTransformer3DModel": (
        {
            "num_attention_heads": 3,
            "attention_head_dim": 14,
            "num_layers": 2,
            "pooled_projection_dim": 21,
            "in_channels": 3,
            "text_embed_dim": WIDTH,
            "time_embed_dim": 10,
        },
        ["time_embed.caption_proj"],
        ["time_embed.caption_proj.weight", "time_embed.caption_proj.bias"],
    ),
    "Lumina2Transformer2DModel": (
        {
            "sample_size": 6,
            "in_channels": 3,
            "hidden_size": 42,
            "num_layers": 1,
            "num_refiner_layers": 1,
            "num_attention_heads": 3,
            "num_kv_heads": 1,
            "multiple_of": 2,
            "axes_dim_rope": (2, 4, 8),
            "axes_lens": (10, 10, 10),
            "cap_feat_dim": WIDTH,
        },
        ["time_caption_embed.caption_embedder"],
        [f"time_caption_embed.caption_embedder.{name}" for name in ("0.weight", "1.weight", "1.bias")],
    ),
    "ZImageTransformer2DModel": (
        {
            "in_channels": 3,
            "dim": 42,
            "n_layers": 1,
            "n_refiner_layers": 1,
            "n_heads": 3,
            "n_kv_heads": 3,
            "cap_feat_dim": WIDTH,
            "axes_dims": [2, 4, 8],
            "axes_lens": [10, 10, 10],
        },
        ["cap_embedder"],
        ["cap_embedder.0.weight", "cap_embedder.1.weight", "cap_embedder.1.bias"],
    ),
    "QwenImageTransformer2DModel": (
        {
            "patch_size": 2,
            "in_channels": 12,
            "out_channels": 3,
            "num_layers": 1,
            "attention_head_dim": 14,
            "num_attention_heads": 3,
            "joint_attention_dim": WIDTH,
            "axes_dims_rope": (2, 4, 8),
        },
        ["txt_norm", "txt_in"],
        ["txt_norm.weight", "txt_in.weight", "txt_in.bias"],
    ),
    "HiDreamImageTransformer2DModel": (
        {
            "patch_size": 2,
            "in_channels": 3,
            "out_channels": 3,
            "num_layers": 16,
            "num_single_layers": 32,
            "attention_head_dim": 4,
            "num_attention_heads": 1,
            "caption_channels": [WIDTH, 7],
            "text_emb_dim": 5,
            "num_routed_experts": 2,
            "num_activated_experts": 1,
            "axes_dims_rope": (2, 2),
            "max_resolution": (4, 4),
            "llama_layers": [0] * 48,
        },
        ["caption_projection.48"],
        ["caption_projection.48.linear.weight"],
    ),
    "UNet2DConditionModel": (
        {
            "sample_size": 6,
            "in_channels": 3,
            "out_channels": 3,
            "down_block_types": ("CrossAttnDownBlock2D",),
            "up_block_types": ("CrossAttnUpBlock2D",),
            "block_out_channels": (6,),
            "layers_per_block": 1,
            "norm_num_groups": 3,
            "cross_attention_dim": 10,
            "encoder_hid_dim": WIDTH,
            "encoder_hid_dim_type": "text_proj",
            "attention_head_dim": 3,
        },
        ["encoder_hid_proj"],
        ["encoder_hid_proj.weight", "encoder_hid_proj.bias"],
    ),
    "PriorTransformer": (
        {
            "num_attention_heads": 3,
            "attention_head_dim": 7,
            "num_layers": 1,
            "embedding_dim": WIDTH,
            "num_embeddings": 4,
            "additional_embeddings": 4,
        },
        ["encoder_hidden_states_proj"],
        ["encoder_hidden_states_proj.weight", "encoder_hidden_states_proj.bias"],
    ),
    "StableCascadeUNet": (
        {
            "in_channels": 3,
            "out_channels": 3,
            "timestep_ratio_embedding_dim": 4,
            "conditioning_dim": 10,
            "block_out_channels": (6,),
            "num_attention_heads": (1,),
            "down_num_layers_per_block": (1,),
            "up_num_layers_per_block": (1,),
            "down_blocks_repeat_mappers": (1,),
            "up_blocks_repeat_mappers": (1,),
            "block_types_per_layer": (("SDCascadeResBlock",),),
            "clip_text_in_channels": WIDTH,
            "clip_text_pooled_in_channels": 5,
            "clip_image_in_channels": 4,
            "clip_seq": 2,
            "dropout": (0.1,),
            "timestep_conditioning_type": ("sca",),
            "switch_level": (False,),
        },
        ["clip_txt_mapper"],
        ["clip_txt_mapper.weight", "clip_txt_mapper.bias"],
    ),
}


@dataclass(frozen=True, slots=True)
class Denoiser:
    """A real diffusers model with random weights, in its directory."""

    model: Any
    directory: Path
    submodules: list[str]
    names: list[str]

    def project(self, rows: Tensor) -> Tensor:
        """What the model itself makes of an encoder's rows."""
        with torch.no_grad():
            for name in self.submodules:
                rows = self.model.get_submodule(name)(rows)
        return rows

    def sha256(self) -> str:
        """Of the bytes of the projection's tensors, as the model holds them."""
        state = self.model.state_dict()
        content = b"".join(state[name].contiguous().view(torch.uint8).numpy().tobytes() for name in self.names)
        return hashlib.sha256(content).hexdigest()


@pytest.fixture(scope="module", params=DENOISERS)
def denoiser(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Denoiser:
    return _save(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def flux(tmp_path_factory: pytest.TempPathFactory) -> Denoiser:
    return _save("FluxTransformer2DModel", tmp_path_factory.mktemp("flux"))


@pytest.fixture(scope="module")
def rows() -> Tensor:
    return torch.randn(23, WIDTH, generator=torch.Generator().manual_seed(1))


def _save(name: str, directory: Path, dtype: torch.dtype = torch.float32) -> Denoiser:
    """Save a model in which every tensor matters; Sana's text is so faint that its norm's epsilon matters too."""
    import diffusers

    arguments, submodules, names = DENOISERS[name]
    model = getattr(diffusers, name)(**arguments)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            scale = 3e-4 if name.startswith("Sana") and key.startswith("caption_projection.linear_2") else 0.3
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    model.to(dtype).save_pretrained(directory)
    return Denoiser(model, directory, submodules, names)


def _error(ours: Tensor, theirs: Tensor) -> float:
    assert ours.dtype == theirs.dtype == torch.float32
    assert ours.shape == theirs.shape
    return float((ours.double() - theirs.double()).abs().max() / theirs.double().abs().max())


def test_projection_is_the_denoisers(denoiser: Denoiser, rows: Tensor) -> None:
    projection = open_projection(denoiser.directory, WIDTH)
    assert _error(projection(rows), denoiser.project(rows)) < TOLERANCE


def test_rows_so_faint_that_the_epsilon_of_a_norm_matters(denoiser: Denoiser, rows: Tensor) -> None:
    projection = open_projection(denoiser.directory, WIDTH)
    assert _error(projection(rows * 1e-3), denoiser.project(rows * 1e-3)) < TOLERANCE


def test_each_tensor_matters(denoiser: Denoiser, rows: Tensor, tmp_path: Path) -> None:
    """Or the comparison would not tell that one was left out."""
    weights = load_file(denoiser.directory / SINGLE)
    expected = denoiser.project(rows)
    for name in denoiser.names:
        save_file({**weights, name: weights[name] * 1.01}, tmp_path / "changed.safetensors")
        changed = open_projection(tmp_path / "changed.safetensors", WIDTH)
        assert _error(changed(rows), expected) > 100 * TOLERANCE
        assert changed.sha256 != denoiser.sha256()


def test_projection_tells_its_origin(denoiser: Denoiser) -> None:
    projection = open_projection(str(denoiser.directory), WIDTH)
    shapes = {name: list(value.shape) for name, value in load_file(denoiser.directory / SINGLE).items()}
    weights = ", ".join(f"{name} {shapes[name]}" for name in denoiser.names if name.endswith("weight"))
    assert projection.describe() == f"{weights} of {SINGLE}"
    assert projection.sha256 == denoiser.sha256()


def test_line_of_a_plain_projection(flux: Denoiser) -> None:
    described = open_projection(flux.directory, WIDTH).describe()
    assert described == "context_embedder.weight [42, 37] of diffusion_pytorch_model.safetensors"


def test_shards_give_the_same_projection(denoiser: Denoiser, rows: Tensor, tmp_path: Path) -> None:
    """A kilobyte a shard puts the tensors of one projection into several."""
    denoiser.model.save_pretrained(tmp_path, max_shard_size="1KB")
    shards = {json.loads((tmp_path / INDEX).read_text())["weight_map"][name] for name in denoiser.names}
    for path in tmp_path.glob("*.safetensors"):
        if path.name not in shards:
            path.unlink()  # and needs no other shard
    projection = open_projection(tmp_path, WIDTH)
    assert _error(projection(rows), denoiser.project(rows)) < TOLERANCE
    assert projection.sha256 == denoiser.sha256()
    assert projection.describe().endswith(f" of {' and '.join(sorted(shards))}")
    assert len(shards) == 1 or " and " in projection.describe()


def test_file_is_enough(flux: Denoiser, rows: Tensor, tmp_path: Path) -> None:
    shutil.copy(flux.directory / SINGLE, tmp_path / "any name.safetensors")
    projection = open_projection(tmp_path / "any name.safetensors", WIDTH)
    assert torch.equal(projection(rows), open_projection(flux.directory, WIDTH)(rows))


@pytest.mark.parametrize("folder", ["transformer", "unet", "prior"])
def test_pipeline_directory_has_its_denoiser(folder: str, flux: Denoiser, rows: Tensor, tmp_path: Path) -> None:
    shutil.copytree(flux.directory, tmp_path / folder)
    (tmp_path / "model_index.json").write_text("{}")
    assert _error(open_projection(tmp_path, WIDTH)(rows), flux.project(rows)) < TOLERANCE


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_weights_of_any_precision_are_computed_with_in_fp32(dtype: torch.dtype, rows: Tensor, tmp_path: Path) -> None:
    denoiser = _save("PixArtTransformer2DModel", tmp_path, dtype)
    projection = open_projection(tmp_path, WIDTH)
    assert projection.sha256 == denoiser.sha256()
    denoiser.model.float()
    assert _error(projection(rows), denoiser.project(rows)) < TOLERANCE


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_rows_of_any_precision_are_computed_with_in_fp32(flux: Denoiser, dtype: torch.dtype, rows: Tensor) -> None:
    projection = open_projection(flux.directory, WIDTH)
    assert _error(projection(rows.to(dtype)), flux.project(rows.to(dtype).float())) < TOLERANCE


def test_projection_moves_and_is_frozen(flux: Denoiser, rows: Tensor) -> None:
    projection = open_projection(flux.directory, WIDTH).to("meta")
    assert isinstance(projection, Projection)
    assert projection(rows.to("meta")).device.type == "meta"
    assert not open_projection(flux.directory, WIDTH)(rows).requires_grad


# What a pipeline's denoiser is known to read the encoder by

UNKNOWN = {
    "cosmos", "flux.1/text_encoder", "hidream/text_encoder", "hidream/text_encoder_2", "hidream/text_encoder_4",
    "hunyuandit/text_encoder", "hunyuanvideo/text_encoder_2", "sd1.5", "sdxl/text_encoder", "sdxl/text_encoder_2",
}  # fmt: skip
"""Presets whose denoiser has no projection of rows, or none that we know."""


@pytest.mark.parametrize("name", [name for name, preset in PRESETS.items() if preset.projection])
def test_presets_whose_denoiser_has_a_projection(name: str, tmp_path: Path) -> None:
    """Every other one's is in the table, by a name that the preset has: all that is missing is a file that holds it."""
    names = PRESETS[name].projection
    save_file({"other": torch.ones(2)}, tmp_path / SINGLE)
    with pytest.raises(InputError) as caught:
        open_projection(tmp_path, WIDTH, names)
    assert str(caught.value) == (
        f"the pipeline's denoiser reads this encoder by {', '.join(names)}: no text projection that we know; "
        "leave --denoiser out"
        if name in UNKNOWN
        else f"{tmp_path / SINGLE} holds no text projection that we know; looked for {names[0]}"
    )


def test_names_decide_between_two_projections(tmp_path: Path) -> None:
    """As in HunyuanVideo, whose other text projection is for a pooled vector; and whatever stands first in a file."""
    one, other = torch.full((2, WIDTH), 1.0), torch.full((3, WIDTH), 2.0)
    save_file(
        {
            "context_embedder.weight": one,
            "context_embedder.proj_in.weight": other,
            "context_embedder.proj_in.bias": torch.zeros(3),
        },
        tmp_path / SINGLE,
    )
    rows = torch.ones(1, WIDTH)
    assert open_projection(tmp_path, WIDTH)(rows).tolist() == [[WIDTH] * 2]
    assert open_projection(tmp_path, WIDTH, ["context_embedder.weight"])(rows).tolist() == [[WIDTH] * 2]
    names = ("context_embedder.proj_in.weight", "context_embedder.time_text_embed.text_embedder.linear_1.weight")
    assert open_projection(tmp_path, WIDTH, names)(rows).tolist() == [[2 * WIDTH] * 3]


# Variants


@pytest.mark.parametrize("shard_size", ["10GB", "1KB"])
def test_variant_is_taken_where_there_is_no_other(
    shard_size: str, flux: Denoiser, rows: Tensor, tmp_path: Path
) -> None:
    flux.model.save_pretrained(tmp_path, variant="bf16", max_shard_size=shard_size)
    projection = open_projection(tmp_path, WIDTH)
    assert _error(projection(rows), flux.project(rows)) < TOLERANCE
    assert "model.bf16" in projection.describe()


def test_file_without_a_variant_comes_first(flux: Denoiser, tmp_path: Path) -> None:
    flux.model.save_pretrained(tmp_path, variant="bf16")
    flux.model.save_pretrained(tmp_path)
    assert open_projection(tmp_path, WIDTH).describe().endswith(f" of {SINGLE}")


def test_shards_come_before_a_file_as_in_diffusers(flux: Denoiser, tmp_path: Path) -> None:
    flux.model.save_pretrained(tmp_path, max_shard_size="1KB")
    (tmp_path / SINGLE).touch()
    assert "-of-" in open_projection(tmp_path, WIDTH).describe()


def test_several_variants_need_a_choice(flux: Denoiser, tmp_path: Path) -> None:
    flux.model.save_pretrained(tmp_path, variant="fp16")
    flux.model.save_pretrained(tmp_path, variant="bf16")
    bf16, fp16 = (f"diffusion_pytorch_model.{variant}.safetensors" for variant in ("bf16", "fp16"))
    with pytest.raises(InputError) as caught:
        open_projection(tmp_path, WIDTH)
    assert str(caught.value) == f"{tmp_path} holds several variants; give one: {bf16}, {fp16}"
    assert open_projection(tmp_path / fp16, WIDTH).describe().endswith(f" of {fp16}")


def test_index_of_a_variant_can_be_chosen(flux: Denoiser, rows: Tensor, tmp_path: Path) -> None:
    flux.model.save_pretrained(tmp_path, variant="bf16", max_shard_size="1KB")
    projection = open_projection(tmp_path / "diffusion_pytorch_model.safetensors.index.bf16.json", WIDTH)
    assert _error(projection(rows), flux.project(rows)) < TOLERANCE


# What is refused


def _refused(location: Path, kind: type[Exception], width: int = WIDTH) -> str:
    with pytest.raises(kind) as caught:
        open_projection(location, width)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_encoder_of_another_width_is_refused(denoiser: Denoiser) -> None:
    file, first = denoiser.directory / SINGLE, denoiser.names[0]
    assert _refused(denoiser.directory, InputError, 41) == (
        f"{file}: {first} takes 37 features, the encoder gives 41; give the denoiser that this encoder feeds"
    )


def test_denoiser_without_a_known_projection_is_refused(tmp_path: Path) -> None:
    file = tmp_path / SINGLE
    save_file({"context_embedder.proj_out.weight": torch.ones(5, WIDTH)}, file)
    message = _refused(tmp_path, InputError)
    assert message.startswith(f"{file} holds no text projection that we know; looked for caption_projection.linear_1.")
    assert message.endswith(", encoder_hidden_states_proj.weight, clip_txt_mapper.weight")
    file.unlink()
    (tmp_path / INDEX).write_text('{"weight_map": {"context_embedder.proj_out.weight": "absent.safetensors"}}')
    assert f"{INDEX} holds no text projection" in _refused(tmp_path, InputError)


def test_directory_without_a_denoiser_is_refused(tmp_path: Path) -> None:
    assert _refused(tmp_path / "absent", CheckpointError) == f"no such path: {tmp_path / 'absent'}"
    (tmp_path / "diffusion_pytorch_model.bin").touch()
    for directory in (tmp_path, tmp_path / "transformer"):
        directory.mkdir(exist_ok=True)
        assert _refused(tmp_path, CheckpointError) == (
            f"{directory} holds neither {SINGLE} nor {INDEX}; give the directory of a diffusers transformer or "
            "pipeline, or a .safetensors file"
        )


Weights = dict[str, Tensor]
FIRST, SECOND = "caption_projection.linear_1", "caption_projection.linear_2"


def _sana() -> Weights:
    return {
        f"{FIRST}.weight": torch.ones(5, WIDTH),
        f"{FIRST}.bias": torch.ones(5),
        f"{SECOND}.weight": torch.ones(7, 5),
        f"{SECOND}.bias": torch.ones(7),
        "caption_norm.weight": torch.ones(7),
        "proj_out.weight": torch.full((3, 7), torch.nan),  # nobody asks
    }


@pytest.mark.parametrize("name", [f"{FIRST}.bias", f"{SECOND}.weight", f"{SECOND}.bias"])
def test_missing_tensor_is_named(name: str, tmp_path: Path) -> None:
    weights = _sana()
    del weights[name]
    save_file(weights, tmp_path / SINGLE)
    assert _refused(tmp_path, CheckpointError) == f"{tmp_path / SINGLE}: the tensor '{name}' is missing"


@pytest.mark.parametrize("chain", ["context_embedder", "patch_embed.text_proj"])
def test_only_a_context_embedder_may_lack_its_bias(chain: str, tmp_path: Path) -> None:
    save_file({f"{chain}.weight": torch.ones(5, WIDTH)}, tmp_path / SINGLE)
    if chain == "context_embedder":
        assert open_projection(tmp_path, WIDTH)(torch.ones(2, WIDTH)).tolist() == [[float(WIDTH)] * 5] * 2
    else:
        assert "the tensor 'patch_embed.text_proj.bias' is missing" in _refused(tmp_path, CheckpointError)


@pytest.mark.parametrize(
    ("name", "value", "fault"),
    [
        (f"{FIRST}.weight", torch.ones(WIDTH), "has shape [37], not [37, 37]"),
        (f"{FIRST}.weight", torch.tensor(1.0), "has shape [], not [1, 37]"),
        (f"{FIRST}.weight", torch.ones(5, WIDTH, 1), "has shape [5, 37, 1], not [5, 37]"),
        (f"{FIRST}.weight", torch.ones(0, WIDTH), "has shape [0, 37], not [1, 37]"),
        (f"{FIRST}.bias", torch.ones(1), "has shape [1], not [5]"),
        (f"{SECOND}.weight", torch.ones(7, 6), "has shape [7, 6], not [7, 5]"),
        (f"{SECOND}.bias", torch.ones(7, 1), "has shape [7, 1], not [7]"),
        ("caption_norm.weight", torch.ones(5), "has shape [5], not [7]"),
        (
            f"{SECOND}.weight",
            torch.ones(7, 5, dtype=torch.float8_e4m3fn),
            "is stored as F8_E4M3; readable: F64, F32, F16, BF16",
        ),
        (f"{SECOND}.bias", torch.ones(7, dtype=torch.int8), "is stored as I8; readable: F64, F32, F16, BF16"),
        (f"{SECOND}.weight", torch.full((7, 5), torch.nan), "holds NaN or infinity"),
        ("caption_norm.weight", torch.full((7,), torch.inf), "holds NaN or infinity"),
    ],
)
def test_tensor_that_makes_no_projection_is_named(name: str, value: Tensor, fault: str, tmp_path: Path) -> None:
    save_file({**_sana(), name: value}, tmp_path / SINGLE)
    assert _refused(tmp_path, CheckpointError) == f"{tmp_path / SINGLE}: the tensor '{name}' {fault}"


def test_tensors_that_are_not_read_may_be_anything(tmp_path: Path) -> None:
    save_file(_sana() | {"block.weight": torch.ones(3, 3, dtype=torch.float8_e4m3fn)}, tmp_path / SINGLE)
    assert open_projection(tmp_path, WIDTH)(torch.ones(2, WIDTH)).shape == (2, 7)


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:-1],
        lambda content: content[:100],
        lambda content: content + b"\0",
        lambda content: b"version https://git-lfs.github.com/spec/v1\n",
        lambda content: content.replace(b'"F32"', b'"F99"'),
    ],
    ids=["empty", "truncated", "header truncated", "longer", "pointer", "dtype"],
)
def test_damaged_file_is_refused(damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    file = tmp_path / SINGLE
    save_file(_sana(), file)
    file.write_bytes(damage(file.read_bytes()))
    assert str(file) in _refused(tmp_path, CheckpointError)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("", "is not an index with a weight_map"),
        ("[", "is not an index with a weight_map"),
        ("[" * 100_000, "is not an index with a weight_map"),
        ("[]", "is not an index with a weight_map"),
        ("{}", "is not an index with a weight_map"),
        ('{"weight_map": ["context_embedder.weight"]}', "is not an index with a weight_map"),
        (
            '{"weight_map": {"context_embedder.weight": "../a.safetensors"}}',
            "places 'context_embedder.weight' outside the directory: '../a.safetensors'",
        ),
        (
            '{"weight_map": {"context_embedder.weight": 5}}',
            "places 'context_embedder.weight' outside the directory: 5",
        ),
    ],
)
def test_damaged_index_is_refused(index: str, message: str, tmp_path: Path) -> None:
    (tmp_path / INDEX).write_text(index)
    assert _refused(tmp_path, CheckpointError) == f"{tmp_path / INDEX} {message}"


@pytest.mark.parametrize("shard", ["", "..", "."])
def test_index_that_names_a_directory_is_refused(shard: str, tmp_path: Path) -> None:
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"context_embedder.weight": shard}}))
    _refused(tmp_path, CheckpointError)


def test_shard_that_is_not_as_the_index_says_is_named(tmp_path: Path) -> None:
    shard = tmp_path / "a.safetensors"
    (tmp_path / INDEX).write_text('{"weight_map": {"context_embedder.weight": "a.safetensors"}}')
    assert _refused(tmp_path, CheckpointError) == f"cannot read {shard}: No such file or directory"
    save_file({"other": torch.ones(2)}, shard)
    assert _refused(tmp_path, CheckpointError) == f"{shard}: the tensor 'context_embedder.weight' is missing"


def test_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / SINGLE).mkdir()
    assert _refused(tmp_path, CheckpointError).startswith(f"cannot read {tmp_path / SINGLE}: ")
    (tmp_path / INDEX).mkdir()
    assert _refused(tmp_path, CheckpointError).startswith(f"cannot read {tmp_path / INDEX}: ")


def test_file_that_shrinks_while_it_is_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from skrr_export.search import projection

    file = tmp_path / SINGLE
    save_file(_sana(), file)
    header = projection.read_header(file)
    monkeypatch.setattr(projection, "read_header", lambda _: header)
    file.write_bytes(file.read_bytes()[:-800])
    assert _refused(tmp_path, CheckpointError).startswith(f"{file} was truncated while ")
    file.unlink()
    file.mkdir()
    assert _refused(tmp_path, CheckpointError).startswith("cannot read 'caption_projection.linear_1.weight' from ")
