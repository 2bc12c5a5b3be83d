"""`skrr-export triton`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.bundles import run_python
from tests.checkpoints import contents
from tests.cli.conftest import Run


def test_a_repository_is_written_and_described(run: Run, bundle: Path, tmp_path: Path) -> None:
    result = run("triton", bundle, "-o", tmp_path / "models", "--instances", 3, "--max-batch", 5, "--name", "enc")
    assert (result.code, result.err) == (0, "")
    assert result.out.splitlines() == [
        f"{tmp_path}/models: enc, enc_tokenizer, enc_encoder",
        "enc_encoder: 3 x python on cpu, fp32 out, batches of up to 5",
        f"serve it: tritonserver --model-repository {tmp_path}/models",
    ]
    assert sorted(path.name for path in (tmp_path / "models").iterdir()) == ["enc", "enc_encoder", "enc_tokenizer"]


def test_the_description_as_json(run: Run, bundle: Path, tmp_path: Path) -> None:
    result = run("triton", bundle, "-o", tmp_path / "models", "--backend", "onnxruntime", "--device", "cuda", "--json")
    assert (result.code, result.err) == (0, "")
    assert json.loads(result.out) == {
        "repository": str(tmp_path / "models"),
        "models": ["t5", "t5_tokenizer", "t5_encoder"],
        "backend": "onnxruntime",
        "device": "cuda",
        "instances": 1,
        "max_batch": 8,
        "threads": None,
        "dtype": "fp32",
    }


def test_quiet_says_nothing_and_force_replaces(run: Run, bundle: Path, tmp_path: Path) -> None:
    assert run("triton", bundle, "-o", tmp_path / "models", "--quiet").out == ""
    refused = run("triton", bundle, "-o", tmp_path / "models")
    assert (refused.code, refused.err) == (2, f"error: {tmp_path}/models exists; --force replaces it\n")
    assert run("triton", bundle, "-o", tmp_path / "models", "--threads", 2, "--force", "--quiet").code == 0
    assert "intra_op_thread_count" in (tmp_path / "models" / "t5_encoder" / "config.pbtxt").read_text()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--backend", "vllm"], "unknown backend 'vllm'; known: onnxruntime, tensorrt, python"),
        (["--device", "gpu"], "unknown device 'gpu'; known: cpu, cuda"),
        (["--backend", "tensorrt"], "engines run on an NVIDIA GPU: use --device cuda"),
        (["--instances", "0"], "instances: must be at least 1, not 0"),
        (["--name", "a/b"], "'a/b' is no model name: letters, digits, '_', '-' and '.' make one"),
        (["--max-batch", "x"], "Invalid value for '--max-batch': 'x' is not a valid integer."),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(
    run: Run, bundle: Path, tmp_path: Path, options: list[str], words: str
) -> None:
    result = run("triton", bundle, "-o", tmp_path / "models", *options)
    assert (result.code, result.out, result.err.count("\n")) == (2, "", 1)
    assert words in result.err
    assert contents(tmp_path) == {}


def test_changed_weights_are_not_served(run: Run, bundle: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for name, content in contents(bundle).items():
        (broken / name).mkdir() if content is None else (broken / name).write_bytes(content)
    weights = broken / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    result = run("triton", broken, "-o", tmp_path / "models")
    assert result.err == f"error: {weights} was changed: its hash is not the manifest's; export again\n"
    assert not (tmp_path / "models").exists()


def test_writing_needs_no_onnx_runtime(bundle: Path, tmp_path: Path) -> None:
    code = """
import sys
from skrr_export.cli import cli
sys.modules["onnxruntime"] = None
cli.main(["triton", *sys.argv[1:]], standalone_mode=False)
"""
    run_python(code, bundle, "-o", tmp_path / "models", "--quiet")
    assert (tmp_path / "models" / "t5" / "config.pbtxt").is_file()
