"""`skrr-export export`."""

from __future__ import annotations

from pathlib import Path

import click

from skrr_export.cli.output import Output, output_options, size
from skrr_export.pipelines import PRESETS
from skrr_export.plan import Plan
from skrr_export.plan_view import summary


@click.command()
@click.argument("checkpoint")
@click.option("-o", "--output", "bundle", required=True, type=click.Path(path_type=Path), help="The bundle to write.")
@click.option("--plan", "plan_file", type=click.Path(path_type=Path), help="Plan file; default: keep everything.")
@click.option("--pipeline", default="plain", show_default=True, help=f"What feeds it: {', '.join(PRESETS)}.")
@click.option("--dtype", help="fp32, fp16 or bf16; default: the checkpoint's own.")
@click.option("--to", "targets", default="onnx", show_default=True, help="Formats to write, comma-separated.")
@click.option("--subfolder", help="The encoder's folder in a pipeline directory, e.g. text_encoder_2.")
@click.option("--tokenizer", type=click.Path(path_type=Path), help="Tokenizer's directory; default: found beside it.")
@click.option("--batch", type=int, help="Fix the batch size; default: free.")
@click.option("--sequence", type=int, help="Fix the sequence length; default: free.")
@click.option("--inline", is_flag=True, help="No model-local functions in the ONNX graph, for tools that lack them.")
@click.option("--force", is_flag=True, help="Replace the bundle if it exists.")
@output_options
def command(
    checkpoint: str,
    bundle: Path,
    plan_file: Path | None,
    pipeline: str,
    dtype: str | None,
    targets: str,
    subfolder: str | None,
    tokenizer: Path | None,
    batch: int | None,
    sequence: int | None,
    inline: bool,
    force: bool,
    output: Output,
) -> None:
    """Export a text encoder under a plan to a bundle.

    CHECKPOINT is a directory with config.json and safetensors, a pipeline directory (with --subfolder), or a hub id.
    The bundle appears whole or not at all.

    \b
    Examples:
      skrr-export export t5-v1_1-xxl --plan plan.json --dtype bf16 -o t5.bundle
      skrr-export export FLUX.1-dev --subfolder text_encoder_2 --pipeline flux.1 -o t5.bundle
    """
    from skrr_export.exporting import ExportOptions, export_checkpoint

    plan = None if plan_file is None else Plan.load(plan_file)
    options = ExportOptions(
        plan=plan,
        pipeline=pipeline,
        dtype=dtype,
        targets=tuple(targets.split(",")),
        subfolder=subfolder,
        tokenizer=tokenizer,
        batch=batch,
        sequence=sequence,
        inline=inline,
        replace=force,
    )
    with output.progress() as progress:
        exported = export_checkpoint(checkpoint, bundle, options, progress=progress)
    for warning in exported.warnings:
        output.warn(warning)
    manifest = exported.bundle.manifest
    document = {
        "bundle": str(bundle),
        "bytes": exported.bundle.nbytes,
        "dense_bytes": exported.dense_nbytes,
        "dtype": manifest.dtype.name,
        "sparsity": manifest.sparsity,
        "total_parameters": manifest.total_parameters,
        "kept_parameters": manifest.kept_parameters,
        "warnings": list(exported.warnings),
    }
    output.result(
        document,
        f"{bundle}: {size(exported.bundle.nbytes)}, {manifest.dtype.name}, for the pipeline {manifest.pipeline.name}",
        summary(manifest.plan),
        f"{manifest.kept_parameters:,} of {manifest.total_parameters:,} parameters, "
        f"sparsity {manifest.sparsity:.1%}; dense: {size(exported.dense_nbytes)}",
    )
