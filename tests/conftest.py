"""Fixtures and settings for all tests."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import hypothesis
import pytest

# The same examples on every run, so that a red test is a change's fault; `--hypothesis-profile explore` looks further.
hypothesis.settings.register_profile("repeatable", deadline=None, derandomize=True, database=None)
hypothesis.settings.register_profile("explore", deadline=None, max_examples=1000)
hypothesis.settings.load_profile("repeatable")


@pytest.fixture(scope="session")
def remembered_traces() -> Iterator[None]:
    """Trace each part once a test run: torch takes a second or two for it, and the result depends on nothing else.

    What is remembered is the serialized function, so no two graphs share an object.
    """
    import onnx_ir as ir

    from skrr_export.targets.onnx import graph

    trace, remembered = graph.trace, {}

    def remember(name: str, part: Any, inputs: Any, shapes: Any, dtype: Any) -> ir.Function:
        key = (name, _fingerprint(part), tuple((item, shapes[item]) for item in inputs), dtype)
        if key not in remembered:
            remembered[key] = ir.to_proto(trace(name, part, inputs, shapes, dtype)).SerializeToString()
        proto = ir.serde.onnx.FunctionProto()
        proto.ParseFromString(remembered[key])
        return ir.from_proto(proto)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graph, "trace", remember)
        yield


def _fingerprint(part: Any) -> str:
    """Everything a part's `forward` can depend on: its modules, their settings, their parameters' shapes."""
    modules = [
        (name, type(module).__qualname__, {key: value for key, value in vars(module).items() if key[0] != "_"})
        for name, module in part.named_modules()
    ]
    return repr((modules, [(name, tuple(parameter.shape)) for name, parameter in part.named_parameters()]))
