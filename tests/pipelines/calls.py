"""The pipelines of diffusers: how each is made of tiny encoders, called, and what its `encode_prompt` returns.

Nothing here knows a preset. `call` gives what the pipeline itself returns with the defaults of its `__call__`, for
prompts and for negative prompts; `ours` puts the results for its encoders together in the same order.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from tests.pipelines.encoders import Tiny
from tests.pipelines.tokenizers import MISTRAL, QWEN3

Prompts = list[str]
Tensors = Sequence[Any]
Encoded = Mapping[str, Mapping[str, np.ndarray]]
"""By the encoder's slot, what `encode_prompts` returns."""


@dataclass(frozen=True)
class Pipeline:
    """A pipeline of diffusers."""

    class_name: str
    encoders: Mapping[str, Tiny]
    """By slot."""
    call: Callable[[Any, Prompts, Prompts | None], tuple[Tensors, Tensors]]
    """The real thing: what it returns for prompts, and for negative prompts or none."""
    ours: Callable[[Encoded], Tensors]
    components: Mapping[str, Any] = field(default_factory=dict)
    """Further ones that it cannot be without."""

    def make(self, encoders: Mapping[str, Any]) -> Any:
        """The pipeline with nothing in it but text encoders and their tokenizers."""
        import diffusers

        parameters = dict(list(inspect.signature(self._class.__init__).parameters.items())[1:])
        absent = {
            name: None if parameter.default is inspect.Parameter.empty else parameter.default
            for name, parameter in parameters.items()
        }
        tokenizers = {
            slot.replace("text_encoder", "tokenizer"): tiny.make_tokenizer() for slot, tiny in self.encoders.items()
        }
        diffusers.utils.logging.set_verbosity_error()  # what was truncated
        return self._class(**{**absent, **encoders, **tokenizers, **self.components})

    @property
    def _class(self) -> Any:
        import diffusers

        return getattr(diffusers, self.class_name)


class NoSafetyChecker:
    """A component that is only asked for when an image is made."""


def default(pipe: Any, name: str = "max_sequence_length") -> Any:
    """What a user gets who leaves a parameter of `__call__` out."""
    return inspect.signature(type(pipe).__call__).parameters[name].default


def _longest(pipe: Any) -> dict[str, Any]:
    return {"max_sequence_length": default(pipe)}


def guided(pipe: Any, prompts: Prompts, negative: Prompts | None) -> tuple[Tensors, Tensors]:
    """Embeddings, then those of the negative prompts."""
    one, other = pipe.encode_prompt(
        prompts, negative_prompt=negative, do_classifier_free_guidance=True, **_longest(pipe)
    )
    return [one], [other]


def guided_with_masks(pipe: Any, prompts: Prompts, negative: Prompts | None, **options: Any) -> tuple[Tensors, Tensors]:
    """Embeddings and their mask, then those of the negative prompts."""
    negatives = default(pipe, "negative_prompt") if negative is None else negative
    values = pipe.encode_prompt(
        prompts, negative_prompt=negatives, do_classifier_free_guidance=True, **_longest(pipe), **options
    )
    return values[:2], values[2:]


def captioned(pipe: Any, prompts: Prompts, negative: Prompts | None) -> tuple[Tensors, Tensors]:
    """The same with captions cleaned, which is `__call__`'s choice and not `encode_prompt`'s."""
    assert default(pipe, "clean_caption") is True
    return guided_with_masks(pipe, prompts, negative, clean_caption=True)


def sana(pipe: Any, prompts: Prompts, negative: Prompts | None) -> tuple[Tensors, Tensors]:
    options = {name: default(pipe, name) for name in ("clean_caption", "complex_human_instruction")}
    return guided_with_masks(pipe, prompts, negative, **options)


def deepfloyd(pipe: Any, prompts: Prompts, negative: Prompts | None) -> tuple[Tensors, Tensors]:
    one, other = pipe.encode_prompt(
        prompts, True, negative_prompt=negative, clean_caption=default(pipe, "clean_caption")
    )
    return [one], [other]


def alone(names: Sequence[int], **fixed: Any) -> Callable[[Any, Prompts, Prompts | None], tuple[Tensors, Tensors]]:
    """Pipelines that encode negative prompts in a call of their own; `names` are the places of what they return."""

    def call(pipe: Any, prompts: Prompts, negative: Prompts | None) -> tuple[Tensors, Tensors]:
        def encode(batch: Prompts) -> Tensors:
            values = pipe.encode_prompt(prompt=batch, **_longest(pipe), **fixed)
            return [values[place] for place in names]

        return encode(prompts), encode([""] * len(prompts) if negative is None else negative)

    return call


def flux(pipe: Any, prompts: Prompts, negative: Prompts | None) -> tuple[Tensors, Tensors]:
    return alone((0, 1), prompt_2=None)(pipe, prompts, negative)


def sd3(pipe: Any, prompts: Prompts, negative: Prompts | None) -> tuple[Tensors, Tensors]:
    values = pipe.encode_prompt(prompts, None, None, negative_prompt=negative, **_longest(pipe))
    return values[::2], values[1::2]


def sd3_of(encoded: Encoded) -> Tensors:
    first, second, third = (encoded[slot] for slot in ("text_encoder", "text_encoder_2", "text_encoder_3"))
    clip = np.concatenate([each["hidden_states.2"] for each in (first, second)], axis=-1)
    t5 = third["last_hidden_state"]
    clip = np.pad(clip, ((0, 0), (0, 0), (0, t5.shape[-1] - clip.shape[-1])))
    pooled = np.concatenate([each["text_embeds"] for each in (first, second)], axis=-1)
    return [np.concatenate([clip, t5], axis=1), pooled]


def sdxl(pipe: Any, prompts: Prompts, negative: Prompts | None) -> tuple[Tensors, Tensors]:
    values = pipe.encode_prompt(prompts, negative_prompt=negative)
    return values[::2], values[1::2]


def sdxl_of(encoded: Encoded) -> Tensors:
    hidden = [encoded[slot]["hidden_states.2"] for slot in ("text_encoder", "text_encoder_2")]
    return [np.concatenate(hidden, axis=-1), encoded["text_encoder_2"]["text_embeds"]]


def sd15(pipe: Any, prompts: Prompts, negative: Prompts | None) -> tuple[Tensors, Tensors]:
    one, other = pipe.encode_prompt(prompts, pipe.device, 1, True, negative)
    return [one], [other]


def cascade(pipe: Any, prompts: Prompts, negative: Prompts | None) -> tuple[Tensors, Tensors]:
    values = pipe.encode_prompt(pipe.device, len(prompts), 1, True, prompts, negative)
    hidden, pooled, other_hidden, other_pooled = values
    return [hidden, pooled[:, 0]], [other_hidden, other_pooled[:, 0]]


def kandinsky(pipe: Any, prompts: Prompts, negative: Prompts | None) -> tuple[Tensors, Tensors]:
    values = pipe._encode_prompt(prompts, pipe.device, 1, True, negative)
    halves = [value.chunk(2) for value in values]
    return [positive for _, positive in halves], [other for other, _ in halves]


def hunyuan_dit(pipe: Any, prompts: Prompts, negative: Prompts | None) -> tuple[Tensors, Tensors]:
    both = [
        pipe.encode_prompt(prompts, negative_prompt=negative, max_sequence_length=length, text_encoder_index=index)
        for index, length in enumerate((77, 256))  # as `__call__` has them
    ]
    return [values[place] for values in both for place in (0, 2)], [
        values[place] for values in both for place in (1, 3)
    ]


def hunyuan_video(pipe: Any, prompts: Prompts, negative: Prompts | None) -> tuple[Tensors, Tensors]:
    return alone((0, 1, 2), prompt_template=default(pipe, "prompt_template"))(pipe, prompts, negative)


def chroma(pipe: Any, prompts: Prompts, negative: Prompts | None) -> tuple[Tensors, Tensors]:
    values = pipe.encode_prompt(prompts, negative_prompt=negative, **_longest(pipe))
    hidden, _, mask, other, _, other_mask = values
    return [hidden, mask], [other, other_mask]


def aura_flow(pipe: Any, prompts: Prompts, negative: Prompts | None) -> tuple[Tensors, Tensors]:
    values = pipe.encode_prompt(prompts, negative, **_longest(pipe))  # its masks are never read
    return [values[0]], [values[2]]


def qwen_image(pipe: Any, prompts: Prompts, negative: Prompts | None) -> tuple[Tensors, Tensors]:
    def masked(values: Tensors) -> Tensors:
        rows, mask = values
        return [rows, torch.ones(rows.shape[:2]) if mask is None else mask]

    one, other = alone((0, 1))(pipe, prompts, negative)
    return masked(one), masked(other)


def z_image(pipe: Any, prompts: Prompts, negative: Prompts | None) -> tuple[Tensors, Tensors]:
    return pipe.encode_prompt(  # it overwrites the list that it is given
        list(prompts), negative_prompt=None if negative is None else list(negative), **_longest(pipe)
    )


def z_image_of(encoded: Encoded) -> Tensors:
    rows, mask = (encoded["text_encoder"][name] for name in ("hidden_states.2", "output_mask"))
    assert not rows[mask == 0].any()
    return [row[kept == 1] for row, kept in zip(rows, mask, strict=True)]


def hidream(pipe: Any, prompts: Prompts, negative: Prompts | None) -> tuple[Tensors, Tensors]:
    values = pipe.encode_prompt(prompts, negative_prompt=negative, **_longest(pipe))
    return values[::2], values[1::2]


def hidream_of(encoded: Encoded) -> Tensors:
    pooled = np.concatenate([encoded[slot]["text_embeds"] for slot in ("text_encoder", "text_encoder_2")], axis=-1)
    llama = encoded["text_encoder_4"]["hidden_states"].swapaxes(0, 1)  # layers come first there
    return [encoded["text_encoder_3"]["last_hidden_state"], llama, pooled]


def only(name: str) -> Callable[[Encoded], Tensors]:
    """The output of the one encoder."""
    return lambda encoded: [encoded["text_encoder"][name]]


def and_mask(name: str) -> Callable[[Encoded], Tensors]:
    """The output of the one encoder, and the mask that goes with it."""

    def ours(encoded: Encoded) -> Tensors:
        arrays = encoded["text_encoder"]
        return [arrays[name], arrays.get("output_mask", arrays["attention_mask"])]

    return ours


LAST = "last_hidden_state"
T5 = Tiny("t5", "$A </s>")
UMT5 = Tiny("umt5", "$A </s>")
CLIP_77 = {"max_position_embeddings": 77}
CLIP_L = Tiny("clip", "<cls> $A </s>", {"pad": "</s>", "model_max_length": 77}, CLIP_77)
PROJECTED_L = Tiny("clip projected", "<cls> $A </s>", {"pad": "</s>", "model_max_length": 77}, CLIP_77)
PROJECTED_G = Tiny("clip projected", "<cls> $A </s>", {"model_max_length": 77}, CLIP_77)
LONG_CLIP = Tiny("clip projected", "<cls> $A </s>", {"model_max_length": 77}, {"max_position_embeddings": 248})
GEMMA = Tiny("gemma2", "<cls> $A", {"padding_side": "left"})  # which the pipelines change

PIPELINES: Mapping[str, Pipeline] = {
    "flux.1": Pipeline(
        "FluxPipeline",
        {"text_encoder": CLIP_L, "text_encoder_2": T5},
        flux,
        lambda encoded: [encoded["text_encoder_2"][LAST], encoded["text_encoder"]["pooler_output"]],
    ),
    "sd3": Pipeline(
        "StableDiffusion3Pipeline",
        {
            "text_encoder": PROJECTED_L,
            "text_encoder_2": PROJECTED_G,
            "text_encoder_3": Tiny("t5", "$A </s>", config={"d_model": 40}),
        },
        sd3,
        sd3_of,
    ),
    "sdxl": Pipeline(
        "StableDiffusionXLPipeline", {"text_encoder": CLIP_L, "text_encoder_2": PROJECTED_G}, sdxl, sdxl_of
    ),
    "sd1.5": Pipeline(
        "StableDiffusionPipeline", {"text_encoder": CLIP_L}, sd15, only(LAST), {"requires_safety_checker": False}
    ),
    "deepfloyd-if": Pipeline(
        "IFPipeline", {"text_encoder": T5}, deepfloyd, only(LAST), {"requires_safety_checker": False}
    ),
    "stable-cascade": Pipeline(
        "StableCascadePriorPipeline",
        {"text_encoder": PROJECTED_G},
        cascade,
        lambda encoded: [encoded["text_encoder"][name] for name in ("hidden_states.3", "text_embeds")],
    ),
    "kandinsky2.2-prior": Pipeline(
        "KandinskyV22PriorPipeline",
        {"text_encoder": PROJECTED_L},
        kandinsky,
        lambda encoded: [encoded["text_encoder"][name] for name in ("text_embeds", LAST, "attention_mask")],
    ),
    "pixart-alpha": Pipeline("PixArtAlphaPipeline", {"text_encoder": T5}, captioned, and_mask(LAST)),
    "pixart-sigma": Pipeline("PixArtSigmaPipeline", {"text_encoder": T5}, captioned, and_mask(LAST)),
    "allegro": Pipeline("AllegroPipeline", {"text_encoder": T5}, captioned, and_mask(LAST)),
    "auraflow": Pipeline("AuraFlowPipeline", {"text_encoder": UMT5}, aura_flow, only(LAST)),
    "chroma": Pipeline("ChromaPipeline", {"text_encoder": T5}, chroma, and_mask(LAST)),
    "cogvideox": Pipeline("CogVideoXPipeline", {"text_encoder": T5}, guided, only(LAST)),
    "cosmos": Pipeline(
        "CosmosTextToWorldPipeline", {"text_encoder": T5}, guided, only(LAST), {"safety_checker": NoSafetyChecker()}
    ),
    "ltx-video": Pipeline("LTXPipeline", {"text_encoder": T5}, guided_with_masks, and_mask(LAST)),
    "mochi": Pipeline("MochiPipeline", {"text_encoder": T5}, guided_with_masks, and_mask(LAST)),
    "wan": Pipeline("WanPipeline", {"text_encoder": UMT5}, guided, only(LAST)),
    "hunyuandit": Pipeline(
        "HunyuanDiTPipeline",
        {"text_encoder": Tiny("bert", "<cls> $A </s>"), "text_encoder_2": T5},
        hunyuan_dit,
        lambda encoded: [
            encoded[slot][name] for slot in ("text_encoder", "text_encoder_2") for name in (LAST, "attention_mask")
        ],
        {"requires_safety_checker": False},
    ),
    "sana": Pipeline("SanaPipeline", {"text_encoder": GEMMA}, sana, and_mask(LAST)),
    "lumina2": Pipeline("Lumina2Pipeline", {"text_encoder": GEMMA}, guided_with_masks, and_mask("hidden_states.2")),
    "hunyuanvideo": Pipeline(
        "HunyuanVideoPipeline",
        {"text_encoder": Tiny("llama", "<cls> $A"), "text_encoder_2": CLIP_L},
        hunyuan_video,
        lambda encoded: [
            encoded["text_encoder"]["hidden_states.1"],
            encoded["text_encoder_2"]["pooler_output"],
            encoded["text_encoder"]["output_mask"],
        ],
    ),
    "qwen-image": Pipeline(
        "QwenImagePipeline",
        {"text_encoder": Tiny("qwen2.5", "<cls> $A </s>", {"padding_side": "left"})},
        qwen_image,
        and_mask("hidden_states.3"),
    ),
    "z-image": Pipeline(
        "ZImagePipeline",
        {"text_encoder": Tiny("qwen3", "<cls> $A </s>", {"padding_side": "left", "chat_template": QWEN3})},
        z_image,
        z_image_of,
    ),
    "flux.2": Pipeline(
        "Flux2Pipeline",
        {"text_encoder": Tiny("mistral", "<cls> $A", {"padding_side": "left", "chat_template": MISTRAL})},
        alone((0,)),
        only("hidden_states"),
    ),
    "flux.2-klein": Pipeline(
        "Flux2KleinPipeline",
        {"text_encoder": Tiny("qwen3 of 28", "<cls> $A </s>", {"chat_template": QWEN3})},
        alone((0,)),
        only("hidden_states"),
    ),
    "cogview4": Pipeline(
        "CogView4Pipeline",
        {"text_encoder": Tiny("glm", "<cls> $A", {"padding_side": "left"})},
        guided,
        only("hidden_states.2"),
    ),
    "hidream": Pipeline(
        "HiDreamImagePipeline",
        {
            "text_encoder": LONG_CLIP,
            "text_encoder_2": LONG_CLIP,
            "text_encoder_3": T5,
            "text_encoder_4": Tiny("llama causal", "<cls> $A", {"pad": None, "padding_side": "left"}),
        },
        hidream,
        hidream_of,
    ),
}
"""The pipelines that there are presets for, by preset."""
