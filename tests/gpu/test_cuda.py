"""ONNX Runtime's CUDA provider against its CPU provider, within `skrr_export.measure.limits`."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from skrr_export.bundle import Bundle
from skrr_export.errors import DependencyError
from skrr_export.measure.fidelity import Deviation, DeviationMeter
from skrr_export.measure.limits import LIMITS
from skrr_export.measure.verify import verify
from skrr_export.targets.onnx import plugin
from skrr_export.targets.onnx.session import OnnxSession
from tests.bundles import PLAN, export, random_ids, random_mask, soften
from tests.checkpoints import bert_checkpoint, t5_checkpoint

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.usefixtures("remembered_traces"),
    pytest.mark.skipif(
        "CUDAExecutionProvider" not in onnxruntime.get_available_providers(),
        reason="ONNX Runtime has no CUDAExecutionProvider: needs an NVIDIA GPU and skrr-export[gpu]",
    ),
]


@pytest.fixture(params=["t5", "bert"])
def checkpoint(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    if request.param == "t5":
        return soften(t5_checkpoint(tmp_path / "checkpoint", layers=4))
    return bert_checkpoint(tmp_path / "checkpoint", layers=4)


@pytest.fixture(params=["fp32", "fp16", "bf16"])
def bundle(request: pytest.FixtureRequest, checkpoint: Path, tmp_path: Path) -> Bundle:
    return export(checkpoint, tmp_path / "bundle", PLAN, dtype=request.param)


def _deviation(ours: np.ndarray, reference: np.ndarray) -> Deviation:
    meter = DeviationMeter()
    meter.add(ours.reshape(-1, ours.shape[-1]), reference.reshape(-1, reference.shape[-1]))
    return meter.result()


def _check_against_cpu(session: OnnxSession, bundle: Bundle) -> None:
    random = np.random.default_rng(0)
    ids, mask = random_ids(random, 3, 60), random_mask(random, 3, 60)
    assert session.computes_in is bundle.manifest.dtype
    ours = session.encode(ids, mask)["last_hidden_state"]
    deviation = _deviation(ours, OnnxSession(bundle).encode(ids, mask)["last_hidden_state"])
    limits = LIMITS[bundle.manifest.dtype.name]
    assert deviation.nonfinite == 0
    assert deviation.relative_l2 is not None
    assert deviation.cosine_min is not None
    assert deviation.relative_l2 <= limits.relative_l2
    assert 1 - deviation.cosine_min <= limits.cosine_distance
    assert ours.dtype == (np.float16 if bundle.manifest.dtype.name == "fp16" else np.float32)


@pytest.mark.parametrize("runtime", ["default", "decomposed"])
def test_cuda_equals_cpu_within_the_limits(runtime: str, bundle: Bundle) -> None:
    session = OnnxSession(bundle, device="cuda", runtime=runtime)
    _check_against_cpu(session, bundle)
    # Where this ONNX Runtime lacks a kernel, the default decomposes on its own and says so.
    assert not session.notes or (runtime == "default" and "run decomposed" in session.notes[0])


@pytest.mark.skipif(
    importlib.util.find_spec(plugin.MODULE) is None, reason=f"the plugin is not installed: pip install {plugin.PACKAGE}"
)
def test_plugin_equals_cpu_within_the_limits(bundle: Bundle) -> None:
    try:
        session = OnnxSession(bundle, device="cuda", runtime="tensorrt-rtx")
    except DependencyError as error:
        pytest.skip(str(error))  # not for this GPU
    assert session._session.get_providers()[0] == "NvTensorRTRTXExecutionProvider"
    _check_against_cpu(session, bundle)


def test_nothing_falls_back_to_the_cpu(bundle: Bundle) -> None:
    assert OnnxSession(bundle, device="cuda")._session.get_providers()[0] == "CUDAExecutionProvider"


@pytest.mark.parametrize("runtime", ["default", "decomposed"])
def test_row_masked_whole_is_finite(runtime: str, bundle: Bundle) -> None:
    ids, mask = random_ids(np.random.default_rng(0), 2, 9), np.ones((2, 9), np.int64)
    mask[1] = 0
    assert np.isfinite(OnnxSession(bundle, device="cuda", runtime=runtime).encode(ids, mask)["last_hidden_state"]).all()


def test_verify_passes_on_the_gpu(bundle: Bundle, checkpoint: Path) -> None:
    report = verify(bundle, OnnxSession(bundle, device="cuda"), reference=checkpoint)
    assert report.passed, report.failures
    assert report.computes_in == bundle.manifest.dtype.name
