"""What a run of the demo found: the document `report.json`, and what the report shows.

Sizes are bytes, times are seconds, shares are 0 to 1. What was not measured is `None`, in JSON `null`, and never 0.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from skrr_export.demo.tasks import Task
    from skrr_export.measure.fidelity import Deviation
    from skrr_export.measure.record import SubjectRecord
    from skrr_export.measure.verify import Report
    from skrr_export.plan import Plan

FORMAT = "skrr-demo/1"
TITLES = {"dense": "Dense", "skip": "Skip only", "skrr": "Skrr"}
"""The three encoders, and what they are called."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One of the three encoders, and all that was found of it."""

    name: str
    """One of `TITLES`."""
    plan: Plan
    plan_file: str | None
    """In the output directory; `None` for the dense encoder."""
    total_parameters: int
    """Of the encoder without a plan."""
    kept_parameters: int
    weights_bytes: int
    """Of the bundle's weights file."""
    met: tuple[bool, ...]
    """For each task whether its image shows what was asked."""
    scores: Mapping[str, float]
    """Share of the tasks that are met, by category, and `overall`."""
    margin: float
    """Half the width of the 95% interval of the overall score, for this many tasks."""
    distance: float
    """Mean distance of its images from the dense encoder's, as `sampling.distances` takes it."""
    verification: Report
    """Its drift on the demo's prompts and random ids, and what `verify` says of it."""
    loss: Deviation
    """Its embeddings of the demo's prompts against the dense encoder's."""
    measured: SubjectRecord
    """Memory and latency, in a process of its own."""

    @property
    def title(self) -> str:
        """What it is called."""
        return TITLES[self.name]

    @property
    def bundle(self) -> str:
        """Its bundle in the output directory."""
        return bundle_name(self.name)

    def to_dict(self) -> dict[str, Any]:
        """For the document; of single tasks `Demo.to_dict` tells."""
        return {
            "name": self.name,
            "title": self.title,
            "bundle": self.bundle,
            "plan": self.plan_file,
            "total_parameters": self.total_parameters,
            "kept_parameters": self.kept_parameters,
            "weights_bytes": self.weights_bytes,
            "scores": dict(self.scores),
            "margin": self.margin,
            "distance": self.distance,
            "verification": self.verification.to_dict(),
            "loss": self.loss.to_dict(),
            "measured": asdict(self.measured),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Demo:
    """A whole run."""

    tool: str
    started: str
    """ISO 8601, UTC."""
    seconds: float
    """That it took."""
    fast: bool
    """Whether the plans are the shipped ones."""
    sparsity: float
    """That was asked for."""
    seed: int
    """Of the tasks. The noise that an image starts from has the task's number for its seed."""
    steps: int
    """Of the scheduler, for each image."""
    guidance: float
    denoiser_parameters: int
    threads: int
    """Of one call of an encoder, where it was timed."""
    machine: Mapping[str, str | int | None]
    versions: Mapping[str, str]
    tasks: tuple[Task, ...]
    variants: tuple[Variant, ...]
    """In the order of `TITLES`."""

    @property
    def failures(self) -> tuple[str, ...]:
        """Every check that failed, with the encoder that it is of."""
        return tuple(f"{one.title}: {failure}" for one in self.variants for failure in one.verification.failures)

    @property
    def passed(self) -> bool:
        """Whether every exported encoder gives what `transformers` gives."""
        return not self.failures

    def variant(self, name: str) -> Variant:
        """One of the encoders."""
        return next(variant for variant in self.variants if variant.name == name)

    def to_dict(self) -> dict[str, Any]:
        """The document."""
        return {
            "format": FORMAT,
            "passed": self.passed,
            "failures": list(self.failures),
            "tool": self.tool,
            "started": self.started,
            "seconds": self.seconds,
            "fast": self.fast,
            "sparsity": self.sparsity,
            "seed": self.seed,
            "steps": self.steps,
            "guidance": self.guidance,
            "denoiser_parameters": self.denoiser_parameters,
            "threads": self.threads,
            "machine": dict(self.machine),
            "versions": dict(self.versions),
            "encoders": [variant.to_dict() for variant in self.variants],
            "tasks": [self._task(number) for number in range(len(self.tasks))],
        }

    def to_json(self) -> str:
        """The text of the JSON file."""
        return json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n"

    def _task(self, number: int) -> dict[str, Any]:
        task = self.tasks[number]
        return {
            "prompt": task.prompt,
            "category": task.category,
            "trained": task.is_trained,
            "met": {variant.name: variant.met[number] for variant in self.variants},
        }


def bundle_name(name: str) -> str:
    """The folder of an encoder's bundle in the output directory."""
    return f"{name}.bundle"
