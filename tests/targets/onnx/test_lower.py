"""Half-precision bundles on ONNX Runtime's CPU provider: exact on the rounded weights, and small in memory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch

from skrr_export.bundle import Bundle
from skrr_export.errors import BundleError
from skrr_export.targets.onnx.lower import widen_outputs
from skrr_export.targets.onnx.session import OnnxSession
from tests import reference
from tests.bundles import PLAN, export, random_ids, random_mask, relative_error, run_python, soften
from tests.checkpoints import bert_checkpoint, t5_checkpoint
from tests.targets.onnx.test_graph import MEMORY

pytestmark = pytest.mark.usefixtures("remembered_traces")

TOLERANCE = {"t5": 5e-5, "bert": 2e-5}
"""Those of fp32 (tests/encoders): the weights' rounding is in the reference too, and nothing else is rounded."""
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
TABLES = {
    "shared.weight", "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
    "embeddings.word_embeddings.weight", "embeddings.position_embeddings.weight",
    "embeddings.token_type_embeddings.weight",
}  # fmt: skip


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    directory = tmp_path_factory.mktemp("checkpoints")
    t5 = soften(t5_checkpoint(directory / "t5", layers=4))
    return {"t5": t5, "bert": bert_checkpoint(directory / "bert", layers=4)}


@pytest.fixture(params=["t5", "bert"])
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=["bf16", "fp16"])
def dtype(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=[False, True], ids=["functions", "inlined"])
def bundle(
    family: str, dtype: str, checkpoints: dict[str, Path], tmp_path: Path, request: pytest.FixtureRequest
) -> Bundle:
    return export(checkpoints[family], tmp_path / "bundle", PLAN, dtype=dtype, inline=request.param)


def test_equals_transformers_in_fp32_on_the_rounded_weights(
    bundle: Bundle, family: str, dtype: str, checkpoints: dict[str, Path]
) -> None:
    random = np.random.default_rng(0)
    ids, mask = random_ids(random, 3, 40), random_mask(random, 3, 40)
    truth = reference.encode(checkpoints[family], PLAN, ids, mask, rounded_to=DTYPES[dtype])
    for mode in ("mapped", "prepacked"):
        ours = OnnxSession(bundle, mode=mode).encode(ids, mask)["last_hidden_state"]
        assert relative_error(ours, truth) < TOLERANCE[family]
    # The rounding itself is far larger than the tolerance, so the weights that ran were the rounded ones.
    assert relative_error(truth, reference.encode(checkpoints[family], PLAN, ids, mask)) > 5 * TOLERANCE[family]


def test_graph_for_a_cpu_is_whole_and_answers_in_fp32(bundle: Bundle) -> None:
    """Any runtime can open it as it lies: nothing is left to be done at load."""
    onnx.checker.check_model(bundle.directory / "model.cpu.onnx", full_check=True)
    [output] = _lowered(bundle).graph.output
    assert (output.name, output.type.tensor_type.elem_type) == ("last_hidden_state", onnx.TensorProto.FLOAT)


def test_bundle_without_that_graph_says_so(bundle: Bundle) -> None:
    targets = {"onnx": {"file": "model.onnx"}}
    old = replace(bundle, manifest=replace(bundle.manifest, targets=targets))
    with pytest.raises(BundleError, match="has no ONNX graph that computes in fp32; export again"):
        OnnxSession(old)


def test_row_masked_whole_is_finite(bundle: Bundle) -> None:
    ids, mask = random_ids(np.random.default_rng(0), 2, 9), np.ones((2, 9), np.int64)
    mask[1] = 0
    assert np.isfinite(OnnxSession(bundle).encode(ids, mask)["last_hidden_state"]).all()


def _lowered(bundle: Bundle) -> onnx.ModelProto:
    return onnx.load(bundle.directory / "model.cpu.onnx", load_external_data=False)


def test_weights_stay_in_the_file_as_they_are(bundle: Bundle) -> None:
    before = onnx.load(bundle.directory / "model.onnx", load_external_data=False).graph.initializer
    after = _lowered(bundle).graph.initializer
    assert {weight.name: weight.data_type for weight in after} == {weight.name: weight.data_type for weight in before}
    assert all(weight.data_location == onnx.TensorProto.EXTERNAL for weight in after)
    assert all(weight.data_type in (onnx.TensorProto.BFLOAT16, onnx.TensorProto.FLOAT16) for weight in after)


def test_tables_are_not_cast_whole(bundle: Bundle) -> None:
    inlined = onnx.inliner.inline_local_functions(_lowered(bundle))
    names = {weight.name for weight in inlined.graph.initializer}
    cast = {node.input[0] for node in inlined.graph.node if node.op_type == "Cast"}
    assert cast & names == names - TABLES
    looked_up = {node.output[0] for node in inlined.graph.node if node.op_type == "Gather" and node.input[0] in names}
    assert len(looked_up) == len(TABLES & names)
    assert looked_up <= cast  # the rows are


def test_result_is_widened_where_numpy_lacks_the_type(bundle: Bundle, dtype: str) -> None:
    """For providers that compute in half precision; ONNX Runtime on a CPU cannot run it, but its checker can tell."""
    model = ir.load(bundle.directory / "model.onnx")
    widen_outputs(model)
    proto = ir.to_proto(model)
    onnx.save(proto, bundle.directory / "widened.onnx")
    onnx.checker.check_model(bundle.directory / "widened.onnx", full_check=True)
    [output] = proto.graph.output
    expected = {"bf16": onnx.TensorProto.FLOAT, "fp16": onnx.TensorProto.FLOAT16}[dtype]
    assert (output.name, output.type.tensor_type.elem_type) == ("last_hidden_state", expected)
    assert [dim.dim_param for dim in output.type.tensor_type.shape.dim][:2] == ["batch", "sequence"]
    casts = [node for node in proto.graph.node if node.op_type == "Cast" and "last_hidden_state" in node.output]
    assert len(casts) == (dtype == "bf16")


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_casts_live_from_just_before_their_use_to_just_after(dtype: str, tmp_path: Path) -> None:
    """A layer's weights in fp32 are 16 MiB, all layers' 192 MiB, and those that the plan runs twice 96 MiB."""
    shape = {"d_model": 512, "num_heads": 8, "d_kv": 64, "d_ff": 2048, "dtype": torch.bfloat16}
    checkpoint = t5_checkpoint(tmp_path / "t5", layers=12, **shape)
    dense = export(checkpoint, tmp_path / "dense", dtype=dtype)
    twice = export(checkpoint, tmp_path / "twice", [(layer % 6, layer % 6) for layer in range(12)], dtype=dtype)
    assert dense.weights.stat().st_size > 96 << 20
    for bundle in (dense, twice):
        # Measured: 24 MiB for either; 204 MiB for the second if ONNX Runtime merges equal casts.
        assert int(run_python(MEMORY, bundle.directory, "mapped").stdout) < 40 << 20, bundle.directory.name
