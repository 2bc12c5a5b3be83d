"""Measure a bundle: memory, latency and fidelity of every way to run it, beside PyTorch, in one document."""

from __future__ import annotations

import datetime as dt
import hashlib
import math
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib import metadata
from pathlib import Path

import numpy as np

from skrr_export.bundle import Bundle
from skrr_export.checkpoint import open_checkpoint
from skrr_export.encoders import bundle_encoder, recognise
from skrr_export.errors import InputError
from skrr_export.manifest import MANIFEST, Manifest
from skrr_export.measure import openers
from skrr_export.measure.agreement import AgreementMeter, Project, invariance
from skrr_export.measure.cases import Case, cases_of, chosen_prompts, reads_padding
from skrr_export.measure.comparison import Rows
from skrr_export.measure.hardware import fastest, measure_hardware
from skrr_export.measure.harness import Draft, Harness, Size, record
from skrr_export.measure.machine import cores, machine, versions
from skrr_export.measure.process import SubjectError, Surroundings, Worker
from skrr_export.measure.record import BundleFacts, Hardware, Measurement, Settings, SubjectRecord
from skrr_export.measure.stored import Stored
from skrr_export.measure.subjects import DENSE, Subject, chosen_targets, subjects_of
from skrr_export.measure.verdicts import Thresholds, judge
from skrr_export.measure.work import Work
from skrr_export.measure.worker import Embeddings, Opener, Run
from skrr_export.progress import Progress, part, silent
from skrr_export.prompts import spread

LENGTHS = (77, 256, 512)
"""Tokens that are timed where neither the bundle nor its pipeline fixes a length."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasureOptions:
    """What to measure, and how."""

    reference: str | Path | None = None
    """The original checkpoint: with it the dense encoder is measured, the loss, and the baking of the weights."""
    subfolder: str | None = None
    """Of the reference."""
    targets: tuple[str, ...] = ("all",)
    """Names in `skrr_export.measure.subjects.TITLES`, or `all`."""
    peers: tuple[Subject, ...] = ()
    """Other ways to run this encoder, measured beside; their drift is stated, and not judged."""
    device: str = "cpu"
    """`cpu`, `cuda`, or `cuda:1`."""
    batches: tuple[int, ...] | None = None
    """Default: 1, or what the bundle fixes."""
    sequences: tuple[int, ...] | None = None
    """In tokens. Default: the pipeline's length where it is fixed, else `LENGTHS` as far as the encoder takes them."""
    prompts: Sequence[str] | None = None
    """To compare embeddings on; default: the shipped ones."""
    max_prompts: int | None = None
    """Take so many of them, evenly spread."""
    denoiser: str | Path | None = None
    """Whose text projection embeddings are also compared after."""
    threads: int | None = None
    """For the operators of one call; default: the cores that this process may use."""
    runs: int = 9
    """Timed runs of each subject and size."""
    processes: int = 2
    """That run each subject at the same time, for the sum of their memory."""
    time_limit: float = 600.0
    """Seconds after which a request to a subject counts as hung."""
    thresholds: Thresholds = field(default_factory=Thresholds)
    seed: int = 0
    """Of the random ids."""
    command: str = ""
    """The command line, for the record."""


def measure_bundle(bundle: Bundle, options: MeasureOptions, progress: Progress = silent) -> Measurement:
    """Measure a bundle.

    Args:
        bundle: an open bundle; its files are checked against their hashes first.
        options: what to measure, and how.
        progress: told what is being done.

    Raises:
        SkrrError: the request makes no sense: a target that the bundle lacks, the checkpoint of another encoder, no
            prompts, a size that the encoder cannot take; or a file of the bundle was changed. A subject that fails on
            its way is no error: its row says so.
    """
    return _Run(bundle, options).measure(progress)


class _Run:
    """A measurement under way."""

    def __init__(self, bundle: Bundle, options: MeasureOptions) -> None:
        """Check the request, before anything takes long."""
        self._bundle, self._options = bundle, options
        self._preset = bundle.manifest.pipeline
        self._notes: list[str] = []
        for what in ("runs", "processes", "threads", "max_prompts"):
            if (value := getattr(options, what)) is not None:
                _check_positive(what, value)
        if not 0 < options.time_limit < math.inf:
            raise InputError(f"the time limit must be a number of seconds, not {options.time_limit}")
        self._device, gpu = _parse_device(options.device)
        threads = options.threads or cores()
        self._surroundings = Surroundings(threads=threads, time_limit=options.time_limit, gpu=gpu)
        targets = chosen_targets(bundle, options.targets, self._device)
        encoder = bundle_encoder(bundle)
        self._checkpoint = _find_reference(bundle, options)
        prompts = chosen_prompts(bundle, options.prompts)
        self._prompts = spread(prompts, options.max_prompts) if prompts else []
        if not self._prompts:
            self._notes.append("no tokenizer in the bundle: embeddings are compared on random ids only")
        self._cases = cases_of(bundle, self._prompts, options.seed)
        self._project, self._projection = _open_projection(options.denoiser, bundle.manifest)
        self._harness = Harness(
            self._surroundings,
            _sizes(bundle, options),
            vocab_size=encoder.vocab_size,
            masked=self._preset.masked,
            on_gpu=self._device != "cpu",
        )
        ours = subjects_of(
            bundle,
            targets,
            self._checkpoint,
            device=self._device,
            threads=threads,
            dense=Work.dense(encoder, bundle.manifest),
            planned=Work.planned(encoder, bundle.manifest),
        )
        self._subjects = (*ours, *options.peers)

    def measure(self, progress: Progress) -> Measurement:
        """Measure the machine, then every subject alone, then all in turn."""
        began, clock = dt.datetime.now(dt.UTC), time.perf_counter()
        drafts = [Draft(subject=subject) for subject in self._subjects]
        active = [draft for draft in drafts if draft.subject.skipped is None]
        parts = [part(progress, number, len(active) + 6) for number in range(len(active) + 6)]
        self._bundle.check_hashes(parts[0])
        parts[1]("the machine's limits", 0, 1)
        dtypes = {"fp32", self._bundle.manifest.dtype.name}
        before = measure_hardware(self._device, dtypes, self._surroundings)
        with Stored() as planned, Stored() as dense:
            references = {}
            if self._reference(planned, parts[2], planned=True):
                references["drift"] = planned
            if self._checkpoint is not None and self._reference(dense, parts[3], planned=False):
                references["loss"] = dense
            for draft, tell in zip(active, parts[4:-2], strict=True):
                self._harness.alone(
                    draft,
                    processes=self._options.processes,
                    examine=partial(self._examine, references=references),
                    progress=tell,
                )
        self._harness.interleaved(active, self._options.runs, parts[-2])
        parts[-1]("the machine's limits", 0, 1)
        hardware = fastest(before, measure_hardware(self._device, dtypes, self._surroundings))
        return self._document(drafts, hardware, began, time.perf_counter() - clock)

    def _reference(self, stored: Stored, progress: Progress, *, planned: bool) -> bool:
        """Encode every case in fp32; returns whether that went well."""
        what = "fp32 reference" if planned else "dense fp32 reference"
        opener = Opener.of(
            openers.open_reference,
            bundle=self._bundle.directory,
            checkpoint=self._checkpoint,
            planned=planned,
            device=self._device,
            threads=self._surroundings.threads,
        )
        try:
            with Worker(opener, self._surroundings) as worker:
                worker.open()
                worker.load()
                for done, case in enumerate(self._cases):
                    progress(f"{what}: {case.name}", done, len(self._cases))
                    stored.add(self._encode(worker, case))
        except SubjectError as error:
            self._notes.append(f"{what}: {error}")
            return False
        return True

    def _examine(self, draft: Draft, worker: Worker, references: Mapping[str, Stored]) -> None:
        """Compare a subject's embeddings with the references', and with its own."""
        meters = {name: AgreementMeter(self._preset, self._project) for name in references}
        for number, case in enumerate(self._cases):
            ours = self._encode(worker, case)
            for name, meter in meters.items():
                meter.add(case, ours, references[name].get(number))
        found = {name: meter.result() for name, meter in meters.items()}
        draft.drift = None if draft.subject.name == DENSE else found.get("drift")
        draft.loss = found.get("loss")
        draft.invariance = invariance(
            lambda ids, mask: _output(worker.run(ids, mask, output=True)),
            self._cases,
            self._preset,
            free_batch=self._bundle.manifest.batch is None,
            free_length=self._bundle.manifest.sequence is None,
        )

    def _encode(self, worker: Worker, case: Case) -> Embeddings:
        return _output(worker.run(case.input_ids, case.given(self._preset), output=True))

    def _document(self, drafts: Sequence[Draft], hardware: Hardware, began: dt.datetime, seconds: float) -> Measurement:
        options, on_gpu = self._options, self._device != "cpu"
        pytorch = [draft.subject.name for draft in drafts if draft.subject.role == "pytorch"]
        subjects = tuple(
            record(draft, hardware, masked=self._preset.masked, processes=options.processes, pytorch=pytorch)
            for draft in drafts
        )
        return Measurement(
            tool=f"skrr-export {metadata.version('skrr-export')}",
            started=began.isoformat(timespec="seconds"),
            seconds=seconds,
            bundle=_facts(self._bundle),
            settings=Settings(
                command=options.command,
                reference=None if self._checkpoint is None else str(self._checkpoint),
                device=options.device,
                threads=self._surroundings.threads,
                runs=options.runs,
                processes=options.processes,
                prompts=len(self._prompts),
                denoiser=self._projection,
                largest=(self._harness.largest.batch, self._harness.largest.sequence),
            ),
            machine=machine(self._surroundings.gpu),
            versions=versions(),
            hardware=hardware,
            subjects=subjects,
            verdicts=tuple(
                judge(subjects, options.thresholds, reads_padding=reads_padding(self._preset), on_gpu=on_gpu)
            ),
            notes=(*self._notes, *_beyond(subjects)),
        )


def _beyond(subjects: Sequence[SubjectRecord]) -> Iterator[str]:
    """Say so where a limit cannot be true."""
    bounds = [latency.bound for subject in subjects for latency in subject.latencies if latency.bound is not None]
    count = sum(bound.share > 1 for bound in bounds)
    if count:
        yield (
            f"{count} of {len(bounds)} latencies are below the machine's limit, so that was disturbed while it was "
            "measured: measure again when the machine is idle"
        )


def _output(run: Run) -> Embeddings:
    assert run.output is not None
    return run.output


def _parse_device(name: str) -> tuple[str, str | None]:
    """The kind of a device, and for a GPU its number or UUID, as NVIDIA's driver knows it."""
    match = re.fullmatch(r"cpu|cuda(?::(\d+))?", name)
    if match is None:
        raise InputError(f"unknown device '{name}'; choose cpu, cuda, or cuda:N")
    if name == "cpu":
        return name, None
    import torch

    number, count = int(match[1] or 0), torch.cuda.device_count()
    if number >= count:
        sees = f"sees {count}" if count else "sees none"
        raise InputError(f"no GPU for the device {name}: torch {torch.__version__} {sees}; use another, or cpu")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return "cuda", visible.split(",")[number].strip() if visible else str(number)


def _check_positive(what: str, value: int) -> None:
    if value < 1:
        raise InputError(f"{what} must be at least 1, not {value}")


def _find_reference(bundle: Bundle, options: MeasureOptions) -> Path | None:
    """The checkpoint's directory, if it holds the bundle's encoder."""
    if options.reference is None:
        return None
    checkpoint = open_checkpoint(options.reference, options.subfolder)
    found, manifest = recognise(checkpoint), bundle.manifest
    theirs = (found.family, found.num_layers, found.hidden_size, found.vocab_size)
    ours = (manifest.family, manifest.num_layers, manifest.hidden_size, manifest.vocab_size)
    if theirs != ours:
        text = "a {} encoder of {} layers x {} with a vocabulary of {}"
        raise InputError(
            f"{checkpoint.directory} holds {text.format(*theirs)}; "
            f"{bundle.directory} was made from {text.format(*ours)}: give the checkpoint that it was exported from"
        )
    return checkpoint.directory


def _sizes(bundle: Bundle, options: MeasureOptions) -> list[Size]:
    """Every batch size with every length.

    Raises:
        InputError: the bundle does not take one.
    """
    manifest = bundle.manifest
    longest = manifest.pipeline.max_length if manifest.max_length is None else manifest.max_length
    batches, sequences = options.batches, options.sequences
    if batches is None:
        batches = (manifest.batch or 1,)
    if sequences is None:
        fixed = manifest.sequence or (longest if manifest.pipeline.padding == "max_length" else None)
        sequences = (fixed,) if fixed else tuple(dict.fromkeys(min(length, longest) for length in LENGTHS))
    for what, values, fixed in (("batch", batches, manifest.batch), ("sequence", sequences, manifest.sequence)):
        for value in values:
            _check_positive(what, value)
            if fixed is not None and value != fixed:
                raise InputError(f"this bundle's {what} size is fixed at {fixed}; it cannot be measured at {value}")
    if manifest.max_length is not None and max(sequences) > manifest.max_length:
        raise InputError(f"{max(sequences)} tokens exceed this encoder's maximum of {manifest.max_length}")
    return [Size(batch, sequence) for batch in dict.fromkeys(batches) for sequence in dict.fromkeys(sequences)]


def _open_projection(denoiser: str | Path | None, manifest: Manifest) -> tuple[Project | None, str | None]:
    """A denoiser's projection of what the encoder gives per token, and what it is."""
    if denoiser is None:
        return None, None
    if manifest.rows is None or manifest.rows.output.join == "stack":
        raise InputError(
            "no text projection reads what this bundle gives, a pooled vector or stacked layers; leave --denoiser out"
        )
    import torch

    from skrr_export.search.projection import open_projection

    projection = open_projection(denoiser, int(manifest.rows.shape[-1]), manifest.pipeline.projection)

    @torch.inference_mode()
    def project(rows: Rows) -> Rows:
        return np.asarray(projection(torch.from_numpy(np.ascontiguousarray(rows))))

    return project, projection.describe()


def _facts(bundle: Bundle) -> BundleFacts:
    manifest = bundle.manifest
    return BundleFacts(
        path=str(bundle.directory),
        manifest_sha256=hashlib.sha256((bundle.directory / MANIFEST).read_bytes()).hexdigest(),
        family=manifest.family,
        num_layers=manifest.num_layers,
        hidden_size=manifest.hidden_size,
        dtype=manifest.dtype.name,
        pipeline=manifest.pipeline.name,
        plan=manifest.plan.to_dict(),
        total_parameters=manifest.total_parameters,
        kept_parameters=manifest.kept_parameters,
        weights_bytes=bundle.weights.stat().st_size,
    )
