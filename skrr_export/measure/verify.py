"""Verify a bundle: drift of a target against transformers under the same plan, and loss against the dense original."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from skrr_export.bundle import Bundle
from skrr_export.calibration import Chunk
from skrr_export.dtypes import FP16
from skrr_export.encoders import bundle_encoder
from skrr_export.measure.cases import Case, cases_of, chosen_prompts, reads_padding
from skrr_export.measure.comparison import ComparisonMeter
from skrr_export.measure.fidelity import Comparison
from skrr_export.measure.limits import LIMITS
from skrr_export.measure.openers import promised
from skrr_export.measure.stored import Stored
from skrr_export.measure.verdicts import judge_drift
from skrr_export.measure.worker import Embeddings, Encode
from skrr_export.pipelines import Preset
from skrr_export.progress import Progress, silent
from skrr_export.targets.base import Session


@dataclass(frozen=True, slots=True)
class Headroom:
    """How far an fp16 bundle's activations are from overflowing where they are computed in fp16."""

    activation: str
    """The one that gets largest, as `skrr_export.rescale.Maxima` names it."""
    value: float
    """Its largest absolute value, as computed in fp32."""
    factor: float
    """How many times that goes into the largest fp16 number."""

    def __str__(self) -> str:
        return (
            f"fp16 head-room: the largest activation, {self.value:.4g} at {self.activation}, goes {self.factor:.3g} "
            f"times into 65504"
        )


@dataclass(frozen=True, slots=True)
class Report:
    """What `verify` found."""

    computes_in: str
    """Precision the target computes in, which decides the limits."""
    cases: int
    prompts: int
    """0 where the bundle carries no tokenizer: random ids only."""
    drift: Comparison
    loss: Comparison | None
    """`None`: not measured, no dense reference was given."""
    headroom: Headroom | None
    """`None`: not measured, the bundle is not fp16."""
    failures: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether everything is within its limit."""
        return not self.failures

    def to_dict(self) -> dict[str, Any]:
        """For the JSON report."""
        return {
            "passed": self.passed,
            "failures": list(self.failures),
            "computes_in": self.computes_in,
            "limits": asdict(LIMITS[self.computes_in]),
            "cases": self.cases,
            "prompts": self.prompts,
            "drift": self.drift.to_dict(),
            "loss": self.loss and self.loss.to_dict(),
            "headroom": self.headroom and asdict(self.headroom),
            "notes": list(self.notes),
        }


def verify(
    bundle: Bundle,
    session: Session,
    prompts: Sequence[str] | None = None,
    *,
    reference: Path | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> Report:
    """Compare a session with transformers.

    Args:
        bundle: what the session runs.
        session: the target under test.
        prompts: to compare on, beside random ids; default: the shipped ones, if the bundle carries a tokenizer.
        reference: the original checkpoint's directory. With it, drift also covers the baking of the weights, and the
            loss is measured.
        seed: of the random ids.
        progress: told how far the job is.

    Raises:
        SkrrError: something cannot be loaded.
    """
    from skrr_export.measure.reference import dense_reference, planned_reference

    preset = bundle.manifest.pipeline
    prompts = chosen_prompts(bundle, prompts)
    cases = cases_of(bundle, prompts, seed)

    def run(encode: Encode, what: str) -> Iterator[Embeddings]:
        for done, case in enumerate(cases):
            progress(f"{what}: {case.name}", done, len(cases))
            yield encode(case.input_ids, case.given(preset))
        progress(what, len(cases), len(cases))

    with Stored() as ours:
        for embeddings in run(promised(session), "target"):
            ours.add(embeddings)
        drift = _compare(preset, cases, ours, run(planned_reference(bundle, reference), "reference"))
        loss = None
        if reference is not None:
            dense = run(dense_reference(reference, preset.outputs), "dense reference")
            loss = _compare(preset, cases, ours, dense)
    computes_in = session.computes_in.name
    headroom = _headroom(bundle, cases, progress) if bundle.manifest.dtype is FP16 else None
    verdicts = judge_drift(drift, computes_in, reads_padding=reads_padding(preset))
    failures = [verdict.message for verdict in verdicts if not verdict.passed]
    if headroom is not None and headroom.factor < 1:
        failures.append(f"{headroom}: it overflows; export to bf16")
    return Report(
        computes_in=computes_in,
        cases=len(cases),
        prompts=len(prompts),
        drift=drift,
        loss=loss,
        headroom=headroom,
        failures=tuple(failures),
        notes=session.notes if prompts else (*session.notes, "no tokenizer in the bundle: compared on random ids only"),
    )


def _compare(
    preset: Preset, cases: Sequence[Case], ours: Iterable[Embeddings], reference: Iterable[Embeddings]
) -> Comparison:
    meter = ComparisonMeter(preset.outputs)
    for case, found, expected in zip(cases, ours, reference, strict=True):
        meter.add(case, found, expected)
    return meter.result()


def _headroom(bundle: Bundle, cases: Sequence[Case], progress: Progress) -> Headroom:
    """Measure the bundle's own weights; whatever the target computes in, the answer is for hardware with fp16."""
    from skrr_export.rescale import measure_maxima

    preset = bundle.manifest.pipeline
    chunks = [Chunk(case.input_ids, case.given(preset), case.real) for case in cases]
    encoder = bundle_encoder(bundle)
    plan, tensors = bundle.manifest.plan, bundle.parameters()
    maxima = measure_maxima(encoder, tensors, plan, chunks, preset.outputs, masked=preset.masked, progress=progress)
    name, value = maxima.largest
    return Headroom(name, value, maxima.headroom)
