"""Presets as data: texts word for word, what denoisers read, and what a manifest may say."""

from __future__ import annotations

import inspect
import json
from dataclasses import fields, replace
from typing import Any

import diffusers
import pytest
from diffusers.pipelines.cosmos import pipeline_cosmos2_text2image, pipeline_cosmos_text2world
from diffusers.pipelines.flux2 import system_messages
from diffusers.pipelines.hunyuan_video import pipeline_hunyuan_video

from skrr_export.errors import BundleError
from skrr_export.outputs import LAST
from skrr_export.pipelines import PRESETS, Preset, pipeline_names
from tests.pipelines.tokenizers import MISTRAL, QWEN3, small_tokenizer

PADDING_IS_READ = {
    "flux.1/text_encoder_2", "sd3/text_encoder", "sd3/text_encoder_2", "sd3/text_encoder_3", "sdxl/text_encoder",
    "sdxl/text_encoder_2", "sd1.5", "deepfloyd-if", "stable-cascade", "cogvideox", "hunyuandit/text_encoder_2",
    "flux.2", "flux.2-klein", "cogview4", "hidream/text_encoder_3", "hidream/text_encoder_4",
}  # fmt: skip
"""Where the denoiser of diffusers gets the encoder's rows of padding, and no mask that hides them."""


def resolved(preset: Preset) -> Preset:
    return preset.resolve(small_tokenizer("<cls> $A", chat_template=MISTRAL if preset.name == "flux.2" else QWEN3))


def test_keys_are_pipelines_and_their_encoders() -> None:
    for key, preset in PRESETS.items():
        assert key in (preset.name, f"{preset.name}/{preset.encoder}")
    assert pipeline_names() == list(dict.fromkeys(key.partition("/")[0] for key in PRESETS))
    assert all(name == name.lower() for name in pipeline_names())


def test_where_padding_is_read() -> None:
    assert {key for key, preset in PRESETS.items() if preset.reads_padding} == PADDING_IS_READ


def test_no_preset_reads_padding_that_it_takes_away() -> None:
    for preset in PRESETS.values():
        assert not (preset.reads_padding and (preset.padding_rows != "kept" or preset.extra_rows))
        assert not (preset.reads_padding and all(output.pooled for output in preset.outputs))


def test_outputs_are_one_per_token_and_one_pooled_at_most() -> None:
    for preset in PRESETS.values():
        pooled = [output.pooled for output in preset.outputs]
        assert pooled in ([False], [True], [False, True])


def test_plain_is_what_sentence_encoders_do() -> None:
    assert PRESETS["plain"] == Preset(
        name="plain", max_length=512, padding="longest", masked=True, reads_padding=False, outputs=(LAST,)
    )


def test_instructions_are_those_of_diffusers() -> None:
    instruction = inspect.signature(diffusers.SanaPipeline.__call__).parameters["complex_human_instruction"].default
    assert PRESETS["sana"].prefix == "\n".join(instruction)
    assert PRESETS["lumina2"].prefix == bare("Lumina2Pipeline").system_prompt + " <Prompt Start> "


def test_templates_are_those_of_diffusers() -> None:
    video, template = PRESETS["hunyuanvideo/text_encoder"], pipeline_hunyuan_video.DEFAULT_PROMPT_TEMPLATE
    assert (video.prefix + "{}" + video.suffix, video.crop) == (template["template"], (0, template["crop_start"]))
    qwen, pipe = PRESETS["qwen-image"], bare("QwenImagePipeline")
    assert qwen.prefix + "{}" + qwen.suffix == pipe.prompt_template_encode
    assert qwen.crop == (0, pipe.prompt_template_encode_start_idx)
    chat = PRESETS["flux.2"].chat
    assert chat is not None
    assert chat.system == bare("Flux2Pipeline").system_message == system_messages.SYSTEM_MESSAGE


def test_negative_prompts_where_there_is_none_are_those_of_diffusers() -> None:
    for module in (pipeline_cosmos_text2world, pipeline_cosmos2_text2image):
        assert PRESETS["cosmos"].unconditional_text == module.DEFAULT_NEGATIVE_PROMPT
    assert {preset.unconditional_text for key, preset in PRESETS.items() if key != "cosmos"} == {""}


def bare(class_name: str) -> Any:
    """A pipeline with nothing in it."""
    pipeline_class = getattr(diffusers, class_name)
    return pipeline_class(**dict.fromkeys(list(inspect.signature(pipeline_class.__init__).parameters)[1:]))


@pytest.mark.parametrize("key", PRESETS)
def test_a_preset_survives_the_manifest_unchanged(key: str) -> None:
    preset = resolved(PRESETS[key])
    document = json.loads(json.dumps(preset.to_dict()))
    assert Preset.from_dict(document) == preset
    assert document.keys() == {field.name for field in fields(Preset)} - {"chat", "prefix_on_top"}


@pytest.mark.parametrize("key", ["sana", "z-image", "flux.2", "flux.2-klein"])
def test_no_manifest_has_what_only_a_tokenizer_can_tell(key: str) -> None:
    with pytest.raises(AssertionError):
        PRESETS[key].to_dict()


EVERYTHING = replace(
    resolved(PRESETS["sana"]), clean="text", removed=("a", "b"), suffix="z", multiple_of=8, pad="eos", max_rows=9
)
"""A preset with most fields set."""


@pytest.mark.parametrize("missing", EVERYTHING.to_dict())
def test_a_manifest_that_lacks_a_key_is_malformed(missing: str) -> None:
    document = EVERYTHING.to_dict()
    del document[missing]
    with pytest.raises(BundleError, match=f"the manifest's pipeline is malformed: '{missing}'"):
        Preset.from_dict(document)


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("name", [5, None, ["plain"]]),
        ("encoder", [5, b"", ["text_encoder"]]),
        ("families", [5, "t5", [5], [None], {}]),
        ("clean", ["html", 1, True, []]),
        ("lowercase", ["no", 1, None]),
        ("removed", ["[IMG]", None, [5]]),
        ("prefix", [None, 5, []]),
        ("suffix", [None, 5, []]),
        ("special_tokens", ["yes", 1, None]),
        ("max_length", ["512", 0, True, -1, 5.0, None]),
        ("padding", ["left", None, True]),
        ("multiple_of", [0, "16", None, True]),
        ("padding_side", ["middle", True, 0]),
        ("pad", ["bos", 0, True]),
        ("masked", ["yes", 1, None]),
        ("outputs", [None, [], {}, "last_hidden_state", [5], [{}], [{"kind": "logits", "layers": [], "join": None}]]),
        ("crop", [None, [], [1], [1, 2, 3], [2, 1], [-1, 0], ["0", "1"], 5, [True, True]]),
        ("max_rows", [0, "512", True, -1]),
        ("padding_rows", ["lost", None, True]),
        ("reads_padding", [None, "no", 0]),
        ("extra_rows", [-1, None, "1", True]),
        ("unconditional", ["never", None, True]),
        ("unconditional_text", [None, 5]),
        ("projection", ["context_embedder.weight", None, [5]]),
    ],
)
def test_a_manifest_with_a_value_of_another_kind_is_malformed(key: str, values: list[Any]) -> None:
    assert {field.name for field in fields(Preset)} >= {key}
    for value in values:
        with pytest.raises(BundleError, match="the manifest's pipeline is malformed: "):
            Preset.from_dict({**EVERYTHING.to_dict(), key: value})


def test_what_a_later_release_adds_is_ignored() -> None:
    assert Preset.from_dict({**EVERYTHING.to_dict(), "later": 1}) == EVERYTHING


@pytest.mark.parametrize("document", [None, [], "plain", 5])
def test_a_manifest_whose_pipeline_is_no_object_is_malformed(document: Any) -> None:
    with pytest.raises(BundleError, match="the manifest's pipeline is malformed"):
        Preset.from_dict(document)


def test_the_text_that_a_tokenizer_gets() -> None:
    preset = replace(EVERYTHING, prefix="<", removed=("[IMG]", "ab"), lowercase=True, clean=None)
    assert preset.prepare("  A[img] CAaBb \n") == "<a[img] cabz"
    assert preset.negative.prepare(" X ") == "x"
    assert replace(preset, unconditional="encoded").negative.prepare(" X ") == "<xz"
    assert replace(preset, lowercase=False).prepare("  A[IMG] aabb ") == "<  A ab z"


def test_only_some_pipelines_change_the_prompt() -> None:
    prompt = "  A CAT,\tÀ la Carte \n"
    changed = {preset.name: text for preset in PRESETS.values() if (text := preset.negative.prepare(prompt)) != prompt}
    lower = dict.fromkeys(("pixart-alpha", "pixart-sigma", "deepfloyd-if", "allegro"), "a cat, à la carte")
    for name in ("hunyuanvideo", "qwen-image"):
        assert prompt in changed.pop(name)
    assert changed == {**lower, "sana": "a cat,\tà la carte", "wan": "A CAT, À la Carte"}
