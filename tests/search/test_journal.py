"""A journal gives back what was decided, whatever of its file a crash left, and is about one search only."""

from __future__ import annotations

import json
import os
import pickle
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from skrr_export.errors import InputError, OutputError, SkrrError
from skrr_export.search.journal import FORMAT, Journal
from tests.bundles import examples
from tests.checkpoints import contents

SUBJECT: Mapping[str, Any] = {"method": "skrr", "sparsity": [0.25, 0.5], "denoiser": None, "beam": 3}

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)
"""What decisions are made of; infinity is a D that overflowed."""
RECORDS = st.dictionaries(st.text(), VALUES, max_size=5)


@dataclass
class Processes:
    """Stands for `Workers`: what the first process says is what every other one hears."""

    rank: int = 0
    said: list[bytes] = field(default_factory=list)

    def agree(self, value: Any) -> Any:
        if self.rank == 0:
            self.said.append(pickle.dumps(value))
            return value
        return pickle.loads(self.said.pop(0))


def journal(path: Path | None, *, resume: bool = False, workers: Any = None, **subject: Any) -> Journal:
    return Journal(path, {**SUBJECT, **subject}, workers or Processes(), resume=resume)


def keep(path: Path, records: Mapping[str, Any]) -> bytes:
    """Write a journal anew, and return its file's content."""
    path.unlink(missing_ok=True)
    with journal(path) as kept:
        for name, value in records.items():
            kept.remember(name, lambda value=value: value)
        return path.read_bytes()


def never() -> Any:
    """A decision that is on record and must not be taken again."""
    raise AssertionError("decided again")


def refused(path: Path, error: type[SkrrError] = InputError, **options: Any) -> str:
    """What is said of a journal that cannot be used; what lies there stays."""
    before = contents(path.parent) if path.parent.is_dir() else None
    with pytest.raises(SkrrError) as caught:
        journal(path, **options)
    assert type(caught.value) is error
    assert (contents(path.parent) if path.parent.is_dir() else None) == before
    return str(caught.value)


@pytest.fixture(scope="module", autouse=True)
def no_waiting() -> Iterator[None]:
    """No test cuts the power, and a disk takes milliseconds to promise that it would not matter."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "parent").mkdir()
    return tmp_path / "parent" / "plan.json.journal"


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A journal that every example of a property writes anew."""
    return tmp_path_factory.mktemp("journal") / "plan.json.journal"


# Decisions


@given(RECORDS)
@example({"": None})
@example({"half a surrogate pair: \ud800": "\udfff", "lines\r\n\u2028\x85": "\n"})
@example({"overflow": [float("inf"), -float("inf"), -0.0, 5e-324, 0.1 + 0.2]})
def test_decisions_are_read_back_as_they_were(scratch: Path, records: dict[str, Any]) -> None:
    content = keep(scratch, records)
    assert content.count(b"\n") == 1 + len(records)
    if records:
        with journal(scratch, resume=True) as kept:
            read = {name: kept.remember(name, never) for name in records}
        assert repr(read) == repr(records)  # exactly: 1 is not 1.0, nor 0.0 -0.0
        assert scratch.read_bytes() == content


def test_a_decision_is_taken_once(path: Path) -> None:
    taken: list[int] = []

    def decide() -> int:
        taken.append(1)
        return 7

    with journal(path) as kept:
        assert [kept.remember("step 1", decide) for _ in range(3)] == [7, 7, 7]
        assert kept.remember("step 2", lambda: None) is None
        assert kept.remember("step 2", never) is None  # to decide on nothing is a decision too
    assert len(taken) == 1


@pytest.mark.parametrize("place", ["file", "nowhere"])
def test_a_decision_is_the_same_whether_taken_now_or_read(path: Path, place: str) -> None:
    """Else a resumed search would see lists where the first saw tuples."""
    with journal(path if place == "file" else None) as kept:
        assert repr(kept.remember("x", lambda: {"a": (1, (2.5, None)), 3: True})) == (
            "{'a': [1, [2.5, None]], '3': True}"
        )


def test_nothing_is_written_without_a_path(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parent)
    with journal(None) as kept:
        assert kept.remember("x", lambda: 1) == kept.remember("x", never) == 1
    assert contents(path.parent) == {}


def test_a_decision_is_on_the_disk_before_anybody_acts_on_it(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synchronised: list[bytes] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synchronised.append(path.read_bytes()))
    with journal(path) as kept:
        for number in range(3):
            kept.remember(f"step {number}", lambda number=number: number)
            assert json.loads(synchronised[-1].splitlines()[-1]) == {"name": f"step {number}", "value": number}
    assert len(synchronised) == 4  # the subject comes first
    assert all(later.startswith(earlier) for earlier, later in pairwise(synchronised))


def test_a_decision_that_fails_is_not_on_record(path: Path) -> None:
    with journal(path) as kept:
        kept.remember("x", lambda: 1)
        content = path.read_bytes()
        with pytest.raises(AssertionError, match="decided again"):
            kept.remember("y", never)
        assert path.read_bytes() == content
        assert kept.remember("y", lambda: 2) == 2


# Its file


def test_a_journal_says_what_it_is_about(path: Path) -> None:
    first, *records = keep(path, {"x": [1]}).splitlines()
    assert json.loads(first) == {"format": FORMAT, **SUBJECT}
    assert [json.loads(record) for record in records] == [{"name": "x", "value": [1]}]


def test_a_search_that_decided_nothing_leaves_nothing(path: Path) -> None:
    """So that the command with a mistake in it can be given again, mended, as it stands."""

    def search(kept: Journal) -> None:
        with kept:
            assert path.exists()
            raise InputError("out of reach")

    with pytest.raises(InputError):
        search(journal(path))
    assert contents(path.parent) == {}
    with journal(path):
        pass
    assert contents(path.parent) == {}


@pytest.mark.parametrize("error", [InputError, KeyboardInterrupt, RuntimeError])
def test_what_was_decided_stays_whatever_ends_the_search(path: Path, error: type[BaseException]) -> None:
    def search() -> None:
        with journal(path) as kept:
            kept.remember("x", lambda: 1)
            raise error("no more")

    with pytest.raises(error):
        search()
    with journal(path, resume=True) as kept:
        assert kept.remember("x", never) == 1
    with journal(path, resume=True):  # and takes no decision of its own
        pass
    assert path.read_bytes() == keep(path, {"x": 1})


def test_resuming_without_a_journal_begins_one(path: Path) -> None:
    with journal(path, resume=True) as kept:
        kept.remember("x", lambda: 1)
    assert path.read_bytes() == keep(path, {"x": 1})


# What a crash leaves


@examples(60)
@given(RECORDS.filter(bool), st.data())
def test_a_file_cut_at_any_byte_keeps_the_decisions_that_are_whole(
    scratch: Path, records: dict[str, Any], data: st.DataObject
) -> None:
    """And the journal then grows to what it would have been."""
    content = keep(scratch, records)
    cut = data.draw(st.integers(0, len(content)), label="cut")
    tail = data.draw(st.sampled_from([b"", bytes(100), b'{"name": "'] if cut < len(content) else [b""]), label="tail")
    torn = content[: content.rfind(b"\n", 0, cut) + 1] + tail if tail else content[:cut]
    whole = max(content[:cut].count(b"\n") - 1, 0)
    taken: list[str] = []

    def decide(name: str) -> Any:
        taken.append(name)
        return records[name]

    scratch.write_bytes(torn)
    with journal(scratch, resume=True) as kept:
        for name in records:
            kept.remember(name, lambda name=name: decide(name))
        assert taken == list(records)[whole:]
        assert scratch.read_bytes() == content


def test_every_cut_of_one_journal(path: Path) -> None:
    """The property above, without luck: at every byte."""
    records = {"skrr 1": {"candidates": {"0": 0.5, "1": 1e-30}}, "é": None, "terms": [[1, 2]]}
    content = keep(path, records)
    missing: list[str] = []

    def decide(name: str) -> Any:
        missing.append(name)
        return records[name]

    for cut in range(len(content)):
        path.write_bytes(content[:cut])
        missing.clear()
        with journal(path, resume=True) as kept:
            for name in records:
                kept.remember(name, lambda name=name: decide(name))
        assert missing == list(records)[max(content[:cut].count(b"\n") - 1, 0) :], cut
        assert path.read_bytes() == content, cut


def test_a_line_that_was_cut_is_gone_before_the_next_is_written(path: Path) -> None:
    content = keep(path, {"x": 1, "y": 2})
    path.write_bytes(content[:-3])
    with journal(path, resume=True) as kept:
        assert path.read_bytes() == keep(path.with_name("other"), {"x": 1})
        assert kept.remember("y", lambda: 3) == 3
    with journal(path, resume=True) as kept:
        assert (kept.remember("x", never), kept.remember("y", never)) == (1, 3)


# Journals that cannot be used


def test_an_unfinished_search_is_not_begun_anew_unasked(path: Path) -> None:
    keep(path, {"x": 1})
    assert refused(path) == f"{path} is the journal of an unfinished search: --resume goes on with it, or remove it"


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"method": "skrr+"}, 'its method is "skrr", this one\'s "skrr+"'),
        ({"sparsity": [0.25]}, "its sparsity is [0.25, 0.5], this one's [0.25]"),
        ({"denoiser": "ab" * 32}, f"its denoiser is null, this one's \"{'ab' * 28}..."),
        ({"beam": 3.5}, "its beam is 3, this one's 3.5"),
        ({"added": 1}, "its added is null, this one's 1"),
        ({"sparsity": [0.1], "beam": 4}, "its beam is 3, this one's 4"),
    ],
)
def test_the_journal_of_another_search(path: Path, changed: dict[str, Any], words: str) -> None:
    keep(path, {"x": 1})
    message = refused(path, resume=True, **changed)
    assert message == f"{path} is the journal of another search: {words}; give another output, or remove it"


@pytest.mark.parametrize("first", [b"[]", b"{}", b'{"format": "skrr-plan/1"}', b'"text"', b"7"])
def test_a_file_that_is_no_journal(path: Path, first: bytes) -> None:
    path.write_bytes(first + b"\n")
    assert refused(path, resume=True) == f"{path} is not the journal of a search"


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{",
        b"7",
        b"[]",
        b"\xff",
        b"\x00\x00",
        b'{"name": 1, "value": 2}',
        b'{"name": "x"}',
        b'{"value": 2}',
        b"[" * 100_000,
    ],
    ids=lambda line: repr(line[:30]),
)
@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_damaged_line_is_named(path: Path, line: bytes, number: int) -> None:
    lines = keep(path, {"x": 1, "y": 2}).splitlines()
    lines[number - 1] = line
    path.write_bytes(b"\n".join(lines) + b"\n")
    if number == 1 and line in {b"7", b"[]", b'{"name": 1, "value": 2}', b'{"name": "x"}', b'{"value": 2}'}:
        assert refused(path, resume=True) == f"{path} is not the journal of a search"
    else:
        assert refused(path, resume=True) == f"{path} is damaged in line {number}; remove it to search anew"


@pytest.mark.parametrize("kind", ["directory", "pipe"])
@pytest.mark.parametrize("resume", [False, True])
def test_something_else_in_its_place(path: Path, kind: str, resume: bool) -> None:
    if kind == "directory":
        path.mkdir()
    else:
        os.mkfifo(path)  # to read it would wait for ever
    message = refused(path, resume=resume)
    assert message == f"{path} is not a file, and a search keeps its journal there; give another output"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("absent/journal", "No such file or directory"),
        ("file/journal", "Not a directory"),
        ("x" * 300, "File name too long"),
    ],
)
def test_a_place_where_nothing_can_be_written(path: Path, name: str, words: str) -> None:
    (path.parent / "file").write_text("a file")
    place = path.parent / name
    assert refused(place, OutputError, resume=True) == f"cannot write {place}: {words}"


# A full disk


@contextmanager
def no_file_larger_than(nbytes: int) -> Iterator[None]:
    """The system refuses to let any file of this process grow further."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_record_that_does_not_fit_ends_the_search_and_costs_no_other(path: Path) -> None:
    content = keep(path, {"x": 1})

    def go_on(kept: Journal) -> None:
        with kept:
            assert kept.remember("x", never) == 1
            kept.remember("y", lambda: "y" * 100)

    with no_file_larger_than(len(content) + 50), pytest.raises(OutputError) as caught:
        go_on(journal(path, resume=True))
    assert str(caught.value) == f"cannot write {path}: File too large; nothing was changed"
    assert content < path.read_bytes() < content + b"\xff"  # a piece of the record was written
    with journal(path, resume=True) as kept:
        assert path.read_bytes() == content
        assert kept.remember("x", never) == 1
        assert kept.remember("y", lambda: 2) == 2


def test_a_first_record_that_does_not_fit_leaves_nothing(path: Path) -> None:
    def begin(kept: Journal) -> None:
        with kept:
            kept.remember("x", lambda: "x" * 5000)

    with no_file_larger_than(1000), pytest.raises(OutputError, match="File too large"):
        begin(journal(path))
    assert contents(path.parent) == {}


def test_a_journal_that_cannot_even_begin_leaves_nothing(path: Path) -> None:
    with no_file_larger_than(10):
        assert refused(path, OutputError) == f"cannot write {path}: File too large; nothing was changed"


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if shutil.which("mount") is None:
        pytest.skip("there is no mount here")
    try:
        mount = ["mount", "-t", "tmpfs", "-o", "size=8k", "tmpfs", str(disk)]
        subprocess.run(mount, check=True, capture_output=True)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"a file system cannot be mounted here: {error}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_ends_the_search_and_costs_no_record(tiny_disk: Path) -> None:
    path, decided = tiny_disk / "journal", 0

    def search() -> None:
        nonlocal decided
        with journal(path) as kept:
            for number in range(20):
                kept.remember(f"step {number}", lambda: "x" * 1000)
                decided += 1

    with pytest.raises(OutputError) as caught:
        search()
    assert str(caught.value) == f"cannot write {path}: No space left on device; nothing was changed"
    assert decided >= 6
    with journal(path, resume=True) as kept:
        assert all(kept.remember(f"step {number}", never) == "x" * 1000 for number in range(decided))


# Several processes


def test_one_process_reads_and_writes_and_all_know_what_is_on_record(path: Path) -> None:
    content = keep(path, {"x": [1]})
    said: list[bytes] = []
    with (
        journal(path, resume=True, workers=Processes(0, said)) as first,
        journal(path, resume=True, workers=Processes(1, said)) as second,
    ):
        assert said == []
        assert first.remember("x", never) == second.remember("x", never) == [1]
        second.remember("y", lambda: 2)
        assert path.read_bytes() == content
        first.remember("y", lambda: 2)
        assert path.read_bytes() == keep(path.with_name("other"), {"x": [1], "y": 2})


def test_another_process_needs_no_file(path: Path) -> None:
    said = [pickle.dumps((None, {"x": 1}))]
    with journal(path / "on" / "another" / "machine", workers=Processes(1, said)) as second:
        assert second.remember("x", never) == 1
        assert second.remember("y", lambda: 2) == 2
    assert contents(path.parent) == {}


def _directory(path: Path) -> None:
    path.mkdir()


def _absent(path: Path) -> None:
    path.parent.rmdir()


def _unfinished(path: Path) -> None:
    keep(path, {"x": 1})


@pytest.mark.parametrize(
    ("prepare", "error"), [(_directory, InputError), (_absent, OutputError), (_unfinished, InputError)]
)
def test_a_refusal_reaches_every_process(path: Path, prepare: Callable[[Path], None], error: type[SkrrError]) -> None:
    """Else the others would wait for the one that met it."""
    prepare(path)
    said: list[bytes] = []
    message = refused(path, error, workers=Processes(0, said))
    assert refused(path, error, workers=Processes(1, said)) == message
    assert said == []
