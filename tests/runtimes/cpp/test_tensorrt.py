"""The TensorRT backends, where there are headers, a library and a GPU: TENSORRT_ROOT or TENSORRT_RTX_ROOT says where.

It cannot see what a machine without them would: that is what the other tests' builds are.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from skrr_export.exporting import ExportOptions, export_checkpoint
from skrr_export.targets import open_target
from skrr_export.tokenization import encode_prompts
from tests.bundles import relative_error
from tests.runtimes.cpp import building


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize(("target", "setting"), [("tensorrt", "TENSORRT_ROOT"), ("tensorrt-rtx", "TENSORRT_RTX_ROOT")])
def test_engine_gives_what_pythons_session_gives(target: str, setting: str, t5: Path, tmp_path: Path) -> None:
    if setting not in os.environ:
        pytest.skip(f"{setting} does not say where the headers are")
    bundle = export_checkpoint(t5, tmp_path / "b", ExportOptions(dtype="fp16", targets=(target,), vectors=4)).bundle
    try:
        options = [f"-D{setting}={os.environ[setting]}", "-DSKRR_WITH_AOTI=OFF", "-DSKRR_WITH_ONNXRUNTIME=OFF"]
        built = building.install(tmp_path / "skrr", *options)
    except building.UnavailableError as error:
        pytest.skip(str(error))
    prompts, output = ["a cat", "two dogs on a hill", ""], tmp_path / "e.npy"
    arguments = [argument for prompt in prompts for argument in ("--prompt", prompt)]
    subprocess.run([built.tool, bundle.directory, "--self-test", *arguments, "-o", output], check=True)
    truth = encode_prompts(open_target(bundle, target, device="cuda"), prompts)["last_hidden_state"]
    assert relative_error(np.load(output), truth) < 1e-5
