"""The graph is the plan: it shares what the plan shares, holds no weights, and every tool reads it."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx.inliner
import pytest
from safetensors import safe_open

from skrr_export.bundle import Bundle
from skrr_export.targets.onnx.session import OnnxSession
from tests.bundles import PLAN, export, random_ids, random_mask, run_python
from tests.checkpoints import bert_checkpoint, t5_checkpoint

pytestmark = pytest.mark.usefixtures("remembered_traces")

USED = {0: (0, 2), 1: (0, 3)}
"""By kind (0 attention, 1 feed-forward): the layers whose weights PLAN runs."""


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return t5_checkpoint(tmp_path_factory.mktemp("t5"), layers=4)


@pytest.fixture(scope="module")
def planned(t5: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return export(t5, tmp_path_factory.mktemp("planned") / "bundle", PLAN)


@pytest.fixture(scope="module")
def every_kind(t5: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    """Bundles of every kind of graph that we write."""
    directory = tmp_path_factory.mktemp("every")
    bert = bert_checkpoint(directory / "bert", layers=4)
    return {
        "t5": export(t5, directory / "a", PLAN),
        "t5, inlined": export(t5, directory / "b", PLAN, inline=True),
        "t5, unmasked": export(t5, directory / "c", PLAN, masked=False),
        "t5, bf16": export(t5, directory / "d", PLAN, dtype="bf16"),
        "t5, fp16, inlined": export(t5, directory / "e", PLAN, dtype="fp16", inline=True),
        "t5, fixed sizes": export(t5, directory / "f", PLAN, batch=1, sequence=512),
        "bert": export(bert, directory / "g", PLAN),
        "bert, unmasked, inlined": export(bert, directory / "h", PLAN, masked=False, inline=True),
    }


def _graph(bundle: Bundle) -> onnx.ModelProto:
    return onnx.load(bundle.directory / "model.onnx", load_external_data=False)


def _weights(node: onnx.NodeProto, model: onnx.ModelProto) -> list[str]:
    names = {initializer.name for initializer in model.graph.initializer}
    return [name for name in node.input if name in names]


def _used_names(checkpoint: Path) -> set[str]:
    """The tensors that PLAN needs, from their names alone."""
    needed = {"shared.weight", "encoder.final_layer_norm.weight"}
    with safe_open(checkpoint / "model.safetensors", "pt") as file:
        for name in file.keys():  # noqa: SIM118 - not a dictionary
            _, _, layer, _, kind = (*name.split("."), "", "", "")[:5]
            if name.startswith("encoder.block.") and int(layer) in USED[int(kind)]:
                needed.add(name)
    return needed


def test_every_position_calls_its_sources_weights(planned: Bundle) -> None:
    model = _graph(planned)
    calls = {node.name: _weights(node, model) for node in model.graph.node}
    for layer, pair in enumerate(PLAN):
        for kind, source in enumerate(pair):
            name = f"layers.{layer}.{('attention', 'feed_forward')[kind]}"
            assert (name in calls) == (source is not None)
            if source is not None:
                assert calls[name]
                assert all(weight.startswith(f"encoder.block.{source}.layer.{kind}.") for weight in calls[name])


def test_reuse_is_one_initializer_in_two_calls(planned: Bundle) -> None:
    model = _graph(planned)
    uses = Counter(name for node in model.graph.node for name in _weights(node, model))
    names = [initializer.name for initializer in model.graph.initializer]
    assert len(names) == len(set(names))
    assert set(uses) == set(names)  # none is there for nothing
    assert uses["encoder.block.0.layer.0.SelfAttention.q.weight"] == 2
    assert uses["encoder.block.3.layer.1.DenseReluDense.wo.weight"] == 2
    assert uses["encoder.block.2.layer.0.SelfAttention.q.weight"] == 1


def test_bundle_holds_the_used_tensors_and_nothing_else(planned: Bundle, t5: Path) -> None:
    needed = _used_names(t5)
    with safe_open(planned.weights, "pt") as ours, safe_open(t5 / "model.safetensors", "pt") as original:
        stored = {name for name in ours.keys() if not name.startswith("_pad.")}  # noqa: SIM118
        assert all((ours.get_tensor(name) == original.get_tensor(name)).all() for name in stored)
    assert stored == needed
    assert {initializer.name for initializer in _graph(planned).graph.initializer} == needed


def test_bytes_on_disk_are_the_header_and_the_unique_tensors(planned: Bundle, t5: Path) -> None:
    needed = _used_names(t5)
    with safe_open(t5 / "model.safetensors", "pt") as original:
        unique = sum(math.prod(original.get_slice(name).get_shape()) * 4 for name in needed)
    content = planned.weights.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    # No tensor of this checkpoint is a multiple of 256 bytes: each may be followed by less than that.
    assert unique <= len(content) - header < unique + 256 * len(needed)


def test_initializers_are_ranges_of_the_weights_file(every_kind: dict[str, Bundle]) -> None:
    for kind, bundle in every_kind.items():
        content = bundle.weights.read_bytes()
        data = 8 + int.from_bytes(content[:8], "little")
        header = json.loads(content[8:data])
        for initializer in _graph(bundle).graph.initializer:
            external = {entry.key: entry.value for entry in initializer.external_data}
            begin, end = header[initializer.name]["data_offsets"]
            assert initializer.data_location == onnx.TensorProto.EXTERNAL, kind
            assert not initializer.raw_data
            assert external == {
                "location": "weights.safetensors", "offset": str(data + begin), "length": str(end - begin),
            }  # fmt: skip
            assert int(external["offset"]) % 256 == 0
            assert list(initializer.dims) == header[initializer.name]["shape"]


def test_matrices_are_read_as_they_lie(every_kind: dict[str, Bundle]) -> None:
    """`[out, in]` weights go into Gemm with transB; a Transpose would be folded into a private copy at load."""
    for kind, bundle in every_kind.items():
        inlined = onnx.inliner.inline_local_functions(_graph(bundle))
        weights = {initializer.name for initializer in inlined.graph.initializer}
        seen = Counter()
        for node in inlined.graph.node:
            for index, name in enumerate(node.input):
                if name in weights:
                    seen[node.op_type, index] += 1
                    if (node.op_type, index) == ("Gemm", 1):
                        attributes = {entry.name: entry.i for entry in node.attribute}
                        assert attributes.get("transB") == 1, kind
        allowed = {("Gather", 0), ("Gemm", 1), ("Gemm", 2), ("RMSNormalization", 1)}
        assert set(seen) <= allowed | {("LayerNormalization", 1), ("LayerNormalization", 2)}, kind
        projections = 6 if kind.startswith("bert") else 7  # of a layer; PLAN runs three attentions, three feed-forwards
        assert seen["Gemm", 1] == 3 * projections, kind


def test_graph_holds_no_weights_and_is_small(every_kind: dict[str, Bundle]) -> None:
    for kind, bundle in every_kind.items():
        model = _graph(bundle)
        constants = [
            attribute.t
            for nodes in (model.graph.node, *(function.node for function in model.functions))
            for node in nodes
            for attribute in node.attribute
            if attribute.HasField("t")
        ]
        assert all(math.prod(constant.dims) <= 1024 for constant in constants), kind
        assert (bundle.directory / "model.onnx").stat().st_size < 100_000, kind


def test_functions_do_not_grow_with_depth(tmp_path: Path) -> None:
    shallow, deep = (export(t5_checkpoint(tmp_path / str(n), layers=n), tmp_path / f"{n}.bundle") for n in (1, 24))
    bodies = [[function.SerializeToString() for function in _graph(bundle).functions] for bundle in (shallow, deep)]
    assert bodies[0] == bodies[1]
    assert len(bodies[0]) == 5
    assert (deep.directory / "model.onnx").stat().st_size < 100_000


def test_functions_are_not_called_like_operators(every_kind: dict[str, Bundle]) -> None:
    """TensorRT's parser goes by a node's name alone, whatever its domain."""
    operators = {schema.name for schema in onnx.defs.get_all_schemas()}
    for bundle in every_kind.values():
        assert not operators & {function.name for function in _graph(bundle).functions}


def test_inlined_graph_has_no_functions(every_kind: dict[str, Bundle]) -> None:
    for kind, bundle in every_kind.items():
        model = _graph(bundle)
        assert bool(model.functions) != ("inlined" in kind)
        assert {node.domain for node in model.graph.node} == ({""} if "inlined" in kind else {"skrr"})


@pytest.mark.parametrize("family", ["t5", "bert"])
def test_functions_and_inlined_graph_give_the_same_bits(family: str, tmp_path: Path) -> None:
    make = {"t5": t5_checkpoint, "bert": bert_checkpoint}[family]
    checkpoint, random = make(tmp_path / "checkpoint", layers=4), np.random.default_rng(0)
    ids, mask = random_ids(random, 3, 40), random_mask(random, 3, 40)
    functions, inlined = (
        OnnxSession(export(checkpoint, tmp_path / str(inline), PLAN, inline=inline)).encode(ids, mask)
        for inline in (False, True)
    )
    assert np.array_equal(functions["last_hidden_state"], inlined["last_hidden_state"])


def test_graphs_pass_the_full_onnx_checker(every_kind: dict[str, Bundle]) -> None:
    for bundle in every_kind.values():
        onnx.checker.check_model(bundle.directory / "model.onnx", full_check=True)


def test_interface_is_named_and_typed(every_kind: dict[str, Bundle]) -> None:
    for kind, bundle in every_kind.items():
        graph = _graph(bundle).graph
        half = "bf16" if "bf16" in kind else "fp16" if "fp16" in kind else None
        element = {None: onnx.TensorProto.FLOAT, "bf16": onnx.TensorProto.BFLOAT16, "fp16": onnx.TensorProto.FLOAT16}
        sizes = [1, 512] if "fixed" in kind else ["batch", "sequence"]
        names = ["input_ids"] if "unmasked" in kind else ["input_ids", "attention_mask"]
        assert [value.name for value in graph.input] == names
        assert all(value.type.tensor_type.elem_type == onnx.TensorProto.INT64 for value in graph.input)
        assert all(_shape(value) == sizes for value in graph.input)
        assert [value.name for value in graph.output] == ["last_hidden_state"]
        assert graph.output[0].type.tensor_type.elem_type == element[half]
        assert _shape(graph.output[0]) == [*sizes, bundle.manifest.hidden_size]


def _shape(value: onnx.ValueInfoProto) -> list[int | str]:
    return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]


LOAD = """
import sys
import numpy as np
from skrr_export.bundle import open_bundle
from skrr_export.targets.onnx.session import OnnxSession
for directory in sys.argv[1:]:
    bundle = open_bundle(directory)
    shape = bundle.manifest.batch or 2, bundle.manifest.sequence or 9
    for mode in ("mapped", "prepacked"):
        OnnxSession(bundle, mode=mode).encode(np.ones(shape, np.int64))
"""


def test_onnx_runtime_loads_without_a_warning(every_kind: dict[str, Bundle]) -> None:
    result = run_python(LOAD, *(bundle.directory for bundle in every_kind.values()))
    assert result.stderr == ""


EXPORT = """
import sys
from tests.bundles import PLAN, export
from pathlib import Path
export(Path(sys.argv[1]), Path(sys.argv[2]), PLAN)
"""


def test_same_input_gives_the_same_bytes_in_any_process(planned: Bundle, t5: Path, tmp_path: Path) -> None:
    """Sets are walked in another order there. Also proves `remembered_traces`: the other process traces for itself."""
    run_python(EXPORT, t5, tmp_path / "again", PYTHONHASHSEED="12345")
    files = sorted(path.name for path in planned.directory.iterdir())
    assert files == sorted(path.name for path in (tmp_path / "again").iterdir())
    for name in files:
        assert (planned.directory / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name


MEMORY = """
import re, sys
from pathlib import Path
import numpy as np
from skrr_export.bundle import open_bundle
from skrr_export.targets.onnx.session import OnnxSession
import onnxruntime
import skrr_export.targets.onnx.lower
def anonymous():
    return int(re.search(r"Anonymous:\\s+(\\d+)", Path("/proc/self/smaps_rollup").read_text()).group(1)) * 1024
before = anonymous()
session = OnnxSession(open_bundle(sys.argv[1]), mode=sys.argv[2])
for _ in range(2):
    session.encode(np.ones((1, 8), np.int64))
print(anonymous() - before)
"""


def test_private_memory_grows_with_unique_weights_only(tmp_path: Path) -> None:
    """Six layers of 10 MiB each, and the first of them six times."""
    checkpoint = t5_checkpoint(tmp_path / "t5", layers=6, d_model=512, num_heads=8, d_kv=64, d_ff=1024)
    distinct = export(checkpoint, tmp_path / "distinct")
    shared = export(checkpoint, tmp_path / "shared", [(0, 0)] * 6)
    assert distinct.weights.stat().st_size > 60 << 20
    assert shared.weights.stat().st_size < 11 << 20
    memory = {
        (bundle.directory.name, mode): int(run_python(MEMORY, bundle.directory, mode).stdout)
        for bundle in (distinct, shared)
        for mode in ("mapped", "prepacked")
    }
    # Mapped weights are pages of the file: measured 2 MiB for either. Pre-packed they are copied, once each, with
    # some MiB of scratch: measured 62 and 15 MiB.
    assert memory["distinct", "mapped"] < 10 << 20
    assert memory["shared", "mapped"] < 10 << 20
    assert memory["distinct", "prepacked"] > 50 << 20
    assert memory["shared", "prepacked"] < 25 << 20
