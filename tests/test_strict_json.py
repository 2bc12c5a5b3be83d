"""Strict JSON: what json reads, less what parsers read in different ways."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skrr_export import strict_json

DOCUMENTS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(DOCUMENTS)
def test_every_document_is_read_as_it_is(document: object) -> None:
    assert strict_json.loads(json.dumps(document)) == document


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"a": 1, "a": 1}', "the key 'a' stands twice in one object"),
        ('[{"b": {"a": 1, "c": 2, "a": 3}}]', "the key 'a' stands twice in one object"),
        ("[NaN]", "NaN is not a number in JSON"),
        ("[-Infinity]", "-Infinity is not a number in JSON"),
        ("[1e999]", "the number 1e999 is too large"),
        ("", "Expecting value"),
    ],
)
def test_what_parsers_read_in_different_ways_is_refused(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        strict_json.loads(text)
