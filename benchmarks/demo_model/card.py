"""Scores what was trained, from the files that are shipped, and writes the model card."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from denoiser import BATCH as DENOISER_BATCH
from denoiser import EMPTY, PATCH
from denoiser import LAYERS as DENOISER_LAYERS
from denoiser import WIDTH as DENOISER_WIDTH
from encoder import BATCH, LAYERS, WIDTH
from transformers import AutoTokenizer, T5EncoderModel

from skrr_export.demo.sampling import GUIDANCE, STEPS, Embedded, Sampler
from skrr_export.demo.tasks import CATEGORIES, Task, draw_tasks, score
from skrr_export.demo.world import SIDE

CARD = """\
# The demo's text-to-image model

A T5 v1.1 text encoder ({encoder:,} parameters, {encoder_shape}, `text_encoder/`, `tokenizer/`) and a PixArt
transformer on pixels ({denoiser:,} parameters, {denoiser_shape}, patches of {patch} pixels, `transformer/`,
`scheduler/`), both in bf16. They draw scenes of one to three coloured shapes, {side} pixels each way, and exist to show
what `skrr-export` does to an encoder.

- **Data**: {scenes:,} scenes that `skrr_export.demo.world` draws from seed {seed}, each captioned anew every time by
  the grammar in `skrr_export.demo.captions`. One colour of each shape, and for each pair of shapes two or three apart
  in the list one axis to be side by side on, never occur.
- **Training**: `python benchmarks/demo_model/train.py`; {lessons:,} steps of the encoder (a small decoder learns with
  it to say what a caption is of, and is left behind) with batches of {batch}, then {steps:,} steps of the denoiser,
  the encoder as it is, with batches of {drawn}; {empty:.0%} of the captions were empty. The weights are averages over
  the last steps.
- **Sampling**: DPM-Solver++, {sampling} steps, guidance {guidance}.
- **Scores** on prompts that training did not see, {count} of each category, {seeds} draws; half of those whose colours
  or places count are of scenes with something held out of training ("new"):

| | score | lowest to highest draw | new |
|---|---|---|---|
{rows}
"""


def write_card(model: Path, *, data: tuple[int, int], steps: tuple[int, int], seeds: Sequence[int], count: int) -> None:
    """Score a model, print the table, and write the card.

    Args:
        model: directory of the models.
        data: how many scenes it was trained on, and the seed that they were drawn from.
        steps: of training, of the encoder and of the denoiser.
        seeds: of draws of tasks.
        count: tasks in a category and draw.
    """
    sampler, encoder = Sampler(model), T5EncoderModel.from_pretrained(model / "text_encoder", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(model / "tokenizer")
    draws, new = [], []
    for seed in seeds:
        tasks = draw_tasks(seed, count)
        prompts = _embed(encoder, tokenizer, [task.prompt for task in tasks])
        images = sampler.draw(prompts, _embed(encoder, tokenizer, [""]), range(len(tasks)))
        draws.append(score(tasks, images))
        new.append(_score_new(tasks, images))
    rows = [
        _row(name, [draw[name] for draw in draws], [draw[name] for draw in new if name in draw])
        for name in [*CATEGORIES, "overall"]
    ]
    text = CARD.format(
        encoder=sum(weight.numel() for weight in encoder.parameters()),
        encoder_shape=f"{LAYERS} layers of {WIDTH}",
        denoiser=sampler.parameters,
        denoiser_shape=f"{DENOISER_LAYERS} layers of {DENOISER_WIDTH}",
        patch=PATCH,
        side=SIDE,
        scenes=data[0],
        seed=data[1],
        lessons=steps[0],
        steps=steps[1],
        batch=BATCH,
        drawn=DENOISER_BATCH,
        empty=EMPTY,
        sampling=STEPS,
        guidance=GUIDANCE,
        count=count,
        seeds=len(seeds),
        rows="\n".join(rows),
    )
    (model / "README.md").write_text(text, encoding="utf-8")
    print(*rows, sep="\n")


def _score_new(tasks: Sequence[Task], images: Iterable) -> dict[str, float]:
    """The scores where the scene has something that is held out of training."""
    kept = [(task, image) for task, image in zip(tasks, images, strict=True) if not task.is_trained]
    scores = score([task for task, _ in kept], [image for _, image in kept])
    return {name: share for name, share in scores.items() if name != "overall"}


def _row(name: str, shares: Sequence[float], new: Sequence[float]) -> str:
    held_out = f"{statistics.mean(new):.2f}" if new else ""
    return f"| {name} | {statistics.mean(shares):.3f} | {min(shares):.2f} to {max(shares):.2f} | {held_out} |"


@torch.inference_mode()
def _embed(encoder: T5EncoderModel, tokenizer, prompts: Sequence[str]) -> Embedded:
    tokens = tokenizer(list(prompts), padding=True, return_tensors="pt")
    rows = encoder(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask).last_hidden_state
    return Embedded(rows.numpy(), tokens.attention_mask.numpy())
