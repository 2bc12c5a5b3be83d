"""fp16 that cannot overflow: powers of two moved between an encoder's weights, chosen from what its activations reach.

The norms of a pre-norm encoder do not care how large the residual stream is. So everything that writes to the stream
can be scaled by 2**-k, and the norms' epsilon by 2**-2k; a second power of two moves between the matrices around the
gated product. Both are exact: no operation is added, and in fp32 the result is the same to the last bits. Where an
output is the stream itself, as `hidden_states[-2]` is, nothing can be moved.

There is one exponent for the whole stream. One for each layer would fit tighter, but a re-used sub-block runs at
several places with one copy of its weights, and could not follow.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from skrr_export.calibration import Chunk, calibrate
from skrr_export.checkpoint import Checkpoint
from skrr_export.encoders import Encoder
from skrr_export.encoders.base import NO_RESCALING, Rescaling
from skrr_export.encoders.eager import EagerEncoder, Weights
from skrr_export.errors import CheckpointError
from skrr_export.outputs import Output
from skrr_export.pipelines import Preset
from skrr_export.plan import Plan
from skrr_export.progress import Progress, silent
from skrr_export.prompts import calibration_prompts, spread
from skrr_export.search.space import arrangement_of
from skrr_export.tensorfile import StoredTensor
from skrr_export.tokenization import Tokenizer

LARGEST = 65504.0
"""The largest finite fp16 number."""
HEADROOM = 8.0
"""What is asked for: prompts that were not measured may reach so many times as far as those that were."""
PROMPTS = 8
"""Shipped prompts that are measured on; the empty one besides."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Maxima:
    """How large an encoder's activations get under a plan."""

    values: Mapping[str, float]
    """By name, the largest absolute value: `hidden`, each output, and what goes into (`.in`) and comes out of (`.out`)
    each linear map of each part, for example `feed_forward.DenseReluDense.wo.in`."""
    tokens: int
    """On how many it was measured."""

    @property
    def largest(self) -> tuple[str, float]:
        """The name and the value of the largest."""
        return max(self.values.items(), key=lambda item: item[1])

    @property
    def headroom(self) -> float:
        """How many times the largest goes into what fp16 can hold."""
        return LARGEST / self.largest[1] if self.largest[1] else math.inf

    def rescaled(self, rescaling: Rescaling) -> Maxima:
        """The maxima of the rescaled encoder."""
        scaled = {name: math.ldexp(value, rescaling.activations.get(name, 0)) for name, value in self.values.items()}
        return Maxima(values=scaled, tokens=self.tokens)


def measure_maxima(
    encoder: Encoder,
    tensors: Mapping[str, StoredTensor],
    plan: Plan,
    chunks: Sequence[Chunk],
    outputs: Sequence[Output],
    *,
    masked: bool,
    progress: Progress = silent,
) -> Maxima:
    """Run an encoder under a plan and take the maxima of its activations, those of padding included.

    It computes in fp32, or in the weights' bf16, which reaches as far; a weight is used where it lies in its file, and
    looked at once for all chunks.

    Args:
        encoder: the definition.
        tensors: its weights.
        plan: which of them run where.
        chunks: tokenised prompts.
        outputs: what is read, with layers counted from the start; what it does not need is not run.
        masked: whether the encoder is given their masks.
        progress: told how many steps of how many are done.

    Raises:
        CheckpointError: an activation is NaN or infinite.
    """
    dtype = torch.bfloat16 if {tensor.code for tensor in tensors.values()} == {"BF16"} else torch.float32
    device = torch.device("cpu")
    weights = Weights(tensors, device, dtype, budget_bytes=0)
    eager = EagerEncoder(encoder, weights, device, masked=masked, outputs=outputs)
    maxima = _Maxima()
    for name, part in eager.parts.items():
        for path, module in part.named_modules():
            if isinstance(module, nn.Linear):
                module.register_forward_hook(maxima.hook(f"{name}.{path}" if path else name))
    positions = arrangement_of(plan)[: 2 * encoder.depth(outputs)]
    read = encoder.read_on_the_way(outputs)
    with torch.inference_mode():
        states = [eager.start(chunk.input_ids, chunk.attention_mask) for chunk in chunks]
        for done in range(len(positions) + 1):
            progress("measuring activations", done, len(positions) + 1)
            unit = positions[done - 1] if done else None
            for state in states:
                if unit is not None:
                    state["hidden"] = eager.sub_block(unit, state)
                maxima.add("hidden", state["hidden"])
                if done % 2 == 0 and done // 2 in read:
                    state[f"hidden_states.{done // 2}"] = state["hidden"]
        for state in states:
            for name, output in eager.finish(state).items():
                maxima.add(name, output)
    return Maxima(values=maxima.values, tokens=sum(chunk.size for chunk in chunks))


def random_chunks(vocab_size: int, sequence: int) -> list[Chunk]:
    """Random ids, to measure on where there is no tokenizer."""
    ids = np.random.default_rng(0).integers(0, vocab_size, (2, sequence), dtype=np.int64)
    return [Chunk(ids, np.ones_like(ids), np.ones(ids.shape, bool))]


class _Maxima:
    def __init__(self) -> None:
        self.values: dict[str, float] = {}

    def add(self, name: str, tensor: Tensor) -> None:
        value = tensor.abs().max().item()
        if not math.isfinite(value):
            raise CheckpointError(f"the encoder's own activations are not finite, as computed in {tensor.dtype}")
        self.values[name] = max(self.values.get(name, 0.0), value)

    def hook(self, name: str) -> Callable[[nn.Module, tuple[Tensor], Tensor], None]:
        def look(_module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
            self.add(f"{name}.in", inputs[0])
            self.add(f"{name}.out", output)

        return look


@dataclass(frozen=True, slots=True, kw_only=True)
class Rescaled:
    """What was decided for an encoder in fp16."""

    rescaling: Rescaling
    before: Maxima | None = None
    """As the checkpoint has it; `None`: not measured."""

    @property
    def after(self) -> Maxima | None:
        """Of the rescaled encoder."""
        return None if self.before is None else self.before.rescaled(self.rescaling)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What remains too large."""
        if self.after is None or self.after.headroom >= 1:
            return ()
        name, value = self.after.largest
        return (f"fp16 overflows: '{name}' reaches {value:.4g}, and fp16 ends at {LARGEST:.0f}; use bf16",)

    def describe(self, subnormal: int) -> dict[str, Any] | None:
        """For the manifest; `subnormal` counts weights that lost bits of their mantissa to fp16."""
        if self.before is None or self.after is None:
            return None
        return {
            "residual": self.rescaling.residual,
            "inner": self.rescaling.inner,
            "weights": {end: power for end, power in self.rescaling.weights.items() if power},
            "largest": {"name": self.before.largest[0], "value": _short(self.before.largest[1])},
            "headroom": _short(self.after.headroom),
            "tokens": self.before.tokens,
            "subnormal_weights": subnormal,
        }


UNCHANGED = Rescaled(rescaling=NO_RESCALING)
"""Weights as they are."""


def rescale(
    checkpoint: Checkpoint,
    encoder: Encoder,
    plan: Plan,
    preset: Preset,
    *,
    prompts: Sequence[str] | None = None,
    progress: Progress = silent,
) -> Rescaled:
    """Measure an encoder under a plan and choose the smallest powers of two that leave it head-room in fp16.

    Args:
        checkpoint: holds the weights and, perhaps, a tokenizer; without one it is measured on random ids.
        encoder: its definition.
        plan: which weights run where.
        preset: what the pipeline feeds it.
        prompts: to measure on; `None`: some of the shipped ones. The empty prompt is always among them.
        progress: told how far it is.

    Raises:
        CheckpointError: an activation is not finite even in fp32.
        InputError: the tokenizer cannot be loaded.
    """
    chunks = _chunks(checkpoint, encoder, preset, prompts)
    maxima = measure_maxima(
        encoder, checkpoint.tensors, plan, chunks, preset.outputs, masked=preset.masked, progress=progress
    )
    exposed = encoder.read_on_the_way(preset.outputs)
    rescaling = NO_RESCALING if exposed else encoder.rescaling(maxima.values, LARGEST / HEADROOM)
    return Rescaled(rescaling=rescaling, before=maxima)


def _chunks(checkpoint: Checkpoint, encoder: Encoder, preset: Preset, prompts: Sequence[str] | None) -> list[Chunk]:
    if checkpoint.tokenizer is None:
        return random_chunks(encoder.vocab_size, preset.max_length)
    chosen = spread(calibration_prompts(), PROMPTS) if prompts is None else prompts
    calibration = calibrate(Tokenizer(checkpoint.tokenizer, checkpoint.directory, preset), chosen)
    return [calibration.null, *calibration.chunks]


def _short(value: float) -> float:
    return float(f"{value:.6g}")
