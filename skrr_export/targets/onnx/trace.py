"""Trace a part of an encoder once, on the meta device, into an ONNX model-local function.

A 48-layer encoder takes as long as a 12-layer one, since each *kind* of sub-block is traced and not each layer.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence

import onnx_ir as ir
import onnxscript.optimizer
import torch
from torch import nn

from skrr_export.encoders import Shape

OPSET = 23
DOMAIN = "skrr"
"""Domain of our functions. They are not called like ONNX operators: TensorRT's parser ignores the domain."""

_EXAMPLE = {"batch": 2, "sequence": 7}  # any sizes but 0 and 1, which torch.export would take for constants


def trace(
    name: str, part: nn.Module, inputs: Sequence[str], shapes: Mapping[str, Shape], dtype: torch.dtype
) -> ir.Function:
    """Turn a part into a function of its activations, then its parameters in the order of `named_parameters`.

    Args:
        name: the function's name.
        part: a module on the meta device, whose `forward` takes `inputs` in order and returns one tensor.
        inputs: names of its activations.
        shapes: shape of each activation, free dimensions by name.
        dtype: of the parameters and activations (`input_ids` and `attention_mask` are int64).
    """
    part = part.to(dtype).eval()
    # Each input is a tensor of its own: torch.export takes one tensor passed twice for one input.
    examples = tuple(_example(name, shapes[name], dtype) for name in inputs)
    with _quiet():
        program = torch.export.export(part, examples, dynamic_shapes=tuple(_free(shapes[name]) for name in inputs))
        # Optimising here would read the parameters' values, which do not exist.
        exported = torch.onnx.export(program, dynamo=True, opset_version=OPSET, optimize=False, verbose=False)
    assert exported is not None
    model = exported.model
    _initializers_to_inputs(model.graph, [name for name, _ in part.named_parameters()])
    onnxscript.optimizer.optimize_ir(model)
    return _function(name, model.graph)


def _example(name: str, shape: Shape, dtype: torch.dtype) -> torch.Tensor:
    size = tuple(_EXAMPLE[dim] if isinstance(dim, str) else dim for dim in shape)
    return torch.empty(size, dtype=torch.int64 if name in ("input_ids", "attention_mask") else dtype, device="meta")


def _free(shape: Shape) -> dict[int, object]:
    return {axis: torch.export.Dim(dim, min=1) for axis, dim in enumerate(shape) if isinstance(dim, str)}


def _initializers_to_inputs(graph: ir.Graph, names: Sequence[str]) -> None:
    for name in names:
        value = graph.initializers.pop(name)
        value.const_value = None
        graph.inputs.append(value)


def _function(name: str, graph: ir.Graph) -> ir.Function:
    """Functions have no initializers: the few small constants become nodes. Types are left to inference."""
    for value in list(graph.initializers.values()):
        constant = ir.node("Constant", [], attributes={"value": value.const_value}, name=f"constant.{value.name}")
        constant.outputs[0].name = value.name
        graph.initializers.pop(str(value.name))
        graph.insert_before(graph[0], constant)
        value.replace_all_uses_with(constant.outputs[0])
    for node in graph:
        node.metadata_props.clear()  # stack traces of this machine, which would also make the bytes depend on it
        node.doc_string = None
        for output in node.outputs:
            output.shape = None
            output.type = None
            output.metadata_props.clear()
    graph.metadata_props.clear()
    graph.opset_imports[""] = OPSET
    return ir.Function(DOMAIN, name, graph=graph, attributes=[])


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence torch's exporter: it reports its steps, and optional packages that are missing."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
