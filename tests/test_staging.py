"""Outputs appear whole or not at all: when something fails, when the disk is full, when the process is killed."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from skrr_export.errors import OutputError
from skrr_export.staging import StagedDirectory, write_file
from tests.checkpoints import contents, t5_checkpoint

MARKER = "manifest.json"
OLD = {MARKER: b"old", "weights": b"old weights", "tokenizer": None, "tokenizer/vocab": b"old words"}
NEW = {MARKER: b"new", "weights": b"new" * 100_000, "extra": None, "extra/deep": None, "extra/deep/x": b""}


def stage(target: Path, *, replace: bool = False) -> StagedDirectory:
    return StagedDirectory(target, replace=replace, marker=MARKER)


def fill(staged: StagedDirectory, files: dict[str, bytes | None]) -> None:
    """Add the files; `None` is a directory, which comes by itself."""
    for name, content in files.items():
        if content is not None:
            staged.write(name, content)


def attempt(staged: StagedDirectory, then: Callable[[], object] = lambda: None) -> None:
    """Write `NEW`, and do something before the block ends."""
    with staged:
        fill(staged, NEW)
        then()


def names(directory: Path) -> list[str]:
    """What a directory holds, by name; hidden files too."""
    return sorted(path.name for path in directory.iterdir())


def throw(error: BaseException) -> Callable[[], None]:
    """What raises an error when it is called."""

    def raiser() -> None:
        raise error

    return raiser


@pytest.fixture
def parent(tmp_path: Path) -> Path:
    """Where outputs go; a test sees in it whatever is left behind."""
    (tmp_path / "parent").mkdir()
    return tmp_path / "parent"


@pytest.fixture
def target(parent: Path) -> Path:
    return parent / "bundle"


@pytest.fixture
def old(target: Path) -> Path:
    """A target that exists."""
    with stage(target) as staged:
        fill(staged, OLD)
    return target


@pytest.fixture(params=["unnamed files", "named files"])
def either_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways to write: with files that have no name yet, and on a file system that lacks them."""
    if request.param == "named files":
        refuse_unnamed_files(monkeypatch)


def refuse_unnamed_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Behave as a file system without `O_TMPFILE`."""
    genuine = os.open

    def refuse(path: Any, flags: int, *arguments: Any, **keywords: Any) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP), str(path))
        return genuine(path, flags, *arguments, **keywords)

    monkeypatch.setattr(os, "open", refuse)


# A directory in the making


@pytest.mark.usefixtures("either_way")
def test_a_directory_appears_whole_when_the_block_ends(parent: Path, target: Path) -> None:
    with stage(target) as staged:
        fill(staged, NEW)
        assert not target.exists()
    assert contents(target) == NEW
    assert names(parent) == ["bundle"]


@pytest.mark.usefixtures("either_way")
def test_a_file_can_be_filled_piece_by_piece(target: Path) -> None:
    with stage(target) as staged:
        file = staged.create("weights")
        for piece in (b"a" * 100_000, b"b", memoryview(b"c" * 9000)):
            file.write(piece)
    assert contents(target) == {"weights": b"a" * 100_000 + b"b" + b"c" * 9000}


@pytest.mark.usefixtures("either_way")
def test_what_writes_itself_to_a_path_comes_along(parent: Path, target: Path) -> None:
    with stage(target) as staged:
        with StagedDirectory(staged.path("inner"), replace=False, marker=MARKER) as inner:
            inner.write(MARKER, b"inner")
            inner.write("weights", b"inner weights")
        assert not target.exists()
        assert (staged.path("inner") / "weights").read_bytes() == b"inner weights"
        staged.write(MARKER, b"outer")
    inside = {"inner": None, f"inner/{MARKER}": b"inner", "inner/weights": b"inner weights"}
    assert contents(target) == {MARKER: b"outer", **inside}
    assert names(parent) == ["bundle"]


def test_an_error_removes_what_wrote_itself_to_a_path(parent: Path, target: Path) -> None:
    staged = stage(target)
    with pytest.raises(KeyboardInterrupt):
        attempt(staged, lambda: (staged.path("file").write_bytes(b"x"), throw(KeyboardInterrupt())()))
    assert names(parent) == []


def test_a_file_that_exists_is_linked(parent: Path, target: Path) -> None:
    (parent / "source").write_bytes(b"weights")
    (parent / "symbolic").symlink_to("source")
    with stage(target) as staged:
        staged.write(MARKER, b"new")
        staged.link("deep/weights", parent / "source")
        staged.link("through", parent / "symbolic")
    assert contents(target) == {MARKER: b"new", "deep": None, "deep/weights": b"weights", "through": b"weights"}
    for name in ("deep/weights", "through"):
        assert (target / name).samefile(parent / "source")
        assert not (target / name).is_symlink()
    assert names(parent) == ["bundle", "source", "symbolic"]


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize("number", [errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP])
def test_a_file_that_cannot_be_linked_is_copied(
    parent: Path, target: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    (parent / "source").write_bytes(b"weights" * 400_000)
    genuine = os.link

    def refuse(source: Any, *arguments: Any, **keywords: Any) -> None:
        if not str(source).startswith("/proc/"):
            raise OSError(number, os.strerror(number), str(source))
        genuine(source, *arguments, **keywords)

    monkeypatch.setattr(os, "link", refuse)
    with stage(target) as staged:
        staged.write(MARKER, b"new")
        staged.link("deep/weights", parent / "source")
    assert contents(target) == {MARKER: b"new", "deep": None, "deep/weights": b"weights" * 400_000}
    assert not (target / "deep/weights").samefile(parent / "source")
    assert names(parent) == ["bundle", "source"]


def test_an_error_leaves_a_linked_file_where_it_was(parent: Path, target: Path) -> None:
    (parent / "source").write_bytes(b"weights")

    def link_and_fail(staged: StagedDirectory) -> None:
        with staged:
            staged.link("weights", parent / "source")
            throw(KeyError())()

    with pytest.raises(KeyError):
        link_and_fail(stage(target))
    assert contents(parent) == {"source": b"weights"}


def test_a_file_to_link_that_is_not_there_is_named(parent: Path, target: Path) -> None:
    with (
        pytest.raises(OutputError, match=f"cannot write {parent / 'source'}: No such file or directory"),
        stage(target) as staged,
    ):
        staged.link("weights", parent / "source")
    assert names(parent) == []


@pytest.mark.usefixtures("either_way")
def test_folders_above_the_target_are_made(parent: Path) -> None:
    with stage(parent / "a" / "b" / "bundle") as staged:
        fill(staged, OLD)
    assert contents(parent / "a" / "b" / "bundle") == OLD
    assert names(parent / "a" / "b") == ["bundle"]


@pytest.mark.usefixtures("either_way")
def test_permissions_are_those_of_any_new_file(target: Path) -> None:
    before = os.umask(0o027)
    try:
        with stage(target) as staged:
            fill(staged, OLD)
    finally:
        os.umask(before)
    assert stat.S_IMODE((target / "weights").stat().st_mode) == 0o640
    assert stat.S_IMODE(target.stat().st_mode) == 0o750


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_a_failure_inside_leaves_nothing(parent: Path, target: Path, failure: type[BaseException]) -> None:
    with pytest.raises(failure):
        attempt(stage(target), throw(failure()))
    assert contents(parent) == {}


@pytest.mark.usefixtures("either_way")
def test_a_failure_inside_leaves_the_old_directory(parent: Path, old: Path) -> None:
    before = contents(parent)
    with pytest.raises(RuntimeError):
        attempt(stage(old, replace=True), throw(RuntimeError()))
    assert contents(parent) == before


@pytest.mark.usefixtures("either_way")
def test_the_old_directory_stays_whole_until_the_new_one_takes_its_place(parent: Path, old: Path) -> None:
    with stage(old, replace=True) as staged:
        fill(staged, NEW)
        assert contents(old) == OLD
    assert contents(old) == NEW
    assert names(parent) == ["bundle"]


def test_nothing_of_the_old_directory_is_removed_before_the_new_one_is_in_its_place(
    old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that at no moment is there neither, however the process or the machine ends."""
    remove = shutil.rmtree

    def remove_only_then(path: Path, **options: bool) -> None:
        assert contents(old) == NEW
        remove(path, **options)

    monkeypatch.setattr(shutil, "rmtree", remove_only_then)
    with stage(old, replace=True) as staged:
        fill(staged, NEW)
    assert names(old.parent) == ["bundle"]


def test_a_reader_of_the_old_directory_is_not_disturbed(old: Path) -> None:
    with (old / "weights").open("rb") as reader:
        with stage(old, replace=True) as staged:
            fill(staged, NEW)
        assert reader.read() == OLD["weights"]


def test_an_empty_directory_is_replaced(target: Path) -> None:
    target.mkdir()
    with stage(target, replace=True) as staged:
        fill(staged, NEW)
    assert contents(target) == NEW


def test_an_existing_target_needs_permission_to_be_replaced(old: Path) -> None:
    with pytest.raises(OutputError) as caught:
        stage(old)
    assert str(caught.value) == f"{old} exists; --force replaces it"


def test_a_directory_that_is_none_of_ours_is_never_replaced(target: Path) -> None:
    target.mkdir()
    (target / "thesis.tex").write_text("irreplaceable")
    with pytest.raises(OutputError, match=r"is not a bundle \(no manifest\.json\), so --force will not replace it"):
        stage(target, replace=True)
    assert contents(target) == {"thesis.tex": b"irreplaceable"}


def test_a_directory_that_comes_into_being_meanwhile_is_not_replaced_either(parent: Path, target: Path) -> None:
    def write_a_thesis() -> None:
        target.mkdir()
        (target / "thesis.tex").write_text("irreplaceable")

    with pytest.raises(OutputError, match="is not a bundle"):
        attempt(stage(target, replace=True), write_a_thesis)
    assert contents(parent) == {"bundle": None, "bundle/thesis.tex": b"irreplaceable"}


@pytest.mark.parametrize("kind", ["file", "link to a directory", "dangling link", "pipe"])
@pytest.mark.parametrize("replace", [False, True])
def test_a_target_of_another_kind_is_never_replaced(parent: Path, target: Path, kind: str, replace: bool) -> None:
    if kind == "file":
        target.write_text("a file")
    elif kind == "pipe":
        os.mkfifo(target)
    else:
        (parent / "elsewhere").mkdir()
        target.symlink_to("elsewhere" if kind == "link to a directory" else "nowhere")
    before = target.lstat()
    with pytest.raises(OutputError, match="is not a directory; remove it yourself" if replace else "exists; --force"):
        stage(target, replace=replace)
    assert (target.lstat().st_ino, target.lstat().st_mode) == (before.st_ino, before.st_mode)


def test_a_target_below_a_file_is_refused_at_once(parent: Path) -> None:
    (parent / "file").write_text("a file")
    with pytest.raises(OutputError) as caught:
        stage(parent / "file" / "bundle")
    assert str(caught.value).startswith(f"{parent / 'file'} is not a directory")
    assert contents(parent) == {"file": b"a file"}


@pytest.mark.parametrize("replace", [False, True])
def test_the_root_is_refused(replace: bool) -> None:
    with pytest.raises(OutputError):
        stage(Path("/"), replace=replace)


def test_a_name_too_long_for_the_file_system_leaves_nothing(parent: Path) -> None:
    with pytest.raises(OutputError, match="File name too long"), stage(parent / ("x" * 300)) as staged:
        fill(staged, NEW)
    assert contents(parent) == {}


@pytest.mark.usefixtures("either_way")
def test_of_two_that_write_the_same_target_the_second_fails_whole(parent: Path, target: Path) -> None:
    def write_the_same() -> None:
        with stage(target) as fast:
            fill(fast, OLD)

    with pytest.raises(OutputError, match="exists; --force"):
        attempt(stage(target), write_the_same)
    assert contents(target) == OLD
    assert names(parent) == ["bundle"]


# What killed runs leave


def abandoned(parent: Path, name: str = ".bundle.0123abcd.partial") -> Path:
    """What a run that died in its last moment, or without unnamed files, leaves."""
    (parent / name).mkdir()
    (parent / name / "weights").write_bytes(b"half")
    return parent / name


def test_what_a_dead_run_left_is_swept(parent: Path, target: Path) -> None:
    abandoned(parent)
    abandoned(parent, ".bundle.89efffff.partial")
    with stage(target) as staged:
        fill(staged, NEW)
    assert names(parent) == ["bundle"]


def test_what_a_living_run_holds_is_not_swept(parent: Path, target: Path) -> None:
    held = abandoned(parent)
    descriptor = os.open(held, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with stage(target) as staged:
            fill(staged, NEW)
        assert contents(held) == {"weights": b"half"}
    finally:
        os.close(descriptor)


@pytest.mark.usefixtures("either_way")
def test_a_run_that_is_still_writing_is_not_swept(target: Path) -> None:
    with stage(target, replace=True) as slow:
        fill(slow, NEW)
        with stage(target, replace=True) as fast:
            fill(fast, OLD)
    assert contents(target) == NEW


@pytest.mark.parametrize("name", ["*", "[a-z]*", "bundle", "b?ndle"])
def test_what_belongs_to_another_target_is_not_swept(parent: Path, name: str) -> None:
    others = [abandoned(parent, other) for other in (".bundles.0123abcd.partial", ".other.0123abcd.partial", ".git")]
    if name != "bundle":
        others.append(abandoned(parent))
    with stage(parent / name) as staged:
        fill(staged, NEW)
    assert all(contents(other) == {"weights": b"half"} for other in others)


def test_a_target_whose_name_looks_like_a_pattern_is_swept_too(parent: Path) -> None:
    abandoned(parent, ".a[b].0123abcd.partial")
    with stage(parent / "a[b]") as staged:
        fill(staged, NEW)
    assert names(parent) == ["a[b]"]


# Small files


def test_a_small_file_is_replaced_in_one_step(parent: Path) -> None:
    path = parent / "plan.json"
    write_file(path, b"first")
    with path.open("rb") as reader:
        write_file(path, b"second")
        assert reader.read() == b"first"
    assert contents(parent) == {"plan.json": b"second"}


@pytest.mark.parametrize("name", ["absent/plan.json", "file/plan.json", "x" * 300, ".", "", "/"])
def test_a_small_file_that_cannot_be_written_is_named(parent: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(parent)
    (parent / "file").write_text("a file")
    with pytest.raises(OutputError) as caught:
        write_file(Path(name), b"plan")
    assert f"{Path(name)}" in str(caught.value)
    assert "partial" not in str(caught.value)
    assert contents(parent) == {"file": b"a file"}


def test_a_directory_is_not_replaced_by_a_small_file(parent: Path) -> None:
    (parent / "plan.json").mkdir()
    with pytest.raises(OutputError, match=r"plan\.json: Is a directory"):
        write_file(parent / "plan.json", b"plan")
    assert contents(parent) == {"plan.json": None}


def test_a_link_is_written_through(parent: Path) -> None:
    (parent / "link").symlink_to("plan.json")
    (parent / "plan.json").write_bytes(b"old")
    write_file(parent / "link", b"new")
    assert (parent / "link").is_symlink()
    assert contents(parent) == {"link": b"new", "plan.json": b"new"}


def test_a_pipe_or_device_is_written_to_and_not_replaced(parent: Path) -> None:
    """`-o /dev/stdout` and `-o /dev/null`; as root a rename would remove the device from the system."""
    path = parent / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        write_file(path, b"plan")
        assert os.read(reader, 100) == b"plan"
    finally:
        os.close(reader)
    assert stat.S_ISFIFO(path.lstat().st_mode)
    assert names(parent) == ["pipe"]


# A place where nothing can be written


def test_it_is_noticed_before_the_job() -> None:
    with pytest.raises(OutputError, match="cannot write /proc/bundle"), stage(Path("/proc/bundle")):
        pytest.fail("the job began")


# A full disk


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 400 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(disk)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"a file system cannot be mounted here: {error}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize("piece", [100, 4096, 1 << 20])
def test_a_full_disk_leaves_the_old_directory(tiny_disk: Path, piece: int) -> None:
    """Whether it is met while a piece is written, or only when what was buffered is flushed."""
    with stage(tiny_disk / "bundle") as staged:
        fill(staged, OLD)
    staged = stage(tiny_disk / "bundle", replace=True)

    def write_too_much() -> None:
        file = staged.create("weights")
        for _ in range(0, 401 << 10, piece):
            file.write(bytes(piece))

    with pytest.raises(OutputError) as caught, staged:
        write_too_much()
    assert str(caught.value) == f"cannot write {tiny_disk / 'bundle'}: No space left on device; nothing was changed"
    assert contents(tiny_disk) == {"bundle": None, **{f"bundle/{name}": content for name, content in OLD.items()}}
    assert os.statvfs(tiny_disk).f_bfree > 90  # 4 KiB each: what was written is given back


def test_a_disk_that_is_too_small_is_noticed_before_anything_is_written(tiny_disk: Path) -> None:
    with stage(tiny_disk / "bundle") as staged:
        staged.require_space(409_600)
    with pytest.raises(OutputError) as caught, stage(tiny_disk / "bundle", replace=True) as staged:
        staged.require_space(409_601)
    assert str(caught.value).endswith("it needs 409,601 bytes, the disk has 409,600 free")
    assert contents(tiny_disk) == {"bundle": None}


def test_a_full_disk_leaves_the_old_small_file(tiny_disk: Path) -> None:
    write_file(tiny_disk / "plan.json", b"old")
    with pytest.raises(OutputError, match="No space left on device; nothing was changed"):
        write_file(tiny_disk / "plan.json", bytes(500_000))
    assert contents(tiny_disk) == {"plan.json": b"old"}


# A whole process: the command line, with the graph left out and a bake that can be stopped

EXPORT = """
import os, resource, sys
from contextlib import contextmanager
import skrr_export.cli as cli
from skrr_export.cli.output import Output
from skrr_export.targets.onnx import graph

def stop(what, done, total):
    if what == "baking":
        os.write(int(announce), b"baking")
        os.read(int(wait), 1)  # until the parent closes its end, which it never does

@contextmanager
def progress(self):
    yield stop

announce, wait, limit, checkpoint, output = sys.argv[1:]
graph.build = lambda *arguments, **options: b"graph"
if int(limit):
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
else:
    Output.progress = progress
sys.argv = ["skrr-export", "export", checkpoint, "-o", output, "--force"]
cli.main()
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return t5_checkpoint(tmp_path_factory.mktemp("staging") / "t5", tokenizer=True)


def has_unnamed_files(folder: Path) -> bool:
    """Whether a file system knows `O_TMPFILE`."""
    try:
        os.close(os.open(folder, os.O_TMPFILE | os.O_RDWR))
    except OSError:
        return False
    return True


@contextmanager
def stopped_export(checkpoint: Path, target: Path) -> Iterator[subprocess.Popen[str]]:
    """An export in a process of its own that stands still in the middle of writing the weights."""
    ready, announce = os.pipe()
    wait, release = os.pipe()
    command = [sys.executable, "-c", EXPORT, str(announce), str(wait), "0", str(checkpoint), str(target)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, pass_fds=(announce, wait)
    )
    os.close(announce)
    try:
        assert os.read(ready, 6) == b"baking", process.communicate()[1]
        yield process
    finally:
        process.kill()
        process.communicate()
        for descriptor in (ready, wait, release):
            os.close(descriptor)


def digest(directory: Path) -> str:
    """One hash of everything in a directory."""
    return hashlib.sha256(repr(contents(directory)).encode()).hexdigest()


@pytest.mark.parametrize(
    ("number", "code", "words"),
    [(signal.SIGKILL, -9, ""), (signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 130, "interrupted")],
)
def test_an_export_that_is_killed_leaves_the_old_bundle_and_no_litter(
    checkpoint: Path, old: Path, number: int, code: int, words: str
) -> None:
    parent = old.parent
    if number == signal.SIGKILL and not has_unnamed_files(parent):
        pytest.skip("this file system has no unnamed files: kill -9 leaves litter, until the next run sweeps it")
    before, inputs = contents(parent), digest(checkpoint)
    with stopped_export(checkpoint, old) as process:
        process.send_signal(number)
        output, errors = process.communicate(timeout=300)
    assert (process.returncode, output, errors.strip()) == (code, "", words)
    assert contents(parent) == before
    assert digest(checkpoint) == inputs


def test_a_file_that_may_not_grow_any_further_ends_the_export_cleanly(
    checkpoint: Path, parent: Path, old: Path
) -> None:
    before, inputs = contents(parent), digest(checkpoint)
    command = [sys.executable, "-c", EXPORT, "0", "0", "50000", str(checkpoint), str(old)]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert process.stderr == f"error: cannot write {old}: File too large; nothing was changed\n"
    assert (process.returncode, process.stdout) == (2, "")
    assert contents(parent) == before
    assert digest(checkpoint) == inputs
