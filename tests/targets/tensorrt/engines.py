"""Exports to TensorRT-RTX for tests, and what its builder is given."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from skrr_export.bundle import Bundle
from skrr_export.targets.base import Built, Source
from skrr_export.targets.tensorrt import build
from skrr_export.targets.tensorrt.library import FLAVOURS
from tests.bundles import export

RTX = "tensorrt-rtx"
HAS_RTX = any(importlib.util.find_spec(module) for module in FLAVOURS[RTX].modules)
needs_rtx = pytest.mark.skipif(not HAS_RTX, reason=f"needs TensorRT-RTX: pip install {FLAVOURS[RTX].package}")

CODE_BYTES = 3 << 20
"""What an engine may take beside its weights, for however many compute capabilities: kernels are compiled later."""


def record(directory: Path, checkpoint: Path, **options: Any) -> tuple[Source, bytes]:
    """What `build.build` is called with in an export; its weights lie in a bundle that stays."""
    calls: list[tuple[Source, bytes]] = []

    def note(target: str, source: Source, graph: bytes, *_: Any) -> Built:
        calls.append((source, graph))
        return Built(files={"engine": b"engine"}, entry={"file": "engine"})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "build", note)
        bundle = export(checkpoint, directory, targets=(RTX,), rescale=False, **options)
    source, graph = calls[0]
    return replace(source, weights=bundle.weights), graph


def unique_weights(bundle: Bundle) -> int:
    """Bytes of the tensors a bundle holds, each once."""
    return sum(tensor.nbytes for tensor in bundle.parameters().values())
