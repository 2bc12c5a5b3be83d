"""The presets, one a row; facts from the diffusers pipelines of the same names, with what `__call__` gives them.

FLUX.1, SD3 and CogVideoX pad to the full length and pass no mask: the encoder attends to padding and the denoiser reads
it, so an export that masked it would change every image.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from functools import partial

from skrr_export.outputs import LAST, Output
from skrr_export.pipelines import templates
from skrr_export.pipelines.chat import Chat
from skrr_export.pipelines.preset import Preset

POOLED, PROJECTED = Output("pooler_output"), Output("text_embeds")


def _hidden(layer: int) -> Output:
    return Output("hidden_states", (layer,))


_T5 = partial(Preset, encoder="text_encoder", families=("t5",), padding="max_length")
_UMT5 = partial(Preset, encoder="text_encoder", families=("umt5",), padding="max_length", masked=True)
_CLIP = partial(Preset, encoder="text_encoder", families=("clip",), padding="max_length", max_length=77, masked=False)
_GEMMA = partial(Preset, encoder="text_encoder", families=("gemma2",), padding="max_length", masked=True)
_CAPTION = partial(_T5, clean="caption", lowercase=True, masked=True)
_DECODER = partial(Preset, encoder="text_encoder", padding="max_length", masked=True)

_CONTEXT = ("context_embedder.weight",)
_POOLED_TEXT = ("time_text_embed.text_embedder.linear_1.weight",)
_CAPTION_PROJECTION = ("caption_projection.linear_1.weight",)


def _cross_attention(block: str) -> tuple[str, ...]:
    return (f"{block}.attn2.to_k.weight", f"{block}.attn2.to_v.weight")


# fmt: off
_PRESETS = (
    Preset(name="plain", max_length=512, padding="longest", masked=True, reads_padding=False),

    # FLUX.1, and Stable Diffusion 3 and 3.5
    _CLIP(name="flux.1", outputs=(POOLED,), reads_padding=False, projection=_POOLED_TEXT),
    _T5(name="flux.1", encoder="text_encoder_2", max_length=512, masked=False, reads_padding=True, projection=_CONTEXT),
    _CLIP(name="sd3", outputs=(_hidden(-2), PROJECTED), reads_padding=True, projection=(*_CONTEXT, *_POOLED_TEXT)),
    _CLIP(name="sd3", encoder="text_encoder_2", outputs=(_hidden(-2), PROJECTED), reads_padding=True,
          projection=(*_CONTEXT, *_POOLED_TEXT)),
    _T5(name="sd3", encoder="text_encoder_3", max_length=256, masked=False, reads_padding=True, projection=_CONTEXT),

    # Denoisers with a U-Net, and the priors of cascades
    _CLIP(name="sdxl", outputs=(_hidden(-2),), reads_padding=True, unconditional="zeros",
          projection=_cross_attention("down_blocks.1.attentions.0.transformer_blocks.0")),
    _CLIP(name="sdxl", encoder="text_encoder_2", outputs=(_hidden(-2), PROJECTED), reads_padding=True,
          unconditional="zeros", projection=(*_cross_attention("down_blocks.1.attentions.0.transformer_blocks.0"),
                                             "add_embedding.linear_1.weight")),
    _CLIP(name="sd1.5", reads_padding=True,
          projection=_cross_attention("down_blocks.0.attentions.0.transformer_blocks.0")),
    _CAPTION(name="deepfloyd-if", max_length=77, reads_padding=True,
             projection=("encoder_hid_proj.weight", "add_embedding.norm1.weight")),
    # The decoder takes the same `text_embeds`, and nothing else.
    _CLIP(name="stable-cascade", masked=True, outputs=(_hidden(-1), PROJECTED), reads_padding=True,
          projection=("clip_txt_mapper.weight", "clip_txt_pooled_mapper.weight")),
    _CLIP(name="kandinsky2.2-prior", outputs=(LAST, PROJECTED), reads_padding=False,
          projection=("encoder_hidden_states_proj.weight", "embedding_proj.weight")),

    # Cleaned captions
    _CAPTION(name="pixart-alpha", max_length=120, reads_padding=False, projection=_CAPTION_PROJECTION),
    _CAPTION(name="pixart-sigma", max_length=300, reads_padding=False, projection=_CAPTION_PROJECTION),
    _CAPTION(name="allegro", max_length=512, reads_padding=False, projection=_CAPTION_PROJECTION),

    # T5 and UMT5
    _UMT5(name="auraflow", max_length=256, padding_rows="zeroed", reads_padding=False, projection=_CONTEXT),
    # The row after the last token is read like a token.
    _T5(name="chroma", max_length=512, masked=True, reads_padding=False, extra_rows=1, projection=_CONTEXT),
    _T5(name="cogvideox", max_length=226, masked=False, reads_padding=True,
        projection=("patch_embed.text_proj.weight",)),
    _T5(name="cosmos", max_length=512, masked=True, padding_rows="zeroed", reads_padding=False,
        unconditional_text=templates.COSMOS_NEGATIVE, projection=_cross_attention("transformer_blocks.0")),
    # The encoder attends to padding, the denoiser masks it.
    _T5(name="ltx-video", max_length=128, masked=False, reads_padding=False, projection=_CAPTION_PROJECTION),
    _T5(name="mochi", max_length=256, masked=True, reads_padding=False,
        projection=("time_embed.caption_proj.weight", "time_embed.pooler.to_kv.weight",
                    "time_embed.pooler.to_q.weight")),
    _UMT5(name="wan", clean="text", max_length=512, padding_rows="zeroed", reads_padding=False,
          projection=("condition_embedder.text_embedder.linear_1.weight",)),
    # A learned row takes the place of padding, but the time embedding pools T5's rows of padding too.
    Preset(name="hunyuandit", encoder="text_encoder", families=("bert",), max_length=77, padding="max_length",
           masked=True, reads_padding=False, projection=_cross_attention("blocks.0")),
    _T5(name="hunyuandit", encoder="text_encoder_2", max_length=256, masked=True, reads_padding=True,
        projection=("text_embedder.linear_1.weight", "time_extra_emb.pooler.k_proj.weight",
                    "time_extra_emb.pooler.q_proj.weight", "time_extra_emb.pooler.v_proj.weight")),

    # Language models
    # Row 0 and the last 299 are kept of the instruction and the prompt.
    _GEMMA(name="sana", lowercase=True, prefix=templates.SANA_INSTRUCTION, max_length=300, padding_side="right",
           prefix_on_top=True, crop=(1, 1), reads_padding=False, unconditional="bare", projection=_CAPTION_PROJECTION),
    _GEMMA(name="lumina2", prefix=templates.LUMINA_INSTRUCTION, max_length=256, padding_side="right",
           outputs=(_hidden(-2),), reads_padding=False, unconditional="bare",
           projection=("time_caption_embed.caption_embedder.0.weight", "time_caption_embed.caption_embedder.1.weight")),
    _DECODER(name="hunyuanvideo", families=("llama",), prefix=templates.HUNYUAN_VIDEO[0],
             suffix=templates.HUNYUAN_VIDEO[1], max_length=95 + 256, outputs=(_hidden(-3),), crop=(0, 95),
             reads_padding=False, projection=("context_embedder.proj_in.weight",
                                              "context_embedder.time_text_embed.text_embedder.linear_1.weight")),
    _CLIP(name="hunyuanvideo", encoder="text_encoder_2", outputs=(POOLED,), reads_padding=False,
          projection=_POOLED_TEXT),
    _DECODER(name="qwen-image", families=("qwen2.5",), prefix=templates.QWEN_IMAGE[0], suffix=templates.QWEN_IMAGE[1],
             max_length=34 + 1024, padding="longest", outputs=(_hidden(-1),), crop=(0, 34), max_rows=512,
             padding_rows="packed", reads_padding=False, projection=("txt_norm.weight", "txt_in.weight")),
    _DECODER(name="z-image", families=("qwen3",), chat=Chat(add_generation_prompt=True, enable_thinking=True),
             max_length=512, outputs=(_hidden(-2),), padding_rows="packed", reads_padding=False,
             projection=("cap_embedder.0.weight", "cap_embedder.1.weight")),
    _DECODER(name="flux.2", families=("mistral",), removed=("[IMG]",), special_tokens=False, max_length=512,
             chat=Chat(system=templates.FLUX_2_SYSTEM, add_generation_prompt=False, parts=True),
             outputs=(Output("hidden_states", (10, 20, 30), "concatenate"),), reads_padding=True, projection=_CONTEXT),
    _DECODER(name="flux.2-klein", families=("qwen3",), chat=Chat(add_generation_prompt=True, enable_thinking=False),
             max_length=512, outputs=(Output("hidden_states", (9, 18, 27), "concatenate"),), reads_padding=True,
             projection=_CONTEXT),
    _DECODER(name="cogview4", families=("glm",), max_length=1024, padding="longest", multiple_of=16, masked=False,
             outputs=(_hidden(-2),), reads_padding=True, projection=("patch_embed.text_proj.weight",)),

    # HiDream-I1: each of its blocks takes one of Llama's layers, and the last projection T5's output.
    _CLIP(name="hidream", max_length=128, outputs=(PROJECTED,), reads_padding=False,
          projection=("p_embedder.pooled_embedder.linear_1.weight",)),
    _CLIP(name="hidream", encoder="text_encoder_2", max_length=128, outputs=(PROJECTED,), reads_padding=False,
          projection=("p_embedder.pooled_embedder.linear_1.weight",)),
    _T5(name="hidream", encoder="text_encoder_3", max_length=128, masked=True, reads_padding=True,
        projection=("caption_projection.48.linear.weight",)),
    _DECODER(name="hidream", encoder="text_encoder_4", families=("llama",), max_length=128, pad="eos",
             outputs=(Output("hidden_states", join="stack"),), reads_padding=True,
             projection=("caption_projection.0.linear.weight",)),
)
# fmt: on


def _by_key(presets: tuple[Preset, ...]) -> dict[str, Preset]:
    encoders = Counter(preset.name for preset in presets)
    return {each.name if encoders[each.name] == 1 else f"{each.name}/{each.encoder}": each for each in presets}


PRESETS: Mapping[str, Preset] = _by_key(_PRESETS)
"""The presets, by their pipeline's name, or where it has several encoders by `pipeline/encoder`."""
