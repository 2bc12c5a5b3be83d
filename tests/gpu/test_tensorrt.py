"""Engines on a GPU, against ONNX Runtime on the CPU, within `skrr_export.measure.limits`."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from skrr_export.bundle import Bundle
from skrr_export.errors import BundleError, InputError
from skrr_export.measure.verify import verify
from skrr_export.targets import open_target
from skrr_export.targets.onnx.session import OnnxSession
from skrr_export.targets.tensorrt.library import FLAVOURS, gpu_capability
from skrr_export.targets.tensorrt.options import COMPUTE_CAPABILITIES, EngineOptions, Profile
from skrr_export.targets.tensorrt.session import EngineSession
from tests.bundles import PLAN, export, forge_hashes, random_ids, random_mask, relative_error, soften
from tests.checkpoints import bert_checkpoint, t5_checkpoint

CAPABILITY = gpu_capability()
T5 = {"d_model": 64, "d_kv": 32, "num_heads": 2, "d_ff": 128}
BERT = {"hidden_size": 64, "num_attention_heads": 2, "intermediate_size": 128}

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.usefixtures("remembered_traces"),
    pytest.mark.skipif(CAPABILITY is None, reason="torch sees no NVIDIA GPU"),
]


def _missing(target: str) -> str | None:
    """Why a target cannot be tested here."""
    flavour = FLAVOURS[target]
    if not any(importlib.util.find_spec(module) for module in flavour.modules):
        return f"needs {flavour.title}: pip install {flavour.package}"
    if not flavour.builds_here and CAPABILITY not in COMPUTE_CAPABILITIES:
        return f"{flavour.title} builds for compute capabilities {', '.join(COMPUTE_CAPABILITIES)}, not {CAPABILITY}"
    return None


def _targets(*names: str) -> list[Any]:
    reasons = {name: None if CAPABILITY is None else _missing(name) for name in names}
    return [
        pytest.param(name, marks=pytest.mark.skipif(reason is not None, reason=reason or ""))
        for name, reason in reasons.items()
    ]


EITHER = _targets("tensorrt-rtx", "tensorrt")
RTX = _targets("tensorrt-rtx")
DATA_CENTRE = _targets("tensorrt")
HERE = EngineOptions() if CAPABILITY not in COMPUTE_CAPABILITIES else EngineOptions(compute_capabilities=(CAPABILITY,))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "skrr-export"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return soften(t5_checkpoint(tmp_path / "checkpoint", layers=4, **T5))


def _export(checkpoint: Path, output: Path, target: str, **options: Any) -> Bundle:
    options = {"dtype": "bf16", "engine": HERE, **options}
    return export(checkpoint, output, PLAN, targets=("onnx", target), **options)


@pytest.mark.parametrize("target", EITHER)
@pytest.mark.parametrize("family", ["t5", "bert"])
@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_verify_passes(checkpoint: Path, tmp_path: Path, target: str, family: str, dtype: str) -> None:
    if family == "bert":
        checkpoint = bert_checkpoint(tmp_path / "bert", layers=4, **BERT)
    bundle = _export(checkpoint, tmp_path / "bundle", target, dtype=dtype)
    report = verify(bundle, EngineSession(bundle, target), reference=checkpoint)
    assert report.passed, report.failures
    assert report.computes_in == dtype


@pytest.mark.parametrize("target", EITHER)
@pytest.mark.parametrize("masked", [True, False])
def test_equals_the_onnx_graph(checkpoint: Path, tmp_path: Path, target: str, masked: bool) -> None:
    bundle = _export(checkpoint, tmp_path / "bundle", target, masked=masked)
    engine, onnx = open_target(bundle, target, device="cuda"), OnnxSession(bundle)
    random = np.random.default_rng(0)
    for batch, sequence in ((1, 1), (3, 60), (8, 512), (3, 60)):
        ids = random_ids(random, batch, sequence)
        mask = random_mask(random, batch, sequence) if masked else None
        ours = engine.encode(ids, mask)["last_hidden_state"]
        assert ours.dtype == np.float32
        assert relative_error(ours, onnx.encode(ids, mask)["last_hidden_state"]) < 0.05


@pytest.mark.parametrize("target", EITHER)
def test_row_masked_whole_is_finite(checkpoint: Path, tmp_path: Path, target: str) -> None:
    bundle = _export(checkpoint, tmp_path / "bundle", target)
    ids, mask = random_ids(np.random.default_rng(0), 2, 9), np.ones((2, 9), np.int64)
    mask[1] = 0
    assert np.isfinite(EngineSession(bundle, target).encode(ids, mask)["last_hidden_state"]).all()


@pytest.mark.parametrize("target", EITHER)
def test_sizes_beyond_the_profile(checkpoint: Path, tmp_path: Path, target: str) -> None:
    engine = replace(HERE, profile=Profile.parse("1x4:1x16:2x32"))
    session = EngineSession(_export(checkpoint, tmp_path / "bundle", target, engine=engine), target)
    for batch, sequence in ((1, 3), (3, 16), (1, 33)):
        with pytest.raises(InputError, match=f"takes sizes from 1x4 to 2x32, not {batch}x{sequence}"):
            session.encode(np.ones((batch, sequence), np.int64))
    assert session.encode(np.ones((2, 32), np.int64))["last_hidden_state"].shape == (2, 32, 64)


@pytest.mark.parametrize("target", EITHER)
def test_layers_are_shipped(checkpoint: Path, tmp_path: Path, target: str) -> None:
    bundle = _export(checkpoint, tmp_path / "bundle", target)
    layers = json.loads((bundle.directory / f"model.{target}.layers.json").read_text())
    assert len(layers["Layers"]) > 0
    assert bundle.manifest.targets[target]["layers"] > 0


@pytest.mark.parametrize("target", EITHER)
def test_weights_may_stay_on_the_host(checkpoint: Path, tmp_path: Path, target: str) -> None:
    bundle = _export(checkpoint, tmp_path / "bundle", target, engine=replace(HERE, weight_streaming=True))
    ids = random_ids(np.random.default_rng(0), 2, 9)
    here, there = (EngineSession(bundle, target, weight_streaming_gb=budget) for budget in (None, 0.0))
    assert there._engine.weight_streaming_budget_v2 == 0
    assert relative_error(*(each.encode(ids)["last_hidden_state"] for each in (there, here))) < 0.05


@pytest.mark.parametrize("target", EITHER)
def test_damaged_engine(checkpoint: Path, tmp_path: Path, target: str) -> None:
    bundle = _export(checkpoint, tmp_path / "bundle", target)
    file = bundle.target_file(target)
    file.write_bytes(bytes(1000) + file.read_bytes()[1000:])
    forge_hashes(bundle)
    with pytest.raises(BundleError, match="cannot be loaded"):
        EngineSession(bundle, target)


@pytest.mark.parametrize("target", RTX)
@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_kernels_are_kept(checkpoint: Path, tmp_path: Path, cache: Path, target: str, cuda_graphs: bool) -> None:
    bundle = _export(checkpoint, tmp_path / "bundle", target)
    ids = random_ids(np.random.default_rng(0), 2, 9)
    first = EngineSession(bundle, target, cuda_graphs=cuda_graphs)
    once, again = (first.encode(ids)["last_hidden_state"] for _ in range(2))
    assert [path.suffix for path in cache.iterdir()] == [".kernels"]
    later = EngineSession(bundle, target, cuda_graphs=cuda_graphs).encode(ids)["last_hidden_state"]
    assert np.array_equal(once, again)
    assert relative_error(later, once) < 0.05


@pytest.mark.parametrize("target", DATA_CENTRE)
def test_stripped_engine_takes_the_bundles_weights(checkpoint: Path, tmp_path: Path, target: str) -> None:
    whole = _export(checkpoint, tmp_path / "whole", target)
    stripped = _export(checkpoint, tmp_path / "stripped", target, engine=replace(HERE, stripped=True))
    assert stripped.target_file(target).stat().st_size < whole.target_file(target).stat().st_size
    ids = random_ids(np.random.default_rng(0), 2, 9)
    ours, truth = (EngineSession(each, target).encode(ids)["last_hidden_state"] for each in (stripped, whole))
    assert relative_error(ours, truth) < 0.05


@pytest.mark.parametrize("target", DATA_CENTRE)
def test_compatible_engine_and_timing_cache(checkpoint: Path, tmp_path: Path, target: str) -> None:
    timings = tmp_path / "timings"
    options = replace(HERE, version_compatible=True, hardware_compatible=True, timing_cache=timings)
    for output in ("first", "second"):
        bundle = _export(checkpoint, tmp_path / output, target, engine=options)
        assert timings.stat().st_size > 0
    ids = random_ids(np.random.default_rng(0), 2, 9)
    truth = OnnxSession(bundle).encode(ids)["last_hidden_state"]
    assert relative_error(EngineSession(bundle, target).encode(ids)["last_hidden_state"], truth) < 0.05
    timings.write_bytes(b"no timings")
    with pytest.raises(InputError, match="is no timing cache of this GPU"):
        _export(checkpoint, tmp_path / "third", target, engine=options)
