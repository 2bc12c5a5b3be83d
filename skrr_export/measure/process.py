"""The other side of a subject's process: starts it, asks it, notices when it hangs or dies, and ends it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from multiprocessing import Pipe
from types import TracebackType
from typing import Any, Self

from skrr_export.measure.memory import gpu_process_memory, memory_of
from skrr_export.measure.record import GpuMemory, Memory
from skrr_export.measure.worker import Ids, Opener, Refusal, Run

_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
"""Variables that the libraries take their number of threads from."""
_PROGRAM = "from skrr_export.measure.worker import main; main()"  # with -m, its classes would have two names
_LAST_WORDS = 10.0
"""Seconds that a process which no longer listens may take to end."""


class SubjectError(Exception):
    """A subject cannot be measured further; the message is its row's text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What all subjects have alike."""

    threads: int
    """For the operators of one call."""
    time_limit: float
    """Seconds that one request may take."""
    gpu: str | None = None
    """The only GPU that they see, by its number; `None`: all."""

    def environment(self) -> dict[str, str]:
        """The variables of a subject's process."""
        quiet = {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "PYTHONWARNINGS": "ignore"}
        threads = dict.fromkeys(_THREADS, str(self.threads))
        gpu = {} if self.gpu is None else {"CUDA_VISIBLE_DEVICES": self.gpu}
        return {**os.environ, **quiet, **threads, **gpu}


class Worker:
    """A process that runs a subject; a context manager, at whose end the process is killed."""

    def __init__(self, opener: Opener, surroundings: Surroundings) -> None:
        """Start the process; it has not opened its subject yet."""
        self._opener = opener
        self._time_limit = surroundings.time_limit
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        begin = time.perf_counter()
        self._connection, theirs = Pipe()
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and program
                [sys.executable, "-c", _PROGRAM, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                env=surroundings.environment(),
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # an interrupt is ours to handle
            )
        try:
            self._answer()
        except BaseException:
            self.close()
            raise
        self.start_seconds = time.perf_counter() - begin
        """That the process took until it listened."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the process, whatever it is doing."""
        self._process.kill()
        self._process.wait()
        self._connection.close()
        self._log.close()

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def open(self) -> float:
        """Let it import its libraries. Returns seconds.

        Raises:
            SubjectError: it cannot, like all methods below.
        """
        seconds: float = self._ask("open", self._opener)
        return seconds

    def load(self) -> float:
        """Let it load its encoder. Returns seconds."""
        seconds: float = self._ask("load")
        return seconds

    def computes_in(self) -> str:
        """The precision of its activations."""
        name: str = self._ask("computes_in")
        return name

    def notes(self) -> tuple[str, ...]:
        """What a user should know about how it computes."""
        notes: tuple[str, ...] = self._ask("notes")
        return notes

    def run(self, input_ids: Ids, attention_mask: Ids | None, *, output: bool = False) -> Run:
        """Let it run once, on `[batch, sequence]`; the embeddings come back only if they are asked for."""
        run: Run = self._ask("run", input_ids, attention_mask, output=output)
        return run

    def memory(self) -> Memory:
        """Its memory on the host now."""
        try:
            return memory_of(self.pid)
        except ProcessLookupError as error:
            raise SubjectError(self._epitaph()) from error

    def gpu_memory(self) -> GpuMemory:
        """Its memory on the GPU now."""
        torch_peak, engine = self._ask("gpu_bytes")
        return GpuMemory(process=gpu_process_memory(self.pid), torch_peak=torch_peak, engine=engine)

    def _ask(self, method: str, *arguments: Any, **options: Any) -> Any:
        try:
            self._connection.send((method, arguments, options))
        except OSError as error:
            raise SubjectError(self._epitaph()) from error
        return self._answer()

    def _answer(self) -> Any:
        try:
            if not self._connection.poll(self._time_limit):
                self._process.kill()  # or it would take the processor from the subjects that go on
                raise SubjectError(f"no answer within {self._time_limit:g} s; stopped")
            answer = self._connection.recv()
        except (EOFError, OSError) as error:
            raise SubjectError(self._epitaph()) from error
        if isinstance(answer, Refusal):
            raise SubjectError(answer.message)
        return answer

    def _epitaph(self) -> str:
        """Why the process has ended."""
        try:
            code = self._process.wait(timeout=_LAST_WORDS)
        except subprocess.TimeoutExpired:
            self._process.kill()  # it only closed the connection
            code = self._process.wait()
        if code == -signal.SIGKILL:
            return "its process was killed; the system may be out of memory"
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"exited with code {code}"
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        return f"its process {how}{': ' + lines[-1].strip() if lines else ''}"
