"""Triton's part of serve.py: throughput and latency under load, memory over time, memory of several instances."""

from __future__ import annotations

import statistics
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from exporters import REPOSITORY
from load import Answers, run_load
from process import MIB
from report import machine_line, print_table, write_records

from skrr_export.measure.memory import kernel_fields, memory_of
from skrr_export.prompts import default_prompts

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

sys.path.append(str(REPOSITORY))
from runtimes.triton.local_server import Server, running

CLIENTS = (1, 4, 16)
INSTANCES = (1, 2)
MODEL = "t5"
WARM_UP_SECONDS = 5
SAMPLE_SECONDS = 0.5
LARGEST_DRIFT = 0.03
"""Of the resident set between the first and the last quarter of a load."""


@dataclass(frozen=True, slots=True)
class Resident:
    """The server's resident set over a load, its models' processes included: means of quarters, in bytes."""

    first: float
    last: float

    @property
    def drift(self) -> float:
        """Growth from the first quarter to the last."""
        return self.last / self.first - 1


class Watch:
    """Samples the resident set while a block runs; a context manager."""

    def __init__(self, server: Server) -> None:
        self._pids = [server.process.pid, *server.stubs()]
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self.samples: list[int] = []

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._done.wait(SAMPLE_SECONDS):
            self.samples.append(sum(kernel_fields(pid, "status")["VmRSS"] for pid in self._pids))

    def result(self) -> Resident:
        """What the samples come to."""
        quarter = max(1, len(self.samples) // 4)
        return Resident(statistics.mean(self.samples[:quarter]), statistics.mean(self.samples[-quarter:]))


def write_repository(bundle: Path, repository: Path, instances: int) -> None:
    """Write the model repository with our own command."""
    command = [
        sys.executable, "-m", "skrr_export", "triton", str(bundle), "-o", str(repository), "--name", MODEL,
        "--instances", str(instances), "--force", "--quiet",
    ]  # fmt: skip
    subprocess.run(command, check=True)


def under_load(server: Server, prompts: Sequence[str], clients: int, seconds: float) -> dict[str, Any]:
    """A record of one load."""
    run_load(server.grpc, MODEL, prompts, clients=clients, seconds=WARM_UP_SECONDS)
    with Watch(server) as watch:
        answers = run_load(server.grpc, MODEL, prompts, clients=clients, seconds=seconds)
    return {"subject": f"{clients} clients", **_facts(answers), "resident": asdict(watch.result())}


def _facts(answers: Answers) -> dict[str, Any]:
    return {
        "clients": answers.clients,
        "seconds": answers.seconds,
        "requests": len(answers.latencies),
        "errors": list(answers.errors),
        "rate": answers.rate,
        **{f"p{percent}": answers.percentile(percent) for percent in (50, 95, 99)},
    }


def of_instances(bundle: Path, repository: Path, prompts: Sequence[str], instances: int) -> dict[str, Any]:
    """A record of the memory that so many instances hold, once each has answered."""
    write_repository(bundle, repository, instances)
    with running(repository) as server:
        run_load(server.grpc, MODEL, prompts, clients=2 * instances, seconds=WARM_UP_SECONDS)
        memory = [memory_of(pid) for pid in server.stubs()]
    return {
        "subject": f"{instances} instances",
        "instances": instances,
        "processes": len(memory),
        "proportional": sum(one.proportional for one in memory),
        "anonymous": sum(one.anonymous for one in memory),
    }


def measure_triton(bundle: Path, work: Path, seconds: float) -> bool:
    """Measure, print and record; whether every request was answered and memory stayed flat."""
    prompts = [prompt for prompt in default_prompts() if prompt]
    repository = work / "models"
    write_repository(bundle, repository, 1)
    begin = time.perf_counter()
    with running(repository) as server:
        started = time.perf_counter() - begin
        loads = [under_load(server, prompts, clients, seconds) for clients in CLIENTS]
    instances = [of_instances(bundle, repository, prompts, count) for count in INSTANCES]
    _print(loads, instances, started, (bundle / "weights.safetensors").stat().st_size)
    write_records(work, "serve-triton", [*loads, *instances])
    flat = all(abs(Resident(**load["resident"]).drift) <= LARGEST_DRIFT for load in loads)
    return flat and not any(load["errors"] for load in loads)


def _print(loads: Sequence[dict[str, Any]], instances: Sequence[dict[str, Any]], started: float, weights: int) -> None:
    rows = [
        [
            str(load["clients"]),
            f"{load['rate']:.2f}",
            *(f"{load[name] * 1000:,.0f}" for name in ("p50", "p95", "p99")),
            str(load["requests"]),
            str(len(load["errors"])),
            f"{Resident(**load['resident']).drift:+.1%}",
        ]
        for load in loads
    ]
    header = ("clients", "requests/s", "p50 ms", "p95 ms", "p99 ms", "answered", "errors", "RSS, last quarter")
    print_table("Triton, Python backend on the CPU", header, rows, f"{machine_line()}; ready after {started:.1f} s")
    rows = [
        [str(one["instances"]), f"{one['proportional'] / MIB:,.0f}", f"{one['anonymous'] / MIB:,.0f}"]
        for one in instances
    ]
    print_table(
        "Instances share the weights",
        ("instances", "PSS MiB", "of which anonymous"),
        rows,
        f"The models' processes, tokenizer included, after requests; the weights are {weights / MIB:,.0f} MiB.",
    )
