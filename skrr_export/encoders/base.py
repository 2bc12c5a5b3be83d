"""What an encoder family is: its parts, and the order in which a plan calls them.

A family describes an encoder as *parts*, small `torch.nn` modules on the meta device that stand for every sub-block of
their kind, and as *steps*, calls of those parts. A part's parameters carry their checkpoint names less a prefix, and a
step names the prefix: `encoder.block.3.layer.1.` + `DenseReluDense.wo.weight`. So a plan is a list of steps, re-use is
a step with another layer's prefix, and no table of renamed tensors exists.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from skrr_export.errors import CheckpointError, InputError, PlanError
from skrr_export.outputs import Kind as OutputKind
from skrr_export.outputs import Output
from skrr_export.plan import KINDS, Kind, Plan

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_new": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
    # In fp32, for a half-precision graph would hold 1.702 in its own type; in bf16 that is 1.703.
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x.float()).to(x.dtype),
    "silu": F.silu,
}
"""Activation functions by the name transformers gives them."""

MAX_DIMENSION = 1 << 20
"""No encoder comes near; a configuration that lies must not make us run out of memory."""

Shape = tuple[int | str, ...]
"""A shape whose free dimensions are named `batch` and `sequence`."""


@dataclass(frozen=True, slots=True)
class Step:
    """One call of a part."""

    name: str
    """Unique in the encoder, for example `layers.3.attention`."""
    part: str
    """Key into `Encoder.parts`, or of the joins that `parts_of` adds."""
    prefix: str
    """What stands before the part's parameter names in the checkpoint."""
    inputs: tuple[str, ...]
    """Names of the activations it reads, in the order of the part's `forward`."""
    output: str
    """Name of the activation it writes; may be one that it reads."""


@dataclass(frozen=True, slots=True)
class Rescaling:
    """Powers of two that an encoder's weights can take over from its activations without changing its result."""

    residual: int = 0
    """The residual stream, and all that is added to it, becomes 2**-residual as large."""
    inner: int = 0
    """What the feed-forward's last matrix reads becomes 2**-inner as large."""
    weights: Mapping[str, int] = field(default_factory=dict)
    """By the end of a tensor's name, the power of two that it is multiplied by; all others stay as they are."""
    activations: Mapping[str, int] = field(default_factory=dict)
    """Likewise, by the name under which `skrr_export.rescale` measures an activation."""

    def exponent(self, tensor_name: str) -> int:
        """The power of two that a tensor is multiplied by."""
        return next((power for end, power in self.weights.items() if tensor_name.endswith(end)), 0)


KEEP = "keep"
"""The part of a step that calls nothing: it gives an activation, as it is at that point, a second name."""

NO_RESCALING = Rescaling()
"""Every weight stays as it is."""


class Encoder(ABC):
    """An encoder of one family at given dimensions; knows shapes and names, holds no weights."""

    family: ClassVar[str]
    """Name of the family."""
    model_types: ClassVar[tuple[str, ...]]
    """What `model_type` says in the configurations of its checkpoints."""
    norms_last: ClassVar[bool]
    """Whether `hidden_states[num_layers]` is the last hidden state, final norm and all, or what goes into that norm."""

    num_layers: int
    hidden_size: int
    vocab_size: int
    max_length: int | None
    """Longest sequence the encoder can take, in tokens; `None` if it has no limit."""

    @classmethod
    @abstractmethod
    def from_config(cls, config: Mapping[str, Any], tensor_names: Collection[str]) -> Self:
        """Read the dimensions from `config.json`; tensor names tell how the checkpoint prefixes them.

        Raises:
            CheckpointError: a value is missing, malformed or not supported.
        """

    @abstractmethod
    def parts(self) -> dict[str, nn.Module]:
        """The parts by name, on the meta device."""

    @abstractmethod
    def prologue(self, *, masked: bool) -> list[Step]:
        """The steps before the first layer; they write `hidden` and whatever the sub-blocks read beside it."""

    @abstractmethod
    def sub_block(self, kind: Kind, source: int, *, masked: bool) -> tuple[str, str, tuple[str, ...]]:
        """Part, prefix and inputs of a sub-block that runs the weights of layer `source` on `hidden`."""

    @property
    def kinds(self) -> tuple[OutputKind, ...]:
        """The kinds of output that it has."""
        return ("last_hidden_state", "hidden_states")

    @property
    def ending(self) -> int | None:
        """The id that ends a prompt, where the encoder looks for it; `None`: it looks for none."""
        return None

    @abstractmethod
    def epilogue(self, kind: OutputKind, *, masked: bool) -> list[Step]:
        """The steps from `hidden` after the last layer to an output of one of `kinds`, named like the kind."""

    def features(self, kind: OutputKind) -> int:
        """Width of a hidden state or pooled vector."""
        return self.hidden_size

    @abstractmethod
    def activations(self, *, masked: bool) -> dict[str, Shape]:
        """The shapes of what steps hand to each other, by name, but for outputs."""

    def shapes(self, outputs: Sequence[Output], *, masked: bool) -> dict[str, Shape]:
        """The shapes of everything that the steps to some outputs write, by name."""
        hidden = self.shape(Output("last_hidden_state"))
        return {
            **self.activations(masked=masked),
            **{f"hidden_states.{layer}": hidden for output in outputs for layer in output.layers},
            **{output.name: self.shape(output) for output in (*self.every_output, *outputs)},
        }

    def shape(self, output: Output) -> Shape:
        """The shape of an output."""
        return output.shape(self.features(output.kind))

    @abstractmethod
    def owns(self, tensor_name: str) -> bool:
        """Whether a tensor of this name can only belong to this encoder (so not to a decoder, a head, a pooler)."""

    def rescaling(self, maxima: Mapping[str, float], limit: float) -> Rescaling:
        """The smallest powers of two that bring activations below a limit; none where the family has no such freedom.

        Args:
            maxima: largest absolute value of each activation, as `skrr_export.rescale.measure_maxima` names them.
            limit: what they should stay below.
        """
        return NO_RESCALING

    def rescaled(self, rescaling: Rescaling) -> Self:
        """The definition that computes the same from rescaled weights."""
        return self

    def config(self, original: Mapping[str, Any]) -> dict[str, Any]:
        """What `config.json` has to say for weights that this definition is for, from what it said."""
        return dict(original)

    @property
    def every_output(self) -> tuple[Output, ...]:
        """Outputs that together need every tensor."""
        return tuple(Output(kind) for kind in self.kinds if kind != "hidden_states")

    def depth(self, outputs: Sequence[Output]) -> int:
        """How many layers have to run for some outputs; what comes after them is read by nobody."""
        return max(max(output.layers, default=self.num_layers) for output in outputs)

    def steps(self, plan: Plan, outputs: Sequence[Output], *, masked: bool) -> list[Step]:
        """The encoder under a plan, as the calls that make it up; those that no output needs are left out.

        Each output is written by its name.

        Args:
            plan: which weights run where.
            outputs: what is read, with layers counted from the start.
            masked: whether an `attention_mask` is given.

        Raises:
            InputError: the encoder has no such output.
            PlanError: the plan is for another family or depth.
        """
        self._check(plan, outputs)
        read = self.read_on_the_way(outputs)
        steps = self.prologue(masked=masked)
        for layer in range(self.depth(outputs) + 1):
            if layer:
                steps += self._layer(plan, layer - 1, masked=masked)
            if layer in read:
                steps.append(Step(f"hidden_states.{layer}", KEEP, "", ("hidden",), f"hidden_states.{layer}"))
        return steps + self.closing(outputs, masked=masked)

    def read_on_the_way(self, outputs: Sequence[Output]) -> set[int]:
        """Layers after which `hidden` is what some output takes as it is."""
        layers = {layer for output in outputs for layer in output.layers}
        return layers - {self.num_layers} if self.norms_last else layers

    def closing(self, outputs: Sequence[Output], *, masked: bool) -> list[Step]:
        """The steps after the last layer that is needed, from `hidden` and the `hidden_states.K` read on the way."""
        steps: list[Step] = []
        for kind in dict.fromkeys(self._finished(output) for output in outputs):
            if kind is not None:
                steps += [step for step in self.epilogue(kind, masked=masked) if step not in steps]
        if self.norms_last and any(self.num_layers in output.layers for output in outputs):
            name = f"hidden_states.{self.num_layers}"
            steps.append(Step(name, KEEP, "", ("last_hidden_state",), name))
        for output in outputs:
            if output.join is not None:
                inputs = tuple(f"hidden_states.{layer}" for layer in output.layers)
                steps.append(Step(output.name, output.join, "", inputs, output.name))
        return steps

    def _layer(self, plan: Plan, layer: int, *, masked: bool) -> list[Step]:
        steps = []
        for kind, source in zip(KINDS, plan.sources[layer], strict=True):
            if source is not None:
                part, prefix, inputs = self.sub_block(kind, source, masked=masked)
                steps.append(Step(f"layers.{layer}.{kind}", part, prefix, inputs, "hidden"))
        return steps

    def _finished(self, output: Output) -> OutputKind | None:
        """The kind whose epilogue an output needs; a hidden state needs one only where the last is normed."""
        if output.kind != "hidden_states":
            return output.kind
        return "last_hidden_state" if self.norms_last and self.num_layers in output.layers else None

    def _check(self, plan: Plan, outputs: Sequence[Output]) -> None:
        if plan.family != self.family:
            raise PlanError(f"the plan is for a {plan.family} encoder, the checkpoint is {self.family}")
        if plan.num_layers != self.num_layers:
            raise PlanError(f"the plan has {plan.num_layers} layers, the checkpoint {self.num_layers}")
        for output in outputs:
            if output.kind not in self.kinds:
                raise InputError(f"this {self.family} encoder gives no {output.kind}; it has {', '.join(self.kinds)}")


class Concatenate(nn.Module):
    """Hidden states side by side, `[batch, sequence, features]` each, on the feature axis."""

    def forward(self, *states: Tensor) -> Tensor:
        return torch.cat(states, dim=-1)


class Stack(nn.Module):
    """Hidden states `[batch, sequence, features]` on an axis of their own, after the batch."""

    def forward(self, *states: Tensor) -> Tensor:
        return torch.stack(states, dim=1)


JOINS: dict[str, nn.Module] = {"concatenate": Concatenate(), "stack": Stack()}
"""By the name of `Output.join`."""


def parts_of(encoder: Encoder) -> dict[str, nn.Module]:
    """Everything that an encoder's steps call, by name: its own parts, and what joins hidden states."""
    return {**encoder.parts(), **JOINS}


def parameter_shapes(
    encoder: Encoder, plan: Plan, outputs: Sequence[Output] | None = None
) -> dict[str, tuple[int, ...]]:
    """The tensors an encoder needs under a plan, each once, in the order in which they are first used.

    Args:
        encoder: the definition.
        plan: which weights run where.
        outputs: what is read; `None`: everything that the encoder gives.

    Raises:
        InputError: the encoder has no such output.
        PlanError: the plan does not fit the encoder.
    """
    parts = {name: dict(part.named_parameters()) for name, part in parts_of(encoder).items()}
    return {
        step.prefix + name: tuple(parameter.shape)
        for step in encoder.steps(plan, encoder.every_output if outputs is None else outputs, masked=True)
        if step.part != KEEP
        for name, parameter in parts[step.part].items()
    }


def positive_int(config: Mapping[str, Any], key: str) -> int:
    """A dimension from `config.json`.

    Raises:
        CheckpointError: it is missing, or not a positive integer of a plausible size.
    """
    value = config.get(key)
    if type(value) is not int or not 1 <= value <= MAX_DIMENSION:
        raise CheckpointError(f"config.json: '{key}' must be a positive integer up to {MAX_DIMENSION:,}, not {value!r}")
    return value


def fraction(config: Mapping[str, Any], key: str) -> float:
    """A small number, such as an epsilon, from `config.json`.

    Raises:
        CheckpointError: it is missing, or not a number between 0 and 1.
    """
    value = config.get(key)
    if not isinstance(value, (int, float)) or not 0 < value < 1:
        raise CheckpointError(f"config.json: '{key}' must be a number between 0 and 1, not {value!r}")
    return float(value)


def activation(name: Any) -> Callable[[Tensor], Tensor]:
    """An activation function by the name transformers gives it.

    Raises:
        CheckpointError: we do not know it.
    """
    if not isinstance(name, str) or name not in ACTIVATIONS:
        raise CheckpointError(f"config.json: unknown activation {name!r}; known: {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def split_heads(flat: Tensor, like: Tensor, num_heads: int) -> Tensor:
    """`[batch*sequence, heads*size]` to `[batch, heads, sequence, size]`; `like` is `[batch, sequence, ...]`."""
    return flat.reshape(like.shape[0], like.shape[1], num_heads, flat.shape[-1] // num_heads).transpose(1, 2)


def merge_heads(heads: Tensor) -> Tensor:
    """`[batch, heads, sequence, size]` to `[batch*sequence, heads*size]`."""
    return heads.transpose(1, 2).reshape(-1, heads.shape[1] * heads.shape[3])


def masked_bias(like: Tensor) -> float:
    """The additive bias of a masked position.

    Half the lowest finite value: added to any logit it stays finite in the same type, so that a row whose every
    position is masked comes out as an average and not as NaN; the lowest value itself overflows in fp16.
    """
    return torch.finfo(like.dtype).min / 2


class CausalBias(nn.Module):
    """What causal attentions add to their logits: a query looks at no later key, none beyond a window, none masked.

    Returns `[1, 1, sequence, sequence]`, or `[batch, 1, sequence, sequence]` with a mask, typed like `hidden`.
    """

    def __init__(self, window: int | None = None) -> None:
        super().__init__()
        self.window = window

    def forward(self, hidden: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        position = torch.arange(hidden.shape[1], device=hidden.device)
        distance = position[:, None] - position[None, :]  # from a query back to a key
        seen = distance >= 0
        if self.window is not None:
            seen = seen & (distance < self.window)
        seen = seen[None, None]
        if attention_mask is not None:
            seen = seen & (attention_mask[:, None, None, :] != 0)
        return torch.where(seen, hidden.new_zeros(()), masked_bias(hidden))
