"""Build any target by its name."""

from __future__ import annotations

from skrr_export.dtypes import DType
from skrr_export.pipelines import Preset
from skrr_export.progress import Progress, silent
from skrr_export.targets.base import Built, Source
from skrr_export.targets.tensorrt.options import FLAVOURS, EngineOptions


def check_target(target: str, dtype: DType, preset: Preset, engine: EngineOptions) -> None:
    """Notice before anything is computed that a target cannot be built here.

    Raises:
        DependencyError: what builds it is not installed.
        InputError: it cannot be built like this.
    """
    if target == "aoti":
        from skrr_export.targets.aot_inductor import package

        package.check()
    if target in FLAVOURS:
        from skrr_export.targets.tensorrt import build

        build.check(target, dtype, preset, engine)


def build_target(
    target: str, source: Source, *, inline: bool, engine: EngineOptions, progress: Progress = silent
) -> Built:
    """Build a target.

    Args:
        target: one of `skrr_export.targets.TARGETS`.
        source: what to build from.
        inline: no model-local functions in an ONNX graph.
        engine: how to build an engine.
        progress: told how far it is.

    Raises:
        SkrrError: it cannot be built.
    """
    progress(f"tracing for {target}", 0, 1)
    if target == "onnx":
        return _onnx(source, inline=inline)
    if target == "pt2":
        from skrr_export.targets.torch_export import program

        return program.build(source)
    if target in FLAVOURS:
        from skrr_export.targets.tensorrt import build

        graph = _onnx(source, inline=True)  # a function called twice would give two layers one name
        return build.build(target, source, graph.files[graph.entry["file"]], engine, progress)
    from skrr_export.targets.aot_inductor import package

    return package.build(source, progress)


def _onnx(source: Source, *, inline: bool) -> Built:
    from skrr_export.targets.onnx import graph
    from skrr_export.targets.onnx.trace import OPSET

    content = graph.build(
        source.encoder,
        source.plan,
        source.layout,
        source.dtype,
        masked=source.preset.masked,
        sizes=(source.batch or "batch", source.sequence or "sequence"),
        inline=inline,
    )
    entry = {"file": graph.GRAPH, "opset": OPSET, "functions": not inline}
    return Built(files={graph.GRAPH: content}, entry=entry)
