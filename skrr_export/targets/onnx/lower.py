"""What ONNX Runtime needs changed in a half-precision graph; the encoder and the bundle know nothing of this.

Its CPU provider has no bf16 kernels and few fp16 ones: a bundle has a second graph for it, by which the weights stay as
they are stored, and mapped, each is cast to fp32 where it is used, and everything is computed in fp32. Elsewhere only a
bf16 result is widened.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir

HALVES = {ir.DataType.FLOAT16, ir.DataType.BFLOAT16}
_MASKED = float(np.finfo(np.float16).min) / 2
"""What `encoders.base.masked_bias` is in fp16. Logits of fp32 would not drown in it, so it becomes what it is there."""
CPU_GRAPH = "model.cpu.onnx"
"""The second graph's file in a half-precision bundle."""


def computing_in_fp32(content: bytes) -> bytes:
    """The second graph: a serialized half-precision model, so rewritten that only its weights are half precision."""
    model = ir.from_proto(onnx.ModelProto.FromString(content))
    compute_in_fp32(model)
    lowered: bytes = ir.to_proto(model).SerializeToString(deterministic=True)
    return lowered


def compute_in_fp32(model: ir.Model) -> None:
    """Rewrite a half-precision model in place so that only its weights are half precision."""
    weights = {value for value in model.graph.initializers.values() if value.dtype in HALVES}
    for node in model.graph:
        if (function := model.functions.get(node.op_identifier())) is not None:
            weights |= {
                parameter
                for argument, parameter in zip(node.inputs, function.inputs, strict=True)
                if argument in weights
            }
    graphs: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    for graph in graphs:
        for node in list(graph):
            _retype(node)
            if node.op_identifier() not in model.functions:
                _cast_weights(graph, node, weights)
    for output in model.graph.outputs:
        output.type = ir.TensorType(ir.DataType.FLOAT)
    for node in model.graph:
        for value in node.outputs:
            if value.dtype in HALVES and not _is_lookup(node, weights):
                value.type = ir.TensorType(ir.DataType.FLOAT)


def widen_outputs(model: ir.Model) -> None:
    """Cast bf16 results to fp32 in place: NumPy, in which ONNX Runtime hands them over, has no bf16."""
    for index, output in enumerate(model.graph.outputs):
        if output.dtype is ir.DataType.BFLOAT16:
            cast = _cast(output)
            model.graph.append(cast)
            wide = cast.outputs[0]
            wide.name, output.name = output.name, f"{output.name}.bf16"
            wide.shape, wide.type = output.shape, ir.TensorType(ir.DataType.FLOAT)
            model.graph.outputs[index] = wide


def _is_lookup(node: ir.Node, weights: set[ir.Value]) -> bool:
    return node.op_type == "Gather" and node.inputs[0] in weights


def _retype(node: ir.Node) -> None:
    """Make a node that names a half type name fp32 instead."""
    if node.op_type == "Cast" and node.attributes["to"].as_int() in {half.value for half in HALVES}:
        node.attributes["to"] = ir.AttrInt64("to", ir.DataType.FLOAT.value)
    if node.op_type in ("Constant", "ConstantOfShape") and "value" in node.attributes:
        tensor = node.attributes["value"].as_tensor()
        if tensor.dtype in HALVES:
            values = tensor.numpy().astype("float32")
            values = np.where(values == _MASKED, np.finfo(np.float32).min / 2, values)
            node.attributes["value"] = ir.AttrTensor("value", ir.tensor(values, name=tensor.name))


def _cast_weights(graph: ir.Graph | ir.Function, node: ir.Node, weights: set[ir.Value]) -> None:
    if _is_lookup(node, weights):
        # Cast the rows that were looked up, not the table: an embedding is the largest tensor of all.
        rows = node.outputs[0]
        cast = _cast(rows)
        rows.replace_all_uses_with(cast.outputs[0], replace_graph_outputs=True)
        cast.replace_input_with(0, rows)
        graph.insert_after(node, cast)
        return
    for index, value in enumerate(node.inputs):
        if value in weights:
            assert value is not None
            cast = _cast(value)
            # First in the graph, so that it runs last: ONNX Runtime orders by a depth-first walk from the outputs that
            # takes a node's later-defined inputs first. Defined later than the activations, every cast of the model
            # would run, and be held, before the first layer (measured, 24 x 1024: 514 MB against 134 MB).
            graph.insert_before(graph[0], cast)
            node.replace_input_with(index, cast.outputs[0])


def _cast(value: ir.Value) -> ir.Node:
    # Without a name, so that ONNX IR finds a free one: a re-used weight is cast once for each call.
    return ir.node("Cast", [value], attributes={"to": ir.DataType.FLOAT.value})
