"""Whatever a manifest or a safetensors header holds, reading it ends well: ten seconds each, under sanitizers.

`SKRR_FUZZ_SECONDS` looks longer: a minute each in CI, hours by hand.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from skrr_export.bundle import Bundle
from tests.runtimes.cpp import building

BundleOf = Callable[[str], Bundle]

SECONDS = int(os.environ.get("SKRR_FUZZ_SECONDS", "10"))
FILES = {"weights.safetensors": b"weights", "model.onnx": b"graph"}
"""Those that the fuzzer of manifests puts beside them."""


@pytest.fixture(scope="module")
def fuzzers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("fuzzers")
    try:
        building.configure(building.SOURCE, directory, "-DSKRR_BUILD_FUZZERS=ON", "-DCMAKE_BUILD_TYPE=Debug")
    except building.UnavailableError as error:
        pytest.skip(str(error))
    building.build(directory)
    return directory / "fuzz"


RULES: list[dict[str, Any]] = [
    {"padding_rows": "packed", "crop": [1, 2], "max_rows": 1},
    {"padding_rows": "zeroed", "crop": [0, 1], "extra_rows": 1, "unconditional": "bare"},
]
"""For rows."""


def manifests(bundle: Bundle) -> list[bytes]:
    """A whole manifest, and those whose bundle the fuzzer has, which it therefore opens to the end."""
    document = json.loads((bundle.directory / "manifest.json").read_text())
    documents = [json.loads(json.dumps(document))]
    document["files"] = {
        name: {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)} for name, content in FILES.items()
    }
    document.update(tokenizer=None, vectors=None)
    documents.append(document)
    engine = {
        "file": "model.onnx", "library": "10.14.1.48", "compute_capabilities": ["89"], "profile": "1x1:1x77:8x512",
        "version_compatible": False, "hardware_compatible": True, "stripped": False,
    }  # fmt: skip
    documents.append({**document, "targets": {"tensorrt": engine}})
    documents += [{**document, "pipeline": {**document["pipeline"], **rules}} for rules in RULES]
    return [json.dumps(each).encode() for each in documents]


def headers() -> list[bytes]:
    """Headers of safetensors files, and their data."""

    def file(tensors: dict[str, Any], size: int) -> bytes:
        text = json.dumps(tensors).encode()
        return len(text).to_bytes(8, "little") + text + bytes(size)

    a = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}
    b = {"dtype": "BF16", "shape": [4], "data_offsets": [24, 32]}
    return [file({}, 0), file({"a": a}, 24), file({"__metadata__": {"prompts": "[]"}, "a": a, "b": b}, 32)]


def test_no_input_crashes(fuzzers: Path, bundle_of: BundleOf, tmp_path: Path) -> None:
    corpora = {"manifest": manifests(bundle_of("plain")), "safetensors": headers()}

    def fuzz(name: str) -> subprocess.CompletedProcess[str]:
        corpus = tmp_path / name
        corpus.mkdir()
        for number, content in enumerate(corpora[name]):
            (corpus / str(number)).write_bytes(content)
        command = [str(fuzzers / f"fuzz_{name}"), f"-max_total_time={SECONDS}", "-seed=1", str(corpus)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    with ThreadPoolExecutor() as pool:
        for name, completed in zip(corpora, pool.map(fuzz, corpora), strict=True):
            assert completed.returncode == 0, f"{name}: {completed.stderr[:4000]}"
            if "runs, no crash" in completed.stdout:  # of our own driver; libFuzzer prints others
                assert int(completed.stdout.split()[0]) > 300
