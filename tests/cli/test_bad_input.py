"""Bad input, one by one: exit code 2, one line that says what was wrong, nothing written."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from skrr_export.plan import Plan
from tests.checkpoints import contents, t5_checkpoint
from tests.cli.conftest import Result, Run

Refuse = Callable[..., str]
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a test works; the outputs it names are relative to it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def checkpoint(folder: Path, t5: Path) -> Path:
    """A checkpoint to be damaged."""
    return Path(shutil.copytree(t5, folder / "t5"))


@pytest.fixture
def shards(folder: Path) -> Path:
    """A sharded checkpoint to be damaged."""
    return t5_checkpoint(folder / "sharded", shard_size="60KB")


@pytest.fixture
def copied(folder: Path, bundle: Path) -> Path:
    """A bundle to be damaged."""
    return Path(shutil.copytree(bundle, folder / "copied.bundle"))


@pytest.fixture
def refuse(run: Run, folder: Path) -> Refuse:
    """Run a command that must be refused, and return what it says."""

    def call(*arguments: object) -> str:
        before = contents(folder)
        result = run(*arguments)
        assert contents(folder) == before
        return complaint(result)

    return call


def complaint(result: Result) -> str:
    """The error of a refused command: one line on stderr and nothing else."""
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("error: ")
    assert result.err.endswith("\n")
    assert result.err.count("\n") == 1
    assert "Traceback" not in result.err
    assert len(result.err) < 600
    return result.err.removeprefix("error: ").removesuffix("\n")


def edit(path: Path, change: Callable[[Any], object]) -> None:
    """Change a JSON file in place."""
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def edit_weights(checkpoint: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Change the weights of a checkpoint in one file."""
    weights = load_file(checkpoint / SINGLE)
    change(weights)
    save_file(weights, checkpoint / SINGLE)


def plan_file(plan: Plan | None = None, **changes: Any) -> Path:
    """A plan file in the working directory, with changes on its top level."""
    document = (plan or Plan.identity("t5", 3)).to_dict() | changes
    Path("plan.json").write_text(json.dumps(document))
    return Path("plan.json")


# The checkpoint


@pytest.mark.parametrize("path", ["/absent/checkpoint", "./absent", "absent/", "two words", "~absent", ""])
def test_no_such_path(refuse: Refuse, path: str) -> None:
    assert refuse("export", path, "-o", "out") == f"no such path: {path}".strip()


def test_a_file_instead_of_a_directory(refuse: Refuse, checkpoint: Path) -> None:
    message = refuse("export", checkpoint / SINGLE, "-o", "out")
    assert message == f"{checkpoint / SINGLE} is a file; give the directory that holds config.json"


def test_not_a_checkpoint(refuse: Refuse, folder: Path) -> None:
    assert refuse("export", folder, "-o", "out") == f"{folder} is not a checkpoint: it has no config.json"


def test_no_weights(refuse: Refuse, checkpoint: Path) -> None:
    (checkpoint / SINGLE).unlink()
    message = refuse("export", checkpoint, "-o", "out")
    assert message == f"{checkpoint} is not a checkpoint: it has neither {SINGLE} nor {INDEX}"


def test_an_unknown_architecture(refuse: Refuse, checkpoint: Path) -> None:
    edit(checkpoint / "config.json", lambda config: config.update(model_type="gpt2"))
    message = refuse("export", checkpoint, "-o", "out")
    assert message.startswith(f"{checkpoint}: unknown architecture 'gpt2'; known: bert, clip, ")


def test_pickled_weights_only(refuse: Refuse, checkpoint: Path) -> None:
    (checkpoint / SINGLE).rename(checkpoint / "pytorch_model.bin")
    message = refuse("export", checkpoint, "-o", "out")
    assert f"{checkpoint} holds only pickled weights (pytorch_model.bin)" in message
    assert f"convert once with transformers: AutoModel.from_pretrained('{checkpoint}').save_pretrained(" in message


def test_a_pipeline_without_a_subfolder(refuse: Refuse, folder: Path, checkpoint: Path) -> None:
    (folder / "pipeline").mkdir()
    (folder / "pipeline" / "model_index.json").write_text("{}")
    checkpoint.rename(folder / "pipeline" / "text_encoder_2")
    message = refuse("export", "pipeline", "-o", "out")
    choices = "--subfolder (text_encoder_2), or export all with --pipeline NAME"
    assert message == f"pipeline is a pipeline: choose its encoder with {choices}"
    message = refuse("export", "pipeline", "--subfolder", "text_encoder_3", "-o", "out")
    assert message == "no such directory: pipeline/text_encoder_3"


def test_a_configuration_that_is_no_json(refuse: Refuse, checkpoint: Path) -> None:
    (checkpoint / "config.json").write_text("{")
    assert refuse("export", checkpoint, "-o", "out").startswith(f"{checkpoint / 'config.json'} is not a JSON file: ")


def test_a_configuration_that_lies(refuse: Refuse, checkpoint: Path) -> None:
    edit(checkpoint / "config.json", lambda config: config.update(d_model="37"))
    message = refuse("export", checkpoint, "-o", "out")
    assert message.startswith(f"{checkpoint}: config.json: 'd_model' must be a positive integer")
    assert message.endswith("not '37'")


@pytest.mark.parametrize("length", [-1, 10_000, 100, 7, 0])
def test_a_truncated_file(refuse: Refuse, checkpoint: Path, length: int) -> None:
    (checkpoint / SINGLE).write_bytes((checkpoint / SINGLE).read_bytes()[:length])
    assert refuse("export", checkpoint, "-o", "out").startswith(f"{checkpoint / SINGLE} is truncated")


def test_a_corrupt_header(refuse: Refuse, checkpoint: Path) -> None:
    whole = bytearray((checkpoint / SINGLE).read_bytes())
    whole[8] ^= 1
    (checkpoint / SINGLE).write_bytes(whole)
    assert refuse("export", checkpoint, "-o", "out").startswith(f"{checkpoint / SINGLE}: damaged header: ")


def test_a_header_that_lies_about_its_length(refuse: Refuse, checkpoint: Path) -> None:
    whole = (checkpoint / SINGLE).read_bytes()
    (checkpoint / SINGLE).write_bytes((2**62).to_bytes(8, "little") + whole[8:])
    message = refuse("export", checkpoint, "-o", "out")
    assert message.startswith(f"{checkpoint / SINGLE} is truncated or not a safetensors file")
    assert message.endswith(f"its header claims {2**62} bytes")


def test_a_header_that_lies_about_a_tensor(refuse: Refuse, checkpoint: Path) -> None:
    whole = (checkpoint / SINGLE).read_bytes()
    assert whole.count(b"[307,37]") == 1
    (checkpoint / SINGLE).write_bytes(whole.replace(b"[307,37]", b"[308,37]"))
    message = refuse("export", checkpoint, "-o", "out")
    assert message.startswith(f"{checkpoint / SINGLE}: tensor 'shared.weight' of F32 [308, 37] needs 45584 bytes, but ")


def test_a_missing_shard(refuse: Refuse, shards: Path) -> None:
    shard = sorted(shards.glob("model-*"))[1]
    shard.unlink()
    message = refuse("export", shards, "-o", "out")
    assert message == f"{shards / INDEX} names the shard {shard.name}, which is missing"


def test_an_extra_shard(refuse: Refuse, shards: Path) -> None:
    shutil.copy(sorted(shards.glob("model-*"))[1], shards / "model-00009-of-00009.safetensors")
    message = refuse("export", shards, "-o", "out")
    assert message.startswith(f"{shards / 'model-00009-of-00009.safetensors'} is a shard that {INDEX} does not name")


@pytest.mark.parametrize("shard", ["../t5/model.safetensors", "/etc/passwd"])
def test_an_index_that_points_outside_the_directory(refuse: Refuse, shards: Path, shard: str) -> None:
    edit(shards / INDEX, lambda index: index["weight_map"].update({"shared.weight": shard}))
    message = refuse("export", shards, "-o", "out")
    assert message == f"{shards / INDEX} places 'shared.weight' outside the directory: '{shard}'"


def test_a_missing_tensor(refuse: Refuse, checkpoint: Path) -> None:
    edit_weights(checkpoint, lambda weights: weights.pop("encoder.final_layer_norm.weight"))
    message = refuse("export", checkpoint, "-o", "out")
    assert message == f"{checkpoint}: the tensor 'encoder.final_layer_norm.weight' is missing"


def test_a_tensor_of_the_wrong_shape(refuse: Refuse, checkpoint: Path) -> None:
    edit_weights(checkpoint, lambda weights: weights.update({"encoder.final_layer_norm.weight": torch.ones(36)}))
    message = refuse("export", checkpoint, "-o", "out")
    assert message == (
        f"{checkpoint / SINGLE}: the tensor 'encoder.final_layer_norm.weight' has shape [36], config.json asks for [37]"
    )


def test_a_tensor_that_has_no_place(refuse: Refuse, checkpoint: Path) -> None:
    edit_weights(
        checkpoint, lambda weights: weights.update({"encoder.block.3.layer.0.layer_norm.weight": torch.ones(37)})
    )
    message = refuse("export", checkpoint, "-o", "out")
    assert "tensor 'encoder.block.3.layer.0.layer_norm.weight' has no place in the encoder" in message


@pytest.mark.usefixtures("remembered_traces")
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_or_infinite_weights_are_exported_with_a_warning(
    run: Run, folder: Path, checkpoint: Path, value: float
) -> None:
    """Not an error: such a checkpoint may still be of use, and it is not ours to judge."""
    edit_weights(checkpoint, lambda weights: weights["shared.weight"].__setitem__((5, 6), value))
    result = run("export", checkpoint, "-o", "out", "--quiet")
    warning = f"warning: tensor 'shared.weight' of {checkpoint / SINGLE} holds NaN or infinity\n"
    assert (result.code, result.out, result.err) == (0, "", warning)
    assert (folder / "out" / "manifest.json").is_file()


# The plan


@pytest.mark.parametrize("command", ["export", "check"])
@pytest.mark.parametrize(
    ("plan", "words"),
    [
        (Plan.identity("t5", 4), "the plan has 4 layers, the checkpoint 3"),
        (Plan.identity("bert", 3), "the plan is for a bert encoder, the checkpoint is t5"),
    ],
)
def test_a_plan_for_another_encoder(refuse: Refuse, t5: Path, command: str, plan: Plan, words: str) -> None:
    path = plan_file(plan)
    arguments = ("export", t5, "--plan", path, "-o", "out") if command == "export" else ("plan", "check", path, t5)
    assert refuse(*arguments) == words


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"layers": [{"attention": 3, "feed_forward": 0}] * 3}, "re-uses layer 3, but the encoder has layers 0 to 2"),
        ({"layers": [{"attention": None, "feed_forward": 0}] * 2}, "num_layers is 3, but layers has 2 entries"),
        (
            {"layers": [{"attention": 1, "feed_forward": 0}] + [{"attention": None, "feed_forward": 0}] * 2},
            "is not kept",
        ),
        ({"layers": [{"attention": True, "feed_forward": 0}] * 3}, "must be a layer number or null, not true"),
        ({"layers": [{"attention": 0}] * 3}, "layers[0] lacks the key 'feed_forward'"),
        ({"sparsity": 0.4}, "the plan has the unknown key 'sparsity'; known: encoder, format, layers, provenance"),
        ({"format": "skrr-plan/2"}, "the plan's format is 'skrr-plan/2'; this release reads 'skrr-plan/1'"),
    ],
)
@pytest.mark.parametrize("command", ["export", "check", "show"])
def test_a_plan_that_breaks_a_rule(refuse: Refuse, t5: Path, command: str, changes: Any, words: str) -> None:
    path = plan_file(**changes)
    arguments = {
        "export": ("export", t5, "--plan", path, "-o", "out"),
        "check": ("plan", "check", path, t5),
        "show": ("plan", "show", path, "--svg", "out.svg"),
    }
    message = refuse(*arguments[command])
    assert message.startswith(f"{path}: ")
    assert words in message


@pytest.mark.parametrize("text", ["", "{", "not json", "[" * 100_000, '{"format": NaN}'])
def test_a_plan_that_is_no_json(refuse: Refuse, folder: Path, t5: Path, text: str) -> None:
    (folder / "plan.json").write_text(text)
    assert refuse("export", t5, "--plan", "plan.json", "-o", "out").startswith("plan.json: not a JSON file: ")


@pytest.mark.parametrize("command", ["export", "show"])
def test_a_plan_that_is_missing(refuse: Refuse, t5: Path, command: str) -> None:
    arguments = ("export", t5, "-o", "out", "--plan") if command == "export" else ("plan", "show")
    assert refuse(*arguments, "absent.json") == "cannot read the plan 'absent.json': No such file or directory"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["0,1,x", "--num-layers", 3, "--drop", 1], "'x' in '0,1,x' is not a unit number"),
        (["0,6", "--num-layers", 3, "--drop", 1], "unit 6 is out of range: 3 layers have units 0 to 5"),
        (["0,0", "--num-layers", 3, "--drop", 1], "unit 0 stands twice in the order"),
        (["0,1", "--num-layers", 3, "--drop", 3], "cannot drop 3 units: the order names 2"),
        (["0,1", "--num-layers", 0, "--drop", 0], "an encoder has 1 to 10,000 layers, not 0"),
        (["0,1", "--num-layers", 10**12, "--drop", 0], "an encoder has 1 to 10,000 layers"),
        (["0,1", "--num-layers", 3, "--drop", 1, "--reuse", "0"], "'0' is not a pair DROPPED:SOURCE"),
        (["0,1", "--num-layers", 3, "--drop", 1, "--reuse", "0:1"], "unit 1 is not a attention of this encoder"),
        (["0,1", "--num-layers", 3, "--drop", 1, "--family", "[/]"], "family must be a name such as t5"),
        (["0,1", "--num-layers", "three", "--drop", 1], "Invalid value for '--num-layers'"),
        (["0,1", "--num-layers", 3], "Missing option '--drop'"),
    ],
)
def test_an_order_that_makes_no_plan(refuse: Refuse, arguments: list[object], words: str) -> None:
    assert words in refuse("plan", "from-order", *arguments, "-o", "out.json")


# Options


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--dtype", "fp64"], "unknown dtype 'fp64'; choose one of fp32, fp16, bf16"),
        (["--dtype", ""], "unknown dtype ''"),
        (["--to", "coreml"], "unknown target 'coreml'; known: onnx, pt2, aoti, tensorrt-rtx, tensorrt"),
        (["--to", "onnx,pt3,coreml"], "unknown target 'pt3, coreml'; known: onnx"),
        (["--to", ""], "unknown target ''"),
        (["--pipeline", "flux"], "unknown pipeline 'flux'; known: plain, flux.1, sd3, sdxl, "),
        (["--batch", "0"], "the batch size must be 1 to 1,048,576, not 0"),
        (["--sequence", "-3"], "the sequence size must be 1 to 1,048,576, not -3"),
        (["--batch", 10**12], "the batch size must be 1 to 1,048,576, not 1000000000000"),
        (["--sequence", 10**12], "the sequence size must be 1 to 1,048,576, not 1000000000000"),
        (["--batch", "two"], "'two' is not a valid integer"),
        (["--tokenizer", "absent"], "no tokenizer in absent (looked for tokenizer.json, "),
        (["--subfolder", "absent"], "no such directory: "),
        (["--colour"], "No such option '--colour'"),
        (["again"], "unexpected extra argument"),
    ],
)
def test_an_option_that_is_not_acceptable(refuse: Refuse, t5: Path, options: list[object], words: str) -> None:
    assert words in refuse("export", t5, "-o", "out", *options)


def test_a_pipeline_for_another_family(refuse: Refuse, bert: Path) -> None:
    message = refuse("export", bert, "--pipeline", "flux.1", "-o", "out")
    assert message == "pipeline 'flux.1' feeds a clip or t5 encoder; this one is bert"


def test_a_sequence_longer_than_the_encoder_takes(refuse: Refuse, bert: Path) -> None:
    message = refuse("export", bert, "--sequence", "72", "-o", "out")
    assert message == "a sequence of 72 exceeds this encoder's maximum of 71"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["export"], "Missing argument 'CHECKPOINT'. (see 'skrr-export export --help')"),
        (["export", "x"], "Missing option '-o' / '--output'. (see 'skrr-export export --help')"),
        (["inspect"], "Missing argument 'BUNDLE'. (see 'skrr-export inspect --help')"),
        (["encode"], "Missing argument 'BUNDLE'. (see 'skrr-export encode --help')"),
        (["verify"], "Missing argument 'BUNDLE'. (see 'skrr-export verify --help')"),
        (["plan", "check", "x"], "Missing argument 'CHECKPOINT'. (see 'skrr-export plan check --help')"),
        (["exprot"], "No such command 'exprot'."),
        (["plan", "sohw"], "No such command 'sohw'."),
        (["--colour"], "No such option '--colour'"),
        ([], "Missing command. (see 'skrr-export --help')"),
        (["plan"], "Missing command. (see 'skrr-export plan --help')"),
    ],
)
def test_a_command_that_is_incomplete_or_unknown(refuse: Refuse, arguments: list[str], words: str) -> None:
    assert words in refuse(*arguments)


# The output


def test_an_output_that_exists_needs_force(refuse: Refuse, copied: Path, t5: Path) -> None:
    assert refuse("export", t5, "-o", "copied.bundle") == f"{copied} exists; --force replaces it"


def test_force_does_not_replace_what_is_no_bundle(refuse: Refuse, folder: Path, t5: Path) -> None:
    (folder / "thesis").mkdir()
    (folder / "thesis" / "thesis.tex").write_text("irreplaceable")
    message = refuse("export", t5, "-o", "thesis", "--force")
    assert message == f"{folder / 'thesis'} is not a bundle (no manifest.json), so --force will not replace it"
    message = refuse("export", t5, "-o", "thesis/thesis.tex", "--force")
    assert message.startswith(f"{folder / 'thesis' / 'thesis.tex'} is not a directory")
    message = refuse("export", t5, "-o", "thesis/thesis.tex/out")
    assert message.startswith(f"{folder / 'thesis' / 'thesis.tex'} is not a directory")


def test_a_checkpoint_is_not_replaced_by_its_own_bundle(refuse: Refuse, checkpoint: Path) -> None:
    assert "is not a bundle" in refuse("export", checkpoint, "-o", checkpoint, "--force")


@pytest.mark.parametrize("output", ["absent/plan.json", ".", ""])
def test_a_plan_file_that_cannot_be_written(refuse: Refuse, output: str) -> None:
    message = refuse("plan", "from-order", "0", "--num-layers", 1, "--drop", 1, "-o", output)
    assert message.startswith(f"cannot write {Path(output)}: ")
    message = refuse("plan", "show", plan_file(), "--svg", output)
    assert message.startswith(f"cannot write {Path(output)}: ")


# Bundles


@pytest.mark.parametrize("command", ["inspect", "encode", "verify"])
def test_a_bundle_that_is_none(refuse: Refuse, t5: Path, command: str) -> None:
    prompts = ["a cat"] if command == "encode" else []
    for path in (Path("absent"), t5):
        message = refuse(command, path, *prompts)
        assert message == f"{path} is not a bundle: cannot read manifest.json: No such file or directory"


@pytest.mark.parametrize("command", ["inspect", "encode", "verify"])
@pytest.mark.parametrize("name", ["weights.safetensors", "model.onnx", "tokenizer/tokenizer.json"])
def test_a_bundle_whose_file_was_changed(refuse: Refuse, copied: Path, command: str, name: str) -> None:
    content = bytearray((copied / name).read_bytes())
    content[-2] ^= 1
    (copied / name).write_bytes(content)
    message = refuse(command, copied, *(["a cat"] if command == "encode" else []))
    assert message.startswith(f"{copied / name} was changed")


def without_tokenizer(bundle: Path) -> Path:
    """The bundle as an export makes it of a checkpoint that has no tokenizer."""
    shutil.rmtree(bundle / "tokenizer")

    def change(manifest: Any) -> None:
        manifest["tokenizer"] = None
        manifest["files"] = {name: entry for name, entry in manifest["files"].items() if "tokenizer" not in name}

    edit(bundle / "manifest.json", change)
    return bundle


def test_encoding_without_a_tokenizer(refuse: Refuse, copied: Path) -> None:
    message = refuse("encode", without_tokenizer(copied), "a cat", "-o", "out.npz")
    assert message.startswith(
        f"{copied} carries no tokenizer, so it takes token ids only; export again with --tokenizer"
    )


def test_encoding_without_prompts(refuse: Refuse, bundle: Path) -> None:
    assert refuse("encode", bundle, "-o", "out.npz") == "no prompt given"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot read the prompts in prompts.txt: No such file or directory"),
        (b"", "prompts.txt holds no prompts"),
        (b"caf\xe9", "cannot read the prompts in prompts.txt: not UTF-8 text"),
    ],
)
@pytest.mark.parametrize("command", ["encode", "verify"])
def test_prompts_that_cannot_be_read(
    refuse: Refuse, bundle: Path, command: str, content: bytes | None, words: str
) -> None:
    if content is not None:
        Path("prompts.txt").write_bytes(content)
    assert refuse(command, bundle, "--prompts", "prompts.txt") == words


@pytest.mark.parametrize("command", ["encode", "verify"])
def test_onnx_runtime_is_absent(refuse: Refuse, bundle: Path, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    message = refuse(command, bundle, *(["a cat"] if command == "encode" else []))
    assert message == "running an ONNX bundle needs ONNX Runtime: pip install 'skrr-export[cpu]'"


def test_a_provider_is_absent(refuse: Refuse, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    message = refuse("encode", bundle, "a cat", "--device", "cuda")
    assert message == "the installed ONNX Runtime cannot run on cuda: pip install 'skrr-export[gpu]'"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--device", "tpu"], "'tpu' is not one of 'cpu', 'cuda'"),
        (["--mode", "fast"], "'fast' is not one of 'mapped', 'prepacked'"),
        (["--to", "coreml"], "unknown target 'coreml'; known: onnx, pt2, aoti, tensorrt-rtx, tensorrt"),
    ],
)
def test_an_option_of_encode_that_is_not_acceptable(
    refuse: Refuse, bundle: Path, options: list[str], words: str
) -> None:
    assert words in refuse("encode", bundle, "a cat", "-o", "out.npz", *options)


def test_an_archive_that_cannot_be_written(refuse: Refuse, bundle: Path) -> None:
    message = refuse("encode", bundle, "a cat", "-o", "absent/out.npz")
    assert message == "cannot write absent/out.npz: No such file or directory"


@pytest.mark.parametrize("reference", ["./absent", "."])
def test_a_reference_that_is_none(refuse: Refuse, bundle: Path, reference: str) -> None:
    words = "no such path: ./absent" if reference == "./absent" else ". is not a checkpoint: it has no config.json"
    assert refuse("verify", bundle, "--reference", reference) == words


# The same in a process of its own


def fresh(folder: Path, *arguments: object, **environment: str) -> Result:
    """Run the command as a user does."""
    process = subprocess.run(
        [sys.executable, "-m", "skrr_export", *map(str, arguments)],
        cwd=folder,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    return Result(process.returncode, process.stdout, process.stderr)


def test_a_hub_id_that_cannot_be_had(folder: Path) -> None:
    message = complaint(fresh(folder, "export", "org/absent", "-o", "out"))
    assert message.startswith("no such path: org/absent; as a hub id it is neither in the local cache nor can it be")
    assert contents(folder) == {}


def test_a_damaged_checkpoint_in_a_process_of_its_own(folder: Path, checkpoint: Path) -> None:
    os.truncate(checkpoint / SINGLE, 1000)
    before = contents(folder)
    assert "is truncated" in complaint(fresh(folder, "export", checkpoint, "-o", "out"))
    assert contents(folder) == before


def test_a_usage_error_in_a_process_of_its_own(folder: Path) -> None:
    assert "No such option '--colour'" in complaint(fresh(folder, "export", "--colour"))


def test_an_error_is_one_line_whatever_the_path(folder: Path) -> None:
    for path in ("two\nlines", "\x1b[31mred", "[/]", "\udcff", "日本"):
        message = complaint(fresh(folder, "inspect", path))
        assert "is not a bundle" in message
        assert "\x1b" not in message


def test_prompts_longer_than_the_pipeline_takes_are_cut(run: Run, folder: Path, bundle: Path) -> None:
    """Not an error: every pipeline does so."""
    assert run("encode", bundle, "a" * 2000, "-o", "out.npz").code == 0
    assert np.load(folder / "out.npz")["input_ids"].shape == (1, 512)
