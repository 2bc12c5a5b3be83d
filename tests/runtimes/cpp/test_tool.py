"""skrr-encode: what it prints, writes, and exits with."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from skrr_export.bundle import Bundle, open_bundle
from skrr_export.exporting import ExportOptions, export_checkpoint
from skrr_export.targets import open_target
from skrr_export.tokenization import encode_prompts
from tests.bundles import edit_weight, relative_error, scale
from tests.checkpoints import t5_checkpoint
from tests.runtimes.cpp.building import Installation
from tests.runtimes.presets import BundleFor

BundleOf = Callable[[str], Bundle]
Run = Callable[..., subprocess.CompletedProcess[str]]

MIB = 1 << 20


@pytest.fixture(scope="session")
def run(installation: Installation) -> Run:
    def tool(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [str(installation.tool), *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    return tool


def result(completed: subprocess.CompletedProcess[str]) -> Any:
    """The JSON of a call that went well."""
    assert (completed.returncode, completed.stderr) == (0, "")
    return json.loads(completed.stdout)


def error(completed: subprocess.CompletedProcess[str]) -> str:
    """The one line of a call that was refused."""
    assert (completed.returncode, completed.stdout) == (2, "")
    assert re.fullmatch("error: .*\n", completed.stderr), completed.stderr
    return completed.stderr


# Encoding


def test_embeddings_are_pythons(run: Run, bundle_of: BundleOf, tmp_path: Path) -> None:
    bundle, output = bundle_of("plain"), tmp_path / "e.npy"
    (tmp_path / "prompts.txt").write_bytes("\ufeffa cat\r\n\r\ntwo dogs\n".encode())
    arguments = ("--prompt", "first", "--prompt", "second", "--prompts", tmp_path / "prompts.txt")
    document = result(run(bundle.directory, *arguments, "-o", output, "--json"))
    truth = encode_prompts(open_target(bundle), ["first", "second", "a cat", "", "two dogs"])["last_hidden_state"]
    assert document["outputs"] == {"last_hidden_state": {"shape": list(truth.shape), "file": str(output)}}
    ours = np.load(output)
    assert ours.dtype == np.float32
    assert relative_error(ours, truth) < 1e-5


def test_both_kinds_of_output_are_written(run: Run, bundle_for: BundleFor, tmp_path: Path) -> None:
    bundle = bundle_for("sd3/text_encoder")
    rows, pooled = tmp_path / "rows.npy", tmp_path / "pooled.npy"
    arguments = (bundle.directory, "--prompt", "a cat", "--prompt", "")
    document = result(run(*arguments, "-o", rows, "--pooled", pooled, "--json"))
    truth = encode_prompts(open_target(bundle), ["a cat", ""])
    for name, file in (("hidden_states.3", rows), ("text_embeds", pooled)):
        assert document["outputs"][name] == {"shape": list(truth[name].shape), "file": str(file)}
        assert relative_error(np.load(file), truth[name]) < 1e-5
    lines = run(*arguments, "--pooled", pooled).stdout.splitlines()
    assert lines[-2:] == ["hidden_states.3: fp32 [2, 77, 39]", f"text_embeds: fp32 [2, 29], written to {pooled}"]
    tested = result(run(*arguments, "--self-test", "--json"))["self_test"]
    assert tested["outputs"].keys() == document["outputs"].keys()


def test_negative_prompts_are_asked_for(run: Run, bundle_for: BundleFor, tmp_path: Path) -> None:
    bundle, output = bundle_for("cropped inside, bare negatives"), tmp_path / "e.npy"
    for options in ([], ["--negative"]):
        run(bundle.directory, "--prompt", "a cat", "-o", output, *options)
        truth = encode_prompts(open_target(bundle), ["a cat"], negative=bool(options))["last_hidden_state"]
        assert relative_error(np.load(output), truth) < 1e-5


def test_outputs_that_the_bundle_lacks_are_refused(run: Run, bundle_for: BundleFor, tmp_path: Path) -> None:
    completed = run(bundle_for("flux.1/text_encoder").directory, "--prompt", "x", "-o", tmp_path / "e.npy")
    assert error(completed) == ("error: --output: the bundle has no output with a row a token, only pooler_output\n")
    completed = run(bundle_for("stacked").directory, "--prompt", "x", "--pooled", tmp_path / "e.npy")
    assert "--pooled: the bundle has no output with a row a prompt, only hidden_states" in error(completed)
    assert not list(tmp_path.iterdir())


def test_lines_for_people(run: Run, bundle_of: BundleOf, tmp_path: Path) -> None:
    output = tmp_path / "e.npy"
    completed = run(bundle_of("bf16").directory, "--prompt", "a cat", "--output", output)
    assert re.fullmatch(
        r"onnx on cpu, ONNX Runtime 1\.\S+, computes in fp32\nweights: bf16\npipeline: plain\n"
        rf"last_hidden_state: fp32 \[1, \d+, 37\], written to {re.escape(str(output))}\n",
        completed.stdout,
    )


def test_help_and_version(run: Run) -> None:
    assert run("--version").stdout == "skrr 0.1.0\n"
    completed = run("--help")
    assert completed.returncode == 0
    assert "skrr-encode t5.bundle --self-test" in completed.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "nothing to do: give --prompt, --prompts, --self-test, --check or --bench"),
        (("--output", "e.npy"), "no prompt given"),
        (("--threads", "0", "--bench"), "--threads"),
        (("--prompt",), "--prompt"),
        (("--batch", "2", "--prompt", "x"), "--batch requires --bench"),
        (("--colour",), "--colour"),
        (("--prompt", "a </s>"), "a prompt holds '</s>'"),
        (("--prompts", "/no/such/file"), "cannot read the prompts in /no/such/file: No such file or directory"),
        (("--prompts", "/"), "cannot read the prompts in /: Is a directory"),
        (("--prompts", "/dev/null"), "/dev/null holds no prompts"),
        (("--bench", "--device", "cuda"), "cannot run on cuda"),
        (("--bench", "--target", "aoti"), "has no target 'aoti'; it has: onnx"),
        (("--bench", "--sequence", "999999"), None),
    ],
)
def test_bad_input(arguments: tuple[str, ...], message: str | None, run: Run, bundle_of: BundleOf) -> None:
    if message is not None:
        assert message in error(run(bundle_of("plain").directory, *arguments))
    else:
        assert "exceed this encoder's maximum of 71" in error(run(bundle_of("bert").directory, *arguments))


# The file appears whole or not at all


def test_a_directory_that_cannot_be_written(run: Run, bundle_of: BundleOf, tmp_path: Path) -> None:
    for output, reason in ((tmp_path / "missing" / "e.npy", "No such file"), (Path("/proc/e.npy"), "")):
        completed = run(bundle_of("plain").directory, "--prompt", "x", "-o", output)
        assert completed.returncode == 2
        assert completed.stderr.startswith(f"error: cannot write {output}: {reason}")


def test_what_was_there_stays_on_failure(
    run: Run, bundle_of: BundleOf, installation: Installation, tmp_path: Path
) -> None:
    """A disk that is full, as a limit on the size of files plays it."""
    output = tmp_path / "e.npy"
    output.write_bytes(b"old")
    command = ["bash", "-c", 'ulimit -f 1; trap "" XFSZ; exec "$@"', "-", str(installation.tool)]
    arguments = [str(bundle_of("plain").directory), "--prompt", "a cat on a mat", "-o", str(output)]
    completed = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)
    assert completed.returncode == 2
    assert completed.stderr == f"error: cannot write {output}: File too large\n"
    assert output.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [output]
    assert run(bundle_of("plain").directory, "--prompt", "x", "-o", output).returncode == 0
    assert np.load(output).shape[::2] == (1, 37)


def test_it_cannot_replace_a_directory(run: Run, bundle_of: BundleOf, tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    completed = run(bundle_of("plain").directory, "--prompt", "x", "-o", tmp_path / "d")
    assert completed.stderr == f"error: cannot write {tmp_path}/d: Is a directory\n"
    assert list(tmp_path.iterdir()) == [tmp_path / "d"]


# Tests and checks


def test_self_test(run: Run, bundle_of: BundleOf) -> None:
    completed = run(bundle_of("bf16").directory, "--self-test")
    assert completed.returncode == 0
    assert re.search(
        r"^self-test: 4 vectors, relative L2 \S+ \(limit \S+\), cosine distance \S+ \(limit \S+\), "
        r"token ids equal: passed$",
        completed.stdout,
        re.MULTILINE,
    )
    document = result(run(bundle_of("bf16").directory, "--self-test", "--json"))["self_test"]
    assert document["passed"] is True
    assert document["ids_equal"] is True
    assert document["outputs"].keys() == {"last_hidden_state"}
    assert 0 < document["outputs"]["last_hidden_state"]["relative_l2"] < 1e-4


def test_a_changed_weight_fails_it(run: Run, bundle_of: BundleOf, tmp_path: Path) -> None:
    shutil.copytree(bundle_of("plain").directory, tmp_path / "b")
    name = "encoder.block.0.layer.1.DenseReluDense.wo.weight"
    edit_weight(open_bundle(tmp_path / "b"), name, scale(1.01))
    completed = run(tmp_path / "b", "--self-test")
    assert completed.returncode == 1
    assert completed.stdout.endswith(", token ids equal: FAILED\n")
    edit_weight(open_bundle(tmp_path / "b"), name, scale(float("nan")))
    document = json.loads(run(tmp_path / "b", "--self-test", "--json").stdout)["self_test"]
    assert document["passed"] is False
    assert document["nonfinite"] > 0


def test_another_tokenizer_fails_it(run: Run, bundle_of: BundleOf, tmp_path: Path) -> None:
    shutil.copytree(bundle_of("plain").directory, tmp_path / "b")
    path = tmp_path / "b" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["tokenizer"]["suffix"] = [2]
    path.write_text(json.dumps(manifest))
    completed = run(tmp_path / "b", "--self-test")
    assert completed.returncode == 1
    assert completed.stdout.endswith(", token ids DIFFERENT: FAILED\n")


@pytest.mark.parametrize("option", ["--check", "--self-test"])
def test_weights_are_hashed(option: str, run: Run, bundle_of: BundleOf, tmp_path: Path) -> None:
    shutil.copytree(bundle_of("plain").directory, tmp_path / "b")
    weights = tmp_path / "b" / "weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert f"{weights} was changed: its hash is not the manifest's; export again" in error(run(tmp_path / "b", option))
    assert result(run(bundle_of("plain").directory, "--check", "--json")) == {"check": True}


# Measurements


def test_bench(run: Run, bundle_of: BundleOf) -> None:
    arguments = ("--bench", "--batch", "2", "--sequence", "9", "--runs", "5", "--threads", "1")
    begin = time.perf_counter()
    bench = result(run(bundle_of("plain").directory, *arguments, "--json"))["bench"]
    elapsed = time.perf_counter() - begin
    assert (bench["batch"], bench["sequence"], bench["runs"]) == (2, 9, 5)
    assert 0 < bench["median_seconds"] <= bench["p95_seconds"]
    assert min(bench["load_seconds"], bench["first_seconds"]) > 0
    # Of five runs three take the median or longer, one of them the 95th percentile.
    timed = bench["load_seconds"] + bench["first_seconds"] + 2 * bench["median_seconds"] + bench["p95_seconds"]
    assert timed <= elapsed
    assert MIB < bench["anonymous_bytes"] < 200 * MIB
    assert MIB < bench["file_bytes"] < 200 * MIB
    lines = run(bundle_of("plain").directory, *arguments).stdout
    assert re.search(r"first embedding \S+ s \(2 x 9 tokens\)\nmedian, p95 +\S+ s, \S+ s of 5 runs\nmemory ", lines)
    assert result(run(bundle_of("fixed").directory, "--bench", "--json"))["bench"]["batch"] == 3


@pytest.fixture(scope="module")
def large(remembered_traces: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("large")
    shape = {"d_model": 768, "num_heads": 12, "d_kv": 64, "d_ff": 3072}
    return t5_checkpoint(directory / "t5", layers=3, **shape)


@pytest.mark.parametrize(("dtype", "share"), [("fp32", 0.25), ("bf16", 1.5)])
def test_weights_are_mapped_not_copied(dtype: str, share: float, run: Run, large: Path, tmp_path: Path) -> None:
    """In half precision they are cast where they are used: a layer's, which are many of only three, are held as fp32.

    Were they cast when loading, all of them would be, twice their size in the file.
    """
    bundle = export_checkpoint(large, tmp_path / "b", ExportOptions(dtype=dtype)).bundle
    weights = bundle.weights.stat().st_size
    bench = {
        name: result(run(bundle.directory, "--bench", "--runs", "2", "--json", *options))["bench"]
        for name, options in (("mapped", ()), ("prepacked", ("--prepacked",)))
    }
    copied = weights * (1 if dtype == "fp32" else 2)
    assert bench["mapped"]["anonymous_bytes"] < share * weights < 0.8 * copied
    assert bench["mapped"]["file_bytes"] > 0.95 * weights
    assert bench["prepacked"]["anonymous_bytes"] > 0.9 * copied
