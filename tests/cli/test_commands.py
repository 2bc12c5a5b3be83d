"""What the commands print and write when all is well."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

import skrr_export
from skrr_export.plan import Plan
from tests.bundles import forge_hashes, run_python
from tests.checkpoints import contents
from tests.cli.conftest import PLAN, Run

COMMANDS = [
    ["export"],
    ["verify"],
    ["self-test"],
    ["measure"],
    ["compare"],
    ["inspect"],
    ["encode"],
    ["triton"],
    ["plan", "from-order"],
    ["plan", "show"],
    ["plan", "check"],
    ["demo"],
]
ORDER = ["plan", "from-order", "2,4,1", "--num-layers", "3", "--drop", "2", "--reuse", "4:0"]
PROMPTS = ["a cat", "", "two dogs ☃ and 3 birds"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a test works."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def plan_file(folder: Path) -> Path:
    (folder / "plan.json").write_text(PLAN.to_json())
    return folder / "plan.json"


def answer(run: Run, *arguments: object) -> Any:
    """What a command prints with `--json`, which is all that it prints."""
    result = run(*arguments, "--json")
    assert (result.code, result.err) == (0, "")
    return json.loads(result.out)


# Help


@pytest.mark.parametrize("command", [[], ["plan"], *COMMANDS], ids=" ".join)
@pytest.mark.parametrize("option", ["--help", "-h"])
def test_every_command_explains_itself(run: Run, command: list[str], option: str) -> None:
    result = run(*command, option)
    assert (result.code, result.err) == (0, "")
    assert result.out.startswith(f"Usage: {' '.join(['skrr-export', *command])} ")
    if command != ["plan"]:
        (example,) = re.findall(r"^ +Examples?:.*\n +(skrr-export \S+.*)$", result.out, re.MULTILINE)
        assert example.startswith(" ".join(["skrr-export", *command]))
    if command in COMMANDS:
        assert "--json" in result.out
        assert "--quiet" in result.out


def test_help_names_every_command(run: Run) -> None:
    named = re.findall(r"^  (\S+) +\S", run("--help").out.partition("Commands:")[2], re.MULTILINE)
    assert sorted(named) == sorted({command[0] for command in COMMANDS})
    named = re.findall(r"^  (\S+) +\S", run("plan", "--help").out.partition("Commands:")[2], re.MULTILINE)
    assert sorted(named) == ["check", "from-order", "published", "search", "show"]


def test_the_examples_for_orders_make_the_plans_they_promise(run: Run, folder: Path) -> None:
    """The one in the help, run as it stands there, but for the shell's own syntax."""
    text = run("plan", "from-order", "--help").out.replace("\\\n", " ")
    (example,) = re.findall(r"skrr-export (plan from-order .*-o plan\.json)", text)
    plan = answer(run, *example.replace('"', "").split())
    assert Plan.from_dict(plan).counts() == {"keep": 27, "re-use": 2, "skip": 19}


def test_the_version_is_the_packages(run: Run) -> None:
    from importlib.metadata import version

    assert run("--version").out == f"skrr-export, version {version('skrr-export')}\n"


IMPORTED = """
import sys
from skrr_export.cli import main
sys.argv = ["skrr-export", *sys.argv[1:]]
try:
    main()
except SystemExit as error:
    assert error.code == 0, error.code
heavy = {"torch", "transformers", "onnxruntime", "onnx", "onnx_ir", "huggingface_hub", "rich", "numpy"}
print("IMPORTED", *sorted(heavy & sys.modules.keys()))
"""


def imported(folder: Path, *arguments: object) -> set[str]:
    """Which of the heavy packages a command imports."""
    out = run_python(IMPORTED, *arguments, COLUMNS="120").stdout
    return set(out.rpartition("IMPORTED")[2].split())


@pytest.mark.parametrize("command", [[], ["export"], ["plan", "check"]], ids=" ".join)
def test_help_imports_nothing_heavy(folder: Path, command: list[str]) -> None:
    assert imported(folder, *command, "--help") == set()


def test_plans_are_made_and_shown_without_torch(folder: Path, plan_file: Path) -> None:
    assert imported(folder, *ORDER, "-o", folder / "made.json") <= {"rich"}
    assert imported(folder, "plan", "show", plan_file, "--svg", folder / "plan.svg") <= {"rich"}


def test_a_bundle_is_inspected_without_torch(folder: Path, bundle: Path) -> None:
    assert imported(folder, "inspect", bundle) <= {"rich", "numpy"}


# Plans


def test_an_order_becomes_a_plan_file(run: Run, folder: Path) -> None:
    printed = answer(run, *ORDER, "-o", "plan.json")
    plan = Plan.load(folder / "plan.json")
    assert plan.sources == ((0, 0), (None, 1), (0, 2))
    assert plan.family == "t5"
    assert plan.provenance == {"method": "order", "order": "2,4,1", "drop": 2, "reuse": "4:0"}
    assert printed == plan.to_dict() == json.loads((folder / "plan.json").read_text())
    assert contents(folder).keys() == {"plan.json"}


def test_an_existing_plan_file_is_replaced(run: Run, plan_file: Path) -> None:
    assert run(*ORDER, "--family", "bert", "-o", plan_file).code == 0
    assert Plan.load(plan_file).family == "bert"


def test_a_plan_is_shown_and_drawn(run: Run, folder: Path, plan_file: Path) -> None:
    result = run("plan", "show", plan_file, "--svg", "plan.svg")
    assert (result.code, result.err) == (0, "")
    assert "t5, 3 layers: 3 sub-blocks kept, 2 re-used, 1 skipped" in " ".join(result.out.split())
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in result.out.splitlines() if "│" in line]
    assert rows == [["0", "keep", "keep", "0, 1"], ["1", "skip", "re-use 0", "2, 3"], ["2", "re-use 0", "keep", "4, 5"]]
    assert ET.parse(folder / "plan.svg").getroot().tag == "{http://www.w3.org/2000/svg}svg"


def test_a_shown_plan_is_the_plan_and_its_counts(run: Run, plan_file: Path) -> None:
    assert answer(run, "plan", "show", plan_file) == {
        **PLAN.to_dict(),
        "counts": {"keep": 3, "re-use": 2, "skip": 1},
    }


def test_a_plan_is_checked_against_a_checkpoint(run: Run, plan_file: Path, t5: Path) -> None:
    parameters = {name: tensor.numel() for name, tensor in load_file(t5 / "model.safetensors").items()}
    unused = ("encoder.block.1.", "encoder.block.2.layer.0.")
    kept = sum(count for name, count in parameters.items() if not name.startswith(unused))
    total = sum(parameters.values())
    assert answer(run, "plan", "check", plan_file, t5) == {
        "sparsity": 1 - kept / total,
        "total_parameters": total,
        "kept_parameters": kept,
        "counts": {"keep": 3, "re-use": 2, "skip": 1},
    }
    result = run("plan", "check", plan_file, t5)
    assert (result.code, result.err) == (0, "")
    assert f"{kept:,} of {total:,} parameters are used, sparsity {1 - kept / total:.1%}" in result.out


def test_a_plan_is_checked_against_a_pipelines_encoder(run: Run, folder: Path, plan_file: Path, t5: Path) -> None:
    shutil.copytree(t5, folder / "pipeline" / "text_encoder_2")
    result = run("plan", "check", plan_file, "pipeline", "--subfolder", "text_encoder_2")
    assert result.code == 0
    assert "fits pipeline/text_encoder_2: " in result.out


# Export, inspect, encode, verify


@pytest.mark.usefixtures("remembered_traces")
def test_an_export_says_what_it_made(run: Run, folder: Path, plan_file: Path, t5: Path, bundle: Path) -> None:
    printed = answer(run, "export", t5, "--plan", plan_file, "-o", "out")
    files = {name: content for name, content in contents(folder / "out").items() if content is not None}
    manifest = json.loads(files.pop("manifest.json"))
    kept, total = manifest["parameters"]["kept"], manifest["parameters"]["total"]
    assert printed == {
        "bundle": "out",
        "bytes": sum(map(len, files.values())),
        "dense_bytes": 4 * total,
        "dtype": "fp32",
        "outputs": ["last_hidden_state"],
        "sparsity": 1 - kept / total,
        "total_parameters": total,
        "kept_parameters": kept,
        "unread_parameters": 0,
        "rescaling": None,
        "targets": manifest["targets"],
        "reports": {},
        "warnings": [],
    }
    assert contents(folder / "out") == contents(bundle)  # the same as through the library


@pytest.mark.usefixtures("remembered_traces")
def test_the_options_of_an_export_reach_the_bundle(run: Run, folder: Path, t5: Path) -> None:
    (folder / "tokenizer").mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(t5 / name, folder / "tokenizer")
    shutil.copytree(t5, folder / "pipeline" / "text_encoder_2", ignore=shutil.ignore_patterns("tokenizer*"))
    options = [
        "--subfolder",
        "text_encoder_2",
        "--tokenizer",
        "tokenizer",
        "--pipeline",
        "pixart-sigma",
        "--to",
        "onnx",
    ]
    options += ["--dtype", "bf16", "--batch", "2", "--sequence", "9", "--inline"]
    result = run("export", "pipeline", *options, "-o", "out")
    assert (result.code, result.err) == (0, "")
    printed = answer(run, "inspect", "out")
    assert printed["dtype"] == "bf16"
    assert [item["shape"] for item in printed["inputs"]] == [[2, 9], [2, 9]]
    assert printed["outputs"][0]["shape"] == [2, 9, 37]
    assert (printed["pipeline"]["name"], printed["pipeline"]["lowercase"]) == ("pixart-sigma", True)
    assert printed["targets"]["onnx"]["functions"] is False
    assert "tokenizer/tokenizer.json" in printed["files"]
    assert Plan.from_dict(printed["plan"]).is_identity


@pytest.mark.usefixtures("remembered_traces")
def test_force_replaces_a_bundle(run: Run, folder: Path, t5: Path, bundle: Path) -> None:
    shutil.copytree(bundle, folder / "out")
    assert run("export", t5, "-o", "out", "--force", "--quiet").code == 0
    assert answer(run, "inspect", "out")["plan"] == Plan.identity("t5", 3).to_dict()
    assert [path.name for path in folder.iterdir()] == ["out"]


def test_an_export_in_a_process_of_its_own_gives_the_same_bytes(folder: Path, t5: Path, bundle: Path) -> None:
    """Traced afresh, with another hash seed, in another working directory."""
    (folder / "plan.json").write_text(PLAN.to_json())
    command = [sys.executable, "-m", "skrr_export", "export", str(t5), "--plan", "plan.json", "-o", "out"]
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    process = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert (process.returncode, process.stderr) == (0, "")
    assert process.stdout.startswith("out: ")
    assert contents(folder / "out") == contents(bundle)


def test_inspecting_gives_the_manifest(run: Run, bundle: Path) -> None:
    printed = answer(run, "inspect", bundle)
    assert printed == json.loads((bundle / "manifest.json").read_text())
    assert printed.keys() == {
        *("format", "encoder", "plan", "pipeline", "dtype", "inputs", "outputs", "parameters"),
        *("rescaling", "tokenizer", "vectors", "targets", "files", "tools"),
    }


def test_inspecting_shows_the_plan_and_the_files(run: Run, bundle: Path) -> None:
    result = run("inspect", bundle)
    assert (result.code, result.err) == (0, "")
    assert result.out.startswith(f"{bundle}: t5, fp32, ")
    assert "pipeline plain: 512 tokens, padding longest, with attention mask" in result.out
    for name, entry in json.loads((bundle / "manifest.json").read_text())["files"].items():
        assert re.search(rf"{re.escape(name)} .* {entry['sha256'][:16]} ", result.out)
    assert re.search(r"1 +│ skip +│ re-use 0 ", result.out)


@pytest.mark.parametrize("mode", ["mapped", "prepacked"])
def test_encoding_writes_what_a_session_gives(run: Run, folder: Path, bundle: Path, mode: str) -> None:
    printed = answer(run, "encode", bundle, *PROMPTS, "--mode", mode, "-o", "out.npz")
    expected = skrr_export.encode_prompts(skrr_export.open_session(bundle, mode=mode), PROMPTS)
    written = np.load(folder / "out.npz")
    assert set(written) == set(expected) == {"input_ids", "attention_mask", "last_hidden_state"}
    for name, array in expected.items():
        assert written[name].dtype == array.dtype
        assert np.array_equal(written[name], array)
    assert printed == {
        "output": "out.npz",
        "shapes": {name: list(array.shape) for name, array in expected.items()},
        "dtypes": {name: str(array.dtype) for name, array in expected.items()},
    }


def test_encoding_tokenises_as_the_pipeline_does(run: Run, folder: Path, bundle: Path) -> None:
    """The tokenizer gives a token a byte and ends with `</s>`, 1; padding is 0, to the longest prompt."""
    assert run("encode", bundle, *PROMPTS, "-o", "out.npz").code == 0
    written = np.load(folder / "out.npz")
    lengths = [len(prompt.encode()) + 1 for prompt in PROMPTS]
    assert written["input_ids"].shape == (3, max(lengths))
    assert written["attention_mask"].tolist() == [[1] * n + [0] * (max(lengths) - n) for n in lengths]
    for row, length in zip(written["input_ids"], lengths, strict=True):
        assert (row[length - 1], row[length:].sum()) == (1, 0)
        assert (row[: length - 1] > 3).all()


def test_prompts_of_a_file_come_after_those_of_the_line(run: Run, folder: Path, bundle: Path) -> None:
    (folder / "prompts.txt").write_text("\n".join(PROMPTS[1:]) + "\n", encoding="utf-8")
    assert run("encode", bundle, PROMPTS[0], "--prompts", "prompts.txt", "-o", "both.npz").code == 0
    assert run("encode", bundle, *PROMPTS, "-o", "line.npz").code == 0
    both, line = np.load(folder / "both.npz"), np.load(folder / "line.npz")
    assert all(np.array_equal(both[name], line[name]) for name in line)


def test_encoding_writes_nothing_unless_told_to(run: Run, folder: Path, bundle: Path) -> None:
    printed = answer(run, "encode", bundle, "a cat")
    assert printed["output"] is None
    assert printed["shapes"]["last_hidden_state"] == [1, 6, 37]
    assert contents(folder) == {}


VERIFIED = {"bundle", "target", "passed", "computes_in", "drift", "loss", "failures", "notes"}


def test_verifying_a_good_bundle_passes(run: Run, folder: Path, bundle: Path) -> None:
    (folder / "prompts.txt").write_text("\n".join(PROMPTS), encoding="utf-8")
    printed = answer(run, "verify", bundle, "--prompts", "prompts.txt")
    assert printed.keys() >= VERIFIED
    assert (printed["bundle"], printed["target"], printed["passed"]) == (str(bundle), "onnx", True)
    assert printed["loss"] is None
    result = run("verify", bundle, "--prompts", "prompts.txt")
    assert (result.code, result.err) == (0, "")
    assert f"{bundle}: passed (" in result.out


def test_a_self_test_passes_on_a_good_bundle(run: Run, folder: Path, t5: Path) -> None:
    assert run("export", t5, "-o", folder / "b", "--vectors", 3).code == 0
    report = answer(run, "self-test", folder / "b")
    assert (report["passed"], report["vectors"], report["ids_equal"]) == (True, 3, True)
    result = run("self-test", folder / "b")
    assert result.code == 0
    assert result.out.startswith("self-test: 3 vectors, relative L2 ")


def test_a_self_test_fails_on_other_weights(run: Run, folder: Path, t5: Path) -> None:
    run("export", t5, "-o", folder / "b", "--vectors", 3)
    scale_final_norm(folder / "b")
    result = run("self-test", folder / "b")
    assert result.code == 1
    assert result.out.rstrip().endswith("token ids equal: FAILED")


def test_a_self_test_without_vectors_says_how_to_get_some(run: Run, bundle: Path) -> None:
    result = run("self-test", bundle)
    assert result.code == 2
    assert result.err == f"error: {bundle} carries no test vectors; export again with --vectors 8\n"


def test_verifying_a_bundle_with_other_weights_fails(run: Run, folder: Path, bundle: Path, t5: Path) -> None:
    """Its hashes are right: only the comparison with the checkpoint can tell."""
    forged = Path(shutil.copytree(bundle, folder / "forged.bundle"))
    scale_final_norm(forged)
    (folder / "prompts.txt").write_text("\n".join(PROMPTS), encoding="utf-8")
    result = run("verify", forged, "--reference", t5, "--prompts", "prompts.txt", "--json")
    assert (result.code, result.err) == (1, "")
    printed = json.loads(result.out)
    assert printed["passed"] is False
    assert printed["failures"]
    result = run("verify", forged, "--reference", t5, "--prompts", "prompts.txt")
    assert result.code == 1
    assert f"{forged}: FAILED (" in result.out


def scale_final_norm(bundle: Path) -> None:
    """Make a weight 1% too large, and the hashes right."""
    before = load_file(bundle / "weights.safetensors")["encoder.final_layer_norm.weight"].numpy()
    content = (bundle / "weights.safetensors").read_bytes()
    assert content.count(before.tobytes()) == 1
    changed = content.replace(before.tobytes(), (before * np.float32(1.01)).tobytes())
    (bundle / "weights.safetensors").write_bytes(changed)
    forge_hashes(skrr_export.open_bundle(bundle))


# What all commands share


def commands(bundle: Path, t5: Path, plan_file: Path) -> Sequence[list[object]]:
    """A good call of every command but those which have tests of their own."""
    return [
        [*ORDER, "-o", "made.json"],
        ["plan", "show", plan_file],
        ["plan", "check", plan_file, t5],
        ["export", t5, "-o", "out"],
        ["inspect", bundle],
        ["encode", bundle, "a cat", "-o", "out.npz"],
        ["verify", bundle, "--prompts", "prompts.txt"],
    ]


@pytest.mark.usefixtures("remembered_traces")
def test_quiet_commands_print_nothing(run: Run, folder: Path, bundle: Path, t5: Path, plan_file: Path) -> None:
    (folder / "prompts.txt").write_text("a cat\n")
    assert len(commands(bundle, t5, plan_file)) == len(COMMANDS) - 5
    for command in commands(bundle, t5, plan_file):
        result = run(*command, "--quiet")
        assert (result.code, result.out, result.err) == (0, "", ""), command
    assert {"made.json", "out", "out.npz"} < {path.name for path in folder.iterdir()}


@pytest.mark.usefixtures("remembered_traces")
def test_warnings_survive_quiet_and_json(run: Run, folder: Path, t5: Path) -> None:
    assert run("export", t5, "--dtype", "bf16", "-o", "half", "--quiet").code == 0
    warned = "warning: weights stored as bf16, computed in fp32"
    for option in ("--quiet", "--json"):
        result = run("encode", "half", "a cat", option)
        assert result.code == 0
        assert result.err.startswith(warned)
        assert result.err.count("\n") == 1
    assert json.loads(result.out)["dtypes"]["last_hidden_state"] == "float32"


@pytest.mark.parametrize("name", ["a[/]b.json", "[red]plan.json", "two words.json", "日本.json"])
def test_names_are_printed_as_they_are(run: Run, folder: Path, name: str) -> None:
    Path(name).parent.mkdir(exist_ok=True)
    result = run(*ORDER, "-o", name)
    assert (result.code, result.err) == (0, "")
    assert result.out.startswith(f"{name}: t5, 3 layers: ")
    assert (folder / name).is_file()


def test_a_bundles_name_is_printed_as_it_is(run: Run, folder: Path, bundle: Path) -> None:
    shutil.copytree(bundle, folder / "[bold]b[/]")
    (folder / "prompts.txt").write_text("a cat\n")
    assert run("inspect", "[bold]b[/]").out.startswith("[bold]b[/]: t5, fp32, ")
    assert "[bold]b[/]: passed (" in run("verify", "[bold]b[/]", "--prompts", "prompts.txt").out
    assert "written to [red].npz" in run("encode", "[bold]b[/]", "a cat", "-o", "[red].npz").out


PLAIN_ENCODINGS = """
import os, sys
from skrr_export.cli import main
sys.argv = ["skrr-export", *map(os.fsdecode, map(bytes.fromhex, sys.argv[1:]))]
main()
"""


def test_a_name_that_is_no_text_and_a_terminal_that_knows_little(folder: Path) -> None:
    """File names are bytes, and a terminal may know ASCII only: neither may end a job that is done."""
    arguments = [os.fsencode(item).hex() for item in [*ORDER, "-o", folder / "\udcff.json"]]
    run_python(PLAIN_ENCODINGS, *arguments)
    assert [os.fsencode(path.name) for path in folder.iterdir()] == [b"\xff.json"]
    arguments = [os.fsencode(item).hex() for item in ["plan", "show", folder / "\udcff.json"]]
    shown = run_python(PLAIN_ENCODINGS, *arguments, PYTHONIOENCODING="ascii").stdout
    assert "re-use 0" in shown


def test_every_public_name_can_be_had() -> None:
    for name in skrr_export.__all__:
        assert callable(getattr(skrr_export, name))
    with pytest.raises(AttributeError, match="has no attribute 'absent'"):
        _ = skrr_export.absent


def test_a_checkpoint_is_never_changed(run: Run, folder: Path, t5: Path, plan_file: Path) -> None:
    """Not even its files' times: a job only reads its input."""
    before = {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in t5.rglob("*")}
    assert run("plan", "check", plan_file, t5, "--quiet").code == 0
    weights = load_file(t5 / "model.safetensors")
    save_file(weights, folder / "copy.safetensors")
    assert {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in t5.rglob("*")} == before
