"""`skrr-export inspect`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from skrr_export.bundle import Bundle, open_bundle
from skrr_export.cli.output import Output, output_options, size
from skrr_export.manifest import OutputEntry
from skrr_export.plan_view import table


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@output_options
def command(bundle: Path, output: Output) -> None:
    """Show what a bundle holds, after checking every file against its hash.

    \b
    Example:
      skrr-export inspect t5.bundle --json | jq .plan.layers
    """
    opened = open_bundle(bundle)
    with output.progress() as progress:
        opened.check_hashes(progress)
    manifest = opened.manifest
    from rich.markup import escape
    from rich.table import Table

    files = Table("file", "size", "sha256", title="files", title_justify="left")
    for name, entry in sorted(manifest.files.items()):
        files.add_row(escape(name), size(entry.nbytes), entry.sha256[:16])
    feed = manifest.pipeline
    output.result(
        json.loads(manifest.to_json()),
        f"{bundle}: {manifest.family}, {manifest.dtype.name}, {size(opened.nbytes)}, targets: "
        f"{', '.join(manifest.targets)}",
        f"pipeline {feed.name}: {feed.max_length} tokens, padding {feed.padding}, "
        f"{'with' if feed.masked else 'without'} attention mask",
        f"tokenizer: {_tokenizer(opened)}; test vectors: {manifest.vectors.count if manifest.vectors else 'none'}",
        f"gives {', '.join(map(_output, manifest.outputs))}",
        f"{manifest.kept_parameters:,} of {manifest.total_parameters:,} parameters, sparsity {manifest.sparsity:.1%}",
        table(manifest.plan),
        files,
    )


def _output(entry: OutputEntry) -> str:
    layers = f" of the layers {', '.join(map(str, entry.output.layers))}" if entry.output.join else ""
    return f"{entry.output.name} [{', '.join(map(str, entry.shape))}]{layers}"


def _tokenizer(bundle: Bundle) -> str:
    if not bundle.carries_tokenizer:
        return "none, takes token ids only"
    entry = bundle.manifest.tokenizer
    return f"for Python, elsewhere {'token ids only' if entry is None else f'by {entry.kind}'}"
