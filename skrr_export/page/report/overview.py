"""The top of the report: what was measured, the numbers that matter most, and every check."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import PurePath

from skrr_export.measure.fidelity import Deviation
from skrr_export.measure.record import Agreement, Measurement, SubjectRecord, Verdict
from skrr_export.page.markup import Markup, element, joined, number, percent
from skrr_export.page.parts import NOTHING, tile, width
from skrr_export.page.report.latency import latency_at
from skrr_export.page.report.values import cosine, mib, on_gpu, resident, size_name, span, steady

_TIMES = "\N{MULTIPLICATION SIGN}"


def name(measurement: Measurement) -> str:
    """The bundle's own name."""
    return PurePath(measurement.bundle.path).name or measurement.bundle.path


def title(measurement: Measurement) -> Markup:
    """What was measured, and whether it passed."""
    bundle, settings = measurement.bundle, measurement.settings
    facts = [
        f"{bundle.family}, {bundle.num_layers} layers {_TIMES} {bundle.hidden_size:,}",
        bundle.dtype,
        bundle.pipeline,
        f"on {settings.device}",
    ]
    return element(
        "header",
        element("p", "Measurement of a bundle", class_="eyebrow"),
        element("h1", name(measurement)),
        element("p", ", ".join(facts), class_="lede"),
        _badge(measurement),
    )


def outcome(measurement: Measurement) -> str:
    """The verdict on the whole, in a few words."""
    failed = sum(not verdict.passed for verdict in measurement.verdicts)
    count = len(measurement.verdicts)
    checks = "1 check" if count == 1 else f"{count} checks"
    if not count:
        return "Nothing was checked"
    return f"Failed: {failed} of {checks}" if failed else f"Passed: {checks}"


def _badge(measurement: Measurement) -> Markup:
    kind = "failed" if not measurement.passed else "passed" if measurement.verdicts else "unchecked"
    return element("p", outcome(measurement), class_=f"badge {kind}")


# The numbers that matter most


def tiles(measurement: Measurement) -> Markup:
    """A tile for each that was measured, and a line that names the others."""
    found = {
        "Memory": _memory_tile(measurement),
        "Latency": _latency_tile(measurement),
        "Drift": _drift_tile(measurement.subjects),
        "Loss": _loss_tile(measurement.subjects),
        "Cold start": _cold_tile(measurement.subjects),
    }
    missing = [what.lower() for what, drawn in found.items() if drawn is None]
    line = element("p", f"Not measured: {', '.join(missing)}.", class_="note") if missing else NOTHING
    return element(
        "section",
        element("div", *(drawn for drawn in found.values() if drawn), class_="tiles"),
        line,
        class_="headline",
    )


def _memory_tile(measurement: Measurement) -> Markup | None:
    """Of the target that needs least; on a GPU its memory, elsewhere what is resident."""

    def size(subject: SubjectRecord) -> int | None:
        memory = steady(subject)
        return None if memory is None else resident(memory)

    gpu = measurement.settings.device != "cpu"
    base, best = _compared(measurement.subjects, on_gpu if gpu else size)
    if base is None or best is None or not base[1]:
        return None
    saved = 1 - best[1] / base[1]
    note = f"{best[0].name} {mib(best[1])}, {base[0].name} {mib(base[1])} MiB {'on the GPU' if gpu else 'resident'}"
    return tile("Memory saved" if saved >= 0 else "Memory added", percent(abs(saved)), note)


def _latency_tile(measurement: Measurement) -> Markup | None:
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
    return tile("Latency", f"{ratio.median:.2f}{_TIMES}", note)


def _drift_tile(subjects: Sequence[SubjectRecord]) -> Markup | None:
    worst = _worst(subjects, lambda subject: subject.drift)
    if worst is None:
        return None
    subject, value, _ = worst
    precision = "" if subject.computes_in is None else f" in {subject.computes_in}"
    return tile("Drift, worst target", number(value), f"relative L2, {subject.name}{precision}")


def _loss_tile(subjects: Sequence[SubjectRecord]) -> Markup | None:
    worst = _worst(subjects, lambda subject: subject.loss)
    if worst is None:
        return None
    subject, value, deviation = worst
    mean = "" if deviation.cosine_mean is None else f", mean cosine {cosine(deviation.cosine_mean)}"
    return tile("Loss to the plan", number(value), f"relative L2, {subject.name}{mean}")


def _cold_tile(subjects: Sequence[SubjectRecord]) -> Markup | None:
    base, best = _compared(subjects, lambda subject: None if subject.cold_start is None else subject.cold_start.total)
    if best is None:
        return None
    beside = "" if base is None else f"; {base[0].name} {span(base[1])}"
    return tile("Cold start", span(best[1]), f"{best[0].name}, to the first embedding{beside}")


def _compared(
    subjects: Sequence[SubjectRecord], measure: Callable[[SubjectRecord], float | None]
) -> tuple[tuple[SubjectRecord, float] | None, tuple[SubjectRecord, float] | None]:
    """The first PyTorch subject, which is the dense one if there is one, and the target with the least."""
    known = [(subject, value) for subject in subjects if (value := measure(subject)) is not None]
    base = next((pair for pair in known if pair[0].role == "pytorch"), None)
    targets = [pair for pair in known if pair[0].role == "target"]
    return base, min(targets, key=lambda pair: pair[1], default=None)


def _worst(
    subjects: Sequence[SubjectRecord], compare: Callable[[SubjectRecord], Agreement | None]
) -> tuple[SubjectRecord, float, Deviation] | None:
    """The target with the largest relative L2 of all tokens."""
    known = [
        (subject, agreement.tokens.relative_l2, agreement.tokens)
        for subject in subjects
        if subject.role == "target" and (agreement := compare(subject)) is not None
        if agreement.tokens.relative_l2 is not None
    ]
    return max(known, key=lambda one: one[1], default=None)


# Checks


def checks(measurement: Measurement) -> Markup:
    """What failed and by how much, then what passed."""
    verdicts = measurement.verdicts
    if not verdicts:
        return NOTHING
    failed = [_failure(verdict) for verdict in verdicts if not verdict.passed]
    passed = [_success(verdict) for verdict in verdicts if verdict.passed]
    success = element(
        "details",
        element("summary", f"{'All ' if not failed else ''}{len(passed)} passed"),
        element("ul", *passed, class_="successes"),
    )
    return element(
        "section",
        element("h2", "Checks"),
        element("ul", *failed, class_="failures") if failed else NOTHING,
        success if passed else NOTHING,
        class_="checks",
    )


def _failure(verdict: Verdict) -> Markup:
    times = NOTHING
    if verdict.value is not None and verdict.limit:
        times = element("span", f"{number(verdict.value / verdict.limit)} {_TIMES} the limit", class_="times")
    return element("li", element("span", verdict.message), times)


def _success(verdict: Verdict) -> Markup:
    """With a bar for how much of its limit is used."""
    bar = NOTHING
    if verdict.value is not None and verdict.limit:
        share = verdict.value / verdict.limit
        bar = element(
            "span", element("span", style=width(share)), class_="used", title=f"{percent(share)} of the limit"
        )
    return element("li", joined([element("span", verdict.message), bar]))
