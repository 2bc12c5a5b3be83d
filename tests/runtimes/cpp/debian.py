"""The development files that the C++ runtime is built with, from Debian's packages, without installing any.

apt works in a configuration of its own here, and what it downloads is unpacked beside the virtual environment: nothing
of the machine is changed, and no root is needed. Sources are the machine's own, and the same of the release that has
ONNX Runtime's headers.
"""

from __future__ import annotations

import fcntl
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CACHE = Path(sys.prefix) / "debian"

_ONNX_RUNTIME_RELEASE = "trixie"
"""The first with the package; its headers are of an older version than the library, which ONNX Runtime allows."""
_HEADERS = {
    "sentencepiece_processor.h": "libsentencepiece-dev",
    "nlohmann/json.hpp": "nlohmann-json3-dev",
    "CLI/CLI.hpp": "libcli11-dev",
    "openssl/evp.h": "libssl-dev",
    "unicode/ucasemap.h": "libicu-dev",
}
"""Headers that we include, and the packages to take them from where the machine lacks them."""


class UnavailableError(Exception):
    """Something needed cannot be had here; the message says what."""


def development_files() -> Path:
    """The prefix of the unpacked packages, which are downloaded once.

    Raises:
        UnavailableError: they cannot be had.
    """
    prefix = CACHE / "root" / "usr"
    with _locked(CACHE):
        if not (CACHE / "complete").exists():
            _unpack(_download(), CACHE / "root")
            (CACHE / "complete").touch()
    return prefix


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """One process at a time, of the several that pytest runs."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with (directory / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
    except OSError as error:
        raise UnavailableError(f"cannot write {directory}: {error.strerror}") from error


def _download() -> list[Path]:
    for program in ("apt-get", "apt-cache", "dpkg"):
        if shutil.which(program) is None:
            raise UnavailableError(f"there is no {program} to get development files with")
    codename = _codename()
    options = _configure(codename)
    _run("apt-get", *options, "update")
    wanted = [f"libonnxruntime-dev/{_ONNX_RUNTIME_RELEASE}"]
    for header, package in _HEADERS.items():
        if not Path("/usr/include", header).exists() and not _multiarch(header):
            wanted += [f"{name}/{codename}" for name in (package, *_libraries(package, options))]
    folder = CACHE / "packages"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    _run("apt-get", *options, "download", *wanted, directory=folder)
    return sorted(folder.glob("*.deb"))


def _multiarch(header: str) -> bool:
    return any(Path("/usr/include").glob(f"*-linux-gnu/{header}"))


def _codename() -> str:
    found = re.search(r"^VERSION_CODENAME=(\w+)", Path("/etc/os-release").read_text(), re.MULTILINE)
    if found is None or "ID=debian" not in Path("/etc/os-release").read_text():
        raise UnavailableError("development files are taken from Debian's packages, and this is no Debian")
    return found[1]


def _configure(codename: str) -> list[str]:
    """Options that let apt use nothing of the machine but its list of sources."""
    for name in ("parts", "state/lists/partial", "cache/archives/partial"):
        (CACHE / name).mkdir(parents=True, exist_ok=True)
    (CACHE / "status").touch()
    found = False
    for path in [Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt/sources.list.d").glob("*"))]:
        text = path.read_text() if path.suffix in (".list", ".sources") and path.is_file() else ""
        if codename in text:
            found = True
            for release in {codename, _ONNX_RUNTIME_RELEASE}:
                (CACHE / "parts" / f"{release}-{path.name}").write_text(text.replace(codename, release))
    if not found:
        raise UnavailableError("apt has no source for Debian's packages")
    settings = {
        "Dir::Etc::SourceList": "/dev/null",
        "Dir::Etc::SourceParts": CACHE / "parts",
        "Dir::State": CACHE / "state",
        "Dir::State::status": CACHE / "status",
        "Dir::Cache": CACHE / "cache",
        "APT::Sandbox::User": "root",  # else, run by root, it downloads as a user who cannot write there
        "Acquire::Retries": "1",
    }
    return [argument for name, value in settings.items() for argument in ("-o", f"{name}={value}")]


def _libraries(package: str, options: list[str]) -> list[str]:
    """The shared libraries that a development package has links to."""
    depends = _run("apt-cache", *options, "depends", package)
    return [
        name for name in re.findall(r"Depends: (lib\S+)", depends) if not name.endswith("-dev") and "libc6" not in name
    ]


def _unpack(packages: list[Path], root: Path) -> None:
    shutil.rmtree(root, ignore_errors=True)
    for package in packages:
        _run("dpkg", "-x", str(package), str(root))


def _run(*command: str, directory: Path | None = None) -> str:
    try:
        result = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=True, timeout=300)
    except subprocess.SubprocessError as error:
        output = str(getattr(error, "stderr", "") or error).strip().splitlines()
        raise UnavailableError(f"{command[0]} cannot get development files: {output[-1]}") from error
    return result.stdout
