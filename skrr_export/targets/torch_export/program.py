"""The torch.export program of a planned encoder. It holds no weights: they are an input, by name.

Run by hand, with torch and safetensors alone:

    program = torch.export.load("bundle/model.pt2").module()
    tensors = sorted(safetensors.torch.load_file("bundle/weights.safetensors").items())
    weights = {name: tensor for name, tensor in tensors if not name.startswith("_pad.")}
    program(weights, input_ids, attention_mask)["last_hidden_state"]

torch takes weights by their names, but compares their shapes with those that it traced one after the other: hence the
sorting.
"""

from __future__ import annotations

import io
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import ExportedProgram

from skrr_export.encoders.module import FunctionalEncoder
from skrr_export.targets.base import Built, Source

FILE = "model.pt2"
"""The target's file in the bundle."""

_EXAMPLE = (2, 7)  # any batch and sequence but 0 and 1, which torch.export would take for constants


def build(source: Source) -> Built:
    """Make the program file."""
    encoder = FunctionalEncoder(source.encoder, source.plan, source.preset.outputs, masked=source.preset.masked)
    # Fake tensors, not the meta device: a program remembers the device that it was traced on. As an input, not as
    # state: torch 2.13 saves fake state in a way that it cannot always read.
    with FakeTensorMode():
        dtype = source.dtype.torch
        weights = {
            name: torch.empty(shape, dtype=dtype, device="cpu") for name, shape in sorted(encoder.shapes.items())
        }
        inputs = (weights, *example_inputs(source, torch.device("cpu")))
    program = trace(encoder, inputs, ({name: {} for name in weights}, *free_sizes(source)))
    program.example_inputs = None  # fake ones could not be read back
    file = io.BytesIO()
    torch.export.save(program, file)
    return Built(files={FILE: file.getvalue()}, entry={"file": FILE, "torch": torch.__version__.partition("+")[0]})


def example_inputs(source: Source, device: torch.device) -> tuple[Tensor, ...]:
    """Ids and mask to trace with; each is a tensor of its own, or torch.export would take them for one input."""
    shape = tuple(fixed or free for fixed, free in zip((source.batch, source.sequence), _EXAMPLE, strict=True))
    return tuple(torch.ones(shape, dtype=torch.int64, device=device) for _ in range(2 if source.preset.masked else 1))


def free_sizes(source: Source) -> tuple[dict[int, Any], ...]:
    """For ids and mask the axes that are not fixed."""
    free: dict[int, Any] = {}
    if source.batch is None:
        free[0] = torch.export.Dim("batch", min=1)
    if source.sequence is None:
        free[1] = torch.export.Dim("sequence", min=1)
    return (free,) * (2 if source.preset.masked else 1)


def trace(module: torch.nn.Module, inputs: tuple[Any, ...], sizes: tuple[Any, ...]) -> ExportedProgram:
    """Trace a module on example inputs, with the sizes that are to stay free."""
    program = torch.export.export(module.eval(), inputs, dynamic_shapes=sizes)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of this machine, on which the bytes must not depend
    return program
