"""Subjects whose behaviour is known: what the harness must see, and what it must survive.

Each is a `skrr_export.measure.worker.Open`.
"""

from __future__ import annotations

import mmap
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np

from skrr_export.measure.worker import Embeddings, Ids, Load, Running

MIB = 1 << 20
WIDTH = 8


def embed(ids: Ids, mask: Ids | None = None) -> Embeddings:
    """Embeddings that depend on the ids alone."""
    return {"last_hidden_state": np.sin(ids[..., None] * np.arange(1, WIDTH + 1)).astype(np.float32)}


def allocating(mib: int = 0) -> Load:
    """Allocates so much when it loads, and writes every page."""
    held = []

    def load() -> Running:
        held.append(np.ones(mib * MIB, np.uint8))
        return Running(encode=embed, computes_in="fp32")

    return load


def mapping(file: Path, copies: int = 0) -> Load:
    """Maps a file and reads all of it, and copies it so many times."""
    held: list[Any] = []

    def load() -> Running:
        with file.open("rb") as opened:
            held.append(mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ))
        sum(held[0][:: mmap.PAGESIZE])
        held.extend(bytearray(held[0]) for _ in range(copies))
        return Running(encode=embed, computes_in="fp32")

    return load


def brief(mib: int, seconds: float) -> Load:
    """Allocates for a moment while it loads."""

    def load() -> Running:
        passing = np.ones(mib * MIB, np.uint8)
        time.sleep(seconds)
        del passing
        return Running(encode=embed, computes_in="fp32")

    return load


def only_one(lock: Path) -> Load:
    """Loads in one process at a time, as what fills a GPU does."""

    def load() -> Running:
        if lock.exists():
            raise OSError("there is one already")
        lock.touch()
        return Running(encode=embed, computes_in="fp32")

    return load


def slow(seconds: float) -> Load:
    """Takes so long for every run."""

    def encode(ids: Ids, mask: Ids | None) -> Embeddings:
        time.sleep(seconds)
        return embed(ids)

    return lambda: Running(encode=encode, computes_in="fp32")


def failing(how: str, after: int = 0) -> Load:
    """Fails after so many runs: `raise`, `memory`, `exit`, `kill`, `abort` or `hang`."""
    runs = []

    def encode(ids: Ids, mask: Ids | None) -> Embeddings:
        runs.append(ids)
        if len(runs) > after:
            _fail(how)
        return embed(ids)

    return lambda: Running(encode=encode, computes_in="fp32")


def _fail(how: str) -> None:
    if how == "raise":
        raise ValueError("no such luck\nsecond line")
    if how == "memory":
        raise MemoryError
    if how == "exit":
        os.write(2, b"last words\n")
        os._exit(3)
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "abort":
        os.abort()
    time.sleep(60)


def filling_the_gpu() -> Load:
    """Allocates more than any GPU has."""
    import torch

    def load() -> Running:
        held = torch.empty(1 << 45, dtype=torch.uint8, device="cuda")
        return Running(encode=lambda ids, mask: {"held": held[: ids.size].cpu().numpy()}, computes_in="fp32")

    return load
