"""Memory: what each subject holds once it runs, and at every stage before."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from skrr_export.measure.record import STAGES, Measurement, ProcessMemory, SubjectRecord
from skrr_export.page.markup import Markup, element
from skrr_export.page.parts import NOTHING, definitions, key, table
from skrr_export.page.report.bars import Part, Row, bars
from skrr_export.page.report.values import (
    absent_row,
    cell,
    mebibytes,
    mib,
    size_name,
    subject_head,
)

_STAGE_COLUMNS = {
    "anonymous": "anonymous",
    "file-backed": "file_backed",
    "shared": "shared",
    "PSS": "proportional",
    "swapped out": "swap",
    "peak RSS": "peak_rss",
}
"""Headings of the table of stages, and the numbers below them."""


def memory_chart(measurement: Measurement) -> Markup:
    """What is resident in the steady state, and on the GPU if there is one."""
    note = (
        "Resident in the steady state: every size was run several times, the largest being "
        f"{size_name(*measurement.settings.largest)}. Anonymous memory is the process's own; file-backed pages are "
        "shared by all processes that map the same file, and the system may drop them at any time."
    )
    meanings = {
        "anonymous": "anonymous",
        "file-backed": "file-backed",
        "shared": "shared memory",
        "peak": "peak RSS since the process began",
    }
    return element(
        "section",
        element("h2", "Memory"),
        element("p", note, class_="note"),
        key(meanings),
        bars("Resident memory in the steady state", "MiB", [_host_row(subject) for subject in measurement.subjects]),
        _processes_chart(measurement),
        _gpu_chart(measurement.subjects),
        class_="memory",
        id="memory",
    )


def memory_tables(measurement: Measurement) -> Markup:
    """Every number of memory, and where each comes from."""
    subjects = measurement.subjects
    sources = element(
        "details",
        element("summary", "Where each number comes from"),
        definitions(measurement.memory_sources.items()),
        class_="sources",
    )
    return element(
        "section",
        element("h2", "Memory, stage by stage"),
        element("p", "All in MiB. A process is read at the end of each stage.", class_="note"),
        table(
            {"subject": None, "stage": None, **dict.fromkeys(_STAGE_COLUMNS, "n")},
            [row for subject in subjects for row in _stage_rows(subject)],
        ),
        element("h3", "Peaks, several processes, and the GPU"),
        _process_table(subjects),
        sources,
    )


def _host_row(subject: SubjectRecord) -> Row:
    memory = subject.steady
    if memory is None:
        return Row(subject=subject)
    sizes = {"anonymous": memory.anonymous, "file-backed": memory.file_backed, "shared": memory.shared}
    return Row(
        subject=subject,
        value=f"{mib(memory.resident)} MiB",
        remark=f"{mib(memory.anonymous)} of its own",
        parts=tuple(Part(kind, mebibytes(size), f"{kind}: {mib(size)} MiB") for kind, size in sizes.items()),
        marks=(Part("peak", mebibytes(memory.peak_rss), f"peak RSS: {mib(memory.peak_rss)} MiB"),),
    )


def _processes_chart(measurement: Measurement) -> Markup:
    """What several processes need together, which is where mapped weights pay."""
    subjects, count = measurement.subjects, measurement.settings.processes
    if count < 2 or all(_together(subject) is None for subject in subjects):
        return NOTHING
    return element(
        "div",
        element("h3", f"{count} processes at once"),
        element("p", "Their PSS, summed: a page that several of them map counts once.", class_="note"),
        bars(f"Memory of {count} processes", "MiB", [_size_row(subject, _together(subject)) for subject in subjects]),
        class_="more",
    )


def _size_row(subject: SubjectRecord, size: int | None) -> Row:
    """A bar of one size."""
    if size is None:
        return Row(subject=subject)
    value = f"{mib(size)} MiB"
    return Row(subject=subject, value=value, parts=(Part(subject.role, mebibytes(size), value),))


def _together(subject: SubjectRecord) -> int | None:
    return None if subject.memory is None else subject.memory.total_proportional


def _gpu_chart(subjects: Sequence[SubjectRecord]) -> Markup:
    if all(subject.gpu_bytes is None for subject in subjects):
        return NOTHING
    return element(
        "div",
        element("h3", "On the GPU"),
        element("p", "All that the driver counts as the process's, its context included.", class_="note"),
        bars("Memory on the GPU", "MiB", [_size_row(subject, subject.gpu_bytes) for subject in subjects]),
        class_="more",
    )


def _stage_rows(subject: SubjectRecord) -> Iterator[Markup]:
    stages = {} if subject.memory is None else subject.memory.stages
    reached = [name for name in STAGES if name in stages]
    for name in reached:
        head = subject_head(subject, len(reached)) if name == reached[0] else NOTHING
        numbers = [cell(getattr(stages[name], field), mib) for field in _STAGE_COLUMNS.values()]
        yield element("tr", head, element("td", name), *numbers, class_="last" if name == reached[-1] else None)
    if "steady" not in stages:
        yield absent_row(subject, 1 + len(_STAGE_COLUMNS))


def _process_table(subjects: Sequence[SubjectRecord]) -> Markup:
    with_gpu = any(subject.memory is not None and subject.memory.gpu is not None for subject in subjects)
    heads = ["peak anonymous", "processes at once", "their PSS, summed", "PSS of each"]
    gpu_heads = ["GPU: process", "GPU: torch's peak", "GPU: engine"] if with_gpu else []
    rows = [
        absent_row(subject, len(heads) + len(gpu_heads))
        if subject.memory is None
        else element("tr", subject_head(subject), *_process_cells(subject.memory, with_gpu=with_gpu))
        for subject in subjects
    ]
    return table({"subject": None, **dict.fromkeys([*heads, *gpu_heads], "n")}, rows)


def _process_cells(memory: ProcessMemory, *, with_gpu: bool) -> Iterator[Markup]:
    processes, total = memory.processes, memory.total_proportional
    yield cell(memory.peak_anonymous, mib)
    yield cell(processes, str)
    yield cell(total, mib)
    yield cell(total / processes if processes and total is not None else None, mib)
    if with_gpu:
        for field in ("process", "torch_peak", "engine"):
            yield cell(None if memory.gpu is None else getattr(memory.gpu, field), mib)
