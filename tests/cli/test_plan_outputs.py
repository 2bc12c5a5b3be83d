"""`plan search` and `plan check` where a pipeline does not read all of its encoder."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from skrr_export.plan import Plan
from tests.cli.conftest import Run
from tests.cli.test_plan_search import answer, complaint
from tests.families.clip import clip_checkpoint

CLIP = ["sdxl", "--subfolder", "text_encoder", "--pipeline", "sdxl"]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP that takes as many tokens as SDXL gives it."""
    directory = tmp_path_factory.mktemp("clip") / "it"
    return clip_checkpoint(directory, layers=4, tokenizer=True, max_position_embeddings=77)


@pytest.fixture(autouse=True)
def _pipeline(tmp_path: Path, clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory to work in, with prompts and SDXL's directory, of two encoders alike."""
    monkeypatch.chdir(tmp_path)
    Path("prompts.txt").write_text("a cat\ntwo dogs and a bird\n\n")
    for slot in ("text_encoder", "text_encoder_2"):
        shutil.copytree(clip, tmp_path / "sdxl" / slot)
    (tmp_path / "sdxl" / "model_index.json").write_text("{}")


def line(*options: object, sparsity: object = 0.3) -> list[object]:
    return [
        "plan", "search", *options, "--sparsity", sparsity, "--prompts", "prompts.txt", "-o", "plan.json",
        "--method", "skrr",
    ]  # fmt: skip


def test_a_search_on_what_sdxl_takes(run: Run) -> None:
    """The last but one hidden state: the last layer is gone before anything is dropped, and the empty prompt too."""
    result = run(*line(*CLIP))
    assert (result.code, result.err.splitlines()[-1][:4]) == (0, "skrr")
    plan = Plan.load("plan.json")
    checked = answer(run, "plan", "check", "plan.json", *CLIP)
    whole = answer(run, "plan", "check", "plan.json", *CLIP[:3])
    assert plan.sources[3] == (3, 3)
    assert plan.provenance["sparsity"] == {"wanted": 0.3, "reached": pytest.approx(checked["sparsity"], rel=1e-5)}
    assert checked["sparsity"] >= 0.3 - 0.0005
    dropped = (whole["total_parameters"] - whole["kept_parameters"]) / whole["total_parameters"]
    assert whole["sparsity"] == pytest.approx(dropped)
    unread = checked["unread_parameters"]
    assert checked["sparsity"] == pytest.approx(dropped + unread / whole["total_parameters"])
    assert "unread_parameters" not in whole
    told = plan.provenance["discrepancy"]
    assert (told["null"], told["space"]) == (None, "hidden_states.3")
    assert result.out.splitlines()[1] == (
        f"sparsity {checked['sparsity']:.1%}, D {told['value']:.4g}, on hidden_states.3"
    )
    said = run("plan", "check", "plan.json", *CLIP).out.splitlines()
    assert said[-1] == f"pipeline sdxl does not read {unread:,} of the parameters"
    assert said[-2].endswith(
        f"{checked['kept_parameters']:,} of {checked['total_parameters']:,} parameters are used, "
        f"sparsity {checked['sparsity']:.1%}"
    )
    assert len(run("plan", "check", "plan.json", *CLIP[:3]).out.splitlines()) == len(said) - 1


def test_the_slot_tells_which_encoder_it_is(run: Run) -> None:
    """The second one's pooled output needs every layer, and still the last cannot be dropped unseen."""
    second = ["sdxl", "--subfolder", "text_encoder_2", "--pipeline", "sdxl"]
    assert run(*line(*second), "--quiet").code == 0
    plan = Plan.load("plan.json")
    assert plan.sources[3] == (3, 3)
    assert answer(run, "plan", "check", "plan.json", *second)["unread_parameters"] == 0
    message = complaint(run(*line("sdxl/text_encoder", "--pipeline", "sdxl"), "--resume"))
    assert message.endswith("give one of sdxl/text_encoder, sdxl/text_encoder_2")
    alone = ["sdxl/text_encoder", "--pipeline", "sdxl/text_encoder"]
    assert run(*line(*alone), "--quiet").code == 0
    assert Plan.load("plan.json").provenance["discrepancy"]["null"] is None


def test_check_of_a_pipeline_that_there_is_not(run: Run) -> None:
    Path("plan.json").write_text(Plan.identity("clip", 4).to_json())
    assert re.match("unknown pipeline 'sdx'; known: ", complaint(run("plan", "check", "plan.json", *CLIP[:4], "sdx")))
    assert complaint(run("plan", "check", "plan.json", *CLIP[:4], "flux.2")) == (
        "pipeline 'flux.2' feeds a mistral encoder; this one is clip"
    )
