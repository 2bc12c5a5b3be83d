"""The whole promise on trained weights: plans, exports, proofs, images before and after, and a report of it all."""

from __future__ import annotations

import datetime as dt
import importlib.util
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from skrr_export.bundle import Bundle
from skrr_export.demo.model import MODEL
from skrr_export.demo.plans import FILES, SPARSITY, search_plan, shipped_plan, wanted_sparsity
from skrr_export.demo.record import TITLES, Demo, Variant, bundle_name
from skrr_export.demo.sampling import GUIDANCE, STEPS, Embedded, Images, Sampler, distances, embed
from skrr_export.errors import DependencyError, OutputError
from skrr_export.exporting import ExportOptions, export_checkpoint
from skrr_export.manifest import MANIFEST
from skrr_export.measure.fidelity import Deviation, DeviationMeter
from skrr_export.measure.machine import cores, machine, versions
from skrr_export.plan import Plan
from skrr_export.progress import Progress, part, silent
from skrr_export.searching import SearchOptions
from skrr_export.staging import StagedDirectory
from skrr_export.targets import open_target

if TYPE_CHECKING:
    from skrr_export.demo.tasks import Task
    from skrr_export.measure.record import SubjectRecord
    from skrr_export.measure.verify import Report

REPORT, DOCUMENT, PLANS = "report.html", "report.json", "plans"
"""In the output directory, beside a bundle for each encoder."""
TASKS, FAST_TASKS = 20, 10
"""Prompts of each of the six categories, each drawn by each encoder."""
SEED = 1
"""Of the prompts."""
DTYPE = "fp32"
"""Of the bundles: the checkpoint's bf16 fits into it without loss, and a CPU computes in it anyway."""

VECTORS = 8
"""Test vectors of each bundle, by which the C++ runtime proves itself on it."""

_NEEDED = {"diffusers": "diffusers", "scipy": "scipy", "PIL": "pillow", "onnxruntime": "onnxruntime"}
"""Modules that the rest of the package does without, and the packages that bring them."""
_MARKER = f"{bundle_name('skrr')}/{MANIFEST}"


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoOptions:
    """How to run the demo.

    Raises:
        InputError: the sparsity is no share.
    """

    sparsity: float | None = None
    """Share of the encoder's parameters to do without; `None`: `SPARSITY`, or that of the shipped plans."""
    fast: bool = False
    """Take the shipped plans, and draw fewer images."""
    replace: bool = False
    """Replace the output of an earlier demo."""

    def __post_init__(self) -> None:
        if self.sparsity is not None:
            SearchOptions(sparsities=(self.sparsity,))  # refuses what is no share


def run_demo(output: Path, options: DemoOptions = DemoOptions(), *, progress: Progress = silent) -> Demo:
    """Run the demo.

    Args:
        output: directory for the report, the plans and the bundles; appears whole or not at all.
        options: how.
        progress: told how far the job is.

    Raises:
        DependencyError: a package is missing that only the demo needs.
        InputError: no plan reaches the sparsity, or none is shipped for it.
        OutputError: the directory exists and may not be replaced, or cannot be written.
    """
    _check_installed()
    began, clock = dt.datetime.now(dt.UTC), time.perf_counter()
    with StagedDirectory(output, replace=options.replace, marker=_MARKER, kind="demo's output") as stage:
        _check_alone(output)
        shipped = {name: shipped_plan(name, options.sparsity) for name in FILES} if options.fast else None
        from skrr_export.demo.costs import measure_costs
        from skrr_export.demo.report.page import page
        from skrr_export.demo.tasks import draw_tasks

        with _one_thread():
            steps = _Steps(progress, (0 if shipped else len(FILES)) + 3 * len(TITLES) + 1)
            plans = shipped or _search(options.sparsity, steps)
            bundles = _export(stage, plans, steps)
            tasks = draw_tasks(SEED, FAST_TASKS if options.fast else TASKS)
            sampler = Sampler(MODEL)
            drawings = _draw(bundles, tasks, sampler, steps)
        threads = cores()
        costs = measure_costs(bundles, threads=threads, progress=steps.next("measuring memory and latency"))
        demo = Demo(
            tool=f"skrr-export {metadata.version('skrr-export')}",
            started=began.isoformat(timespec="seconds"),
            seconds=time.perf_counter() - clock,
            fast=options.fast,
            sparsity=wanted_sparsity(plans["skrr"]),
            seed=SEED,
            steps=STEPS,
            guidance=GUIDANCE,
            denoiser_parameters=sampler.parameters,
            threads=threads,
            machine=machine(None),
            versions={**versions(), "diffusers": metadata.version("diffusers")},
            tasks=tuple(tasks),
            variants=_variants(bundles, tasks, drawings, costs),
        )
        for name, plan in plans.items():
            stage.write(f"{PLANS}/{FILES[name]}", plan.to_json().encode())
        stage.write(DOCUMENT, demo.to_json().encode())
        stage.write(REPORT, page(demo, {name: drawing.images for name, drawing in drawings.items()}).encode())
    return demo


class _Steps:
    """The progress of a job in steps, of which each says in the same words what it does."""

    def __init__(self, progress: Progress, count: int) -> None:
        self._progress, self._count, self._number = progress, count, -1

    def next(self, what: str) -> Progress:
        """Begin the next step; the progress of what it calls."""
        self._number += 1
        own = part(self._progress, self._number, self._count)
        own(what, 0, 1)
        return lambda _, done, total: own(what, done, total)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Let torch compute in one thread.

    On models this small several wait for each other longer than they work: on two busy cores the search and the drawing
    took eight times as long with two.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _check_installed() -> None:
    missing = [package for module, package in _NEEDED.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise DependencyError(f"the demo needs {', '.join(missing)}: pip install 'skrr-export[demo]'")


def _check_alone(output: Path) -> None:
    """What a user put beside an earlier demo's output would go with it."""
    ours = {REPORT, DOCUMENT, PLANS, *map(bundle_name, TITLES)}
    others = sorted(path.name for path in output.iterdir() if path.name not in ours) if output.is_dir() else []
    if others:
        raise OutputError(f"{output} also holds {', '.join(others)}, which --force would remove; choose another output")


# The steps


def _search(sparsity: float | None, steps: _Steps) -> dict[str, Plan]:
    wanted = SPARSITY if sparsity is None else sparsity
    return {name: search_plan(name, wanted, progress=steps.next(f"{TITLES[name]}: searching a plan")) for name in FILES}


def _export(stage: StagedDirectory, plans: Mapping[str, Plan], steps: _Steps) -> dict[str, Bundle]:
    bundles = {}
    for name, title in TITLES.items():
        export = ExportOptions(
            plan=plans.get(name),
            dtype=DTYPE,
            subfolder="text_encoder",
            tokenizer=MODEL / "tokenizer",
            vectors=VECTORS,
        )
        told = steps.next(f"{title}: exporting to ONNX")
        bundles[name] = export_checkpoint(MODEL, stage.path(bundle_name(name)), export, progress=told).bundle
    return bundles


@dataclass(frozen=True, slots=True)
class _Drawing:
    """What one encoder made of the tasks, and the proof that it is what it should be."""

    verification: Report
    embedded: Embedded
    images: Images
    met: tuple[bool, ...]
    scores: Mapping[str, float]


def _draw(bundles: Mapping[str, Bundle], tasks: Sequence[Task], sampler: Sampler, steps: _Steps) -> dict[str, _Drawing]:
    """Verify each bundle, and draw with it."""
    from skrr_export.demo.tasks import scores
    from skrr_export.measure.verify import verify

    prompts = [task.prompt for task in tasks]
    drawings = {}
    for name, bundle in bundles.items():
        session = open_target(bundle, "onnx")
        told = steps.next(f"{TITLES[name]}: verifying against transformers")
        verification = verify(bundle, session, prompts, reference=MODEL / "text_encoder", progress=told)
        told = steps.next(f"{TITLES[name]}: drawing {len(tasks)} images")
        embedded = embed(session, prompts)
        empty = embed(session, [""])
        images = sampler.draw(embedded, empty, range(len(tasks)), threads=cores(), progress=told)
        met = tuple(task.is_met(image) for task, image in zip(tasks, images, strict=True))
        drawings[name] = _Drawing(verification, embedded, images, met, scores([task.category for task in tasks], met))
    return drawings


# Numbers


def _variants(
    bundles: Mapping[str, Bundle],
    tasks: Sequence[Task],
    drawings: Mapping[str, _Drawing],
    costs: Mapping[str, SubjectRecord],
) -> tuple[Variant, ...]:
    dense = drawings["dense"]
    return tuple(
        Variant(
            name=name,
            plan=bundle.manifest.plan,
            plan_file=f"{PLANS}/{FILES[name]}" if name in FILES else None,
            total_parameters=bundle.manifest.total_parameters,
            kept_parameters=bundle.manifest.kept_parameters,
            weights_bytes=bundle.weights.stat().st_size,
            met=drawings[name].met,
            scores=drawings[name].scores,
            margin=margin(tasks, drawings[name].met),
            distance=float(distances(drawings[name].images, dense.images).mean()),
            verification=drawings[name].verification,
            loss=_loss(drawings[name].embedded, dense.embedded),
            measured=costs[name],
        )
        for name, bundle in bundles.items()
    )


def margin(tasks: Sequence[Task], met: Sequence[bool]) -> float:
    """Half the width of the 95% interval of an overall score, the mean of the categories' shares.

    Each share is taken as if one task more had been met and one more had not: else a category in which all are met
    would seem certain.

    Args:
        tasks: at least one.
        met: whether each is.
    """
    results: dict[str, list[bool]] = {}
    for task, is_met in zip(tasks, met, strict=True):
        results.setdefault(task.category, []).append(is_met)
    variances = []
    for each in results.values():
        share = (sum(each) + 1) / (len(each) + 2)
        variances.append(share * (1 - share) / len(each))
    return 1.96 * math.sqrt(sum(variances)) / len(variances)


def _loss(embedded: Embedded, dense: Embedded) -> Deviation:
    """Of the rows that are tokens."""
    meter, tokens = DeviationMeter(), dense.mask != 0
    meter.add(embedded.rows[tokens], dense.rows[tokens])
    return meter.result()
