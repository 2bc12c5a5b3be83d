"""How the report writes numbers."""

from __future__ import annotations

import pytest

from skrr_export.page.report import values
from tests.page.measurements import SKIPPED, subject
from tests.page.test_markup import plain


@pytest.mark.parametrize(
    ("size", "written"), [(0, "0"), (9081 << 20, "9,081"), (10 << 20, "10"), (6 << 20, "6.0"), (4096, "0.00391")]
)
def test_sizes_are_in_mib(size: int, written: str) -> None:
    assert values.mib(size) == written


@pytest.mark.parametrize(
    ("seconds", "written"), [(0.0123, "12.3 ms"), (0.999, "999 ms"), (1.0, "1.00 s"), (1312.4, "1,312 s"), (0, "0 ms")]
)
def test_times_have_the_unit_that_suits_them(seconds: float, written: str) -> None:
    assert values.span(seconds) == written


@pytest.mark.parametrize(
    ("cosine", "written"),
    [
        (1, "1"),
        (1 + 1e-15, "1"),
        (1 - 2**-30, "1 - 9.31x10⁻¹⁰"),
        (0.9951, "1 - 0.00490"),
        (0.9771, "0.9771"),
        (0.5, "0.5000"),
        (0, "0"),
        (-1, "-1"),
        (-0.25, "-0.2500"),
    ],
)
def test_a_cosine_next_to_one_is_written_by_what_it_lacks(cosine: float, written: str) -> None:
    assert plain(values.cosine(cosine)) == written


def test_what_is_missing_is_said_to_be() -> None:
    assert values.cell(None, str) == '<td class="n absent">not measured</td>'
    assert values.cell(0, str) == '<td class="n">0</td>'


def test_reasons() -> None:
    assert values.reason(subject("onnx", "-")) == "not measured"
    assert values.reason(subject("onnx", "-", error="it died")) == "not measured: it died"
    assert values.reason(subject("onnx", "-", error=SKIPPED, skipped=True)) == f"skipped: {SKIPPED}"
