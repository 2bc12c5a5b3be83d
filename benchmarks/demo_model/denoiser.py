"""Stage two: the denoiser learns to draw what the encoder says, and the encoder to say what the denoiser needs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from random import Random

import numpy as np
import torch
from diffusers import DDPMScheduler, DPMSolverMultistepScheduler, PixArtTransformer2DModel
from encoder import WIDTH as CAPTION_WIDTH
from training import Trainer
from transformers import T5EncoderModel, T5Tokenizer
from words import CHUNK, batches

from skrr_export.demo.captions import caption
from skrr_export.demo.images import draw
from skrr_export.demo.world import CELL, SIDE, Scene

HEADS, HEAD_WIDTH, LAYERS, PATCH = 4, 48, 6, CELL
WIDTH = HEADS * HEAD_WIDTH
CAPTIONS = 64
"""Captions in a step."""
NOISES = 4
"""Noisy versions of each one's image: a pass of the encoder costs about as much as drawing one of them."""
EMPTY = 0.1
"""Share of captions that are the empty prompt, which guidance needs."""
RATES = {"encoder": 5e-4, "denoiser": 1e-3}
NOISE = {"num_train_timesteps": 1000, "beta_schedule": "squaredcos_cap_v2", "prediction_type": "sample"}
"""The denoiser predicts the image itself, which is simple; noise in patches of 300 numbers is not."""
HEAVIEST = 5.0
"""Weight of nearly clean images, whose errors are small, against 1 for noise."""


def new_denoiser() -> PixArtTransformer2DModel:
    """A PixArt transformer on pixels."""
    return PixArtTransformer2DModel(
        num_attention_heads=HEADS,
        attention_head_dim=HEAD_WIDTH,
        in_channels=3,
        out_channels=3,
        num_layers=LAYERS,
        cross_attention_dim=WIDTH,
        sample_size=SIDE,
        patch_size=PATCH,
        caption_channels=CAPTION_WIDTH,
        use_additional_conditions=False,
    )


def scheduler() -> DPMSolverMultistepScheduler:
    """What the denoiser is sampled with."""
    return DPMSolverMultistepScheduler(**NOISE, thresholding=True)  # guidance may ask for more than white


def train(
    encoder: T5EncoderModel,
    denoiser: PixArtTransformer2DModel,
    tokenizer: T5Tokenizer,
    scenes: Sequence[Scene],
    *,
    excluded: frozenset[str],
    steps: int,
    state: Path,
) -> Trainer:
    """Train both.

    Args:
        encoder: pretrained.
        denoiser: new.
        tokenizer: the encoder's.
        scenes: to draw.
        excluded: captions that are kept for scoring.
        steps: of training.
        state: file for going on.
    """
    trainer = Trainer({"encoder": encoder, "denoiser": denoiser}, RATES, steps, state)
    images = torch.from_numpy(np.stack([draw(scene) for scene in scenes])).permute(0, 3, 1, 2)
    noise = DDPMScheduler(**NOISE)
    weights = (1 / (1 - noise.alphas_cumprod)).clamp(max=HEAVIEST)  # 1 + signal to noise
    for random in trainer.chunks("captions"):
        torch.manual_seed(trainer.done)
        chosen = random.choices(range(len(scenes)), k=CAPTIONS * CHUNK)
        texts = [_caption(scenes[index], excluded, random) for index in chosen]
        for batch in trainer.limit(batches(tokenizer(texts).input_ids, CAPTIONS, random)):
            clean = images[[chosen[row] for row in batch.rows]].float() / 127.5 - 1
            clean = clean.repeat(NOISES, 1, 1, 1)
            steps_of_noise = _spread_steps(len(clean))
            noisy = noise.add_noise(clean, torch.randn_like(clean), steps_of_noise)
            with torch.autocast("cpu", torch.bfloat16):
                rows = encoder(input_ids=batch.input_ids, attention_mask=batch.attention_mask).last_hidden_state
                predicted = denoiser(
                    noisy,
                    encoder_hidden_states=rows.repeat(NOISES, 1, 1),
                    encoder_attention_mask=batch.attention_mask.float().repeat(NOISES, 1),
                    timestep=steps_of_noise,
                ).sample
            errors = (predicted.float() - clean).square().mean((1, 2, 3))
            trainer.step((weights[steps_of_noise] * errors).mean())
    return trainer


def _caption(scene: Scene, excluded: frozenset[str], random: Random) -> str:
    while (text := caption(scene, random)) in excluded:
        pass
    return "" if random.random() < EMPTY else text


def _spread_steps(count: int) -> torch.Tensor:
    """Noise levels that are spread evenly over all there are, in random order."""
    even = (torch.arange(count) + torch.rand(count)) / count
    return (even * NOISE["num_train_timesteps"]).long()[torch.randperm(count)]
