"""The demo's numbers: scores, memory and time, fidelity; a row or a column an encoder."""

from __future__ import annotations

from collections.abc import Sequence

from skrr_export.demo.costs import MANY, ONE
from skrr_export.demo.record import Demo, Variant
from skrr_export.measure.harness import Size
from skrr_export.measure.limits import LIMITS
from skrr_export.measure.record import SubjectRecord
from skrr_export.page.markup import Markup, element, number
from skrr_export.page.parts import table
from skrr_export.page.report.bars import Part, Row, bars
from skrr_export.page.report.latency import latency_at
from skrr_export.page.report.values import cell, cosine, mebibytes, mib, milliseconds

_OVERALL = "overall"


def scores_section(demo: Demo) -> Markup:
    """The share of the prompts that each encoder's images show, by category."""
    categories = [category for category in demo.variants[0].scores if category != _OVERALL]
    each = len(demo.tasks) // len(categories)
    note = (
        f"The share of the prompts whose images show what was asked, {each} in each category; the categories are those "
        "of GenEval, with shapes for objects. Half of the prompts that say colours or places say something that was "
        "never trained together. Overall is the mean of the categories, with its 95% interval for so many prompts. The "
        "last row is how far images are from the dense encoder's, root mean square of pixels; 1 is black against white."
    )
    heads = {"category": None, **dict.fromkeys((variant.title for variant in demo.variants), "n")}
    rows = [
        element("tr", _head(category), *(_score(variant.scores[category]) for variant in demo.variants))
        for category in categories
    ]
    overall = (f"{one.scores[_OVERALL]:.2f} \N{PLUS-MINUS SIGN} {one.margin:.2f}" for one in demo.variants)
    rows.append(
        element("tr", _head(_OVERALL), *(element("td", text, class_="n") for text in overall), class_="overall")
    )
    distances = [
        element("td", number(variant.distance), class_="n") if variant.plan_file else element("td", "0", class_="n")
        for variant in demo.variants
    ]
    rows.append(element("tr", _head("distance to the dense images"), *distances))
    return element(
        "section",
        element("h2", "Scores"),
        element("p", note, class_="note"),
        table(heads, rows),
        class_="scores",
        id="scores",
    )


def costs_section(demo: Demo) -> Markup:
    """What each encoder takes to run."""
    note = (
        f"Each encoder ran on ONNX Runtime in a process of its own, on the CPU with {demo.threads} threads. Most of "
        "what is resident is Python and ONNX Runtime, for this encoder is tiny; what differs is the weights, which are "
        "mapped from the bundle and shared by all processes that run it. In the charts of time a bar is the median and "
        "a dot a run; the encoders took turns, and ratios are of runs that followed one another."
    )
    return element(
        "section",
        element("h2", "Memory and time"),
        element("p", note, class_="note"),
        element(
            "div", _weights(demo.variants), _times(demo.variants, ONE), _times(demo.variants, MANY), class_="costs"
        ),
        _cost_table(demo.variants),
        id="costs",
    )


def fidelity_section(demo: Demo) -> Markup:
    """How close the embeddings are to what they should be."""
    note = (
        "Drift is the error of the export: the ONNX encoder against transformers running the same plan on the same "
        "weights, on the prompts of this page and on random ids. It should be rounding and nothing else. Loss is what "
        "the plan costs: the embeddings of the prompts against the dense encoder's."
    )
    heads = ["drift, relative L2", "limit", "drift, worst cosine", "loss, relative L2", "loss, mean cosine"]
    return element(
        "section",
        element("h2", "Fidelity"),
        element("p", note, class_="note"),
        table(
            {"encoder": None, "check": None, **dict.fromkeys(heads, "n")},
            [_fidelity_row(variant) for variant in demo.variants],
        ),
        id="fidelity",
    )


def _head(text: str) -> Markup:
    return element("th", text, scope="row")


def _score(share: float) -> Markup:
    return element("td", f"{share:.2f}", class_="n")


# Memory and time


def _weights(variants: Sequence[Variant]) -> Markup:
    rows = [
        Row(
            subject=variant.measured,
            value=f"{mib(variant.weights_bytes)} MiB",
            remark=f"{variant.kept_parameters:,} parameters",
            parts=(Part("target", mebibytes(variant.weights_bytes), f"{mib(variant.weights_bytes)} MiB"),),
        )
        for variant in variants
    ]
    return element("div", element("h3", "Weights"), bars("Weights", "MiB", rows))


def _times(variants: Sequence[Variant], size: Size) -> Markup:
    name = _size_name(size)
    rows = [_time_row(variant.measured, size) for variant in variants]
    return element("div", element("h3", f"Time for {name}"), bars(f"Time for {name}, median", "ms", rows))


def _size_name(size: Size) -> str:
    return "one prompt" if size.batch == 1 else f"{size.batch} prompts at once"


def _time_row(subject: SubjectRecord, size: Size) -> Row:
    latency = latency_at(subject, (size.batch, size.sequence))
    if latency is None:
        return Row(subject=subject)
    value = f"{milliseconds(latency.median)} ms"
    return Row(
        subject=subject,
        value=value,
        remark="".join(f"{ratio.median:.2f} \N{MULTIPLICATION SIGN} dense" for ratio in latency.ratios.values()),
        parts=(Part("target", 1e3 * latency.median, f"median: {value}"),),
        dots=tuple(
            Part("", 1e3 * seconds, f"run {run}: {milliseconds(seconds)} ms")
            for run, seconds in enumerate(latency.seconds, start=1)
        ),
    )


def _cost_table(variants: Sequence[Variant]) -> Markup:
    heads = ["weights, MiB", "resident, MiB", "of its own, MiB", "mapped files, MiB", "peak, MiB"]
    times = [f"{_size_name(size)}, ms" for size in (ONE, MANY)]
    rows = []
    for variant in variants:
        memory = variant.measured.steady
        sizes = (
            [memory.resident, memory.anonymous, memory.file_backed, memory.peak_rss]
            if memory is not None
            else [None] * 4
        )
        latencies = [latency_at(variant.measured, (size.batch, size.sequence)) for size in (ONE, MANY)]
        rows.append(
            element(
                "tr",
                _head(variant.title),
                cell(variant.weights_bytes, mib),
                *(cell(size, mib) for size in sizes),
                *(cell(None if latency is None else latency.median, milliseconds) for latency in latencies),
            )
        )
    return table({"encoder": None, **dict.fromkeys([*heads, *times], "n")}, rows)


# Fidelity


def _fidelity_row(variant: Variant) -> Markup:
    report, loss = variant.verification, variant.loss
    drift = report.drift.tokens
    check = element("td", "passed") if report.passed else element("td", "FAILED", class_="warn")
    losses = [cell(loss.relative_l2, number), cell(loss.cosine_mean, cosine)]
    if variant.plan_file is None:
        losses = [element("td", "none", class_="n absent")] * 2
    return element(
        "tr",
        _head(variant.title),
        check,
        cell(None if drift is None else drift.relative_l2, number),
        cell(LIMITS[report.computes_in].relative_l2, number),
        cell(None if drift is None else drift.cosine_min, cosine),
        *losses,
    )
