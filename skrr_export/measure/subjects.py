"""What is measured: PyTorch dense and under the plan, and every target that was asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from skrr_export.bundle import Bundle
from skrr_export.errors import InputError
from skrr_export.measure import openers
from skrr_export.measure.work import Work
from skrr_export.measure.worker import Opener

DENSE, PLANNED = "torch-dense", "torch-plan"
PREPACKED = "onnx:prepacked"
ENGINES = ("tensorrt", "tensorrt-rtx")
TITLES = {
    "onnx": "ONNX Runtime, mapped",
    PREPACKED: "ONNX Runtime, pre-packed",
    "pt2": "torch.export program",
    "aoti": "AOTInductor",
    "tensorrt": "TensorRT",
    "tensorrt-rtx": "TensorRT-RTX",
}
"""Of every target that can be measured; on a CPU, ONNX Runtime has two ways."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """One way to run the encoder."""

    name: str
    title: str
    role: Literal["pytorch", "target", "peer"]
    planned: bool
    """Whether it runs the plan, or the dense encoder."""
    opener: Opener
    work: Work | None = None
    """What it has to do at least; `None`: not known, and so its physical limit neither."""
    skipped: str | None = None
    """Why it cannot run on this device."""


def subjects_of(
    bundle: Bundle,
    targets: Sequence[str],
    checkpoint: Path | None,
    *,
    device: str,
    threads: int,
    dense: Work,
    planned: Work,
) -> Iterator[Subject]:
    """The subjects, PyTorch first.

    Args:
        bundle: what is measured.
        targets: names in `TITLES`.
        checkpoint: the original; without it there is no dense encoder, and PyTorch's weights come from the bundle.
        device: `cpu` or `cuda`.
        threads: for the operators of one call.
        dense: work of the dense encoder.
        planned: work under the plan.
    """
    dtype = bundle.manifest.dtype.name
    for name, runs_plan in ((DENSE, False), (PLANNED, True)):
        if runs_plan or checkpoint is not None:
            yield Subject(
                name=name,
                title=f"PyTorch {dtype}, {'the plan' if runs_plan else 'dense'}",
                role="pytorch",
                planned=runs_plan,
                opener=Opener.of(
                    openers.open_eager,
                    bundle=bundle.directory,
                    checkpoint=checkpoint,
                    planned=runs_plan,
                    device=device,
                    threads=threads,
                ),
                work=planned if runs_plan else dense,
            )
    for name in targets:
        target, _, mode = name.partition(":")
        yield Subject(
            name=name,
            title=TITLES[name],
            role="target",
            planned=True,
            opener=Opener.of(
                openers.open_session,
                bundle=bundle.directory,
                target=target,
                mode=mode or "mapped",
                device=device,
                threads=threads,
            ),
            work=planned,
            skipped=_reason(target, device),
        )


def chosen_targets(bundle: Bundle, names: Sequence[str], device: str) -> tuple[str, ...]:
    """The targets to measure: those named, or all that the bundle has.

    Raises:
        BundleError: the bundle lacks one.
        InputError: one is unknown, or cannot run on this device.
    """
    if tuple(names) == ("all",):
        prepacked = [PREPACKED] if device == "cpu" and "onnx" in bundle.manifest.targets else []
        return tuple(name for name in TITLES if name in {*bundle.manifest.targets, *prepacked})
    for name in names:
        if name == "all":
            raise InputError("'all' stands for every target; give it alone")
        if name not in TITLES:
            raise InputError(f"unknown target '{name}'; known: all, {', '.join(TITLES)}")
        bundle.target_file(name.partition(":")[0])
        if (reason := _reason(name.partition(":")[0], device)) is not None:
            raise InputError(f"the target {name} cannot be measured here: {reason}")
        if name == PREPACKED and device != "cpu":
            raise InputError(f"{PREPACKED} is for CPUs; on a GPU measure onnx")
    return tuple(dict.fromkeys(names))


def _reason(target: str, device: str) -> str | None:
    return "an engine runs on an NVIDIA GPU: use --device cuda" if target in ENGINES and device == "cpu" else None
