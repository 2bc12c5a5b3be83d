"""Memory of a live process, counted as the system counts it."""

from __future__ import annotations

import threading
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from skrr_export.measure.record import Memory

_KIB = 1024
_INTERVAL = 0.02
"""Seconds between two samples."""


def memory_of(pid: int) -> Memory:
    """Memory of a live process; walks all its pages, so the numbers are exact.

    Raises:
        ProcessLookupError: there is no such process, or it has ended.
    """
    rollup, status = kernel_fields(pid, "smaps_rollup"), kernel_fields(pid, "status")
    try:
        return Memory(
            anonymous=rollup["Anonymous"],
            file_backed=rollup["Rss"] - rollup["Anonymous"] - status["RssShmem"],
            shared=status["RssShmem"],
            proportional=rollup["Pss"],
            swap=rollup["Swap"],
            peak_rss=status["VmHWM"],
        )
    except KeyError as error:  # what is left of a process that has ended has no memory
        raise ProcessLookupError(f"process {pid} has ended") from error


class PeakSampler:
    """Watches the anonymous memory of a process while a block runs; a context manager."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.peak: int | None = None
        """Largest sample so far, in bytes."""

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(_INTERVAL):
            try:
                sample = kernel_fields(self._pid, "status")["RssAnon"]
            except (ProcessLookupError, KeyError):
                return
            self.peak = max(sample, self.peak or 0)


def available() -> int | None:
    """Bytes that new processes can have without swapping, by the system's own estimate and the cgroup's limit."""
    found = _read_fields(Path("/proc/meminfo")).get("MemAvailable")
    return found if (room := _cgroup_room()) is None else min(room, found or room)


def gpu_process_memory(pid: int) -> int | None:
    """What NVIDIA's driver says a process holds on all GPUs, in bytes; `None` where it does not say.

    In a container it may know the process under another number, and then does not find it.
    """
    if (nvml := _nvml()) is None:
        return None
    try:
        handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
        found = [
            process.usedGpuMemory
            for handle in handles
            for process in nvml.nvmlDeviceGetComputeRunningProcesses(handle)
            if process.pid == pid and process.usedGpuMemory is not None
        ]
    except nvml.NVMLError:
        return None
    return sum(found) if found else None


def gpu_free(gpu: str) -> int | None:
    """Bytes that are free on a GPU, by its number or UUID; `None` where the driver does not say."""
    if (nvml := _nvml()) is None:
        return None
    try:
        return int(nvml.nvmlDeviceGetMemoryInfo(_handle(nvml, gpu)).free)
    except nvml.NVMLError:
        return None


def gpu_name(gpu: str) -> str | None:
    """What a GPU, by its number or UUID, is called; `None` where the driver does not say."""
    if (nvml := _nvml()) is None:
        return None
    try:
        name = nvml.nvmlDeviceGetName(_handle(nvml, gpu))
    except nvml.NVMLError:
        return None
    return name.decode() if isinstance(name, bytes) else str(name)


def _handle(nvml: Any, gpu: str) -> Any:
    if gpu.isdecimal():
        return nvml.nvmlDeviceGetHandleByIndex(int(gpu))
    return nvml.nvmlDeviceGetHandleByUUID(gpu)


def _nvml() -> Any | None:
    """NVIDIA's management library; `None` without it, or without a GPU."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    return pynvml


def _cgroup_room() -> int | None:
    """What a container's limit leaves; the page cache counts as free, for it is dropped first."""
    directory = Path("/sys/fs/cgroup")
    try:
        limit = int((directory / "memory.max").read_text())
        usage = dict(line.split() for line in (directory / "memory.stat").read_text().splitlines())
        return max(limit - int(usage["anon"]), 0)
    except (OSError, ValueError, KeyError):  # none set ("max"), or another kind of cgroup
        return None


def kernel_fields(pid: int, name: str) -> dict[str, int]:
    """The sizes in one of a process's files in `/proc`, such as `status`, in bytes.

    Raises:
        ProcessLookupError: there is no such process.
    """
    try:
        return _read_fields(Path(f"/proc/{pid}/{name}"))
    except (FileNotFoundError, ProcessLookupError) as error:
        raise ProcessLookupError(f"no process {pid}") from error


def _read_fields(path: Path) -> dict[str, int]:
    """The `Name:   123 kB` lines of a file of the kernel's, in bytes."""
    words = [line.split() for line in path.read_text(encoding="ascii", errors="replace").splitlines()]
    return {word[0].rstrip(":"): int(word[1]) * _KIB for word in words if len(word) == 3 and word[2] == "kB"}
