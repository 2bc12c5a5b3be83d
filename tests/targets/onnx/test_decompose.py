"""Graphs decomposed into basic operators equal the graphs they come from, in every precision, plan and shape."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from click.testing import CliRunner
from onnx import TensorProto, helper
from onnxruntime.capi.onnxruntime_pybind11_state import NotImplemented as Unimplemented

from skrr_export.bundle import Bundle
from skrr_export.cli import cli
from skrr_export.errors import BundleError
from skrr_export.targets.onnx.decompose import decompose
from skrr_export.targets.onnx.lower import widen_outputs
from skrr_export.targets.onnx.session import OnnxSession
from tests import reference
from tests.bundles import PLAN, export, random_ids, random_mask, relative_error, soften
from tests.checkpoints import bert_checkpoint, t5_checkpoint

pytestmark = pytest.mark.usefixtures("remembered_traces")

NEW = {"Attention", "Gelu", "RMSNormalization"}
TORCH = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
TOLERANCE = 2e-5
SHAPES = [(1, 1), (2, 9), (3, 40), (1, 71)]
KINDS = [
    ("t5", {}),
    ("t5", {"masked": False}),
    ("t5", {"inline": True}),
    ("t5", {"dtype": "bf16"}),
    ("t5", {"dtype": "fp16"}),
    ("t5", {"dtype": "fp16", "inline": True}),
    ("bert", {}),
    ("bert", {"masked": False, "inline": True}),
    ("bert", {"dtype": "bf16"}),
    ("bert", {"dtype": "fp16"}),
]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    directory = tmp_path_factory.mktemp("checkpoints")
    t5 = soften(t5_checkpoint(directory / "t5", layers=4))
    return {"t5": t5, "bert": bert_checkpoint(directory / "bert", layers=4)}


@pytest.fixture(
    params=KINDS, ids=lambda kind: ",".join([kind[0], *(f"{key}={value}" for key, value in kind[1].items())])
)
def kind(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    return request.param


@pytest.fixture
def bundle(kind: tuple[str, dict[str, Any]], checkpoints: dict[str, Path], tmp_path: Path) -> Bundle:
    family, options = kind
    return export(checkpoints[family], tmp_path / "bundle", PLAN, **options)


@pytest.fixture
def decomposed(bundle: Bundle) -> onnx.ModelProto:
    model = ir.load(bundle.directory / "model.onnx")
    decompose(model)
    return ir.to_proto(model)


def test_equals_transformers_and_the_graph_as_it_is(
    bundle: Bundle, kind: tuple[str, dict[str, Any]], checkpoints: dict[str, Path]
) -> None:
    random = np.random.default_rng(0)
    usual, ours = OnnxSession(bundle), OnnxSession(bundle, runtime="decomposed")
    assert ours.notes == usual.notes
    for shape in SHAPES:
        ids = random_ids(random, *shape)
        mask = random_mask(random, *shape) if bundle.manifest.pipeline.masked else None
        hidden = ours.encode(ids, mask)["last_hidden_state"]
        truth = reference.encode(checkpoints[kind[0]], PLAN, ids, mask, rounded_to=TORCH[bundle.manifest.dtype.name])
        assert relative_error(hidden, truth) < TOLERANCE
        assert relative_error(hidden, usual.encode(ids, mask)["last_hidden_state"]) < TOLERANCE


@pytest.mark.parametrize("mode", ["mapped", "prepacked"])
def test_row_masked_whole_is_finite_and_as_it_was(bundle: Bundle, mode: str) -> None:
    if not bundle.manifest.pipeline.masked:
        pytest.skip("no mask")
    ids, mask = random_ids(np.random.default_rng(0), 2, 9), np.ones((2, 9), np.int64)
    mask[1] = 0
    hidden = OnnxSession(bundle, runtime="decomposed", mode=mode).encode(ids, mask)["last_hidden_state"]
    assert relative_error(hidden, OnnxSession(bundle).encode(ids, mask)["last_hidden_state"]) < TOLERANCE


def test_none_of_the_operators_is_left_and_the_result_is_valid(decomposed: onnx.ModelProto, bundle: Bundle) -> None:
    graphs = [decomposed.graph, *decomposed.functions]
    assert not {node.op_type for graph in graphs for node in graph.node} & NEW
    opsets = [{entry.domain: entry.version for entry in graph.opset_import} for graph in (decomposed, *graphs[1:])]
    assert {opset[""] for opset in opsets} == {20}
    path = bundle.directory / "decomposed.onnx"
    onnx.save(decomposed, path)
    onnx.checker.check_model(path, full_check=True)


def test_weights_stay_in_the_file_and_are_passed_as_before(decomposed: onnx.ModelProto, bundle: Bundle) -> None:
    before = onnx.load(bundle.directory / "model.onnx", load_external_data=False)
    assert list(decomposed.graph.initializer) == list(before.graph.initializer)
    assert all(weight.data_location == TensorProto.EXTERNAL for weight in decomposed.graph.initializer)
    names = {weight.name for weight in before.graph.initializer}

    def passed(model: onnx.ModelProto) -> list[str]:
        return sorted(name for node in model.graph.node for name in node.input if name in names)

    assert passed(decomposed) == passed(before)
    assert [value.SerializeToString() for value in decomposed.graph.output] == [
        value.SerializeToString() for value in before.graph.output
    ]


def _single(kind: str, inputs: dict[str, list[int]], element: int = TensorProto.FLOAT, **attributes: Any) -> ir.Model:
    values = [helper.make_tensor_value_info(name, element, shape) for name, shape in inputs.items()]
    output = helper.make_tensor_value_info("y", element, [None] * len(next(iter(inputs.values()))))
    graph = helper.make_graph([helper.make_node(kind, list(inputs), ["y"], **attributes)], "one", values, [output])
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=11))


def _evaluate(model: ir.Model, feed: dict[str, np.ndarray]) -> np.ndarray:
    widen_outputs(model)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), options).run(None, feed)[0]


def _rms(x: np.ndarray, scale: np.ndarray) -> np.ndarray:
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6) * scale


def _attention(q: np.ndarray, k: np.ndarray, v: np.ndarray, bias: np.ndarray) -> np.ndarray:
    logits = q @ k.swapaxes(-1, -2) / math.sqrt(q.shape[-1]) + bias
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True) @ v


_erf = np.vectorize(math.erf, otypes=[float])
_ROWS = {"q": [2, 3, 5, 8], "k": [2, 3, 5, 8], "v": [2, 3, 5, 8], "bias": [2, 1, 5, 5]}
ALONE: list[tuple[str, dict[str, list[int]], dict[str, Any], Callable[..., np.ndarray]]] = [
    ("RMSNormalization", {"x": [2, 5, 64], "scale": [64]}, {"epsilon": 1e-6, "axis": -1}, _rms),
    ("Gelu", {"x": [4, 64]}, {}, lambda x: x * (1 + _erf(x / math.sqrt(2))) / 2),
    (
        "Gelu",
        {"x": [4, 64]},
        {"approximate": "tanh"},
        lambda x: x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2,
    ),
    ("Attention", _ROWS, {}, _attention),
    ("Attention", _ROWS, {"scale": 1 / math.sqrt(8)}, _attention),
]


@pytest.mark.parametrize(("kind", "inputs", "attributes", "formula"), ALONE)
@pytest.mark.parametrize("magnitude", [1, 300])
def test_fp16_is_computed_without_overflow(
    kind: str,
    inputs: dict[str, list[int]],
    attributes: dict[str, Any],
    formula: Callable[..., np.ndarray],
    magnitude: int,
) -> None:
    """A square of 300 exceeds fp16, as does a cube of 41; the products of queries and keys are kept below."""
    random = np.random.default_rng(0)
    feed = {name: random.normal(size=shape).astype(np.float16) for name, shape in inputs.items()}
    feed[next(iter(inputs))] *= np.float16(magnitude)
    model = _single(kind, inputs, TensorProto.FLOAT16, **attributes)
    decompose(model)
    ours = _evaluate(model, feed)
    truth = formula(*(value.astype(np.float64) for value in feed.values()))
    assert ours.dtype == np.float16
    limit = 2e-3 if kind != "Attention" else 5e-3 * magnitude**0.5  # the logits are rounded to fp16
    assert np.linalg.norm(ours - truth) <= limit * np.linalg.norm(truth)


@pytest.mark.parametrize(
    ("kind", "inputs", "attributes", "complaint"),
    [
        ("Attention", _ROWS, {"is_causal": 1}, "is_causal 1"),
        ("Attention", _ROWS, {"softcap": 2.0}, "softcap 2"),
        (
            "Attention",
            {"q": [2, 5, 8], "k": [2, 5, 8], "v": [2, 5, 8]},
            {"q_num_heads": 2, "kv_num_heads": 2},
            "heads 2",
        ),
        ("Attention", _ROWS | {"past_k": [2, 3, 1, 8], "past_v": [2, 3, 1, 8]}, {}, "a cache"),
        ("RMSNormalization", {"x": [2, 5, 8], "scale": [5, 8]}, {"axis": 1}, "axis 1"),
        ("RMSNormalization", {"x": [2, 5, 8], "scale": [8]}, {"stash_type": 10}, "stash_type 10"),
    ],
)
def test_what_our_graphs_do_not_ask_for_is_refused(
    kind: str, inputs: dict[str, list[int]], attributes: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(NotImplementedError, match=complaint):
        decompose(_single(kind, inputs, **attributes))


class _Lacking:
    """ONNX Runtime with a provider that lacks kernels of opset 23: it says so at the moment `load`, `run` or never."""

    def __init__(self, patch: pytest.MonkeyPatch, moment: str) -> None:
        self.opsets: list[int] = []
        create, lacking = onnxruntime.InferenceSession, self

        def refuse(*arguments: Any, **options: Any) -> Any:
            raise Unimplemented("[ONNXRuntimeError] : 9 : NOT_IMPLEMENTED : no kernel for Attention(23)")

        class Session:
            def __init__(self, model: str | bytes, *arguments: Any, **options: Any) -> None:
                proto = onnx.load_from_string(model) if isinstance(model, bytes) else onnx.load(model)
                lacking.opsets.append(next(entry.version for entry in proto.opset_import if not entry.domain))
                if lacking.opsets[-1] == 23 and moment == "load":
                    refuse()
                self._session = create(model, *arguments, **options)
                self.get_outputs = self._session.get_outputs
                self.run = refuse if lacking.opsets[-1] == 23 and moment == "run" else self._session.run

        patch.setattr(onnxruntime, "InferenceSession", Session)


@pytest.mark.parametrize("moment", ["load", "run"])
def test_default_decomposes_where_a_kernel_is_missing(
    moment: str, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = random_ids(np.random.default_rng(0), 2, 9)
    truth = OnnxSession(bundle).encode(ids)["last_hidden_state"]
    lacking = _Lacking(monkeypatch, moment)
    session = OnnxSession(bundle)
    for _ in range(2):
        assert relative_error(session.encode(ids)["last_hidden_state"], truth) < TOLERANCE
    assert lacking.opsets == [23, 20]
    assert "run decomposed into basic operators: ONNX Runtime lacks one" in session.notes[-1]
    assert "no kernel for Attention(23)" in session.notes[-1]


def test_kernel_that_basic_operators_lack_too_is_an_error(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **options: Any) -> Any:
        raise Unimplemented("no kernel")

    monkeypatch.setattr(onnxruntime, "InferenceSession", refuse)
    for runtime in ("default", "decomposed"):
        with pytest.raises(BundleError, match=r"cannot load .*model(\.cpu)?\.onnx: no kernel"):
            OnnxSession(bundle, runtime=runtime)


@pytest.mark.parametrize("command", ["encode", "verify"])
def test_command_line_takes_the_runtime(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = export(t5_checkpoint(tmp_path / "t5", tokenizer=True), tmp_path / "bundle")
    lacking = _Lacking(monkeypatch, "never")
    arguments = [command, str(bundle.directory), *{"encode": ["a cat"], "verify": []}[command]]
    assert CliRunner().invoke(cli, [*arguments, "--runtime", "decomposed"]).exit_code == 0
    assert lacking.opsets == [20]
    refused = CliRunner().invoke(cli, [*arguments, "--runtime", "openvino"])
    assert refused.exit_code == 2
    assert "'openvino' is not one of 'default', 'decomposed', 'tensorrt-rtx'" in refused.stderr
