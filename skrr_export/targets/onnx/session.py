"""Run a bundle's ONNX graph with ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from skrr_export.bundle import Bundle
from skrr_export.dtypes import FP32
from skrr_export.errors import BundleError, DependencyError, InputError

Ids = npt.NDArray[np.int64]
MODES = ("mapped", "prepacked")

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
EXTRAS = {"cpu": "cpu", "cuda": "gpu"}

_HOLD_CASTS = ["ConstantFolding", "CommonSubexpressionElimination", "FuseFp16InitializerToFp32NodeTransformer"]
"""Optimizers that would keep fp32 copies of half-precision weights. In mapped mode such a copy shall live from just
before its use to just after: the first and the last would make all of them at load, the second would merge, and so
hold, those of a re-used weight."""


class OnnxSession:
    """An encoder that is loaded and ready to run."""

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
        self.bundle = bundle
        self.mode = mode
        dtype = bundle.manifest.dtype
        self.computes_in = FP32 if device == "cpu" else dtype
        """Precision of the activations."""
        lowered = self.computes_in is not dtype
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

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know about how this session computes."""
        name = self.bundle.manifest.dtype.name
        if self.computes_in.name == name:
            return ()
        return (f"weights stored as {name}, computed in fp32: ONNX Runtime's CPU provider lacks {name} kernels",)

    def encode(self, input_ids: Ids, attention_mask: Ids | None = None) -> dict[str, npt.NDArray[np.generic]]:
        """Run the encoder.

        Args:
            input_ids: `[batch, sequence]`.
            attention_mask: `[batch, sequence]`, 1 for tokens and 0 for padding. Where the pipeline passes its encoder
                no mask the graph has none, and only `None` is accepted; elsewhere `None` means all ones.

        Returns:
            `last_hidden_state` `[batch, sequence, hidden_size]`, in `computes_in`; a bf16 result as fp32.

        Raises:
            InputError: the inputs do not fit the encoder.
        """
        self._check(input_ids, attention_mask)
        feed = {"input_ids": np.ascontiguousarray(input_ids, np.int64)}
        if self.bundle.manifest.pipeline.masked:
            mask = np.ones_like(input_ids) if attention_mask is None else attention_mask
            feed["attention_mask"] = np.ascontiguousarray(mask, np.int64)
        names = [output.name for output in self._session.get_outputs()]
        return dict(zip(names, self._session.run(names, feed), strict=True))

    def _check(self, input_ids: Ids, attention_mask: Ids | None) -> None:
        manifest = self.bundle.manifest
        if input_ids.ndim != 2 or 0 in input_ids.shape or not np.issubdtype(input_ids.dtype, np.integer):
            raise InputError(
                f"input_ids must be integers [batch, sequence], not {input_ids.dtype} {list(input_ids.shape)}"
            )
        for axis, fixed in enumerate((manifest.batch, manifest.sequence)):
            if fixed is not None and input_ids.shape[axis] != fixed:
                raise InputError(
                    f"this bundle's {('batch', 'sequence')[axis]} size is fixed at {fixed}, not {input_ids.shape[axis]}"
                )
        if manifest.max_length is not None and input_ids.shape[1] > manifest.max_length:
            raise InputError(f"{input_ids.shape[1]} tokens exceed this encoder's maximum of {manifest.max_length}")
        if input_ids.min() < 0 or input_ids.max() >= manifest.vocab_size:
            raise InputError(
                f"input_ids must lie in 0 to {manifest.vocab_size - 1}; "
                f"these span {input_ids.min()} to {input_ids.max()}"
            )
        if attention_mask is None:
            return
        if not manifest.pipeline.masked:
            raise InputError(f"the pipeline '{manifest.pipeline.name}' passes its encoder no attention_mask; pass none")
        if attention_mask.shape != input_ids.shape:
            raise InputError(f"attention_mask is {list(attention_mask.shape)}, input_ids {list(input_ids.shape)}")


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
