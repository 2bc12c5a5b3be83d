"""Elements, and numbers for people."""

from __future__ import annotations

import math
from html import unescape

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skrr_export.page.markup import Markup, column, element, joined, number, percent, tick


def plain(text: str) -> str:
    """A written number with the signs of a keyboard."""
    return text.replace("\N{MULTIPLICATION SIGN}", "x").replace("\N{MINUS SIGN}", "-")


@given(st.text(), st.text())
def test_text_cannot_become_markup(text: str, value: str) -> None:
    written = element("p", text, title=value)
    assert isinstance(written, Markup)
    opening, _, rest = written.removeprefix('<p title="').partition('">')
    assert not set(opening) & set('<>"')
    assert not set(rest.removesuffix("</p>")) & set('<>"')
    assert unescape(opening) == value
    assert unescape(rest.removesuffix("</p>")) == text


def test_markup_is_taken_as_it_is() -> None:
    assert element("p", element("b", "a<b"), " & c") == "<p><b>a&lt;b</b> &amp; c</p>"
    assert joined([Markup("<br>"), "<br>"], ", ") == "<br>, &lt;br&gt;"


def test_an_image_has_no_end() -> None:
    assert element("img", src="data:", alt='"') == '<img src="data:" alt="&quot;">'


def test_attributes_are_named_as_in_html() -> None:
    assert element("line", x1=1.5, class_="a", stroke_dasharray="5 4", title=None) == (
        '<line x1="1.5" class="a" stroke-dasharray="5 4"></line>'
    )


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (0, "0"),
        (0.0123, "0.0123"),
        (0.012, "0.0120"),
        (1, "1.00"),
        (123.4, "123"),
        (999.7, "1,000"),
        (123456, "123,456"),
        (0.000012, "1.20x10⁻⁵"),
        (1.5e12, "1.50x10¹²"),
        (-0.5, "-0.500"),
        (-12345, "-12,345"),
        (-2e-7, "-2.00x10⁻⁷"),
    ],
)
def test_numbers_are_written_to_three_digits(value: float, written: str) -> None:
    assert plain(number(value)) == written


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (0, "0"),
        (0.001, "0.001"),
        (0.25, "0.25"),
        (20, "20"),
        (2000, "2,000"),
        (1e-5, "10⁻⁵"),
        (2e-5, "2x10⁻⁵"),
        (1e6, "10⁶"),
    ],
)
def test_round_numbers_are_written_short(value: float, written: str) -> None:
    assert plain(tick(value)) == written


def test_signs_are_those_of_print() -> None:
    assert number(-2e-7) == "\N{MINUS SIGN}2.00\N{MULTIPLICATION SIGN}10⁻⁷"


def test_shares_are_percentages() -> None:
    assert [percent(share) for share in (0, 0.419, 0.0429, 1)] == ["0%", "41.9%", "4.29%", "100%"]


def test_a_column_has_as_many_decimals_as_its_smallest_number_needs() -> None:
    write = column([0.0123, 0.00101, 0, 1.5])
    assert [write(value) for value in (0.0123, 0.00101, 0, 1.5)] == ["0.0123", "0.0010", "0.0000", "1.5000"]
    assert column([0.0123, 0.456], digits=3)(0.0123) == "0.0123"
    assert plain(column([0.5, -0.25])(-0.25)) == "-0.25"
    assert column([12000, 3500])(12000) == "12,000"
    assert column([])(0.5) == "0.500"


def test_a_column_of_numbers_far_apart_is_written_one_by_one() -> None:
    write = column([1e-9, 0.5])
    assert [plain(write(value)) for value in (1e-9, 0.5)] == ["1.00x10⁻⁹", "0.500"]


SIZES = st.floats(1e-30, 1e30)


@given(st.lists(SIZES | SIZES.map(lambda value: -value) | st.just(0.0), max_size=5))
def test_every_number_is_written_and_to_a_few_letters(values: list[float]) -> None:
    write = column(values)
    for value in values:
        for text in map(plain, (write(value), number(value), tick(value))):
            assert 0 < len(text) <= 16
            assert set(text) <= set("0123456789.,x-⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
        assert (plain(number(value))[0] == "-") == (value < 0)


@given(SIZES)
def test_a_written_number_is_the_number_to_three_digits(value: float) -> None:
    mantissa, _, power = plain(number(value)).replace(",", "").partition("x10")
    exponent = int(power.translate(str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")) or "0")
    assert math.isclose(float(mantissa) * 10.0**exponent, value, rel_tol=0.0051)
