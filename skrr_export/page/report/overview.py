"""The top of the report: what was measured, the numbers that matter most, and every check."""

from __future__ import annotations

from pathlib import PurePath

from skrr_export.measure.record import Measurement, Verdict
from skrr_export.page.markup import Markup, element, joined, number, percent
from skrr_export.page.parts import NOTHING, tile, width
from skrr_export.page.report.headline import headline

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
    found = headline(measurement)
    missing = [what for what, fact in found.items() if fact is None]
    line = element("p", f"Not measured: {', '.join(missing)}.", class_="note") if missing else NOTHING
    drawn = (tile(fact.name, fact.value, fact.note) for fact in found.values() if fact is not None)
    return element("section", element("div", *drawn, class_="tiles"), line, class_="headline")


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
