"""Virtual environments of the peers: one each, made on first use, outside the repository."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

PEERS_DIRECTORY = Path(__file__).resolve().parent / "peers"

_REPORTED = (
    "mobius-onnx", "numpy", "onnx", "onnx-ir", "onnxruntime", "onnxscript", "optimum", "optimum-onnx", "safetensors",
    "skrr-export", "torch", "transformers",
)  # fmt: skip

_REPORT = """
import importlib.metadata, json, platform
found = {d.metadata["Name"].lower().replace("_", "-"): d.version for d in importlib.metadata.distributions()}
print(json.dumps({"python": platform.python_version(), **{name: found[name] for name in REPORTED if name in found}}))
"""


def cache_directory() -> Path:
    """Where environments, checkpoints and exports are kept: `SKRR_BENCH_CACHE`, or a folder in the user's cache."""
    configured = os.environ.get("SKRR_BENCH_CACHE")
    return Path(configured) if configured else Path.home() / ".cache" / "skrr-export-benchmarks"


def peer_python(peer: str) -> Path:
    """The interpreter of a peer's environment, which is made if it is missing or its pins have changed.

    Args:
        peer: name of a script in `peers/`, without its suffix.

    Raises:
        subprocess.CalledProcessError: a package cannot be installed; pip has printed why.
    """
    requirements = PEERS_DIRECTORY / f"requirements-{peer}.txt"
    directory = cache_directory() / f"venv-{peer}"
    python, installed = directory / "bin" / "python", directory / "installed-requirements.txt"
    wanted = requirements.read_text(encoding="utf-8")
    if installed.is_file() and installed.read_text(encoding="utf-8") == wanted:
        return python
    print(f"making {directory}", file=sys.stderr)
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(directory)], check=True)
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    # torch first, so that a build for CPU which is at hand is taken, and nothing below pulls in one for CUDA.
    subprocess.run([*pip, next(line for line in wanted.splitlines() if line.startswith("torch=="))], check=True)
    subprocess.run([*pip, "--requirement", str(requirements)], check=True)
    shutil.copyfile(requirements, installed)  # last: an environment without it is incomplete and is made anew
    return python


@cache
def versions(python: Path) -> dict[str, str]:
    """Versions of Python and of the packages that matter here, as an interpreter sees them."""
    code = f"REPORTED = {_REPORTED!r}\n{_REPORT}"
    done = subprocess.run([str(python), "-c", code], check=True, capture_output=True, text=True)
    result: dict[str, str] = json.loads(done.stdout)
    return result
