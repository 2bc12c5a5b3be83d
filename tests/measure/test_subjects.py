from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from skrr_export.bundle import Bundle
from skrr_export.encoders import bundle_encoder
from skrr_export.errors import BundleError, InputError
from skrr_export.measure.harness import Draft, record
from skrr_export.measure.record import Hardware
from skrr_export.measure.subjects import Subject, chosen_targets, subjects_of
from skrr_export.measure.verdicts import Thresholds, judge
from skrr_export.measure.work import Work
from tests.bundles import PLAN, export
from tests.checkpoints import t5_checkpoint

pytestmark = pytest.mark.usefixtures("remembered_traces")


@pytest.fixture(scope="module")
def bundle(remembered_traces: None, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle that says it has an engine."""
    made = export(t5_checkpoint(tmp_path_factory.mktemp("t5"), layers=4), tmp_path_factory.mktemp("b") / "b", PLAN)
    targets = {**made.manifest.targets, "tensorrt-rtx": {"file": "model.tensorrt-rtx.engine"}}
    return replace(made, manifest=replace(made.manifest, targets=targets))


def subjects(bundle: Bundle, checkpoint: Path | None, device: str) -> list[Subject]:
    encoder, manifest = bundle_encoder(bundle), bundle.manifest
    dense, planned = Work.dense(encoder, manifest), Work.planned(encoder, manifest)
    targets = chosen_targets(bundle, ("all",), device)
    return list(subjects_of(bundle, targets, checkpoint, device=device, threads=1, dense=dense, planned=planned))


def test_all_are_those_of_the_bundle_and_on_a_cpu_both_ways_of_onnx_runtime(bundle: Bundle) -> None:
    assert chosen_targets(bundle, ("all",), "cpu") == ("onnx", "onnx:prepacked", "tensorrt-rtx")
    assert chosen_targets(bundle, ("all",), "cuda") == ("onnx", "tensorrt-rtx")
    assert chosen_targets(bundle, ("onnx:prepacked", "onnx", "onnx"), "cpu") == ("onnx:prepacked", "onnx")


def test_an_engine_is_skipped_on_a_cpu_with_its_reason_and_fails_nothing(bundle: Bundle) -> None:
    found = subjects(bundle, None, "cpu")
    assert [(one.name, one.skipped is not None) for one in found] == [
        ("torch-plan", False), ("onnx", False), ("onnx:prepacked", False), ("tensorrt-rtx", True),
    ]  # fmt: skip
    nothing = Hardware(copy_bytes_per_second=None, matmul_flops_per_second={})
    row = record(Draft(subject=found[-1]), nothing, masked=True, processes=2, pytorch=())
    assert row.skipped
    assert row.error == "an engine runs on an NVIDIA GPU: use --device cuda"
    assert row.memory is None
    strict = Thresholds(max_drift=0, max_loss=0, max_memory=0, max_latency_ratio=0)
    assert list(judge([row], strict, reads_padding=False, on_gpu=False)) == []


def test_the_dense_encoder_needs_the_checkpoint(bundle: Bundle) -> None:
    found = subjects(bundle, Path("checkpoint"), "cuda")
    assert [one.name for one in found] == ["torch-dense", "torch-plan", "onnx", "tensorrt-rtx"]
    assert [one.planned for one in found] == [False, True, True, True]
    assert not any(one.skipped for one in found)
    assert {one.opener.arguments["device"] for one in found} == {"cuda"}


@pytest.mark.parametrize(
    ("names", "device", "error", "message"),
    [
        (("aoti",), "cpu", BundleError, "has no target 'aoti'"),
        (("all", "onnx"), "cpu", InputError, "'all' stands for every target; give it alone"),
        (("",), "cpu", InputError, "unknown target ''"),
        (("tensorrt-rtx",), "cpu", InputError, "the target tensorrt-rtx cannot be measured here: an engine runs on"),
        (("onnx:prepacked",), "cuda", InputError, "onnx:prepacked is for CPUs; on a GPU measure onnx"),
    ],
)
def test_targets_that_cannot_be_measured_are_refused(
    names: tuple[str, ...], device: str, error: type[Exception], message: str, bundle: Bundle
) -> None:
    with pytest.raises(error, match=message):
        chosen_targets(bundle, names, device)
