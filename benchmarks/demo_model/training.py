"""Training steps that both stages share: optimiser, schedule, an average of the weights, and going on after a stop."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import nn
from words import Batch

WARM_UP = 100
"""Steps until the full learning rate."""
COOL_DOWN = 0.4
"""Share of the steps over which it falls to nothing at the end."""
SAVED_EVERY = 480
"""Steps; a multiple of the chunks that examples are drawn in, so that a run that goes on learns the same."""


class Trainer:
    """A module under training, an average of its weights, and how far it is."""

    def __init__(
        self, module: nn.Module, rate: float, steps: int, state: Path, *, faster: Mapping[str, float] = {}
    ) -> None:
        """Prepare, or go on where an earlier run stopped.

        Args:
            module: to train.
            rate: of learning.
            faster: how many times the rate is that of parameters with these words in their names.
            steps: of the whole training.
            state: file for going on.
        """
        self.module, self.steps, self.done = module, steps, 0
        self.average = copy.deepcopy(module).eval()
        self._state, self._started, self._losses = state, time.monotonic(), list[float]()
        groups: dict[float, list[nn.Parameter]] = {}
        for name, weight in module.named_parameters():
            times = next((times for part, times in faster.items() if part in name), 1.0)
            groups.setdefault(rate * times, []).append(weight)
        self._optimiser = torch.optim.AdamW(
            [{"params": weights, "lr": each} for each, weights in groups.items()],
            betas=(0.9, 0.98),
            weight_decay=0.01,
            fused=True,
        )
        self._schedule = torch.optim.lr_scheduler.LambdaLR(self._optimiser, self._rate)
        if state.exists():
            self._load()

    def _rate(self, step: int) -> float:
        return min(1.0, (step + 1) / WARM_UP, (self.steps - step) / (COOL_DOWN * self.steps))

    def chunks(self, name: str) -> Iterator[Random]:
        """Randomness for a chunk of batches, again and again until all steps are done; the same for a run that goes on.

        Args:
            name: makes it another's than that of other trainings.
        """
        while self.done < self.steps:
            yield Random(f"{name} {self.done}")

    def limit(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """As many of the batches as there are steps left."""
        return islice(batches, self.steps - self.done)

    def step(self, loss: torch.Tensor) -> None:
        """Learn from one batch."""
        loss.backward()
        nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
        self._optimiser.step()
        self._schedule.step()
        self._optimiser.zero_grad()
        self._follow()
        self.done += 1
        self._losses.append(loss.item())
        if self.done % 100 == 0:
            seconds = (time.monotonic() - self._started) / len(self._losses)
            mean = sum(self._losses[-100:]) / len(self._losses[-100:])
            print(f"step {self.done} of {self.steps}: loss {mean:.4f}, {seconds:.2f} s a step", flush=True)
        if self.done % SAVED_EVERY == 0 or self.done == self.steps:
            self._save()

    @torch.no_grad()
    def _follow(self) -> None:
        share = max(0.002, 1 / (self.done + 10)) if self.done > 10 else 1.0
        torch._foreach_lerp_(list(self.average.parameters()), list(self.module.parameters()), share)

    def _parts(self) -> dict[str, Any]:
        return {
            "module": self.module,
            "average": self.average,
            "optimiser": self._optimiser,
            "schedule": self._schedule,
        }

    def _save(self) -> None:
        states = {name: part.state_dict() for name, part in self._parts().items()}
        partial = self._state.with_suffix(".partial")
        torch.save({"done": self.done, "states": states}, partial)
        partial.replace(self._state)

    def _load(self) -> None:
        saved = torch.load(self._state)
        for name, part in self._parts().items():
            part.load_state_dict(saved["states"][name])
        self.done = saved["done"]
