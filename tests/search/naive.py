"""The truth about searches: the paper's definitions as plain loops, in which transformers runs every candidate whole.

Shares nothing with `skrr_export`. An arrangement is a tuple: for each of the 2N units, the unit that runs in its place
(`2 * layer` an attention, `2 * layer + 1` a feed-forward), or None. Units that it leaves out at the end run as ever.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from tests import reference
from tests.families import clip, decoders

Arrangement = tuple[int | None, ...]
Item = tuple[int, ...]
Project = Callable[[np.ndarray], np.ndarray]
Measure = Callable[[Arrangement], float]


class Pipeline(Protocol):
    """What a preset says; nothing of it is run here."""

    max_length: int
    padding: Any
    masked: bool
    reads_padding: bool
    lowercase: bool
    outputs: Sequence[Any]


def encode(
    checkpoint: Path,
    plan: reference.Sources | None,
    ids: np.ndarray,
    mask: np.ndarray | None = None,
    output: str = "last_hidden_state",
) -> np.ndarray:
    """An output of any family's checkpoint; see `tests.reference.encode`."""
    model_type = _config(checkpoint)["model_type"]
    families = {"clip_text_model": clip, "clip": clip, **dict.fromkeys(decoders.FAMILIES, decoders)}
    return families.get(model_type, reference).encode(checkpoint, plan, ids, mask, output)


def rows(
    checkpoint: Path,
    plan: reference.Sources | None,
    ids: np.ndarray,
    mask: np.ndarray | None,
    output: Any,
) -> np.ndarray:
    """What a pipeline takes: `[batch, sequence, features]`, of several layers side by side; pooled without sequence."""
    kinds = [output.kind] if output.kind != "hidden_states" else [f"hidden_states.{layer}" for layer in output.layers]
    return np.concatenate([encode(checkpoint, plan, ids, mask, kind) for kind in kinds], axis=-1)


@cache
def _config(checkpoint: Path) -> dict[str, Any]:
    return dict(json.loads((checkpoint / "config.json").read_text()))


def num_layers(checkpoint: Path) -> int:
    """Layers of a checkpoint."""
    config = _config(checkpoint)
    return int(config.get("num_layers") or config.get("num_hidden_layers") or 0)


def tokenise(checkpoint: Path, prompts: Sequence[str], pipeline: Pipeline) -> tuple[np.ndarray, np.ndarray]:
    """Ids and mask of a batch, by the checkpoint's own tokenizer, as the pipeline calls it."""
    if pipeline.lowercase:
        prompts = [prompt.lower().strip() for prompt in prompts]
    batch = _tokenizer(checkpoint)(
        list(prompts), padding=pipeline.padding, max_length=pipeline.max_length, truncation=True, return_tensors="np"
    )
    return batch["input_ids"].astype(np.int64), batch["attention_mask"].astype(np.int64)


@cache
def _tokenizer(checkpoint: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(checkpoint)


def sources(arrangement: Arrangement, layers: int = 0) -> reference.Sources:
    """An arrangement as pairs, for at least so many layers."""
    whole = (*arrangement, *range(len(arrangement), 2 * layers))
    units = [None if unit is None else unit // 2 for unit in whole]
    return list(zip(units[::2], units[1::2], strict=True))


class Truth:
    """D of an arrangement. All prompts are one batch, padded as the pipeline pads it and never trimmed."""

    def __init__(
        self,
        checkpoint: Path,
        prompts: Sequence[str],
        pipeline: Pipeline,
        *,
        project: Project | None = None,
        null: bool = True,
    ) -> None:
        self.checkpoint = checkpoint
        self.pipeline = pipeline
        self.batches = [tokenise(checkpoint, batch, pipeline) for batch in (prompts, [""])]
        self.project = project or (lambda rows: rows)
        self.null = null
        self._terms: dict[Arrangement | None, tuple[float, float]] = {}
        self._dense = [self._seen(batch, None) for batch in self.batches]

    def _seen(self, batch: tuple[np.ndarray, np.ndarray], arrangement: Arrangement | None) -> np.ndarray:
        """What the denoiser makes of a batch: `[rows, features]`, float64."""
        ids, mask = batch
        plan = None if arrangement is None else sources(arrangement, num_layers(self.checkpoint))
        found = rows(self.checkpoint, plan, ids, mask if self.pipeline.masked else None, self.pipeline.outputs[0])
        read = np.ones(ids.shape, bool) if self.pipeline.reads_padding else mask == 1
        return self.project((found if found.ndim == 2 else found[read]).astype(np.float64))

    def terms(self, arrangement: Arrangement) -> tuple[float, float]:
        """The mean squared errors on the prompts and on the null prompt."""
        if arrangement not in self._terms:
            pairs = zip(self.batches, self._dense, strict=True)
            prompts, null = (float(np.mean((self._seen(batch, arrangement) - dense) ** 2)) for batch, dense in pairs)
            self._terms[arrangement] = prompts, null
        return self._terms[arrangement]

    def __call__(self, arrangement: Arrangement) -> float:
        """D."""
        prompts, null = self.terms(arrangement)
        return prompts + null if self.null else prompts

    def scale(self) -> float:
        """The mean square of what the denoiser makes of the prompts."""
        return float(np.mean(self._dense[0] ** 2))


def without(num_units: int, items: Sequence[Item]) -> Arrangement:
    """The encoder without some units."""
    gone = [unit for item in items for unit in item]
    return tuple(None if unit in gone else unit for unit in range(num_units))


def skip(
    measure: Measure, num_units: int, items: Sequence[Item], beam: int, drops: int
) -> list[list[tuple[float, tuple[Item, ...]]]]:
    """Algorithm 1: for each step the lists that go on and their D, the best first. A set goes on once."""
    lists: list[tuple[Item, ...]] = [()]
    steps = []
    for _ in range(drops):
        scored: dict[frozenset[Item], tuple[float, tuple[Item, ...]]] = {}
        for order in lists:
            for item in items:
                longer = (*order, item)
                if item not in order and frozenset(longer) not in scored:
                    scored[frozenset(longer)] = measure(without(num_units, longer)), longer
        steps.append(sorted(scored.values(), key=lambda pair: pair[0])[:beam])
        lists = [order for _, order in steps[-1]]
    return steps


def reuse(measure: Measure, num_units: int, order: Sequence[int]) -> tuple[Arrangement, float]:
    """Algorithm 2: each dropped unit in turn, the better of its nearest kept neighbours, if D falls."""
    now = without(num_units, [(unit,) for unit in order])
    lowest = measure(now)
    for unit in order:
        neighbours = []
        for direction in (-2, 2):
            other = unit + direction
            while 0 <= other < num_units and other in order:
                other += direction
            if 0 <= other < num_units:
                neighbours.append(other)
        tried = [(measure((*now[:unit], other, *now[unit + 1 :])), other) for other in neighbours]
        if tried and min(tried)[0] < lowest:
            lowest, best = min(tried)
            now = (*now[:unit], best, *now[unit + 1 :])
    return now, lowest


def single_changes(arrangement: Arrangement) -> Iterator[Arrangement]:
    """Everything else that may run in one dropped unit's place, as things stand."""
    for place, unit in enumerate(arrangement):
        if unit == place:
            continue
        for other in (None, *range(place % 2, len(arrangement), 2)):
            if other != unit and (other is None or arrangement[other] == other):
                yield (*arrangement[:place], other, *arrangement[place + 1 :])


def single_exchanges(arrangement: Arrangement) -> Iterator[Arrangement]:
    """One dropped unit back in its place and, or not, one kept unit gone, wherever it ran."""
    for back, unit in enumerate(arrangement):
        if unit == back:
            continue
        restored = (*arrangement[:back], back, *arrangement[back + 1 :])
        yield restored
        for gone in range(len(arrangement)):
            if arrangement[gone] == gone:
                yield tuple(None if each == gone else each for each in restored)


def block_influence(checkpoint: Path, prompts: Sequence[str], pipeline: Pipeline) -> list[float]:
    """Of each layer, 1 - cos(what goes in, what comes out), averaged over the tokens that the denoiser reads."""
    import torch
    from transformers import AutoConfig, BertModel, T5EncoderModel

    family = AutoConfig.from_pretrained(checkpoint).model_type
    model = {"t5": T5EncoderModel, "bert": BertModel}[family].from_pretrained(checkpoint, dtype=torch.float32).eval()
    layers = model.encoder.block if family == "t5" else model.encoder.layer
    states: list[tuple[torch.Tensor, torch.Tensor]] = []
    for layer in layers:
        layer.register_forward_hook(
            lambda _, inputs, output: states.append((inputs[0], output[0] if isinstance(output, tuple) else output))
        )
    ids, mask = tokenise(checkpoint, prompts, pipeline)
    with torch.inference_mode():
        model(input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask) if pipeline.masked else None)
    read = np.ones(ids.shape, bool) if pipeline.reads_padding else mask == 1
    influences = []
    for before, after in states:
        a, b = (each.numpy()[read].astype(np.float64) for each in (before, after))
        cosines = (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
        influences.append(float(np.mean(1 - cosines)))
    return influences
