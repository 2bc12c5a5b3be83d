"""What is refused before a GPU is needed, and the parts of a session that need none; the rest is in `tests/gpu`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from skrr_export.bundle import Bundle, open_bundle
from skrr_export.errors import BundleError, DependencyError, InputError
from skrr_export.targets import open_target
from skrr_export.targets.tensorrt import session
from skrr_export.targets.tensorrt.library import FLAVOURS, Flavour
from skrr_export.targets.tensorrt.options import EngineOptions
from skrr_export.targets.tensorrt.record import EngineRecord
from skrr_export.targets.tensorrt.session import EngineSession, cache_path
from tests.bundles import export, forge_hashes
from tests.checkpoints import t5_checkpoint
from tests.targets.tensorrt.engines import RTX, needs_rtx

pytestmark = pytest.mark.usefixtures("remembered_traces")

ENTRY: dict[str, Any] = {
    "file": "model.tensorrt.engine",
    "library": "10.14.1",
    "compute_capabilities": ["89"],
    "profile": "1x1:1x77:8x512",
    "precision": "bf16",
    "build": {"engine_bytes": 10, "weights_bytes": 9},
    "layers": None,
    "weight_streaming": False,
    "version_compatible": False,
    "hardware_compatible": False,
    "stripped": False,
}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("exported")
    checkpoint = t5_checkpoint(directory / "checkpoint", layers=4, d_model=64, d_kv=32, num_heads=2, d_ff=128)
    engine = EngineOptions(compute_capabilities=("86", "89"))
    return export(checkpoint, directory / "bundle", dtype="bf16", targets=(RTX,), engine=engine).directory


@pytest.fixture
def changed(exported: Path, tmp_path: Path) -> Callable[..., Bundle]:
    """Opens a copy of the bundle after changing its engine's entry."""

    def change(**entry: Any) -> Bundle:
        directory = tmp_path / "bundle"
        directory.mkdir()
        for path in exported.iterdir():
            (directory / path.name).write_bytes(path.read_bytes())
        manifest = json.loads((directory / "manifest.json").read_text())
        manifest["targets"][RTX] |= entry
        (directory / "manifest.json").write_text(json.dumps(manifest))
        forge_hashes(Bundle(directory, open_bundle(exported).manifest))
        return open_bundle(directory)

    return change


@needs_rtx
@pytest.mark.parametrize("device", ["cpu", "cuda:1"])
def test_engines_run_on_a_gpu(exported: Path, device: str) -> None:
    with pytest.raises(InputError, match=f"engines run on an NVIDIA GPU, not on {device}: use --device cuda"):
        open_target(open_bundle(exported), RTX, device=device)


@needs_rtx
@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_no_gpu(exported: Path) -> None:
    with pytest.raises(InputError, match=r"no GPU: model\.tensorrt-rtx\.engine runs on an NVIDIA GPU, torch .* none"):
        open_target(open_bundle(exported), RTX, device="cuda")


@needs_rtx
def test_bundle_without_the_target(exported: Path) -> None:
    with pytest.raises(BundleError, match="has no target 'tensorrt'; it has: tensorrt-rtx"):
        EngineSession(open_bundle(exported), "tensorrt")


@needs_rtx
def test_library_is_not_installed(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(flavour: Flavour) -> None:
        raise DependencyError(f"no {flavour.title}")

    monkeypatch.setattr(Flavour, "load", missing)
    with pytest.raises(DependencyError, match="no TensorRT-RTX"):
        EngineSession(open_bundle(exported), RTX)


@needs_rtx
def test_engine_of_another_version(changed: Callable[..., Bundle]) -> None:
    installed = FLAVOURS[RTX].load().__version__
    message = f"was built by TensorRT-RTX 1.6.0, and {installed} is installed: pip install 'tensorrt-rtx-cu13==1.6.0'"
    with pytest.raises(BundleError, match=message):
        EngineSession(changed(library="1.6.0"), RTX)


@needs_rtx
def test_engine_for_other_gpus(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "gpu_capability", lambda: "120")
    with pytest.raises(BundleError, match="for GPUs of compute capability 86, 89, and this one has 120: export again"):
        EngineSession(open_bundle(exported), RTX)


@needs_rtx
@pytest.mark.parametrize("gigabytes", [-1.0, float("nan"), float("inf")])
def test_impossible_weight_streaming(exported: Path, gigabytes: float) -> None:
    with pytest.raises(InputError, match="gigabytes of weights cannot stay on the GPU"):
        EngineSession(open_bundle(exported), RTX, weight_streaming_gb=gigabytes)


@needs_rtx
def test_engine_not_built_for_weight_streaming(exported: Path) -> None:
    with pytest.raises(InputError, match="cannot stream weights: export again with --weight-streaming"):
        EngineSession(open_bundle(exported), RTX, weight_streaming_gb=1)


@needs_rtx
@pytest.mark.parametrize("entry", [{"profile": "1x1"}, {"profile": 5}, {"build": {}}, {"compute_capabilities": None}])
def test_malformed_entry(changed: Callable[..., Bundle], entry: dict[str, Any]) -> None:
    with pytest.raises(BundleError, match="the manifest's engine is malformed"):
        EngineSession(changed(**entry), RTX)


def test_record_writes_what_it_reads() -> None:
    assert EngineRecord.from_entry(ENTRY).to_entry() == ENTRY


def test_version_compatible_engine_runs_on_later_versions() -> None:
    flavour = FLAVOURS["tensorrt"]
    record = EngineRecord.from_entry({**ENTRY, "version_compatible": True})
    record.check_library(flavour, "10.14.1")
    record.check_library(flavour, "10.16.0")
    with pytest.raises(BundleError, match=r"was built by TensorRT 10\.14\.1, and 10\.13\.0 is installed"):
        record.check_library(flavour, "10.13.0")
    with pytest.raises(BundleError, match=r"was built by TensorRT 10\.14\.1, and 10\.16\.0 is installed"):
        EngineRecord.from_entry(ENTRY).check_library(flavour, "10.16.0")


def test_hardware_compatible_engine_runs_from_ampere_on() -> None:
    record = EngineRecord.from_entry({**ENTRY, "hardware_compatible": True})
    for capability in ("80", "89", "120"):
        record.check_gpu(capability)
    with pytest.raises(BundleError, match="compute capability 89, and this one has 75"):
        record.check_gpu("75")
    with pytest.raises(BundleError, match="compute capability 89, and this one has 90"):
        EngineRecord.from_entry(ENTRY).check_gpu("90")


def test_kernels_are_cached_by_engine_and_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = cache_path("ab" * 32, "NVIDIA GeForce RTX 4090")
    assert path.parent == tmp_path / "skrr-export"
    assert path != cache_path("cd" * 32, "NVIDIA GeForce RTX 4090")
    assert path != cache_path("ab" * 32, "NVIDIA GeForce RTX 3090")


@pytest.mark.parametrize("base", ["", "relative"])
def test_default_cache_directory(base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", base)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_path("ab" * 32, "GPU").parent == tmp_path / ".cache" / "skrr-export"


class _Memory(bytes):
    @property
    def nbytes(self) -> int:
        return len(self)


class _RuntimeCache:
    """Stands in for TensorRT-RTX's, which needs a GPU; refuses what does not start with `kernels`."""

    def __init__(self) -> None:
        self.content = b""

    def deserialize(self, blob: bytes) -> bool:
        if not blob.startswith(b"kernels"):
            return False
        self.content = blob
        return True

    def serialize(self) -> _Memory:
        return _Memory(self.content)


def _attach(path: Path) -> tuple[Any, _RuntimeCache]:
    held = _RuntimeCache()
    cache = session._KernelCache(path)
    cache.attach(SimpleNamespace(create_runtime_cache=lambda: held, set_runtime_cache=lambda _: None))
    return cache, held


def test_kernels_outlive_the_process(tmp_path: Path) -> None:
    path = tmp_path / "new" / "engine.kernels"
    cache, held = _attach(path)
    held.content = b"kernels 1"
    cache.save()
    cache, held = _attach(path)
    assert held.content == b"kernels 1"
    modified = path.stat().st_mtime_ns
    cache.save()
    assert path.stat().st_mtime_ns == modified  # nothing new, nothing written
    held.content = b"kernels 1, 2"
    cache.save()
    assert path.read_bytes() == b"kernels 1, 2"
    assert [each.name for each in path.parent.iterdir()] == ["engine.kernels"]


def test_kernels_of_another_driver_are_replaced(tmp_path: Path) -> None:
    path = tmp_path / "engine.kernels"
    path.write_bytes(b"others")
    cache, held = _attach(path)
    assert held.content == b""
    held.content = b"kernels"
    cache.save()
    assert path.read_bytes() == b"kernels"


def test_cache_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    cache, held = _attach(tmp_path / "file" / "engine.kernels")
    held.content = b"kernels"
    cache.save()
    assert [each.name for each in tmp_path.iterdir()] == ["file"]
