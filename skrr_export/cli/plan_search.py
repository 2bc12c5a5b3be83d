"""`skrr-export plan search`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import click

from skrr_export.cli.output import Output, output_options
from skrr_export.cli.searches import calibration_options, run_search
from skrr_export.search.goal import parse_sparsities
from skrr_export.searching import METHODS, SearchOptions, search_plans


@click.command()
@click.argument("checkpoint")
@click.option("--sparsity", required=True, help="Share of the parameters to do without; several, comma-separated.")
@click.option("-o", "--output", "plan_file", required=True, type=click.Path(path_type=Path), help="Plan file to write.")
@click.option("--method", default="skrr+", show_default=True, type=click.Choice(METHODS), help="How to search.")
@click.option("--pipeline", default="plain", show_default=True, help="What feeds the encoder: a preset's name.")
@click.option("--beam", default=3, show_default=True, help="Arrangements that go on after each step.")
@click.option("--granularity", type=click.Choice(["sub-block", "layer"]), help="What is dropped at a time.")
@click.option("--reuse/--no-reuse", default=None, help="Run kept units in dropped ones' places; default: the method's.")
@click.option("--seed", default=0, show_default=True, help="Of the method random.")
@click.option("--merged", type=click.Path(path_type=Path), help="Of the method laco: the merged checkpoint to write.")
@calibration_options
@output_options
def command(
    checkpoint: str,
    sparsity: str,
    plan_file: Path,
    method: str,
    pipeline: str,
    beam: int,
    granularity: Literal["sub-block", "layer"] | None,
    reuse: bool | None,
    seed: int,
    merged: Path | None,
    calibration: dict[str, Any],
    resume: bool,
    output: Output,
) -> None:
    """Search the plan that changes the embeddings least.

    Drops sub-blocks until the wanted share of the parameters is gone, and runs kept ones in their places where that
    helps. What is kept small is the paper's discrepancy D: the mean squared error after the denoiser's text projection
    on the prompts, plus that on the empty prompt.

    The embeddings are what the pipeline takes of its encoder. Layers that it does not read are gone from the start,
    and count as such.

    Every decision is kept in PLAN.journal while the search runs: after an interruption, --resume goes on from there.
    With several sparsities, PLAN-0.25.json and so on are written. Under torchrun the processes share the prompts.

    \b
    Examples:
      skrr-export plan search FLUX.1-dev --subfolder text_encoder_2 --pipeline flux.1 \\
          --denoiser FLUX.1-dev/transformer --sparsity 0.42 -o plan.json
      skrr-export plan search t5-v1_1-large --sparsity 0.25,0.33,0.42 --method skrr --max-prompts 64 -o plan.json
      skrr-export plan search sdxl-base --subfolder text_encoder_2 --pipeline sdxl --sparsity 0.2 -o plan.json
      torchrun --nproc-per-node 4 -m skrr_export plan search t5-v1_1-xxl --sparsity 0.42 -o plan.json
    """
    options = SearchOptions(
        sparsities=parse_sparsities(sparsity),
        method=method,
        pipeline=pipeline,
        beam=beam,
        granularity=granularity,
        reuse=reuse,
        seed=seed,
        merged=merged,
        **calibration,
    )
    run_search(
        lambda journal, progress: search_plans(checkpoint, options, journal=journal, resume=resume, progress=progress),
        plan_file,
        options.sparsities,
        output,
    )
