"""torch.export programs and AOTInductor packages on a GPU, against transformers on the CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from skrr_export.bundle import Bundle
from skrr_export.measure.verify import verify
from skrr_export.targets import open_target
from tests.bundles import PLAN, export, overflowing, random_ids, soften
from tests.checkpoints import bert_checkpoint, t5_checkpoint

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no NVIDIA GPU"),
]


@pytest.fixture(scope="module", params=["t5", "bert"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("checkpoint") / request.param
    if request.param == "t5":
        return soften(t5_checkpoint(directory, layers=4))
    return bert_checkpoint(directory, layers=4)


@pytest.fixture(scope="module", params=["fp32", "fp16", "bf16"])
def bundle(request: pytest.FixtureRequest, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return export(checkpoint, tmp_path_factory.mktemp("b") / "b", PLAN, dtype=request.param, targets=("pt2", "aoti"))


@pytest.mark.parametrize("target", ["pt2", "aoti"])
def test_it_passes_verify(target: str, bundle: Bundle, checkpoint: Path) -> None:
    report = verify(bundle, open_target(bundle, target, device="cuda"), reference=checkpoint)
    assert report.passed, report.failures


@pytest.mark.parametrize("target", ["pt2", "aoti"])
def test_fp16_of_an_overflowing_encoder_is_finite(target: str, tmp_path: Path) -> None:
    large = overflowing(soften(t5_checkpoint(tmp_path / "t5", layers=4)))
    made = export(large, tmp_path / "b", PLAN, dtype="fp16", targets=(target,))
    report = verify(made, open_target(made, target, device="cuda"), reference=large)
    assert report.passed, report.failures


def test_weights_lie_on_the_gpu_once(tmp_path: Path) -> None:
    checkpoint = t5_checkpoint(tmp_path / "t5", layers=6, d_model=512, d_ff=2048, vocab_size=4000)
    plan = [(0, 0), *[(0, 1)] * 5]
    made = export(checkpoint, tmp_path / "b", plan, targets=("pt2",))
    before = torch.cuda.memory_allocated()
    session = open_target(made, "pt2", device="cuda")
    held = torch.cuda.memory_allocated() - before
    session.encode(random_ids(np.random.default_rng(0), 1, 8))
    assert held < 1.1 * made.weights.stat().st_size
