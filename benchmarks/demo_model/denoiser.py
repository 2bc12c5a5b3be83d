"""Stage two: the denoiser learns to draw what the encoder says, which stays as it is, as in larger systems."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import DPMSolverMultistepScheduler, PixArtTransformer2DModel
from encoder import WIDTH as CAPTION_WIDTH
from torch.nn import functional
from training import Trainer
from transformers import T5EncoderModel, T5Tokenizer
from words import CHUNK, batches, new_caption

from skrr_export.demo.images import draw
from skrr_export.demo.world import CELL, SIDE, Scene

HEADS, HEAD_WIDTH, LAYERS, PATCH = 4, 48, 6, CELL
WIDTH = HEADS * HEAD_WIDTH
COMPONENTS = 96
"""Of a patch: they hold all but 0.003% of the variance."""
NEIGHBOURS = 4
"""How far neighbouring patches are apart for the position embedding, which is made for many more of them."""
LOUDEST = 4.0
"""Deviation of a component; the background's own would drown all others."""
TYPICAL = 5_000
"""Images that the components are taken from."""
CAPTIONS = 64
"""Captions in a step."""
NOISES = 4
"""Noisy versions of each one's image: a pass of the encoder costs about as much as drawing one of them."""
EMPTY = 0.1
"""Share of captions that are the empty prompt, which guidance needs."""
RATE = 1e-3
SHIFT = 4.0
"""How far noise levels are moved towards noise, as in SD3. A patch of many numbers shows early what it will be: between
76% and 96% of noise, where an image is decided on, lies a sixth of the cosine schedule, and two fifths of this one."""
TIMESTEPS = 1000
"""What the denoiser is told of pure noise."""
HEAVIEST = 5.0
"""Weight of nearly clean images, whose errors are small, against 1 for noise."""


def new_denoiser(images: torch.Tensor) -> PixArtTransformer2DModel:
    """A PixArt transformer on pixels.

    Args:
        images: some, uint8 `[images, channels, height, width]`.
    """
    denoiser = PixArtTransformer2DModel(
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
        interpolation_scale=1 / NEIGHBOURS,
    )
    _fix_ends(denoiser, images)
    return denoiser


@torch.no_grad()
def _fix_ends(denoiser: PixArtTransformer2DModel, images: torch.Tensor) -> None:
    """Make the first layer the principal components of patches, the last one their inverse, and learn neither.

    They are what a VAE is to other pipelines, a linear one. Filters of so many numbers, most of them noise, are learned
    very slowly otherwise.
    """
    patches = functional.unfold(_floats(images), PATCH, stride=PATCH).transpose(1, 2).flatten(0, 1)
    mean = patches.mean(0)
    variances, components = (part[..., -COMPONENTS:] for part in torch.linalg.eigh(torch.cov(patches.T)))
    positions = denoiser.pos_embed.pos_embed[0].T
    apart = torch.linalg.qr(torch.cat([positions, torch.randn(WIDTH, COMPONENTS)], 1)).Q
    into, out = apart[:, positions.shape[1] :], torch.linalg.qr(torch.randn(WIDTH, COMPONENTS)).Q
    deviations = variances.sqrt()
    heard = deviations.clamp(max=LOUDEST)
    first = into @ (components * heard / deviations).T
    last = components * heard @ out.T

    def channels_last(rows: torch.Tensor) -> torch.Tensor:
        return rows.unflatten(0, (-1, PATCH, PATCH)).movedim(0, 2).flatten(0, 2)

    encoding, decoding = denoiser.pos_embed.proj, denoiser.proj_out
    encoding.weight.copy_(first.view_as(encoding.weight))
    encoding.bias.copy_(-first @ mean)
    decoding.weight.copy_(channels_last(last))
    decoding.bias.copy_(channels_last(mean))
    for layer in (encoding, decoding):
        layer.requires_grad_(requires_grad=False)


def _floats(images: torch.Tensor) -> torch.Tensor:
    """Images from -1 to 1."""
    return images.float() / 127.5 - 1


def scheduler() -> DPMSolverMultistepScheduler:
    """What the denoiser is sampled with. It predicts the image itself: noise in so large patches is harder to tell."""
    return DPMSolverMultistepScheduler(
        prediction_type="sample",
        use_flow_sigmas=True,
        flow_shift=SHIFT,
        thresholding=True,  # guidance may ask for more than white
    )


def train(
    encoder: T5EncoderModel,
    tokenizer: T5Tokenizer,
    scenes: Sequence[Scene],
    *,
    excluded: frozenset[str],
    steps: int,
    state: Path,
) -> PixArtTransformer2DModel:
    """Train a denoiser; the average of its last weights.

    Args:
        encoder: pretrained.
        tokenizer: the encoder's.
        scenes: to draw.
        excluded: captions that are kept for scoring.
        steps: of training.
        state: file for going on.
    """
    images = torch.from_numpy(np.stack([draw(scene) for scene in scenes])).permute(0, 3, 1, 2)
    denoiser = new_denoiser(images[:TYPICAL])
    trainer = Trainer(denoiser, RATE, steps, state)
    for random in trainer.chunks("captions"):
        torch.manual_seed(trainer.done)
        chosen = random.choices(range(len(scenes)), k=CAPTIONS * CHUNK)
        texts = ["" if random.random() < EMPTY else new_caption(scenes[i], excluded, random) for i in chosen]
        for batch in trainer.limit(batches(tokenizer(texts).input_ids, CAPTIONS, random)):
            clean = _floats(images[[chosen[row] for row in batch.rows]]).repeat(NOISES, 1, 1, 1)
            level = _noise_levels(len(clean))
            noisy = torch.lerp(clean, torch.randn_like(clean), level[:, None, None, None])
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
                rows = encoder(input_ids=batch.input_ids, attention_mask=batch.attention_mask).last_hidden_state
            with torch.autocast("cpu", torch.bfloat16):
                predicted = denoiser(
                    noisy,
                    encoder_hidden_states=rows.repeat(NOISES, 1, 1),
                    encoder_attention_mask=batch.attention_mask.float().repeat(NOISES, 1),
                    timestep=TIMESTEPS * level,
                ).sample
            errors = (predicted.float() - clean).square().mean((1, 2, 3))
            weights = (1 + ((1 - level) / level).square()).clamp(max=HEAVIEST)  # 1 + signal to noise
            trainer.step((weights * errors).mean())
    return trainer.average


def _noise_levels(count: int) -> torch.Tensor:
    """Shares of noise, spread evenly over the schedule, in random order; `[count]`, above 0 and up to 1."""
    even = (torch.arange(count) + 1 - torch.rand(count)) / count
    return (SHIFT * even / (1 + (SHIFT - 1) * even))[torch.randperm(count)]
