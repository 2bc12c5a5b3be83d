"""Reading what a plan says about how it was found."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skrr_export.page.record import (
    Calibration,
    Curve,
    Discrepancy,
    Record,
    ReuseStep,
    Step,
    incomparable,
    printable,
    read_record,
)
from skrr_export.plan import Plan
from tests.page.provenances import ANYTHING, PROVENANCES, SPACE, provenance


def read(document: Any) -> Record:
    """Read the provenance of a plan of four layers."""
    return read_record(Plan("t5", ((0, 0), (1, 1), (2, 2), (3, 3)), document))


def test_what_a_search_writes_is_read() -> None:
    assert read(provenance()) == Record(
        tool="skrr-export 0.1.0",
        method="skrr+",
        wanted=0.4,
        reached=0.419,
        discrepancy=Discrepancy(0.0123, 0.0101, 0.0022, 0.3, SPACE),
        calibration=Calibration("flux.1", 391, 70234, 3, "a3" * 32),
        settings={"beam": "3", "granularity": "sub-block", "reuse": "yes", "seed": "0", "dtype": "fp32"},
        checkpoint="text_encoder_2",
        checkpoint_sha256="7c" * 32,
        order=(6, 3, 0),
        curves=(
            Curve("skip", ((0.1, 0.001), (0.3, 0.006), (0.419, 0.02))),
            Curve("skip + re-use", ((0.1, 0.001), (0.3, 0.005), (0.419, 0.0123))),
        ),
        steps=(
            Step((6,), 0.001, {"6": 0.001, "4": 0.0014, "1": 0.0012}, {"7": 0.2}),
            Step((3,), 0.005, {"3": 0.005, "0": 0.0055}, {}),
            Step((0,), 0.0123, {}, {}),
        ),
        reuses=(ReuseStep(3, 5, 0.0153, 0.0123), ReuseStep(0, 2, 0.0128, 0.0123)),
        evaluated=123_456_789,
        naive=987_654_312,
        versions={"torch": "2.13.0", "transformers": "5.23.0"},
    )


def test_a_plan_may_say_nothing() -> None:
    assert read({}) == Record()
    assert read({}).headline() is None


@pytest.mark.parametrize("key", provenance())
def test_every_part_may_be_missing(key: str) -> None:
    whole, part = read(provenance()), read({name: value for name, value in provenance().items() if name != key})
    changed = [
        field.name for field in dataclasses.fields(Record) if getattr(whole, field.name) != getattr(part, field.name)
    ]
    fields = {"sparsity": ["wanted", "reached"], "evaluations": ["evaluated", "naive"]}
    assert changed == fields.get(key, ["checkpoint", "checkpoint_sha256"] if key == "checkpoint" else [key])


@given(PROVENANCES | st.dictionaries(st.sampled_from(sorted(provenance())), ANYTHING))
def test_any_provenance_can_be_read(document: dict[str, Any]) -> None:
    record = read(document)
    _check_value(dataclasses.asdict(record))
    for unit in [*record.order, *(unit for step in record.steps for unit in step.units)]:
        assert 0 <= unit < 8
    for curve in record.curves:
        assert curve.points
        assert list(curve.points) == sorted(curve.points, key=lambda point: point[0])
        assert all(0 <= sparsity <= 1 and discrepancy >= 0 for sparsity, discrepancy in curve.points)
    headline = record.headline()
    assert headline is None or (headline.isascii() and headline.isprintable())


def _check_value(value: Any) -> None:
    if isinstance(value, dict):
        for key, part in value.items():
            _check_value(key)
            _check_value(part)
    elif isinstance(value, list | tuple):
        for part in value:
            _check_value(part)
    elif isinstance(value, str):
        assert value.isprintable()
        assert value.strip() == value != ""
        assert len(value) <= 201
    elif isinstance(value, float):
        assert math.isfinite(value)
        assert abs(value) <= 1e30
    else:
        assert value is None or (isinstance(value, int) and 0 <= value < 10**18)


@pytest.mark.parametrize(
    ("part", "read_as"),
    [
        (True, None),
        ("0.5", None),
        (None, None),
        ([0.5], None),
        (float("nan"), None),
        (float("inf"), None),
        (1e31, None),
        (10**400, None),
        (-0.1, None),
        (1, 1.0),
        (0, 0.0),
        (5e-324, 0.0),
    ],
)
def test_what_counts_as_a_discrepancy(part: Any, read_as: float | None) -> None:
    assert read({"discrepancy": {"value": part}}).discrepancy.value == read_as


@pytest.mark.parametrize("reached", [-0.1, 1.1, "40%", True])
def test_a_sparsity_is_a_share(reached: Any) -> None:
    assert read({"sparsity": {"wanted": 0.4, "reached": reached}}) == Record(wanted=0.4)


def test_points_that_are_none_are_left_out() -> None:
    points = [[0.3, 1], [0.1, 2], [0.2], [0.2, -1], [2, 1], "ab", None, [0.2, float("nan")], {"0": 1}]
    assert read({"curves": [{"points": points}, {"name": "none", "points": []}]}).curves == (
        Curve("curve", ((0.1, 2.0), (0.3, 1.0))),
    )


def test_units_that_the_encoder_lacks_are_left_out() -> None:
    assert read({"order": [7, 8, -1, "3", 3.0, True, 2]}).order == (7, 2)
    reuses = [{"unit": 0, "source": 8}, {"unit": 0, "source": 3}, {"unit": 4, "source": 2}]
    assert read({"reuses": reuses}).reuses == (ReuseStep(4, 2, None, None),)
    assert read({"steps": [{"units": [9], "D": 1}, {"units": [4]}]}).steps == (Step((4,), None, {}, {}),)


@pytest.mark.parametrize(
    ("document", "order"),
    [
        ({"order": "2, 4,1", "drop": 2}, (2, 4)),
        ({"order": "2,4,1"}, (2, 4, 1)),
        ({"order": "2,4,x", "drop": 2}, ()),
        ({"order": "2,44", "drop": 2}, (2,)),
    ],
)
def test_an_order_may_be_in_the_notation_of_the_command_line(document: dict[str, Any], order: tuple[int, ...]) -> None:
    assert read(document).order == order


def test_texts_are_on_one_line_and_not_too_long() -> None:
    assert read({"method": "a\nb\x1b[31m"}).method == "a\ufffdb\ufffd[31m"
    assert read({"method": "  "}).method is None
    assert read({"method": "x" * 1000}).method == "x" * 200 + "…"
    assert printable("\udcff\u202e") == "\ufffd\ufffd"


def test_settings_are_written_out() -> None:
    settings = {"a": [1, True, "x", [2], {}], "b": 0.25, "c": False, "d": {"e": 1}, "f": None, "g": float("inf")}
    assert read({"settings": settings}).settings == {"a": "1, yes, x", "b": "0.25", "c": "no"}


def test_the_other_candidates_of_a_step() -> None:
    candidates = {"6": 3.0, "4": 2.0, "1": 1.0}
    assert Step((6,), 3.0, candidates, {}).others() == [("1", 1.0), ("4", 2.0)]
    assert Step((4, 5), 3.0, {"4,5": 3.0, "6,7": 4.0}, {}).others() == [("6,7", 4.0)]


def test_a_gain_needs_both_numbers() -> None:
    assert ReuseStep(4, 2, 0.5, 0.25).gain == 0.25
    assert ReuseStep(4, 2, None, 0.25).gain is ReuseStep(4, 2, 0.5, None).gain is None


def test_the_headline_says_what_is_known() -> None:
    assert read(provenance()).headline() == (
        "method Skrr+, sparsity 41.9% (40.0% wanted), D 0.0123 (4.1% of the dense mean square)"
    )
    assert read({"method": "other"}).headline() == "method other"
    assert read({"discrepancy": {"value": 0.5}}).headline() == "D 0.5"
    assert read({"method": "日本", "sparsity": {"reached": 0.5}}).headline() == "method ??, sparsity 50.0%"


@pytest.mark.parametrize(
    ("key", "changes", "reason"),
    [
        ("calibration", {"tokens": 1}, None),
        ("calibration", {"sha256": "other"}, "other calibration prompts"),
        ("calibration", {"sha256": None}, "what it was measured on is not recorded"),
        ("discrepancy", {"value": 1}, None),
        ("discrepancy", {"space": "embedding"}, "another place of measurement"),
        ("discrepancy", {"space": 5}, "what it was measured on is not recorded"),
        ("checkpoint", {"sha256": "other"}, "another checkpoint"),
        ("checkpoint", {"sha256": None}, None),
    ],
)
def test_discrepancies_are_compared_only_if_they_mean_the_same(
    key: str, changes: dict[str, Any], reason: str | None
) -> None:
    ours, theirs = provenance(), provenance()
    theirs[key].update(changes)
    assert incomparable(read(ours), read(theirs)) == reason
    assert incomparable(read(theirs), read(ours)) == reason
