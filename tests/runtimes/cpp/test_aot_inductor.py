"""The AOTInductor backend, built with the libtorch of the installed torch and nothing else.

Compiling it takes half a minute, and so does the package; all tests share both.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from skrr_export.bundle import Bundle
from skrr_export.exporting import ExportOptions, export_checkpoint
from skrr_export.plan import Plan
from skrr_export.targets import open_target
from skrr_export.tokenization import encode_prompts
from tests.bundles import PLAN, relative_error
from tests.runtimes.cpp import building
from tests.runtimes.damage import edit
from tests.runtimes.presets import export_for

pytestmark = pytest.mark.slow

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    root = Path(torch.utils.cmake_prefix_path).parents[1]
    try:
        options = ["-DSKRR_WITH_AOTI=ON", f"-DTorch_ROOT={root}", "-DSKRR_WITH_ONNXRUNTIME=OFF"]
        # Debug is compiled in half the time, and the code in the package is what takes time here.
        built = building.install(tmp_path_factory.mktemp("skrr-aoti"), *options, "-DCMAKE_BUILD_TYPE=Debug")
    except building.UnavailableError as error:
        pytest.skip(str(error))
    assert "runs the targets: aoti" in built.summary

    def tool(*arguments: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run([str(built.tool), *map(str, arguments)], capture_output=True, text=True, check=False)

    return tool


@pytest.fixture(scope="module")
def bundle(t5: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """With ONNX beside it, which this build cannot run."""
    options = ExportOptions(plan=Plan("t5", tuple(PLAN)), targets=("onnx", "aoti"), vectors=4, dtype="bf16")
    return export_checkpoint(t5, tmp_path_factory.mktemp("aoti") / "b", options).bundle


def test_embeddings_are_pythons(run: Run, bundle: Bundle, tmp_path: Path) -> None:
    prompts, output = ["a cat", "two dogs on a hill", ""], tmp_path / "e.npy"
    options = [argument for prompt in prompts for argument in ("--prompt", prompt)]
    completed = run(bundle.directory, *options, "-o", output, "--json")
    assert (completed.returncode, completed.stderr) == (0, "")
    assert json.loads(completed.stdout)["target"] == "aoti"
    truth = encode_prompts(open_target(bundle, "aoti"), prompts)["last_hidden_state"]
    assert relative_error(np.load(output), truth) < 1e-5


def test_every_output_is_transformers(run: Run, tmp_path: Path) -> None:
    """By the self-test: this build makes no ids of the prompts."""
    bundle = export_for("sd3/text_encoder", tmp_path, targets=("aoti",), vectors=2)
    completed = run(bundle.directory, "--self-test", "--json")
    assert (completed.returncode, completed.stderr) == (0, "")
    result = json.loads(completed.stdout)["self_test"]
    assert result["passed"] is True
    assert list(result["outputs"]) == ["hidden_states.3", "text_embeds"]
    assert all(0 < distances["relative_l2"] < 1e-5 for distances in result["outputs"].values())


def test_self_test_and_bench(run: Run, bundle: Bundle) -> None:
    completed = run(bundle.directory, "--self-test", "--bench", "--runs", "2", "--sequence", "20")
    assert completed.returncode == 0, completed.stdout + completed.stderr
    assert "aoti on cpu, libtorch 2." in completed.stdout
    assert "computes in bf16\n" in completed.stdout
    assert "token ids equal: passed\n" in completed.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ("--target", "onnx"),
            "this build of skrr has no ONNX Runtime; configure it with -DONNXRUNTIME_ROOT=DIRECTORY",
        ),
        (("--threads", "2"), "prepacking and threads are ONNX Runtime's; the target aoti has none"),
        (("--device", "cuda"), "no GPU: libtorch 2."),
    ],
)
def test_what_it_cannot_do_is_said(options: tuple[str, ...], message: str, run: Run, bundle: Bundle) -> None:
    completed = run(bundle.directory, "--bench", *options)
    assert completed.returncode == 2
    assert message in completed.stderr


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"cpu": "AMX9000"}, "was compiled for processors with AMX9000, this one has "),
        ({"packages": {"cuda": "model.onnx"}}, "was compiled for cuda, not for cpu"),
        ({"packages": {"cpu": "model.onnx"}, "torch": "1.0"}, "model.onnx (it was compiled with torch 1.0): "),
    ],
)
def test_packages_that_do_not_run_here(
    entry: dict[str, Any], message: str, run: Run, bundle: Bundle, tmp_path: Path
) -> None:
    directory = Path(shutil.copytree(bundle.directory, tmp_path / "b"))
    edit(lambda document: document["targets"]["aoti"].update(entry))(directory)
    completed = run(directory, "--bench", "--target", "aoti")
    assert completed.returncode == 2
    assert message in completed.stderr
    assert completed.stderr.count("\n") == 1
