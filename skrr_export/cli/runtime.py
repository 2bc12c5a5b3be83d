"""The option of `encode` and `verify` that says how ONNX Runtime runs a graph."""

from __future__ import annotations

import click

from skrr_export.targets import RUNTIMES

runtime_option = click.option(
    "--runtime",
    default="default",
    show_default=True,
    type=click.Choice(RUNTIMES),
    help="Of ONNX Runtime; decomposed: in basic operators, where it lacks one; tensorrt-rtx: NVIDIA's plugin.",
)
