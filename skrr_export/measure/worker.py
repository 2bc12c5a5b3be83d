"""A subject in a process of its own: opens an encoder, and runs it as often as it is asked to.

Its only argument is the descriptor of a socket to `skrr_export.measure.process.Worker`. Requests are a method of
`Server` with its arguments, and each is answered by its result or by a `Refusal`. Imports no more than it must, for
what it holds is counted as the subject's.
"""

from __future__ import annotations

import ctypes
import importlib
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import numpy.typing as npt

_PR_SET_PDEATHSIG = 1

Ids = npt.NDArray[np.int64]
Embeddings = Mapping[str, npt.NDArray[Any]]
"""An encoder's outputs by name: `[batch, sequence, features]`, `[batch, layers, sequence, features]`, or
`[batch, features]`."""
Encode = Callable[[Ids, Ids | None], Embeddings]
"""Anything that turns ids and a mask into embeddings."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """An encoder that is loaded."""

    encode: Encode
    """Ids on the host to embeddings on the host: what a GPU still has to do when it returns does not count as done."""
    computes_in: str
    """Precision of the activations: `fp32`, `fp16`, `bf16`."""
    notes: Callable[[], tuple[str, ...]] = tuple
    """What a user should know about how it computes; more may become known as it runs."""
    engine_bytes: int | None = None
    """Memory on the GPU by the engine's own figure; `None` if it has none."""


Load = Callable[[], Running]
Open = Callable[..., Load]
"""Imports what a subject needs, and returns what loads it."""


@dataclass(frozen=True, slots=True)
class Opener:
    """How to open a subject."""

    function: str
    """An `Open`, as `module:name`."""
    arguments: Mapping[str, Any]

    @classmethod
    def of(cls, function: Open, **arguments: Any) -> Opener:
        """The opener that calls a function of a module with these arguments."""
        return cls(f"{function.__module__}:{function.__name__}", arguments)


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request was not met."""

    message: str


@dataclass(frozen=True, slots=True)
class Run:
    """One run."""

    seconds: float
    output: Embeddings | None
    """`None` if it was not asked for."""


class Server:
    """Does what requests ask for."""

    def __init__(self) -> None:
        self._load: Load | None = None
        self._running: Running | None = None

    def open(self, opener: Opener) -> float:
        """Import a subject's libraries. Returns seconds."""
        begin = time.perf_counter()
        module, _, name = opener.function.partition(":")
        self._load = getattr(importlib.import_module(module), name)(**opener.arguments)
        return time.perf_counter() - begin

    def load(self) -> float:
        """Load the subject. Returns seconds."""
        assert self._load is not None
        begin = time.perf_counter()
        self._running = self._load()
        return time.perf_counter() - begin

    def computes_in(self) -> str:
        """The precision it computes in."""
        return self._subject.computes_in

    def notes(self) -> tuple[str, ...]:
        """What it has noted so far."""
        return self._subject.notes()

    def run(self, input_ids: Ids, attention_mask: Ids | None, *, output: bool = False) -> Run:
        """Run it once."""
        encode = self._subject.encode
        begin = time.perf_counter()
        embeddings = encode(input_ids, attention_mask)
        return Run(time.perf_counter() - begin, embeddings if output else None)

    def gpu_bytes(self) -> tuple[int | None, int | None]:
        """What torch's allocator gave out at most on the GPU, and the engine's own figure."""
        torch = sys.modules.get("torch")
        peak = torch.cuda.max_memory_allocated() if torch is not None and torch.cuda.is_initialized() else None
        return peak, self._subject.engine_bytes

    @property
    def _subject(self) -> Running:
        assert self._running is not None
        return self._running


def serve(connection: Connection) -> None:
    """Answer requests until the other side closes the connection."""
    server = Server()
    connection.send("ready")
    while True:
        try:
            method, arguments, options = connection.recv()
        except EOFError:
            return
        try:
            answer = getattr(server, method)(*arguments, **options)
        except Exception as error:  # noqa: BLE001 - whatever a subject's libraries raise is its row's text
            answer = Refusal(_why(error))
        connection.send(answer)


def _why(error: Exception) -> str:
    from skrr_export.errors import SkrrError

    lines = str(error).strip().splitlines()
    if isinstance(error, MemoryError) or "OutOfMemory" in type(error).__name__:
        return f"out of memory{': ' + lines[0] if lines else ''}"
    if isinstance(error, SkrrError):
        return " ".join(lines)
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def main() -> None:
    """Serve the socket whose descriptor is the first argument."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # no measurement outlives the one who asked for it
    with Connection(int(sys.argv[1])) as connection:
        serve(connection)
