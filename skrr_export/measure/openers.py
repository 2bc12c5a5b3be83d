"""How a subject's process opens what is measured: a target of a bundle, PyTorch, or the fp32 reference.

Each function imports what it needs, and returns what loads the encoder, so that the two can be told apart.
"""

from __future__ import annotations

import importlib
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from skrr_export.measure.worker import Embeddings, Encode, Ids, Load, Running

if TYPE_CHECKING:
    from skrr_export.targets.base import Session

_SESSIONS = {
    "onnx": "skrr_export.targets.onnx.session",
    "pt2": "skrr_export.targets.torch_export.session",
    "aoti": "skrr_export.targets.aot_inductor.session",
    "tensorrt": "skrr_export.targets.tensorrt.session",
    "tensorrt-rtx": "skrr_export.targets.tensorrt.session",
}
"""Where each target's session, and with it its libraries, are imported."""
_LATE = {
    "pt2": ("torch._export.serde.serialize", "torch.export.pt2_archive._package", "torch._inductor.sizevars"),
    "aoti": ("torch._inductor.package", "torch._inductor.codecache"),
}
"""What torch imports when it first loads such a file: no loading, to us. They are its own, so one may be absent."""


def open_session(bundle: Path, target: str, mode: str, device: str, threads: int) -> Load:
    """Open a bundle's target with the libraries that it needs, and no others."""
    from skrr_export.bundle import open_bundle
    from skrr_export.targets import open_target

    importlib.import_module(_SESSIONS[target])
    if target == "onnx":
        importlib.import_module("onnxruntime")
    else:
        _import_torch(threads)
    for module in _LATE.get(target, ()):
        with suppress(ImportError):
            importlib.import_module(module)
    runtime_threads = threads if target == "onnx" else None

    def load() -> Running:
        session = open_target(open_bundle(bundle), target, device=device, mode=mode, threads=runtime_threads)
        return Running(
            encode=promised(session),
            computes_in=session.computes_in.name,
            notes=lambda: session.notes,
            engine_bytes=session.engine_bytes,
        )

    return load


def promised(session: Session) -> Encode:
    """Runs a session, and sees to it that it gives what the bundle's manifest says.

    Raises:
        BundleError: when it is run, and lacks an output.
    """
    from skrr_export.errors import BundleError

    names = [output.name for output in session.bundle.manifest.pipeline.outputs]

    def encode(input_ids: Ids, attention_mask: Ids | None) -> Embeddings:
        found = session.encode(input_ids, attention_mask)
        if missing := [name for name in names if name not in found]:
            raise BundleError(f"it gives no {' and no '.join(missing)}, as its manifest says, but {', '.join(found)}")
        return {name: found[name] for name in names}

    return encode


def open_eager(bundle: Path, checkpoint: Path | None, planned: bool, device: str, threads: int) -> Load:
    """Open transformers on the checkpoint, or on the bundle's weights without one."""
    _import_torch(threads)
    from skrr_export.bundle import open_bundle
    from skrr_export.measure.reference import eager_model, model_class, run_model

    opened = open_bundle(bundle)
    model_class(opened)  # transformers imports it when it is asked for
    outputs = opened.manifest.pipeline.outputs

    def load() -> Running:
        model = eager_model(opened, checkpoint, planned=planned).to(device)
        encode = partial(run_model, model, outputs, device=device)
        return Running(encode=encode, computes_in=opened.manifest.dtype.name)

    return load


def open_reference(bundle: Path, checkpoint: Path | None, planned: bool, device: str, threads: int) -> Load:
    """Open the fp32 reference, of the plan or of the dense checkpoint."""
    _import_torch(threads)
    from skrr_export.bundle import open_bundle
    from skrr_export.measure.reference import dense_reference, planned_reference

    opened = open_bundle(bundle)

    def load() -> Running:
        if planned:
            model = planned_reference(opened, checkpoint, device)
        else:
            assert checkpoint is not None
            model = dense_reference(checkpoint, opened.manifest.pipeline.outputs, device)
        return Running(encode=model, computes_in="fp32")

    return load


def _import_torch(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)
