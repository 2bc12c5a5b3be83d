"""`skrr-export export PIPELINE_DIR --pipeline NAME`: every text encoder of a pipeline in one go."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest

from skrr_export.bundle import open_bundle
from skrr_export.plan import Plan
from skrr_export.targets import open_target
from skrr_export.tokenization import encode_prompts
from tests import reference
from tests.bundles import relative_error
from tests.checkpoints import contents, t5_checkpoint
from tests.cli.conftest import Run
from tests.families import clip
from tests.families.clip import clip_checkpoint

SOURCES = [(0, 0), (None, 0), (0, 2)]
PLAN = Plan("t5", tuple(SOURCES))
SLOTS = ["text_encoder", "text_encoder_2"]

pytestmark = pytest.mark.usefixtures("remembered_traces")


@pytest.fixture(scope="module")
def flux(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The encoders of a FLUX.1, with their tokenizers, as diffusers lays them out."""
    pipeline = tmp_path_factory.mktemp("flux")
    clip_checkpoint(pipeline / "text_encoder", projection=False, tokenizer=True, max_position_embeddings=77)
    t5_checkpoint(pipeline / "text_encoder_2", tokenizer=True)
    (pipeline / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    (pipeline / "plan.json").write_text(PLAN.to_json())
    return pipeline


def test_all_encoders_are_exported_each_as_the_pipeline_takes_it(flux: Path, tmp_path: Path, run: Run) -> None:
    output = tmp_path / "out"
    plan = f"text_encoder_2={flux / 'plan.json'}"
    result = run("export", flux, "--pipeline", "flux.1", "--plan", plan, "-o", output, "--json")
    assert result.code == 0, result.err
    document = json.loads(result.out)
    assert (document["pipeline"], list(document["bundles"])) == ("flux.1", SLOTS)
    assert [document["bundles"][slot]["outputs"] for slot in SLOTS] == [["pooler_output"], ["last_hidden_state"]]
    assert sorted(path.name for path in output.iterdir()) == ["pipeline.json", *SLOTS]
    assert json.loads((output / "pipeline.json").read_text())["encoders"] == SLOTS

    bundles = [open_bundle(output / slot) for slot in SLOTS]
    assert [bundle.manifest.plan.is_identity for bundle in bundles] == [True, False]
    pooled, rows = (encode_prompts(open_target(bundle), ["a cat", ""]) for bundle in bundles)
    assert (pooled["input_ids"].shape, rows["input_ids"].shape) == ((2, 77), (2, 512))
    truth = reference.encode(flux / "text_encoder_2", SOURCES, rows["input_ids"])
    # over 512 tokens of padding, ONNX Runtime and transformers are each 6e-5 from fp64; a wrong plan is 0.7 off
    assert relative_error(rows["last_hidden_state"], truth) < 5e-4
    truth = clip.encode(flux / "text_encoder", None, pooled["input_ids"], None, output="pooler_output")
    assert relative_error(pooled["pooler_output"], truth) < 2e-5


def test_an_optional_encoder_may_be_absent(flux: Path, tmp_path: Path, run: Run) -> None:
    """As the T5 of Stable Diffusion 3, which its users leave out to save memory."""
    (tmp_path / "model_index.json").write_text("{}")
    (tmp_path / "text_encoder_2").symlink_to(flux / "text_encoder_2")
    result = run("export", tmp_path, "--pipeline", "flux.1", "-o", tmp_path / "out")
    assert result.code == 0, result.err
    assert (tmp_path / "out" / "text_encoder_2" / "manifest.json").is_file()
    assert "1 text encoders" in result.out


def test_what_it_prints_adds_up(flux: Path, tmp_path: Path, run: Run) -> None:
    result = run("export", flux, "--pipeline", "flux.1", "-o", tmp_path / "out")
    assert result.code == 0, result.err
    assert "for the pipeline flux.1, gives pooler_output" in result.out
    assert "2 text encoders" in result.out.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--plan", "plan.json"], "whose plan is 'plan.json'? For a whole pipeline say FOLDER=FILE: text_encoder="),
        (["--plan", "text_encoder_3=plan.json"], "none of this pipeline's encoders: text_encoder, text_encoder_2"),
        (["--plan", "text_encoder=plan.json"], "the plan is for a t5 encoder, the checkpoint is clip"),
        (["--plan", "text_encoder_2=plan.json"] * 2, "'text_encoder_2' is given two plans"),
        (["--tokenizer", "text_encoder"], "is for one encoder; this exports all of a pipeline"),
    ],
    ids=["plan of whom", "unknown folder", "plan of another", "two plans", "tokenizer"],
)  # fmt: skip
def test_bad_input_is_refused_and_nothing_is_written(
    arguments: list[str], message: str, flux: Path, tmp_path: Path, run: Run
) -> None:
    with contextlib.chdir(flux):
        result = run("export", flux, "--pipeline", "flux.1", *arguments, "-o", tmp_path / "out")
    assert (result.code, result.out) == (2, "")
    assert message in result.err
    assert len(result.err.splitlines()) == 1
    assert contents(tmp_path) == {}


def test_a_pipeline_without_these_encoders_is_refused(tmp_path: Path, run: Run) -> None:
    (tmp_path / "model_index.json").write_text("{}")
    result = run("export", tmp_path, "--pipeline", "flux.1", "-o", tmp_path / "out")
    assert (result.code, result.err) == (2, f"error: {tmp_path} has none of the text encoders {', '.join(SLOTS)}\n")


def test_a_bad_second_encoder_leaves_the_old_output(flux: Path, tmp_path: Path, run: Run) -> None:
    output, pipeline = tmp_path / "out", tmp_path / "pipeline"
    assert run("export", flux, "--pipeline", "flux.1", "-o", output).code == 0
    before = contents(output)
    pipeline.mkdir()
    (pipeline / "model_index.json").write_text("{}")
    (pipeline / "text_encoder").symlink_to(flux / "text_encoder")
    t5_checkpoint(pipeline / "text_encoder_2", layers=1)
    weights = pipeline / "text_encoder_2" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    result = run("export", pipeline, "--pipeline", "flux.1", "-o", output, "--force")
    assert result.code == 2
    assert "text_encoder_2" in result.err
    assert contents(output) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "pipeline"]


def test_the_output_is_replaced_only_when_it_is_one_of_ours(flux: Path, tmp_path: Path, run: Run) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    result = run("export", flux, "--pipeline", "flux.1", "-o", tmp_path / "out", "--force")
    assert result.code == 2
    assert "is not a folder of bundles (no pipeline.json), so --force will not replace it" in result.err
