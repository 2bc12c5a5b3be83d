from __future__ import annotations

import os
from importlib.metadata import version

from skrr_export.measure.machine import cores, machine, versions


def test_the_machine_is_described() -> None:
    found = machine(None)
    assert found["cpu"]
    assert found["cores"] == cores() == len(os.sched_getaffinity(0))
    assert found["memory_bytes"] == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert found["kernel"] == os.uname().release
    assert found["gpu"] is None


def test_versions_are_those_installed() -> None:
    found = versions()
    assert found["torch"] == version("torch")
    assert "tensorrt" not in found or found["tensorrt"] == version("tensorrt")
    assert all(found.values())
