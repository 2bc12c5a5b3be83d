"""NVIDIA's two libraries, which share one interface: what differs between them, and how they are spoken to."""

from __future__ import annotations

import importlib
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from skrr_export.errors import DependencyError
from skrr_export.progress import Progress

GPU_ERROR = "cudaError 35"
"""What TensorRT-RTX adds to every failure on a machine without a driver, where it needs none."""

_PLACE = re.compile(r"^\[[^]]*\] ")
"""Where in its source TensorRT noticed an error."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Flavour:
    """One of the libraries."""

    target: str
    title: str
    """What NVIDIA calls it."""
    modules: tuple[str, ...]
    """Names of its Python module, any of which will do."""
    package: str
    """What to install."""
    oldest: tuple[int, int]
    """First version that can build our graphs."""
    builds_here: bool
    """Whether it times kernels on the GPU an engine is for; the other one compiles them where the engine runs."""
    dtypes: tuple[str, ...]
    """Precisions it has kernels for."""
    lacks: Mapping[str, str] = field(default_factory=dict)
    """Fields of `EngineOptions` that it cannot follow, and what they ask for."""

    @property
    def engine_file(self) -> str:
        """Name of its engine in a bundle."""
        return f"model.{self.target}.engine"

    @property
    def graph_file(self) -> str:
        """Name of the graph that a stripped engine gets its weights by."""
        return f"model.{self.target}.onnx"

    @property
    def layers_file(self) -> str:
        """Name of the engine inspector's account of the layers."""
        return f"model.{self.target}.layers.json"

    def load(self) -> Any:
        """Import the library.

        Raises:
            DependencyError: it is not installed, does not load, or is too old.
        """
        needed = f"{'.'.join(map(str, self.oldest))} or later: pip install '{self.package}'"
        for name in self.modules:
            try:
                library = importlib.import_module(name)
            except ModuleNotFoundError as error:
                if error.name != name:
                    raise DependencyError(f"{self.title} does not load: {error}") from error
            except (ImportError, OSError) as error:  # a shared library that is missing or not for this machine
                raise DependencyError(f"{self.title} does not load: {error}") from error
            else:
                if version_of(library.__version__) < self.oldest:
                    raise DependencyError(f"{self.title} {library.__version__} is too old; needed is {needed}")
                return library
        raise DependencyError(f"the target {self.target} needs {self.title} {needed}")


FLAVOURS: Mapping[str, Flavour] = {
    flavour.target: flavour
    for flavour in (
        Flavour(
            target="tensorrt-rtx",
            title="TensorRT-RTX",
            modules=("tensorrt_rtx_bindings", "tensorrt_rtx"),
            package="tensorrt-rtx-cu13",
            oldest=(1, 7),  # the first these engines were built with
            builds_here=False,
            dtypes=("fp16", "bf16"),  # fp32 attention "was not supported by a dedicated kernel"
            lacks={
                "timing_cache": "timing cache",
                "version_compatible": "engines for later versions",
                "hardware_compatible": "engines for GPUs other than those chosen",
                "stripped": "engines without weights",
            },
        ),
        Flavour(
            target="tensorrt",
            title="TensorRT",
            modules=("tensorrt",),
            package="tensorrt",
            oldest=(10, 14),  # the first whose parser knows ONNX's Attention; weights by address came with 10.13
            builds_here=True,
            dtypes=("fp32", "fp16", "bf16"),
        ),
    )
}
"""The libraries by the names of our targets."""


def version_of(text: str) -> tuple[int, int]:
    """Major and minor of a version; 0.0 of what is none."""
    found = re.match(r"(\d+)\.(\d+)", text)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def gpu_capability() -> str | None:
    """Compute capability of the GPU that torch would use, such as `89`; `None`: there is no GPU."""
    import torch

    if not torch.cuda.is_available():
        return None
    major, minor = torch.cuda.get_device_capability()
    return f"{major}{minor}"


def make_log(trt: Any) -> Any:
    """A logger that prints nothing and keeps errors, whose first says why something failed."""

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, msg: str) -> None:
            # may be called from any of TensorRT's threads; appending to a list is safe
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR) and GPU_ERROR not in msg:
                self.errors.append(_PLACE.sub("", msg.strip().partition("\n")[0]))

        def why(self) -> str:
            """The first error since the last call."""
            first = self.errors[0] if self.errors else "it does not say why"
            self.errors.clear()
            return first

    return Log()


def make_monitor(trt: Any, progress: Progress) -> Any:
    """A monitor that passes progress on, from any of TensorRT's threads.

    It stops the build when that fails, or when its `stopped` is set.
    """

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        stopped = False
        error: Exception | None = None
        """What `progress` raised."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._lock = threading.Lock()
            self._steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._steps[phase_name] = num_steps
            self._tell(phase_name, 0)

        def step_complete(self, phase_name: str, step: int) -> bool:
            self._tell(phase_name, step + 1)
            return not self.stopped

        def phase_finish(self, phase_name: str) -> None:
            """Say nothing: the phase around it goes on."""

        def _tell(self, phase: str, done: int) -> None:
            with self._lock:
                try:
                    progress(f"{phase[:1].lower()}{phase[1:]}", done, max(done, self._steps.get(phase, 1)))
                except Exception as error:  # noqa: BLE001 - raised once the build is over: TensorRT would print it
                    self.error = self.error or error
                    self.stopped = True

    return Monitor()


def deserialize(trt: Any, log: Any, engine: Any, *, host_code: bool) -> tuple[Any, Any]:
    """Load an engine onto the GPU.

    Args:
        trt: the library.
        log: a logger of `make_log`, which must live as long as the engine.
        engine: its bytes.
        host_code: allow it to bring code for the CPU, as the ones that later versions can run do.

    Returns:
        The runtime, which must live as long as the engine, and the engine; `None` where it cannot be loaded.
    """
    runtime = trt.Runtime(log)
    if host_code:
        runtime.engine_host_code_allowed = True
    return runtime, runtime.deserialize_cuda_engine(engine)
