"""Protocol buffers' text format, as far as a model configuration needs it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeAlias


class Name(str):
    """A value that is written without quotation marks: a member of an enumeration."""

    __slots__ = ()


Value: TypeAlias = "str | int | Message | Sequence[str] | Sequence[int] | Sequence[Message]"
Message: TypeAlias = Mapping[str, Value]


def to_text(message: Message) -> str:
    """Write a message; a field that holds a sequence is repeated."""
    return "\n".join(_lines(message)) + "\n"


def entries(mapping: Mapping[str, Value]) -> list[Message]:
    """A field of a map type, which the format writes as a repeated message."""
    return [{"key": key, "value": value} for key, value in mapping.items()]


def _lines(message: Message) -> Iterator[str]:
    for name, value in message.items():
        for each in value if isinstance(value, Sequence) and not isinstance(value, str) else [value]:
            if isinstance(each, Mapping):
                yield f"{name} {{"
                yield from (f"  {line}" for line in _lines(each))
                yield "}"
            else:
                yield f"{name}: {_scalar(each)}"


def _scalar(value: str | int) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, int | Name) else json.dumps(value, ensure_ascii=False)
