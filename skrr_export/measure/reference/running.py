"""Runs a model of `transformers`, and takes of it what a bundle gives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from skrr_export.measure.reference.models import text_model
from skrr_export.outputs import Output


class Reference:
    """A transformers model that computes in fp32 from weights as they are stored."""

    def __init__(self, model: Any, outputs: Sequence[Output], device: str = "cpu") -> None:
        """Take over a model; its half-precision matrices are cast where they are used, and so stay small."""
        self._device = device
        self._outputs = tuple(outputs)
        self._model = model.eval().to(device)
        if (text := text_model(model)).config.model_type.startswith("gemma"):
            _round_scale(text.embed_tokens)
        linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
        matrices = {id(module.weight) for module in linear}
        for parameter in model.parameters():
            if id(parameter) not in matrices:
                parameter.data = parameter.data.float()
        for module in linear:
            if module.weight.dtype is not torch.float32:
                parametrize.register_parametrization(module, "weight", _AsFloat32(), unsafe=True)

    def __call__(
        self, input_ids: npt.NDArray[np.int64], attention_mask: npt.NDArray[np.int64] | None
    ) -> dict[str, npt.NDArray[np.float32]]:
        """The outputs by name, float32, for ids and mask `[batch, sequence]`."""
        return run_model(self._model, self._outputs, input_ids, attention_mask, self._device)


def _round_scale(embedding: Any) -> None:
    """Gemma scales its embedding by a number that transformers rounds as it does weights, which makes it another.

    Which of its releases do so when the model is loaded and which when it runs differs; from now on it is in the
    weights.
    """
    exact = torch.tensor(embedding.embedding_dim**0.5, device=embedding.weight.device)
    rounded = exact.to(embedding.weight.dtype).float()
    embedding.weight.data = embedding.weight.data.float() * (rounded / exact)
    if hasattr(embedding, "embed_scale"):
        embedding.embed_scale = exact


class _AsFloat32(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight.float()


@torch.inference_mode()
def run_model(
    model: Any,
    outputs: Sequence[Output],
    input_ids: npt.NDArray[np.int64],
    attention_mask: npt.NDArray[np.int64] | None,
    device: str,
) -> dict[str, npt.NDArray[Any]]:
    """Some outputs of a transformers model, by name; NumPy lacks bf16: as fp32."""
    mask = None if attention_mask is None else torch.from_numpy(attention_mask).to(device)
    options = {"output_hidden_states": True} if any(output.layers for output in outputs) else {}
    given = model(input_ids=torch.from_numpy(input_ids).to(device), attention_mask=mask, **options)
    return {output.name: _to_numpy(_take(given, output)) for output in outputs}


def _take(given: Any, output: Output) -> Tensor:
    if not output.layers:
        tensor: Tensor = given[output.kind]
        return tensor
    states = [given.hidden_states[layer] for layer in output.layers]
    return torch.stack(states, dim=1) if output.join == "stack" else torch.cat(states, dim=-1)


def _to_numpy(tensor: Tensor) -> npt.NDArray[Any]:
    array: npt.NDArray[Any] = (tensor.float() if tensor.dtype is torch.bfloat16 else tensor).cpu().numpy()
    return array
