"""Sessions: what they accept, what they refuse, and that their options change nothing but speed and memory."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

import skrr_export
from skrr_export.bundle import Bundle, open_bundle
from skrr_export.errors import BundleError, DependencyError, InputError
from skrr_export.targets import open_target
from skrr_export.targets.onnx.session import OnnxSession
from tests.bundles import export, forge_hashes, random_ids, random_mask, relative_error, soften
from tests.checkpoints import bert_checkpoint, t5_checkpoint

pytestmark = pytest.mark.usefixtures("remembered_traces")

TOLERANCE = 5e-5
"""Of two orders of the same fp32 sums, as in tests/encoders/test_t5.py."""


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return soften(t5_checkpoint(tmp_path_factory.mktemp("t5")))


@pytest.fixture(scope="module")
def bundles(t5: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    directory = tmp_path_factory.mktemp("bundles")
    bert = bert_checkpoint(directory / "checkpoint")
    return {
        "t5": export(t5, directory / "t5"),
        "t5, unmasked": export(t5, directory / "unmasked", masked=False),
        "t5, fixed": export(t5, directory / "fixed", batch=2, sequence=9),
        "t5, bf16": export(t5, directory / "bf16", dtype="bf16"),
        "t5, fp16": export(t5, directory / "fp16", dtype="fp16"),
        "bert": export(bert, directory / "bert"),
    }


@pytest.fixture(scope="module")
def session(bundles: dict[str, Bundle]) -> OnnxSession:
    return OnnxSession(bundles["t5"])


IDS = random_ids(np.random.default_rng(0), 2, 9)
MASK = random_mask(np.random.default_rng(0), 2, 9)


def _hidden(session: OnnxSession, ids: np.ndarray = IDS, mask: np.ndarray | None = None) -> np.ndarray:
    outputs = session.encode(ids, mask)
    assert list(outputs) == ["last_hidden_state"]
    return outputs["last_hidden_state"]


def test_output_is_named_typed_and_shaped(bundles: dict[str, Bundle]) -> None:
    for bundle in bundles.values():
        hidden = _hidden(OnnxSession(bundle))
        assert hidden.dtype == np.float32
        assert hidden.shape == (2, 9, bundle.manifest.hidden_size)


@pytest.mark.parametrize(
    ("kind", "ids", "complaint"),
    [
        ("t5", IDS[0], r"input_ids must be integers \[batch, sequence\], not int64 \[9\]"),
        ("t5", IDS[None], r"not int64 \[1, 2, 9\]"),
        ("t5", IDS.astype(np.float32), r"not float32 \[2, 9\]"),
        ("t5", IDS.astype(bool), r"not bool \[2, 9\]"),
        ("t5", IDS[:, :0], r"not int64 \[2, 0\]"),
        ("t5", IDS[:0], r"not int64 \[0, 9\]"),
        ("t5", np.full((1, 3), 307), "must lie in 0 to 306; these span 307 to 307"),
        ("t5", np.array([[5, -1]]), "must lie in 0 to 306; these span -1 to 5"),
        ("bert", np.zeros((1, 72), np.int64), "72 tokens exceed this encoder's maximum of 71"),
        ("t5, fixed", IDS[:1], "batch size is fixed at 2, not 1"),
        ("t5, fixed", IDS[:, :8], "sequence size is fixed at 9, not 8"),
        ("t5, fixed", np.zeros((2, 10), np.int64), "sequence size is fixed at 9, not 10"),
    ],
)
def test_ids_that_do_not_fit_are_refused(
    kind: str, ids: np.ndarray, complaint: str, bundles: dict[str, Bundle]
) -> None:
    with pytest.raises(InputError, match=complaint):
        OnnxSession(bundles[kind]).encode(ids)


def test_mask_that_does_not_fit_is_refused(bundles: dict[str, Bundle], session: OnnxSession) -> None:
    with pytest.raises(InputError, match=r"attention_mask is \[2, 8\], input_ids \[2, 9\]"):
        session.encode(IDS, MASK[:, :8])
    with pytest.raises(InputError, match="the pipeline 'unmasked' passes its encoder no attention_mask"):
        OnnxSession(bundles["t5, unmasked"]).encode(IDS, MASK)


def test_longest_input_is_accepted(bundles: dict[str, Bundle]) -> None:
    assert _hidden(OnnxSession(bundles["bert"]), np.zeros((1, 71), np.int64)).shape == (1, 71, 39)


def test_fixed_sizes_change_no_value(bundles: dict[str, Bundle], session: OnnxSession) -> None:
    fixed = OnnxSession(bundles["t5, fixed"])
    assert relative_error(_hidden(fixed, IDS, MASK), _hidden(session, IDS, MASK)) < TOLERANCE


def test_no_mask_means_all_ones(bundles: dict[str, Bundle], session: OnnxSession) -> None:
    assert np.array_equal(_hidden(session), _hidden(session, IDS, np.ones_like(IDS)))
    assert relative_error(_hidden(session), _hidden(OnnxSession(bundles["t5, unmasked"]))) < TOLERANCE
    assert relative_error(_hidden(session), _hidden(session, IDS, MASK)) > 1e-2  # the mask does count


@pytest.mark.parametrize("convert", [np.int32, np.uint16, np.asfortranarray], ids=["int32", "uint16", "transposed"])
def test_integers_of_any_kind_are_accepted(convert: Any, session: OnnxSession) -> None:
    assert np.array_equal(_hidden(session, convert(IDS), convert(MASK)), _hidden(session, IDS, MASK))


def test_boolean_mask_is_accepted(session: OnnxSession) -> None:
    assert np.array_equal(_hidden(session, IDS, MASK.astype(bool)), _hidden(session, IDS, MASK))


def test_padding_that_is_masked_changes_no_token(session: OnnxSession) -> None:
    alone = _hidden(session, IDS[:1, :5])
    mask = np.ones_like(IDS)
    mask[0, 5:] = 0
    assert relative_error(_hidden(session, IDS, mask)[:1, :5], alone) < TOLERANCE


@pytest.mark.parametrize("kind", ["t5", "t5, bf16", "t5, fp16", "bert"])
def test_modes_and_threads_agree(kind: str, bundles: dict[str, Bundle]) -> None:
    usual = _hidden(OnnxSession(bundles[kind]), IDS, MASK)
    for options in (
        {"mode": "prepacked"},
        {"threads": 1},
        {"threads": 2, "mode": "prepacked"},
        {"runtime": "decomposed"},
    ):
        assert relative_error(_hidden(OnnxSession(bundles[kind], **options), IDS, MASK), usual) < TOLERANCE


def test_options_reach_the_runtime(bundles: dict[str, Bundle]) -> None:
    options = OnnxSession(bundles["t5"], threads=1)._session.get_session_options()
    assert options.intra_op_num_threads == 1
    assert options.get_session_config_entry("session.disable_prepacking") == "1"
    prepacked = OnnxSession(bundles["t5"], mode="prepacked")._session.get_session_options()
    with pytest.raises(RuntimeError):
        prepacked.get_session_config_entry("session.disable_prepacking")


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"device": "tpu"}, "unknown device 'tpu'; known: cpu, cuda"),
        ({"mode": "fast"}, "unknown mode 'fast'; known: mapped, prepacked"),
        ({"runtime": "openvino"}, "unknown runtime 'openvino'; known: default, decomposed, tensorrt-rtx"),
        ({"target": "pt2", "runtime": "decomposed"}, "runtimes are ONNX Runtime's; the target pt2 has none"),
        ({"target": "tensorrt-rtx", "runtime": "tensorrt-rtx"}, "the target tensorrt-rtx has none"),
        ({"target": "coreml"}, "unknown target 'coreml'; known: onnx, pt2, aoti, tensorrt-rtx, tensorrt"),
        ({"threads": 0}, "threads must be at least 1, not 0"),
        ({"threads": -1}, "threads must be at least 1, not -1"),
    ],
)
def test_unknown_option_is_refused(options: dict[str, Any], complaint: str, bundles: dict[str, Bundle]) -> None:
    with pytest.raises(InputError, match=complaint):
        open_target(bundles["t5"], **options)


@pytest.mark.skipif("CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="it can")
def test_device_that_the_runtime_lacks_names_the_extra(bundles: dict[str, Bundle]) -> None:
    with pytest.raises(DependencyError, match=r"cannot run on cuda: pip install 'skrr-export\[gpu\]'"):
        OnnxSession(bundles["t5"], device="cuda")


def test_half_precision_is_noted(bundles: dict[str, Bundle]) -> None:
    assert OnnxSession(bundles["t5"]).notes == ()
    for name in ("bf16", "fp16"):
        session = OnnxSession(bundles[f"t5, {name}"])
        assert len(session.notes) == 1
        assert f"stored as {name}, computed in fp32" in session.notes[0]
        assert session.computes_in.name == "fp32"


def test_target_that_was_not_exported_is_named(bundles: dict[str, Bundle]) -> None:
    bundle = replace(bundles["t5"], manifest=replace(bundles["t5"].manifest, targets={}))
    with pytest.raises(BundleError, match="no target 'onnx'; it has: none"):
        OnnxSession(bundle)


@pytest.mark.parametrize("kind", ["t5", "t5, bf16"])
@pytest.mark.parametrize("damage", [b"", b"not a graph", None], ids=["empty", "text", "cut"])
def test_graph_that_cannot_be_loaded_is_named(
    kind: str, damage: bytes | None, bundles: dict[str, Bundle], tmp_path: Path
) -> None:
    shutil.copytree(bundles[kind].directory, tmp_path / "bundle")
    graph = tmp_path / "bundle" / ("model.cpu.onnx" if "bf16" in kind else "model.onnx")
    graph.write_bytes(graph.read_bytes()[:-3000] if damage is None else damage)
    forge_hashes(Bundle(tmp_path / "bundle", bundles[kind].manifest))
    with pytest.raises(BundleError, match=rf"cannot load .*{graph.name}"):
        OnnxSession(open_bundle(tmp_path / "bundle"))


@pytest.mark.parametrize("kind", ["t5", "t5, bf16"])
def test_bundle_moves_with_its_directory(
    kind: str, bundles: dict[str, Bundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = _hidden(OnnxSession(bundles[kind]))
    shutil.copytree(bundles[kind].directory, tmp_path / "there" / "moved é")
    monkeypatch.chdir(tmp_path / "there")
    session = skrr_export.open_session("moved é", threads=2)
    monkeypatch.chdir(tmp_path)
    assert np.array_equal(_hidden(session), expected)
