"""Stand-ins for what Triton's Python backend gives a model, so that models run without a server."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np


@dataclass
class Tensor:
    label: str
    array: np.ndarray

    def name(self) -> str:
        return self.label

    def as_numpy(self) -> np.ndarray:
        return self.array


class TritonError:
    INVALID_ARG = "INVALID_ARG"

    def __init__(self, message: str, code: str) -> None:
        self.message, self.code = message, code


@dataclass
class InferenceResponse:
    output_tensors: list[Tensor] | None = None
    error: TritonError | None = None

    @property
    def outputs(self) -> dict[str, np.ndarray]:
        assert self.error is None, self.error.message
        return {tensor.label: tensor.array for tensor in self.output_tensors or []}


class Request(dict[str, np.ndarray]):
    """Its inputs, by name; a plain dictionary is one to models that ask for no parameters."""

    told: Mapping[str, Any] | None = None

    def parameters(self) -> str:
        return "" if self.told is None else json.dumps(self.told)


def _input_by_name(request: Mapping[str, np.ndarray], name: str) -> Tensor | None:
    return Tensor(name, request[name]) if name in request else None


def install(modules: MutableMapping[str, ModuleType]) -> None:
    """Let models import it under its real name."""
    module = ModuleType("triton_python_backend_utils")
    vars(module).update(
        Tensor=Tensor,
        TritonError=TritonError,
        InferenceResponse=InferenceResponse,
        get_input_tensor_by_name=_input_by_name,
    )
    modules[module.__name__] = module


def read_config(path: Path) -> Any:
    """A configuration file, read by NVIDIA's own schema."""
    from google.protobuf import text_format
    from tritonclient.grpc.model_config_pb2 import ModelConfig

    return text_format.Parse(path.read_text(), ModelConfig())


def arguments(model: Path, *, kind: str = "CPU", parameters: Mapping[str, str] | None = None) -> dict[str, str]:
    """What the server tells a model directory's model, as it reads `config.pbtxt`."""
    from google.protobuf import json_format

    config = json_format.MessageToDict(read_config(model / "config.pbtxt"), preserving_proto_field_name=True)
    for name, value in (parameters or {}).items():
        config.setdefault("parameters", {})[name] = {"string_value": value}
    return {
        "model_name": model.name,
        "model_config": json.dumps(config),
        "model_repository": str(model),
        "model_version": "1",
        "model_instance_kind": kind,
    }


def start(args: Mapping[str, str]) -> Any:
    """An instance of the model that is told this."""
    which = args["model_name"].rpartition("_")[2]
    instance = importlib.import_module(f"skrr_export.triton.models.{which}").TritonPythonModel()
    instance.initialize(args)
    return instance


def load(model: Path, **changes: Any) -> Any:
    """An instance of a model directory's model."""
    return start(arguments(model, **changes))


def text(*prompts: str | bytes, **parameters: Any) -> Request:
    """A request for prompts."""
    rows = [[prompt.encode() if isinstance(prompt, str) else prompt] for prompt in prompts]
    request = Request(text=np.array(rows, dtype=object).reshape(len(rows), 1))
    request.told = parameters or None
    return request
