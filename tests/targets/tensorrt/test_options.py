"""What a user can ask of an engine; needs no library."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from skrr_export.errors import InputError
from skrr_export.pipelines import PRESETS
from skrr_export.targets.tensorrt.options import COMPUTE_CAPABILITIES, EngineOptions, Profile


def test_profile_reads_what_it_writes() -> None:
    profile = Profile((1, 2), (3, 77), (8, 512))
    assert str(profile) == "1x2:3x77:8x512"
    assert Profile.parse(str(profile)) == profile


@pytest.mark.parametrize(
    "text", ["", "1x1", "1x1:1x77", "1x1:1x77:8x512:9x9", "1:77:512", "ax1:1x77:8x512", "1x1:1x77:8x", "-1x1:1x7:8x9"]
)
def test_other_text_is_no_profile(text: str) -> None:
    with pytest.raises(InputError, match="a profile is MIN:OPT:MAX, each BATCHxSEQUENCE"):
        Profile.parse(text)


@pytest.mark.parametrize("text", ["0x1:1x77:8x512", "2x1:1x77:8x512", "1x78:1x77:8x512", "1x1:9x77:8x512"])
def test_profile_must_rise(text: str) -> None:
    with pytest.raises(InputError, match="must rise from at least 1"):
        Profile.parse(text)


@pytest.mark.parametrize(
    ("pipeline", "profile"),
    [
        ("plain", "1x1:1x77:8x512"),
        ("flux.1/text_encoder_2", "1x512:1x512:8x512"),
        ("sd3/text_encoder_3", "1x256:1x256:8x256"),
    ],
)
def test_default_profile_is_what_the_pipeline_feeds(pipeline: str, profile: str) -> None:
    assert str(Profile.of(PRESETS[pipeline])) == profile


def test_default_profile_of_a_short_pipeline() -> None:
    assert str(Profile.of(replace(PRESETS["plain"], max_length=40))) == "1x1:1x40:8x40"


def test_fixed_sizes_replace_those_of_the_profile() -> None:
    profile = Profile.parse("1x1:1x77:8x512")
    assert str(profile.fixed(None, None)) == "1x1:1x77:8x512"
    assert str(profile.fixed(4, None)) == "4x1:4x77:4x512"
    assert str(profile.fixed(None, 64)) == "1x64:1x64:8x64"
    assert str(profile.fixed(2, 128)) == "2x128:2x128:2x128"


def test_profile_takes_its_bounds_and_nothing_beyond() -> None:
    profile = Profile.parse("2x3:4x77:8x512")
    assert profile.takes(2, 3)
    assert profile.takes(8, 512)
    assert not any(profile.takes(*size) for size in [(1, 3), (2, 2), (9, 512), (8, 513)])


@pytest.mark.parametrize("known", COMPUTE_CAPABILITIES)
def test_known_compute_capabilities(known: str) -> None:
    assert EngineOptions(compute_capabilities=(known,)).compute_capabilities == (known,)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"compute_capabilities": ("86", "90")}, "unknown compute capability '90'; known: 75, 80"),
        ({"compute_capabilities": ()}, "no compute capability to build for; known: 75, 80"),
        ({"workspace_gb": 0.0}, "the workspace cannot have 0.0 GB"),
        ({"workspace_gb": float("nan")}, "the workspace cannot have nan GB"),
    ],
)
def test_impossible_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        EngineOptions(**options)
