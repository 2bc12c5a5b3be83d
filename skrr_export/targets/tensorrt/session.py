"""Run a bundle's engine on a GPU."""

from __future__ import annotations

import mmap
import os
import re
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from skrr_export.bundle import Bundle
from skrr_export.errors import BundleError, InputError, OutputError, SkrrError
from skrr_export.staging import write_file
from skrr_export.targets.base import Arrays, Ids, Session
from skrr_export.targets.tensorrt.library import FLAVOURS, deserialize, gpu_capability, make_log
from skrr_export.targets.tensorrt.record import EngineRecord
from skrr_export.targets.tensorrt.weights import offer
from skrr_export.targets.torch_export.session import to_arrays


class EngineSession(Session):
    """An encoder run by TensorRT or TensorRT-RTX; calls from several threads take turns."""

    def __init__(
        self,
        bundle: Bundle,
        target: str,
        *,
        device: str = "cuda",
        cuda_graphs: bool = False,
        weight_streaming_gb: float | None = None,
    ) -> None:
        """Load a bundle.

        Args:
            bundle: an open bundle with the target.
            target: `tensorrt-rtx` or `tensorrt`.
            device: `cuda`; torch's current GPU is used.
            cuda_graphs: TensorRT-RTX: launch the kernels of a size that was seen before as one; for small inputs.
            weight_streaming_gb: gigabytes of weights that stay on the GPU, the others come from the host's memory at
                each call; the engine must have been built for it. `None`: all stay.

        Raises:
            BundleError: the bundle has no such engine, it is for another GPU or version, or it cannot be loaded.
            DependencyError: the library is not installed.
            InputError: there is no GPU, or the engine cannot do what was asked.
        """
        super().__init__(bundle, bundle.manifest.dtype)
        if device != "cuda":
            raise InputError(f"engines run on an NVIDIA GPU, not on {device}: use --device cuda")
        self._flavour = FLAVOURS[target]
        self._file = bundle.target_file(target)
        self._record = EngineRecord.from_entry(bundle.manifest.targets[target])
        self._check_options(cuda_graphs, weight_streaming_gb)
        self._trt = self._flavour.load()
        self._record.check_library(self._flavour, str(self._trt.__version__))
        capability = gpu_capability()
        if capability is None:
            raise InputError(f"no GPU: {self._file.name} runs on an NVIDIA GPU, torch {torch.__version__} sees none")
        self._record.check_gpu(capability)
        self._device = torch.device("cuda", torch.cuda.current_device())
        self._log = make_log(self._trt)
        self._lock = threading.Lock()
        self._seen: set[tuple[int, ...]] = set()
        # on the default stream TensorRT waits twice, and cannot capture
        self._stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        with torch.cuda.device(self._device):
            self._runtime, self._engine = self._load()
            if weight_streaming_gb is not None:
                budget = min(int(weight_streaming_gb * 1e9), self._engine.streamable_weights_size)
                self._engine.weight_streaming_budget_v2 = budget
            self._cache = self._open_cache()
            self._context = self._make_context(cuda_graphs)
        self._outputs = self._find_outputs()
        self.engine_bytes = int(self._engine.device_memory_size_v2)

    def _check_options(self, cuda_graphs: bool, weight_streaming_gb: float | None) -> None:
        if cuda_graphs and self._flavour.builds_here:
            raise InputError(f"CUDA graphs are for TensorRT-RTX; the target {self._flavour.target} has none")
        if weight_streaming_gb is None:
            return
        if not 0 <= weight_streaming_gb < float("inf"):
            raise InputError(f"{weight_streaming_gb} gigabytes of weights cannot stay on the GPU")
        if not self._record.weight_streaming:
            raise InputError(f"{self._file.name} cannot stream weights: export again with --weight-streaming")

    def _load(self) -> tuple[Any, Any]:
        with self._file.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            runtime, engine = deserialize(self._trt, self._log, content, host_code=self._record.version_compatible)
        if engine is None:
            raise self._refused(f"{self._file} cannot be loaded")
        if self._record.stripped:
            self._refit(engine)
        return runtime, engine

    def _refit(self, engine: Any) -> None:
        """Give a stripped engine the bundle's weights."""
        name = self._flavour.graph_file
        if name not in self.bundle.manifest.files:
            raise BundleError(f"{self.bundle.directory} lacks {name}, by which its engine gets its weights")
        refitter = self._trt.Refitter(engine, self._log)
        parser = self._trt.OnnxParserRefitter(refitter, self._log)
        data = np.memmap(self.bundle.weights, mode="r", dtype=np.uint8)  # must outlive the refit
        graph = (self.bundle.directory / name).read_bytes()
        try:
            offered = offer(parser, graph, self.bundle.tensors(), data) is not None
        except KeyError as error:
            raise BundleError(f"{self.bundle.weights} has no tensor {error}, which {name} needs") from error
        if not (offered and parser.refit_model_proto() and refitter.refit_cuda_engine()):
            raise self._refused(f"{self._file} cannot be given the weights of {self.bundle.weights}")

    def _open_cache(self) -> _KernelCache | None:
        if self._flavour.builds_here:
            return None
        entry = self.bundle.manifest.files[self._file.relative_to(self.bundle.directory).as_posix()]
        return _KernelCache(cache_path(entry.sha256, torch.cuda.get_device_name(self._device)))

    def _make_context(self, cuda_graphs: bool) -> Any:
        if self._cache is None:
            context = self._engine.create_execution_context()
        else:
            config = self._engine.create_runtime_config()
            self._cache.attach(config)
            if cuda_graphs:
                config.cuda_graph_strategy = self._trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
            context = self._engine.create_execution_context(runtime_config=config)
        if context is None:
            raise self._refused(f"{self._file} cannot be made ready to run")
        if self._cache is not None:
            self._cache.save()
        return context

    def _find_outputs(self) -> dict[str, torch.dtype]:
        trt, engine = self._trt, self._engine
        dtypes = {
            trt.DataType.FLOAT: torch.float32,
            trt.DataType.HALF: torch.float16,
            trt.DataType.BF16: torch.bfloat16,
        }
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        return {
            name: dtypes[engine.get_tensor_dtype(name)]
            for name in names
            if engine.get_tensor_mode(name) == trt.TensorIOMode.OUTPUT
        }

    @torch.inference_mode()
    def _run(self, feed: Mapping[str, Ids]) -> Arrays:
        batch, sequence = next(iter(feed.values())).shape
        if not self._record.profile.takes(batch, sequence):
            raise InputError(
                f"this engine takes sizes from {_size(self._record.profile.least)} to "
                f"{_size(self._record.profile.most)}, not {batch}x{sequence}: export again with another --profile"
            )
        with self._lock, torch.cuda.device(self._device), torch.cuda.stream(self._stream):
            inputs = {name: torch.from_numpy(ids).to(self._device) for name, ids in feed.items()}
            arrays = to_arrays(self._execute(inputs))  # copying to the host waits for the stream
            if self._cache is not None and (batch, sequence) not in self._seen:
                self._seen.add((batch, sequence))
                self._cache.save()  # kernels for a new size may have been compiled
        return arrays

    def _execute(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Enqueue the engine on torch's current stream."""
        context = self._context
        ready = True
        for name, value in inputs.items():
            ready &= context.set_input_shape(name, tuple(value.shape))
            ready &= context.set_tensor_address(name, value.data_ptr())
        outputs = {}
        for name, dtype in self._outputs.items():
            outputs[name] = torch.empty(tuple(context.get_tensor_shape(name)), dtype=dtype, device=self._device)
            ready &= context.set_tensor_address(name, outputs[name].data_ptr())
        if not (ready and context.execute_async_v3(torch.cuda.current_stream().cuda_stream)):
            raise SkrrError(f"{self._flavour.title} cannot run {self._file.name}: {self._log.why()}")
        return outputs

    def _refused(self, what: str) -> BundleError:
        return BundleError(f"{what}: {self._flavour.title} {self._trt.__version__}: {self._log.why()}")


class _KernelCache:
    """The kernels that TensorRT-RTX compiled for one engine on one GPU, kept from process to process.

    It is a convenience: where it cannot be read or written they are compiled again.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._cache: Any = None
        self._nbytes = 0
        """Of what the file holds."""

    def attach(self, config: Any) -> None:
        """Let an execution context with this configuration use the cache."""
        self._cache = config.create_runtime_cache()
        with suppress(OSError):
            content = self._path.read_bytes()
            if self._cache.deserialize(content):  # refuses what is of another driver, GPU or version
                self._nbytes = len(content)
        config.set_runtime_cache(self._cache)

    def save(self) -> None:
        """Write the kernels to the file if there are others than it holds."""
        memory = self._cache.serialize()
        if memory is None or memory.nbytes == self._nbytes:
            return
        with suppress(OSError, OutputError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_file(self._path, bytes(memory))
        self._nbytes = memory.nbytes


def cache_path(sha256: str, gpu: str) -> Path:
    """Where the kernels compiled for an engine, known by its hash, on a GPU, known by its name, are kept."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    directory = Path(base) if Path(base).is_absolute() else Path.home() / ".cache"  # as the XDG standard says
    return directory / "skrr-export" / f"{sha256[:32]}-{re.sub('[^0-9A-Za-z]+', '-', gpu)}.kernels"


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
