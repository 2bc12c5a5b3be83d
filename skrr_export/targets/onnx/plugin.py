"""NVIDIA's TensorRT-RTX provider, a plugin that ONNX Runtime loads when told to."""

from __future__ import annotations

import importlib
from typing import Any

from skrr_export.errors import DependencyError

MODULE = "onnxruntime_ep_nv_tensorrt_rtx"
PACKAGE = "onnxruntime-ep-nv-tensorrt-rtx-cu13"


def device_of_plugin(library: Any) -> Any:
    """The first GPU that the provider can run on, as ONNX Runtime wants it chosen.

    Args:
        library: `onnxruntime`.

    Raises:
        DependencyError: ONNX Runtime is too old, the plugin is absent or does not load, or there is no GPU for it.
    """
    if not hasattr(library, "register_execution_provider_library"):
        raise DependencyError(
            f"the runtime tensorrt-rtx needs an ONNX Runtime that takes plugins, not {library.__version__}: "
            "pip install -U 'onnxruntime>=1.24'"
        )
    plugin = _import_plugin()
    name = plugin.get_ep_name()
    if not _devices(library, name):  # registering twice is an error
        try:
            library.register_execution_provider_library(name, plugin.get_library_path())
        except Exception as error:  # ONNX Runtime's own exceptions share no base but this
            why = str(error).strip().partition("\n")[0]
            raise DependencyError(f"the runtime tensorrt-rtx needs an NVIDIA GPU and its driver: {why}") from error
    devices = _devices(library, name)
    if not devices:
        raise DependencyError("no GPU for the runtime tensorrt-rtx: it is for compute capability 8.6, 8.9 and 12 on")
    return devices[0]


def _import_plugin() -> Any:
    try:
        return importlib.import_module(MODULE)
    except ModuleNotFoundError as error:
        raise DependencyError(f"the runtime tensorrt-rtx needs NVIDIA's provider: pip install '{PACKAGE}'") from error
    except (ImportError, OSError) as error:  # a shared library that is missing or not for this machine
        raise DependencyError(f"{PACKAGE} does not load: {error}") from error


def _devices(library: Any, name: str) -> list[Any]:
    return [device for device in library.get_ep_devices() if device.ep_name == name]
