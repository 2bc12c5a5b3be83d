"""How much of an order a sparsity needs, and how sparsities are read."""

from __future__ import annotations

import math

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from skrr_export.errors import InputError, PlanError
from skrr_export.search.goal import parse_sparsities, units_needed

SHARES = st.floats(0, 1, exclude_min=True, exclude_max=True)
NEVER_FALLING = st.lists(SHARES, min_size=1, max_size=48).map(sorted)
SLACK = 1e-8
"""Within this of the limit, either answer is right."""


def message(sparsities: list[float], wanted: float) -> str:
    """What is said of a sparsity that cannot be reached."""
    with pytest.raises(PlanError) as caught:
        units_needed(sparsities, wanted)
    return str(caught.value)


@given(NEVER_FALLING, SHARES)
def test_the_units_reach_the_sparsity_and_one_fewer_does_not(sparsities: list[float], wanted: float) -> None:
    assume(wanted <= sparsities[-1])
    needed = units_needed(sparsities, wanted)
    assert 1 <= needed <= len(sparsities)
    assert sparsities[needed - 1] >= wanted - 0.0005 - SLACK
    if needed > 1:
        assert sparsities[needed - 2] < wanted - 0.0005


@given(NEVER_FALLING, SHARES, SHARES)
def test_more_sparsity_never_needs_fewer_units(sparsities: list[float], one: float, other: float) -> None:
    less, more = sorted([one, other])
    assume(more <= sparsities[-1])
    assert units_needed(sparsities, less) <= units_needed(sparsities, more)


@given(NEVER_FALLING, st.data())
@example([0.9974999999999999], None)  # 0.998 - 0.0005 is a little more than this
def test_a_printed_sparsity_is_reached_by_what_it_was_printed_of(
    sparsities: list[float], data: st.DataObject | None
) -> None:
    index = data.draw(st.integers(0, len(sparsities) - 1)) if data else 0
    printed = round(float(f"{sparsities[index]:.1%}".rstrip("%")) / 100, 3)
    assume(0 < printed < 1)
    assert units_needed(sparsities, printed) <= index + 1


@pytest.mark.parametrize(
    ("wanted", "needed"),
    [(0.0001, 1), (0.1, 1), (0.1004, 1), (0.1006, 2), (0.2, 2), (0.2004, 2), (0.2006, 4), (0.3, 4), (0.3004, 4)],
)
def test_the_limit_lies_half_a_printed_step_below(wanted: float, needed: int) -> None:
    assert units_needed([0.1, 0.2, 0.2, 0.3], wanted) == needed


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        (0.3006, "sparsity 30.1% cannot be reached: the nearest is 30.0%"),
        (0.5, "sparsity 50.0% cannot be reached: the nearest is 30.0%"),
        (1.0, "sparsity 100.0% cannot be reached: the nearest is 30.0%"),
        (41.9, "sparsity 4190.0% cannot be reached: the nearest is 30.0%"),
        (math.inf, "sparsity inf% cannot be reached: the nearest is 30.0%"),
        (0.0, "sparsity 0.0% cannot be reached: the nearest is 10.0%"),
        (-0.2, "sparsity -20.0% cannot be reached: the nearest is 10.0%"),
        (-math.inf, "sparsity -inf% cannot be reached: the nearest is 10.0%"),
        (math.nan, "a sparsity is a number, not nan; 10.0% to 30.0% can be reached"),
    ],
)
def test_what_cannot_be_reached_is_refused_with_what_can(wanted: float, words: str) -> None:
    assert message([0.1, 0.2, 0.3], wanted) == words


def test_a_refusal_never_names_one_sparsity_twice() -> None:
    assert message([0.48551], 0.48649) == "sparsity 48.649% cannot be reached: the nearest is 48.551%"


def test_the_whole_encoder_cannot_be_asked_for() -> None:
    """Even where it could be dropped: what remains would be no encoder."""
    with pytest.raises(PlanError):
        units_needed([0.5, 1.0], 1.0)


@pytest.mark.parametrize("wanted", [0.1, math.nan])
def test_nothing_to_drop_reaches_nothing(wanted: float) -> None:
    assert message([], wanted) == "no sparsity can be reached: there is nothing to drop"


# The list of sparsities on the command line


@given(st.lists(SHARES, min_size=1, unique=True), st.sampled_from([",", ", ", " ,\t"]))
def test_sparsities_are_read_as_written(sparsities: list[float], separator: str) -> None:
    assert parse_sparsities(separator.join(map(repr, sparsities))) == tuple(sparsities)


@pytest.mark.parametrize(
    ("text", "sparsities"),
    [
        ("0.25,0.33,0.42", (0.25, 0.33, 0.42)),
        ("0.42,0.25", (0.42, 0.25)),
        (".5", (0.5,)),
        ("5e-1", (0.5,)),
        ("00.50", (0.5,)),
        (" 0.419 ", (0.419,)),
    ],
)
def test_the_order_and_the_ways_to_write_a_number_are_kept(text: str, sparsities: tuple[float, ...]) -> None:
    assert parse_sparsities(text) == sparsities


NO_NUMBERS = [
    "",
    "a",
    "42%",
    "nan",
    "inf",
    "-0.1",
    "+0.1",
    "0.1_5",
    "\u0660.\u0665",
    "0x1p-1",
    ".",
    "1/2",
    "0.2 0.3",
    "0.1e",
]


@pytest.mark.parametrize("item", NO_NUMBERS)
@pytest.mark.parametrize("text", ["{}", "0.1,{}", "{},0.1"])
def test_what_is_no_number_is_named(item: str, text: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_sparsities(text.format(item))
    assert str(caught.value) == f"{item!r} is not a sparsity, a number above 0 and below 1 such as 0.42"


@pytest.mark.parametrize("item", ["0", "0.0", "1", "1.", "1.0", "42", "41.9", "1e-999", "1e999", "9" * 5000])
def test_what_is_no_share_is_named(item: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_sparsities(f"0.3,{item}")
    assert str(caught.value).startswith(f"sparsity {item} is out of range: it is a share above 0 and below 1")


@pytest.mark.parametrize("text", ["0.3,0.3", "0.3,0.5,0.30", ".3,0.4,3e-1"])
def test_a_sparsity_that_stands_twice_is_named(text: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_sparsities(text)
    assert str(caught.value) == f"sparsity 0.3 stands twice in '{text}'"


@given(st.text() | st.text("0123456789.,eE+- \n"))
def test_any_text_is_sparsities_or_an_error_of_one_line(text: str) -> None:
    try:
        sparsities = parse_sparsities(text)
    except InputError as error:
        said = str(error)
    else:
        assert all(0 < sparsity < 1 for sparsity in sparsities)
        return
    assert len(said.splitlines()) == 1
