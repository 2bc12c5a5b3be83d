"""JSON from anywhere, read strictly: what parsers read in different ways is refused."""

from __future__ import annotations

import json
import math
from typing import Any


def loads(text: str) -> Any:
    """Parse a document.

    Raises:
        ValueError: it is not JSON, has a key twice in one object, or a number that is none or too large.
        RecursionError: it is nested too deeply.
    """
    return json.loads(text, object_pairs_hook=_unique_keys, parse_constant=_no_constant, parse_float=_finite)


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Parsers differ in which of two values they take."""
    keys: dict[str, Any] = {}
    for key, value in pairs:
        if key in keys:
            raise ValueError(f"the key '{key}' stands twice in one object")
        keys[key] = value
    return keys


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number in JSON")


def _finite(text: str) -> float:
    if not math.isfinite(float(text)):
        raise ValueError(f"the number {text[:20]} is too large")
    return float(text)
