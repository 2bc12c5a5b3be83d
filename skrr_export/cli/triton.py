"""`skrr-export triton`."""

from __future__ import annotations

from pathlib import Path

import click

from skrr_export.cli.output import Output, output_options
from skrr_export.triton.choices import BACKENDS, MAX_BATCH


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("-o", "--output", "repository", required=True, type=click.Path(path_type=Path), help="What to write.")
@click.option("--backend", help=f"{', '.join(BACKENDS)}; default: python on a CPU, onnxruntime on a GPU.")
@click.option("--device", default="cpu", show_default=True, help="Where the encoder runs: cpu or cuda.")
@click.option("--instances", default=1, show_default=True, help="Of the encoder; with cuda, on each GPU.")
@click.option("--max-batch", type=int, help=f"Prompts that Triton may put together; default: {MAX_BATCH}.")
@click.option("--threads", type=int, help="Of an instance, on a CPU; default: its share of the cores.")
@click.option("--name", help="Of the model that takes prompts; default: after the bundle.")
@click.option("--force", is_flag=True, help="Replace the repository if it exists.")
@output_options
def command(
    bundle: Path,
    repository: Path,
    backend: str | None,
    device: str,
    instances: int,
    max_batch: int | None,
    threads: int | None,
    name: str | None,
    force: bool,
    output: Output,
) -> None:
    """Write a bundle as a model repository of Triton Inference Server.

    Three models: NAME takes prompts and gives embeddings and masks; it is NAME_tokenizer and NAME_encoder in a row,
    which can be called on their own, and NAME_rows where the pipeline takes only some of the encoder's rows. The
    encoder's directory is the bundle, by hard links: no more disk, and one page cache for it.

    \b
    Examples:
      skrr-export triton t5.bundle -o models
      skrr-export triton t5.bundle -o models --instances 4 --threads 8
      skrr-export triton t5.bundle -o models --device cuda --max-batch 16
    """
    from skrr_export.bundle import open_bundle
    from skrr_export.triton.choices import Choices
    from skrr_export.triton.repository import write_repository

    opened = open_bundle(bundle)
    with output.progress() as progress:
        opened.check_hashes(progress)  # Triton's own backends will not
    choices = Choices(
        name=name, backend=backend, device=device, instances=instances, max_batch=max_batch, threads=threads
    )
    serving = write_repository(opened, repository, choices, replace=force)
    output.result(
        {
            "repository": str(repository),
            "models": serving.models,
            "backend": serving.backend,
            "device": serving.device,
            "instances": serving.instances,
            "max_batch": serving.max_batch,
            "threads": serving.threads,
            "dtype": serving.dtype.name,
        },
        f"{repository}: {', '.join(serving.models)}",
        f"{serving.encoder}: {serving.instances} x {serving.backend} on {serving.device}, {serving.dtype.name} out, "
        + (f"batches of up to {serving.max_batch}" if serving.max_batch else f"batches of {serving.manifest.batch}"),
        f"serve it: tritonserver --model-repository {repository.absolute()}",
    )
