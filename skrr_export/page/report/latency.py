"""Latency: every size, every run, beside the physical limit; and from a cold start."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from skrr_export.measure.latency import UNSTEADY
from skrr_export.measure.record import Latency, Measurement, SubjectRecord
from skrr_export.page.markup import Markup, element, number, percent
from skrr_export.page.parts import key, table
from skrr_export.page.report.bars import Part, Row, bars
from skrr_export.page.report.values import (
    absent_row,
    cell,
    group_row,
    milliseconds,
    size_name,
    span,
    subject_head,
)

Size = tuple[int, int]

_PHASES = {
    "interpreter": "interpreter and harness",
    "imports": "imports",
    "load": "load the encoder",
    "first": "first prompt",
}
"""Of a cold start, with what they are called."""


def latency_section(measurement: Measurement) -> Markup:
    """How long each size takes."""
    subjects = measurement.subjects
    sizes = list(dict.fromkeys((one.batch, one.sequence) for subject in subjects for one in subject.latencies))
    if not sizes:
        return _unmeasured("Latency", "latency", subjects)
    note = (
        "From ids on the host to embeddings on the host. A bar is the median; its dots are the runs, from the first at "
        "the top to the last. Subjects took turns, so that what else the machine does hits all alike."
    )
    meanings = {
        "target": "target",
        "pytorch": "PyTorch",
        **({"peer": "peer"} if any(subject.role == "peer" for subject in subjects) else {}),
        "run": "one run",
        "bound": "limit: the weights at this machine's copy speed, or the products at its matrix speed",
    }
    return element(
        "section",
        element("h2", "Latency"),
        element("p", note, class_="note"),
        key(meanings),
        element("div", *(_chart(subjects, size) for size in sizes), class_="sizes" if len(sizes) > 1 else None),
        _table(subjects, sizes),
        _warning(subjects),
        id="latency",
    )


def cold_start_section(measurement: Measurement) -> Markup:
    """From the start of a process to its first embedding."""
    subjects = measurement.subjects
    if all(subject.cold_start is None for subject in subjects):
        return _unmeasured("Cold start", "cold-start", subjects)
    note = "From the start of a process to its first embedding, files in the page cache; medians over all starts."
    return element(
        "section",
        element("h2", "Cold start"),
        element("p", note, class_="note"),
        key(_PHASES),
        bars("Time from the start of a process to its first embedding", "s", [_cold_row(s) for s in subjects]),
        table(
            {"subject": None, **{f"{name}, s": "n" for name in (*_PHASES, "total")}, "starts": "n"},
            [_cold_cells(subject) for subject in subjects],
        ),
        id="cold-start",
    )


def latency_at(subject: SubjectRecord, size: Size) -> Latency | None:
    """What was measured of a subject at a size."""
    return next((one for one in subject.latencies if (one.batch, one.sequence) == size), None)


def _unmeasured(name: str, identity: str, subjects: Sequence[SubjectRecord]) -> Markup:
    """A section of which no subject has anything, with the reason of each."""
    rows = [absent_row(subject, 1) for subject in subjects]
    return element("section", element("h2", name), table({"subject": None, "": None}, rows), id=identity)


def _chart(subjects: Sequence[SubjectRecord], size: Size) -> Markup:
    name = size_name(*size)
    rows = [_row(subject, size) for subject in subjects]
    return element("div", element("h3", name), bars(f"Latency of {name}, median", "ms", rows))


def _row(subject: SubjectRecord, size: Size) -> Row:
    latency = latency_at(subject, size)
    if latency is None:
        return Row(subject=subject)
    value, bound = f"{milliseconds(latency.median)} ms", latency.bound
    limit = "" if bound is None else f"{bound.name} limit: {milliseconds(bound.seconds)} ms"
    return Row(
        subject=subject,
        value=value,
        remark="" if bound is None else f"{percent(bound.share)} of {bound.name} limit",
        parts=(Part(subject.role, 1e3 * latency.median, f"median: {value}"),),
        marks=() if bound is None else (Part("bound", 1e3 * bound.seconds, limit),),
        dots=tuple(
            Part("", 1e3 * seconds, f"run {index}: {milliseconds(seconds)} ms")
            for index, seconds in enumerate(latency.seconds, start=1)
        ),
    )


def _table(subjects: Sequence[SubjectRecord], sizes: Sequence[Size]) -> Markup:
    known = {base for subject in subjects for one in subject.latencies for base in one.ratios}
    bases = [subject.name for subject in subjects if subject.name in known]
    heads = ["median, ms", "p95, ms", "variation", "tokens/s", "limit, ms", "limit's share"]
    columns = {"subject": None, **dict.fromkeys(heads, "n"), **{f"times {base}'s": "n" for base in bases}}
    rows = []
    for size in sizes:
        rows.append(group_row(size_name(*size), len(columns)))
        for subject in subjects:
            latency = latency_at(subject, size)
            if latency is None:
                rows.append(absent_row(subject, len(columns) - 1))
            else:
                ratios = [cell("1" if base == subject.name else _ratio(latency, base), str) for base in bases]
                rows.append(element("tr", subject_head(subject), *_cells(latency), *ratios))
    return table(columns, rows)


def _cells(latency: Latency) -> Iterator[Markup]:
    bound = latency.bound
    yield cell(latency.median, milliseconds)
    yield cell(latency.p95, milliseconds)
    yield _variation(latency.variation)
    yield cell(latency.tokens_per_second, number)
    yield cell(bound, lambda one: f"{milliseconds(one.seconds)} ({one.name})")
    yield cell(bound, lambda one: percent(one.share))


def _variation(variation: float) -> Markup:
    unsteady = variation > UNSTEADY
    text = f"{variation:.1%}"
    return element("td", f"⚠ {text}" if unsteady else text, class_="n warn" if unsteady else "n")


def _ratio(latency: Latency, base: str) -> str | None:
    ratio = latency.ratios.get(base)
    return None if ratio is None else f"{ratio.median:.2f} ({ratio.low:.2f}\N{EN DASH}{ratio.high:.2f})"


def _warning(subjects: Sequence[SubjectRecord]) -> Markup:
    note = "Ratios are of runs that followed one another: the median, and the first to the last decile."
    if any(latency.variation > UNSTEADY for subject in subjects for latency in subject.latencies):
        note += (
            f" ⚠ Runs that vary by more than {UNSTEADY:.0%} (standard deviation over mean) say more about the "
            "machine's other work than about the subject: measure again when it is idle."
        )
    return element("p", note, class_="note below")


def _cold_row(subject: SubjectRecord) -> Row:
    cold = subject.cold_start
    if cold is None:
        return Row(subject=subject)
    return Row(
        subject=subject,
        value=span(cold.total),
        parts=tuple(
            Part(phase, getattr(cold, phase), f"{name}: {span(getattr(cold, phase))}")
            for phase, name in _PHASES.items()
        ),
    )


def _cold_cells(subject: SubjectRecord) -> Markup:
    cold = subject.cold_start
    if cold is None:
        return absent_row(subject, len(_PHASES) + 2)
    seconds = [cell(getattr(cold, name), lambda value: f"{value:.3f}") for name in (*_PHASES, "total")]
    return element("tr", subject_head(subject), *seconds, cell(cold.starts, str))
