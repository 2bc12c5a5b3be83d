"""What this machine can do at best: the speed of a copy that no cache holds, and of a large matrix product.

Of the libraries that are there the fastest counts.

    python -m skrr_export.measure.hardware '{"device": "cpu", "threads": 2, "dtypes": ["fp32"]}'

prints both as JSON. It is a process of its own so that whoever asks holds none of its memory.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from skrr_export.dtypes import bakeable
from skrr_export.measure.process import Surroundings
from skrr_export.measure.record import Hardware

COPY_BYTES = {"cpu": 256 << 20, "cuda": 1 << 30}
"""Of each of the two buffers: far more than any cache."""
MATMUL_SIZE = {"cpu": 2048, "cuda": 8192}
"""Rows and columns of the square matrices: large enough to keep all units busy."""
_REPEATS, _BUDGET = 7, 2.0
"""Calls, and seconds after which no more are made. The best one counts: what disturbs a call only ever slows it."""


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


def fastest(first: Hardware, second: Hardware) -> Hardware:
    """The better of two measurements of one machine: what disturbs one only ever makes it slower."""
    copies = [one.copy_bytes_per_second for one in (first, second) if one.copy_bytes_per_second is not None]
    products = (first.matmul_flops_per_second, second.matmul_flops_per_second)
    names = dict.fromkeys(name for one in products for name in one)
    return Hardware(
        copy_bytes_per_second=max(copies, default=None),
        matmul_flops_per_second={name: max(one[name] for one in products if name in one) for name in names},
    )


def main() -> None:
    """Measure, and print the answer."""
    import torch
    from torch.nn.functional import linear

    question = json.loads(sys.argv[1])
    torch.set_num_threads(question["threads"])
    device = question["device"]

    def wait() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    source, target = (torch.ones(COPY_BYTES[device], dtype=torch.uint8, device=device) for _ in range(2))
    copy = 2 * source.nbytes / _best(partial(target.copy_, source), wait)
    matmul = {}
    size = MATMUL_SIZE[device]
    for name in question["dtypes"]:
        a, b = (torch.randn(size, size, device=device).to(bakeable(name).torch) for _ in range(2))
        # As weights lie: on processors without instructions for half precision torch.matmul is ten times slower in it.
        seconds = _best(partial(linear, a, b), wait)
        if (device, name) == ("cpu", "fp32") and (product := _onnx_product(a.numpy(), question["threads"])):
            seconds = min(seconds, _best(product, wait))
        matmul[name] = 2 * size**3 / seconds
    print(json.dumps({"copy": copy, "matmul": matmul}))  # noqa: T201 - this is its answer


def _onnx_product(matrix: Any, threads: int) -> Callable[[], object] | None:
    """ONNX Runtime's product of a matrix and itself: on some processors its kernels are faster than torch's."""
    try:
        import onnxruntime
    except ImportError:
        return None
    from onnx import TensorProto, helper, numpy_helper

    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, list(matrix.shape)) for name in ("x", "y")]
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    graph = helper.make_graph([node], "product", values[:1], values[1:], [numpy_helper.from_array(matrix, "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return partial(session.run, None, {"x": matrix})


def _best(function: Callable[[], object], wait: Callable[[], None]) -> float:
    """Least seconds of a call, after one to warm up."""
    function()
    wait()
    times: list[float] = []
    while len(times) < _REPEATS and sum(times) < _BUDGET:
        begin = time.perf_counter()
        function()
        wait()
        times.append(time.perf_counter() - begin)
    return min(times)


if __name__ == "__main__":
    main()
