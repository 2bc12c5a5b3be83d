"""`skrr-export export`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from skrr_export.cli.engines import engine_options
from skrr_export.cli.output import Output, output_options, size
from skrr_export.errors import InputError
from skrr_export.pipelines import pipeline_names
from skrr_export.plan import Plan
from skrr_export.plan_view import summary
from skrr_export.targets.tensorrt.options import EngineOptions

if TYPE_CHECKING:
    from skrr_export.exporting import Exported


@click.command()
@click.argument("checkpoint")
@click.option("-o", "--output", "bundle", required=True, type=click.Path(path_type=Path), help="The bundle to write.")
@click.option(
    "--plan",
    "plan_files",
    multiple=True,
    help="Plan file, or of a whole pipeline FOLDER=FILE for each encoder; default: keep everything.",
)
@click.option("--pipeline", default="plain", show_default=True, help=f"What feeds it: {', '.join(pipeline_names())}.")
@click.option("--dtype", help="fp32, fp16 or bf16; default: the checkpoint's own.")
@click.option("--to", "targets", default="onnx", show_default=True, help="Formats to write, comma-separated.")
@click.option("--subfolder", help="The encoder's folder in a pipeline directory, e.g. text_encoder_2.")
@click.option("--tokenizer", type=click.Path(path_type=Path), help="Tokenizer's directory; default: found beside it.")
@click.option("--batch", type=int, help="Fix the batch size; default: free.")
@click.option("--sequence", type=int, help="Fix the sequence length; default: free.")
@click.option("--inline", is_flag=True, help="No model-local functions in the ONNX graph, for tools that lack them.")
@click.option("--no-rescale", is_flag=True, help="fp16: cast the weights as they are, though activations may overflow.")
@click.option("--prompts", "prompts_file", type=click.Path(path_type=Path), help="fp16: to measure activations on.")
@click.option("--vectors", default=0, show_default=True, help="Add so many test vectors, for self-tests anywhere.")
@engine_options
@click.option("--force", is_flag=True, help="Replace the bundle if it exists.")
@output_options
def command(
    checkpoint: str,
    bundle: Path,
    plan_files: tuple[str, ...],
    pipeline: str,
    dtype: str | None,
    targets: str,
    subfolder: str | None,
    tokenizer: Path | None,
    batch: int | None,
    sequence: int | None,
    inline: bool,
    no_rescale: bool,
    prompts_file: Path | None,
    vectors: int,
    engine: EngineOptions,
    force: bool,
    output: Output,
) -> None:
    """Export a text encoder under a plan to a bundle, or all text encoders of a pipeline.

    CHECKPOINT is a directory with config.json and safetensors, a pipeline directory, or a hub id. The output appears
    whole or not at all.

    Of a pipeline directory --subfolder chooses one encoder. Without it --pipeline exports all that it has, to a folder
    with a bundle for each, named like its folder.

    Formats: onnx; pt2, a torch.export program; aoti, compiled by AOTInductor (needs a C++ compiler); tensorrt-rtx,
    built without a GPU; tensorrt, built on the GPU it is for. All but the engines read one copy of the weights.

    With --dtype fp16 powers of two are moved between the weights so that activations cannot overflow, as measured on a
    few prompts.

    With --vectors a few prompts travel with what transformers makes of them (which loads the checkpoint whole), so that
    any runtime can prove itself: skrr-export self-test, skrr-encode --self-test.

    \b
    Examples:
      skrr-export export t5-v1_1-xxl --plan plan.json --dtype bf16 -o t5.bundle
      skrr-export export FLUX.1-dev --subfolder text_encoder_2 --pipeline flux.1 -o t5.bundle
      skrr-export export FLUX.1-dev --pipeline flux.1 --plan text_encoder_2=plan.json --dtype bf16 -o flux.bundles
      skrr-export export t5-v1_1-xxl --plan plan.json --dtype fp16 --to onnx,pt2,tensorrt-rtx --sm 89,120 -o t5.bundle
    """
    from skrr_export.checkpoint import is_pipeline
    from skrr_export.exporting import ExportOptions, export_checkpoint, export_pipeline
    from skrr_export.prompts import read_prompts

    whole = subfolder is None and pipeline != "plain" and is_pipeline(checkpoint)
    options = ExportOptions(
        plan=None if whole else _plan(plan_files),
        pipeline=pipeline,
        dtype=dtype,
        targets=tuple(targets.split(",")),
        subfolder=subfolder,
        tokenizer=tokenizer,
        batch=batch,
        sequence=sequence,
        inline=inline,
        engine=engine,
        rescale=not no_rescale,
        prompts=None if prompts_file is None else read_prompts(prompts_file),
        vectors=vectors,
        replace=force,
    )
    if not whole:
        with output.progress() as progress:
            exported = export_checkpoint(checkpoint, bundle, options, progress=progress)
        output.warn_all(exported.warnings)
        output.result(_document(exported), *_lines(exported))
        return
    plans = _plans(plan_files)
    with output.progress() as progress:
        bundles = export_pipeline(checkpoint, bundle, options, plans, progress=progress)
    for folder, each in bundles.items():
        output.warn_all(f"{folder}: {warning}" for warning in each.warnings)
    documents = {folder: _document(each) for folder, each in bundles.items()}
    output.result(
        {"directory": str(bundle), "pipeline": pipeline, "bundles": documents},
        *(line for each in bundles.values() for line in (*_lines(each), "")),
        f"{bundle}: {len(bundles)} text encoders, {size(sum(each.bundle.nbytes for each in bundles.values()))}; "
        f"dense: {size(sum(each.dense_nbytes for each in bundles.values()))}",
    )


def _plan(files: Sequence[str]) -> Plan | None:
    """The plan of a single encoder."""
    if len(files) > 1:
        raise InputError(f"{len(files)} plans for one encoder")
    return Plan.load(files[0]) if files else None


def _plans(files: Sequence[str]) -> dict[str, Plan]:
    """The plans of a pipeline's encoders, by folder."""
    plans: dict[str, Plan] = {}
    for item in files:
        folder, equals, file = item.partition("=")
        if not equals:
            raise InputError(f"whose plan is '{item}'? For a whole pipeline say FOLDER=FILE: text_encoder={item}")
        if folder in plans:
            raise InputError(f"'{folder}' is given two plans")
        plans[folder] = Plan.load(file)
    return plans


def _document(exported: Exported) -> dict[str, Any]:
    manifest = exported.bundle.manifest
    return {
        "bundle": str(exported.bundle.directory),
        "bytes": exported.bundle.nbytes,
        "dense_bytes": exported.dense_nbytes,
        "dtype": manifest.dtype.name,
        "outputs": [entry.output.name for entry in manifest.outputs],
        "sparsity": manifest.sparsity,
        "total_parameters": manifest.total_parameters,
        "kept_parameters": manifest.kept_parameters,
        "unread_parameters": manifest.unread_parameters,
        "rescaling": manifest.rescaling,
        "targets": dict(manifest.targets),
        "reports": dict(exported.reports),
        "warnings": list(exported.warnings),
    }


def _lines(exported: Exported) -> Iterator[str]:
    bundle, manifest = exported.bundle, exported.bundle.manifest
    yield (
        f"{bundle.directory}: {size(bundle.nbytes)}, {manifest.dtype.name}, for the pipeline {manifest.pipeline.name}, "
        f"gives {' and '.join(entry.output.name for entry in manifest.outputs)}"
    )
    yield summary(manifest.plan)
    yield (
        f"{manifest.kept_parameters:,} of {manifest.total_parameters:,} parameters, "
        f"sparsity {manifest.sparsity:.1%}; dense: {size(exported.dense_nbytes)}"
    )
    if manifest.unread_parameters:
        unread = manifest.unread_parameters * manifest.dtype.itemsize
        share = manifest.unread_parameters / manifest.total_parameters
        yield f"left out without loss, for the pipeline reads nothing of it: {size(unread)}, {share:.1%}"
    yield from _rescaled(manifest.rescaling)
    for target, report in exported.reports.items():
        yield _built(target, report, manifest.targets[target]["build"])


def _rescaled(rescaling: Mapping[str, Any] | None) -> list[str]:
    if rescaling is None:
        return []
    return [
        f"fp16: residual stream / 2^{rescaling['residual']}, feed-forward / 2^{rescaling['inner']}; the largest "
        f"activation goes {rescaling['headroom']:.3g} times into 65504"
    ]


def _built(target: str, report: Mapping[str, Any], build: Mapping[str, int]) -> str:
    return (
        f"{target}: {size(build['engine_bytes'])} for {size(build['weights_bytes'])} of weights, built in "
        f"{report['seconds']:.1f} s, peak RSS {size(report['peak_rss_bytes'])}"
    )
