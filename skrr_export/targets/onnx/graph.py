"""The ONNX graph of a planned encoder: the plan itself, one function call a position.

Its initializers are ranges of the bundle's weights file. Re-use is the same initializer passed to a second call.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx
import onnx_ir as ir
import onnx_ir.passes.common

from skrr_export.dtypes import DType
from skrr_export.encoders import Encoder, Shape
from skrr_export.encoders.base import KEEP, parts_of
from skrr_export.outputs import Output
from skrr_export.plan import Plan
from skrr_export.targets.onnx.trace import DOMAIN, OPSET, Part, trace
from skrr_export.tensorfile import Layout

GRAPH = "model.onnx"
"""The target's file in the bundle."""
IR_VERSION = 11
"""What ONNX 1.18 introduced together with opset 23."""


def build(
    encoder: Encoder,
    plan: Plan,
    outputs: Sequence[Output],
    layout: Layout,
    dtype: DType,
    *,
    masked: bool,
    sizes: Shape = ("batch", "sequence"),
) -> bytes:
    """Make the graph.

    Args:
        encoder: the family and its dimensions.
        plan: which weights run where.
        outputs: what the graph gives.
        layout: where the weights lie; the file's name is taken to be beside the graph.
        dtype: element type of weights and activations.
        masked: whether the graph has an `attention_mask` input.
        sizes: the batch and the sequence axis, each a fixed length or its name.

    Returns:
        The serialized `onnx.ModelProto`.
    """
    inputs = ("input_ids", "attention_mask") if masked else ("input_ids",)
    steps = encoder.steps(plan, outputs, masked=masked)
    shapes = {name: _fix(shape, sizes) for name, shape in encoder.shapes(outputs, masked=masked).items()}
    shapes |= dict.fromkeys(inputs, sizes)
    modules = parts_of(encoder)
    calls = [step for step in steps if step.part != KEEP]
    parts = {step.part: Part(modules[step.part], {name: shapes[name] for name in step.inputs}) for step in calls}
    parts = dict(sorted(parts.items()))  # so that the functions do not depend on what a plan skips
    name = encoder.family.replace(".", "_")
    functions = trace(name, parts, dtype.torch)
    element = ir.DataType[str(dtype.onnx_name)]
    initializers = _initializers(layout, element)
    values = {name: _value(name, shapes[name], ir.DataType.INT64) for name in inputs}
    graph_inputs = list(values.values())
    nodes = []
    for step in steps:
        arguments = [values[name] for name in step.inputs]
        if step.part == KEEP:
            [values[step.output]] = arguments
            continue
        arguments += [initializers[step.prefix + name] for name in parts[step.part].parameter_names]
        nodes.append(ir.Node(DOMAIN, functions[step.part].name, arguments, name=step.name))
        values[step.output] = nodes[-1].outputs[0]
        values[step.output].name = step.name
        values[step.output].shape = ir.Shape(shapes[step.output])
        values[step.output].type = ir.TensorType(element)
    for output in outputs:
        values[output.name].name = output.name
    used = {value for node in nodes for value in node.inputs}
    graph = ir.Graph(
        graph_inputs,
        [values[output.name] for output in outputs],
        nodes=nodes,
        initializers=[value for value in initializers.values() if value in used],
        opset_imports={"": OPSET, DOMAIN: 1},
        name=f"{name}_encoder",
    )
    model = ir.Model(
        graph,
        ir_version=IR_VERSION,
        producer_name="skrr-export",
        functions=list(functions.values()),
    )
    return _serialized(model)


def inline(graph: bytes) -> bytes:
    """Write every call of a graph out, for consumers without functions."""
    model = ir.from_proto(onnx.ModelProto.FromString(graph))
    onnx_ir.passes.common.InlinePass()(model)
    return _serialized(model)


def _serialized(model: ir.Model) -> bytes:
    content: bytes = ir.to_proto(model).SerializeToString(deterministic=True)
    return content


def _initializers(layout: Layout, element: ir.DataType) -> dict[str, ir.Value]:
    values = {}
    for tensor in layout.tensors:
        external = ir.ExternalTensor(
            tensor.file.name,
            tensor.offset,
            tensor.nbytes,
            element,
            shape=ir.Shape(tensor.shape),
            name=tensor.name,
        )
        value = _value(tensor.name, tensor.shape, element)
        value.const_value = external
        values[tensor.name] = value
    return values


def _fix(shape: Shape, sizes: Shape) -> Shape:
    named = dict(zip(("batch", "sequence"), sizes, strict=True))
    return tuple(named[dim] if isinstance(dim, str) else dim for dim in shape)


def _value(name: str, shape: Shape, element: ir.DataType) -> ir.Value:
    return ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(element))
