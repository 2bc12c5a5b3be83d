"""What passes and what does not, and by how much."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from decimal import ROUND_CEILING, Context

from skrr_export.measure.fidelity import PARTS, Comparison
from skrr_export.measure.limits import LIMITS
from skrr_export.measure.record import SubjectRecord, Verdict
from skrr_export.measure.subjects import DENSE, PLANNED

_MIB = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Thresholds:
    """Largest values that pass, for every target; `None`: no such check, or for the drift the built-in limit."""

    max_drift: float | None = None
    """Relative L2 of the drift."""
    max_loss: float | None = None
    """Relative L2 of the loss."""
    max_memory: int | None = None
    """Bytes that are resident at the most, or that the process holds on the GPU."""
    max_latency_ratio: float | None = None
    """Time over that of the first PyTorch subject, in the median, at every size."""


def judge_drift(
    found: Comparison, computes_in: str, *, reads_padding: bool, max_drift: float | None = None
) -> Iterator[Verdict]:
    """Judge a drift by the limits of a precision; what should have been compared, and was not, fails.

    Args:
        found: the drift.
        computes_in: precision of the target.
        reads_padding: whether the denoiser reads padding; where it does not, that need only be finite.
        max_drift: limit of the relative L2 in place of the precision's limits.
    """
    limits = LIMITS[computes_in]
    parts = {name: part for name in PARTS if (part := getattr(found, name)) is not None}
    for name, rows in parts.items():
        if rows.nonfinite:
            message = f"{name}: {rows.nonfinite} values are NaN or infinite; no limit would pass"
            yield Verdict(check=f"{name}: finite", passed=False, value=rows.nonfinite, limit=0, message=message)
        if name == "padding" and not (reads_padding and rows.tokens):
            continue
        distance = None if rows.cosine_min is None else 1 - rows.cosine_min
        for what, value, limit in (
            ("relative L2", rows.relative_l2, limits.relative_l2 if max_drift is None else max_drift),
            ("worst cosine distance", distance, limits.cosine_distance if max_drift is None else None),
        ):
            check = f"{name}: drift, {what}"
            if limit is not None and value is None:
                yield _not_measured(check, limit)
            elif limit is not None and value is not None:
                yield _limited(check, value, limit, suffix=f" for {computes_in}")
    if not parts:
        yield _not_measured("drift", max_drift)


def judge(
    subjects: Sequence[SubjectRecord], thresholds: Thresholds, *, reads_padding: bool, on_gpu: bool
) -> Iterator[Verdict]:
    """Judge a whole measurement: every subject must have run, and every target must be within its limits."""
    for subject in subjects:
        if subject.error is not None and not subject.skipped:
            message = f"{subject.name}: {subject.error}"
            yield Verdict(check=f"{subject.name}: ran", passed=False, value=None, limit=None, message=message)
    for subject in subjects:
        if subject.role == "target" and not subject.skipped:
            yield from _judge_target(subject, thresholds, _base(subjects), reads_padding=reads_padding, on_gpu=on_gpu)


def _judge_target(
    subject: SubjectRecord, thresholds: Thresholds, base: str | None, *, reads_padding: bool, on_gpu: bool
) -> Iterator[Verdict]:
    if subject.drift is not None and subject.computes_in is not None:
        drift = judge_drift(
            subject.drift, subject.computes_in, reads_padding=reads_padding, max_drift=thresholds.max_drift
        )
        yield from (_named(subject, verdict) for verdict in drift)
    elif subject.error is None or thresholds.max_drift is not None:
        yield _not_measured(f"{subject.name}: drift", thresholds.max_drift)
    if subject.invariance is not None and subject.computes_in is not None:
        limit = LIMITS[subject.computes_in].relative_l2
        for what, value in asdict(subject.invariance).items():
            if value is not None:
                yield _limited(f"{subject.name}: invariance, {what}", value, limit)
    found = {
        **{what: (value, thresholds.max_loss) for what, value in _losses(subject)},
        "memory": (_memory(subject, on_gpu=on_gpu), thresholds.max_memory),
        f"latency, times {base}'s": (_latency_ratio(subject, base), thresholds.max_latency_ratio),
    }
    for what, (value, maximum) in found.items():
        check = f"{subject.name}: {what}"
        if maximum is not None and value is None:
            yield _not_measured(check, maximum)
        elif maximum is not None and value is not None:
            yield _limited(check, value, maximum, mib=what == "memory")


def _losses(subject: SubjectRecord) -> Iterator[tuple[str, float | None]]:
    if subject.loss is None:
        yield "loss, relative L2", None
        return
    if subject.loss.tokens is not None:
        yield "loss, relative L2", subject.loss.tokens.relative_l2
    if subject.loss.pooled is not None:
        yield "pooled: loss, relative L2", subject.loss.pooled.relative_l2


def _base(subjects: Sequence[SubjectRecord]) -> str | None:
    """Whose time counts as 1: the dense encoder's if it was measured."""
    timed = [subject.name for subject in subjects if subject.latencies]
    return next((name for name in (DENSE, PLANNED) if name in timed), None)


def _memory(subject: SubjectRecord, *, on_gpu: bool) -> int | None:
    if on_gpu:
        return subject.gpu_bytes
    return None if subject.steady is None else subject.steady.peak_rss


def _latency_ratio(subject: SubjectRecord, base: str | None) -> float | None:
    """The largest over the sizes; `None` if one of them was not measured."""
    ratios = [latency.ratios.get(base or "") for latency in subject.latencies]
    known = [ratio.median for ratio in ratios if ratio is not None]
    return max(known) if known and len(known) == len(ratios) else None


def _named(subject: SubjectRecord, verdict: Verdict) -> Verdict:
    return Verdict(
        check=f"{subject.name}: {verdict.check}",
        passed=verdict.passed,
        value=verdict.value,
        limit=verdict.limit,
        message=f"{subject.name}: {verdict.message}",
    )


def _limited(check: str, value: float, limit: float, *, suffix: str = "", mib: bool = False) -> Verdict:
    texts = [f"{number / _MIB:,.0f} MiB" if mib else f"{number:.3g}" for number in (value, limit)]
    if value <= limit:
        message = f"{check} {texts[0]} is within {texts[1]}{suffix}"
    else:
        passing = float(Context(prec=3, rounding=ROUND_CEILING).create_decimal_from_float(float(value)))
        smallest = f"{passing / _MIB:,.0f} MiB" if mib else f"{passing:.3g}"
        message = f"{check} {texts[0]} exceeds {texts[1]}{suffix}; the smallest limit that would pass is {smallest}"
    return Verdict(check=check, passed=value <= limit, value=value, limit=limit, message=message)


def _not_measured(check: str, limit: float | None) -> Verdict:
    return Verdict(check=check, passed=False, value=None, limit=limit, message=f"{check} was not measured")
