"""Bundles that exist only as a manifest, for what is decided without reading a file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from skrr_export.bundle import Bundle
from skrr_export.dtypes import BAKEABLE
from skrr_export.manifest import FileEntry, Manifest, OutputEntry
from skrr_export.outputs import LAST
from skrr_export.pipelines import PRESETS, Preset
from skrr_export.plan import Plan
from skrr_export.targets.tensorrt.options import Profile
from skrr_export.targets.tensorrt.record import EngineRecord

MANIFEST = Manifest(
    family="t5",
    num_layers=2,
    hidden_size=37,
    vocab_size=307,
    max_length=None,
    plan=Plan("t5", ((0, 0), (1, 1))),
    pipeline=PRESETS["plain"],
    dtype=BAKEABLE["fp32"],
    batch=None,
    sequence=None,
    outputs=(OutputEntry(LAST, 37),),
    total_parameters=100,
    kept_parameters=100,
    targets={"onnx": {"file": "model.onnx"}},
    files={"weights.safetensors": FileEntry("0" * 64, 1), "model.onnx": FileEntry("0" * 64, 1)},
)


def bundle(
    pipeline: str | Preset = "plain",
    dtype: str = "fp32",
    *,
    directory: str = "/bundles/t5.bundle",
    targets: dict[str, Any] | None = None,
    **changes: Any,
) -> Bundle:
    """A bundle with an ONNX graph, and the one for CPUs if it is half precision; pooled vectors are 29 wide."""
    preset = PRESETS[pipeline] if isinstance(pipeline, str) else pipeline
    onnx: dict[str, Any] = {"file": "model.onnx"}
    if dtype != "fp32":
        onnx["cpu"] = {"file": "model.cpu.onnx", "dtype": "fp32"}
    manifest = replace(
        MANIFEST,
        pipeline=preset,
        outputs=tuple(OutputEntry(output, 29 if output.pooled else 37) for output in preset.outputs),
        dtype=BAKEABLE[dtype],
        targets={"onnx": onnx} if targets is None else targets,
        **changes,
    )
    return Bundle(Path(directory), manifest)


def engine(profile: str, **changes: Any) -> dict[str, Any]:
    """A manifest's entry of a TensorRT engine."""
    record = EngineRecord(
        file="model.tensorrt.engine",
        library="10.14.1",
        compute_capabilities=("90",),
        profile=Profile.parse(profile),
        precision="fp16",
        engine_nbytes=1,
        weights_nbytes=1,
        layers=1,
    )
    return replace(record, **changes).to_entry()
