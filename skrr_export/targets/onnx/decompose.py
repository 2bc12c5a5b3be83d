"""Write a graph's newest operators out in old ones, for providers of ONNX Runtime without a kernel for them.

ONNX has such bodies for its operators too. They are of no use here: they compute in the graph's own precision, for
which a provider may lack ReduceMax or Erf just as well, copy the keys and values, and need types that functions do not
state. Ours compute in fp32 but for the matrix products.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import onnx_ir as ir

OPSET = 20
"""Of a decomposed graph: no operator left in it has changed since, and kernels are registered by version. It is the
first in which ConstantOfShape makes bf16."""


def decompose(model: ir.Model) -> None:
    """Rewrite a model in place so that it needs no operator that came after opset 17, nor any kernel after 20.

    Half-precision activations are as the outputs of `model.graph` say; weights are not looked at.

    Raises:
        NotImplementedError: an operator does what none in our graphs does.
    """
    element = model.graph.outputs[0].dtype or ir.DataType.FLOAT
    graphs: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    for graph in graphs:
        for node in list(graph):
            write = _WRITERS.get(node.op_type) if node.domain == "" else None
            if write is not None:
                body = _Body(element)
                result = write(body, node)
                ir.convenience.replace_nodes_and_values(graph, node, [node], body.nodes, node.outputs, [result])
        graph.opset_imports[""] = OPSET


class _Body:
    """Nodes that take another's place, collected as they are written."""

    def __init__(self, element: ir.DataType) -> None:
        self.nodes: list[ir.Node] = []
        self._element = element

    def op(self, kind: str, *inputs: ir.Value | float | list[int], **attributes: int | list[int]) -> ir.Value:
        """Write one; numbers among its inputs become constants, a float an fp32 one."""
        values = [value if isinstance(value, ir.Value) else self._constant(value) for value in inputs]
        return self._add(ir.node(kind, values, attributes=attributes))

    def widen(self, value: ir.Value) -> ir.Value:
        """The value in fp32."""
        return value if self._element is ir.DataType.FLOAT else self.op("Cast", value, to=ir.DataType.FLOAT.value)

    def narrow(self, value: ir.Value) -> ir.Value:
        """The fp32 value in the model's precision."""
        return value if self._element is ir.DataType.FLOAT else self.op("Cast", value, to=self._element.value)

    def _constant(self, value: float | list[int]) -> ir.Value:
        dtype = ir.DataType.FLOAT if isinstance(value, float) else ir.DataType.INT64
        return self._add(ir.node("Constant", [], attributes={"value": ir.tensor(value, dtype=dtype)}))

    def _add(self, node: ir.Node) -> ir.Value:
        self.nodes.append(node)
        return node.outputs[0]


def _attention(body: _Body, node: ir.Node) -> ir.Value:
    _refuse(node, is_causal=0, softcap=0.0, qk_matmul_output_mode=0, q_num_heads=0, kv_num_heads=0)
    query, key, value, *bias = node.inputs
    if len(bias) > 1 or query is None or key is None or value is None:
        raise NotImplementedError(f"{node.name}: Attention with a cache")
    # The query is scaled, not the logits: unscaled ones can exceed fp16.
    if (scale := node.attributes.get_float("scale")) is None:
        width = body.op("Cast", body.op("Shape", query, start=3), to=ir.DataType.FLOAT.value)
        query = body.narrow(body.op("Div", body.widen(query), body.op("Sqrt", width)))
    elif scale != 1:
        query = body.narrow(body.op("Mul", body.widen(query), scale))
    logits = body.widen(body.op("MatMul", query, body.op("Transpose", key, perm=[0, 1, 3, 2])))
    for addend in bias:
        if addend is not None:
            logits = body.op("Add", logits, body.widen(addend))
    return body.op("MatMul", body.narrow(body.op("Softmax", logits, axis=-1)), value)


def _rms_normalization(body: _Body, node: ir.Node) -> ir.Value:
    _refuse(node, stash_type=ir.DataType.FLOAT.value, axis=-1)
    hidden, scale = node.inputs
    assert hidden is not None
    assert scale is not None
    wide = body.widen(hidden)
    mean = body.op("ReduceMean", body.op("Mul", wide, wide), [-1], keepdims=1)
    root = body.op("Sqrt", body.op("Add", mean, node.attributes.get_float("epsilon", 1e-5)))
    return body.op("Mul", body.narrow(body.op("Div", wide, root)), scale)


def _gelu(body: _Body, node: ir.Node) -> ir.Value:
    [hidden] = node.inputs
    assert hidden is not None
    wide = body.widen(hidden)
    if node.attributes.get_string("approximate", "none") == "tanh":
        cubic = body.op("Mul", body.op("Pow", wide, 3.0), 0.044715)
        curve = body.op("Tanh", body.op("Mul", body.op("Add", wide, cubic), math.sqrt(2 / math.pi)))
    else:
        curve = body.op("Erf", body.op("Div", wide, math.sqrt(2)))
    return body.narrow(body.op("Mul", body.op("Mul", wide, body.op("Add", curve, 1.0)), 0.5))


_WRITERS: dict[str, Callable[[_Body, ir.Node], ir.Value]] = {
    "Attention": _attention,
    "Gelu": _gelu,
    "RMSNormalization": _rms_normalization,
}


def _refuse(node: ir.Node, **known: float) -> None:
    for name, value in known.items():
        if name in node.attributes and node.attributes[name].value != value:
            raise NotImplementedError(f"{node.name}: {node.op_type} with {name} {node.attributes[name].value}")
