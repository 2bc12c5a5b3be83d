"""Real engines of TensorRT-RTX, which builds without a GPU; and everything that is refused before or during a build."""

from __future__ import annotations

import importlib
import os
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest

from skrr_export.bundle import Bundle
from skrr_export.dtypes import BF16, FP16, FP32
from skrr_export.errors import DependencyError, InputError, SkrrError
from skrr_export.pipelines import PRESETS
from skrr_export.targets.base import Source
from skrr_export.targets.tensorrt import build, library
from skrr_export.targets.tensorrt.library import FLAVOURS
from skrr_export.targets.tensorrt.options import EngineOptions, Profile
from tests.bundles import PLAN, Sources, export
from tests.checkpoints import bert_checkpoint, contents, t5_checkpoint
from tests.targets.tensorrt.engines import CODE_BYTES, RTX, needs_rtx, record, unique_weights

pytestmark = pytest.mark.usefixtures("remembered_traces")

PLAIN = PRESETS["plain"]
ONE = EngineOptions(compute_capabilities=("86",))
WIDE = {"d_model": 512, "d_kv": 64, "num_heads": 8, "d_ff": 1024, "vocab_size": 1024}
"""Wide enough that its weights, not its code, decide an engine's size."""
SMALL = {"d_model": 64, "d_kv": 32, "num_heads": 2, "d_ff": 128}


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return t5_checkpoint(tmp_path_factory.mktemp("wide"), layers=4, **WIDE)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return t5_checkpoint(tmp_path_factory.mktemp("small"), layers=4, **SMALL)


@pytest.fixture(scope="module")
def parts(small: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Source, bytes]:
    return record(tmp_path_factory.mktemp("parts") / "bundle", small, sources=PLAN, dtype="bf16")


def _export(checkpoint: Path, output: Path, sources: Sources | None = None, **options: Any) -> Bundle:
    options = {"dtype": "bf16", "targets": (RTX,), "engine": ONE, "rescale": False, **options}
    return export(checkpoint, output, sources, **options)


def _check_engine(bundle: Bundle) -> int:
    """Compare what the manifest says of an engine with the bundle; the engine's size."""
    entry = bundle.manifest.targets[RTX]
    size = bundle.target_file(RTX).stat().st_size
    weights = unique_weights(bundle)
    assert entry["file"] == "model.tensorrt-rtx.engine"
    assert entry["build"] == {"engine_bytes": size, "weights_bytes": weights}
    assert entry["precision"] == bundle.manifest.dtype.name
    assert entry["library"] == FLAVOURS[RTX].load().__version__
    assert size > weights
    assert size <= 1.03 * weights + CODE_BYTES
    return size


@needs_rtx
@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_engine_holds_a_reused_weight_once(wide: Path, tmp_path: Path, dtype: str) -> None:
    dense = _export(wide, tmp_path / "dense", dtype=dtype)
    planned = _export(wide, tmp_path / "planned", [(0, 0), (0, 1), (2, 1), (2, 1)], dtype=dtype)
    saved = _check_engine(dense) - _check_engine(planned)
    assert saved == pytest.approx(unique_weights(dense) - unique_weights(planned), rel=0.03)


@needs_rtx
def test_bert(tmp_path: Path) -> None:
    sizes = {"hidden_size": 64, "num_attention_heads": 2, "intermediate_size": 128}
    checkpoint = bert_checkpoint(tmp_path / "checkpoint", layers=4, **sizes)
    bundle = _export(checkpoint, tmp_path / "bundle", PLAN, dtype="fp16")
    _check_engine(bundle)
    assert bundle.manifest.targets[RTX]["profile"] == "1x1:1x71:8x71"


@pytest.mark.slow
@needs_rtx
def test_an_encoder_of_the_size_of_clip(tmp_path: Path) -> None:
    """12 layers x 768, 49,408 words, 77 tokens, as CLIP-L's text encoder; a BERT, for CLIP is no family of ours yet."""
    sizes = {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072, "vocab_size": 49408}
    checkpoint = bert_checkpoint(tmp_path / "checkpoint", layers=12, max_position_embeddings=77, **sizes)
    _check_engine(_export(checkpoint, tmp_path / "bundle", dtype="bf16", batch=1, sequence=77))


@needs_rtx
def test_head_size_that_no_power_of_two_divides(tmp_path: Path) -> None:
    _check_engine(_export(t5_checkpoint(tmp_path / "checkpoint", layers=4), tmp_path / "bundle", PLAN, dtype="fp16"))


@needs_rtx
def test_unmasked(small: Path, tmp_path: Path) -> None:
    bundle = _export(small, tmp_path / "bundle", PLAN, masked=False, targets=("onnx", RTX))
    _check_engine(bundle)
    assert bundle.manifest.inputs == ("input_ids",)
    assert set(bundle.manifest.targets) == {"onnx", RTX}


@needs_rtx
@pytest.mark.parametrize(
    ("sizes", "profile"),
    [
        ({"batch": 2}, "2x1:2x77:2x512"),
        ({"sequence": 64}, "1x64:1x64:8x64"),
        ({"batch": 2, "sequence": 64}, "2x64:2x64:2x64"),
    ],
)
def test_fixed_sizes(small: Path, tmp_path: Path, sizes: dict[str, int], profile: str) -> None:
    bundle = _export(small, tmp_path / "bundle", PLAN, **sizes)
    _check_engine(bundle)
    assert bundle.manifest.targets[RTX]["profile"] == profile


@needs_rtx
@pytest.mark.parametrize("capabilities", [("120",), ("89", "86", "89"), EngineOptions().compute_capabilities])
def test_compute_capabilities(parts: tuple[Source, bytes], capabilities: tuple[str, ...]) -> None:
    built = build.build(RTX, *parts, EngineOptions(compute_capabilities=capabilities))
    assert built.entry["compute_capabilities"] == list(dict.fromkeys(capabilities))
    assert len(built.files[built.entry["file"]]) <= 1.03 * built.entry["build"]["weights_bytes"] + CODE_BYTES


@needs_rtx
def test_profile_workspace_and_weight_streaming(parts: tuple[Source, bytes]) -> None:
    profile = Profile.parse("1x8:2x16:4x32")
    options = replace(ONE, profile=profile, workspace_gb=1.5, weight_streaming=True)
    entry = build.build(RTX, *parts, options).entry
    assert entry["profile"] == str(profile)
    assert entry["weight_streaming"] is True
    assert not any(entry[name] for name in ("version_compatible", "hardware_compatible", "stripped"))


@needs_rtx
def test_what_a_build_took_is_reported_and_not_shipped(parts: tuple[Source, bytes]) -> None:
    built = build.build(RTX, *parts, ONE)
    assert 0 < built.report["seconds"] < 60
    assert built.report["peak_rss_bytes"] > built.entry["build"]["engine_bytes"]
    assert not set(built.report) & set(built.entry) | set(built.report) & set(built.entry["build"])


@needs_rtx
@pytest.mark.skipif(library.gpu_capability() is not None, reason="this machine has a GPU")
def test_layers_are_not_counted_without_a_gpu(parts: tuple[Source, bytes]) -> None:
    built = build.build(RTX, *parts, ONE)
    assert built.entry["layers"] is None
    assert set(built.files) == {"model.tensorrt-rtx.engine"}


@needs_rtx
def test_progress_is_told(parts: tuple[Source, bytes], capfd: pytest.CaptureFixture[str]) -> None:
    told: list[tuple[str, int, int]] = []
    build.build(RTX, *parts, ONE, lambda *what: told.append(what))
    assert len({what for what, _, _ in told}) > 3
    assert all(0 <= done <= total and total > 0 for _, done, total in told)
    assert ("building engine", 0) in {(what, done) for what, done, _ in told}
    assert capfd.readouterr() == ("", "")


@needs_rtx
def test_progress_that_fails_stops_the_build(parts: tuple[Source, bytes], capfd: pytest.CaptureFixture[str]) -> None:
    calls = []

    def fail(*what: Any) -> None:
        calls.append(what)
        if len(calls) == 5:
            raise RuntimeError("the terminal is gone")

    with pytest.raises(RuntimeError, match="the terminal is gone"):
        build.build(RTX, *parts, ONE, fail)
    assert len(calls) < 20
    assert capfd.readouterr() == ("", "")


@needs_rtx
def test_ctrl_c_stops_the_build(parts: tuple[Source, bytes], capfd: pytest.CaptureFixture[str]) -> None:
    calls = []

    def interrupt(*what: Any) -> None:
        calls.append(what)
        if len(calls) == 5:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        build.build(RTX, *parts, ONE, interrupt)
    everything = len(calls)
    build.build(RTX, *parts, ONE, lambda *what: calls.append(what))
    assert everything < len(calls) - everything
    assert capfd.readouterr() == ("", "")


@needs_rtx
def test_graph_that_cannot_be_read(parts: tuple[Source, bytes], capfd: pytest.CaptureFixture[str]) -> None:
    source, graph = parts
    model = onnx.ModelProto.FromString(graph)
    model.graph.node[-1].op_type = "Nonesuch"
    with pytest.raises(SkrrError, match=r"TensorRT-RTX cannot build this engine: it cannot read the graph: .*Nonesuch"):
        build.build(RTX, source, model.SerializeToString(), ONE)
    with pytest.raises(SkrrError, match="TensorRT-RTX cannot build this engine: it cannot read the graph"):
        build.build(RTX, source, b"no model", ONE)
    assert capfd.readouterr() == ("", "")


@needs_rtx
def test_too_small_a_workspace(parts: tuple[Source, bytes], capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(
        SkrrError, match=r"TensorRT-RTX ran out of memory: .*; give --workspace more gigabytes"
    ) as error:
        build.build(RTX, *parts, replace(ONE, workspace_gb=1e-4))
    assert "\n" not in str(error.value)
    assert capfd.readouterr() == ("", "")


def test_memory_that_runs_out_in_the_bindings() -> None:
    job = SimpleNamespace(flavour=FLAVOURS[RTX])

    def exhaust() -> None:
        raise MemoryError

    with pytest.raises(SkrrError, match="ran out of memory: MemoryError: ; give --workspace"):
        build._call(job, exhaust)  # type: ignore[arg-type]


@needs_rtx
def test_profile_that_lacks_the_fixed_sizes(parts: tuple[Source, bytes]) -> None:
    source, graph = parts
    options = replace(ONE, profile=Profile.parse("1x1:1x77:4x512"))
    with pytest.raises(InputError, match="profile 1x1:1x77:4x512 does not take the sizes that are fixed: 8x1:8x77:8x5"):
        build.build(RTX, replace(source, batch=8), graph, options)


@needs_rtx
@pytest.mark.parametrize("replaced", [False, True])
def test_failed_build_leaves_nothing(small: Path, tmp_path: Path, replaced: bool) -> None:
    output = tmp_path / "bundle"
    if replaced:
        _export(small, output, PLAN, targets=("onnx",))
    before = contents(tmp_path)
    with pytest.raises(SkrrError, match="--workspace"):
        _export(small, output, PLAN, targets=("onnx", RTX), engine=replace(ONE, workspace_gb=1e-4))
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("dtype", "options", "message"),
    [
        (FP32, ONE, "TensorRT-RTX has no fp32 kernel for attention: bake with --dtype fp16 or bf16"),
        (BF16, EngineOptions(compute_capabilities=("75", "86")), "compute capability 75 have no bf16"),
        (
            FP16,
            replace(ONE, timing_cache=Path("c")),
            "TensorRT-RTX has no timing cache: choose the target tensorrt, or do",
        ),
        (FP16, replace(ONE, version_compatible=True), "TensorRT-RTX has no engines for later versions"),
        (FP16, replace(ONE, hardware_compatible=True), "TensorRT-RTX has no engines for GPUs other"),
        (FP16, replace(ONE, stripped=True), "TensorRT-RTX has no engines without weights"),
        (
            FP16,
            replace(ONE, profile=Profile.parse("1x1:1x77:8x513")),
            "the profile 1x1:1x77:8x513 takes 513 tokens, the pipeline 'plain' feeds 512 at most",
        ),
    ],
)
def test_refused_before_anything_is_computed(dtype: Any, options: EngineOptions, message: str) -> None:
    with pytest.raises(InputError, match=message):
        build.check(RTX, dtype, PLAIN, options)


@needs_rtx
def test_accepted() -> None:
    build.check(RTX, FP16, PLAIN, EngineOptions(compute_capabilities=("75", "121")))
    build.check(RTX, BF16, PLAIN, replace(ONE, profile=Profile.parse("1x1:1x77:8x512"), weight_streaming=True))


def _import(monkeypatch: pytest.MonkeyPatch, answer: Any) -> None:
    def import_module(name: str) -> Any:
        if name not in {module for flavour in FLAVOURS.values() for module in flavour.modules}:
            return real(name)
        if isinstance(answer, ModuleNotFoundError):
            raise ModuleNotFoundError(str(answer), name=answer.name or name)
        if isinstance(answer, Exception):
            raise answer
        return answer

    real = importlib.import_module
    monkeypatch.setattr(importlib, "import_module", import_module)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (RTX, "the target tensorrt-rtx needs TensorRT-RTX 1.7 or later: pip install 'tensorrt-rtx-cu13'"),
        ("tensorrt", "the target tensorrt needs TensorRT 10.14 or later: pip install 'tensorrt'"),
    ],
)
def test_library_is_not_installed(monkeypatch: pytest.MonkeyPatch, target: str, message: str) -> None:
    _import(monkeypatch, ModuleNotFoundError("no such module"))
    with pytest.raises(DependencyError, match=message):
        build.check(target, FP16, PLAIN, ONE)


@pytest.mark.parametrize(
    "error",
    [ModuleNotFoundError("No module named 'libs'", name="libs"), ImportError("lib.so: cannot open"), OSError("x")],
)
def test_library_that_does_not_load(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    _import(monkeypatch, error)
    with pytest.raises(DependencyError, match=f"TensorRT-RTX does not load: {error}"):
        FLAVOURS[RTX].load()


@pytest.mark.parametrize("version", ["10.13.3.9", "8.6", "unknown"])
def test_library_that_is_too_old(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    _import(monkeypatch, SimpleNamespace(__version__=version))
    with pytest.raises(DependencyError, match=f"TensorRT {version} is too old; needed is 10.14 or later: pip install"):
        FLAVOURS["tensorrt"].load()


def test_tensorrt_needs_a_gpu_to_build(monkeypatch: pytest.MonkeyPatch) -> None:
    _import(monkeypatch, SimpleNamespace(__version__="10.14.1"))
    monkeypatch.setattr(build, "gpu_capability", lambda: None)
    with pytest.raises(DependencyError, match="the target tensorrt needs the GPU that the engine is for"):
        build.check("tensorrt", FP32, PLAIN, ONE)
    monkeypatch.setattr(build, "gpu_capability", lambda: "90")
    build.check("tensorrt", FP32, PLAIN, replace(ONE, stripped=True, version_compatible=True, hardware_compatible=True))


def test_timing_cache_in_no_directory(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no directory for the timing cache"):
        build.check("tensorrt", FP16, PLAIN, replace(ONE, timing_cache=tmp_path / "none" / "cache"))
