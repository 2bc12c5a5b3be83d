from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from skrr_export.errors import InputError
from skrr_export.measure.comparing import ComparisonReport, compare, read_measurement
from tests.page.measurements import full, gpu, nothing, with_failures, without_reference

Document = dict[str, Any]


@pytest.fixture
def before() -> Document:
    document: Document = json.loads(full().to_json())
    return document


def compared(before: Document, change: Callable[[Document], None], tolerance: float = 0.1) -> ComparisonReport:
    after = copy.deepcopy(before)
    change(after)
    return compare(before, after, tolerance)


def worse(report: ComparisonReport) -> list[tuple[str, str]]:
    return [(change.subject, change.metric) for change in report.changes if change.regressed]


def grow(*path: str | int, factor: float) -> Callable[[Document], None]:
    """Multiply a number of the subject `onnx`."""

    def change(document: Document) -> None:
        at: Any = document["subjects"][2]
        for key in path[:-1]:
            at = at[key]
        at[path[-1]] = type(at[path[-1]])(at[path[-1]] * factor)

    return change


def test_a_measurement_does_not_differ_from_itself(before: Document) -> None:
    report = compare(before, before, 0.0)
    assert report.passed
    assert report.notes == ()
    assert len(report.changes) > 40
    assert all(change.share in (0, None) for change in report.changes)


@pytest.mark.parametrize(
    ("path", "metric"),
    [
        (("memory", "stages", "steady", "anonymous"), "anonymous memory"),
        (("memory", "stages", "steady", "peak_rss"), "peak RSS"),
        (("memory", "total_proportional"), "PSS of all processes"),
        (("cold_start", "total"), "cold start"),
        (("latencies", 1, "ratios", "torch-dense", "median"), "latency 1 x 512, times torch-dense's"),
        (("loss", "tokens", "relative_l2"), "loss"),
    ],
)
def test_what_grows_beyond_the_tolerance_is_worse(path: tuple[str | int, ...], metric: str, before: Document) -> None:
    assert worse(compared(before, grow(*path, factor=1.2))) == [("onnx", metric)]
    assert worse(compared(before, grow(*path, factor=1.2), tolerance=0.25)) == []
    assert worse(compared(before, grow(*path, factor=0.5))) == []


def test_pooled_vectors_are_compared_too(before: Document) -> None:
    for subject in before["subjects"]:
        subject["loss"] |= {"pooled": subject["loss"]["tokens"], "tokens": None, "padding": None}
        if subject["name"] == "pt2":
            subject["loss"]["pooled"] = None
    assert worse(compared(before, grow("loss", "pooled", "relative_l2", factor=1.2))) == [("onnx", "loss, pooled")]
    assert worse(compared(before, grow("loss", "pooled", "relative_l2", factor=0.5))) == []


def test_rounding_is_no_regression_and_a_wrong_result_is(before: Document) -> None:
    drift = ("drift", "tokens", "relative_l2")
    assert worse(compared(before, grow(*drift, factor=1.5))) == []  # 1.4e-6 to 2.1e-6
    assert worse(compared(before, grow(*drift, factor=1000))) == [("onnx", "drift")]


def test_a_slower_machine_is_no_regression(before: Document) -> None:
    def slow(document: Document) -> None:
        for subject in document["subjects"]:
            for latency in subject["latencies"]:
                latency["median"] *= 3

    assert worse(compared(before, slow)) == []


def test_times_are_compared_where_neither_has_pytorchs(before: Document) -> None:
    for subject in before["subjects"]:
        for latency in subject["latencies"]:
            latency["ratios"] = {}
    before["subjects"][0]["latencies"] = before["subjects"][1]["latencies"] = []
    report = compared(before, grow("latencies", 0, "median", factor=2))
    assert worse(report) == [("onnx", "latency 1 x 77")]


def test_what_is_no_longer_measured_is_worse(before: Document) -> None:
    def lose(document: Document) -> None:
        del document["subjects"][2]

    lost = worse(compared(before, lose, tolerance=9.0))
    assert {subject for subject, _ in lost} == {"onnx"}
    assert len(lost) >= 8

    def unmeasure(document: Document) -> None:
        document["subjects"][2]["loss"] = None

    report = compared(before, unmeasure, tolerance=9.0)
    assert worse(report) == [("onnx", "loss")]
    assert next(change for change in report.changes if change.regressed).after is None


def test_what_is_newly_measured_is_no_regression(before: Document) -> None:
    after = copy.deepcopy(before)
    del before["subjects"][2]
    report = compare(before, after, 0.0)
    assert report.passed
    assert any(change.subject == "onnx" and change.before is None for change in report.changes)


def test_another_machine_bundle_or_way_of_measuring_is_noted(before: Document) -> None:
    def change(document: Document) -> None:
        document["machine"]["cpu"] = "another"
        document["settings"]["threads"] = 3
        document["bundle"]["dtype"] = "bf16"
        document["bundle"]["plan"]["layers"][0]["attention"] = None

    assert compared(before, change).notes == (
        "another machine: cpu was AMD EPYC 9654 96-Core Processor, is another",
        "measured otherwise: threads was 16, is 3",
        "another bundle: dtype was fp32, is bf16",
        "another plan",
    )


def test_measurements_of_every_kind_can_be_read(tmp_path: Path) -> None:
    for make in (full, gpu, nothing, with_failures, without_reference):
        file = tmp_path / "measurement.json"
        file.write_text(make().to_json())
        document = read_measurement(file)
        assert compare(document, document, 0.0).passed


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "is not a measurement of this version"),
        ('{"format": "skrr-measurement/2"}', "is not a measurement of this version"),
        ("[" * 100_000, "is not JSON"),
    ],
)
def test_a_file_that_is_no_measurement_is_refused(content: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "measurement.json"
    file.write_text(content)
    with pytest.raises(InputError, match=message):
        read_measurement(file)


def test_a_number_where_none_can_be_is_refused(before: Document, tmp_path: Path) -> None:
    before["subjects"][2]["memory"]["stages"]["steady"]["anonymous"] = "a lot"
    file = tmp_path / "measurement.json"
    file.write_text(json.dumps(before))
    with pytest.raises(InputError, match=r"subjects\[2\].memory.stages.steady.anonymous: 'a lot' is not of type"):
        read_measurement(file)


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file or directory"):
        read_measurement(tmp_path / "nowhere.json")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="is not JSON"):
        read_measurement(tmp_path / "binary")


@pytest.mark.parametrize("tolerance", [-0.1, float("nan"), float("inf")])
def test_a_tolerance_that_is_no_share_is_refused(tolerance: float, before: Document) -> None:
    with pytest.raises(InputError, match="the tolerance must be a number from 0 on"):
        compare(before, before, tolerance)
