"""Fixtures and settings for all tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import hypothesis
import pytest

# torch's threads only get in the way of ONNX Runtime's on models this small. Read when torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# The same examples on every run, so that a red test is a change's fault; `--hypothesis-profile explore` looks further.
hypothesis.settings.register_profile("repeatable", deadline=None, derandomize=True, database=None)
hypothesis.settings.register_profile("explore", deadline=None, max_examples=300)
hypothesis.settings.load_profile("repeatable")


@pytest.fixture(scope="session")
def remembered_traces() -> Iterator[None]:
    """Trace the same parts once a test run: torch takes seconds for it, and the result depends on nothing else.

    What is remembered is the serialized functions, so no two graphs share an object.
    """
    import onnx
    import onnx_ir as ir

    from skrr_export.targets.onnx import graph

    trace, remembered = graph.trace, {}

    def remember(family: str, parts: Any, dtype: Any) -> dict[str, ir.Function]:
        key = (family, dtype, *((name, _fingerprint(part.module), repr(part.inputs)) for name, part in parts.items()))
        if key not in remembered:
            functions = trace(family, parts, dtype)
            remembered[key] = {name: ir.to_proto(function).SerializeToString() for name, function in functions.items()}
        return {name: ir.from_proto(onnx.FunctionProto.FromString(text)) for name, text in remembered[key].items()}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graph, "trace", remember)
        yield


@pytest.fixture
def without_hardware(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the machine's own speed out of a measurement: it takes longer than small encoders do."""
    from skrr_export import measuring
    from skrr_export.measure.record import Hardware

    nothing = Hardware(copy_bytes_per_second=None, matmul_flops_per_second={})
    monkeypatch.setattr(measuring, "measure_hardware", lambda *_: nothing)


def _fingerprint(module: Any) -> str:
    """Everything a module's `forward` can depend on: the modules in it, their settings, their parameters' shapes."""
    modules = [
        (name, type(part).__qualname__, {key: value for key, value in vars(part).items() if key[0] != "_"})
        for name, part in module.named_modules()
    ]
    return repr((modules, [(name, tuple(parameter.shape)) for name, parameter in module.named_parameters()]))
