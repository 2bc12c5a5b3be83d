"""The processes that share a search: torchrun's, or this one alone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from skrr_export.errors import InputError, SkrrError

Values = npt.NDArray[np.float64]

_PATIENCE = timedelta(days=7)
"""How long a process waits for the others: a large encoder's longest chunk takes hours where the null prompt takes
seconds. One that ends is noticed at once."""


@dataclass(frozen=True, slots=True)
class Workers:
    """This process among those that share a search. Every one takes every decision, on the same numbers."""

    rank: int
    size: int
    device: torch.device

    def gather(self, values: Values) -> Values:
        """Merge arrays in which each number is set by one process and zero in all others; exact, for x + 0 is x."""
        if self.size == 1:
            return values
        tensor = torch.from_numpy(values).to(self.device)
        with _together():
            torch.distributed.all_reduce(tensor)
        merged: Values = tensor.cpu().numpy()
        return merged

    def total(self, count: int) -> int:
        """The sum of every process's count."""
        counts = np.zeros(self.size)
        counts[self.rank] = count
        return int(self.gather(counts).sum())

    def agree(self, value: Any) -> Any:
        """What the first process says, in all."""
        if self.size == 1:
            return value
        values = [value]
        with _together():
            torch.distributed.broadcast_object_list(values, src=0, device=self.device)
        return values[0]

    def leave(self) -> None:
        """End the sharing."""
        if self.size > 1:
            torch.distributed.destroy_process_group()


def join_workers(device: str) -> Workers:
    """Find this process's device and, under torchrun, its siblings.

    Args:
        device: `cpu`, `cuda`, `cuda:1`, or `auto` for a GPU if there is one. Under torchrun each process takes the GPU
            of its own number.

    Raises:
        InputError: there is no such device.
    """
    size, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    chosen = _device(device, int(os.environ.get("LOCAL_RANK", "0")) if size > 1 else None)
    if size > 1:
        if chosen.type == "cuda":
            torch.cuda.set_device(chosen)
        with _together():
            backend = "nccl" if chosen.type == "cuda" else "gloo"
            torch.distributed.init_process_group(backend, timeout=_PATIENCE)
    return Workers(rank, size, chosen)


@contextmanager
def _together() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        why = str(error)[:200]
        raise SkrrError(f"the processes of this search lost each other, perhaps because one ended: {why}") from error


def _device(name: str, local_rank: int | None) -> torch.device:
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        name = "cuda" if count else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"unknown device '{name}'; choose auto, cpu, cuda or cuda:N") from error
    if device.type == "cpu":
        return torch.device("cpu")
    if device.type != "cuda":
        raise InputError(f"unknown device '{name}'; choose auto, cpu, cuda or cuda:N")
    if not count:
        raise InputError(f"no GPU for --device {name}: torch {torch.__version__} sees none; use --device cpu")
    index = device.index if device.index is not None else (local_rank or 0)
    if index >= count:
        raise InputError(f"no GPU number {index}: torch sees {count}")
    return torch.device("cuda", index)
