"""Devices are found or refused by name, and processes merge numbers exactly."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from skrr_export.errors import InputError
from skrr_export.search.workers import Workers, join_workers

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")
"""What torchrun sets."""


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Pretend that torch sees so many GPUs."""

    def pretend(count: int) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)

    return pretend


# One process


def test_a_process_alone_says_and_hears_itself() -> None:
    workers = join_workers("cpu")
    assert workers == Workers(0, 1, torch.device("cpu"))
    values = np.array([1.0, np.inf, -0.0])
    assert workers.gather(values) is values
    said = {"anything": object()}
    assert workers.agree(said) is said
    assert workers.total(7) == 7
    workers.leave()
    assert not torch.distributed.is_initialized()


@pytest.mark.parametrize(
    ("name", "count", "found"),
    [
        ("auto", 0, "cpu"),
        ("auto", 2, "cuda:0"),
        ("cpu", 2, "cpu"),
        ("cpu:0", 0, "cpu"),
        ("cuda", 2, "cuda:0"),
        ("cuda:0", 1, "cuda:0"),
        ("cuda:1", 2, "cuda:1"),
    ],
)
def test_a_device_is_found(gpus: Callable[[int], None], name: str, count: int, found: str) -> None:
    gpus(count)
    assert join_workers(name).device == torch.device(found)


@pytest.mark.parametrize(
    "name",
    ["", "gpu", "CUDA", "cuda:x", "cuda:-1", "cuda:99999999999", "auto:1", "mps", "meta", "xla", "a b", "\x1b[31m"],
)
@pytest.mark.parametrize("count", [0, 2])
def test_a_device_that_is_none(gpus: Callable[[int], None], name: str, count: int) -> None:
    gpus(count)
    with pytest.raises(InputError) as caught:
        join_workers(name)
    assert str(caught.value) == f"unknown device '{name}'; choose auto, cpu, cuda or cuda:N"


@pytest.mark.parametrize(
    ("name", "count", "message"),
    [
        ("cuda", 0, f"no GPU for --device cuda: torch {torch.__version__} sees none; use --device cpu"),
        ("cuda:3", 0, f"no GPU for --device cuda:3: torch {torch.__version__} sees none; use --device cpu"),
        ("cuda:2", 2, "no GPU number 2: torch sees 2"),
    ],
)
def test_a_gpu_that_is_not_there(gpus: Callable[[int], None], name: str, count: int, message: str) -> None:
    gpus(count)
    with pytest.raises(InputError) as caught:
        join_workers(name)
    assert str(caught.value) == message


# Several


@pytest.fixture
def joined(monkeypatch: pytest.MonkeyPatch, gpus: Callable[[int], None]) -> Callable[..., Any]:
    """How the third of four processes on a machine of so many GPUs would join the others."""

    def join(name: str, count: int) -> Any:
        gpus(count)
        for variable, value in {"RANK": 6, "WORLD_SIZE": 8, "LOCAL_RANK": 2, "LOCAL_WORLD_SIZE": 4}.items():
            monkeypatch.setenv(variable, str(value))
        calls: dict[str, Any] = {}
        monkeypatch.setattr(torch.cuda, "set_device", lambda device: calls.update(device=device))
        monkeypatch.setattr(
            torch.distributed, "init_process_group", lambda backend, timeout: calls.update(by=backend, for_=timeout)
        )
        workers = join_workers(name)
        return (workers.rank, workers.size, str(workers.device)), calls

    return join


@pytest.mark.parametrize(("name", "found"), [("auto", "cuda:2"), ("cuda", "cuda:2"), ("cuda:1", "cuda:1")])
def test_each_process_takes_the_gpu_of_its_own_number(joined: Callable[..., Any], name: str, found: str) -> None:
    workers, calls = joined(name, 4)
    assert workers == (6, 8, found)
    assert (calls["by"], str(calls["device"])) == ("nccl", found)


def test_processes_without_gpus_join_on_their_processors(joined: Callable[..., Any]) -> None:
    workers, calls = joined("auto", 0)
    assert workers == (6, 8, "cpu")
    assert calls["by"] == "gloo"
    assert "device" not in calls


def test_processes_wait_for_days_for_each_other(joined: Callable[..., Any]) -> None:
    """One measures the null prompt in seconds while another's chunk takes hours; torch's own limit is minutes."""
    assert joined("cpu", 0)[1]["for_"].days >= 1


def test_more_processes_than_gpus(joined: Callable[..., Any]) -> None:
    with pytest.raises(InputError, match=r"^no GPU number 2: torch sees 2$"):
        joined("auto", 2)


TWO = """
import json, sys
import numpy as np
from skrr_export.errors import SkrrError
from skrr_export.search.workers import join_workers

workers = join_workers("cpu")
values = np.array(json.loads(sys.argv[1]))
share = np.where(np.arange(len(values)) % 2 == workers.rank, values, 0.0)
merged = workers.gather(share)
agreed = workers.agree({"rank": workers.rank, "values": (1, None, "é")})
total = workers.total(3 + workers.rank)
print(json.dumps([workers.rank, workers.size, [value.hex() for value in merged.tolist()], agreed, total]), flush=True)
if workers.rank == 1:
    try:
        workers.agree(None)
    except SkrrError as error:
        print(type(error).__name__, " ".join(str(error).split()))
workers.leave()  # as a search does, however it ends: a thread of gloo's that outlives the interpreter aborts it
"""


def test_two_processes_merge_numbers_exactly_and_notice_when_one_ends() -> None:
    values = [0.1, 1e-320, float("inf"), 1 / 3, -1e308, 2.0**60 + 1, 5e-324]
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    command = [sys.executable, "-c", TWO, json.dumps(values)]
    processes = [
        subprocess.Popen(
            command,
            env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=300) for process in processes]
    finally:
        for process in processes:
            process.kill()
    lines = [out.splitlines() for out, _ in outputs]
    assert [process.returncode for process in processes] == [0, 0], outputs
    for rank in range(2):
        assert json.loads(lines[rank][0]) == [
            rank,
            2,
            [value.hex() for value in values],
            {"rank": 0, "values": [1, None, "é"]},
            7,
        ]
    assert lines[0][1:] == []
    (complaint,) = lines[1][1:]
    assert complaint.startswith("SkrrError the processes of this search lost each other, perhaps because one ended: ")
    assert len(complaint) < 350
