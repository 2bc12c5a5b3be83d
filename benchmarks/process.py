"""Run a command in a fresh process and measure it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

KIB, MIB = 1024, 1024**2

# Linux carries the peak RSS of the old memory image over an exec, whether the process came from fork, vfork or
# posix_spawn; a child of a large parent would start at the parent's peak. So this small interpreter stands between:
# it takes about 10 MiB, starts the command, and reports through a pipe which the command does not inherit.
_LAUNCHER = """
import json, os, select, sys, time
report, command = int(sys.argv[1]), sys.argv[2:]
os.set_inheritable(report, False)
start = time.perf_counter()
pid = os.posix_spawnp(command[0], command, os.environ)
ended, anonymous = os.pidfd_open(pid), 0
while not select.select([ended], [], [], 0.02)[0]:
    with open(f"/proc/{pid}/status") as status:
        sizes = [line.split()[1] for line in status if line.startswith("RssAnon:")]
    anonymous = max([anonymous, *map(int, sizes)])
_, status, usage = os.wait4(pid, 0)
result = {
    "wall": time.perf_counter() - start, "cpu": usage.ru_utime + usage.ru_stime, "peak": usage.ru_maxrss,
    "anonymous": anonymous, "code": os.waitstatus_to_exitcode(status),
}
os.write(report, json.dumps(result).encode())
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What running a command took."""

    command: tuple[str, ...]
    exit_code: int
    """Negative when a signal ended it, as `subprocess` has it."""
    wall_seconds: float
    cpu_seconds: float
    """User and system time, of the process and of the children it waited for."""
    peak_rss_bytes: int
    """Largest resident set of the process, or of a child it waited for if that was larger. Pages of files it mapped
    count, also those the page cache held already."""
    peak_anonymous_bytes: int
    """Largest anonymous memory of the process itself: what it allocated, without mapped files. Sampled every 20 ms,
    so a short peak may be missed."""
    stdout: str
    stderr: str

    def facts(self) -> dict[str, Any]:
        """For the JSON file: all but what the command printed."""
        return {name: value for name, value in asdict(self).items() if name not in ("stdout", "stderr")}


class CommandError(Exception):
    """A measured command exited with another code than 0; the message ends with what it printed last."""


def run_measured(
    command: Sequence[str], *, cwd: Path | None = None, environment: Mapping[str, str] | None = None
) -> Result:
    """Run a command to its end in a fresh process.

    Args:
        command: program, looked up on the path, and arguments.
        cwd: directory to run in; the current one if None.
        environment: variables to set on top of the current ones.

    Raises:
        CommandError: the exit code was not 0.
        FileNotFoundError: there is no such program.
    """
    receive, send = os.pipe()
    launcher = [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(send), *command]
    try:
        done = subprocess.run(
            launcher,
            check=False,
            cwd=cwd,
            env={**os.environ, **(environment or {})},
            pass_fds=(send,),
            capture_output=True,
            text=True,
        )
    finally:
        os.close(send)
    with os.fdopen(receive) as pipe:
        report = pipe.read()
    if not report:
        raise FileNotFoundError(f"cannot start {command[0]}: {done.stderr.strip()[-500:]}")
    measured = json.loads(report)
    result = Result(
        command=tuple(command),
        exit_code=measured["code"],
        wall_seconds=measured["wall"],
        cpu_seconds=measured["cpu"],
        peak_rss_bytes=measured["peak"] * KIB,
        peak_anonymous_bytes=measured["anonymous"] * KIB,
        stdout=done.stdout,
        stderr=done.stderr,
    )
    if result.exit_code:
        raise CommandError(
            f"{' '.join(command)} exited {result.exit_code}\n{result.stdout[-1000:]}\n{result.stderr[-3000:]}"
        )
    return result
