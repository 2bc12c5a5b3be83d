"""Train the demo's text encoder and denoiser, and write them as `skrr-export demo` wants them.

    python benchmarks/demo_model/train.py [-o DIR] [--work DIR]

Draws scenes, makes a tokenizer of their captions, trains the encoder on language alone and then the denoiser on what it
says, searches the plans of `skrr-export demo --fast`, and scores what is written. About 35 minutes on 2 cores.
Stopped, it goes on where it was.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from itertools import islice
from pathlib import Path
from random import Random

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from card import write_card
from denoiser import scheduler, train
from encoder import pretrain
from environments import cache_directory
from words import train_tokenizer

from skrr_export.demo import plans
from skrr_export.demo.captions import caption
from skrr_export.demo.tasks import draw_tasks
from skrr_export.demo.world import training_scenes
from skrr_export.staging import write_file

SEED = 0
SCENES = 60_000
SCORED = {"seeds": range(3), "count": 50}
"""Tasks that the model is scored on, and whose prompts training leaves out."""
MODEL = Path(__file__).resolve().parents[2] / "skrr_export" / "demo" / "model"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, default=MODEL, help="where the models go (default: %(default)s)")
    parser.add_argument("--work", type=Path, default=cache_directory() / "demo_model", help="for going on after a stop")
    parser.add_argument("--lessons", type=int, default=2_400, help="steps of the encoder alone (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=3_000, help="steps of the denoiser (default: %(default)s)")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)

    torch.manual_seed(SEED)
    random = Random(SEED)
    scenes = list(islice(training_scenes(random), SCENES))
    tokenizer = train_tokenizer((caption(scene, random) for scene in scenes), arguments.work / "tokenizer")
    excluded = frozenset(task.prompt for seed in SCORED["seeds"] for task in draw_tasks(seed, SCORED["count"]))
    with sdpa_kernel(SDPBackend.MATH):  # in bf16, the fused kernel's backward pass is ten times slower on a CPU
        work, kept = arguments.work, {"excluded": excluded}
        encoder = pretrain(tokenizer, scenes, **kept, steps=arguments.lessons, state=work / "encoder.pt").to(
            torch.bfloat16
        )
        denoiser = train(encoder, tokenizer, scenes, **kept, steps=arguments.steps, state=work / "denoiser.pt")

    for folder in ("text_encoder", "tokenizer", "transformer", "scheduler"):
        shutil.rmtree(arguments.output / folder, ignore_errors=True)
    encoder.save_pretrained(arguments.output / "text_encoder")
    denoiser.to(torch.bfloat16).save_pretrained(arguments.output / "transformer")
    shutil.copytree(arguments.work / "tokenizer", arguments.output / "tokenizer")
    scheduler().save_pretrained(arguments.output / "scheduler")
    shipped = arguments.output / plans.SHIPPED.name
    shipped.mkdir(exist_ok=True)
    for name, file in plans.FILES.items():
        write_file(shipped / file, plans.search_plan(name, plans.SPARSITY, model=arguments.output).to_json().encode())
    write_card(arguments.output, data=(SCENES, SEED), steps=(arguments.lessons, arguments.steps), **SCORED)


if __name__ == "__main__":
    main()
