"""What the models in Python share: their settings, and answers to requests that come several at once."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from skrr_export.errors import InputError

Arrays = Mapping[str, npt.NDArray[Any]]


class Settings:
    """What Triton tells a model when it loads it."""

    def __init__(self, args: Mapping[str, str]) -> None:
        self._config: dict[str, Any] = json.loads(args["model_config"])
        self.directory = Path(args["model_repository"], args["model_version"])
        """The version's directory."""
        self.device = "cuda" if args["model_instance_kind"] == "GPU" else "cpu"

    @property
    def instances(self) -> int:
        """How many instances of the model there are."""
        return sum(group["count"] for group in self._config["instance_group"])

    def parameter(self, name: str) -> str | None:
        """A parameter of `config.pbtxt`; `None`: it has no such one."""
        entry = self._config.get("parameters", {}).get(name)
        return None if entry is None else str(entry["string_value"])


class Model(ABC):
    """A model that runs requests together where their shapes allow it, and refuses the bad ones alone."""

    @abstractmethod
    def read(self, request: Any) -> Arrays:
        """Take the inputs out of a request, each with one row or more.

        Raises:
            InputError: they are not acceptable.
        """

    def negative(self, request: Any) -> bool:
        """Whether a request's prompts are negative ones that are treated in another way.

        Raises:
            InputError: it does not say so properly.
        """
        return False

    @abstractmethod
    def run(self, inputs: Arrays, *, negative: bool) -> Arrays:
        """Compute outputs, a row for each row of the inputs.

        Raises:
            InputError: the inputs are not acceptable.
        """

    def finish(self, outputs: Arrays) -> Arrays:
        """Make a request's own outputs of its rows."""
        return outputs

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer requests, in their order; called by Triton."""
        answers: dict[int, Any] = {}
        groups: dict[tuple[bool, object], dict[int, Arrays]] = {}
        for index, request in enumerate(requests):
            try:
                inputs, negative = self.read(request), self.negative(request)
            except InputError as error:
                answers[index] = _refusal(error)
            else:
                groups.setdefault((negative, _shape(inputs)), {})[index] = inputs
        for (negative, _), group in groups.items():
            answers |= zip(group, self._run_together(list(group.values()), negative=negative), strict=True)
        return [answers[index] for index in range(len(requests))]

    def _run_together(self, group: Sequence[Arrays], *, negative: bool) -> list[Any]:
        """Responses to requests whose rows have the same shapes."""
        together = {name: np.concatenate([inputs[name] for inputs in group]) for name in group[0]}
        try:
            outputs = self.run(together, negative=negative)
        except InputError as error:
            if len(group) == 1:
                return [_refusal(error)]
            alone = (self._run_together([inputs], negative=negative) for inputs in group)  # whose fault is it?
            return [response for responses in alone for response in responses]
        ends = np.cumsum([_rows(inputs) for inputs in group])[:-1]
        parts = {name: np.split(array, ends) for name, array in outputs.items()}
        return [_response(self.finish({name: parts[name][index] for name in parts})) for index in range(len(group))]


def tensor(request: Any, name: str) -> npt.NDArray[Any]:
    """An input of a request.

    Raises:
        InputError: it has none of that name, or no row.
    """
    import triton_python_backend_utils as pb_utils

    found = pb_utils.get_input_tensor_by_name(request, name)
    if found is None:
        raise InputError(f"the request has no input '{name}'")
    array: npt.NDArray[Any] = found.as_numpy()
    if array.ndim == 0 or len(array) == 0:
        raise InputError(f"the batch is empty: '{name}' has no rows")
    return array


def says_negative(request: Any) -> bool:
    """Whether a request's parameter `negative` is true.

    Raises:
        InputError: it is something else.
    """
    value = json.loads(request.parameters() or "{}").get("negative", False)
    if type(value) is not bool:
        raise InputError(f"the parameter 'negative' must be true or false, not {value!r}")
    return value


def _rows(inputs: Arrays) -> int:
    return len(next(iter(inputs.values())))


def _shape(inputs: Arrays) -> tuple[object, ...]:
    return tuple((name, array.shape[1:]) for name, array in inputs.items())


def _response(outputs: Arrays) -> Any:
    import triton_python_backend_utils as pb_utils

    tensors = [pb_utils.Tensor(name, np.ascontiguousarray(array)) for name, array in outputs.items()]
    return pb_utils.InferenceResponse(output_tensors=tensors)


def _refusal(error: InputError) -> Any:
    import triton_python_backend_utils as pb_utils

    return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error), pb_utils.TritonError.INVALID_ARG))
