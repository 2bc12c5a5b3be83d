"""Ahead-of-time compiler for the text encoders of text-to-image models.

The public API. Names load when they are used, so that importing the package costs nothing:

    [plan] = skrr_export.search_plans("t5-v1_1-xxl", skrr_export.SearchOptions(sparsities=(0.42,)))
    skrr_export.export_checkpoint("t5-v1_1-xxl", "t5.bundle", skrr_export.ExportOptions(plan=plan))
    session = skrr_export.open_session("t5.bundle")
    session.encode(input_ids)["last_hidden_state"]
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from skrr_export.bundle import Bundle, open_bundle
    from skrr_export.errors import SkrrError
    from skrr_export.exporting import ExportOptions, export_checkpoint, export_pipeline
    from skrr_export.measure.verify import verify
    from skrr_export.measuring import MeasureOptions, measure_bundle
    from skrr_export.plan import Plan
    from skrr_export.searching import SearchOptions, reuse_published, search_plans
    from skrr_export.targets.base import Session
    from skrr_export.tokenization import encode_prompts, encode_unconditional

__all__ = [
    "Bundle",
    "ExportOptions",
    "MeasureOptions",
    "Plan",
    "SearchOptions",
    "SkrrError",
    "encode_prompts",
    "encode_unconditional",
    "export_checkpoint",
    "export_pipeline",
    "measure_bundle",
    "open_bundle",
    "open_session",
    "reuse_published",
    "search_plans",
    "verify",
]

_HOMES = {
    "Bundle": "bundle",
    "ExportOptions": "exporting",
    "MeasureOptions": "measuring",
    "Plan": "plan",
    "SearchOptions": "searching",
    "SkrrError": "errors",
    "encode_prompts": "tokenization",
    "encode_unconditional": "tokenization",
    "export_checkpoint": "exporting",
    "export_pipeline": "exporting",
    "measure_bundle": "measuring",
    "open_bundle": "bundle",
    "reuse_published": "searching",
    "search_plans": "searching",
    "verify": "measure.verify",
}


def open_session(
    bundle: str | Path,
    *,
    target: str = "onnx",
    device: str = "cpu",
    mode: str = "mapped",
    threads: int | None = None,
    runtime: str = "default",
) -> Session:
    """Open a bundle and load one of its targets.

    Args:
        bundle: the bundle's directory.
        target: which of its formats.
        device: `cpu` or `cuda`.
        mode: on a CPU, `mapped` (least memory) or `prepacked` (fastest).
        threads: for the operators of one call; default: the runtime's own choice.
        runtime: how ONNX Runtime runs it: as it is (`default`), `decomposed` into basic operators, or with NVIDIA's
            plugin `tensorrt-rtx`.

    Raises:
        SkrrError: it cannot be loaded.
    """
    from skrr_export.bundle import open_bundle
    from skrr_export.targets import open_target

    return open_target(open_bundle(bundle), target, device=device, mode=mode, threads=threads, runtime=runtime)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'skrr_export' has no attribute '{name}'")
    return getattr(importlib.import_module(f"skrr_export.{_HOMES[name]}"), name)
