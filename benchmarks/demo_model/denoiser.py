"""Stage two: the denoiser learns to draw what the encoder says, which stays as it is, as in larger systems."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import DPMSolverMultistepScheduler, PixArtTransformer2DModel
from encoder import WIDTH as CAPTION_WIDTH
from torch import Tensor
from torch.nn import functional
from training import Trainer
from transformers import T5EncoderModel, T5Tokenizer
from words import CHUNK, batches, new_caption

from skrr_export.demo.images import draw
from skrr_export.demo.world import CELL, SIDE, Scene

HEADS, HEAD_WIDTH, LAYERS, PATCH = 8, 24, 6, CELL
WIDTH = HEADS * HEAD_WIDTH
COMPONENTS = 96
"""Of a patch: they hold all but 0.003% of the variance."""
NEIGHBOURS = 4
"""How far neighbouring patches are apart for the position embedding, which is made for many more of them."""
LOUDEST = 4.0
"""Deviation of a component; the background's own would drown all others."""
TYPICAL = 5_000
"""Images that the components are taken from."""
BATCH = 128
EMPTY = 0.1
"""Share of captions that are the empty prompt, which guidance needs."""
RATE = 1e-3
"""At 2e-3 a run of 7,000 steps ended with one thing in all places."""
SHIFT = 8.0
"""How far noise levels are moved towards noise, as in SD3. A patch of many numbers shows early what it will be: half of
all levels have more than 89% of noise, where the caption decides on an image."""
TIMESTEPS = 1000
"""What the denoiser is told of pure noise."""
HEAVIEST = 5.0
"""Weight of nearly clean images, whose errors are small, against 1 for noise."""


@dataclass(frozen=True, slots=True)
class Components:
    """Principal components of patches: what a VAE is to other pipelines, a linear one."""

    mean: Tensor
    """`[3 * PATCH**2]`, a patch's channels, rows and columns."""
    directions: Tensor
    """Orthonormal `[3 * PATCH**2, COMPONENTS]`."""
    deviations: Tensor
    """Of the patches along each direction; `[COMPONENTS]`."""

    @classmethod
    def of(cls, images: Tensor) -> Components:
        """Those of all patches of images, uint8 `[images, channels, height, width]`."""
        patches = functional.unfold(_floats(images), PATCH, stride=PATCH).transpose(1, 2).flatten(0, 1)
        variances, directions = (part[..., -COMPONENTS:] for part in torch.linalg.eigh(torch.cov(patches.T)))
        return cls(patches.mean(0), directions, variances.sqrt())

    def error(self, difference: Tensor) -> Tensor:
        """How much a difference of images, `[images, channels, height, width]`, counts; `[images]`.

        The square of a component's error counts by the inverse of its deviation: that of the background's colour is 25,
        of most that tell one shape from another below 1.
        """
        patches = functional.unfold(difference, PATCH, stride=PATCH).transpose(1, 2)
        errors = patches @ (self.directions / self.deviations.sqrt())
        return errors.square().sum((1, 2)) / difference[0].numel()


def new_denoiser(components: Components) -> PixArtTransformer2DModel:
    """A PixArt transformer on pixels, whose ends are these components and are not trained."""
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
    _fix_ends(denoiser, components)
    return denoiser


@torch.no_grad()
def _fix_ends(denoiser: PixArtTransformer2DModel, components: Components) -> None:
    """Make the first layer the components, the last one their inverse, and learn neither.

    Filters of so many numbers, most of them noise, are learned very slowly.
    """
    positions = denoiser.pos_embed.pos_embed[0].T
    apart = torch.linalg.qr(torch.cat([positions, torch.randn(WIDTH, COMPONENTS)], 1)).Q
    into, out = apart[:, positions.shape[1] :], torch.linalg.qr(torch.randn(WIDTH, COMPONENTS)).Q
    heard = components.deviations.clamp(max=LOUDEST)
    first = into @ (components.directions * heard / components.deviations).T
    last = components.directions * heard @ out.T

    def channels_last(rows: Tensor) -> Tensor:
        return rows.unflatten(0, (-1, PATCH, PATCH)).movedim(0, 2).flatten(0, 2)

    encoding, decoding = denoiser.pos_embed.proj, denoiser.proj_out
    encoding.weight.copy_(first.view_as(encoding.weight))
    encoding.bias.copy_(-first @ components.mean)
    decoding.weight.copy_(channels_last(last))
    decoding.bias.copy_(channels_last(components.mean))
    for layer in (encoding, decoding):
        layer.requires_grad_(requires_grad=False)


def _floats(images: Tensor) -> Tensor:
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
        encoder: pretrained, in bf16, as it ships.
        tokenizer: the encoder's.
        scenes: to draw.
        excluded: captions that are kept for scoring.
        steps: of training.
        state: file for going on.
    """
    images = torch.from_numpy(np.stack([draw(scene) for scene in scenes])).permute(0, 3, 1, 2).contiguous()
    components = Components.of(images[:TYPICAL])
    trainer = Trainer(new_denoiser(components), RATE, steps, state)
    for random in trainer.chunks("captions"):
        torch.manual_seed(trainer.done)
        chosen = random.choices(range(len(scenes)), k=BATCH * CHUNK)
        texts = ["" if random.random() < EMPTY else new_caption(scenes[i], excluded, random) for i in chosen]
        for batch in trainer.limit(batches(tokenizer(texts).input_ids, BATCH, random)):
            clean = _floats(images[[chosen[row] for row in batch.rows]])
            level = _noise_levels(len(clean))
            noisy = torch.lerp(clean, torch.randn_like(clean), level[:, None, None, None])
            with torch.no_grad():
                rows = encoder(input_ids=batch.input_ids, attention_mask=batch.attention_mask).last_hidden_state
            with torch.autocast("cpu", torch.bfloat16):
                predicted = trainer.module(
                    noisy,
                    encoder_hidden_states=rows,
                    encoder_attention_mask=batch.attention_mask.float(),
                    timestep=TIMESTEPS * level,
                ).sample
            weights = (1 + ((1 - level) / level).square()).clamp(max=HEAVIEST)  # 1 + signal to noise
            trainer.step((weights * components.error(predicted.float() - clean)).mean())
    return trainer.average


def _noise_levels(count: int) -> Tensor:
    """Shares of noise, spread evenly over the schedule, in random order; `[count]`, above 0 and up to 1."""
    even = (torch.arange(count) + 1 - torch.rand(count)) / count
    return (SHIFT * even / (1 + (SHIFT - 1) * even))[torch.randperm(count)]
