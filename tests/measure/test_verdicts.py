from __future__ import annotations

from dataclasses import replace

import pytest

from skrr_export.measure.fidelity import Comparison, Deviation
from skrr_export.measure.limits import LIMITS
from skrr_export.measure.record import GpuMemory, Measurement, SubjectRecord, Verdict
from skrr_export.measure.verdicts import Thresholds, judge, judge_drift
from tests.page.measurements import MIB, NO_TOKENS, agreement, deviation, full, memory

GOOD = 1e-6
"""A drift that passes in fp32."""


@pytest.fixture(scope="module")
def subjects() -> tuple[SubjectRecord, ...]:
    """All targets are good."""
    return tuple(replace(one, drift=one.drift and agreement(GOOD)) for one in full().subjects)


def judged(
    subjects: tuple[SubjectRecord, ...], *, reads_padding: bool = False, on_gpu: bool = False, **thresholds: float
) -> list[Verdict]:
    limits = Thresholds(**thresholds)  # type: ignore[arg-type]
    return list(judge(subjects, limits, reads_padding=reads_padding, on_gpu=on_gpu))


def failed(subjects: tuple[SubjectRecord, ...], **options: float) -> list[str]:
    return [verdict.message for verdict in judged(subjects, **options) if not verdict.passed]


def changed(subjects: tuple[SubjectRecord, ...], name: str, **changes: object) -> tuple[SubjectRecord, ...]:
    return tuple(replace(one, **changes) if one.name == name else one for one in subjects)  # type: ignore[arg-type]


def test_every_target_is_judged_and_pytorch_is_not(subjects: tuple[SubjectRecord, ...]) -> None:
    verdicts = judged(subjects)
    assert all(verdict.passed for verdict in verdicts)
    names = {verdict.check.partition(": ")[0] for verdict in verdicts}
    assert names == {"onnx", "onnx:prepacked", "pt2", "aoti"}
    assert failed(changed(subjects, "torch-plan", drift=agreement(1.0))) == []


def test_a_drift_that_is_too_large_fails(subjects: tuple[SubjectRecord, ...]) -> None:
    found = failed(changed(subjects, "pt2", drift=agreement(1e-3)))
    assert found[0].startswith("pt2: tokens: drift, relative L2 0.001 exceeds 5e-05 for fp32; the smallest limit")
    assert len(found) == 2
    assert failed(changed(subjects, "pt2", drift=agreement(1e-3)), max_drift=2e-3) == []
    assert len(failed(subjects, max_drift=1e-9)) == 4


def test_an_invariance_that_is_broken_fails(subjects: tuple[SubjectRecord, ...]) -> None:
    for what in ("repeat", "batch", "sequence"):
        broken = replace(subjects[2].invariance, **{what: 0.1})  # type: ignore[type-var]
        assert [line.partition(" 0.1")[0] for line in failed(changed(subjects, "onnx", invariance=broken))] == [
            f"onnx: invariance, {what}"
        ]


def test_what_was_not_measured_never_passes(subjects: tuple[SubjectRecord, ...]) -> None:
    assert failed(changed(subjects, "onnx", drift=None)) == ["onnx: drift was not measured"]
    thresholds = {"max_loss": 1.0, "max_memory": 10**12, "max_latency_ratio": 9.0}
    assert failed(subjects, **thresholds) == []
    bare = changed(subjects, "onnx", loss=None, memory=None, latencies=())
    assert failed(bare) == []
    found = judged(bare, **thresholds)
    assert [verdict.message for verdict in found if not verdict.passed] == [
        "onnx: loss, relative L2 was not measured",
        "onnx: memory was not measured",
        "onnx: latency, times torch-dense's was not measured",
    ]
    assert all(verdict.value is None for verdict in found if not verdict.passed)


def test_a_subject_that_failed_fails_and_one_that_was_skipped_does_not(subjects: tuple[SubjectRecord, ...]) -> None:
    nothing = {"drift": None, "loss": None, "memory": None, "latencies": (), "invariance": None}
    assert failed(changed(subjects, "aoti", error="it hangs", **nothing)) == ["aoti: it hangs"]
    assert failed(changed(subjects, "torch-plan", error="out of memory")) == ["torch-plan: out of memory"]
    skipped = changed(subjects, "aoti", error="no GPU", skipped=True, **nothing)
    assert failed(skipped, max_memory=10**12, max_drift=1.0) == []


def test_memory_is_the_peak_of_the_process_or_what_it_holds_on_the_gpu(subjects: tuple[SubjectRecord, ...]) -> None:
    one = changed(subjects, "onnx", memory=memory(200, 300, 400))[2:3]  # and 180 of libraries
    assert failed(one, max_memory=580 * MIB) == []
    assert failed(one, max_memory=579 * MIB) == [
        "onnx: memory 580 MiB exceeds 579 MiB; the smallest limit that would pass is 581 MiB"
    ]
    gpu = changed(one, "onnx", memory=memory(200, 300, 400, GpuMemory(process=50 * MIB, torch_peak=None, engine=None)))
    assert failed(gpu, on_gpu=True, max_memory=50 * MIB) == []
    assert failed(gpu, on_gpu=True, max_memory=49 * MIB) != []
    assert failed(one, on_gpu=True, max_memory=10**12) == ["onnx: memory was not measured"]


def test_the_slowest_size_counts_against_the_dense_encoder_if_there_is_one(
    subjects: tuple[SubjectRecord, ...],
) -> None:
    ratios = [one.ratios["torch-dense"].median for one in subjects[2].latencies]
    only = (*subjects[:2], subjects[2])
    assert failed(only, max_latency_ratio=max(ratios)) == []
    assert failed(only, max_latency_ratio=max(ratios) * 0.99) != []
    planned = [one.ratios["torch-plan"].median for one in subjects[2].latencies]
    assert failed(only[1:], max_latency_ratio=max(planned)) == []
    assert "times torch-plan's" in failed(only[1:], max_latency_ratio=max(planned) * 0.99)[0]


def compared(
    tokens: Deviation | None = None, padding: Deviation | None = None, pooled: Deviation | None = None
) -> Comparison:
    return Comparison(tokens=tokens, padding=padding, pooled=pooled)


def drift_failures(found: Comparison, *, reads_padding: bool = False, **options: float) -> list[str]:
    verdicts = judge_drift(found, "fp32", reads_padding=reads_padding, **options)
    return [verdict.message for verdict in verdicts if not verdict.passed]


def test_padding_counts_where_it_is_read() -> None:
    good, bad = deviation(GOOD), deviation(0.1)
    for reads, failures in ((False, 0), (True, 2)):
        assert len(drift_failures(compared(good, bad), reads_padding=reads)) == failures
    assert drift_failures(compared(good, replace(good, nonfinite=3))) == [
        "padding: 3 values are NaN or infinite; no limit would pass"
    ]


def test_pooled_vectors_are_judged_by_the_same_limits() -> None:
    good, bad = deviation(GOOD), deviation(0.1)
    for tokens, padding in ((good, good), (None, None)):
        assert drift_failures(compared(tokens, padding, good)) == []
        found = drift_failures(compared(tokens, padding, bad))
        assert [line.partition(" 0.")[0] for line in found] == [
            "pooled: drift, relative L2",
            "pooled: drift, worst cosine distance",
        ]
    assert len(drift_failures(compared(pooled=bad), max_drift=0.05)) == 1
    assert drift_failures(compared(pooled=bad), max_drift=0.2) == []
    assert drift_failures(compared(good, good, replace(good, nonfinite=1))) == [
        "pooled: 1 values are NaN or infinite; no limit would pass"
    ]


def test_nothing_passes_because_nothing_was_compared() -> None:
    good, nothing = deviation(GOOD), NO_TOKENS
    both = ["relative L2 was not measured", "worst cosine distance was not measured"]
    assert drift_failures(compared(nothing, nothing)) == [f"tokens: drift, {what}" for what in both]
    assert drift_failures(compared(good, nothing, nothing)) == [f"pooled: drift, {what}" for what in both]
    assert drift_failures(compared()) == ["drift was not measured"]
    assert drift_failures(compared(nothing, good), max_drift=1.0) == ["tokens: drift, relative L2 was not measured"]
    # A batch that is full has no padding; padding whose deviation is unknown has one.
    assert drift_failures(compared(good, nothing), reads_padding=True) == []
    unknown = replace(good, relative_l2=None)
    assert drift_failures(compared(good, unknown), reads_padding=True) == [f"padding: drift, {both[0]}"]


def test_the_loss_of_pooled_vectors_counts(subjects: tuple[SubjectRecord, ...]) -> None:
    onnx = subjects[2]
    assert onnx.loss is not None
    for tokens, names in ((onnx.loss.tokens, ["loss", "pooled: loss"]), (None, ["pooled: loss"])):
        loss = replace(onnx.loss, tokens=tokens, pooled=deviation(0.5))
        found = [one.check for one in judged(changed(subjects, "onnx", loss=loss)[2:3], max_loss=0.3)]
        assert [check for check in found if "loss" in check] == [f"onnx: {name}, relative L2" for name in names]
        assert failed(changed(subjects, "onnx", loss=loss)[2:3], max_loss=0.3) == [
            "onnx: pooled: loss, relative L2 0.5 exceeds 0.3; the smallest limit that would pass is 0.5"
        ]


def test_the_limits_are_those_of_the_precision() -> None:
    for dtype, limits in LIMITS.items():
        at, above = (compared(deviation(limits.relative_l2 * factor)) for factor in (1.0, 1.001))
        assert next(judge_drift(at, dtype, reads_padding=False)).passed
        assert not next(judge_drift(above, dtype, reads_padding=False)).passed


def test_a_measurement_passes_if_every_check_does(subjects: tuple[SubjectRecord, ...]) -> None:
    def with_verdicts(verdicts: list[Verdict]) -> Measurement:
        return replace(full(), verdicts=tuple(verdicts))

    assert with_verdicts(judged(subjects)).passed
    assert not with_verdicts(judged(subjects, max_loss=1e-9)).passed
