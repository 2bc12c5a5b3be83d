"""Orders in which other methods drop units, to stand beside Skrr's.

FinerCut (greedy on the mean squared error of the embedding) is a beam of one in `beam`; LaCo, which merges weights, is
in `laco`.
"""

from __future__ import annotations

import math
import random

import numpy as np
import torch

from skrr_export.search.activations import ActivationEngine
from skrr_export.search.space import Arrangement, Item, executed
from skrr_export.search.workers import Workers


def uniform_order(items: list[Item]) -> list[Item]:
    """Every prefix spread evenly: each next item is the one farthest from both ends and from those before it."""
    chosen: list[int] = []
    while len(chosen) < len(items):
        marks = [-1, len(items), *chosen]
        rest = [index for index in range(len(items)) if index not in chosen]
        chosen.append(max(rest, key=lambda index: (min(abs(index - mark) for mark in marks), -index)))
    return [items[index] for index in chosen]


def random_order(items: list[Item], seed: int) -> list[Item]:
    """A shuffle that the seed decides."""
    order = list(items)
    random.Random(seed).shuffle(order)  # noqa: S311 - no secret
    return order


def shortgpt_order(engine: ActivationEngine, workers: Workers, layers: list[Item], dense: Arrangement) -> list[Item]:
    """Layers by rising *block influence*, 1 - cos(what goes in, what comes out), averaged over the prompts' tokens.

    After ShortGPT (Men et al. 2024, arXiv 2403.03853), section 2.3.
    """
    cosines = np.zeros((len(layers), len(engine.chunks)))
    for number in range(1, len(engine.chunks)):
        if number % workers.size == workers.rank:
            cosines[:, number] = _cosines(engine, number, layers, dense)
    sums = [math.fsum(row) for row in workers.gather(cosines).tolist()]
    return [layers[index] for index in sorted(range(len(layers)), key=lambda index: (-sums[index], index))]


@torch.inference_mode()
def _cosines(engine: ActivationEngine, number: int, layers: list[Item], dense: Arrangement) -> list[float]:
    """The sum over a chunk's tokens of the cosine between the states before and after each layer."""
    counted = torch.from_numpy(engine.chunks[number].counted).to(engine.encoder.device)
    sequence, sums = executed(dense), []
    before = engine.hidden(number, (), len(sequence))[counted].double()
    for layer in layers:
        after = engine.hidden(number, sequence[: layer[-1] + 1], len(sequence))[counted].double()
        sums.append(torch.nn.functional.cosine_similarity(before, after, dim=-1).sum())
        before = after
    total: list[float] = torch.stack(sums).tolist()
    return total
