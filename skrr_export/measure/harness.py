"""Runs subjects in processes of their own and notes what it finds: first each alone, then all in turn.

A subject that fails, hangs or dies keeps what was measured of it until then, with the reason; the others go on.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

import numpy as np

from skrr_export.measure.latency import percentile_95, ratio, take_turns, variation
from skrr_export.measure.memory import PeakSampler, available, gpu_free
from skrr_export.measure.process import SubjectError, Surroundings, Worker
from skrr_export.measure.record import (
    Agreement,
    ColdStart,
    GpuMemory,
    Hardware,
    Invariance,
    Latency,
    Memory,
    ProcessMemory,
    SubjectRecord,
)
from skrr_export.measure.subjects import Subject
from skrr_export.measure.worker import Ids
from skrr_export.progress import Progress, part, silent

STEADY_RUNS = 3
"""Of every size, for the memory that is steady; of processes that only share it, one."""

Examine = Callable[["Draft", Worker], None]
"""Looks at a loaded subject, such as at its embeddings, and notes what it finds."""


@dataclass(frozen=True, slots=True)
class Size:
    """A size of input, in prompts and tokens."""

    batch: int
    sequence: int

    def inputs(self, vocab_size: int, *, masked: bool) -> tuple[Ids, Ids | None]:
        """Random ids, none of them padding, and their mask where the encoder takes one."""
        ids = np.random.default_rng(self.sequence).integers(0, vocab_size, (self.batch, self.sequence))
        return ids, np.ones_like(ids) if masked else None


@dataclass(slots=True, kw_only=True)
class Draft:
    """What has been found of a subject so far."""

    subject: Subject
    error: str | None = None
    computes_in: str | None = None
    notes: list[str] = field(default_factory=list)
    starts: list[tuple[float, float, float, float]] = field(default_factory=list)
    """Seconds of each start: until the process listened, of the imports, of loading, of the first run."""
    stages: dict[str, Memory] = field(default_factory=dict)
    peak_anonymous: int | None = None
    total_proportional: int | None = None
    gpu: GpuMemory | None = None
    seconds: dict[Size, Mapping[str, Sequence[float]]] = field(default_factory=dict)
    """For each size the times of every subject of its round, this one's among them."""
    drift: Agreement | None = None
    loss: Agreement | None = None
    invariance: Invariance | None = None


class Harness:
    """Measures subjects on the same sizes in the same surroundings."""

    def __init__(
        self,
        surroundings: Surroundings,
        sizes: Sequence[Size],
        *,
        vocab_size: int,
        masked: bool,
        on_gpu: bool = False,
    ) -> None:
        """Prepare.

        Args:
            surroundings: what all subjects have alike.
            sizes: of the inputs that are timed.
            vocab_size: ids are below it.
            masked: whether the encoders are given a mask.
            on_gpu: whether memory on the GPU is read.
        """
        self._surroundings = surroundings
        self._sizes = sorted(sizes, key=lambda size: size.batch * size.sequence)
        self._inputs = {size: size.inputs(vocab_size, masked=masked) for size in self._sizes}
        self._on_gpu = on_gpu

    @property
    def largest(self) -> Size:
        """The largest size."""
        return self._sizes[-1]

    def alone(
        self, draft: Draft, *, processes: int = 1, examine: Examine | None = None, progress: Progress = silent
    ) -> None:
        """Measure a subject in a process that has the machine to itself: its start, its memory, and what else is asked.

        Args:
            draft: of the subject; what is found is added.
            processes: how many processes shall then run it at the same time, for the sum of their memory.
            examine: looks at the loaded subject at the end.
            progress: told what is being done.
        """
        name = draft.subject.title
        try:
            with Worker(draft.subject.opener, self._surroundings) as worker:
                progress(f"{name}: memory", 0, 3)
                with PeakSampler(worker.pid) as sampler:
                    self._start(draft, worker, draft.stages)
                    draft.stages["steady"] = _steady(self._run_all(worker, STEADY_RUNS))
                draft.peak_anonymous = sampler.peak
                draft.computes_in = worker.computes_in()
                if self._on_gpu:
                    draft.gpu = worker.gpu_memory()
                progress(f"{name}: {processes} processes", 1, 3)
                if processes > 1:
                    draft.total_proportional = self._several(draft, worker, processes - 1)
                progress(f"{name}: embeddings", 2, 3)
                if examine is not None:
                    examine(draft, worker)
                draft.notes += worker.notes()
        except SubjectError as error:
            draft.error = str(error)

    def interleaved(self, drafts: Sequence[Draft], runs: int, progress: Progress = silent) -> None:
        """Time subjects that run in turn, all of them loaded; in pairs with the first where they do not fit together.

        Args:
            drafts: of the subjects, measured alone before; those that failed are left out.
            runs: timed rounds of each size.
            progress: told what is being done.
        """
        alive = [draft for draft in drafts if draft.error is None]
        together = len(alive) < 2 or self._fit(alive)
        groups = [alive] if together else [[alive[0], draft] for draft in alive[1:]]
        if not together:
            for draft in alive:
                draft.notes.append("timed in turn with the first subject only: all do not fit into memory together")
        for number, group in enumerate(groups):
            self._time(group, runs, part(progress, number, len(groups)))

    def _start(self, draft: Draft, worker: Worker, stages: dict[str, Memory]) -> None:
        imports = worker.open()
        stages["import"] = worker.memory()
        load = worker.load()
        stages["load"] = worker.memory()
        first = worker.run(*self._inputs[self._sizes[0]]).seconds
        stages["first"] = worker.memory()
        draft.starts.append((worker.start_seconds, imports, load, first))

    def _run_all(self, worker: Worker, times: int) -> list[Memory]:
        """Run every size so many times; the memory after each run."""
        readings = []
        for _ in range(times):
            for inputs in self._inputs.values():
                worker.run(*inputs)
                readings.append(worker.memory())
        return readings

    def _several(self, draft: Draft, worker: Worker, more: int) -> int | None:
        """PSS of a steady process and so many more, all alive; `None` where the machine cannot hold them."""
        room, each = available(), draft.stages["steady"].anonymous
        try:
            if room is not None and more * each > room:
                raise SubjectError("they would not fit into memory")
            with ExitStack() as stack:
                workers = [worker]
                for _ in range(more):
                    workers.append(stack.enter_context(Worker(draft.subject.opener, self._surroundings)))
                    self._start(draft, workers[-1], {})
                    self._run_all(workers[-1], 1)
                return sum(each.memory().proportional for each in workers)
        except SubjectError as error:
            draft.notes.append(f"{more + 1} processes at once were not measured: {error}")
            return None

    def _fit(self, drafts: Sequence[Draft]) -> bool:
        """Whether all subjects can be loaded at once: private memory adds up, files are shared."""
        if self._on_gpu:
            needed = [draft.gpu.process or draft.gpu.torch_peak or 0 for draft in drafts if draft.gpu is not None]
            assert self._surroundings.gpu is not None
            room = gpu_free(self._surroundings.gpu)
            return room is None or sum(needed) <= room
        room = available()
        private = sum(draft.peak_anonymous or 0 for draft in drafts)
        files = max((draft.stages["steady"].file_backed for draft in drafts), default=0)
        return room is None or private + files <= room

    def _time(self, group: Sequence[Draft], runs: int, progress: Progress) -> None:
        drafts = {draft.subject.name: draft for draft in group}
        failures: dict[str, str] = {}
        with ExitStack() as stack:
            workers = {}
            for name, draft in drafts.items():
                progress(f"{draft.subject.title}: loading", 0, len(self._sizes))
                try:
                    worker = stack.enter_context(Worker(draft.subject.opener, self._surroundings))
                    self._start(draft, worker, {})
                    workers[name] = worker
                except SubjectError as error:
                    failures[name] = str(error)
            for done, (size, inputs) in enumerate(self._inputs.items()):
                progress(f"latency, {size.batch} x {size.sequence} tokens", done, len(self._sizes))
                seconds = take_turns(workers, *inputs, runs, failures)
                for name in seconds:
                    drafts[name].seconds.setdefault(size, seconds)
        for name, reason in failures.items():
            drafts[name].error = reason


def _steady(readings: Sequence[Memory]) -> Memory:
    """The largest: between two runs an allocator keeps now more and now less of what it will need again."""
    largest = max(readings, key=lambda memory: memory.anonymous)
    return replace(largest, peak_rss=readings[-1].peak_rss)


def record(draft: Draft, hardware: Hardware, *, masked: bool, processes: int, pytorch: Sequence[str]) -> SubjectRecord:
    """What was found of a subject.

    Args:
        draft: of the subject.
        hardware: for its physical limits.
        masked: whether it was given a mask.
        processes: how many ran at once.
        pytorch: names of the subjects that times are compared with.
    """
    subject = draft.subject
    memory = None
    if draft.stages:
        memory = ProcessMemory(
            stages=draft.stages,
            peak_anonymous=draft.peak_anonymous,
            processes=None if draft.total_proportional is None else processes,
            total_proportional=draft.total_proportional,
            gpu=draft.gpu,
        )
    return SubjectRecord(
        name=subject.name,
        title=subject.title,
        role=subject.role,
        planned=subject.planned,
        computes_in=draft.computes_in,
        weights_bytes=None if subject.work is None else subject.work.weights_bytes,
        error=subject.skipped or draft.error,
        skipped=subject.skipped is not None,
        memory=memory,
        cold_start=_cold_start(draft.starts),
        latencies=tuple(_latency(draft, size, hardware, masked=masked, pytorch=pytorch) for size in draft.seconds),
        drift=draft.drift,
        loss=draft.loss,
        invariance=draft.invariance,
        notes=tuple(dict.fromkeys(draft.notes)),
    )


def _cold_start(starts: Sequence[tuple[float, float, float, float]]) -> ColdStart | None:
    if not starts:
        return None
    interpreter, imports, load, first = (statistics.median(column) for column in zip(*starts, strict=True))
    total = statistics.median(sum(start) for start in starts)
    return ColdStart(starts=len(starts), interpreter=interpreter, imports=imports, load=load, first=first, total=total)


def _latency(draft: Draft, size: Size, hardware: Hardware, *, masked: bool, pytorch: Sequence[str]) -> Latency:
    name, together = draft.subject.name, draft.seconds[size]
    seconds = together[name]
    median = statistics.median(seconds)
    work, bound = draft.subject.work, None
    if work is not None and draft.computes_in is not None:
        flops = work.flops(size.batch, size.sequence, masked=masked)
        bound = work.bound(hardware, draft.computes_in, flops, median)
    return Latency(
        batch=size.batch,
        sequence=size.sequence,
        seconds=tuple(seconds),
        median=median,
        p95=percentile_95(seconds),
        variation=variation(seconds),
        tokens_per_second=size.batch * size.sequence / median,
        bound=bound,
        ratios={
            base: ratio(seconds, together[base])
            for base in pytorch
            if base != name and len(together.get(base, ())) == len(seconds)
        },
    )
