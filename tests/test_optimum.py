"""Bundles open in optimum as they are, and give there what transformers gives.

optimum's ONNX package wants an older transformers than we do, so it has an environment of its own, the one that the
benchmarks use; made once, outside the repository.
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from skrr_export.bundle import Bundle
from tests.bundles import export, relative_error, soften
from tests.checkpoints import bert_checkpoint, t5_checkpoint
from tests.families.clip import clip_checkpoint
from tests.families.decoders import decoder_checkpoint

OPTIMUM = """
import sys, json, numpy, torch, optimum.onnxruntime
for job in json.loads(sys.argv[1]):
    given = {name: torch.from_numpy(array) for name, array in numpy.load(job["inputs"]).items()}
    model = getattr(optimum.onnxruntime, job["class"]).from_pretrained(job["bundle"], file_name=job["graph"])
    numpy.savez(job["outputs"], **{name: array.numpy() for name, array in model(**given).items()})
"""
IDS = np.array([[11, 12, 13, 1, 0, 0], [7, 9, 11, 13, 15, 1]])
MASK = np.array([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]])
TOLERANCE = 5e-5
"""Of a row, as in the families' own tests; a bf16 bundle's weights are rounded."""

pytestmark = pytest.mark.slow  # the environment is 1.3 GB to install


@dataclass(frozen=True)
class Case:
    """A bundle, and what opens it."""

    make: Callable[[Path], Path]
    """Writes the checkpoint."""
    model: str
    """Of transformers."""
    pipeline: str = "plain"
    opened_by: str = "ORTModelForFeatureExtraction"
    dtype: str = "fp32"
    tolerance: float = TOLERANCE


def _t5(directory: Path) -> Path:
    return soften(t5_checkpoint(directory))


def _clip(directory: Path) -> Path:
    return clip_checkpoint(directory, max_position_embeddings=77)


CASES = {
    "t5": Case(_t5, "T5EncoderModel"),
    "t5 in bf16": Case(_t5, "T5EncoderModel", dtype="bf16", tolerance=0.05),
    "bert": Case(bert_checkpoint, "BertModel"),
    "clip": Case(_clip, "CLIPTextModelWithProjection", "sd1.5"),
    "qwen3": Case(lambda directory: decoder_checkpoint(directory, "qwen3"), "Qwen3Model"),
    # What has no last hidden state is opened by the class for any outputs.
    "clip's hidden state and projection": Case(
        _clip, "CLIPTextModelWithProjection", "sdxl/text_encoder_2", "ORTModelForCustomTasks"
    ),
}


@pytest.fixture(scope="module")
def python() -> Path:
    """The interpreter of optimum's environment."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
        environments = importlib.import_module("environments")
        del sys.modules["environments"]
    try:
        found: Path = environments.peer_python("optimum_onnx")
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"optimum cannot be installed here: {error}")
    return found


@pytest.fixture(scope="module")
def given(
    python: Path, remembered_traces: None, tmp_path_factory: pytest.TempPathFactory
) -> Mapping[str, Mapping[str, np.ndarray]]:
    """What optimum gives for each case; one process for all of them."""
    folder = tmp_path_factory.mktemp("optimum")
    jobs = []
    for number, case in enumerate(CASES.values()):
        bundle = export(
            case.make(folder / f"{number}"), folder / f"{number}.bundle", pipeline=case.pipeline, dtype=case.dtype
        )
        np.savez(folder / f"{number}.in.npz", **inputs(bundle))
        jobs.append(
            {
                "class": case.opened_by,
                "bundle": str(bundle.directory),
                "graph": bundle.onnx_graph("cpu").name,
                "inputs": str(folder / f"{number}.in.npz"),
                "outputs": str(folder / f"{number}.out.npz"),
            }
        )
    done = subprocess.run([python, "-c", OPTIMUM, json.dumps(jobs)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return {name: dict(np.load(job["outputs"])) for name, job in zip(CASES, jobs, strict=True)}


@pytest.mark.parametrize("name", CASES)
def test_optimum_gives_what_transformers_gives(
    name: str, given: Mapping[str, Mapping[str, np.ndarray]], tmp_path: Path
) -> None:
    import transformers

    case = CASES[name]
    model = getattr(transformers, case.model).from_pretrained(case.make(tmp_path), attn_implementation="eager").eval()
    masked = case.pipeline == "plain"
    with torch.inference_mode():
        mask = {"attention_mask": torch.from_numpy(MASK)} if masked else {}
        expected = model(torch.from_numpy(IDS), **mask, output_hidden_states=True)
    assert given[name]
    for output, array in given[name].items():
        kind, _, layer = output.partition(".")
        truth: Any = expected[kind]
        assert relative_error(array, (truth[int(layer)] if layer else truth).numpy()) < case.tolerance


def inputs(bundle: Bundle) -> dict[str, np.ndarray]:
    return {name: {"input_ids": IDS, "attention_mask": MASK}[name] for name in bundle.manifest.inputs}
