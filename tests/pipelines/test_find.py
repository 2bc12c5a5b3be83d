"""The preset for an encoder: by pipeline, by slot, by what the encoder is and gives."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from skrr_export.errors import InputError
from skrr_export.outputs import LAST, Output
from skrr_export.pipelines import PRESETS, Preset, find_preset, pipeline_encoders, pipeline_names

PER_TOKEN = ("last_hidden_state", "hidden_states")


def encoder(family: str, *kinds: str, layers: int = 40, max_length: int | None = None) -> Any:
    """As much of an encoder as a preset is chosen by."""
    return SimpleNamespace(family=family, kinds=(*PER_TOKEN, *kinds), num_layers=layers, max_length=max_length)


T5, BERT = encoder("t5"), encoder("bert", max_length=512)
CLIP = encoder("clip", "pooler_output", layers=12, max_length=77)
PROJECTED = encoder("clip", "pooler_output", "text_embeds", layers=32, max_length=77)


@pytest.mark.parametrize(
    ("name", "fed", "key"),
    [
        ("plain", T5, "plain"),
        ("plain", BERT, "plain"),
        ("flux.1", T5, "flux.1/text_encoder_2"),
        ("flux.1", CLIP, "flux.1/text_encoder"),
        ("flux.1", PROJECTED, "flux.1/text_encoder"),
        ("flux.1/text_encoder_2", T5, "flux.1/text_encoder_2"),
        ("sd3", T5, "sd3/text_encoder_3"),
        ("sdxl", CLIP, "sdxl/text_encoder"),  # it has no `text_embeds`
        ("sdxl/text_encoder_2", PROJECTED, "sdxl/text_encoder_2"),
        ("sdxl/text_encoder", PROJECTED, "sdxl/text_encoder"),
        ("pixart-sigma", T5, "pixart-sigma"),
        ("pixart-sigma/text_encoder", T5, "pixart-sigma"),
        ("hunyuandit", BERT, "hunyuandit/text_encoder"),
        ("hunyuandit", T5, "hunyuandit/text_encoder_2"),
        ("hidream", encoder("llama", layers=32), "hidream/text_encoder_4"),
        ("hunyuanvideo", encoder("llama"), "hunyuanvideo/text_encoder"),
    ],
)
def test_the_one_that_suits_the_encoder(name: str, fed: Any, key: str) -> None:
    found = find_preset(name, fed)
    preset = PRESETS[key]
    assert found == replace(preset, outputs=tuple(output.resolve(fed.num_layers) for output in preset.outputs))


@pytest.mark.parametrize("key", PRESETS)
def test_every_preset_suits_an_encoder_of_its_family(key: str) -> None:
    for family in PRESETS[key].families or ("t5",):
        fed = encoder(family, "pooler_output", "text_embeds")
        assert find_preset(f"{PRESETS[key].name}/{PRESETS[key].encoder}" if "/" in key else key, fed).name in key


def test_layers_are_counted_from_the_start() -> None:
    assert find_preset("sdxl", CLIP).outputs == (Output("hidden_states", (11,)),)
    assert find_preset("stable-cascade", PROJECTED).outputs == (Output("hidden_states", (32,)), Output("text_embeds"))
    assert find_preset("flux.1", T5).outputs == (LAST,)


@pytest.mark.parametrize("name", ["sd3", "sdxl"])
def test_the_slot_decides_between_encoders_that_are_alike(name: str) -> None:
    for slot in ("text_encoder", "text_encoder_2"):
        assert find_preset(name, PROJECTED, slot).encoder == slot
    for slot in (None, "text_encoder_3", "somewhere/else", ""):
        with pytest.raises(InputError) as caught:
            find_preset(name, PROJECTED, slot)
        assert str(caught.value) == (
            f"pipeline '{name}' feeds several encoders like this one; "
            f"give one of {name}/text_encoder, {name}/text_encoder_2"
        )


def test_where_only_one_suits_its_folder_does_not_matter() -> None:
    """T5-XXL lies in `text_encoder` of many pipelines, and FLUX.1 has it in `text_encoder_2`."""
    assert find_preset("flux.1", T5, "text_encoder").encoder == "text_encoder_2"
    assert find_preset("plain", T5, "text_encoder_3").name == "plain"


@pytest.mark.parametrize("name", ["flux", "FLUX.1", "", "plain ", "/", "/text_encoder", "flux/text_encoder"])
def test_an_unknown_pipeline_lists_the_known_ones(name: str) -> None:
    with pytest.raises(InputError) as caught:
        find_preset(name, T5)
    assert str(caught.value) == f"unknown pipeline '{name}'; known: {', '.join(pipeline_names())}"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("sdxl/text_encoder_3", "pipeline 'sdxl' has no encoder 'text_encoder_3'; it has text_encoder, text_encoder_2"),
        ("sdxl/", "pipeline 'sdxl' has no encoder ''; it has text_encoder, text_encoder_2"),
        ("pixart-sigma/unet", "pipeline 'pixart-sigma' has no encoder 'unet'; it has text_encoder"),
        ("plain/text_encoder", "pipeline 'plain' has no encoder 'text_encoder'; it names no encoder"),
    ],
)
def test_an_unknown_slot_lists_the_known_ones(name: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        find_preset(name, T5)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("name", "fed", "message"),
    [
        ("pixart-sigma", BERT, "pipeline 'pixart-sigma' feeds a t5 encoder; this one is bert"),
        ("flux.1", BERT, "pipeline 'flux.1' feeds a clip or t5 encoder; this one is bert"),
        ("flux.1/text_encoder", T5, "pipeline 'flux.1/text_encoder' feeds a clip encoder; this one is t5"),
        ("wan", T5, "pipeline 'wan' feeds a umt5 encoder; this one is t5"),
        (
            "sdxl/text_encoder_2",
            CLIP,
            "pipeline 'sdxl/text_encoder_2' takes text_embeds of its encoder; "
            "this one gives last_hidden_state, hidden_states, pooler_output",
        ),
        (
            "flux.2",
            encoder("mistral", layers=29),
            "pipeline 'flux.2' does not suit this encoder: it reads hidden_states[30], and the encoder has 29 layers",
        ),
        (
            "hunyuanvideo",
            encoder("llama", layers=1),
            "pipeline 'hunyuanvideo' does not suit this encoder: "
            "it reads hidden_states[-3], and the encoder has 1 layers",
        ),
    ],
)
def test_an_encoder_that_does_not_fit_is_refused(name: str, fed: Any, message: str) -> None:
    with pytest.raises(InputError) as caught:
        find_preset(name, fed)
    assert str(caught.value) == message


def test_an_encoder_too_short_for_a_fixed_length_is_refused() -> None:
    with pytest.raises(InputError) as caught:
        find_preset("hidream/text_encoder", replace_length(PROJECTED, 127))
    assert str(caught.value) == "pipeline 'hidream' feeds 128 tokens; this encoder takes 127"
    assert find_preset("hidream/text_encoder", replace_length(PROJECTED, 128)).max_length == 128


def replace_length(fed: Any, max_length: int) -> Any:
    return SimpleNamespace(**{**vars(fed), "max_length": max_length})


@pytest.mark.parametrize(("limit", "expected"), [(71, 71), (512, 512), (8192, 512), (None, 512)])
def test_a_free_length_ends_where_the_encoder_does(limit: int | None, expected: int) -> None:
    assert find_preset("plain", encoder("bert", max_length=limit)).max_length == expected
    assert PRESETS["plain"].max_length == 512  # the preset itself stays as it is


@pytest.mark.parametrize(("limit", "expected"), [(16, 16), (71, 64), (1023, 1008), (1024, 1024), (None, 1024)])
def test_a_free_length_stays_a_multiple(limit: int | None, expected: int) -> None:
    assert find_preset("cogview4", encoder("glm", max_length=limit)).max_length == expected


def test_an_encoder_shorter_than_the_multiple_is_refused() -> None:
    with pytest.raises(InputError, match="pipeline 'cogview4' feeds 1024 tokens; this encoder takes 15"):
        find_preset("cogview4", encoder("glm", max_length=15))


def test_a_preset_can_be_added(monkeypatch: pytest.MonkeyPatch) -> None:
    own = Preset(name="own", max_length=8, padding="longest", masked=True, reads_padding=False)
    monkeypatch.setitem(PRESETS, "own", own)  # type: ignore[misc]
    assert find_preset("own", T5) == own
    assert "own" in pipeline_names()


def test_the_encoders_of_a_pipeline_stand_in_its_order() -> None:
    assert pipeline_encoders("sd3") == ("text_encoder", "text_encoder_2", "text_encoder_3")
    assert pipeline_encoders("pixart-sigma") == ("text_encoder",)
    assert all(pipeline_encoders(name) for name in pipeline_names()[1:])
    with pytest.raises(InputError, match="pipeline 'plain' names no encoders"):
        pipeline_encoders("plain")
    with pytest.raises(InputError, match="unknown pipeline 'flux'"):
        pipeline_encoders("flux")
