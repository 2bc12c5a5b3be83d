"""Trace the parts of an encoder once, on the meta device, into ONNX model-local functions.

A 48-layer encoder takes as long as a 12-layer one, since each *kind* of sub-block is traced and not each layer. All
parts go through torch's exporter together, whose start costs as much as a part, and are taken apart again.
"""

from __future__ import annotations

import contextlib
import gc
import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir
import onnxscript.optimizer
import torch
from torch import Tensor, nn

from skrr_export.encoders import Shape

OPSET = 23
DOMAIN = "skrr"
"""Domain of our functions. They are not called like ONNX operators: TensorRT's parser ignores the domain."""
MAX_CONSTANT = 1024
"""Elements of the largest constant that the graph may hold."""

_EXAMPLE = {"batch": 2, "sequence": 7}  # any sizes but 0 and 1, which torch.export would take for constants


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of an encoder to be traced."""

    module: nn.Module
    """On the meta device; its `forward` takes the inputs in order and returns one tensor."""
    inputs: Mapping[str, Shape]
    """Shape of each activation it reads, free dimensions by name."""

    @property
    def parameter_names(self) -> list[str]:
        """In the order in which its function takes them, after the activations."""
        return [name for name, _ in self.module.named_parameters()]


class _AllParts(nn.Module):
    def __init__(self, parts: Mapping[str, Part]) -> None:
        super().__init__()
        self.parts = nn.ModuleDict({name: part.module for name, part in parts.items()})

    def forward(self, arguments: Sequence[Sequence[Tensor]]) -> list[Tensor]:
        return [module(*given) for module, given in zip(self.parts.values(), arguments, strict=True)]


def trace(family: str, parts: Mapping[str, Part], dtype: torch.dtype) -> dict[str, ir.Function]:
    """Turn parts into functions of their activations, then their parameters.

    Args:
        family: prefix of the functions' names.
        parts: by name.
        dtype: of the parameters and activations (`input_ids` and `attention_mask` are int64).
    """
    # Each input is a tensor of its own: torch.export takes one tensor passed twice for one input. Likewise each part
    # has its own symbols for batch and sequence, or one part would read them off another's input.
    arguments = tuple(
        tuple(_example(name, shape, dtype) for name, shape in part.inputs.items()) for part in parts.values()
    )
    symbols = tuple(tuple(_free(shape, prefix) for shape in part.inputs.values()) for prefix, part in parts.items())
    module = _AllParts(parts).to(dtype).eval()
    with _quiet(), _uncollected():
        program = torch.export.export(module, (arguments,), dynamic_shapes=(symbols,))
        # Optimising here would read the parameters' values, which do not exist.
        exported = torch.onnx.export(program, dynamo=True, opset_version=OPSET, optimize=False, verbose=False)
    assert exported is not None
    graph = exported.model.graph
    activations = iter(list(graph.inputs))
    inputs = {name: [next(activations) for _ in part.inputs] for name, part in parts.items()}
    for name, part in parts.items():
        inputs[name] += [_to_input(graph, f"parts.{name}.{parameter}") for parameter in part.parameter_names]
    # Fixed sizes let it compute T5's position index, megabytes at 512 tokens; the graph holds no data, so it may not.
    onnxscript.optimizer.optimize_ir(exported.model, output_size_limit=MAX_CONSTANT)
    outputs = dict(zip(parts, graph.outputs, strict=True))
    return {
        name: _function(f"{family}_{name}", ir.convenience.extract(graph, inputs[name], [outputs[name]]), part)
        for name, part in parts.items()
    }


def _example(name: str, shape: Shape, dtype: torch.dtype) -> Tensor:
    size = tuple(_EXAMPLE[dim] if isinstance(dim, str) else dim for dim in shape)
    return torch.empty(size, dtype=torch.int64 if name in ("input_ids", "attention_mask") else dtype, device="meta")


def _free(shape: Shape, prefix: str) -> dict[int, object]:
    free = {axis: dim for axis, dim in enumerate(shape) if isinstance(dim, str)}
    return {axis: torch.export.Dim(f"{prefix}_{dim}", min=1) for axis, dim in free.items()}


def _to_input(graph: ir.Graph, name: str) -> ir.Value:
    value = graph.initializers.pop(name)
    value.const_value = None
    graph.inputs.append(value)
    return value


def _function(name: str, graph: ir.Graph, part: Part) -> ir.Function:
    """Functions have no initializers: the few small constants become nodes. Types are left to inference."""
    for value, label in zip(graph.inputs, [*part.inputs, *part.parameter_names], strict=True):
        value.name = label
        value.shape = value.type = None
        value.metadata_props.clear()
    # In the order of their names: ONNX IR collects them in a set, whose order differs from run to run.
    for _, value in sorted(graph.initializers.items()):
        constant = ir.node("Constant", [], attributes={"value": value.const_value})
        graph.initializers.pop(str(value.name))
        graph.insert_before(graph[0], constant)
        value.replace_all_uses_with(constant.outputs[0])
    for number, node in enumerate(graph):
        node.name = f"{node.op_type}.{number}"
        node.metadata_props.clear()  # stack traces of this machine, on which the bytes must not depend
        node.doc_string = None
        for place, value in enumerate(node.outputs):
            value.name = f"{node.op_type}.{number}.out" + (f".{place}" if place else "")
            value.shape = None
            value.type = None
            value.metadata_props.clear()
    graph.metadata_props.clear()
    graph.opset_imports[""] = OPSET
    return ir.Function(DOMAIN, name, graph=graph, attributes=[])


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Pause the garbage collector: a trace makes millions of objects that live until it ends, and none that do not."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


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
