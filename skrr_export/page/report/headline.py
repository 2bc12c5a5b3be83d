"""The numbers that matter most, in words: for the top of the report, and for the terminal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from skrr_export.measure.fidelity import Deviation
from skrr_export.measure.record import Agreement, Measurement, SubjectRecord
from skrr_export.page.markup import number, percent
from skrr_export.page.report.latency import latency_at
from skrr_export.page.report.values import cosine, mib, size_name, span

_TIMES = "\N{MULTIPLICATION SIGN}"


@dataclass(frozen=True, slots=True)
class Fact:
    """A number, and what it is of."""

    name: str
    value: str
    note: str


def headline(measurement: Measurement) -> dict[str, Fact | None]:
    """The facts by what they are about; `None`: not measured."""
    return {
        "memory": _memory(measurement),
        "latency": _latency(measurement),
        "drift": _drift(measurement.subjects),
        "loss": _loss(measurement.subjects),
        "cold start": _cold(measurement.subjects),
    }


def _memory(measurement: Measurement) -> Fact | None:
    """Of the target that needs least; on a GPU its memory, elsewhere what is resident."""
    gpu = measurement.settings.device != "cpu"

    def size(subject: SubjectRecord) -> int | None:
        if gpu:
            return subject.gpu_bytes
        return None if subject.steady is None else subject.steady.resident

    base, best = _compared(measurement.subjects, size)
    if base is None or best is None or not base[1]:
        return None
    saved = 1 - best[1] / base[1]
    note = f"{best[0].name} {mib(best[1])}, {base[0].name} {mib(base[1])} MiB {'on the GPU' if gpu else 'resident'}"
    return Fact("Memory saved" if saved >= 0 else "Memory added", percent(abs(saved)), note)


def _latency(measurement: Measurement) -> Fact | None:
    """Of the target that is fastest at the largest size."""
    size = measurement.settings.largest
    pytorch = [subject.name for subject in measurement.subjects if subject.role == "pytorch"]
    times = []
    for subject in measurement.subjects:
        latency = latency_at(subject, size)
        if subject.role == "target" and latency is not None:
            times += [(subject.name, base, latency.ratios[base]) for base in pytorch if base in latency.ratios][:1]
    if not times:
        return None
    fastest, base, ratio = min(times, key=lambda time: time[2].median)
    note = f"{fastest}'s time over {base}'s, {size_name(*size)}; {ratio.low:.2f} to {ratio.high:.2f}"
    return Fact("Latency", f"{ratio.median:.2f}{_TIMES}", note)


def _drift(subjects: Sequence[SubjectRecord]) -> Fact | None:
    worst = _worst(subjects, lambda subject: subject.drift)
    if worst is None:
        return None
    precision = "" if worst.subject.computes_in is None else f" in {worst.subject.computes_in}"
    return Fact("Drift, worst target", number(worst.relative_l2), f"{worst.what}{precision}")


def _loss(subjects: Sequence[SubjectRecord]) -> Fact | None:
    worst = _worst(subjects, lambda subject: subject.loss)
    if worst is None:
        return None
    mean = "" if worst.deviation.cosine_mean is None else f", mean cosine {cosine(worst.deviation.cosine_mean)}"
    return Fact("Loss against dense", number(worst.relative_l2), f"{worst.what}{mean}")


def _cold(subjects: Sequence[SubjectRecord]) -> Fact | None:
    base, best = _compared(subjects, lambda subject: None if subject.cold_start is None else subject.cold_start.total)
    if best is None:
        return None
    beside = "" if base is None else f"; {base[0].name} {span(base[1])}"
    return Fact("Cold start", span(best[1]), f"{best[0].name}, to the first embedding{beside}")


def _compared(
    subjects: Sequence[SubjectRecord], measure: Callable[[SubjectRecord], float | None]
) -> tuple[tuple[SubjectRecord, float] | None, tuple[SubjectRecord, float] | None]:
    """The first PyTorch subject, which is the dense one if there is one, and the target with the least."""
    known = [(subject, value) for subject in subjects if (value := measure(subject)) is not None]
    base = next((pair for pair in known if pair[0].role == "pytorch"), None)
    targets = [pair for pair in known if pair[0].role == "target"]
    return base, min(targets, key=lambda pair: pair[1], default=None)


@dataclass(frozen=True, slots=True)
class _Worst:
    """A target's deviation, and of what it is."""

    subject: SubjectRecord
    relative_l2: float
    deviation: Deviation
    what: str


def _worst(subjects: Sequence[SubjectRecord], compare: Callable[[SubjectRecord], Agreement | None]) -> _Worst | None:
    """The target with the largest relative L2 of all tokens, or of all pooled vectors."""
    known = [
        _Worst(subject, deviation.relative_l2, deviation, f"relative L2{of}, {subject.name}")
        for subject in subjects
        if subject.role == "target" and (agreement := compare(subject)) is not None
        for deviation, of in ((agreement.tokens, ""), (agreement.pooled, " of pooled vectors"))
        if deviation is not None and deviation.relative_l2 is not None
    ]
    return max(known, key=lambda one: one.relative_l2, default=None)
