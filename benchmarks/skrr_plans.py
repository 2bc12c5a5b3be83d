"""Plans of every method for the demo's text encoder, kept from run to run."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from skrr_export.checkpoint import fingerprint, open_checkpoint
from skrr_export.demo.model import MODEL, calibration_captions
from skrr_export.demo.sampling import GUIDANCE, STEPS
from skrr_export.demo.tasks import Task, draw_tasks
from skrr_export.plan import Plan
from skrr_export.search.space import arrangement_of
from skrr_export.searching import SearchOptions, search_plans
from skrr_export.staging import write_file

ENCODER = "text_encoder"
SPARSITIES = (0.2454, 0.327, 0.409, 0.573)
"""What three, four, five and seven of the twelve layers weigh: else methods that drop whole layers would drop more.

Three are as in the paper; this encoder bears them well, so the fourth goes beyond."""
DENSE = "dense"
RANDOM, SEEDS = "random", 3
METHODS: Mapping[str, Mapping[str, Any]] = {
    "skrr+": {"method": "skrr+"},
    "skrr": {"method": "skrr"},
    "skrr, no re-use": {"method": "skrr", "reuse": False},
    "finercut": {"method": "finercut"},
    "shortgpt": {"method": "shortgpt"},
    "laco": {"method": "laco"},
    "uniform": {"method": "uniform"},
    RANDOM: {"method": "random"},
}
"""By the name in the tables, what is asked for."""


@dataclass(frozen=True)
class Settings:
    """How much is measured, and where it is kept."""

    work: Path
    captions: int
    """To search on; as many others D is taken on."""
    draws: int
    """Of tasks."""
    count: int
    """Tasks in a category and draw."""

    @cached_property
    def calibration(self) -> list[str]:
        """What plans are searched on."""
        return calibration_captions(self.captions)

    @cached_property
    def others(self) -> list[str]:
        """What D is taken on."""
        more = calibration_captions(2 * self.captions, seed=1)
        return [caption for caption in more if caption not in self.calibration][: self.captions]

    @cached_property
    def tasks(self) -> list[Task]:
        """What images are drawn for, one draw after the other."""
        return [task for seed in range(self.draws) for task in draw_tasks(seed, self.count)]

    @cached_property
    def directory(self) -> Path:
        """Where results lie; it is another for another model, other prompts or another way of sampling."""
        digest = hashlib.sha256(fingerprint(open_checkpoint(MODEL, ENCODER)).encode())
        for folder in ("transformer", "scheduler"):
            for file in sorted((MODEL / folder).iterdir()):
                digest.update(file.read_bytes())
        said = self.calibration, self.others, [task.prompt for task in self.tasks], STEPS, GUIDANCE
        digest.update(repr(said).encode())
        return self.work / "skrr" / digest.hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Subject:
    """A plan, and who found it."""

    label: str
    seed: int
    """Of the method `random`."""
    wanted: float
    """Sparsity."""
    plan: Plan
    checkpoint: Path
    """A merged one, or the directory of the whole model."""

    @property
    def key(self) -> str:
        """A name for what runs; that of a plan that another method found as well."""
        merged = self.plan.provenance.get("merged", {}).get("sha256")
        return hashlib.sha256(repr((arrangement_of(self.plan), merged)).encode()).hexdigest()[:16]

    @property
    def reached(self) -> float:
        """The share of all parameters that it does without."""
        return 0.0 if self.label == DENSE else float(self.plan.provenance["sparsity"]["reached"])


def dense() -> Subject:
    """The encoder as it is."""
    layers = open_checkpoint(MODEL, ENCODER).config["num_layers"]
    return Subject(DENSE, 0, 0.0, Plan.identity("t5", layers), MODEL)


def search(settings: Settings, label: str, seed: int) -> list[Subject]:
    """A method's plan for each sparsity; read back if it was found before."""
    home = settings.directory / f"{label}-{seed}"
    files = [home / f"{wanted}.json" for wanted in SPARSITIES]
    merged = home / "merged" if label == "laco" else None
    options = SearchOptions(
        sparsities=SPARSITIES, prompts=settings.calibration, denoiser=MODEL, subfolder=ENCODER, seed=seed,
        device="cpu", dtype="fp32", merged=merged, **METHODS[label],
    )  # fmt: skip
    if not all(file.is_file() for file in files):
        shutil.rmtree(home, ignore_errors=True)  # merged checkpoints without their plans
        home.mkdir(parents=True)
        for file, plan in zip(files, search_plans(MODEL, options), strict=True):
            write_file(file, plan.to_json().encode())
    checkpoints = options.merged_directories or [MODEL] * len(SPARSITIES)
    return [
        Subject(label, seed, wanted, Plan.load(file), checkpoint)
        for wanted, file, checkpoint in zip(SPARSITIES, files, checkpoints, strict=True)
    ]
