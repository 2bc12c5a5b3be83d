"""A run of the demo as `run_demo` returns it, of a model that nobody has to run, and the images that it drew."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from random import Random
from typing import Any

import numpy as np

from skrr_export.demo.images import draw
from skrr_export.demo.record import TITLES, Demo, Variant
from skrr_export.demo.running import margin
from skrr_export.demo.sampling import Images, distances
from skrr_export.demo.tasks import Task, draw_tasks, score
from skrr_export.demo.world import Scene, draw_scene, relation
from skrr_export.measure.fidelity import Comparison
from skrr_export.measure.latency import ratio
from skrr_export.measure.record import Latency, Ratio, SubjectRecord
from skrr_export.measure.verify import Report
from skrr_export.plan import Plan
from tests.page.measurements import NO_TOKENS, deviation, memory, subject
from tests.page.provenances import provenance

EACH = 5
"""Tasks of each category."""
FAILS = {"dense": 11, "skip": 2, "skrr": 6}
"""Every so-manieth image of an encoder is of something else."""
PLANS = {
    "dense": Plan.identity("t5", 4),
    "skip": Plan("t5", ((0, 0), (None, 1), (2, None), (3, 3)), provenance("skrr")),
    "skrr": Plan("t5", ((0, 0), (0, 1), (2, 1), (3, 3)), provenance("skrr+")),
}
MEDIANS = {"dense": 0.0031, "skip": 0.0021, "skrr": 0.0024}


def fits(task: Task, scene: Scene) -> bool:
    """Whether a scene shows the shapes and the relation that a task asks for."""
    shapes = [shape for shape, _ in task.wanted]
    if Counter(thing.shape for thing in scene.things) != Counter(shapes):
        return False
    if task.where is None:
        return True
    first, second = sorted(scene.things, key=lambda thing: shapes.index(thing.shape))
    return relation(first, second) == task.where


def scene_of(task: Task, random: Random) -> Scene:
    """A scene that meets a task."""
    kind = "inside" if task.where == "inside" else "alike" if task.category == "counting" else "pair"
    if len(task.wanted) == 1:
        kind = "single"
    while True:
        scene = draw_scene(kind, random)  # type: ignore[arg-type]
        if fits(task, scene):
            colours = {shape: colour for shape, colour in task.wanted if colour is not None}
            things = tuple(replace(one, colour=colours.get(one.shape, one.colour)) for one in scene.things)
            return replace(scene, things=things)


@cache
def tasks() -> tuple[Task, ...]:
    """What was asked."""
    return tuple(draw_tasks(7, EACH))


@cache
def images() -> dict[str, Images]:
    """What each encoder drew."""
    random, drawn = Random(3), {}
    right = [draw(scene_of(task, random)) for task in tasks()]
    for name, every in FAILS.items():
        wrong = [index % every == every - 1 for index in range(len(right))]
        drawn[name] = np.stack(
            [draw(draw_scene("triple", random)) if bad else image for bad, image in zip(wrong, right, strict=True)]
        )
    return drawn


def verification(error: float | None, *failures: str) -> Report:
    """Of a drift."""
    tokens = NO_TOKENS if error is None else deviation(error)
    drift = Comparison(tokens=tokens, padding=deviation(1e-6), pooled=None)
    return Report(
        computes_in="fp32", cases=9, prompts=30, drift=drift, loss=None, headroom=None, failures=failures, notes=()
    )


def measured(name: str) -> SubjectRecord:
    """Memory and latency of an encoder."""
    return subject(
        name,
        TITLES[name],
        role="target",
        memory=memory(36, 3 if name == "dense" else 2, 50),
        latencies=tuple(_latency(name, batch) for batch in (1, 32)),
    )


def _latency(name: str, batch: int) -> Latency:
    runs = {who: [batch * median * (1 + 0.01 * run) for run in range(5)] for who, median in MEDIANS.items()}
    ratios: dict[str, Ratio] = {} if name == "dense" else {"dense": ratio(runs[name], runs["dense"])}
    return Latency(
        batch=batch,
        sequence=32,
        seconds=tuple(runs[name]),
        median=runs[name][2],
        p95=runs[name][4],
        variation=0.01,
        tokens_per_second=32 * batch / runs[name][2],
        bound=None,
        ratios=ratios,
    )


@cache
def variant(name: str) -> Variant:
    """An encoder."""
    met = tuple(task.is_met(image) for task, image in zip(tasks(), images()[name], strict=True))
    return Variant(
        name=name,
        plan=PLANS[name],
        plan_file={"skip": "plans/skip.json", "skrr": "plans/skrr+.json"}.get(name),
        total_parameters=2_000_000,
        kept_parameters=2_000_000 if name == "dense" else 1_300_000,
        weights_bytes=8_000_000 if name == "dense" else 5_200_000,
        met=met,
        scores=score(tasks(), images()[name]),
        margin=margin(tasks(), met),
        distance=float(distances(images()[name], images()["dense"]).mean()),
        verification=verification({"dense": 4e-7, "skip": 5e-7, "skrr": 6e-7}[name]),
        loss=deviation({"dense": 1e-7, "skip": 0.31, "skrr": 0.22}[name]),
        measured=measured(name),
    )


def demo(variants: Sequence[Variant] | None = None, **changes: Any) -> Demo:
    """A run in which all went well, unless told otherwise."""
    plain = Demo(
        tool="skrr-export 0.1.0",
        started="2026-11-28T10:00:00+00:00",
        seconds=123.4,
        fast=False,
        sparsity=0.33,
        seed=7,
        steps=20,
        guidance=3.0,
        denoiser_parameters=4_000_000,
        threads=2,
        machine={"cpu": "A processor", "cores": 2, "memory_bytes": 24 << 30, "kernel": "6.1", "gpu": None},
        versions={"python": "3.11.7", "diffusers": "0.42.1"},
        tasks=tasks(),
        variants=tuple(map(variant, TITLES)) if variants is None else tuple(variants),
    )
    return replace(plain, **changes)


def changed(name: str, **changes: Any) -> Demo:
    """A run in which one encoder differs."""
    return demo([replace(variant(one), **changes) if one == name else variant(one) for one in TITLES])
