"""Give the parser of ONNX graphs, or the one that refits, its weights where they lie: no copy, no file of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from skrr_export.tensorfile import StoredTensor


def offer(parser: Any, graph: bytes, tensors: Mapping[str, StoredTensor], data: npt.NDArray[np.uint8]) -> int | None:
    """Load a graph and point at the weights it names.

    Args:
        parser: an `OnnxParser` or `OnnxParserRefitter`.
        graph: a model whose large initializers are external data.
        tensors: the weights file's tensors by name.
        data: a map of the file, which must outlive the parser and what it parses into.

    Returns:
        Bytes of the weights named, each counted once; `None` where the parser refuses.
    """
    if not parser.load_model_proto(graph):
        return None
    nbytes = 0
    for initializer in onnx.ModelProto.FromString(graph).graph.initializer:
        if initializer.data_location != onnx.TensorProto.EXTERNAL:
            continue
        tensor = tensors[initializer.name]
        if not parser.load_initializer(tensor.name, data.ctypes.data + tensor.offset, tensor.nbytes):
            return None
        nbytes += tensor.nbytes
    return nbytes
