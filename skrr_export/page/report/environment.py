"""The end of the report: all that decides its numbers, and how to measure them again."""

from __future__ import annotations

from collections.abc import Sequence

from skrr_export.measure.record import Hardware, Measurement, Settings, SubjectRecord
from skrr_export.page.markup import Markup, element, number
from skrr_export.page.parts import NOTHING, definitions, groups, table
from skrr_export.page.report.values import ABSENT, cell, mib, reason, size_name, span, subject_head

_MACHINE = {"cpu": "Processor", "cores": "Cores", "memory_bytes": "Memory", "kernel": "Kernel", "gpu": "GPU"}
"""What the facts of a machine are called."""


def environment_section(measurement: Measurement) -> Markup:
    """Subjects, machine, versions, settings, limits of the hardware, notes, and the command."""
    blocks = {
        "Settings": definitions(_settings(measurement.settings).items()),
        "Machine": definitions((_MACHINE.get(key, key), _fact(key, fact)) for key, fact in measurement.machine.items()),
        "Limits of the hardware": definitions(_hardware(measurement.hardware).items()),
        "Versions": definitions(measurement.versions.items()),
    }
    return element(
        "section",
        element("h2", "Environment"),
        element("p", "To measure this again:", class_="note"),
        element("pre", element("code", measurement.settings.command or "not recorded")),
        groups(blocks),
        element("h3", "Subjects"),
        _subjects(measurement.subjects),
        _notes(measurement.notes),
        class_="environment",
        id="environment",
    )


def footer(measurement: Measurement) -> Markup:
    """Who measured, when, and for how long."""
    text = f"Measured by {measurement.tool}, from {measurement.started}, in {span(measurement.seconds)}."
    return element("footer", text)


def _settings(settings: Settings) -> dict[str, str]:
    return {
        "Reference": settings.reference or "none",
        "Device": settings.device,
        "Threads": str(settings.threads),
        "Timed runs": str(settings.runs),
        "Processes": f"{settings.processes} at once",
        "Prompts": f"{settings.prompts:,}" if settings.prompts else "none: random ids only",
        "Projection": settings.denoiser or "none",
        "Largest size": size_name(*settings.largest),
    }


def _fact(key: str, fact: str | int | None) -> str:
    if fact is None:
        return "none" if key == "gpu" else ABSENT
    return f"{mib(fact)} MiB" if key.endswith("_bytes") and isinstance(fact, int) else str(fact)


def _hardware(hardware: Hardware) -> dict[str, str]:
    copy, products = hardware.copy_bytes_per_second, hardware.matmul_flops_per_second
    speeds = {f"Product, {dtype}": f"{number(speed / 1e9)} GFLOP/s" for dtype, speed in products.items()}
    return {"Copy": ABSENT if copy is None else f"{number(copy / 1e9)} GB/s", **(speeds or {"Product": ABSENT})}


def _subjects(subjects: Sequence[SubjectRecord]) -> Markup:
    rows = [
        element(
            "tr",
            subject_head(subject),
            element("td", subject.title),
            element("td", "the plan" if subject.planned else "all layers"),
            element("td", subject.computes_in or "not known", class_=None if subject.computes_in else "absent"),
            cell(subject.weights_bytes, mib),
            element("td", "; ".join([*([reason(subject)] if subject.error else []), *subject.notes]), class_="remarks"),
        )
        for subject in subjects
    ]
    heads = {"subject": None, "what": None, "runs": None, "computes in": None, "weights, MiB": "n", "notes": None}
    return table(heads, rows)


def _notes(notes: Sequence[str]) -> Markup:
    if not notes:
        return NOTHING
    items = (element("li", note) for note in notes)
    return element("div", element("h3", "Notes"), element("ul", *items, class_="notes"), class_="block")
