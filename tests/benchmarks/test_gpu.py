"""The benchmark for GPUs runs where there is none, and writes a measurement.

PyTorch on the dense checkpoint, AOTInductor and torch.compile are left out: they take a minute, and no other way.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from skrr_export.measure.comparing import read_measurement

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "gpu.py"


@pytest.mark.slow
def test_it_runs_on_a_cpu(tmp_path: Path) -> None:
    shape = ["--layers", "2", "--width", "64", "--sequence", "16", "--batch", "1", "--runs", "2"]
    chosen = ["--plans", "planned", "--subjects", "onnx", "--no-dense", "--device", "cpu"]
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *shape, *chosen, "--work", str(tmp_path)],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    document = read_measurement(tmp_path / "gpu-planned.json")
    assert document["passed"]
    assert (document["settings"]["device"], document["bundle"]["pipeline"]) == ("cpu", "flux.1")
    assert 0 < document["bundle"]["kept_parameters"] < document["bundle"]["total_parameters"]
    pytorch, onnx = document["subjects"]
    assert (pytorch["name"], onnx["name"]) == ("torch-plan", "onnx")
    assert 0 < pytorch["drift"]["tokens"]["relative_l2"] < 0.05
    assert onnx["drift"]["tokens"]["relative_l2"] < 1e-5  # it computes in fp32
    [latency] = onnx["latencies"]
    assert (latency["batch"], latency["sequence"], len(latency["seconds"])) == (1, 16, 2)
    assert onnx["memory"]["gpu"] is None
    assert "written to" in done.stdout
