"""Measuring on a GPU: its memory by three ways of counting, and times that wait for it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from skrr_export.measure.worker import Opener
from skrr_export.measuring import MeasureOptions, measure_bundle
from tests.bundles import PLAN, export, soften
from tests.checkpoints import t5_checkpoint

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no NVIDIA GPU"),
]


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_a_bundle_is_measured_on_a_gpu(dtype: str, tmp_path: Path) -> None:
    t5 = soften(t5_checkpoint(tmp_path / "t5", layers=4, d_model=256, d_ff=1024, vocab_size=8000, tokenizer=True))
    bundle = export(t5, tmp_path / "bundle", PLAN, dtype=dtype, targets=("onnx", "pt2", "aoti"))
    options = MeasureOptions(
        reference=t5, targets=("pt2", "aoti"), device="cuda:0", sequences=(8, 64), runs=3, prompts=["a cat", ""]
    )
    found = measure_bundle(bundle, options)
    assert found.passed, [verdict.message for verdict in found.verdicts if not verdict.passed]
    assert found.hardware.copy_bytes_per_second is not None
    assert found.hardware.copy_bytes_per_second > 20e9
    for subject in found.subjects:
        assert subject.error is None
        assert len(subject.latencies) == 2
        assert subject.memory is not None
        assert subject.memory.gpu is not None
        assert (subject.memory.gpu.torch_peak or 0) > 0
        assert subject.memory.gpu.engine is None
        if subject.memory.gpu.process is not None:  # in a container the driver may not know the process
            assert subject.memory.gpu.process > subject.memory.gpu.torch_peak


def test_a_subject_that_fills_the_gpu_says_so_and_the_others_go_on(tmp_path: Path) -> None:
    from skrr_export.measure.subjects import Subject
    from tests.measure import controls

    t5 = soften(t5_checkpoint(tmp_path / "t5", layers=4))
    bundle = export(t5, tmp_path / "bundle", PLAN, targets=("pt2",))
    greedy = Subject(
        name="greedy", title="greedy", role="peer", planned=True, opener=Opener.of(controls.filling_the_gpu)
    )
    found = measure_bundle(
        bundle, MeasureOptions(targets=("pt2",), device="cuda", sequences=(8,), runs=2, peers=(greedy,))
    )
    errors = {subject.name: subject.error for subject in found.subjects}
    assert errors.pop("greedy", "")
    assert "out of memory" in str(found.subjects[-1].error)
    assert set(errors.values()) == {None}
