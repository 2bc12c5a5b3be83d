"""Fixtures and settings for all tests."""

from __future__ import annotations

import hashlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType
from typing import Any

import hypothesis
import pytest

# torch's threads only get in the way of ONNX Runtime's on models this small. Read when torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell that runs the tests in the background has them ignore Ctrl-C, which tests send to what they start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# The same examples on every run, so that a red test is a change's fault; `--hypothesis-profile explore` looks further.
hypothesis.settings.register_profile("repeatable", deadline=None, derandomize=True, database=None)
hypothesis.settings.register_profile("explore", deadline=None, max_examples=300)
hypothesis.settings.load_profile("repeatable")


def shared(factory: pytest.TempPathFactory, name: str) -> Path:
    """A directory that all of pytest's processes see."""
    base = factory.getbasetemp()
    return (base.parent if base.name.startswith("popen-") else base) / name


@pytest.fixture(scope="session")
def remembered_traces(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Trace the same parts once a test run: torch takes seconds for it, and the result depends on nothing else.

    What is remembered is the serialized functions, so no two graphs share an object.
    """
    import onnx
    import onnx_ir as ir

    from skrr_export.staging import write_file
    from skrr_export.targets.onnx import graph

    trace, remembered = graph.trace, shared(tmp_path_factory, "traces")
    remembered.mkdir(exist_ok=True)

    def remember(family: str, parts: Any, dtype: Any) -> dict[str, ir.Function]:
        key = (family, dtype, *((name, _fingerprint(part.module), repr(part.inputs)) for name, part in parts.items()))
        file = remembered / hashlib.sha256(repr(key).encode()).hexdigest()
        if not file.exists():
            functions = trace(family, parts, dtype)
            model = onnx.ModelProto(functions=map(ir.to_proto, functions.values()))
            write_file(file, model.SerializeToString())
        model = onnx.ModelProto.FromString(file.read_bytes())
        return {name: ir.from_proto(function) for name, function in zip(parts, model.functions, strict=True)}

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
        (name, type(part).__qualname__, {key: _setting(value) for key, value in vars(part).items() if key[0] != "_"})
        for name, part in module.named_modules()
    ]
    return repr((modules, [(name, tuple(parameter.shape)) for name, parameter in module.named_parameters()]))


def _setting(value: Any) -> Any:
    """A value that looks the same in each process; what a function looks like tells its address."""
    if not isinstance(value, FunctionType):
        return value
    code = value.__code__
    return value.__module__, value.__qualname__, code.co_firstlineno, code.co_names, code.co_consts
