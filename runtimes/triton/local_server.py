"""A Triton server on this machine without a container, to try a repository: NVIDIA's binary of `nvidia-pytriton`.

    .venv/bin/python runtimes/triton/local_server.py models        # until Ctrl-C; make has installed it

It has the Python backend and needs no GPU. Its models see this environment's packages without torch and, as in NVIDIA's
container, numpy 1.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import site
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from ctypes.util import find_library
from dataclasses import dataclass
from pathlib import Path

PACKAGE = Path(sys.prefix, "triton")
"""Where `make` installs `nvidia-pytriton`, with the numpy 1 that Triton's Python backend is built for."""
TRITON = PACKAGE / "pytriton" / "tritonserver"
VERSION = f"{sys.version_info[0]}.{sys.version_info[1]}"
STUB = TRITON / "python_backend_stubs" / VERSION / "triton_python_backend_stub"
"""What runs a model in Python, in a process of its own."""
LIBRARIES = sysconfig.get_config_var("LIBDIR")

PORTS = (8000, 8001, 8002)
"""Triton's own, for HTTP, gRPC and metrics."""
LOAD_SECONDS = 300
STOP_SECONDS = 30


def absent() -> str | None:
    """Why no server can be started here; `None`: it can."""
    if not STUB.exists():
        return f"no Triton server here: {STUB} does not exist; make installs it"
    if not find_library(f"python{VERSION}") and not any(Path(LIBRARIES).glob(f"libpython{VERSION}.so*")):
        return f"no Triton server here: its Python backend needs libpython{VERSION}.so"
    return None


@dataclass(frozen=True)
class Server:
    """A running server."""

    process: subprocess.Popen[bytes]
    http: str
    """Address, as clients take it."""
    grpc: str
    metrics: str
    log: Path

    def stubs(self) -> list[int]:
        """The Python backend's processes, one an instance."""
        threads = Path(f"/proc/{self.process.pid}/task").glob("*/children")
        return [int(pid) for children in threads for pid in children.read_text().split()]


@contextmanager
def running(repository: Path, *arguments: str, ports: Sequence[int] = ()) -> Iterator[Server]:
    """A server on a model repository, until the block ends.

    Args:
        repository: which.
        arguments: further ones for `tritonserver`.
        ports: for HTTP, gRPC and metrics; default: free ones.

    Raises:
        RuntimeError: it ended or did not become live; the message is its log.
    """
    with tempfile.TemporaryDirectory(prefix="triton-") as folder:
        server = _start(Path(folder), repository, arguments, ports or free_ports(3))
        try:
            _wait(server)
            yield server
        finally:
            stop(server)


def stop(server: Server) -> int:
    """Stop a server as Kubernetes does; its exit code."""
    server.process.send_signal(signal.SIGTERM)
    try:
        return server.process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        stubs = server.stubs()
        server.process.kill()
        for stub in stubs:
            os.kill(stub, signal.SIGKILL)
        return server.process.wait(STOP_SECONDS)


def _start(folder: Path, repository: Path, arguments: Sequence[str], ports: Sequence[int]) -> Server:
    backends = shutil.copytree(TRITON / "backends", folder / "backends")
    shutil.copy2(STUB, backends / "python")
    log = folder / "log"
    command = [
        str(TRITON / "bin" / "tritonserver"),
        f"--model-repository={repository}",
        f"--backend-directory={backends}",
        *(f"--{name}-address=127.0.0.1" for name in ("http", "grpc", "metrics")),
        *(f"--{name}-port={port}" for name, port in zip(("http", "grpc", "metrics"), ports, strict=True)),
        "--allow-gpu-metrics=false",
        "--disable-auto-complete-config",  # ours are complete
        "--exit-timeout-secs=10",
        *arguments,
    ]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=_environment(folder))
    return Server(process, *(f"127.0.0.1:{port}" for port in ports), log)


def _environment(folder: Path) -> dict[str, str]:
    python = _python_without_torch(folder / "python")
    return {
        **os.environ,
        "PATH": f"{python}/bin:{os.environ['PATH']}",
        "LD_LIBRARY_PATH": f"{LIBRARIES}:{PACKAGE / 'nvidia_pytriton.libs'}",
        "CUDA_VISIBLE_DEVICES": "",
    }


def _python_without_torch(environment: Path) -> Path:
    """A virtual environment like this one; the backend takes its packages from that of the first python3 in PATH."""
    (environment / "bin").mkdir(parents=True)
    (environment / "bin" / "python3").symlink_to(Path(sys.base_prefix, "bin", "python3"))
    (environment / "pyvenv.cfg").write_text(f"home = {sys.base_prefix}/bin\n")
    packages = environment / Path(site.getsitepackages()[0]).relative_to(sys.prefix)
    packages.mkdir(parents=True)
    own = [path for path in Path(site.getsitepackages()[0]).iterdir() if not path.name.startswith(("torch", "numpy"))]
    for path in (*own, *PACKAGE.glob("numpy*")):
        (packages / path.name).symlink_to(path)
    (packages / "repository.pth").write_text(f"{Path(__file__).parents[2]}\n")
    return environment


def free_ports(count: int) -> list[int]:
    """Ports that nothing listens on."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def _wait(server: Server) -> None:
    """Wait until the server listens, which it does once it has tried to load its models."""
    deadline = time.monotonic() + LOAD_SECONDS
    while time.monotonic() < deadline and server.process.poll() is None:
        try:
            with urllib.request.urlopen(f"http://{server.http}/v2/health/live"):
                return
        except OSError:
            time.sleep(0.05)
    raise RuntimeError(server.log.read_text(errors="replace"))


def main() -> None:
    """Serve on Triton's own ports until interrupted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("repository", type=Path, help="as skrr-export triton writes it")
    repository: Path = parser.parse_args().repository.resolve()
    if (reason := absent()) is not None:
        raise SystemExit(reason)
    try:
        with running(repository, ports=PORTS) as server:
            print(f"HTTP on {server.http}, gRPC on {server.grpc}; Ctrl-C stops it", flush=True)
            server.process.wait()
    except RuntimeError as error:  # its log
        raise SystemExit(str(error)) from error
    except KeyboardInterrupt:
        print("stopped")


if __name__ == "__main__":
    main()
