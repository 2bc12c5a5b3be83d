"""Measuring whole bundles: everything is there, what is wrong is caught, and what fails leaves the rest."""

from __future__ import annotations

import json
import shutil
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import save_file

from skrr_export import measuring
from skrr_export.bundle import Bundle, open_bundle
from skrr_export.errors import BundleError, CheckpointError, InputError
from skrr_export.measure.record import STAGES, Measurement, SubjectRecord
from skrr_export.measure.subjects import Subject
from skrr_export.measure.worker import Opener
from skrr_export.measuring import MeasureOptions, measure_bundle
from skrr_export.outputs import Output
from tests import reference
from tests.bundles import PLAN, edit_graph, edit_weight, export, scale, soften, swap_source
from tests.checkpoints import bert_checkpoint, t5_checkpoint
from tests.families.clip import clip_checkpoint
from tests.measure import controls, families
from tests.measure.families import KINDS

pytestmark = pytest.mark.usefixtures("remembered_traces")

PROMPTS = ["a cat", "", "Two RED cubes, and a sign that says 'café'", "x" * 30]
QUICK: dict[str, Any] = {
    "prompts": PROMPTS, "sequences": (4, 12), "runs": 2, "processes": 1, "threads": 1, "targets": ("onnx",),
}  # fmt: skip


SCHEMA = jsonschema.Draft202012Validator(
    json.loads(resources.files("skrr_export").joinpath("data", "measurement.schema.json").read_text())
)


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return soften(t5_checkpoint(tmp_path_factory.mktemp("t5"), layers=4, tokenizer=True))


@pytest.fixture(scope="module")
def planned(t5: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return export(t5, tmp_path_factory.mktemp("bundles") / "planned", PLAN, targets=("onnx", "pt2"))


@pytest.fixture(scope="module")
def projection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("denoiser") / "diffusion_pytorch_model.safetensors"
    weights = torch.randn(5, 37, generator=torch.Generator().manual_seed(0))
    save_file({"context_embedder.weight": weights, "context_embedder.bias": torch.zeros(5)}, file)
    return file


@pytest.fixture(scope="module")
def whole(planned: Bundle, t5: Path, projection: Path) -> Measurement:
    """Everything at once, beside a control that is none of ours."""
    control = Subject(
        name="control", title="control", role="peer", planned=True, opener=Opener.of(controls.failing, how="exit")
    )
    options: dict[str, Any] = {**QUICK, "targets": ("onnx", "pt2"), "processes": 2, "batches": (1, 2)}
    return measure_bundle(planned, MeasureOptions(reference=t5, denoiser=projection, peers=(control,), **options))


@pytest.fixture
def targets_only(without_hardware: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave PyTorch and the machine out of a measurement, which take most of its time."""
    every = measuring.subjects_of
    monkeypatch.setattr(
        measuring, "subjects_of", lambda *a, **b: (one for one in every(*a, **b) if one.role == "target")
    )


@pytest.fixture
def copy(planned: Bundle, tmp_path: Path) -> Bundle:
    """A bundle that may be damaged."""
    shutil.copytree(planned.directory, tmp_path / "planned")
    return open_bundle(tmp_path / "planned")


def subject(measurement: Measurement, name: str) -> SubjectRecord:
    found = measurement.subject(name)
    assert found is not None
    return found


def failures(measurement: Measurement) -> list[str]:
    return [verdict.message for verdict in measurement.verdicts if not verdict.passed]


def test_every_subject_is_measured_whole(whole: Measurement) -> None:
    names = [one.name for one in whole.subjects]
    assert names == ["torch-dense", "torch-plan", "onnx", "pt2", "control"]
    for one in whole.subjects[:-1]:
        assert one.error is None
        assert one.computes_in == "fp32"
        assert one.memory is not None
        assert tuple(one.memory.stages) == STAGES
        assert one.memory.processes == 2
        assert (one.memory.total_proportional or 0) > one.memory.stages["steady"].proportional
        assert one.memory.gpu is None
        assert one.cold_start is not None
        assert one.cold_start.starts == 3
        assert [(each.batch, each.sequence) for each in one.latencies] == [(1, 4), (2, 4), (1, 12), (2, 12)]
        others = {"torch-dense", "torch-plan"} - {one.name}
        for each in one.latencies:
            assert len(each.seconds) == 2
            assert each.ratios.keys() == others
            assert each.bound is not None
            assert 0 < each.bound.share < 1
        assert one.loss is not None
        assert one.invariance is not None
        assert one.invariance.repeat == 0
        assert one.invariance.sequence is not None
    assert whole.settings.largest == (2, 12)
    assert (whole.settings.threads, whole.settings.prompts) == (1, 4)


def test_a_subject_that_fails_says_so_and_is_the_only_failure(whole: Measurement) -> None:
    control = subject(whole, "control")
    assert control.error == "its process exited with code 3: last words"
    assert control.latencies == ()
    assert failures(whole) == ["control: its process exited with code 3: last words"]
    assert not whole.passed


def test_its_document_follows_the_schema_and_says_null_where_nothing_was_measured(whole: Measurement) -> None:
    document = json.loads(whole.to_json())
    SCHEMA.validate(document)
    control = document["subjects"][-1]
    for field in ("computes_in", "drift", "loss", "invariance", "weights_bytes"):
        assert control[field] is None
    assert document["subjects"][0]["memory"]["gpu"] is None
    assert document["subjects"][0]["drift"] is None  # the dense encoder runs no plan to drift from
    assert document["machine"]["gpu"] is None


def test_drift_and_loss_are_those_of_an_independent_reference(whole: Measurement, planned: Bundle, t5: Path) -> None:
    onnx, dense = subject(whole, "onnx"), subject(whole, "torch-dense")
    assert onnx.drift is not None
    assert onnx.loss is not None
    assert dense.loss is not None
    assert (onnx.drift.tokens.relative_l2 or 1) < 1e-5
    assert (dense.loss.tokens.relative_l2 or 1) < 1e-5
    assert onnx.loss.null is not None
    from skrr_export.tokenization import Tokenizer

    tokens = Tokenizer.of_bundle(planned)(PROMPTS)
    mask = tokens.attention_mask
    truth, original = (reference.encode(t5, plan, tokens.input_ids, mask) for plan in (PLAN, None))
    for row, prompt in enumerate(onnx.loss.prompts):
        real = mask[row] == 1
        difference = np.linalg.norm(truth[row][real] - original[row][real]) / np.linalg.norm(original[row][real])
        assert prompt.relative_l2 == pytest.approx(difference, rel=1e-3)
        assert prompt.prompt == PROMPTS[row]
        assert prompt.tokens == real.sum()
    assert onnx.loss.null.relative_l2 == onnx.loss.prompts[1].relative_l2


def test_the_projection_of_the_denoiser_is_measured_after(whole: Measurement) -> None:
    loss = subject(whole, "onnx").loss
    assert loss is not None
    assert loss.projected is not None
    assert loss.projected.tokens == loss.tokens.tokens
    assert loss.projected.relative_l2 != loss.tokens.relative_l2
    assert whole.settings.denoiser is not None
    assert "context_embedder.weight [5, 37]" in whole.settings.denoiser


def test_weights_are_counted_dense_and_under_the_plan(whole: Measurement, planned: Bundle) -> None:
    manifest = planned.manifest
    assert subject(whole, "torch-dense").weights_bytes == 4 * manifest.total_parameters
    assert subject(whole, "pt2").weights_bytes == 4 * manifest.kept_parameters


@pytest.mark.usefixtures("without_hardware")
def test_without_a_reference_there_is_no_dense_encoder_and_no_loss(planned: Bundle) -> None:
    found = measure_bundle(planned, MeasureOptions(**QUICK))
    assert [one.name for one in found.subjects] == ["torch-plan", "onnx"]
    assert found.passed, failures(found)
    for one in found.subjects:
        assert one.loss is None
        assert one.drift is not None
        assert one.drift.projected is None
        assert one.memory is not None
        assert one.memory.total_proportional is None
        assert one.memory.processes is None
    assert found.settings.reference is None


@pytest.mark.usefixtures("targets_only")
def test_ids_alone_are_measured_without_a_tokenizer(tmp_path: Path) -> None:
    bundle = export(bert_checkpoint(tmp_path / "bert", layers=2), tmp_path / "bundle", batch=2, sequence=9)
    found = measure_bundle(bundle, MeasureOptions(**{**QUICK, "prompts": None, "sequences": None}))
    onnx = subject(found, "onnx")
    assert onnx.drift is not None
    assert onnx.drift.prompts == ()
    assert onnx.drift.null is None
    assert onnx.invariance is not None
    assert (onnx.invariance.batch, onnx.invariance.sequence) == (None, None)
    assert [(one.batch, one.sequence) for one in onnx.latencies] == [(2, 9)]
    assert any("random ids only" in note for note in found.notes)


STATES, PROJECTED = Output("hidden_states", (2,)), Output("text_embeds")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clip_checkpoint(tmp_path_factory.mktemp("clip"), layers=3, tokenizer=True)


@pytest.mark.usefixtures("targets_only")
def test_pooled_vectors_are_measured_beside_tokens(clip: Path, tmp_path: Path) -> None:
    bundle = families.export(KINDS["clip"], clip, tmp_path / "b", (STATES, PROJECTED), [(0, 0), (None, 1), (2, 1)])
    found = measure_bundle(bundle, MeasureOptions(reference=clip, **{**QUICK, "sequences": (4,)}))
    assert found.passed, failures(found)
    onnx = subject(found, "onnx")
    for agreement in (onnx.drift, onnx.loss):
        assert agreement is not None
        assert agreement.tokens is not None
        assert agreement.pooled is not None
        assert agreement.pooled.tokens == 1 + 1 + 3 + 2 + 1 + 4 + 1 + len(PROMPTS)  # random ids, and prompts
    assert onnx.drift is not None
    assert onnx.drift.pooled is not None
    assert (onnx.drift.pooled.relative_l2 or 1) < 1e-5
    assert onnx.invariance is not None
    assert onnx.invariance.repeat == 0
    checks = {verdict.check for verdict in found.verdicts}
    assert {"onnx: pooled: drift, relative L2", "onnx: tokens: drift, relative L2"} <= checks
    SCHEMA.validate(json.loads(found.to_json()))


@pytest.mark.usefixtures("targets_only")
def test_a_wrong_pooled_vector_is_caught_where_there_is_nothing_else(clip: Path, tmp_path: Path) -> None:
    bundle = families.export(KINDS["clip"], clip, tmp_path / "bundle", (PROJECTED,))
    edit_weight(bundle, "text_projection.weight", scale(1.01))
    options: dict[str, Any] = {**QUICK, "sequences": (4,), "prompts": PROMPTS[:2]}
    found = measure_bundle(open_bundle(bundle.directory), MeasureOptions(reference=clip, **options))
    assert [failure.partition(" 0.0")[0] for failure in failures(found)] == ["onnx: pooled: drift, relative L2"]
    onnx = subject(found, "onnx")
    assert onnx.drift is not None
    assert (onnx.drift.tokens, onnx.drift.padding) == (None, None)
    assert [one.prompt for one in onnx.drift.prompts] == PROMPTS[:2]
    SCHEMA.validate(json.loads(found.to_json()))


def test_no_projection_reads_a_pooled_vector_alone(clip: Path, tmp_path: Path, projection: Path) -> None:
    bundle = families.export(KINDS["clip"], clip, tmp_path / "bundle", (PROJECTED,))
    with pytest.raises(InputError, match="no text projection reads what this bundle gives"):
        measure_bundle(bundle, MeasureOptions(denoiser=projection, **QUICK))


# Negative controls: the hashes are forged, so that nothing but the numbers can tell


@pytest.mark.usefixtures("targets_only")
def test_a_wrong_weight_is_caught(copy: Bundle, t5: Path) -> None:
    edit_weight(copy, "encoder.block.0.layer.0.SelfAttention.v.weight", scale(1.01))
    found = measure_bundle(open_bundle(copy.directory), MeasureOptions(reference=t5, **QUICK))
    assert any("onnx: tokens: drift, relative L2" in failure for failure in failures(found))


@pytest.mark.usefixtures("targets_only")
def test_a_swapped_source_is_caught(copy: Bundle) -> None:
    edit_graph(copy, swap_source)
    found = measure_bundle(open_bundle(copy.directory), MeasureOptions(**QUICK))
    assert any("onnx: tokens: drift, relative L2" in failure for failure in failures(found))


@pytest.mark.usefixtures("targets_only")
def test_a_dropped_output_is_caught(copy: Bundle) -> None:
    def rename(nodes: dict[str, onnx.NodeProto], graph: onnx.GraphProto) -> None:
        old = graph.output[0].name
        graph.output[0].name = "pooler_output"
        for node in graph.node:
            node.output[:] = ["pooler_output" if name == old else name for name in node.output]

    edit_graph(copy, rename)
    found = measure_bundle(open_bundle(copy.directory), MeasureOptions(**QUICK))
    assert failures(found)[0] == "onnx: it gives no last_hidden_state, as its manifest says, but pooler_output"
    assert subject(found, "onnx").latencies == ()


# Bad input


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"targets": ("aoti",)}, BundleError, "has no target 'aoti'; it has: onnx, pt2"),
        ({"targets": ("coreml",)}, InputError, "unknown target 'coreml'; known: all, onnx, onnx:prepacked"),
        ({"device": "tpu"}, InputError, "unknown device 'tpu'; choose cpu, cuda, or cuda:N"),
        ({"prompts": None, "max_prompts": 0}, InputError, "max_prompts must be at least 1, not 0"),
        ({"sequences": (0,)}, InputError, "sequence must be at least 1, not 0"),
        ({"batches": (0,)}, InputError, "batch must be at least 1, not 0"),
        ({"runs": 0}, InputError, "runs must be at least 1, not 0"),
        ({"processes": 0}, InputError, "processes must be at least 1, not 0"),
        ({"threads": 0}, InputError, "threads must be at least 1, not 0"),
        ({"reference": "/nowhere"}, CheckpointError, "/nowhere"),
        ({"denoiser": "/nowhere"}, CheckpointError, "/nowhere"),
    ],
)
def test_a_request_that_makes_no_sense_is_refused_at_once(
    change: dict[str, Any], error: type[Exception], message: str, planned: Bundle
) -> None:
    with pytest.raises(error, match=message):
        measure_bundle(planned, MeasureOptions(**{**QUICK, **change}))


def test_the_checkpoint_of_another_encoder_is_refused(planned: Bundle, tmp_path: Path) -> None:
    for other in (bert_checkpoint(tmp_path / "bert"), t5_checkpoint(tmp_path / "t5", layers=3)):
        with pytest.raises(InputError, match="give the checkpoint that it was exported from"):
            measure_bundle(planned, MeasureOptions(reference=other, **QUICK))


def test_a_gpu_that_is_not_there_is_refused(planned: Bundle) -> None:
    number = torch.cuda.device_count()
    with pytest.raises(InputError, match=f"no GPU for the device cuda:{number}: torch"):
        measure_bundle(planned, MeasureOptions(**{**QUICK, "device": f"cuda:{number}"}))


def test_sizes_that_the_bundle_does_not_take_are_refused(tmp_path: Path) -> None:
    checkpoint = bert_checkpoint(tmp_path / "bert", layers=2)
    fixed = export(checkpoint, tmp_path / "fixed", batch=2, sequence=9)
    with pytest.raises(InputError, match="this bundle's batch size is fixed at 2; it cannot be measured at 1"):
        measure_bundle(fixed, MeasureOptions(**{**QUICK, "prompts": None, "batches": (1,), "sequences": (9,)}))
    free = export(checkpoint, tmp_path / "free")
    with pytest.raises(InputError, match="72 tokens exceed this encoder's maximum of 71"):
        measure_bundle(free, MeasureOptions(**{**QUICK, "prompts": None, "sequences": (72,)}))
