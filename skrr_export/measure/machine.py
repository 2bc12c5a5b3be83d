"""The machine and the software of a measurement."""

from __future__ import annotations

import os
import platform
import re
from importlib import metadata
from pathlib import Path

from skrr_export.measure.memory import gpu_name

PACKAGES = (
    "skrr-export", "torch", "transformers", "onnxruntime", "onnxruntime-gpu", "onnx", "safetensors", "numpy",
    "tensorrt-rtx-cu13-bindings", "tensorrt",
)  # fmt: skip
"""Whose versions decide a measurement."""


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0))


def machine(gpu: str | None) -> dict[str, str | int | None]:
    """What decides a measurement: processor, cores, memory, kernel; and a GPU, given by its number or UUID."""
    cpuinfo = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    model = re.search(r"^model name\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    return {
        "cpu": model[1].strip() if model else platform.processor() or platform.machine(),
        "cores": cores(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "kernel": platform.release(),
        "gpu": None if gpu is None else gpu_name(gpu),
    }


def versions() -> dict[str, str]:
    """Of Python and of the packages that are installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
