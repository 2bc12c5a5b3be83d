"""A measurement as tables for the terminal."""

from __future__ import annotations

from collections.abc import Iterator

from rich.table import Table
from rich.text import Text

from skrr_export.cli.output import NOT_MEASURED, size
from skrr_export.measure.latency import UNSTEADY
from skrr_export.measure.record import Latency, Measurement, SubjectRecord
from skrr_export.page.report.headline import headline


def tables(measurement: Measurement) -> Iterator[object]:
    """What the command prints: tables, notes, the headline, what failed, and the verdict."""
    yield _memory(measurement)
    if any(subject.latencies for subject in measurement.subjects):
        yield _latency(measurement)
        yield from _steadiness(measurement)
    yield from _fidelity(measurement)
    for subject in measurement.subjects:
        if subject.error:
            yield f"{subject.title} was not measured{' to the end' if subject.memory else ''}: {subject.error}"
        yield from (f"note: {subject.title}: {note}" for note in subject.notes)
    yield from (f"note: {note}" for note in measurement.notes)
    for what, fact in headline(measurement).items():
        yield f"{what}: {NOT_MEASURED}" if fact is None else f"{fact.name}: {fact.value} ({fact.note})"
    for verdict in measurement.verdicts:
        if not verdict.passed:
            yield Text.assemble(("failed:", "red"), f" {verdict.message}")
    word = ("passed", "green") if measurement.passed else ("FAILED", "red")
    count = f" ({len(measurement.verdicts)} checks, {measurement.seconds:.0f} s)"
    yield Text.assemble(f"{measurement.bundle.path}: ", word, count)


def _memory(measurement: Measurement) -> Table:
    processes = measurement.settings.processes
    gpu = any(subject.memory and subject.memory.gpu for subject in measurement.subjects)
    heads = ["anonymous", "file-backed", "peak RSS", f"PSS of {processes}", *(["GPU"] if gpu else []), "cold start"]
    view = _table("Memory, steady", heads)
    for subject in measurement.subjects:
        sizes = _sizes(subject)[: 5 if gpu else 4]
        cold = NOT_MEASURED if subject.cold_start is None else f"{subject.cold_start.total:.2f} s"
        view.add_row(subject.title, *(NOT_MEASURED if value is None else size(value) for value in sizes), cold)
    return view


def _sizes(subject: SubjectRecord) -> tuple[int | None, ...]:
    """Anonymous, file-backed, peak, all processes, GPU."""
    steady = subject.steady
    own = (None,) * 3 if steady is None else (steady.anonymous, steady.file_backed, steady.peak_rss)
    together = None if subject.memory is None else subject.memory.total_proportional
    return (*own, together, subject.gpu_bytes)


def _latency(measurement: Measurement) -> Table:
    timed = [subject for subject in measurement.subjects if subject.latencies]
    found = {(subject.name, one.batch, one.sequence): one for subject in timed for one in subject.latencies}
    sizes = list(dict.fromkeys((batch, sequence) for _, batch, sequence in found))
    base = timed[0].name
    title = (
        f"Latency, median of {measurement.settings.runs}; times {timed[0].title}'s; share of the limit of the hardware"
    )
    heads = []
    for batch, sequence in sizes:
        bounds = [one.bound for (_, *size), one in found.items() if size == [batch, sequence]]
        names = sorted({bound.name for bound in bounds if bound is not None})
        heads.append(f"{batch} x {sequence}{', limit: ' if names else ''}{' or '.join(names)}")
    view = _table(title, heads)
    for subject in timed:
        view.add_row(subject.title, *(_time(found.get((subject.name, *size)), base) for size in sizes))
    return view


def _time(latency: Latency | None, base: str) -> str:
    if latency is None:
        return NOT_MEASURED
    ratio = latency.ratios.get(base)
    times = f"  {ratio.median:.2f} x" if ratio else ""
    share = f"  {latency.bound.share:4.0%}" if latency.bound else ""
    return f"{latency.median * 1000:,.1f} ms{times}{share}"


def _steadiness(measurement: Measurement) -> Iterator[str]:
    variations = [one.variation for subject in measurement.subjects for one in subject.latencies]
    unsteady = sum(variation > UNSTEADY for variation in variations)
    if unsteady:
        yield (
            f"warning: {unsteady} of {len(variations)} latencies vary by more than {UNSTEADY:.0%} "
            f"(at most {max(variations):.0%}): the machine was not idle; trust ratios, not times"
        )


def _fidelity(measurement: Measurement) -> Iterator[Table]:
    """A table for what the encoder gives per token, and one for its pooled vectors; of these what it gives."""
    heads = ["drift, relative L2", "worst cosine", "loss, relative L2", "mean cosine", "computes in"]
    prompts = f"{measurement.settings.prompts} prompts and random ids, against fp32"
    agreements = [found for subject in measurement.subjects for found in (subject.drift, subject.loss) if found]
    for part, title in (("tokens", "Fidelity"), ("pooled", "Fidelity of pooled vectors")):
        if any(getattr(found, part) for found in agreements) or (part == "tokens" and not agreements):
            view = _table(f"{title}, {prompts}", heads)
            for subject in measurement.subjects:
                view.add_row(subject.title, *_agreement(subject, part), subject.computes_in or NOT_MEASURED)
            yield view


def _agreement(subject: SubjectRecord, part: str) -> Iterator[str]:
    drift, loss = (getattr(found, part, None) for found in (subject.drift, subject.loss))
    formats = ".3g", ".7f", ".3g", ".4f"
    values = (
        drift and drift.relative_l2,
        drift and drift.cosine_min,
        loss and loss.relative_l2,
        loss and loss.cosine_mean,
    )
    for value, form in zip(values, formats, strict=True):
        yield NOT_MEASURED if value is None else format(value, form)


def _table(title: str, heads: list[str]) -> Table:
    view = Table("", title=title, title_justify="left")
    for head in heads:
        view.add_column(head, justify="right")
    return view
