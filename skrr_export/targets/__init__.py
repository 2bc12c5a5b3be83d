"""Formats a bundle is exported to, a package each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from skrr_export.bundle import Bundle
from skrr_export.errors import InputError

if TYPE_CHECKING:
    from skrr_export.targets.onnx.session import OnnxSession

TARGETS = ("onnx",)
"""Known formats."""


def open_target(
    bundle: Bundle, target: str = "onnx", *, device: str = "cpu", mode: str = "mapped", threads: int | None = None
) -> OnnxSession:
    """Load a target of a bundle; see `OnnxSession`.

    Raises:
        BundleError: the bundle was not exported to that target, or it cannot be loaded.
        DependencyError: what runs it is not installed.
        InputError: an option is unknown.
    """
    from skrr_export.targets.onnx.session import OnnxSession

    if target not in TARGETS:
        raise InputError(f"unknown target '{target}'; known: {', '.join(TARGETS)}")
    return OnnxSession(bundle, device=device, mode=mode, threads=threads)
