"""Presets: what the diffusion pipelines feed their encoders."""

from __future__ import annotations

import inspect
import json
from typing import Any

import pytest
import torch

from skrr_export.errors import BundleError, InputError
from skrr_export.pipelines import PRESETS, Preset, find_preset
from tests.checkpoints import byte_tokenizer, t5_checkpoint

FACTS = {
    # name: (tokens, always padded to them, mask reaches the encoder, denoiser reads padding, lower-cased), of diffusers
    "plain": (512, False, True, False, False),
    "flux.1": (512, True, False, True, False),
    "sd3": (256, True, False, True, False),
    "pixart-sigma": (300, True, True, False, True),
    "pixart-alpha": (120, True, True, False, True),
    "cogvideox": (226, True, False, True, False),
    "ltx-video": (128, True, False, False, False),
}

PIPELINES = {
    # name: class in diffusers, its T5
    "flux.1": ("FluxPipeline", "text_encoder_2"),
    "sd3": ("StableDiffusion3Pipeline", "text_encoder_3"),
    "pixart-sigma": ("PixArtSigmaPipeline", "text_encoder"),
    "pixart-alpha": ("PixArtAlphaPipeline", "text_encoder"),
    "cogvideox": ("CogVideoXPipeline", "text_encoder"),
    "ltx-video": ("LTXPipeline", "text_encoder"),
}


def test_every_preset_is_known_by_its_name() -> None:
    assert FACTS.keys() == PRESETS.keys()
    assert all(preset.name == name for name, preset in PRESETS.items())


@pytest.mark.parametrize("name", FACTS)
def test_a_preset_feeds_what_its_pipeline_feeds(name: str) -> None:
    preset = find_preset(name, "t5", None)
    always = preset.padding == "max_length"
    assert (preset.max_length, always, preset.masked, preset.reads_padding, preset.lowercase) == FACTS[name]


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Any:
    import transformers

    return transformers.T5EncoderModel.from_pretrained(t5_checkpoint(tmp_path_factory.mktemp("t5"), layers=1))


@pytest.mark.parametrize("name", PIPELINES)
@pytest.mark.parametrize("prompt", ["  A Cat,\tÀ la Carte \n", "", "long " * 200])
def test_a_preset_feeds_what_diffusers_feeds(name: str, prompt: str, t5: Any) -> None:
    """The pipeline itself, with a tiny T5 that tells what it is called with."""
    preset, tokenizer = PRESETS[name], byte_tokenizer(ending="$A </s>")
    call, returned = _encode_in_diffusers(*PIPELINES[name], prompt, t5, tokenizer)
    ours = tokenizer(
        [preset.prepare(prompt)],
        padding=preset.padding,
        max_length=preset.max_length,
        truncation=True,
        return_tensors="pt",
    )
    assert torch.equal(call["input_ids"], ours["input_ids"])
    assert ("attention_mask" in call) is preset.masked
    if preset.masked:
        assert torch.equal(call["attention_mask"], ours["attention_mask"])
    masks = [value for value in returned if value.shape == ours["attention_mask"].shape]  # for the denoiser
    assert (not masks) is preset.reads_padding
    assert all(torch.equal(mask.long(), ours["attention_mask"]) for mask in masks)


def _encode_in_diffusers(
    class_name: str, encoder: str, prompt: str, t5: Any, tokenizer: Any
) -> tuple[dict[str, torch.Tensor], list[torch.Tensor]]:
    """Encode a prompt with a pipeline's defaults.

    Returns:
        What the encoder was called with, and the tensors that the pipeline made for the denoiser.
    """
    import diffusers

    pipeline_class = getattr(diffusers, class_name)
    absent = dict.fromkeys(list(inspect.signature(pipeline_class.__init__).parameters)[1:])
    given = {encoder: t5, encoder.replace("text_encoder", "tokenizer"): tokenizer}
    pipeline = pipeline_class(**{**absent, **given})
    length = inspect.signature(pipeline_class.__call__).parameters["max_sequence_length"].default
    calls: list[dict[str, torch.Tensor]] = []
    hook = t5.register_forward_pre_hook(
        lambda _, args, kwargs: calls.append({"input_ids": args[0], **kwargs}), with_kwargs=True
    )
    try:
        if hasattr(pipeline, "_get_t5_prompt_embeds"):  # leaves the CLIPs out, where there are any
            returned = pipeline._get_t5_prompt_embeds(prompt, max_sequence_length=length, dtype=torch.float32)
        else:
            returned = pipeline.encode_prompt(prompt, do_classifier_free_guidance=False, max_sequence_length=length)
    finally:
        hook.remove()
    (call,) = calls
    values = returned if isinstance(returned, tuple) else (returned,)
    return call, [value for value in values if value is not None]


def test_only_pixart_changes_the_prompt() -> None:
    prompt = "  A CAT,\tÀ la Carte \n"
    changed = {name for name, preset in PRESETS.items() if preset.prepare(prompt) != prompt}
    assert changed == {"pixart-sigma", "pixart-alpha"}
    assert {PRESETS[name].prepare(prompt) for name in changed} == {"a cat,\tà la carte"}


@pytest.mark.parametrize("preset", PRESETS.values(), ids=lambda preset: preset.name)
def test_a_preset_survives_the_manifest_unchanged(preset: Preset) -> None:
    assert Preset.from_dict(json.loads(json.dumps(preset.to_dict()))) == preset


@pytest.mark.parametrize("name", ["flux", "FLUX.1", "", "plain "])
def test_an_unknown_pipeline_lists_the_known_ones(name: str) -> None:
    with pytest.raises(InputError) as caught:
        find_preset(name, "t5", None)
    assert str(caught.value) == f"unknown pipeline '{name}'; known: {', '.join(FACTS)}"


@pytest.mark.parametrize("name", PIPELINES)
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
    ],
)
def test_a_manifest_with_a_value_of_another_kind_is_malformed(key: str, value: Any) -> None:
    with pytest.raises(BundleError, match=r"the manifest's pipeline is malformed: .*" + key):
        Preset.from_dict({**PRESETS["plain"].to_dict(), key: value})


def test_what_a_later_release_adds_is_ignored() -> None:
    assert Preset.from_dict({**PRESETS["plain"].to_dict(), "later": 1}) == PRESETS["plain"]


@pytest.mark.parametrize("document", [None, [], "plain", 5])
def test_a_manifest_whose_pipeline_is_no_object_is_malformed(document: Any) -> None:
    with pytest.raises(BundleError, match="the manifest's pipeline is malformed"):
        Preset.from_dict(document)
