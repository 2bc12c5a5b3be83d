"""Sampling, by a tiny denoiser of random weights: each image is what a plain loop makes of its prompt and seed."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from skrr_export.demo import sampling
from skrr_export.demo.sampling import GUIDANCE, STEPS, Embedded, Sampler, distances, embed
from skrr_export.demo.world import SIDE
from skrr_export.targets.onnx.session import OnnxSession
from tests.bundles import export, relative_error, soften
from tests.checkpoints import t5_checkpoint

WIDTH = 8
LEVELS = 1
"""Grey levels that rounding may differ by; another prompt changes a channel by ten times as much."""


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folders of a tiny pipeline; weights are large enough for the text to reach the image."""
    from diffusers import DPMSolverMultistepScheduler, PixArtTransformer2DModel

    directory = tmp_path_factory.mktemp("pipeline")
    torch.manual_seed(0)
    denoiser = PixArtTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=3, out_channels=3, num_layers=2,
        cross_attention_dim=16, sample_size=SIDE, patch_size=21, caption_channels=WIDTH,
        use_additional_conditions=False,
    )  # fmt: skip
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter.normal_(std=parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.1)
    denoiser.save_pretrained(directory / "transformer")
    scheduler = DPMSolverMultistepScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="sample")
    scheduler.save_pretrained(directory / "scheduler")
    return directory


@pytest.fixture(scope="module")
def sampler(pipeline: Path) -> Sampler:
    return Sampler(pipeline)


def embedded(lengths: Sequence[int], seed: int = 0) -> Embedded:
    """Rows of prompts of some lengths, with nonsense where padding is."""
    random = np.random.default_rng(seed)
    mask = (np.arange(max(lengths)) < np.array(lengths)[:, None]).astype(np.int64)
    rows = random.normal(0, 2, (*mask.shape, WIDTH)).astype(np.float32)
    return Embedded(np.where(mask[..., None], rows, np.float32(50)), mask)


def only(prompts: Embedded, row: int) -> Embedded:
    """One prompt, without padding."""
    length = int(prompts.mask[row].sum())
    return Embedded(prompts.rows[row : row + 1, :length], prompts.mask[row : row + 1, :length])


def difference(one: np.ndarray, other: np.ndarray) -> int:
    """The most by which a channel differs."""
    assert one.shape == other.shape
    return int(np.abs(one.astype(int) - other.astype(int)).max())


EMPTY = embedded([1], seed=9)
PROMPTS = embedded([3, 7, 1, 5])
SEEDS = [4, 5, 6, 7]


@torch.inference_mode()
def plain(pipeline: Path, prompt: Embedded, empty: Embedded, seed: int) -> np.ndarray:
    """One image, the denoiser called for prompt and empty prompt apart, without padding or masks."""
    from diffusers import DPMSolverMultistepScheduler, PixArtTransformer2DModel

    denoiser = PixArtTransformer2DModel.from_pretrained(pipeline, subfolder="transformer").eval()
    scheduler = DPMSolverMultistepScheduler.from_pretrained(pipeline, subfolder="scheduler")
    scheduler.set_timesteps(STEPS)
    image = torch.randn(3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))[None]
    for step in scheduler.timesteps:
        with_prompt, without = (
            denoiser(image, encoder_hidden_states=torch.from_numpy(each.rows), timestep=step[None]).sample
            for each in (prompt, empty)
        )
        image = scheduler.step(without + GUIDANCE * (with_prompt - without), step, image).prev_sample
    grey = (image[0].permute(1, 2, 0).numpy() + 1) / 2
    return (grey.clip(0, 1) * 255).round().astype(np.uint8)


def test_it_is_quick_enough_to_ship() -> None:
    assert STEPS <= 20


def test_images_are_what_a_plain_loop_makes(pipeline: Path, sampler: Sampler) -> None:
    images = sampler.draw(PROMPTS, EMPTY, SEEDS)
    assert (images.shape, images.dtype) == ((4, SIDE, SIDE, 3), np.uint8)
    for row, seed in enumerate(SEEDS):
        assert difference(images[row], plain(pipeline, only(PROMPTS, row), EMPTY, seed)) <= LEVELS


def test_an_image_is_the_same_alone(sampler: Sampler) -> None:
    images = sampler.draw(PROMPTS, EMPTY, SEEDS)
    for row, seed in enumerate(SEEDS):
        alone = sampler.draw(only(PROMPTS, row), EMPTY, [seed])
        assert difference(alone, images[row : row + 1]) <= LEVELS


def test_batches_change_nothing(sampler: Sampler, monkeypatch: pytest.MonkeyPatch) -> None:
    images = sampler.draw(PROMPTS, EMPTY, SEEDS)
    monkeypatch.setattr(sampling, "_BATCH", 3)
    assert difference(sampler.draw(PROMPTS, EMPTY, SEEDS), images) <= LEVELS


def test_threads_change_nothing(sampler: Sampler, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each batch has a scheduler of its own."""
    monkeypatch.setattr(sampling, "_BATCH", 1)
    images = sampler.draw(PROMPTS, EMPTY, SEEDS)
    for _ in range(3):
        assert difference(sampler.draw(PROMPTS, EMPTY, SEEDS, threads=4), images) <= LEVELS


def test_drawing_again_gives_the_same_images(sampler: Sampler) -> None:
    """The scheduler remembers earlier predictions while it draws; none may reach the next images."""
    first = sampler.draw(PROMPTS, EMPTY, SEEDS)
    sampler.draw(embedded([2], seed=3), EMPTY, [0])
    assert (sampler.draw(PROMPTS, EMPTY, SEEDS) == first).all()


def test_an_empty_prompt_longer_than_the_prompts_does_no_harm(pipeline: Path, sampler: Sampler) -> None:
    empty = embedded([6], seed=9)
    prompt = embedded([2], seed=1)
    assert difference(sampler.draw(prompt, empty, [3])[0], plain(pipeline, prompt, empty, 3)) <= LEVELS


def test_seeds_prompts_and_the_empty_prompt_all_matter(sampler: Sampler) -> None:
    prompt = only(PROMPTS, 1)
    image = sampler.draw(prompt, EMPTY, [4])
    for other in (
        sampler.draw(prompt, EMPTY, [5]),
        sampler.draw(embedded([7], seed=2), EMPTY, [4]),
        sampler.draw(prompt, embedded([1], seed=8), [4]),
    ):
        assert difference(image, other) > 10 * LEVELS


def test_guidance_goes_beyond_the_prompt(sampler: Sampler, monkeypatch: pytest.MonkeyPatch) -> None:
    """At 1 it would be the prompt's own prediction, which no empty prompt changes."""
    prompt, others = only(PROMPTS, 1), (EMPTY, embedded([1], seed=8))
    monkeypatch.setattr(sampling, "GUIDANCE", 1.0)
    one, other = (sampler.draw(prompt, empty, [4]) for empty in others)
    assert difference(one, other) <= LEVELS
    monkeypatch.undo()
    assert difference(one, sampler.draw(prompt, EMPTY, [4])) > 10 * LEVELS
    assert difference(one, sampler.draw(prompt, prompt, [4])) <= LEVELS  # nothing to be guided away from


def test_progress_counts_images(sampler: Sampler, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "_BATCH", 3)
    told: list[tuple[str, int, int]] = []
    sampler.draw(PROMPTS, EMPTY, SEEDS, progress=lambda *what: told.append(what))
    assert told == [("drawing", 0, 4), ("drawing", 3, 4), ("drawing", 4, 4)]


def test_parameters_are_counted(pipeline: Path, sampler: Sampler) -> None:
    from safetensors.torch import load_file

    weights = load_file(pipeline / "transformer" / "diffusion_pytorch_model.safetensors")
    assert sampler.parameters == sum(weight.numel() for weight in weights.values())


def test_embeddings_are_those_of_transformers_and_padding_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoTokenizer, T5EncoderModel

    monkeypatch.setitem(sys.modules, "openvino_tokenizers", None)  # a recipe for C++ is not needed
    checkpoint = soften(t5_checkpoint(tmp_path / "t5", tokenizer=True))
    prompts = ["a red circle", "", "two rings on grey"]
    made = embed(OnnxSession(export(checkpoint, tmp_path / "bundle")), prompts)
    model, tokenizer = T5EncoderModel.from_pretrained(checkpoint).eval(), AutoTokenizer.from_pretrained(checkpoint)
    assert (made.rows.dtype, made.mask.dtype) == (np.float32, np.int64)
    for rows, mask, prompt in zip(made.rows, made.mask, prompts, strict=True):
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        with torch.inference_mode():
            expected = model(input_ids=ids).last_hidden_state[0].numpy()
        assert mask.tolist() == [1] * len(expected) + [0] * (len(mask) - len(expected))
        assert relative_error(rows[: len(expected)], expected) < 1e-5
    assert made.mask.sum(axis=1).tolist()[1] == 1  # the empty prompt: its end alone


def test_the_distance_of_black_and_white_is_one() -> None:
    black = np.zeros((2, 4, 4, 3), np.uint8)
    changed = black.copy()
    changed[0] += 51
    assert distances(black, black).tolist() == [0, 0]
    assert distances(black, black + np.uint8(255)).tolist() == [1, 1]
    assert distances(changed, black).tolist() == pytest.approx([0.2, 0])
