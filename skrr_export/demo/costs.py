"""What the demo's encoders cost to run: memory and latency, each in a process of its own."""

from __future__ import annotations

from collections.abc import Mapping

from skrr_export.bundle import Bundle
from skrr_export.demo.record import TITLES
from skrr_export.measure import openers
from skrr_export.measure.harness import Draft, Harness, Size, record
from skrr_export.measure.process import Surroundings
from skrr_export.measure.record import Hardware, SubjectRecord
from skrr_export.measure.subjects import Subject
from skrr_export.measure.worker import Opener
from skrr_export.progress import Progress, part

ONE, MANY = Size(1, 32), Size(32, 32)
"""What is timed; the longest prompts have about 32 tokens."""
RUNS = 15
"""Timed runs of each encoder and size."""
_TIME_LIMIT = 120.0
"""Seconds after which an encoder counts as hung."""


def measure_costs(bundles: Mapping[str, Bundle], *, threads: int, progress: Progress) -> dict[str, SubjectRecord]:
    """Measure bundles on ONNX Runtime: first each alone, then all in turn.

    Args:
        bundles: by the names of their encoders, the dense one first; times are compared with its.
        threads: for the operators of one call.
        progress: told how far the job is.

    Returns:
        What was found of each. One that fails on its way says why; that is no error.
    """
    manifest = next(iter(bundles.values())).manifest
    masked = manifest.pipeline.masked
    harness = Harness(
        Surroundings(threads=threads, time_limit=_TIME_LIMIT),
        [ONE, MANY],
        vocab_size=manifest.vocab_size,
        masked=masked,
    )
    drafts = {name: Draft(subject=_subject(name, bundle, threads)) for name, bundle in bundles.items()}
    parts = [part(progress, number, len(drafts) + 1) for number in range(len(drafts) + 1)]
    for draft, tell in zip(drafts.values(), parts, strict=False):
        harness.alone(draft, progress=tell)
    harness.interleaved(list(drafts.values()), RUNS, parts[-1])
    unknown = Hardware(copy_bytes_per_second=None, matmul_flops_per_second={})
    base = list(bundles)[:1]
    return {name: record(draft, unknown, masked=masked, processes=1, pytorch=base) for name, draft in drafts.items()}


def _subject(name: str, bundle: Bundle, threads: int) -> Subject:
    opener = Opener.of(
        openers.open_session, bundle=bundle.directory, target="onnx", mode="mapped", device="cpu", threads=threads
    )
    return Subject(name=name, title=TITLES[name], role="target", planned=name != "dense", opener=opener)
