"""Presets: what the diffusion pipelines feed their encoders."""

from __future__ import annotations

import json
from typing import Any

import pytest

from skrr_export.errors import BundleError, InputError
from skrr_export.pipelines import PRESETS, Preset, find_preset

FACTS = {
    # name: (tokens, always padded to them, mask reaches the encoder, denoiser reads padding, lower-cased), of diffusers
    "flux.1": (512, True, False, True, False),
    "sd3": (256, True, False, True, False),
    "pixart-sigma": (300, True, True, False, True),
    "plain": (512, False, True, False, False),
}


def test_every_preset_is_known_by_its_name() -> None:
    assert FACTS.keys() == PRESETS.keys()
    assert all(preset.name == name for name, preset in PRESETS.items())


@pytest.mark.parametrize("name", FACTS)
def test_a_preset_feeds_what_its_pipeline_feeds(name: str) -> None:
    preset = find_preset(name, "t5", None)
    always = preset.padding == "max_length"
    assert (preset.max_length, always, preset.masked, preset.reads_padding, preset.lowercase) == FACTS[name]


def test_only_pixart_changes_the_prompt() -> None:
    prompt = "  A CAT,\tÀ la Carte \n"
    assert PRESETS["pixart-sigma"].prepare(prompt) == "a cat,\tà la carte"
    assert all(PRESETS[name].prepare(prompt) == prompt for name in ("plain", "flux.1", "sd3"))


@pytest.mark.parametrize("preset", PRESETS.values(), ids=lambda preset: preset.name)
def test_a_preset_survives_the_manifest_unchanged(preset: Preset) -> None:
    assert Preset.from_dict(json.loads(json.dumps(preset.to_dict()))) == preset


@pytest.mark.parametrize("name", ["flux", "FLUX.1", "", "plain "])
def test_an_unknown_pipeline_lists_the_known_ones(name: str) -> None:
    with pytest.raises(InputError) as caught:
        find_preset(name, "t5", None)
    assert str(caught.value) == f"unknown pipeline '{name}'; known: plain, flux.1, sd3, pixart-sigma"


@pytest.mark.parametrize("name", ["flux.1", "sd3", "pixart-sigma"])
def test_a_pipeline_for_another_family_is_refused(name: str) -> None:
    with pytest.raises(InputError) as caught:
        find_preset(name, "bert", 512)
    assert str(caught.value) == f"pipeline '{name}' feeds a t5 encoder; this one is bert"


def test_an_encoder_too_short_for_a_fixed_length_is_refused() -> None:
    with pytest.raises(InputError) as caught:
        find_preset("flux.1", "t5", 511)
    assert str(caught.value) == "pipeline 'flux.1' feeds 512 tokens; this encoder takes 511"
    assert find_preset("flux.1", "t5", 512).max_length == 512


@pytest.mark.parametrize(("limit", "expected"), [(71, 71), (512, 512), (8192, 512), (None, 512)])
def test_a_free_length_ends_where_the_encoder_does(limit: int | None, expected: int) -> None:
    assert find_preset("plain", "bert", limit).max_length == expected
    assert PRESETS["plain"].max_length == 512  # the preset itself stays as it is


@pytest.mark.parametrize(
    "missing", ["name", "max_length", "padding", "masked", "reads_padding", "lowercase", "families"]
)
def test_a_manifest_that_lacks_a_key_is_malformed(missing: str) -> None:
    document = PRESETS["plain"].to_dict()
    del document[missing]
    with pytest.raises(BundleError, match=missing):
        Preset.from_dict(document)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("name", 5),
        ("max_length", "512"),
        ("max_length", 0),
        ("max_length", True),
        ("padding", "left"),
        ("padding", None),
        ("masked", "yes"),
        ("masked", 1),
        ("reads_padding", None),
        ("lowercase", "no"),
        ("families", 5),
        ("families", "t5"),
        ("families", [5]),
        ("later", 1),
    ],
)
def test_a_manifest_with_a_value_of_another_kind_is_malformed(key: str, value: Any) -> None:
    with pytest.raises(BundleError, match=r"the manifest's pipeline is malformed: .*" + key):
        Preset.from_dict({**PRESETS["plain"].to_dict(), key: value})


@pytest.mark.parametrize("document", [None, [], "plain", 5])
def test_a_manifest_whose_pipeline_is_no_object_is_malformed(document: Any) -> None:
    with pytest.raises(BundleError, match="the manifest's pipeline is malformed"):
        Preset.from_dict(document)
