"""Prompts to compare encoders on and to search plans with: those shipped with the package, or a file of the user's."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from skrr_export.errors import InputError

FIELDS = ("prompt", "caption", "text")
"""Columns of a CSV file, and keys of a JSON object, that hold the prompt; the first that is there is taken."""


def default_prompts() -> list[str]:
    """The shipped prompts: short, long, counting, attributes, relations, quoted text, styles, scripts, emoji, empty."""
    return _shipped("prompts.txt")


def calibration_prompts() -> list[str]:
    """The prompts a search uses where it is given none: the shipped long captions, then the shipped prompts.

    Each once, and without the null prompt.
    """
    return [prompt for prompt in dict.fromkeys([*_shipped("captions.txt"), *default_prompts()]) if prompt]


def spread(prompts: Sequence[str], count: int | None) -> list[str]:
    """So many of the prompts, evenly spread; `None`: all.

    Raises:
        InputError: there is none.
    """
    if not prompts:
        raise InputError("no prompts to calibrate on")
    if count is None or count >= len(prompts):
        return list(prompts)
    return [prompts[index * len(prompts) // count] for index in range(count)]


def read_prompts(path: Path) -> list[str]:
    """Read a file of prompts; its suffix tells the format.

    `.csv`: the column named prompt, caption or text, or the only column. `.jsonl`: a JSON string a line, or an object
    with such a key; blank lines are skipped. Anything else: a prompt a line. An empty prompt is the null prompt, and
    newlines within a prompt become spaces.

    Raises:
        InputError: it cannot be read, is malformed, or holds no prompts.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")  # without the mark that Windows editors put first
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise InputError(f"cannot read the prompts in {path}: {reason}") from error
    try:
        prompts = [_one_line(prompt) for prompt in _PARSERS.get(path.suffix.lower(), _lines)(text)]
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    if not prompts:
        raise InputError(f"{path} holds no prompts")
    return prompts


def _shipped(name: str) -> list[str]:
    return _lines(resources.files("skrr_export").joinpath("data", name).read_text(encoding="utf-8"))


def _lines(text: str) -> list[str]:
    return text.removesuffix("\n").split("\n") if text else []


def _one_line(prompt: str) -> str:
    return re.sub(r"\r\n|\r|\n", " ", prompt)


def _from_csv(text: str) -> Iterator[str]:
    records = list(_csv_records(text))
    if not records:
        return
    line, first = records[0]
    header = [name.strip().lower() for name in first]
    named = [name for name in FIELDS if name in header]
    if not named and len(header) > 1:
        raise InputError(f"line {line}: none of the {len(header)} columns is named prompt, caption or text")
    column = header.index(named[0]) if named else 0
    for line, record in records[1:] if named else records:
        if len(record) != len(header):
            raise InputError(
                f"line {line}: {len(record)} fields, where the first line has {len(header)}; "
                "a prompt that holds a comma needs quotes"
            )
        yield record[column]


def _csv_records(text: str) -> Iterator[tuple[int, list[str]]]:
    """The records that are not blank, each with the number of the line on which it begins."""
    reader = csv.reader(io.StringIO(text), strict=True)
    line = 1
    try:
        for record in reader:
            if record:
                yield line, record
            line = reader.line_num + 1
    except csv.Error as error:
        raise InputError(f"line {line}: {error}") from error


def _from_jsonl(text: str) -> Iterator[str]:
    for number, line in enumerate(_lines(text), start=1):
        if line.strip():
            try:
                yield _json_prompt(json.loads(line))
            except json.JSONDecodeError as error:  # whose own message speaks of line 1
                raise InputError(f"line {number}: {error.msg} (column {error.colno})") from error
            except (ValueError, RecursionError) as error:
                raise InputError(f"line {number}: {error}") from error


def _json_prompt(document: Any) -> str:
    if isinstance(document, dict):
        document = next((document[name] for name in FIELDS if name in document), None)
    if not isinstance(document, str):
        raise ValueError("not a JSON string, nor an object whose prompt, caption or text is one")
    document.encode()  # half a surrogate pair is no text, and tokenizers fail on it
    return document


_PARSERS: Mapping[str, Callable[[str], Iterable[str]]] = {".csv": _from_csv, ".jsonl": _from_jsonl}
