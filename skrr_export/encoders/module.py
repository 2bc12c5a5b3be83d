"""An encoder under a plan as one torch module, for tools that take a whole model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn
from torch.func import functional_call

from skrr_export.encoders.base import KEEP, Encoder, parameter_shapes, parts_of
from skrr_export.outputs import Output
from skrr_export.plan import Plan


class FunctionalEncoder(nn.Module):
    """An encoder that is given its weights with each call; it has none of its own.

    Skipped sub-blocks are gone; a re-used one is called several times on the same weights.
    """

    def __init__(self, encoder: Encoder, plan: Plan, outputs: Sequence[Output], *, masked: bool) -> None:
        """Lay out the calls.

        Args:
            encoder: the definition.
            plan: which weights run where.
            outputs: what `forward` returns.
            masked: whether `forward` takes an `attention_mask`.

        Raises:
            InputError: the encoder has no such output.
            PlanError: the plan does not fit the encoder.
        """
        super().__init__()
        self._steps = encoder.steps(plan, outputs, masked=masked)
        self._parts = parts_of(encoder)  # in a dict, where torch does not look: their parameters stand for others
        self._outputs = tuple(outputs)
        self.shapes = parameter_shapes(encoder, plan, outputs)
        """The shape of each weight, by its checkpoint name, in the order of first use."""

    def forward(
        self, weights: Mapping[str, Tensor], input_ids: Tensor, attention_mask: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Run the encoder.

        Args:
            weights: by their checkpoint names.
            input_ids: int64 `[batch, sequence]`.
            attention_mask: int64 `[batch, sequence]`, where the encoder takes one.

        Returns:
            The outputs, by name.
        """
        values = {"input_ids": input_ids}
        if attention_mask is not None:
            values["attention_mask"] = attention_mask
        for step in self._steps:
            inputs = tuple(values[name] for name in step.inputs)
            if step.part == KEEP:
                [values[step.output]] = inputs
                continue
            part = self._parts[step.part]
            given = {name: weights[step.prefix + name] for name, _ in part.named_parameters()}
            values[step.output] = functional_call(part, given, inputs)
        return {output.name: values[output.name] for output in self._outputs}


class LoadedEncoder(nn.Module):
    """An encoder with its weights, as parameters under their checkpoint names."""

    def __init__(self, encoder: FunctionalEncoder, weights: Mapping[str, Tensor]) -> None:
        """Take over the weights; nothing is copied."""
        super().__init__()
        self._encoder = [encoder]  # in a list, where torch does not look
        for name in encoder.shapes:
            self._declare(name, weights[name])

    def _declare(self, path: str, value: Tensor) -> None:
        *folders, name = path.split(".")
        at: nn.Module = self
        for folder in folders:
            if folder not in dict(at.named_children()):
                at.add_module(folder, nn.Module())
            at = at.get_submodule(folder)
        at.register_parameter(name, nn.Parameter(value, requires_grad=False))

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> dict[str, Tensor]:
        """Run the encoder, as `FunctionalEncoder.forward`."""
        [encoder] = self._encoder
        return encoder({name: self.get_parameter(name) for name in encoder.shapes}, input_ids, attention_mask)
