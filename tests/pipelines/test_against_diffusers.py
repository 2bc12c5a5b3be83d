"""Every preset against the pipeline of diffusers that it stands for: what reaches the encoder, and what comes back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from skrr_export.pipelines import PRESETS, pipeline_names
from skrr_export.tokenization import Tokenizer, encode_prompts, encode_unconditional
from tests.pipelines.calls import PIPELINES, Encoded, Pipeline
from tests.pipelines.encoders import FakeSession

BATCHES = {
    "many": [
        "A red Fox",
        "  <b>Bold &amp; Brave</b> cat,\tLOUD &#65; — 640x480 #123 www.shop.com [IMG] jc6640 ",
        "",
        "long, " * 1200,
        "{x} {} naïve 漢字 🦊 [IMG]",
    ],
    "two": ["", "an old man walks along the shore at night"],
    "one": ["rain on a tin roof"],
}
"""Short, truncated and empty prompts, such as are cleaned, and such as templates could trip over."""
NEGATIVES = {
    "many": ["blurry", "", "LOW  quality [IMG]", "ugly, " * 1200, "text"],
    "two": ["Bad &lt;hands&gt;", ""],
    "one": [""],
}


@dataclass
class Call:
    """What an encoder was called with."""

    input_ids: torch.Tensor
    attention_mask: torch.Tensor | None


class Real:
    """A pipeline of diffusers with tiny encoders, and for each of them a session with the same weights."""

    def __init__(self, name: str, pipeline: Pipeline, directory: Path) -> None:
        self.pipeline = pipeline
        encoders = {slot: tiny.make_encoder(seed) for seed, (slot, tiny) in enumerate(pipeline.encoders.items())}
        self.pipe = pipeline.make(encoders)
        self.sessions: dict[str, Any] = {
            slot: FakeSession(directory / slot, tiny, encoders[slot], name, slot)
            for slot, tiny in pipeline.encoders.items()
        }
        self.calls: dict[str, list[Call]] = {}
        for slot, encoder in encoders.items():
            encoder.register_forward_pre_hook(self._record(slot), with_kwargs=True)

    def _record(self, slot: str) -> Callable[[Any, tuple[Any, ...], dict[str, Any]], None]:
        def record(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            given = dict(zip(("input_ids", "attention_mask"), args, strict=False)) | kwargs
            self.calls.setdefault(slot, []).append(Call(given["input_ids"], given.get("attention_mask")))

        return record

    @cache  # noqa: B019 - as long as the module's tests run
    def encode(self, batch: str) -> tuple[Sequence[Any], Sequence[Any], dict[str, list[Call]]]:
        """What the pipeline returns for prompts, and for negative ones; and the calls of its encoders."""
        self.calls.clear()
        with torch.inference_mode():
            positive, negative = self.pipeline.call(self.pipe, BATCHES[batch], NEGATIVES[batch])
        return positive, negative, {slot: [*calls] for slot, calls in self.calls.items()}

    def ours(self, encode: Callable[[Any], Any]) -> Sequence[Any]:
        encoded: Encoded = {slot: encode(session) for slot, session in self.sessions.items()}
        return self.pipeline.ours(encoded)


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Real]:
    made: dict[str, Real] = {}

    def get(name: str) -> Real:
        if name not in made:
            made[name] = Real(name, PIPELINES[name], tmp_path_factory.mktemp("pipeline"))
        return made[name]

    return get


def test_every_preset_is_compared_with_its_pipeline() -> None:
    compared = {(name, slot) for name, pipeline in PIPELINES.items() for slot in pipeline.encoders}
    assert compared == {(preset.name, preset.encoder) for preset in PRESETS.values()} - {("plain", None)}
    assert [*PIPELINES] == pipeline_names()[1:]


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("name", PIPELINES)
def test_encoders_get_what_the_pipeline_gives_them(name: str, batch: str, real: Callable[[str], Real]) -> None:
    tested = real(name)
    _, _, calls = tested.encode(batch)
    for slot, session in tested.sessions.items():
        tokenizer = Tokenizer.of_bundle(session.bundle)
        assert len(calls[slot]) == 2
        for call, prompts, negative in zip(calls[slot], (BATCHES[batch], NEGATIVES[batch]), (False, True), strict=True):
            tokens = tokenizer(prompts, negative=negative)
            np.testing.assert_array_equal(tokens.input_ids, call.input_ids.numpy())
            assert (call.attention_mask is not None) is session.preset.masked
            if call.attention_mask is not None:
                np.testing.assert_array_equal(tokens.attention_mask, call.attention_mask.long().numpy())


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("name", PIPELINES)
def test_the_denoiser_gets_what_the_pipeline_gives_it(name: str, batch: str, real: Callable[[str], Real]) -> None:
    tested = real(name)
    positive, negative, _ = tested.encode(batch)
    same(tested.ours(lambda session: encode_prompts(session, BATCHES[batch])), positive)
    same(tested.ours(lambda session: encode_prompts(session, NEGATIVES[batch], negative=True)), negative)


@pytest.mark.parametrize("name", PIPELINES)
def test_without_a_negative_prompt_too(name: str, real: Callable[[str], Real]) -> None:
    tested = real(name)
    with torch.inference_mode():
        _, negative = tested.pipeline.call(tested.pipe, BATCHES["two"], None)
    # HiDream encodes one empty prompt, and repeats it.
    same(tested.ours(lambda session: encode_unconditional(session, 2)), negative, 1e-5 if name == "hidream" else 0)


def test_flux_2_through_a_processor(real: Callable[[str], Real]) -> None:
    """Its tokenizer is a processor, whose code for chat templates is another."""
    from transformers import ProcessorMixin

    class TextProcessor(ProcessorMixin):
        def __init__(self, tokenizer: Any, chat_template: str) -> None:
            super().__init__(tokenizer, chat_template=chat_template)

    tested = real("flux.2")
    tokenizer = tested.pipe.tokenizer
    tested.calls.clear()
    tested.pipe._get_mistral_3_small_prompt_embeds(
        tested.pipe.text_encoder, TextProcessor(tokenizer, tokenizer.chat_template), BATCHES["many"]
    )
    (call,) = tested.calls["text_encoder"]
    tokens = Tokenizer.of_bundle(tested.sessions["text_encoder"].bundle)(BATCHES["many"])
    np.testing.assert_array_equal(tokens.input_ids, call.input_ids.numpy())
    np.testing.assert_array_equal(tokens.attention_mask, call.attention_mask.numpy())


def same(ours: Sequence[np.ndarray], theirs: Sequence[Any], tolerance: float = 0) -> None:
    """Bit for bit, unless there is a tolerance."""
    assert len(ours) == len(theirs)
    for value, truth in zip(ours, theirs, strict=True):
        expected = truth.numpy()
        assert value.shape == expected.shape
        assert value.size
        np.testing.assert_allclose(value, expected.astype(value.dtype), rtol=tolerance, atol=tolerance)
