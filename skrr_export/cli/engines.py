"""The options of `export` that decide how TensorRT builds an engine."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import click

from skrr_export.targets.tensorrt.options import EngineOptions, Profile

F = TypeVar("F", bound=Callable[..., Any])

_OPTIONS = (
    click.option("--sm", help="tensorrt-rtx: compute capabilities of the GPUs, e.g. 86,89; default: 80,86,89,120."),
    click.option("--profile", help="Engines: input sizes MIN:OPT:MAX, e.g. 1x1:1x77:8x512; default: the pipeline's."),
    click.option("--workspace", type=float, help="Engines: gigabytes that kernels may use while they run."),
    click.option("--weight-streaming", is_flag=True, help="Engines: weights may stay in the host's memory."),
    click.option("--timing-cache", type=click.Path(path_type=Path), help="tensorrt: file of kernel timings to re-use."),
    click.option("--version-compatible", is_flag=True, help="tensorrt: later versions can run the engine too."),
    click.option("--hardware-compatible", is_flag=True, help="tensorrt: other GPUs from Ampere on can run it too."),
    click.option("--strip-weights", is_flag=True, help="tensorrt: no weights in the engine; it takes the bundle's."),
)


def engine_options(function: F) -> F:
    """Add the options; the command gets them as `engine`."""

    @wraps(function)
    def command(
        *args: Any,
        sm: str | None,
        profile: str | None,
        workspace: float | None,
        weight_streaming: bool,
        timing_cache: Path | None,
        version_compatible: bool,
        hardware_compatible: bool,
        strip_weights: bool,
        **options: Any,
    ) -> Any:
        chosen = {} if sm is None else {"compute_capabilities": tuple(part.strip() for part in sm.split(","))}
        engine = EngineOptions(
            **chosen,
            profile=None if profile is None else Profile.parse(profile),
            workspace_gb=workspace,
            weight_streaming=weight_streaming,
            timing_cache=timing_cache,
            version_compatible=version_compatible,
            hardware_compatible=hardware_compatible,
            stripped=strip_weights,
        )
        return function(*args, engine=engine, **options)

    for option in reversed(_OPTIONS):
        command = option(command)
    return command  # type: ignore[return-value]
