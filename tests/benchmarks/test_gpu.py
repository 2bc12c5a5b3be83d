"""The benchmark for GPUs runs where there is none, and says what it could not measure.

AOTInductor and torch.compile are left out: compiling takes a minute, and they are opened as the others are.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "gpu.py"


def test_it_runs_on_a_cpu(tmp_path: Path) -> None:
    shape = ["--layers", "2", "--width", "64", "--sequence", "16", "--batch", "1", "--runs", "2"]
    chosen = ["--plans", "planned", "--subjects", "onnx,pt2,eager", "--device", "cpu"]
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *shape, *chosen, "--work", str(tmp_path), "--json", str(tmp_path / "found.json")],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    eager, program, onnx = json.loads((tmp_path / "found.json").read_text())["records"]
    assert [row["subject"] for row in (eager, program, onnx)] == ["eager", "pt2", "onnx"]
    assert eager["error"] == 0
    assert 0 < program["error"] < 0.05
    assert len(program["found"]["batches"]["1"]["seconds"]) == 2
    assert program["found"]["batches"]["1"]["process_bytes"] is None
    assert "the device is a CPU" in onnx["absent"]
    assert "not measured" in done.stdout
