"""Builds the C++ runtime as a user would: configure, build, install, and link against what was installed.

python -m tests.runtimes.cpp.building DIRECTORY    # installs to DIRECTORY/prefix; what `make cpp` does
"""

from __future__ import annotations

import fcntl
import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.runtimes.cpp.debian import UnavailableError, development_files

SOURCE = Path(__file__).parents[3] / "runtimes" / "cpp"


@dataclass(frozen=True)
class Installation:
    """The runtime, installed below a prefix."""

    prefix: Path
    summary: str
    """What configuring said of its backends."""

    @property
    def tool(self) -> Path:
        """skrr-encode."""
        return self.prefix / "bin" / "skrr-encode"

    @property
    def library(self) -> Path:
        """libskrr.so."""
        [library] = self.prefix.glob("lib*/**/libskrr.so")
        return library


def install(directory: Path, *options: str) -> Installation:
    """Build the runtime below a directory and install it to `directory / "prefix"`."""
    prefix = directory / "prefix"
    output = configure(SOURCE, directory / "build", *options, f"-DCMAKE_INSTALL_PREFIX={prefix}")
    build(directory / "build")
    run("cmake", "--install", directory / "build")
    return Installation(prefix, output)


def configure(source: Path, directory: Path, *options: str, prefix: Path | None = None) -> str:
    """Configure a project with Debian's development files, and what lies below a prefix; warnings are errors.

    Raises:
        UnavailableError: something is missing.
    """
    for program in ("cmake", "g++"):
        if shutil.which(program) is None:
            raise UnavailableError(f"there is no {program} to build the C++ runtime with")
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    prefixes = ";".join(map(str, [development_files(), *([prefix] if prefix else [])]))
    flags = [f"-DCMAKE_PREFIX_PATH={prefixes}", "-DCMAKE_CXX_FLAGS=-Werror", "-DCMAKE_C_FLAGS=-Wall -Wextra -Werror"]
    return run("cmake", *generator, "-S", source, "-B", directory, *flags, *options)


def build(directory: Path) -> None:
    """Build what was configured."""
    run("cmake", "--build", directory, "--parallel", "2")


def onnxruntime(directory: Path) -> list[str]:
    """Options that link ONNX Runtime: the library of its wheel, under the name that the linker wants, Debian's headers.

    Raises:
        UnavailableError: the wheel is not installed.
    """
    spec = importlib.util.find_spec("onnxruntime")
    found = list(Path(spec.origin).parent.glob("capi/libonnxruntime.so.*.*.*")) if spec and spec.origin else []
    if not found:
        raise UnavailableError("the onnxruntime package has no libonnxruntime.so here")
    directory.mkdir(parents=True, exist_ok=True)
    link = directory / "libonnxruntime.so.1"
    link.symlink_to(found[0])
    return ["-DSKRR_WITH_ONNXRUNTIME=ON", f"-DONNXRUNTIME_LIBRARY={link}"]


def openvino() -> list[str]:
    """Options that link OpenVINO Tokenizers, out of its wheels.

    Raises:
        UnavailableError: they are not installed.
    """
    specs = [importlib.util.find_spec(name) for name in ("openvino", "openvino_tokenizers")]
    if not all(specs):
        raise UnavailableError("the packages openvino and openvino-tokenizers are not installed here")
    runtime, tokenizers = (Path(spec.origin).parent for spec in specs if spec and spec.origin)
    return [
        "-DSKRR_WITH_OPENVINO=ON",
        f"-DOpenVINO_DIR={runtime / 'cmake'}",
        f"-DOPENVINO_TOKENIZERS_ROOT={tokenizers}",
    ]


def once(directory: Path, make: Callable[[], object]) -> None:
    """Make something in a directory that several processes of pytest share, once.

    Raises:
        UnavailableError: it cannot be made, here or in the process that tried.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        outcome = directory / "outcome"
        if not outcome.exists():
            try:
                make()
                outcome.write_text("")
            except UnavailableError as error:
                outcome.write_text(str(error))
        if why := outcome.read_text():
            raise UnavailableError(why)


def run(*command: object) -> str:
    """Run a command that must succeed; what it printed."""
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert result.returncode == 0, f"{command}\n{result.stdout[-6000:]}\n{result.stderr[-6000:]}"
    return result.stdout


def main(directory: Path) -> None:
    """Build with what this environment has, as the tests do."""
    shutil.rmtree(directory, ignore_errors=True)
    try:
        made = install(directory, *onnxruntime(directory / "onnxruntime"), *openvino(), "-DSKRR_WITH_AOTI=OFF")
    except UnavailableError as error:
        raise SystemExit(str(error)) from error
    print(f"installed to {made.prefix}; try {made.tool} --help")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
