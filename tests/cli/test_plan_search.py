"""`plan search`: what it prints and writes, what it refuses, and what is left of it when it is interrupted."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from skrr_export.plan import Plan
from skrr_export.search.journal import Journal
from skrr_export.searching import METHODS
from tests.bundles import run_python
from tests.checkpoints import contents, t5_checkpoint
from tests.cli.conftest import Result, Run
from tests.families.clip import clip_checkpoint

OURS = [method for method in METHODS if method != "laco"]
"""All methods but the one that writes a checkpoint of its own."""
PROMPTS = ["a cat", "two dogs ☃, and a bird", "", "x"]
JOURNAL = "plan.json.journal"
HINT = [f"{JOURNAL} keeps what was decided; the same command with --resume goes on", "interrupted"]
"""What an interrupted search says last."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a test works, with prompts in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS) + "\n")
    return tmp_path


@pytest.fixture(scope="session")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A T5 with the layers of T5-XXL, and little else."""
    dimensions = {"d_model": 16, "num_heads": 2, "d_kv": 5, "d_ff": 19}
    return t5_checkpoint(tmp_path_factory.mktemp("deep") / "t5", layers=24, tokenizer=True, **dimensions)


@pytest.fixture
def denoiser(folder: Path) -> Path:
    return projection(folder / "diffusion_pytorch_model.safetensors", 37)


def projection(path: Path, width: int) -> Path:
    """The text projection of a FLUX.1 transformer for an encoder of a width."""
    generator = torch.Generator().manual_seed(1)
    weight, bias = torch.randn(29, width, generator=generator), torch.randn(29, generator=generator)
    save_file({"context_embedder.weight": weight, "context_embedder.bias": bias}, path)
    return path


def arguments(checkpoint: object, *options: object, sparsity: object = 0.3) -> list[object]:
    """A search whose plan goes to `plan.json` in the working directory."""
    line = ["plan", "search", checkpoint, "--sparsity", sparsity, "--prompts", "prompts.txt", "-o", "plan.json"]
    return [*line, *options]


def answer(run: Run, *line: object) -> Any:
    """What a command prints with `--json` and `--quiet`, which is all that it prints."""
    result = run(*line, "--json", "--quiet")
    assert (result.code, result.err) == (0, "")
    return json.loads(result.out)


def found(path: Path) -> dict[str, Any]:
    """Everything in a plan file but what it took to find it; whose text is as the tool writes it."""
    plan = Plan.load(path)
    assert path.read_text() == plan.to_json()
    document = plan.to_dict()
    del document["provenance"]["evaluations"]
    return document


def work(path: Path) -> int:
    """What a plan took."""
    evaluated: int = Plan.load(path).provenance["evaluations"]["sub_blocks"]
    return evaluated


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name not in {"prompts.txt", "prompts"})


# Help


@pytest.mark.parametrize("command", ["search", "published", "from-order", "show", "check"])
def test_help_holds_an_example_of_the_command(run: Run, command: str) -> None:
    result = run("plan", command, "--help")
    assert (result.code, result.err) == (0, "")
    assert re.search(rf"^ +Examples?:.*\n +skrr-export plan {command} ", result.out, re.MULTILINE)


HELP = """
import sys
from skrr_export.cli import main
sys.argv = ["skrr-export", *sys.argv[1:]]
try:
    main()
except SystemExit as error:
    assert error.code == 0, error.code
print("IMPORTED", *sorted({"torch", "transformers", "safetensors", "huggingface_hub", "numpy"} & sys.modules.keys()))
"""


@pytest.mark.parametrize("command", ["search", "published"])
def test_help_answers_without_torch(command: str) -> None:
    out = run_python(HELP, "plan", command, "--help").stdout
    assert out.startswith(f"Usage: skrr-export plan {command} [OPTIONS] ")
    assert out.split("\n")[-2] == "IMPORTED"


@pytest.mark.parametrize("number", range(4))
def test_the_examples_of_the_help_are_complete(run: Run, folder: Path, t5: Path, number: int) -> None:
    """Run as they stand there, but for the names of what is not here."""
    text = run("plan", "search", "--help").out.replace("\\\n", " ")
    examples = re.findall(r"^ +(?:skrr-export|torchrun .*-m skrr_export) (plan search .*)$", text, re.MULTILINE)
    assert len(examples) == 4
    (folder / "FLUX.1-dev" / "transformer").mkdir(parents=True)
    projection(folder / "FLUX.1-dev" / "transformer" / "diffusion_pytorch_model.safetensors", 37)
    shutil.copytree(t5, folder / "FLUX.1-dev" / "text_encoder_2")
    clip_checkpoint(folder / "sdxl-base" / "text_encoder_2", tokenizer=True, max_position_embeddings=77)
    for name in ("t5-v1_1-large", "t5-v1_1-xxl"):
        shutil.copytree(t5, folder / name)
    result = run(*examples[number].split(), "--max-prompts", "2", "--method", "uniform", "--quiet")
    assert (result.code, result.out) == (0, "")
    assert re.fullmatch("(warning: 2 prompts are longer than .*\n)?", result.err)  # than here, where bytes are tokens
    plans = [name for name in names(folder) if name.endswith(".json")]
    assert plans == (["plan-0.25.json", "plan-0.33.json", "plan-0.42.json"] if number == 1 else ["plan.json"])


# Plans


@pytest.mark.parametrize("method", OURS)
@pytest.mark.parametrize("encoder", ["t5", "bert"])
def test_every_method_makes_a_plan_that_fits(
    run: Run, folder: Path, request: pytest.FixtureRequest, encoder: str, method: str
) -> None:
    checkpoint = request.getfixturevalue(encoder)
    printed = answer(run, *arguments(checkpoint, "--method", method))
    plan = Plan.load(folder / "plan.json")
    assert printed == {"file": "plan.json", **plan.to_dict()}
    assert (plan.family, plan.num_layers, plan.provenance["method"]) == (encoder, 3, method)
    checked = answer(run, "plan", "check", "plan.json", checkpoint)
    assert checked["sparsity"] >= 0.2995
    assert plan.provenance["sparsity"] == {"wanted": 0.3, "reached": pytest.approx(checked["sparsity"], rel=1e-5)}
    assert names(folder) == ["plan.json"]


@pytest.mark.parametrize(
    ("options", "sparsity"),
    [
        (["--method", "skrr"], 0.05),
        (["--method", "skrr+", "--beam", 1, "--granularity", "layer"], 0.03),
        (["--method", "finercut", "--reuse"], 0.06),
        (["--method", "shortgpt"], 0.3),
        (["--method", "uniform"], 0.5),
        (["--method", "random", "--seed", 3], 0.5),
    ],
    ids=lambda value: value[1] if isinstance(value, list) else "",
)
def test_every_method_searches_24_layers(
    run: Run, folder: Path, deep: Path, options: list[object], sparsity: float
) -> None:
    plan = Plan.from_dict(_without_file(answer(run, *arguments(deep, *options, sparsity=sparsity))))
    assert answer(run, "plan", "check", "plan.json", deep)["sparsity"] >= sparsity - 0.0005
    assert plan.num_layers == 24
    assert len(plan.provenance["order"]) == 48 - plan.counts()["keep"]


def _without_file(document: dict[str, Any]) -> dict[str, Any]:
    assert document.pop("file") == "plan.json"
    return document


@pytest.mark.usefixtures("remembered_traces")
def test_a_found_plan_is_exported(run: Run, folder: Path, t5: Path) -> None:
    found_plan = _without_file(answer(run, *arguments(t5)))
    printed = answer(run, "export", t5, "--plan", "plan.json", "-o", "out")
    assert printed["sparsity"] == pytest.approx(found_plan["provenance"]["sparsity"]["reached"], rel=1e-5)
    assert answer(run, "inspect", "out")["plan"] == found_plan
    shown = run("plan", "show", "plan.json")
    assert (shown.code, shown.err) == (0, "")
    assert f"(30.0% wanted), D {found_plan['provenance']['discrepancy']['value']:.3g} (" in shown.out


def test_what_is_said_of_a_search(run: Run, folder: Path, bert: Path) -> None:
    result = run(*arguments(bert, "--method", "skrr"))
    plan = Plan.load(folder / "plan.json")
    value, counts = plan.provenance["discrepancy"], plan.counts()
    assert result.code == 0
    assert result.out.splitlines() == [
        f"plan.json: bert, 3 layers: {counts['keep']} sub-blocks kept, {counts['re-use']} re-used, "
        f"{counts['skip']} skipped",
        f"sparsity {plan.provenance['sparsity']['reached']:.1%}, D {value['value']:.4g} ({value['prompts']:.4g} on the "
        f"prompts, {value['null']:.4g} on the empty one), on embedding",
    ]
    log = result.err.splitlines()
    assert log[0] == "skrr: dropped 0"
    assert re.fullmatch(r"skrr: dropped 1, last layers\[\d\]\.(attention|feed_forward), D \d\S*", log[1])
    assert len(log) == len(set(log))  # a line each time something else is done


def test_a_quiet_search_says_nothing(run: Run, folder: Path, bert: Path) -> None:
    result = run(*arguments(bert, "--method", "skrr", "--quiet"))
    assert (result.code, result.out, result.err) == (0, "", "")
    assert names(folder) == ["plan.json"]


def test_several_sparsities_give_several_plans(run: Run, folder: Path, bert: Path) -> None:
    line = arguments(bert, "--method", "skrr", sparsity="0.45,0.25,0.2500001")
    result = run(*line)
    files = ["plan-0.45.json", "plan-0.25.json", "plan-0.2500001.json"]
    assert result.code == 0
    assert names(folder) == sorted(files)
    assert [words.partition(":")[0] for words in result.out.splitlines()[::2]] == files
    printed = answer(run, *line)
    assert [plan.pop("file") for plan in printed["plans"]] == files
    for plan, file, sparsity in zip(printed["plans"], files, (0.45, 0.25, 0.2500001), strict=True):
        assert Plan.from_dict(plan).to_json() == (folder / file).read_text()
        assert plan["provenance"]["sparsity"]["wanted"] == sparsity
        assert answer(run, "plan", "check", file, bert)["sparsity"] >= sparsity - 0.0005


# Options


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("p.csv", 'id,caption\n1,a cat\n2,"two dogs ☃, and a bird"\n3,""\n4,x\n'),
        ("p.jsonl", '"a cat"\n{"text": "two dogs ☃, and a bird"}\n{"prompt": ""}\n\n"x"\n'),
        ("p.txt", "a cat\ntwo dogs ☃, and a bird\n\nx"),
    ],
)
def test_prompts_come_from_files_of_each_kind(run: Run, folder: Path, bert: Path, name: str, text: str) -> None:
    line = arguments(bert, "--method", "uniform")
    expected = answer(run, *line)
    assert expected["provenance"]["calibration"]["prompts"] == 4
    (folder / name).write_text(text)
    assert answer(run, *line, "--prompts", name) == expected


def test_fewer_prompts_are_taken_if_told_so(run: Run, folder: Path, bert: Path) -> None:
    line = arguments(bert, "--method", "uniform")
    fewer = answer(run, *line, "--max-prompts", 2)
    (folder / "prompts.txt").write_text("a cat\n\n")  # the first and the third of four
    assert answer(run, *line) == fewer
    assert fewer["provenance"]["calibration"]["prompts"] == 2


def test_the_pipeline_and_its_denoiser_decide_what_is_measured(
    run: Run, folder: Path, t5: Path, denoiser: Path
) -> None:
    line = arguments(t5, "--method", "finercut")
    plain = answer(run, *line)["provenance"]
    for directory in (denoiser, denoiser.parent):
        flux = answer(run, *line, "--pipeline", "flux.1", "--denoiser", directory)["provenance"]
        assert (flux["calibration"]["pipeline"], flux["calibration"]["tokens"]) == ("flux.1", 4 * 512)
        assert flux["discrepancy"]["space"] == f"context_embedder.weight [29, 37] of {denoiser.name}"
    assert plain["calibration"]["pipeline"] == "plain"
    assert plain["calibration"]["tokens"] == sum(len(prompt.encode()) + 1 for prompt in PROMPTS)
    result = run(*line, "--pipeline", "flux.1", "--denoiser", denoiser)
    assert result.out.endswith(f"on the empty one), on {flux['discrepancy']['space']}\n")


def test_reuse_can_be_asked_for_and_refused(run: Run, folder: Path, bert: Path) -> None:
    plans = {
        (method, option): Plan.from_dict(
            _without_file(answer(run, *arguments(bert, "--method", method, *option, sparsity=0.35)))
        )
        for method in ("skrr", "finercut")
        for option in ((), ("--reuse",), ("--no-reuse",))
    }
    assert plans["skrr", ()] == plans["skrr", ("--reuse",)] != plans["skrr", ("--no-reuse",)]
    assert plans["finercut", ()] == plans["finercut", ("--no-reuse",)] != plans["finercut", ("--reuse",)]
    for (_, option), plan in plans.items():
        assert (plan.provenance["settings"]["reuse"] == "nearest") == (plan.counts()["re-use"] > 0)
        assert option != ("--no-reuse",) or plan.counts()["re-use"] == 0


def test_the_other_options_reach_the_search(run: Run, folder: Path, bert: Path) -> None:
    options = ["--granularity", "layer", "--beam", 2, "--seed", 5, "--dtype", "bf16", "--cache-gb", 0.001]
    plan = answer(run, *arguments(bert, "--method", "skrr", "--device", "cpu", *options))
    settings = {"beam": 2, "granularity": "layer", "reuse": "nearest", "seed": 5, "dtype": "bf16"}
    assert plan["provenance"]["settings"] == settings
    assert len(plan["provenance"]["steps"][0]["units"]) == 2


def test_an_encoder_in_a_pipeline_and_a_tokenizer_elsewhere(run: Run, folder: Path, t5: Path) -> None:
    expected = answer(run, *arguments(t5, "--method", "random"))
    shutil.copytree(t5, folder / "pipe" / "text_encoder_2", ignore=shutil.ignore_patterns("tokenizer*"))
    (folder / "words").mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(t5 / name, folder / "words")
    line = arguments(Path("pipe"), "--method", "random", "--subfolder", "text_encoder_2", "--tokenizer", "words")
    plan = answer(run, *line)
    assert plan["layers"] == expected["layers"]
    assert plan["provenance"]["calibration"] == expected["provenance"]["calibration"]


@pytest.mark.parametrize("pipeline", ["plain", "pixart-alpha"])
@pytest.mark.parametrize("option", ["--json", "--quiet"])
def test_prompts_that_are_too_long_are_counted(run: Run, folder: Path, t5: Path, pipeline: str, option: str) -> None:
    """Not an error: the pipeline cuts them too. A token is a byte here, and the last ends the prompt."""
    limit = {"plain": 512, "pixart-alpha": 120}[pipeline]
    (folder / "prompts.txt").write_text("".join(f"{'a' * (limit + more)}\n" for more in (-2, -1, 0, 9)))
    result = run(*arguments(t5, "--method", "random", "--pipeline", pipeline, "--quiet", option))
    assert result.code == 0
    assert result.err == "warning: 2 prompts are longer than the pipeline takes; they were cut, as it would do\n"
    assert Plan.load(folder / "plan.json").provenance["calibration"]["truncated"] == 2


# Bad input


@pytest.fixture
def refuse(run: Run, folder: Path, t5: Path) -> Callable[..., str]:
    """Run a search that must be refused, and return what it says; nothing may be written, nor begun."""

    def call(*options: object, checkpoint: object = t5, **words: Any) -> str:
        before = contents(folder)
        result = run(*arguments(checkpoint, *options, **words))
        assert contents(folder) == before
        return complaint(result)

    return call


def complaint(result: Result) -> str:
    """The error of a refused command: one line on stderr and nothing else, so no progress either."""
    assert (result.code, result.out) == (2, "")
    assert re.fullmatch(r"error: .{1,600}\n", result.err)
    return result.err.removeprefix("error: ").removesuffix("\n")


@pytest.mark.parametrize(
    ("sparsity", "words"),
    [
        ("0.99", "sparsity 99.0% cannot be reached: the nearest is 74.0%"),
        ("0.3,0.9", "sparsity 90.0% cannot be reached: the nearest is 74.0%"),
        ("0", "sparsity 0 is out of range: it is a share above 0 and below 1, such as 0.42 for 42%"),
        ("1", "sparsity 1 is out of range: it is a share above 0 and below 1, such as 0.42 for 42%"),
        ("42", "sparsity 42 is out of range: it is a share above 0 and below 1, such as 0.42 for 42%"),
        ("nan", "'nan' is not a sparsity, a number above 0 and below 1 such as 0.42"),
        ("inf", "'inf' is not a sparsity, a number above 0 and below 1 such as 0.42"),
        ("-0.3", "'-0.3' is not a sparsity, a number above 0 and below 1 such as 0.42"),
        ("a half", "'a half' is not a sparsity, a number above 0 and below 1 such as 0.42"),
        ("", "'' is not a sparsity, a number above 0 and below 1 such as 0.42"),
        ("0.3,", "'' is not a sparsity, a number above 0 and below 1 such as 0.42"),
        ("0.3,0.2,0.30", "sparsity 0.3 stands twice in '0.3,0.2,0.30'"),
    ],
)
def test_a_sparsity_that_cannot_be_had(refuse: Callable[..., str], sparsity: str, words: str) -> None:
    assert refuse(sparsity=sparsity) == words


@pytest.mark.parametrize("method", OURS)
def test_a_sparsity_out_of_reach_is_noticed_by_every_method(refuse: Callable[..., str], method: str) -> None:
    assert "cannot be reached: the nearest is 74.0%" in refuse("--method", method, sparsity=0.8)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("p.txt", "", "p.txt holds no prompts"),
        ("p.csv", "", "p.csv holds no prompts"),
        ("p.csv", "prompt\n", "p.csv holds no prompts"),
        ("p.jsonl", "\n\n", "p.jsonl holds no prompts"),
        ("p.csv", "a,b\n1,2\n", "p.csv: line 1: none of the 2 columns is named prompt, caption or text"),
        ("p.csv", "prompt\na cat, red\n", "p.csv: line 2: 2 fields, where the first line has 1"),
        ("p.jsonl", '"a"\n{"id": 1}\n', "p.jsonl: line 2: not a JSON string, nor an object whose prompt"),
        ("p.jsonl", '"a"\n{\n', "p.jsonl: line 2: "),
        (None, "", "cannot read the prompts in absent.txt: No such file or directory"),
    ],
)
def test_prompts_that_are_none(
    refuse: Callable[..., str], folder: Path, name: str | None, text: str, words: str
) -> None:
    if name is not None:
        (folder / name).write_text(text)
    assert refuse("--prompts", name or "absent.txt").startswith(words)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--device", "cuda:x"], "unknown device 'cuda:x'; choose auto, cpu, cuda or cuda:N"),
        (["--device", ""], "unknown device ''; choose auto, cpu, cuda or cuda:N"),
        (["--method", "skr"], "Invalid value for '--method': 'skr' is not one of 'skrr+', 'skrr', 'finercut'"),
        (["--granularity", "head"], "Invalid value for '--granularity': 'head' is not one of"),
        (["--dtype", "fp16"], "Invalid value for '--dtype': 'fp16' is not one of 'fp32', 'bf16'"),
        (["--pipeline", "flux"], "unknown pipeline 'flux'; known: plain, flux.1, sd3"),
        (["--beam", 0], "the beam must be at least 1, not 0"),
        (["--beam", "three"], "Invalid value for '--beam': 'three' is not a valid integer"),
        (["--max-prompts", 0], "at least one prompt is needed, not 0"),
        (["--cache-gb", -1], "the cache cannot have -1.0 GB"),
        (["--cache-gb", "nan"], "the cache cannot have nan GB"),
        (["--no-reuse"], "skrr+ is about re-use; for skips alone use --method skrr --no-reuse"),
        (["--method", "shortgpt", "--granularity", "sub-block"], "shortgpt drops whole layers by its definition"),
        (["--denoiser", "absent"], "no such path: absent"),
        (["--denoiser", "."], ". holds neither diffusion_pytorch_model.safetensors nor"),
        (["--tokenizer", "absent"], "no tokenizer in absent; name its directory with --tokenizer"),
        (["--subfolder", "absent"], "no such directory: "),
        (["--colour"], "No such option '--colour'"),
    ],
)
def test_an_option_that_is_not_acceptable(refuse: Callable[..., str], options: list[object], words: str) -> None:
    assert refuse(*options).startswith(words)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_a_gpu_where_there_is_none(refuse: Callable[..., str], device: str) -> None:
    assert refuse("--device", device) == (
        f"no GPU for --device {device}: torch {torch.__version__} sees none; use --device cpu"
    )


def test_a_denoiser_for_another_encoder(refuse: Callable[..., str], folder: Path) -> None:
    path = projection(folder / "other.safetensors", 41)
    assert refuse("--denoiser", path) == (
        f"{path}: context_embedder.weight takes 41 features, the encoder gives 37; "
        "give the denoiser that this encoder feeds"
    )


def test_a_pipeline_for_another_encoder(refuse: Callable[..., str], bert: Path) -> None:
    message = refuse("--pipeline", "flux.1", checkpoint=bert)
    assert message == "pipeline 'flux.1' feeds a clip or t5 encoder; this one is bert"


@pytest.mark.parametrize("missing", ["everything", "weights", "tokenizer", "a tensor"])
def test_a_checkpoint_that_is_incomplete(refuse: Callable[..., str], folder: Path, t5: Path, missing: str) -> None:
    if missing == "everything":
        assert refuse(checkpoint="./absent") == "no such path: ./absent"
        return
    copy = Path(shutil.copytree(t5, folder / "t5"))
    if missing == "weights":
        (copy / "model.safetensors").unlink()
        assert refuse(checkpoint=copy).startswith(f"{copy} is not a checkpoint: it has neither ")
    elif missing == "tokenizer":
        for file in copy.glob("tokenizer*"):
            file.unlink()
        assert refuse(checkpoint=copy) == f"no tokenizer in {copy}; name its directory with --tokenizer"
    else:
        weights = load_file(copy / "model.safetensors")
        del weights["encoder.final_layer_norm.weight"]
        save_file(weights, copy / "model.safetensors")
        assert refuse(checkpoint=copy) == f"{copy}: the tensor 'encoder.final_layer_norm.weight' is missing"


def test_weights_that_are_not_finite(refuse: Callable[..., str], folder: Path, t5: Path) -> None:
    """Noticed by the first measurement, so there is nothing to go on with."""
    copy = Path(shutil.copytree(t5, folder / "t5"))
    weights = load_file(copy / "model.safetensors")
    weights["shared.weight"][:] = float("nan")
    save_file(weights, copy / "model.safetensors")
    message = refuse("--quiet", checkpoint=copy)
    assert message == "the dense encoder's embeddings are not finite in this precision; try --dtype fp32"


@pytest.fixture
def no_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that takes long may begin; not even the checkpoint is opened."""

    def begin(*_: object, **__: object) -> None:
        raise AssertionError("the search has begun")

    monkeypatch.setattr("skrr_export.searching.open_checkpoint", begin)


@pytest.mark.usefixtures("no_search")
@pytest.mark.parametrize(
    ("output", "words"),
    [
        ("absent/plan.json", "No such file or directory"),
        ("file/plan.json", "Not a directory"),
        ("directory", "Is a directory"),
        (".", "Is a directory"),
        ("..", "Is a directory"),
        ("/", "Is a directory"),
        ("", "Is a directory"),
        ("link/plan.json", "No such file or directory"),
    ],
)
@pytest.mark.parametrize("sparsity", ["0.3", "0.3,0.2"])
def test_an_output_that_cannot_be_written_is_noticed_first(
    refuse: Callable[..., str], folder: Path, output: str, words: str, sparsity: str
) -> None:
    (folder / "file").write_text("a file")
    (folder / "directory").mkdir()
    (folder / "link").symlink_to("nowhere")
    assert refuse("-o", output, sparsity=sparsity) == f"cannot write {Path(output)}: {words}"


@pytest.mark.usefixtures("no_search")
def test_one_of_several_outputs_that_cannot_be_written(refuse: Callable[..., str], folder: Path) -> None:
    (folder / "plan-0.2.json").mkdir()
    assert refuse(sparsity="0.3,0.2") == "cannot write plan-0.2.json: Is a directory"


@pytest.mark.usefixtures("no_search")
@pytest.mark.skipif(os.geteuid() == 0 and shutil.which("mount") is None, reason="root may write anywhere")
def test_an_output_on_a_disk_that_is_read_only(refuse: Callable[..., str], folder: Path) -> None:
    with mounted(folder / "disk", "ro"):
        assert refuse("-o", "disk/plan.json") == "cannot write disk/plan.json: Read-only file system"


@contextmanager
def mounted(disk: Path, options: str) -> Iterator[None]:
    """A file system of its own."""
    disk.mkdir()
    try:
        mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(disk)]
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"a file system cannot be mounted here: {error}")
    try:
        yield
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_the_plan_goes_where_it_is_sent(run: Run, folder: Path, bert: Path) -> None:
    """Through a link, and into a device that must not be replaced by a file."""
    (folder / "there").mkdir()
    (folder / "there" / "plan.json").write_text("old")
    (folder / "link").symlink_to("there/plan.json")
    assert run(*arguments(bert, "--method", "uniform", "--quiet"), "-o", "link").code == 0
    assert (folder / "link").is_symlink()
    assert found(folder / "there" / "plan.json")["provenance"]["method"] == "uniform"
    os.mkfifo(folder / "pipe")
    reader = os.open(folder / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    try:
        assert run(*arguments(bert, "--method", "uniform", "--quiet"), "-o", "pipe").code == 0
        assert os.read(reader, 1 << 20).decode() == (folder / "there" / "plan.json").read_text()
    finally:
        os.close(reader)


# Interruptions


@contextmanager
def interrupted(after: int, error: type[BaseException] = KeyboardInterrupt) -> Iterator[None]:
    """End the search as soon as its journal holds so many decisions more."""
    append, left = Journal._append, after + 1  # the first line says what the search is about

    def count(self: Journal, record: dict[str, Any]) -> None:
        nonlocal left
        append(self, record)
        left -= "name" in record or after + 1 == left
        if left <= 0:
            raise error

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Journal, "_append", count)
        yield


@contextmanager
def counted() -> Iterator[list[bytes]]:
    """Everything that searches put into their journals, line by line."""
    append, lines = Journal._append, []

    def keep(self: Journal, record: dict[str, Any]) -> None:
        append(self, record)
        lines.append(json.dumps(record).encode() + b"\n")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Journal, "_append", keep)
        yield lines


def stop(run: Run, after: int, *line: object) -> bytes:
    """Interrupt a search after so many decisions; returns its journal."""
    with interrupted(after):
        result = run(*line)
    assert (result.code, result.out) == (130, "")
    assert [words for words in result.err.splitlines() if words][-2:] == HINT
    return Path(JOURNAL).read_bytes()


CASES: dict[str, tuple[str, list[object], float]] = {
    "skrr+": ("bert", ["--method", "skrr+"], 0.45),
    "skrr": ("t5", ["--method", "skrr"], 0.45),
    "finercut": ("t5", ["--method", "finercut", "--reuse"], 0.3),
    "shortgpt": ("t5", ["--method", "shortgpt"], 0.3),
    "uniform": ("bert", ["--method", "uniform", "--reuse"], 0.3),
}


@pytest.mark.parametrize("case", CASES)
def test_a_search_goes_on_from_any_decision(run: Run, folder: Path, request: pytest.FixtureRequest, case: str) -> None:
    """To the plan it would have found, without taking a decision again."""
    encoder, options, sparsity = CASES[case]
    line = [*arguments(request.getfixturevalue(encoder), *options, "--quiet", sparsity=sparsity)]
    with counted() as lines:
        assert run(*line).code == 0
    whole, effort = found(folder / "plan.json"), work(folder / "plan.json")
    total = len(lines) - 1
    for after in sorted({1, 2, total // 2, total - 1, total}):
        (folder / "plan.json").unlink()
        journal = stop(run, after, *line)
        assert names(folder) == [JOURNAL]
        assert journal == b"".join(lines[: after + 1])
        with counted() as rest:
            assert run(*line, "--resume").code == 0
        assert rest == lines[after + 1 :]
        assert names(folder) == ["plan.json"]
        assert found(folder / "plan.json") == whole
        assert work(folder / "plan.json") <= effort
    assert work(folder / "plan.json") < effort / 2


def test_a_search_can_be_interrupted_again_and_again(run: Run, folder: Path, bert: Path) -> None:
    line = [
        *arguments(bert, "--method", "skrr", sparsity="0.45,0.3"),
        "--resume",
    ]  # which may stand there from the start
    assert run(*line).code == 0
    whole = [found(folder / f"plan-{sparsity}.json") for sparsity in (0.45, 0.3)]
    for sparsity in (0.45, 0.3):
        (folder / f"plan-{sparsity}.json").unlink()
    journal, times = stop(run, 1, *line), 1
    while True:
        with interrupted(1):
            result = run(*line)
        if result.code == 0:
            break
        grown = (folder / JOURNAL).read_bytes()
        assert grown.startswith(journal)
        assert len(grown) > len(journal)
        journal, times = grown, times + 1
    assert times > 5
    assert names(folder) == ["plan-0.3.json", "plan-0.45.json"]
    assert [found(folder / f"plan-{sparsity}.json") for sparsity in (0.45, 0.3)] == whole


def test_an_old_plan_stays_until_the_new_one_is_whole(run: Run, folder: Path, bert: Path) -> None:
    (folder / "plan.json").write_text("old")
    line = arguments(bert, "--method", "skrr", "--quiet")
    stop(run, 2, *line)
    assert (folder / "plan.json").read_text() == "old"
    assert run(*line, "--resume").code == 0
    assert found(folder / "plan.json")
    assert names(folder) == ["plan.json"]


def _interrupt(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("moment", ["at once", "while it measures"])
def test_a_search_that_was_interrupted_before_it_decided_anything_leaves_nothing(
    run: Run, folder: Path, bert: Path, moment: str
) -> None:
    with interrupted(0) if moment == "at once" else pytest.MonkeyPatch.context() as patch:
        if patch is not None:
            patch.setattr("skrr_export.search.discrepancy.Discrepancy.shares", _interrupt)
        result = run(*arguments(bert, "--quiet"))
    assert (result.code, result.out, result.err.strip()) == (130, "", "interrupted")
    assert names(folder) == []


def test_a_search_that_was_interrupted_is_not_begun_anew_unasked(run: Run, folder: Path, bert: Path) -> None:
    line = arguments(bert, "--method", "skrr", "--quiet")
    journal = stop(run, 2, *line)
    message = complaint(run(*line))
    assert message == f"{JOURNAL} is the journal of an unfinished search: --resume goes on with it, or remove it"
    assert (folder / JOURNAL).read_bytes() == journal
    (folder / JOURNAL).unlink()
    assert run(*line).code == 0


OTHERS: dict[str, tuple[list[object], str]] = {
    "prompts": ([], r'its prompts is "[0-9a-f]{56}\.\.\., this one\'s "[0-9a-f]{56}\.\.\.'),
    "checkpoint": ([], r'its checkpoint is "[0-9a-f]{56}\.\.\., this one\'s "[0-9a-f]{56}\.\.\.'),
    "denoiser": (["--denoiser", "."], r'its denoiser is null, this one\'s "[0-9a-f]{56}\.\.\.'),
    "sparsity": (["--sparsity", "0.4"], r"its sparsity is \[0\.3\], this one's \[0\.4\]"),
    "method": (["--method", "finercut", "--reuse"], r'its method is "skrr", this one\'s "finercut"'),
    "pipeline": (["--pipeline", "flux.1", "--max-prompts", "1"], r"its attention mask is true, this one's false"),
    "beam": (["--beam", "2"], r"its beam is 3, this one's 2"),
    "granularity": (["--granularity", "layer"], r'its granularity is "sub-block", this one\'s "layer"'),
    "re-use": (["--no-reuse"], r"its re-use is true, this one's false"),
    "dtype": (["--dtype", "bf16"], r'its dtype is "fp32", this one\'s "bf16"'),
    "seed": (["--seed", "1"], r"its seed is 0, this one's 1"),
}


@pytest.mark.usefixtures("denoiser")
@pytest.mark.parametrize("other", OTHERS)
def test_the_journal_of_another_search_is_left_alone(run: Run, folder: Path, t5: Path, other: str) -> None:
    checkpoint = Path(shutil.copytree(t5, folder / "t5"))
    line = arguments(checkpoint, "--method", "skrr", "--quiet")
    journal = stop(run, 2, *line)
    if other == "prompts":
        (folder / "prompts.txt").write_text("another\n")
    elif other == "checkpoint":
        t5_checkpoint(checkpoint, tokenizer=True, seed=1)
    options, words = OTHERS[other]
    message = complaint(run(*line, *options, "--resume"))
    assert re.fullmatch(
        f"{re.escape(JOURNAL)} is the journal of another search: {words}; give another output, or remove it", message
    )
    assert (folder / JOURNAL).read_bytes() == journal


def test_what_decides_nothing_may_change_meanwhile(run: Run, folder: Path, t5: Path) -> None:
    """Where the files lie, how they are named, how much memory there is, and who listens."""
    assert run(*arguments(t5, "--method", "skrr", "--quiet")).code == 0
    whole = found(folder / "plan.json")
    (folder / "plan.json").unlink()
    stop(run, 2, *arguments(t5, "--method", "skrr"))
    shutil.copytree(t5, folder / "moved" / t5.name)
    (folder / "p.jsonl").write_text("".join(json.dumps(prompt) + "\n" for prompt in PROMPTS))
    line = arguments(folder / "moved" / t5.name, "--method", "skrr", "--prompts", "p.jsonl", "--cache-gb", 0)
    assert answer(run, *line, "--device", "cpu", "--resume")["layers"] == whole["layers"]
    assert found(folder / "plan.json") == whole


def test_a_journal_that_is_damaged(run: Run, folder: Path, bert: Path) -> None:
    line = arguments(bert, "--method", "skrr", "--quiet")
    lines = stop(run, 3, *line).splitlines(keepends=True)
    damaged = b"".join([*lines[:2], lines[2].replace(b'"name"', b'"mane"'), *lines[3:]])
    (folder / JOURNAL).write_bytes(damaged)
    assert complaint(run(*line, "--resume")) == f"{JOURNAL} is damaged in line 3; remove it to search anew"
    assert (folder / JOURNAL).read_bytes() == damaged
    (folder / JOURNAL).write_text("[]\n")
    assert complaint(run(*line, "--resume")) == f"{JOURNAL} is not the journal of a search"


@pytest.mark.parametrize("options", [[], ["--resume"]])
def test_a_journal_that_is_a_directory(refuse: Callable[..., str], folder: Path, options: list[str]) -> None:
    (folder / JOURNAL).mkdir()
    message = refuse(*options)
    assert message == f"{JOURNAL} is not a file, and a search keeps its journal there; give another output"


def test_a_journal_whose_name_is_too_long(refuse: Callable[..., str]) -> None:
    name = "x" * 250
    assert refuse("-o", name) == f"cannot write {name}.journal: File name too long"


# A full disk


def test_a_disk_that_fills_up_costs_nothing_that_was_decided(run: Run, folder: Path, bert: Path) -> None:
    line = arguments(bert, "--method", "skrr", "--quiet", sparsity=0.45)
    with counted() as lines:
        assert run(*line).code == 0
    whole = found(folder / "plan.json")
    (folder / "plan.json").write_text("old")
    limit = len(b"".join(lines[:4])) + 10
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        result = run(*line)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert complaint(result) == f"cannot write {JOURNAL}: File too large; nothing was changed"
    assert (folder / "plan.json").read_text() == "old"
    assert (folder / JOURNAL).read_bytes() == b"".join(lines)[:limit]
    with counted() as rest:
        assert run(*line, "--resume").code == 0
    assert rest == lines[4:]
    assert found(folder / "plan.json") == whole
    assert names(folder) == ["plan.json"]


def test_a_disk_that_is_full_at_the_end_keeps_the_journal(run: Run, folder: Path, bert: Path) -> None:
    """Hours of search are in it, and the plan is written once there is room."""
    line = arguments(bert, "--method", "uniform", "--quiet")
    assert run(*line).code == 0
    whole = found(folder / "plan.json")
    with mounted(folder / "disk", "size=8k"):
        (folder / "disk" / "full").write_bytes(bytes(4096))
        message = complaint(run(*line, "-o", "disk/plan.json"))
        assert message == "cannot write disk/plan.json: No space left on device; nothing was changed"
        assert sorted(path.name for path in (folder / "disk").iterdir()) == ["full", "plan.json.journal"]
        (folder / "disk" / "full").unlink()
        with counted() as rest:
            assert run(*line, "-o", "disk/plan.json", "--resume").code == 0
        assert rest == []
        assert found(folder / "disk" / "plan.json") == whole
        assert [path.name for path in (folder / "disk").iterdir()] == ["plan.json"]


# A whole process, that can be stopped

SEARCH = """
import json, os, sys
from skrr_export.cli import main
from skrr_export.search.journal import Journal

append, left = Journal._append, 4

def stop(self, record):
    global left
    if left == 0:
        self._file.write(json.dumps(record).encode()[:-5])  # dies in the middle of a line
        self._file.flush()
        os.write(int(announce), b"stopped")
        os.read(int(wait), 1)  # until the parent closes its end, which it never does
    append(self, record)
    left -= 1

announce, wait, *arguments = sys.argv[1:]
Journal._append = stop
sys.argv = ["skrr-export", *arguments]
main()
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_process_that_is_killed_while_it_writes_leaves_a_journal_to_go_on_with(
    run: Run, folder: Path, bert: Path, number: int
) -> None:
    line = [*arguments(bert, "--method", "skrr", "--quiet", sparsity=0.45)]
    with counted() as lines:
        assert run(*line).code == 0
    whole, effort = found(folder / "plan.json"), work(folder / "plan.json")
    (folder / "plan.json").unlink()
    ready, announce = os.pipe()
    wait, release = os.pipe()
    command = [sys.executable, "-c", SEARCH, str(announce), str(wait), *map(str, line)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, pass_fds=(announce, wait)
    )
    os.close(announce)
    try:
        assert os.read(ready, 7) == b"stopped", process.communicate()[1]
        process.send_signal(number)
        out, err = process.communicate(timeout=300)
    finally:
        process.kill()
        process.communicate()
        for descriptor in (ready, wait, release):
            os.close(descriptor)
    words = [line for line in err.splitlines() if line]
    assert (process.returncode, out, words) == ((-9, "", []) if number == signal.SIGKILL else (130, "", HINT))
    assert names(folder) == [JOURNAL]
    journal = (folder / JOURNAL).read_bytes()
    assert journal == b"".join(lines[:4]) + lines[4][:-6]
    with counted() as rest:
        assert run(*line, "--resume").code == 0
    assert rest == lines[4:]
    assert found(folder / "plan.json") == whole
    assert work(folder / "plan.json") < effort
    assert names(folder) == ["plan.json"]


# Several processes


def torchrun(folder: Path, *line: object, limit: int | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command in two processes, in a folder, where no file may exceed `limit` bytes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    if limit is not None:
        command = ["prlimit", f"--fsize={limit}", *command]
    return subprocess.run(
        [*command, "-m", "skrr_export", *map(str, line)],
        cwd=folder,
        env={name: value for name, value in os.environ.items() if name not in {"RANK", "WORLD_SIZE"}},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


LONG = [f"{number} {'a long prompt ' * (12 + number)}" for number in range(7)]
"""Of which few fit a chunk, so that each process has several."""


def test_two_processes_find_the_plan_of_one(run: Run, folder: Path, t5: Path) -> None:
    """By `skrr+`, which holds every other search; one of the two writes and speaks. They go on with one's journal."""
    (folder / "prompts.txt").write_text("\n".join(LONG))
    line = arguments(t5, "--method", "skrr+", sparsity="0.3,0.45")
    printed = answer(run, *line)["plans"]
    for file in ("plan-0.3.json", "plan-0.45.json"):
        (folder / file).unlink()
    stop(run, 2, *line)  # of two dozen decisions
    process = torchrun(folder, *line, "--resume", "--json")
    assert process.returncode == 0, process.stderr
    assert names(folder) == ["plan-0.3.json", "plan-0.45.json"]
    shared = json.loads(process.stdout)["plans"]  # one document, not two
    for one, two in zip(printed, shared, strict=True):
        _same(one, two)
    log = [words for words in process.stderr.splitlines() if words.startswith("skrr")]
    assert len(log) == len(set(log)) > 5


def _same(one: dict[str, Any], two: dict[str, Any]) -> None:
    """The same plan, found on the same numbers; only which candidates were abandoned, and how early, may differ."""
    assert one["layers"] == two["layers"]
    ours, theirs = one["provenance"], two["provenance"]
    for name in ("order", "calibration", "checkpoint", "settings", "sparsity", "method"):
        assert ours[name] == theirs[name]
    assert ours["discrepancy"].pop("space") == theirs["discrepancy"].pop("space")
    assert ours["discrepancy"] == pytest.approx(theirs["discrepancy"], rel=1e-6)
    for ours_curve, theirs_curve in zip(ours["curves"], theirs["curves"], strict=True):
        assert ours_curve["name"] == theirs_curve["name"]
        for a, b in zip(ours_curve["points"], theirs_curve["points"], strict=True):
            assert a == pytest.approx(b, rel=1e-6)
    assert [step["units"] for step in ours["steps"]] == [step["units"] for step in theirs["steps"]]
    assert [(reuse["unit"], reuse["source"]) for reuse in ours["reuses"]] == [
        (reuse["unit"], reuse["source"]) for reuse in theirs["reuses"]
    ]


@pytest.mark.skipif(shutil.which("prlimit") is None, reason="there is no prlimit here")
def test_two_processes_end_together(folder: Path, t5: Path) -> None:
    """Of what only the one that writes can meet, and the other must not wait for it."""
    line = arguments(t5, "--method", "skrr", "--quiet", sparsity=0.45)
    process = torchrun(folder, *line, limit=1000)
    assert (process.returncode, process.stdout) == (1, "")  # torchrun's own code, whatever its processes say
    errors = [words for words in process.stderr.splitlines() if words.startswith("error: ")]
    assert f"error: cannot write {JOURNAL}: File too large; nothing was changed" in errors
    assert "exitcode  : 2" in process.stderr
    assert "]: Traceback" not in process.stderr  # as of `[rank1]: Traceback`; torchrun has one of its own
    assert names(folder) == [JOURNAL]
    assert (folder / JOURNAL).read_bytes().count(b"\n") >= 2  # with which the search goes on
