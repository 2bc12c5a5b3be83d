"""Outputs that appear whole or not at all.

While a long job writes, its files have no name (Linux's `O_TMPFILE`), so a process that dies, even of kill -9, leaves
nothing behind. Only at the end are they linked into a directory that is then renamed, or exchanged with the old one,
in a single step. What a machine that lost power within that last moment leaves is swept by the next run.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import glob
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from skrr_export.errors import OutputError

_RENAME_EXCHANGE = 2
_AT_FDCWD = -100
_COPY_BYTES = 1 << 20


@contextmanager
def disk_errors(target: Path) -> Iterator[None]:
    """Turn the operating system's refusals to write into one clear error.

    Raises:
        OutputError: anything failed to be written.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise OutputError(f"cannot write {target}: {error.strerror}; nothing was changed") from error
        named = target if ".partial" in str(error.filename or ".partial") else error.filename
        raise OutputError(f"cannot write {named}: {error.strerror}") from error


def write_file(target: Path, content: bytes) -> None:
    """Write a small file in one step; as with `-o` of every Unix tool an existing one is replaced, a link is followed.

    Raises:
        OutputError: it cannot be written.
    """
    with disk_errors(target):
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(target))
        if target.exists() and not target.is_file():  # a pipe or a device, such as /dev/stdout
            target.write_bytes(content)
            return
        if target.exists():
            target = target.resolve()
        temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.partial")
        try:
            with temporary.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)


def check_writable(file: Path) -> None:
    """Notice before a long job, not after it, that its file could not be written.

    Raises:
        OutputError: it could not.
    """
    try:
        if file.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if file.is_file() or not file.exists():  # else a pipe or a device
            tempfile.TemporaryFile(dir=(file.resolve() if file.exists() else file).parent).close()
    except OSError as error:
        raise OutputError(f"cannot write {file}: {error.strerror}") from error


class StagedDirectory:
    """A directory in the making; used as a context manager, it appears when the block ends without an error.

    Raises:
        OutputError: the target exists and may not be replaced, or the disk is full.
    """

    def __init__(self, target: Path, *, replace: bool, marker: str, kind: str = "bundle") -> None:
        """Prepare to write `target`; `marker` names the file by which one of our directories, a `kind`, is known."""
        self.target = target.absolute()
        self.replace = replace
        self.marker = marker
        self.kind = kind
        self.files: dict[str, BinaryIO] = {}
        self._lock: int | None = None
        if not self.target.name:
            raise OutputError(f"{self.target} cannot be replaced; choose another output")
        self.directory = self.target.with_name(f".{self.target.name}.{secrets.token_hex(4)}.partial")
        self._check_target()

    def _check_target(self) -> None:
        ancestor = next(path for path in self.target.parents if path.exists())
        if not ancestor.is_dir():
            raise OutputError(f"{ancestor} is not a directory, so {self.target} cannot be written")
        if not os.path.lexists(self.target):
            return
        if not self.replace:
            raise OutputError(f"{self.target} exists; --force replaces it")
        if self.target.is_symlink() or not self.target.is_dir():
            raise OutputError(f"{self.target} is not a directory; remove it yourself, or choose another output")
        if any(self.target.iterdir()) and not (self.target / self.marker).is_file():
            raise OutputError(f"{self.target} is not a {self.kind} (no {self.marker}), so --force will not replace it")

    def __enter__(self) -> Self:
        with disk_errors(self.target):
            self._existing_parent = next(path for path in self.target.parents if path.is_dir())
            _sweep(self.target)
            tempfile.TemporaryFile(dir=self._existing_parent, suffix=".partial").close()  # can it be written?
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            with disk_errors(self.target):
                if kind is None:
                    self._commit()
                elif isinstance(error, OSError):
                    raise error  # writing to a file of ours failed, perhaps in another thread
        finally:
            for file in self.files.values():
                with suppress(OSError):  # a full disk can refuse the last flush; the error is already under way
                    file.close()
            if self._lock is not None:
                os.close(self._lock)
            shutil.rmtree(self.directory, ignore_errors=True)

    def create(self, name: str) -> BinaryIO:
        """Open a new file of the directory for writing and reading; `name` may contain folders."""
        with disk_errors(self.target):
            try:
                descriptor = os.open(self._existing_parent, os.O_TMPFILE | os.O_RDWR, 0o666)
                self.files[name] = os.fdopen(descriptor, "w+b")
            except (OSError, AttributeError):  # a file system, or a platform, without unnamed files
                self._make_directory()
                path = self.directory / name
                path.parent.mkdir(parents=True, exist_ok=True)
                self.files[name] = path.open("x+b")
        return self.files[name]

    def write(self, name: str, content: bytes) -> None:
        """Add a small file."""
        with disk_errors(self.target):
            self.create(name).write(content)

    def folder(self, name: str) -> StagedFolder:
        """A folder of the directory."""
        return StagedFolder(self, f"{name}/")

    def path(self, name: str) -> Path:
        """Where in the directory something can lie that writes itself to a path, such as a staged directory in it.

        A process that is killed leaves it behind, for the next one to sweep.
        """
        with disk_errors(self.target):
            self._make_directory()
        return self.directory / name

    def link(self, name: str, source: Path) -> None:
        """Add a file that exists, by a hard link, so that it takes no space and is cached once; else by a copy."""
        with disk_errors(self.target):
            self._make_directory()
            path = self.directory / name
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(source.resolve(), path)  # of a symbolic link Linux would make another symbolic link
            except OSError:  # another file system, one without links, or a file of another user
                with source.open("rb") as content:
                    self.require_space(source.stat().st_size)
                    shutil.copyfileobj(content, self.create(name), _COPY_BYTES)

    def require_space(self, nbytes: int) -> None:
        """Fail early where the disk cannot hold what is about to be written.

        Raises:
            OutputError: it cannot.
        """
        free = shutil.disk_usage(self._existing_parent).free
        if free < nbytes:
            raise OutputError(f"cannot write {self.target}: it needs {nbytes:,} bytes, the disk has {free:,} free")

    def _make_directory(self) -> int:
        """Make the directory and hold it: the lock tells a sweep that this one is alive."""
        if self._lock is None:
            self.directory.mkdir(parents=True)
            self._lock = os.open(self.directory, os.O_RDONLY)
            fcntl.flock(self._lock, fcntl.LOCK_EX)
        return self._lock

    def _commit(self) -> None:
        for file in self.files.values():
            file.flush()
            os.fsync(file.fileno())
        lock = self._make_directory()
        for name, file in self.files.items():
            path = self.directory / name
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                # Any src_dir_fd makes Python call linkat, the only call that follows /proc's link.
                os.link(f"/proc/self/fd/{file.fileno()}", path, src_dir_fd=lock, follow_symlinks=True)
        os.fsync(lock)
        self._check_target()  # again: it may have come into being meanwhile
        if self.target.exists():
            _exchange(self.directory, self.target)
        else:
            self.directory.rename(self.target)
        _fsync_directory(self.target.parent)


@dataclass(frozen=True, slots=True)
class StagedFolder:
    """A place in a staged directory, to which something that is written there can be confined."""

    stage: StagedDirectory
    prefix: str = ""
    """Of the files' names."""

    def create(self, name: str) -> BinaryIO:
        """As `StagedDirectory.create`."""
        return self.stage.create(self.prefix + name)

    def write(self, name: str, content: bytes) -> None:
        """As `StagedDirectory.write`."""
        self.stage.write(self.prefix + name, content)


def _exchange(new: Path, old: Path) -> None:
    """Swap two directories in one step, so that a reader sees the old bundle or the new one and never neither."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(_AT_FDCWD, os.fsencode(new), _AT_FDCWD, os.fsencode(old), _RENAME_EXCHANGE) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), str(old))


def _fsync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sweep(target: Path) -> None:
    """Remove what a killed run left beside `target`; a directory that a living process holds is locked."""
    for path in target.parent.glob(f".{glob.escape(target.name)}.*.partial"):
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        except OSError:
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path, ignore_errors=True)
        except OSError:
            continue
        finally:
            os.close(descriptor)
