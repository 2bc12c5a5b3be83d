"""Run a bundle's ONNX graph with ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from skrr_export.bundle import Bundle
from skrr_export.dtypes import BF16, FP32
from skrr_export.errors import BundleError, DependencyError, InputError
from skrr_export.targets import RUNTIMES
from skrr_export.targets.base import Arrays, Ids, Session
from skrr_export.targets.onnx.plugin import device_of_plugin

MODES = ("mapped", "prepacked")

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
EXTRAS = {"cpu": "cpu", "cuda": "gpu"}


HELD_CASTS = ("ConstantFolding", "CommonSubexpressionElimination", "FuseFp16InitializerToFp32NodeTransformer")
"""Optimizers that would keep fp32 copies of half-precision weights. In mapped mode such a copy shall live from just
before its use to just after: the first and the last would make all of them at load, the second would merge, and so
hold, those of a re-used weight."""


class OnnxSession(Session):
    """An encoder run by ONNX Runtime."""

    def __init__(
        self,
        bundle: Bundle,
        *,
        device: str = "cpu",
        mode: str = "mapped",
        threads: int | None = None,
        runtime: str = "default",
    ) -> None:
        """Load a bundle.

        Args:
            bundle: an open bundle with the target `onnx`.
            device: where to run.
            mode: on a CPU, `mapped` leaves the weights in the file's pages, which processes share and the system can
                drop; `prepacked` copies them into the layout the matrix kernels like best, which is faster.
            threads: for the operators of one call; default: ONNX Runtime's own choice, the physical cores.
            runtime: `decomposed` writes the operators that a provider may lack out in basic ones; `default` does so
                only where ONNX Runtime says that it lacks one, and notes it; `tensorrt-rtx` is the default with
                NVIDIA's plugin for the provider.

        Raises:
            BundleError: the bundle has no ONNX graph, or ONNX Runtime refuses it.
            DependencyError: ONNX Runtime is absent, or lacks the device's provider or the plugin.
            InputError: the device, mode or runtime is unknown, they do not go together, or there is no thread.
        """
        choices = (("device", device, PROVIDERS), ("mode", mode, MODES), ("runtime", runtime, RUNTIMES))
        for what, value, known in choices:
            if value not in known:
                raise InputError(f"unknown {what} '{value}'; known: {', '.join(known)}")
        if threads is not None and threads < 1:
            raise InputError(f"the number of threads must be at least 1, not {threads}")
        if runtime == "tensorrt-rtx" and device != "cuda":
            raise InputError(f"the runtime tensorrt-rtx runs on an NVIDIA GPU, not on {device}: use --device cuda")
        self._library = _import_runtime(device, provider=None if runtime == "tensorrt-rtx" else PROVIDERS[device])
        dtype = bundle.manifest.dtype
        super().__init__(bundle, FP32 if device == "cpu" else dtype)
        self.mode = mode
        self.runtime = runtime
        self._threads = threads
        self._device = device
        self._decomposed = runtime == "decomposed"
        if self._lowered:
            lacks = f"ONNX Runtime's CPU provider lacks {dtype.name} kernels"
            self.notes = (f"weights stored as {dtype.name}, computed in fp32: {lacks}",)
        self._session = self._open()

    @property
    def _lowered(self) -> bool:
        return self.computes_in is not self.bundle.manifest.dtype

    def _open(self) -> Any:
        graph = self.bundle.onnx_graph(self._device)
        options = _options(self._library, graph.parent, self.mode, self._threads)
        if self.runtime == "tensorrt-rtx":
            options.add_provider_for_devices([device_of_plugin(self._library)], {})
        changed = self._decomposed or self.computes_in is BF16
        try:
            return self._library.InferenceSession(
                _adapted(graph, decomposed=self._decomposed) if changed else str(graph),
                options,
                providers=None if self.runtime == "tensorrt-rtx" else [PROVIDERS[self._device]],
                disabled_optimizers=[*HELD_CASTS] if self._lowered and self.mode == "mapped" else None,
            )
        except Exception as error:  # ONNX Runtime's own exceptions share no base but this
            if self._falls_back(error):
                return self._open()
            raise BundleError(f"ONNX Runtime cannot load {graph}: {_first_line(error)}") from error

    def _run(self, feed: Mapping[str, Ids]) -> Arrays:
        names = [output.name for output in self._session.get_outputs()]
        try:
            return dict(zip(names, self._session.run(names, feed), strict=True))
        except Exception as error:
            # Some kernels find out only now that they lack what they are asked for.
            if not self._falls_back(error):
                raise
        self._session = None  # its weights make room on the GPU for the next one's
        self._session = self._open()
        return self._run(feed)

    def _falls_back(self, error: Exception) -> bool:
        """Whether to try again, decomposed, after an error; once."""
        unimplemented = self._library.capi.onnxruntime_pybind11_state.NotImplemented
        if self._decomposed or not isinstance(error, unimplemented):
            return False
        self._decomposed = True
        self.notes += (f"run decomposed into basic operators: ONNX Runtime lacks one ({_first_line(error)})",)
        return True


def _import_runtime(device: str, provider: str | None) -> Any:
    """Import ONNX Runtime, which must have a provider built in; `None`: any will do."""
    try:
        import onnxruntime
    except ImportError as error:
        raise DependencyError(
            f"running an ONNX bundle needs ONNX Runtime: pip install 'skrr-export[{EXTRAS[device]}]'"
        ) from error
    if provider is not None and provider not in onnxruntime.get_available_providers():
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


def _adapted(graph: Path, *, decomposed: bool) -> bytes:
    import onnx_ir as ir

    from skrr_export.targets.onnx.decompose import decompose
    from skrr_export.targets.onnx.lower import widen_outputs

    model = ir.load(graph)
    if decomposed:
        decompose(model)
    widen_outputs(model)
    content: bytes = ir.to_proto(model).SerializeToString()
    return content


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
