"""What follows from a bundle and a user's choices, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from skrr_export.errors import SkrrError
from skrr_export.pipelines import PRESETS
from skrr_export.triton import choices, cores
from skrr_export.triton.choices import Choices, decide, default_name
from tests.triton.manifests import bundle, engine

RTX = {"tensorrt-rtx": {"file": "model.tensorrt-rtx.engine"}}


def tensorrt(profile: str = "1x1:1x77:8x512", **changes: Any) -> dict[str, Any]:
    return {"tensorrt": engine(profile, **changes)}


@pytest.mark.parametrize(
    ("dtype", "chosen", "backend", "file", "output"),
    [
        ("fp32", {}, "python", "model.py", "fp32"),
        ("bf16", {}, "python", "model.py", "fp32"),
        ("fp32", {"backend": "onnxruntime"}, "onnxruntime", "model.onnx", "fp32"),
        ("fp16", {"backend": "onnxruntime"}, "onnxruntime", "model.cpu.onnx", "fp32"),
        ("fp16", {"device": "cuda"}, "onnxruntime", "model.onnx", "fp16"),
        ("bf16", {"device": "cuda"}, "onnxruntime", "model.onnx", "bf16"),
        ("fp16", {"device": "cuda", "backend": "python"}, "python", "model.py", "fp16"),
        ("bf16", {"device": "cuda", "backend": "python"}, "python", "model.py", "fp32"),
    ],
)
def test_the_backend_its_file_and_the_precision_of_what_comes_out(
    dtype: str, chosen: dict[str, Any], backend: str, file: str, output: str
) -> None:
    serving = decide(bundle(dtype=dtype), Choices(**chosen))
    assert (serving.backend, serving.file, serving.dtype.name) == (backend, file, output)


def test_numpy_has_no_bf16_to_rearrange() -> None:
    """In which an encoder on a GPU gives its rows."""
    words = (
        "the pipeline 'auraflow' takes some of the encoder's rows only, which a model in Python does, and numpy has no "
        "bf16: use --backend python, or export again with --dtype fp16"
    )
    zeroed = bundle("auraflow", "bf16")
    with pytest.raises(SkrrError) as caught:
        decide(zeroed, Choices(device="cuda"))
    assert str(caught.value) == words
    assert decide(zeroed, Choices(device="cuda", backend="python")).dtype.name == "fp32"
    assert decide(bundle("auraflow", "fp16"), Choices(device="cuda")).finisher == "t5_rows"


@pytest.mark.parametrize(
    ("preset", "length", "rows"),
    [
        ("plain", -1, -1),
        ("cogview4", -1, -1),
        ("hunyuanvideo/text_encoder", 351, 256),
        ("lumina2", 256, 256),
        (replace(PRESETS["sana"], prefix_on_top=False, max_length=500, crop=(1, 201)), -1, -1),
        (replace(PRESETS["z-image"], chat=None), 512, -1),
        (replace(PRESETS["cogview4"], padding="max_length", max_length=70), 80, 80),
        (replace(PRESETS["hunyuanvideo/text_encoder"], max_rows=20), 351, 20),
    ],
    ids=str,
)
def test_how_many_tokens_and_rows_there_are(preset: Any, length: int, rows: int) -> None:
    """Any number of Sana's, whose negative prompts have fewer tokens."""
    serving = decide(bundle(preset), Choices())
    assert (serving.length, serving.finished_length) == (length, rows)


def test_an_engine_is_served_in_batches_that_it_takes() -> None:
    chosen = Choices(backend="tensorrt", device="cuda")
    serving = decide(bundle(dtype="fp16", targets=tensorrt("1x1:1x77:6x512")), chosen)
    assert (serving.file, serving.max_batch, serving.dtype.name) == ("model.tensorrt.engine", 6, "fp16")


def test_a_fixed_batch_leaves_none_to_triton() -> None:
    assert decide(bundle(batch=2), Choices()).max_batch == 0
    assert decide(bundle(batch=2), Choices()).rows == [2]


def test_threads_are_shared_between_instances(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choices, "cores", lambda: 12)

    def threads(**chosen: Any) -> int | None:
        return decide(bundle(), Choices(**chosen)).threads

    assert threads(backend="onnxruntime", instances=5) == 2
    assert threads(backend="onnxruntime", instances=100) == 1
    assert threads(backend="onnxruntime") is None  # ONNX Runtime takes them all
    assert threads(backend="python", instances=5) is None  # known only where it runs
    assert threads(backend="python", instances=5, threads=3) == 3


@pytest.mark.parametrize(
    ("content", "expected"),
    [("400000 100000", 4), ("50000 100000", 1), ("max 100000", 64), ("6400000 100000", 64), ("", 64), (None, 64)],
)
def test_a_containers_quota_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None, expected: int
) -> None:
    if content is not None:
        (tmp_path / "cpu.max").write_text(content)
    monkeypatch.setattr(cores, "QUOTA", tmp_path / "cpu.max")
    monkeypatch.setattr(cores.os, "sched_getaffinity", lambda pid: set(range(64)))
    assert cores.cores() == expected


@pytest.mark.parametrize(
    ("directory", "name"),
    [
        ("/b/t5.bundle", "t5"),
        ("/b/t5-v1.1 xxl", "t5-v1_1_xxl"),
        ("/b/é", "encoder"),
        ("/b/..x", "x"),
    ],
)
def test_a_model_is_named_after_the_bundle(directory: str, name: str) -> None:
    assert default_name(bundle(directory=directory)) == name


@pytest.mark.parametrize(
    ("made", "chosen", "words"),
    [
        ({}, {"backend": "vllm"}, "unknown backend 'vllm'; known: onnxruntime, tensorrt, python"),
        ({}, {"device": "tpu"}, "unknown device 'tpu'; known: cpu, cuda"),
        ({}, {"name": "../t5"}, "'../t5' is no model name: letters, digits, '_', '-' and '.' make one"),
        ({}, {"name": ".t5"}, "'.t5' is no model name"),
        ({}, {"instances": 0}, "instances: must be at least 1, not 0"),
        ({}, {"max_batch": -1}, "largest batch: must be at least 1, not -1"),
        ({}, {"threads": 0}, "threads: must be at least 1, not 0"),
        ({}, {"backend": "tensorrt"}, "engines run on an NVIDIA GPU: use --device cuda"),
        ({}, {"device": "cuda", "threads": 2}, "threads are for a CPU; --device cuda takes none"),
        ({"batch": 2}, {"max_batch": 4}, "the bundle's batch size is fixed at 2: leave --max-batch out"),
        (
            {"sequence": 77},
            {},
            "the bundle takes 77 tokens and nothing else, the pipeline 'plain' feeds as many tokens as a prompt has: "
            "export again without --sequence",
        ),
        ({"pipeline": "sd3/text_encoder_3", "sequence": 77}, {}, "the pipeline 'sd3' feeds 256 tokens"),
        ({"targets": {"pt2": {"file": "model.pt2"}}}, {}, "/bundles/t5.bundle has no target 'onnx'; it has: pt2"),
        (
            {"dtype": "fp16", "targets": {"onnx": {"file": "model.onnx"}}},
            {"backend": "onnxruntime"},
            "/bundles/t5.bundle has no ONNX graph that computes in fp32; export again",
        ),
        (
            {},
            {"backend": "tensorrt", "device": "cuda"},
            "/bundles/t5.bundle has no target 'tensorrt'; it has: onnx",
        ),
        (
            {"targets": RTX},
            {"backend": "tensorrt", "device": "cuda"},
            "/bundles/t5.bundle has an engine of TensorRT-RTX, which Triton does not run: export again --to tensorrt "
            "on the server's GPU, or use --backend onnxruntime",
        ),
        (
            {"targets": tensorrt(stripped=True)},
            {"backend": "tensorrt", "device": "cuda"},
            "model.tensorrt.engine has no weights, and Triton gives it none: export again without --strip-weights",
        ),
        (
            {"targets": tensorrt("1x1:1x77:8x77")},
            {"backend": "tensorrt", "device": "cuda"},
            "model.tensorrt.engine takes 1x1:1x77:8x77, and not a prompt of 512 tokens alone: export again",
        ),
        (
            {"targets": tensorrt("4x512:4x512:8x512")},
            {"backend": "tensorrt", "device": "cuda"},
            "and not a prompt of 512 tokens alone",
        ),
        (
            {"targets": tensorrt()},
            {"backend": "tensorrt", "device": "cuda", "max_batch": 9},
            "the engine takes batches of up to 8, not 9",
        ),
    ],
)
def test_what_cannot_work_is_refused(made: dict[str, Any], chosen: dict[str, Any], words: str) -> None:
    with pytest.raises(SkrrError) as caught:
        decide(bundle(**made), Choices(**chosen))
    assert words in str(caught.value)
