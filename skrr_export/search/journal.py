"""What a search has decided so far, on disk, so that a killed search goes on where it stood.

A journal is a JSON-lines file: first what the search is about, then one record for each decision. A search is
deterministic, so going on means running it again and taking each decision that is on record from there instead of
measuring anew.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from skrr_export.errors import InputError, OutputError, SkrrError
from skrr_export.search.workers import Workers
from skrr_export.staging import disk_errors

FORMAT = "skrr-journal/1"


class Journal:
    """Decisions by name. Used as a context manager, it lets go of its file at the end, and leaves none without any."""

    def __init__(self, path: Path | None, subject: Mapping[str, Any], workers: Workers, *, resume: bool) -> None:
        """Begin a journal, or go on with one.

        Args:
            path: of the file; `None`: keep nothing.
            subject: everything the decisions depend on, by name; JSON values.
            workers: the first of them reads and writes, all get the same records.
            resume: go on with the journal if there is one.

        Raises:
            InputError: there is a journal and `resume` is not set, or it is about another search, or damaged.
            OutputError: it cannot be written.
        """
        self.path = path
        self._workers = workers
        self._records: dict[str, Any] = {}
        self._file: BinaryIO | None = None
        if path is None:
            return
        refused: SkrrError | None = None
        if workers.rank == 0:
            try:
                self._open(path, {"format": FORMAT, **subject}, resume=resume)
            except BaseException as error:
                self._leave()
                if not isinstance(error, SkrrError):
                    raise
                refused = error
        refused, self._records = workers.agree((refused, self._records))
        if refused is not None:
            raise refused

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self._leave()

    def remember(self, name: str, decide: Callable[[], Any]) -> Any:
        """The decision of this name: from the record, or taken now and put on record.

        Args:
            name: unique in the search.
            decide: takes the decision; returns a JSON value.

        Raises:
            OutputError: the record cannot be written.
        """
        if name not in self._records:
            value = json.loads(json.dumps(decide()))  # what a resumed search will read
            self._records[name] = value
            try:
                self._append({"name": name, "value": value})
            except OutputError:
                del self._records[name]
                raise
        return self._records[name]

    def _leave(self) -> None:
        if self._file is not None and self.path is not None:
            with suppress(OSError):  # a full disk can refuse the last flush; the error is already under way
                self._file.close()
            if not self._records:
                self.path.unlink(missing_ok=True)

    def _open(self, path: Path, subject: dict[str, Any], *, resume: bool) -> None:
        with disk_errors(path):
            if not path.exists():
                self._file = path.open("xb")
                self._append(subject)
                return
        if not path.is_file():
            raise InputError(f"{path} is not a file, and a search keeps its journal there; give another output")
        if not resume:
            raise InputError(f"{path} is the journal of an unfinished search: --resume goes on with it, or remove it")
        with disk_errors(path):
            content = path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]  # a record that was being written when the search died is not
        lines = _parse(path, whole)
        if lines:
            _check_subject(path, lines[0], subject)
        self._records = {line["name"]: line["value"] for line in lines[1:]}
        with disk_errors(path):
            self._file = path.open("r+b")
            self._file.truncate(len(whole))
            self._file.seek(len(whole))
        if not lines:
            self._append(subject)

    def _append(self, record: Mapping[str, Any]) -> None:
        if self._file is not None and self.path is not None:
            with disk_errors(self.path):
                self._file.write(json.dumps(record).encode() + b"\n")
                self._file.flush()
                os.fsync(self._file.fileno())


def _parse(path: Path, content: bytes) -> list[Any]:
    lines = []
    for number, text in enumerate(content.splitlines()):
        try:
            line = json.loads(text)
            if number and not (isinstance(line, dict) and isinstance(line["name"], str) and "value" in line):
                raise ValueError("not a record")
        except (ValueError, KeyError, RecursionError) as error:
            raise InputError(f"{path} is damaged in line {number + 1}; remove it to search anew") from error
        lines.append(line)
    return lines


def _check_subject(path: Path, found: Any, subject: dict[str, Any]) -> None:
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise InputError(f"{path} is not the journal of a search")
    different = sorted(key for key in found.keys() | subject.keys() if found.get(key) != subject.get(key))
    if different:
        key = different[0]
        raise InputError(
            f"{path} is the journal of another search: its {key} is {_short(found.get(key))}, "
            f"this one's {_short(subject.get(key))}; give another output, or remove it"
        )


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
