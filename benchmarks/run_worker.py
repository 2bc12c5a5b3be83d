"""One subject of run.py in a process of its own: it opens an encoder and then runs it as often as it is asked to.

    python run_worker.py KIND PATH THREADS

The first line on standard output is `{"load_seconds": ...}`. For each line of JSON on standard input,
`{"ids": FILE, "mask": FILE, "output": FILE or null}` with arrays as .npy files, it answers `{"seconds": ...}`.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int64]
Encode = Callable[[Ids, Ids], npt.NDArray[Any]]
"""Takes input ids and attention mask, both `[batch, tokens]`; returns `last_hidden_state`."""


def open_eager(path: Path, threads: int, dtype: str | None = None) -> Callable[[], Encode]:
    """PyTorch as transformers runs it, in the precision of the checkpoint or in another."""
    import torch
    from transformers import AutoConfig, AutoModel, T5EncoderModel

    torch.set_num_threads(threads)

    def load() -> Encode:
        encoder = T5EncoderModel if AutoConfig.from_pretrained(path).model_type == "t5" else AutoModel
        model = encoder.from_pretrained(path, **({} if dtype is None else {"dtype": getattr(torch, dtype)}))

        def encode(ids: Ids, mask: Ids) -> npt.NDArray[Any]:
            with torch.inference_mode():
                output = model(input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask))
            # NumPy has no bf16; another precision is left as it is.
            hidden = output.last_hidden_state
            result: npt.NDArray[Any] = (hidden.float() if hidden.dtype is torch.bfloat16 else hidden).numpy()
            return result

        return encode

    return load


def open_onnx(path: Path, threads: int) -> Callable[[], Encode]:
    """An ONNX file as ONNX Runtime runs it by default. A mask is passed where the graph has an input for it."""
    import onnxruntime

    def load() -> Encode:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(path / "model.onnx", options, providers=["CPUExecutionProvider"])
        inputs = {node.name for node in session.get_inputs()}

        def encode(ids: Ids, mask: Ids) -> npt.NDArray[Any]:
            feeds = {"input_ids": ids, "attention_mask": mask}
            feeds = {name: value for name, value in feeds.items() if name in inputs}
            result: npt.NDArray[Any] = session.run(["last_hidden_state"], feeds)[0]
            return result

        return encode

    return load


def open_bundle(path: Path, threads: int, mode: str) -> Callable[[], Encode]:
    """A bundle of ours."""
    # Loading is timed without importing libraries, for all subjects alike; ours imports this one only when it opens.
    import onnxruntime  # noqa: F401

    import skrr_export

    def load() -> Encode:
        session = skrr_export.open_session(path, mode=mode, threads=threads)
        return lambda ids, mask: session.encode(ids, mask)["last_hidden_state"]

    return load


def open_compiled(path: Path, threads: int, target: str) -> Callable[[], Encode]:
    """A bundle of ours, run by torch."""
    import torch

    import skrr_export

    torch.set_num_threads(threads)

    def load() -> Encode:
        session = skrr_export.open_session(path, target=target)
        return lambda ids, mask: session.encode(ids, mask)["last_hidden_state"]

    return load


OPENERS: dict[str, Callable[[Path, int], Callable[[], Encode]]] = {
    "eager": open_eager,
    "eager-bf16": lambda path, threads: open_eager(path, threads, "bfloat16"),
    "onnx": open_onnx,
    "mapped": lambda path, threads: open_bundle(path, threads, "mapped"),
    "prepacked": lambda path, threads: open_bundle(path, threads, "prepacked"),
    "pt2": lambda path, threads: open_compiled(path, threads, "pt2"),
    "aoti": lambda path, threads: open_compiled(path, threads, "aoti"),
}


def main() -> None:
    """Command line."""
    kind, path, threads = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever a library prints must not come between the answers
    load = OPENERS[kind](path, threads)
    start = time.perf_counter()
    encode = load()
    print(json.dumps({"load_seconds": time.perf_counter() - start}), file=answers)
    for line in sys.stdin:
        request = json.loads(line)
        ids, mask = np.load(request["ids"]), np.load(request["mask"])
        start = time.perf_counter()
        output = encode(ids, mask)
        seconds = time.perf_counter() - start
        if request["output"]:
            np.save(request["output"], output)
        print(json.dumps({"seconds": seconds}), file=answers)


if __name__ == "__main__":
    main()
