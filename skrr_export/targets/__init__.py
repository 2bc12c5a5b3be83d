"""Formats a bundle is exported to, a package each; what they are built from and opened as is in `base`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from skrr_export.errors import InputError

if TYPE_CHECKING:
    from skrr_export.bundle import Bundle
    from skrr_export.targets.base import Session

TARGETS = ("onnx", "pt2", "aoti", "tensorrt-rtx", "tensorrt")
"""Known formats."""
RUNTIMES = ("default", "decomposed", "tensorrt-rtx")
"""Ways for ONNX Runtime to run the target `onnx`; see `OnnxSession`."""


def open_target(
    bundle: Bundle,
    target: str = "onnx",
    *,
    device: str = "cpu",
    mode: str = "mapped",
    threads: int | None = None,
    runtime: str = "default",
) -> Session:
    """Load a target of a bundle.

    Args:
        bundle: an open bundle that was exported to it.
        target: one of `TARGETS`.
        device: `cpu` or `cuda`.
        mode: for the target `onnx`: see `OnnxSession`.
        threads: for the operators of one call, for the target `onnx`; what torch runs takes as many as torch is told.
        runtime: one of `RUNTIMES`, for the target `onnx`.

    Raises:
        BundleError: the bundle was not exported to that target, or it cannot be loaded.
        DependencyError: what runs it is not installed.
        InputError: an option is unknown, or not for this target.
    """
    if target not in TARGETS:
        raise InputError(f"unknown target '{target}'; known: {', '.join(TARGETS)}")
    if target == "onnx":
        from skrr_export.targets.onnx.session import OnnxSession

        return OnnxSession(bundle, device=device, mode=mode, threads=threads, runtime=runtime)
    if mode != "mapped" or threads is not None or runtime != "default":
        raise InputError(f"modes, threads and runtimes are ONNX Runtime's; the target {target} has none")
    if target == "pt2":
        from skrr_export.targets.torch_export.session import ProgramSession

        return ProgramSession(bundle, device=device)
    if target == "aoti":
        from skrr_export.targets.aot_inductor.session import PackageSession

        return PackageSession(bundle, device=device)
    from skrr_export.targets.tensorrt.session import EngineSession

    return EngineSession(bundle, target, device=device)
