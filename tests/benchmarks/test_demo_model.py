"""The training of the demo's model: its lessons, its components, and going on after a stop."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from skrr_export.demo.captions import caption
from skrr_export.demo.images import draw, read
from skrr_export.demo.world import training_scenes
from tests.benchmarks import scripts
from tests.demo.scenes import scenes

FOLDER = Path(__file__).parents[2] / "benchmarks" / "demo_model"
MODULES = ("words", "training", "encoder", "denoiser")


@pytest.fixture(scope="module")
def bench() -> Iterator[SimpleNamespace]:
    """The scripts, which import each other by their plain names."""
    with scripts(FOLDER, MODULES) as modules:
        yield modules


@pytest.fixture(scope="module")
def tokenizer(bench: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> Any:
    random = Random(0)
    captions = [caption(scene, random) for scene in scenes(3000)]
    return bench.words.train_tokenizer(captions, tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    """uint8 `[400, 3, height, width]`."""
    return torch.from_numpy(np.stack([draw(scene) for scene in scenes(400)])).permute(0, 3, 1, 2)


@pytest.fixture(scope="module")
def components(bench: SimpleNamespace, images: torch.Tensor) -> Any:
    return bench.denoiser.Components.of(images)


# Words


def test_words_are_one_token_each_and_others_are_spelled(tokenizer: Any) -> None:
    assert tokenizer.tokenize("a tiny rhombus, stacked") == ["▁a", "▁tiny", "▁rhombus", ",", "▁stacked"]
    assert "".join(tokenizer.tokenize("Zebra!")) == "▁Zebra!"


def test_lessons_ask_what_a_caption_is_of(bench: SimpleNamespace, tokenizer: Any) -> None:
    drawn = list(islice(training_scenes(Random(1)), 200))
    questions, answers = bench.words.lessons(drawn, tokenizer, frozenset(), Random(2))
    for scene, question, answer in zip(drawn, questions, answers, strict=True):
        assert question[-1] == answer[-1] == tokenizer.eos_token_id
        assert tokenizer.decode(answer[:-1]) == bench.words.describe(scene)
    random = Random(2)
    assert [tokenizer.decode(question[:-1]) for question in questions] == [caption(scene, random) for scene in drawn]


def test_captions_that_are_kept_for_scoring_are_not_learned(bench: SimpleNamespace) -> None:
    scene = scenes(1)[0]
    texts = {caption(scene, Random(seed)) for seed in range(100)}
    kept = frozenset(sorted(texts)[::2])
    assert {bench.words.new_caption(scene, kept, Random(seed)) for seed in range(100)}.isdisjoint(kept)


def test_a_description_tells_scenes_apart(bench: SimpleNamespace) -> None:
    drawn = set(scenes(500))
    layouts = {(tuple(sorted(map(repr, scene.things))), scene.background) for scene in drawn}
    assert len({bench.words.describe(scene) for scene in drawn}) == len(layouts)


def test_batches_hold_every_text_once_padded_to_their_longest(bench: SimpleNamespace) -> None:
    ids = [[1] * (1 + index % 7) for index in range(40)]
    batches = list(bench.words.batches(ids, 16, Random(0)))
    assert sorted(row for batch in batches for row in batch.rows) == list(range(40))
    for batch in batches:
        assert batch.attention_mask.sum(1).tolist() == [len(ids[row]) for row in batch.rows]
        assert batch.input_ids.shape[1] == max(len(ids[row]) for row in batch.rows)


# Components


def test_components_lose_nothing_that_is_read(bench: SimpleNamespace, images: torch.Tensor, components: Any) -> None:
    """The denoiser's first layer and its last, with nothing between them but a change of basis."""
    denoiser = bench.denoiser.new_denoiser(components)
    first, last = denoiser.pos_embed.proj, denoiser.proj_out
    clean = images[:100].float() / 127.5 - 1
    with torch.inference_mode():
        tokens = first(clean).flatten(2).transpose(1, 2)
        turned = torch.linalg.lstsq(tokens.flatten(0, 1), _patches(clean) - last.bias).solution
        drawn = _image(tokens @ turned + last.bias)
    restored = ((drawn.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    for image, before in zip(restored, images[:100].permute(0, 2, 3, 1).numpy(), strict=True):
        assert read(image) == read(before)
    assert torch.linalg.matrix_rank(last.weight) == bench.denoiser.COMPONENTS


def _patches(images: torch.Tensor) -> torch.Tensor:
    """As the denoiser's last layer writes them: rows, columns, channels; `[patches, numbers]`."""
    parts = images.unflatten(3, (3, -1)).unflatten(2, (3, -1))
    return parts.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(0, 2)


def _image(patches: torch.Tensor) -> torch.Tensor:
    parts = patches.unflatten(2, (21, 21, 3)).unflatten(1, (3, 3))
    return parts.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)


def test_an_error_counts_by_its_component(components: Any) -> None:
    assert components.error(torch.zeros(2, 3, 63, 63)).tolist() == [0, 0]
    for index in (0, 50, 95):
        difference = torch.zeros(1, 3, 63, 63)
        difference[..., 21:42, 42:63] = 2 * components.directions[:, index].view(3, 21, 21)
        expected = 4 / components.deviations[index] / difference.numel()
        assert components.error(difference).item() == pytest.approx(expected.item(), rel=1e-3)


def test_the_ends_are_not_trained_and_the_rest_is(bench: SimpleNamespace, components: Any) -> None:
    denoiser = bench.denoiser.new_denoiser(components)
    fixed = {name for name, weight in denoiser.named_parameters() if not weight.requires_grad}
    assert fixed == {f"{layer}.{kind}" for layer in ("pos_embed.proj", "proj_out") for kind in ("weight", "bias")}


def test_noise_levels_are_spread_over_the_shifted_schedule(bench: SimpleNamespace) -> None:
    torch.manual_seed(0)
    levels = bench.denoiser._noise_levels(1000).sort().values
    even, shift = (torch.arange(1000) + 0.5) / 1000, bench.denoiser.SHIFT
    assert torch.allclose(levels, shift * even / (1 + (shift - 1) * even), atol=0.01)
    assert levels.min() > 0
    assert levels.max() <= 1


# Going on


def test_a_training_that_was_stopped_goes_on_as_if_it_were_not(
    bench: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench.training, "SAVED_EVERY", 4)
    whole = _train(bench, tmp_path / "whole.pt", stop=20)
    _train(bench, tmp_path / "stopped.pt", stop=14)  # two steps are lost
    resumed = _train(bench, tmp_path / "stopped.pt", stop=20)
    assert torch.equal(whole.module.weight, resumed.module.weight)
    assert torch.equal(whole.average.weight, resumed.average.weight)
    assert not torch.equal(whole.module.weight, whole.average.weight)


def test_some_parameters_learn_faster(bench: SimpleNamespace, tmp_path: Path) -> None:
    module = nn.Linear(4, 1)
    before = {name: weight.detach().clone() for name, weight in module.named_parameters()}
    trainer = bench.training.Trainer(module, 1e-4, 10, tmp_path / "state.pt", faster={"bias": 30.0})
    trainer.step(module(torch.ones(1, 4)).sum())
    moved = {name: (weight - before[name]).abs().max().item() for name, weight in module.named_parameters()}
    assert moved["bias"] == pytest.approx(30 * moved["weight"], rel=0.05)


def _train(bench: SimpleNamespace, state: Path, stop: int) -> Any:
    """A small module's training of twenty steps, of which it does those up to `stop`."""
    torch.manual_seed(0)
    trainer = bench.training.Trainer(nn.Linear(4, 1), 0.01, 20, state)
    for random in trainer.chunks("numbers"):
        torch.manual_seed(random.randrange(1000))
        for _ in range(2):
            trainer.step(trainer.module(torch.randn(8, 4)).square().mean())
        if trainer.done == stop:
            break
    return trainer
