"""A fixed load on a Triton server: so many clients, each of which asks again as soon as it is answered."""

from __future__ import annotations

import itertools
import statistics
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

OUTPUT = "last_hidden_state"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """What came of a load."""

    clients: int
    seconds: float
    """From the first request to the last answer."""
    latencies: tuple[float, ...]
    """Seconds, one an answered request."""
    errors: tuple[str, ...] = field(default=())

    @property
    def rate(self) -> float:
        """Requests a second."""
        return len(self.latencies) / self.seconds

    def percentile(self, percent: int) -> float:
        """Latency that so many percent of requests do not exceed, in seconds."""
        return statistics.quantiles(self.latencies, n=100, method="inclusive")[percent - 1]


def run_load(address: str, model: str, prompts: Sequence[str], *, clients: int, seconds: float) -> Answers:
    """Ask for one prompt at a time over gRPC.

    Args:
        address: of the server's gRPC port.
        model: the one that takes `text`.
        prompts: asked for in turn, by each client from another one on.
        clients: at a time.
        seconds: after which no request is sent any more.
    """
    client = _Client(address, model)
    begin = time.perf_counter()
    threads = [
        threading.Thread(target=client.ask, args=([*prompts[number:], *prompts[:number]], begin + seconds))
        for number in range(clients)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - begin
    return Answers(clients=clients, seconds=seconds, latencies=tuple(client.latencies), errors=tuple(client.errors))


class _Client:
    """Asks, in any number of threads, and keeps what came of it."""

    def __init__(self, address: str, model: str) -> None:
        self._address = address
        self._model = model
        self.latencies: list[float] = []
        self.errors: list[str] = []

    def ask(self, prompts: Sequence[str], deadline: float) -> None:
        from tritonclient import grpc
        from tritonclient.utils import InferenceServerException

        with grpc.InferenceServerClient(self._address) as connection:
            for prompt in itertools.cycle(prompts):
                begin = time.perf_counter()
                if begin >= deadline:
                    return
                text = grpc.InferInput("text", [1, 1], "BYTES")
                text.set_data_from_numpy(np.array([[prompt.encode()]], dtype=object))
                try:
                    answer = connection.infer(self._model, [text]).as_numpy(OUTPUT)
                except InferenceServerException as error:
                    self.errors.append(str(error))
                    continue
                self.latencies.append(time.perf_counter() - begin)
                if answer is None or not np.isfinite(answer).all():
                    self.errors.append("an answer is not finite")
