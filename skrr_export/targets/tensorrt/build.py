"""Build an engine: TensorRT reads the weights where they lie in the bundle's file, and writes no file of its own."""

from __future__ import annotations

import re
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from skrr_export.dtypes import BF16, DType
from skrr_export.errors import DependencyError, InputError, SkrrError
from skrr_export.pipelines import Preset
from skrr_export.progress import Progress, silent
from skrr_export.staging import write_file
from skrr_export.targets.base import Built, Source
from skrr_export.targets.tensorrt.library import FLAVOURS, Flavour, deserialize, gpu_capability, make_log, make_monitor
from skrr_export.targets.tensorrt.options import EngineOptions, Profile
from skrr_export.targets.tensorrt.record import EngineRecord
from skrr_export.targets.tensorrt.weights import offer

TURING = "75"
"""The one compute capability we build for that has no bf16."""

_MEMORY = re.compile("out ?of ?memory|MemoryError|bad_alloc|workspace", re.IGNORECASE)


def check(target: str, dtype: DType, preset: Preset, options: EngineOptions) -> None:
    """Notice before anything is computed that an engine cannot be built here.

    Raises:
        DependencyError: the library is not installed, or the GPU it needs is not there.
        InputError: it cannot build such an engine.
    """
    flavour = FLAVOURS[target]
    refused = [what for option, what in flavour.lacks.items() if getattr(options, option)]
    if refused:
        raise InputError(
            f"{flavour.title} has no {' and no '.join(refused)}: choose the target tensorrt, or do without"
        )
    if dtype.name not in flavour.dtypes:
        raise InputError(
            f"{flavour.title} has no {dtype.name} kernel for attention: bake with --dtype {' or '.join(flavour.dtypes)}"
        )
    if dtype is BF16 and not flavour.builds_here and TURING in options.compute_capabilities:
        raise InputError(f"GPUs of compute capability {TURING} have no bf16: bake with --dtype fp16, or leave them out")
    if options.profile is not None and options.profile.most[1] > preset.max_length:
        raise InputError(
            f"the profile {options.profile} takes {options.profile.most[1]} tokens, "
            f"the pipeline '{preset.name}' feeds {preset.max_length} at most"
        )
    if options.timing_cache is not None and not options.timing_cache.absolute().parent.is_dir():
        raise InputError(f"no directory for the timing cache {options.timing_cache}")
    flavour.load()
    if flavour.builds_here and gpu_capability() is None:
        raise DependencyError(
            f"the target {target} needs the GPU that the engine is for, and torch sees none; "
            "the target tensorrt-rtx builds without one"
        )


@dataclass(frozen=True, slots=True)
class _Job:
    """What is decided before TensorRT sees anything."""

    trt: Any
    flavour: Flavour
    source: Source
    options: EngineOptions
    profile: Profile
    capabilities: tuple[str, ...]


def build(target: str, source: Source, graph: bytes, options: EngineOptions, progress: Progress = silent) -> Built:
    """Build an engine.

    Args:
        target: `tensorrt-rtx` or `tensorrt`.
        source: what to build from; its weights file is mapped.
        graph: the ONNX model, without functions; its initializers are external data in that file.
        options: how.
        progress: told of each phase, from another thread, never twice at once.

    Raises:
        DependencyError: the library is not installed.
        InputError: the profile does not fit, or the timing cache is of another GPU.
        OutputError: the timing cache cannot be written.
        SkrrError: the library cannot build it, and says why.
    """
    flavour = FLAVOURS[target]
    trt = flavour.load()
    job = _Job(trt, flavour, source, options, _profile(source, options), _capabilities(flavour, options))
    started = time.monotonic()
    engine, weights_nbytes = _interruptible(job, graph, make_monitor(trt, progress))
    layers = _inspect(job, engine)
    record = EngineRecord(
        file=flavour.engine_file,
        library=str(trt.__version__),
        compute_capabilities=job.capabilities,
        profile=job.profile,
        precision=source.dtype.name,
        engine_nbytes=len(engine),
        weights_nbytes=weights_nbytes,
        layers=None if layers is None else layers[0],
        weight_streaming=options.weight_streaming,
        version_compatible=options.version_compatible,
        hardware_compatible=options.hardware_compatible,
        stripped=options.stripped,
    )
    files = {flavour.engine_file: engine}
    if layers is not None:
        files[flavour.layers_file] = layers[1]
    if options.stripped:
        files[flavour.graph_file] = graph
    report = {"seconds": time.monotonic() - started, "peak_rss_bytes": _peak_rss()}
    return Built(files=files, entry=record.to_entry(), report=report)


def _profile(source: Source, options: EngineOptions) -> Profile:
    chosen = options.profile or Profile.of(source.preset)
    fixed = chosen.fixed(source.batch, source.sequence)
    if options.profile is not None and not (chosen.takes(*fixed.least) and chosen.takes(*fixed.most)):
        raise InputError(f"the profile {chosen} does not take the sizes that are fixed: {fixed}")
    return fixed


def _capabilities(flavour: Flavour, options: EngineOptions) -> tuple[str, ...]:
    if not flavour.builds_here:
        return tuple(dict.fromkeys(options.compute_capabilities))
    here = gpu_capability()
    return () if here is None else (here,)


def _interruptible(job: _Job, graph: bytes, monitor: Any) -> tuple[bytes, int]:
    """`_serialize`, which Ctrl-C stops.

    Python interrupts the main thread. Were TensorRT there, its callbacks would get the exception, print it and go on.
    """
    with ThreadPoolExecutor(max_workers=1) as pool:
        future = pool.submit(_serialize, job, graph, monitor, _device(job))
        try:
            return future.result()
        except KeyboardInterrupt:
            monitor.stopped = True
            raise


def _device(job: _Job) -> int | None:
    """Number of the GPU to build on, which torch keeps for each thread; `None`: none is needed."""
    if not job.flavour.builds_here:
        return None
    import torch

    return torch.cuda.current_device()


def _serialize(job: _Job, graph: bytes, monitor: Any, device: int | None) -> tuple[bytes, int]:
    """The engine, and the bytes of weights it was built from."""
    if device is not None:
        import torch

        torch.cuda.set_device(device)
    trt, log = job.trt, make_log(job.trt)
    builder = _call(job, trt.Builder, log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    data = np.memmap(job.source.weights, mode="r", dtype=np.uint8)  # this and the parser must outlive the build
    weights_nbytes = offer(parser, graph, {tensor.name: tensor for tensor in job.source.layout.tensors}, data)
    if weights_nbytes is None or not parser.parse_model_proto():
        raise _failure(job, f"it cannot read the graph: {_first_error(parser) or log.why()}")
    config = builder.create_builder_config()
    _configure(job, config)
    shapes = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        shapes.set_shape(network.get_input(index).name, job.profile.least, job.profile.usual, job.profile.most)
    config.add_optimization_profile(shapes)
    cache = None if job.options.timing_cache is None else _timing_cache(config, job.options.timing_cache)
    config.progress_monitor = monitor
    memory = _call(job, builder.build_serialized_network, network, config)
    if monitor.error is not None:
        raise monitor.error
    if memory is None:
        raise _failure(job, *log.errors)
    if cache is not None and job.options.timing_cache is not None:
        write_file(job.options.timing_cache, bytes(cache.serialize()))
    return _call(job, bytes, memory), weights_nbytes


def _first_error(parser: Any) -> str:
    if not parser.num_errors:
        return ""
    error = parser.get_error(0)
    return ": ".join(part for part in (error.node_operator(), error.desc()) if part)


def _call(job: _Job, function: Any, *arguments: Any) -> Any:
    try:
        return function(*arguments)
    except (MemoryError, RuntimeError, TypeError) as error:  # what the bindings make of exceptions and null pointers
        raise _failure(job, f"{type(error).__name__}: {error}") from error


def _configure(job: _Job, config: Any) -> None:
    trt, options = job.trt, job.options
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # else the inspector knows names alone
    if not job.flavour.builds_here:
        config.num_compute_capabilities = len(job.capabilities)
        for index, capability in enumerate(job.capabilities):
            config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{capability}"), index)
    if options.workspace_gb is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, int(options.workspace_gb * 1e9))
    if options.weight_streaming:
        config.set_flag(trt.BuilderFlag.WEIGHT_STREAMING)
    if options.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if options.stripped:
        config.set_flag(trt.BuilderFlag.STRIP_PLAN)
    if options.hardware_compatible:
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS


def _timing_cache(config: Any, path: Path) -> Any:
    try:
        content = path.read_bytes() if path.exists() else b""
    except OSError as error:
        raise InputError(f"cannot read the timing cache {path}: {error.strerror}") from error
    cache = config.create_timing_cache(content)
    if cache is None or not config.set_timing_cache(cache, False):
        raise InputError(f"{path} is no timing cache of this GPU and version of TensorRT; name another file")
    return cache


def _failure(job: _Job, *errors: str) -> SkrrError:
    """The error that tells why a build failed, from what TensorRT said, first things first."""
    title = job.flavour.title
    scarce = next((error for error in errors if _MEMORY.search(error)), None)
    if scarce is not None:
        return SkrrError(
            f"{title} ran out of memory: {scarce}; "
            "give --workspace more gigabytes, or fewer if the GPU has no more, or --profile smaller sizes"
        )
    return SkrrError(f"{title} cannot build this engine: {errors[0] if errors else 'it does not say why'}")


def _inspect(job: _Job, engine: bytes) -> tuple[int, bytes] | None:
    """Number of layers and the inspector's JSON; `None` where no GPU can load the engine."""
    if gpu_capability() not in job.capabilities:
        return None
    log = make_log(job.trt)
    _runtime, loaded = deserialize(job.trt, log, engine, host_code=job.options.version_compatible)
    if loaded is None:
        return None
    text = loaded.create_engine_inspector().get_engine_information(job.trt.LayerInformationFormat.JSON)
    return int(loaded.num_layers), str(text).encode()


def _peak_rss() -> int | None:
    """Most memory this process has had at once, the map of the weights included; `None`: the system does not tell."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    found = re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
    return int(found[1]) * 1024 if found else None
