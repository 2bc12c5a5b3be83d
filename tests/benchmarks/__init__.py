"""Tests of the benchmarks, which are scripts that import each other by their plain names."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest


@contextmanager
def scripts(folder: Path, names: Sequence[str]) -> Iterator[SimpleNamespace]:
    """Scripts of a folder, by name; what was imported from there is forgotten afterwards."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield SimpleNamespace(**{name: __import__(name) for name in names})
    for name, module in list(sys.modules.items()):
        if Path(getattr(module, "__file__", None) or "").parent == folder:
            del sys.modules[name]
