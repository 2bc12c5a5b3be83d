"""What this machine can do at best: the speed of a copy that no cache holds, and of a large matrix product.

    python -m skrr_export.measure.hardware '{"device": "cpu", "threads": 2, "dtypes": ["fp32"]}'

prints both as JSON. It is a process of its own so that whoever asks holds none of its memory.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterable

from skrr_export.dtypes import bakeable
from skrr_export.measure.process import Surroundings
from skrr_export.measure.record import Hardware

COPY_BYTES = {"cpu": 256 << 20, "cuda": 1 << 30}
"""Of each of the two buffers: far more than any cache."""
MATMUL_SIZE = {"cpu": 2048, "cuda": 8192}
"""Rows and columns of the square matrices: large enough to keep all units busy."""
_REPEATS = 7
"""The best one counts: what disturbs a measurement only ever makes it slower."""


def measure_hardware(device: str, dtypes: Iterable[str], surroundings: Surroundings) -> Hardware:
    """Measure in a fresh process; what it fails to measure is `None`, or missing from the mapping."""
    question = {"device": device, "threads": surroundings.threads, "dtypes": sorted(set(dtypes))}
    try:
        done = subprocess.run(  # noqa: S603 - our own interpreter and module
            [sys.executable, "-m", __name__, json.dumps(question)],
            env=surroundings.environment(),
            timeout=surroundings.time_limit,
            capture_output=True,
            text=True,
            check=True,
        )
        answer = json.loads(done.stdout)
    except (subprocess.SubprocessError, ValueError):
        return Hardware(copy_bytes_per_second=None, matmul_flops_per_second={})
    return Hardware(copy_bytes_per_second=answer["copy"], matmul_flops_per_second=answer["matmul"])


def main() -> None:
    """Measure, and print the answer."""
    import torch

    question = json.loads(sys.argv[1])
    torch.set_num_threads(question["threads"])
    device, kind = question["device"], question["device"].partition(":")[0]

    def wait() -> None:
        if kind == "cuda":
            torch.cuda.synchronize()

    source = torch.ones(COPY_BYTES[kind], dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    copy = 2 * source.nbytes / _best(lambda: target.copy_(source), wait)
    matmul = {}
    size = MATMUL_SIZE[kind]
    for name in question["dtypes"]:
        a, b = (torch.randn(size, size, device=device).to(bakeable(name).torch) for _ in range(2))
        matmul[name] = 2 * size**3 / _best(lambda a=a, b=b: a @ b, wait)  # type: ignore[misc]
    print(json.dumps({"copy": copy, "matmul": matmul}))  # noqa: T201 - this is its answer


def _best(function: Callable[[], object], wait: Callable[[], None]) -> float:
    """Least seconds of a call, after one to warm up."""
    times = []
    for _ in range(1 + _REPEATS):
        wait()
        begin = time.perf_counter()
        function()
        wait()
        times.append(time.perf_counter() - begin)
    return min(times[1:])


if __name__ == "__main__":
    main()
