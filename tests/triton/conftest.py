"""Bundles that no test changes."""

from __future__ import annotations

from pathlib import Path

import pytest

from skrr_export.bundle import Bundle
from tests.bundles import export, soften
from tests.checkpoints import t5_checkpoint
from tests.runtimes.presets import bundle_for

__all__ = ["bundle_for"]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A T5 with a tokenizer."""
    return soften(t5_checkpoint(tmp_path_factory.mktemp("triton") / "t5", tokenizer=True))


@pytest.fixture(scope="session")
def plain(remembered_traces: None, checkpoint: Path) -> Bundle:
    """Padded to the longest prompt, masked."""
    return export(checkpoint, checkpoint.parent / "plain.bundle")


@pytest.fixture(scope="session")
def padded(remembered_traces: None, checkpoint: Path) -> Bundle:
    """Padded to 128 tokens, which the encoder attends to."""
    return export(checkpoint, checkpoint.parent / "padded.bundle", pipeline="ltx-video", vectors=4)


@pytest.fixture(scope="session")
def half(remembered_traces: None, checkpoint: Path) -> Bundle:
    """Stored in bf16; prompts are lower-cased, padded to 120 tokens, and masked."""
    return export(checkpoint, checkpoint.parent / "half.bundle", pipeline="pixart-alpha", dtype="bf16", vectors=4)


@pytest.fixture(scope="session")
def pair(remembered_traces: None, checkpoint: Path) -> Bundle:
    """Takes two prompts at a time, and 128 tokens."""
    return export(checkpoint, checkpoint.parent / "pair.bundle", pipeline="ltx-video", batch=2, sequence=128)
