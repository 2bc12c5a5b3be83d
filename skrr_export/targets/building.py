"""Build targets by their names."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from skrr_export.dtypes import FP32, DType
from skrr_export.pipelines import Preset
from skrr_export.progress import Progress, silent
from skrr_export.targets.base import Built, Source
from skrr_export.targets.tensorrt.options import ENGINES, EngineOptions


def check_target(target: str, dtype: DType, preset: Preset, engine: EngineOptions) -> None:
    """Notice before anything is computed that a target cannot be built here.

    Raises:
        DependencyError: what builds it is not installed.
        InputError: it cannot be built like this.
    """
    if target == "aoti":
        from skrr_export.targets.aot_inductor import package

        package.check()
    if target in ENGINES:
        from skrr_export.targets.tensorrt import build

        build.check(target, dtype, preset, engine)


def build_targets(
    targets: Sequence[str], source: Source, *, inline: bool, engine: EngineOptions, progress: Progress = silent
) -> dict[str, Built]:
    """Build targets, each by its name.

    Args:
        targets: of `skrr_export.targets.TARGETS`.
        source: what to build from.
        inline: no model-local functions in an ONNX graph.
        engine: how to build an engine.
        progress: told how far it is.

    Raises:
        SkrrError: one cannot be built.
    """
    graph = cache(lambda: _graph(source))  # traced once, for the target onnx and for engines
    built = {}
    for target in targets:
        progress(f"tracing for {target}", 0, 1)
        if target == "onnx":
            built[target] = _onnx(graph(), source.dtype, inline=inline)
        elif target == "pt2":
            from skrr_export.targets.torch_export import program

            built[target] = program.build(source)
        elif target == "aoti":
            from skrr_export.targets.aot_inductor import package

            built[target] = package.build(source, progress)
        else:
            from skrr_export.targets.onnx.graph import inline as inlined
            from skrr_export.targets.tensorrt import build

            # Inlined: a function called twice would give two layers one name.
            built[target] = build.build(target, source, inlined(graph()), engine, progress)
    return built


def _graph(source: Source) -> bytes:
    from skrr_export.targets.onnx import graph

    return graph.build(
        source.encoder,
        source.plan,
        source.preset.outputs,
        source.layout,
        source.dtype,
        masked=source.preset.masked,
        sizes=(source.batch or "batch", source.sequence or "sequence"),
    )


def _onnx(content: bytes, dtype: DType, *, inline: bool) -> Built:
    from skrr_export.targets.onnx import graph, lower
    from skrr_export.targets.onnx.trace import OPSET

    content = graph.inline(content) if inline else content
    files = {graph.GRAPH: content}
    entry: dict[str, Any] = {"file": graph.GRAPH, "opset": OPSET, "functions": not inline}
    if dtype is not FP32:
        files[lower.CPU_GRAPH] = lower.computing_in_fp32(content)
        entry["cpu"] = {"file": lower.CPU_GRAPH, "dtype": FP32.name}
    return Built(files=files, entry=entry)
