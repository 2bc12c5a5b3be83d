"""`plan published`: the paper's orders as plans, and re-use decided on a checkpoint's weights."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from skrr_export.outputs import Output
from skrr_export.pipelines import PRESETS, Preset
from skrr_export.plan import Plan
from skrr_export.published import PUBLISHED, SOURCE, XXL
from tests.bundles import run_python, soften
from tests.checkpoints import contents, t5_checkpoint
from tests.cli.conftest import Run
from tests.cli.test_plan_search import HINT, answer, complaint, counted, found, interrupted, names, work
from tests.test_searching import TOLERANCE, ByHand, Encoder

NAMES = sorted(PUBLISHED)
TINY = {
    "num_layers": 24,
    "hidden_size": 16,
    "num_heads": 2,
    "head_size": 5,
    "intermediate_size": 19,
    "gated": True,
    "vocab_size": 307,
    "num_buckets": 8,
}
"""What stands for T5-XXL's dimensions where a checkpoint is needed; as many layers, little else."""
PROMPTS = ["a cat", "two dogs ☃, and a bird", ""]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a test works, with prompts in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS) + "\n")
    return tmp_path


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the dimensions `TINY`."""
    dimensions = {"d_model": 16, "num_heads": 2, "d_kv": 5, "d_ff": 19}
    directory = tmp_path_factory.mktemp("published") / "t5"
    return soften(t5_checkpoint(directory, layers=24, tokenizer=True, **dimensions))


@pytest.fixture
def xxl(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint that passes for T5-XXL."""
    assert TINY.keys() == XXL.keys()
    monkeypatch.setattr("skrr_export.published.XXL", TINY)
    return tiny


def published(name: str, *options: object, sparsity: object = 0.1) -> list[object]:
    """A command whose plan goes to `plan.json` in the working directory."""
    return ["plan", "published", name, "--sparsity", sparsity, "-o", "plan.json", *options]


def refilled(name: str, checkpoint: Path, *options: object, sparsity: object = 0.1) -> list[object]:
    """The same with re-use, on a few prompts."""
    calibration = ["--checkpoint", checkpoint, "--prompts", "prompts.txt", "--pipeline", "plain", "--quiet"]
    return published(name, *calibration, *options, sparsity=sparsity)


# The list


def test_the_list_holds_every_order(run: Run) -> None:
    printed = answer(run, "plan", "published", "--list")
    assert printed["source"] == SOURCE
    assert {name: order["units"] for name, order in printed["orders"].items()} == {
        name: list(order.units) for name, order in PUBLISHED.items()
    }
    flux = printed["orders"]["flux.1-dev"]
    assert (flux["denoiser"], flux["pipeline"]) == ("FLUX.1-dev", "flux.1")
    assert [f"{sparsity:.1%}" for sparsity in flux["sparsities"][:21:20]] == ["1.4%", "43.2%"]
    assert len(flux["sparsities"]) == 24


def test_the_list_for_people(run: Run) -> None:
    result = run("plan", "published", "--list")
    assert (result.code, result.err) == (0, "")
    text = " ".join(re.sub("[│┃]", " ", result.out).split())
    for name, order in PUBLISHED.items():
        assert f" {name} {order.pipeline} 24 " in text
    assert "46, 45, 5, 6, 11, 20, 19, 22, 23" in text
    assert result.out.endswith(f"{SOURCE}\n")


def test_the_list_needs_nothing_heavy() -> None:
    code = """
import sys
from skrr_export.cli import main
sys.argv = ["skrr-export", *sys.argv[1:]]
try:
    main()
except SystemExit as error:
    assert error.code == 0, error.code
print("IMPORTED", *sorted({"torch", "transformers", "numpy", "huggingface_hub"} & sys.modules.keys()))
"""
    assert run_python(code, "plan", "published", "--list", "--json").stdout.endswith("\nIMPORTED\n")


# Without a checkpoint


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("sparsity", [0.419, 0.001, 0.474])
def test_an_order_becomes_a_plan_of_skips(run: Run, folder: Path, name: str, sparsity: float) -> None:
    order = PUBLISHED[name]
    printed = answer(run, *published(name, sparsity=sparsity))
    assert printed.pop("file") == "plan.json"
    plan = Plan.load(folder / "plan.json")
    assert printed == plan.to_dict()
    used = len(plan.provenance["order"])
    assert {0.419: used == 21, 0.001: used == 1, 0.474: used > 21}[sparsity]
    assert plan == Plan.from_order("t5", 24, order.units, drop=used)
    reached = answer(run, "plan", "published", "--list")["orders"][name]["sparsities"]
    assert reached[used - 1] >= sparsity - 0.0005 > (reached[used - 2] if used > 1 else 0)
    assert plan.provenance == {
        "method": "published",
        "source": f"{SOURCE}: {order.denoiser}",
        "order": list(order.units[:used]),
        "sparsity": {"wanted": sparsity, "reached": reached[used - 1]},
    }
    assert names(folder) == ["plan.json"]


def test_what_is_said_of_a_plan_of_skips(run: Run, folder: Path) -> None:
    result = run(*published("flux.1-dev", sparsity=0.419))
    assert (result.code, result.err) == (0, "")
    assert result.out == "plan.json: t5, 24 layers: 27 sub-blocks kept, 0 re-used, 21 skipped, sparsity 43.2%\n"
    result = run(*published("flux.1-dev", "--quiet", sparsity=0.419))
    assert (result.code, result.out, result.err) == (0, "", "")


# With one


def test_reuse_is_that_of_algorithm_2(run: Run, folder: Path, xxl: Path) -> None:
    """Followed step by step on transformers: first dropped first, left before right, only what makes D smaller."""
    plan = answer(run, *refilled("flux.1-dev", xxl, sparsity=0.12))
    order = list(PUBLISHED["flux.1-dev"].units[:7])
    assert plan["provenance"]["order"] == order
    encoder, by_hand = Encoder(xxl, 24, 0, ()), ByHand(prompts=tuple(PROMPTS))
    runs: dict[int, int | None] = {unit: None if unit in order else unit for unit in range(48)}

    def value(runs: dict[int, int | None]) -> float:
        layers = [None if runs[unit] is None else runs[unit] // 2 for unit in range(48)]
        return by_hand.value(encoder, list(zip(layers[::2], layers[1::2], strict=True)))

    skips = best = value(runs)
    for unit in order:
        kept = [other for other in range(unit % 2, 48, 2) if other not in order]
        nearest = [other for other in kept if other < unit][-1:] + [other for other in kept if other > unit][:1]
        for tried, other in [(value({**runs, unit: other}), other) for other in nearest]:
            if tried < best:
                best, runs[unit] = tried, other
    layers = [None if runs[unit] is None else runs[unit] // 2 for unit in range(48)]
    assert [layer["attention"] for layer in plan["layers"]] == layers[::2]
    assert [layer["feed_forward"] for layer in plan["layers"]] == layers[1::2]
    sides = {runs[unit] > unit for unit in order if runs[unit] is not None}
    assert sides == {False, True}  # or nothing would be shown
    numbers = plan["provenance"]
    assert numbers["discrepancy"]["value"] == pytest.approx(best, rel=TOLERANCE)
    assert [curve["name"] for curve in numbers["curves"]] == ["skip", "skip + re-use"]
    assert numbers["curves"][0]["points"][0][1] == pytest.approx(skips, rel=TOLERANCE)
    assert best < skips
    assert numbers["method"] == "published"
    assert numbers["source"] == f"{SOURCE}: FLUX.1-dev"
    checked = answer(run, "plan", "check", "plan.json", xxl)
    assert numbers["sparsity"] == {"wanted": 0.12, "reached": pytest.approx(checked["sparsity"], rel=1e-5)}


@pytest.mark.parametrize("name", NAMES)
def test_every_order_gains_from_reuse_and_more_from_a_wider_one(run: Run, folder: Path, xxl: Path, name: str) -> None:
    (folder / "prompts.txt").write_text("a cat\n")
    values = []
    for method in ("skrr", "skrr+"):
        numbers = answer(run, *refilled(name, xxl, "--method", method, sparsity=0.04))["provenance"]
        skips, refilled_ = numbers["curves"]
        values += [skips["points"][0][1], refilled_["points"][-1][1]]
        assert values[-1] == numbers["discrepancy"]["value"]
    assert values[0] == values[2] > values[1] > values[3]
    plan = Plan.load(folder / "plan.json")
    for reuse in plan.provenance["reuses"]:
        assert reuse["unit"] in plan.provenance["order"]
        assert reuse["source"] not in plan.provenance["order"]


def test_the_orders_own_pipeline_is_taken_unless_another_is_named(run: Run, folder: Path, xxl: Path) -> None:
    (folder / "prompts.txt").write_text("a cat\n")
    line = published("sd3", "--checkpoint", xxl, "--prompts", "prompts.txt", sparsity=0.02)
    numbers = answer(run, *line)["provenance"]
    assert (numbers["calibration"]["pipeline"], numbers["calibration"]["tokens"]) == ("sd3", 256)
    numbers = answer(run, *line, "--pipeline", "plain")["provenance"]
    assert (numbers["calibration"]["pipeline"], numbers["calibration"]["tokens"]) == ("plain", 6)


def test_a_published_order_of_which_some_is_gone_already(
    run: Run,
    folder: Path,
    xxl: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its units that do not run can neither be dropped nor re-used."""
    outputs = (Output("hidden_states", (-7,)),)
    short = Preset(name="short", max_length=40, padding="longest", masked=True, reads_padding=False, outputs=outputs)
    monkeypatch.setitem(PRESETS, "short", short)
    options = ["--checkpoint", xxl, "--prompts", "prompts.txt", "--pipeline", "short", "-o", "plan.json"]
    plan = answer(run, "plan", "published", "sd3", "--sparsity", 0.36, *options)
    runs = [unit for unit in PUBLISHED["sd3"].units if unit < 36]
    order = plan["provenance"]["order"]
    assert order == runs[: len(order)]
    assert len(order) > 1
    assert plan["layers"][18:] == [{"attention": layer, "feed_forward": layer} for layer in range(18, 24)]
    checked = answer(run, "plan", "check", "plan.json", xxl, "--pipeline", "short")
    assert plan["provenance"]["sparsity"]["reached"] == pytest.approx(checked["sparsity"], rel=1e-5)


def test_several_sparsities_give_several_plans(run: Run, folder: Path, xxl: Path) -> None:
    printed = answer(run, *refilled("sd3", xxl, sparsity="0.1,0.05"))["plans"]
    assert names(folder) == ["plan-0.05.json", "plan-0.1.json"]
    assert [plan["provenance"]["sparsity"]["wanted"] for plan in printed] == [0.1, 0.05]
    alone = answer(run, *refilled("sd3", xxl, sparsity=0.05))
    assert alone["layers"] == printed[1]["layers"]


def test_reuse_goes_on_after_an_interruption(run: Run, folder: Path, xxl: Path) -> None:
    line = refilled("sd3", xxl)
    with counted() as lines:
        assert run(*line).code == 0
    whole, effort = found(folder / "plan.json"), work(folder / "plan.json")
    (folder / "plan.json").unlink()
    with interrupted(4):
        result = run(*line)
    assert (result.code, [words for words in result.err.splitlines() if words]) == (130, HINT)
    assert names(folder) == ["plan.json.journal"]
    message = complaint(run(*refilled("pixart-sigma", xxl, "--resume")))
    assert re.search(r'its order is "sd3", this one\'s "pixart-sigma"; give another output, or remove it$', message)
    options = ["--prompts", "prompts.txt", "--sparsity", 0.1, "--method", "skrr", "-o", "plan.json"]
    message = complaint(run("plan", "search", xxl, *options, "--resume"))
    assert 'its order is "sd3", this one\'s null' in message
    with counted() as rest:
        assert run(*line, "--resume").code == 0
    assert rest == lines[5:]
    assert found(folder / "plan.json") == whole
    assert work(folder / "plan.json") < effort
    assert names(folder) == ["plan.json"]


# Bad input


@pytest.fixture
def refuse(run: Run, folder: Path) -> Callable[..., str]:
    """Run `plan published` so that it must be refused, and return what it says; nothing may be written."""

    def call(*arguments: object) -> str:
        before = contents(folder)
        result = run("plan", "published", *arguments)
        assert contents(folder) == before
        return complaint(result)

    return call


@pytest.mark.parametrize("checkpoint", [[], ["--checkpoint", "/absent"]])
@pytest.mark.parametrize(
    ("name", "sparsity", "words"),
    [
        (
            "flux.1",
            "0.4",
            "unknown published order 'flux.1'; did you mean 'flux.1-dev'? known: pixart-sigma, sd3, flux",
        ),
        ("hunyuan", "0.4", "unknown published order 'hunyuan'; known: pixart-sigma, sd3, flux.1-dev"),
        (
            "sd3",
            "0.6",
            "published order 'sd3', 24 units: sparsity 60.0% cannot be reached: the nearest is 48.6%",
        ),
        ("sd3", "0", "sparsity 0 is out of range: it is a share above 0 and below 1, such as 0.42 for 42%"),
        ("sd3", "nan", "'nan' is not a sparsity, a number above 0 and below 1 such as 0.42"),
        ("sd3", "0.3,0.3", "sparsity 0.3 stands twice in '0.3,0.3'"),
    ],
)
def test_an_order_or_a_sparsity_that_there_is_not(
    refuse: Callable[..., str], name: str, sparsity: str, words: str, checkpoint: list[str]
) -> None:
    """Said before the checkpoint is opened."""
    assert refuse(name, "--sparsity", sparsity, "-o", "plan.json", *checkpoint).startswith(words)


@pytest.mark.parametrize(
    "arguments", [[], ["sd3"], ["sd3", "-o", "plan.json"], ["sd3", "--sparsity", "0.4"], ["--sparsity", "0.4"]]
)
def test_arguments_that_are_missing(refuse: Callable[..., str], arguments: list[str]) -> None:
    assert refuse(*arguments) == (
        "NAME, --sparsity and -o are needed, or --list (see 'skrr-export plan published --help')"
    )


@pytest.mark.parametrize(
    "option",
    [
        ["--denoiser", "x"],
        ["--prompts", "prompts.txt"],
        ["--max-prompts", "3"],
        ["--method", "skrr+"],
        ["--pipeline", "sd3"],
        ["--device", "cpu"],
        ["--dtype", "bf16"],
        ["--cache-gb", "1"],
        ["--subfolder", "x"],
        ["--tokenizer", "x"],
        ["--resume"],
    ],
    ids=lambda option: option[0],
)
def test_options_that_would_do_nothing(refuse: Callable[..., str], option: list[str]) -> None:
    """Whoever names a denoiser believes that it counts."""
    message = refuse("sd3", "--sparsity", "0.4", "-o", "plan.json", *option)
    assert message.startswith(f"{option[0]} is about re-use, which is decided on weights: give --checkpoint too")


def test_several_sparsities_without_a_checkpoint(refuse: Callable[..., str]) -> None:
    message = refuse("sd3", "--sparsity", "0.3,0.4", "-o", "plan.json")
    assert message == "without --checkpoint one --sparsity makes one plan; give one at a time"


@pytest.mark.parametrize(
    ("output", "words"), [("absent/plan.json", "No such file or directory"), (".", "Is a directory")]
)
def test_an_output_that_cannot_be_written(refuse: Callable[..., str], xxl: Path, output: str, words: str) -> None:
    for checkpoint in ([], ["--checkpoint", xxl]):
        message = refuse("sd3", "--sparsity", "0.4", "-o", output, *checkpoint)
        assert re.fullmatch(rf"cannot write {re.escape(output)}(/\S+)?: {words}", message)


def test_an_encoder_that_the_orders_are_not_for(
    refuse: Callable[..., str], t5: Path, bert: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["sd3", "--sparsity", "0.4", "-o", "plan.json", "--checkpoint"]
    end = "; find an order for it with `plan search`"
    begin = "the paper's orders are for T5-XXL only, and this encoder "
    assert refuse(*arguments, t5) == f"{begin}has num_layers 3, not 24{end}"
    assert refuse(*arguments, tiny) == f"{begin}has hidden_size 16, not 4096{end}"
    assert refuse(*arguments, bert, "--pipeline", "plain") == f"{begin}is bert{end}"
    monkeypatch.setattr("skrr_export.published.XXL", {**TINY, "intermediate_size": 20})
    assert refuse(*arguments, tiny) == f"{begin}has intermediate_size 19, not 20{end}"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--method", "finercut"], "Invalid value for '--method': 'finercut' is not one of 'skrr', 'skrr+'"),
        (["--pipeline", "flux"], "unknown pipeline 'flux'; known: plain, flux.1"),
        (["--prompts", "absent.txt"], "cannot read the prompts in absent.txt: No such file or directory"),
        (["--denoiser", "absent"], "no such path: absent"),
        (["--max-prompts", "0"], "at least one prompt is needed, not 0"),
        (["--device", "tpu"], "unknown device 'tpu'; choose auto, cpu, cuda or cuda:N"),
        (["--checkpoint", "/absent"], "no such path: /absent"),
    ],
)
def test_an_option_that_is_not_acceptable(
    refuse: Callable[..., str], xxl: Path, options: list[str], words: str
) -> None:
    line = ["sd3", "--sparsity", "0.1", "-o", "plan.json", "--checkpoint", xxl, "--prompts", "prompts.txt"]
    assert refuse(*line, *options).startswith(words)
