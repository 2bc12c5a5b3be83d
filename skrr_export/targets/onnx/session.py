"""Run a bundle's ONNX graph with ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from skrr_export.bundle import Bundle
from skrr_export.dtypes import FP32
from skrr_export.errors import BundleError, DependencyError, InputError
from skrr_export.targets.base import Arrays, Ids, Session

MODES = ("mapped", "prepacked")

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
EXTRAS = {"cpu": "cpu", "cuda": "gpu"}

_HOLD_CASTS = ["ConstantFolding", "CommonSubexpressionElimination", "FuseFp16InitializerToFp32NodeTransformer"]
"""Optimizers that would keep fp32 copies of half-precision weights. In mapped mode such a copy shall live from just
before its use to just after: the first and the last would make all of them at load, the second would merge, and so
hold, those of a re-used weight."""


class OnnxSession(Session):
    """An encoder run by ONNX Runtime."""

    def __init__(
        self, bundle: Bundle, *, device: str = "cpu", mode: str = "mapped", threads: int | None = None
    ) -> None:
        """Load a bundle.

        Args:
            bundle: an open bundle with the target `onnx`.
            device: where to run.
            mode: on a CPU, `mapped` leaves the weights in the file's pages, which processes share and the system can
                drop; `prepacked` copies them into the layout the matrix kernels like best, which is faster.
            threads: for the operators of one call; default: ONNX Runtime's own choice, the physical cores.

        Raises:
            BundleError: the bundle has no ONNX graph, or ONNX Runtime refuses it.
            DependencyError: ONNX Runtime is absent, or lacks the device's provider.
            InputError: the device or mode is unknown, or there is no thread.
        """
        for what, value, known in (("device", device, PROVIDERS), ("mode", mode, MODES)):
            if value not in known:
                raise InputError(f"unknown {what} '{value}'; known: {', '.join(known)}")
        if threads is not None and threads < 1:
            raise InputError(f"the number of threads must be at least 1, not {threads}")
        runtime = _import_runtime(device)
        dtype = bundle.manifest.dtype
        super().__init__(bundle, FP32 if device == "cpu" else dtype)
        self.mode = mode
        lowered = self.computes_in is not dtype
        if lowered:
            lacks = f"ONNX Runtime's CPU provider lacks {dtype.name} kernels"
            self.notes = (f"weights stored as {dtype.name}, computed in fp32: {lacks}",)
        graph = bundle.target_file("onnx")
        try:
            self._session = runtime.InferenceSession(
                str(graph) if dtype is FP32 else _adapted(graph, compute_in_fp32=lowered),
                _options(runtime, graph.parent, mode, threads),
                providers=[PROVIDERS[device]],
                disabled_optimizers=_HOLD_CASTS if lowered and mode == "mapped" else None,
            )
        except Exception as error:  # ONNX Runtime's own exceptions share no base but this
            raise BundleError(f"ONNX Runtime cannot load {graph}: {_first_line(error)}") from error

    def _run(self, feed: Mapping[str, Ids]) -> Arrays:
        names = [output.name for output in self._session.get_outputs()]
        return dict(zip(names, self._session.run(names, feed), strict=True))


def _import_runtime(device: str) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise DependencyError(
            f"running an ONNX bundle needs ONNX Runtime: pip install 'skrr-export[{EXTRAS[device]}]'"
        ) from error
    if PROVIDERS[device] not in onnxruntime.get_available_providers():
        raise DependencyError(
            f"the installed ONNX Runtime cannot run on {device}: pip install 'skrr-export[{EXTRAS[device]}]'"
        )
    return onnxruntime


def _options(runtime: Any, folder: Path, mode: str, threads: int | None) -> Any:
    options = runtime.SessionOptions()
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    if mode == "mapped":
        options.add_session_config_entry("session.disable_prepacking", "1")
    if threads is not None:
        options.intra_op_num_threads = threads
    return options


def _adapted(graph: Path, *, compute_in_fp32: bool) -> bytes:
    import onnx_ir as ir

    from skrr_export.targets.onnx import lower

    model = ir.load(graph)
    if compute_in_fp32:
        lower.compute_in_fp32(model)
    else:
        lower.widen_outputs(model)
    content: bytes = ir.to_proto(model).SerializeToString()
    return content


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
