"""How the process of a subject opens what is not ours; see `skrr_export.measure.openers`."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from skrr_export.measure.worker import Embeddings, Ids, Load, Running

OUTPUT = "last_hidden_state"
"""The output of every peer's graph."""


def open_onnx(directory: Path, threads: int) -> Load:
    """A peer's ONNX file as ONNX Runtime runs it by default; the mask is given where the graph has an input for it."""
    import onnxruntime

    def load() -> Running:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(directory / "model.onnx", options, providers=["CPUExecutionProvider"])
        inputs = {node.name for node in session.get_inputs()}

        def encode(ids: Ids, mask: Ids | None) -> Embeddings:
            feeds = {"input_ids": ids, "attention_mask": mask}
            [hidden] = session.run([OUTPUT], {name: feeds[name] for name in inputs})
            return {OUTPUT: hidden}

        notes = () if "attention_mask" in inputs else ("its graph uses no attention mask",)
        return Running(encode=encode, computes_in="fp32", notes=lambda: notes)

    return load


def open_library(library: Path, bundle: Path, threads: int) -> Load:
    """A bundle as the C++ library runs it, called through its C interface."""
    from runtimes.cpp.binding import Library

    def load() -> Running:
        encoder = Library(library).open(bundle, device=b"cpu", threads=threads)
        return Running(
            encode=encoder.encode_ids,
            computes_in=encoder.info["computes_in"],
        )

    return load


def open_compiled(bundle: Path, checkpoint: Path, device: str, threads: int, sizes: int) -> Load:
    """`torch.compile` of a transformers model under a bundle's plan, compiled for each of the first so many sizes."""
    import torch

    from skrr_export.bundle import open_bundle
    from skrr_export.measure.reference import eager_model, model_class, run_model

    torch.set_num_threads(threads)
    torch._dynamo.config.recompile_limit = sizes
    opened = open_bundle(bundle)
    model_class(opened)  # imported now, so that loading does not count it

    def load() -> Running:
        model = torch.compile(eager_model(opened, checkpoint, planned=True).to(device), dynamic=False)
        return Running(
            encode=partial(run_model, model, opened.manifest.pipeline.outputs, device=device),
            computes_in=opened.manifest.dtype.name,
            notes=lambda: ("compiled for the sizes that are timed; others, on which it is compared, run uncompiled",),
        )

    return load
