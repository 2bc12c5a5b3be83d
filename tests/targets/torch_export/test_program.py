"""torch.export programs: no weights inside, any plan on those of the bundle, and the same bytes each time."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from safetensors.torch import load_file

from skrr_export.bundle import Bundle, open_bundle
from skrr_export.errors import BundleError, InputError
from skrr_export.measure.verify import verify
from skrr_export.targets import open_target
from tests import reference
from tests.bundles import (
    PLAN,
    SPECIAL_CASES,
    examples,
    export,
    forge_hashes,
    plans,
    random_ids,
    random_mask,
    relative_error,
    run_python,
    soften,
)
from tests.checkpoints import bert_checkpoint, t5_checkpoint
from tests.reference import Sources

RANDOM = np.random.default_rng(0)
IDS, MASK = random_ids(RANDOM, 3, 23), random_mask(RANDOM, 3, 23)
TOLERANCE = {"t5": 2e-5, "bert": 2e-5}


def pt2(checkpoint: Path, directory: Path, sources: Sources | None = None, **options: Any) -> Bundle:
    return export(checkpoint, directory, sources, targets=("pt2",), **options)


def run(bundle: Bundle, ids: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    return open_target(bundle, "pt2").encode(ids, mask)["last_hidden_state"]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    here = tmp_path_factory.mktemp("checkpoints")
    return {
        "t5": soften(t5_checkpoint(here / "t5", layers=4, tokenizer=True)),
        "bert": bert_checkpoint(here / "bert", layers=4),
    }


@examples(2)
@given(sources=plans(4))
def test_random_plans_equal_transformers(
    sources: Sources, checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> None:
    for family, checkpoint in checkpoints.items():
        bundle = pt2(checkpoint, tmp_path_factory.mktemp("b") / "b", sources)
        truth = reference.encode(checkpoint, sources, IDS, MASK)
        assert relative_error(run(bundle, IDS, MASK), truth) < TOLERANCE[family]


@pytest.mark.parametrize(("sources", "masked"), SPECIAL_CASES)
def test_special_plans(sources: Sources, masked: bool, tmp_path: Path) -> None:
    checkpoint = soften(t5_checkpoint(tmp_path / "t5", layers=len(sources)))
    mask = MASK if masked else None
    bundle = pt2(checkpoint, tmp_path / "b", sources, masked=masked)
    assert relative_error(run(bundle, IDS, mask), reference.encode(checkpoint, sources, IDS, mask)) < 2e-5


@pytest.fixture(scope="module")
def bundle(checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return pt2(checkpoints["t5"], tmp_path_factory.mktemp("bundle") / "b", PLAN)


@pytest.mark.parametrize(("batch", "sequence"), [(1, 1), (1, 2), (2, 1), (5, 300), (1, 512)])
def test_sizes_are_free(batch: int, sequence: int, bundle: Bundle, checkpoints: dict[str, Path]) -> None:
    random = np.random.default_rng(batch * 1000 + sequence)
    ids, mask = random_ids(random, batch, sequence), random_mask(random, batch, sequence)
    assert relative_error(run(bundle, ids, mask), reference.encode(checkpoints["t5"], PLAN, ids, mask)) < 2e-5


def test_sizes_can_be_fixed(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    fixed = pt2(checkpoints["t5"], tmp_path / "b", PLAN, batch=3, sequence=23)
    assert relative_error(run(fixed, IDS, MASK), reference.encode(checkpoints["t5"], PLAN, IDS, MASK)) < 2e-5
    with pytest.raises(InputError, match="batch size is fixed at 3, not 2"):
        run(fixed, IDS[:2], MASK[:2])


@pytest.mark.parametrize(("dtype", "tolerance"), [("fp16", 1e-2), ("bf16", 8e-2)])
def test_half_precision_is_computed_as_such(
    dtype: str, tolerance: float, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    half = pt2(checkpoints["t5"], tmp_path / "b", PLAN, dtype=dtype)
    session = open_target(half, "pt2")
    hidden = session.encode(IDS, MASK)["last_hidden_state"]
    assert session.computes_in.name == dtype
    assert session.notes == ()
    assert hidden.dtype == {"fp16": np.float16, "bf16": np.float32}[dtype]
    rounded = {"fp16": torch.float16, "bf16": torch.bfloat16}[dtype]
    truth = reference.encode(checkpoints["t5"], PLAN, IDS, MASK, rounded_to=rounded)
    assert 1e-5 < relative_error(hidden.astype(np.float32), truth) < tolerance
    report = verify(half, session, prompts=["a cat"], reference=checkpoints["t5"])
    assert report.passed, report.failures
    assert report.computes_in == dtype


# What the file is


def test_it_holds_no_weights(bundle: Bundle) -> None:
    with zipfile.ZipFile(bundle.target_file("pt2")) as archive:
        sizes = {entry.filename: entry.file_size for entry in archive.infolist()}
    assert not [name for name in sizes if "/weights/weight_" in name]
    assert sum(sizes.values()) - max(sizes.values()) < 1000  # the graph, and next to nothing else


def test_a_user_loads_it_with_torch_and_safetensors_alone(bundle: Bundle, checkpoints: dict[str, Path]) -> None:
    program = torch.export.load(bundle.target_file("pt2")).module()
    tensors = sorted(load_file(bundle.weights).items())
    weights = {name: tensor for name, tensor in tensors if not name.startswith("_pad.")}
    with torch.inference_mode():
        hidden = program(weights, torch.from_numpy(IDS), torch.from_numpy(MASK))["last_hidden_state"].numpy()
    assert relative_error(hidden, reference.encode(checkpoints["t5"], PLAN, IDS, MASK)) < 2e-5


def test_the_same_export_gives_the_same_bytes(bundle: Bundle, checkpoints: dict[str, Path], tmp_path: Path) -> None:
    again = pt2(checkpoints["t5"], tmp_path / "b", PLAN)
    content = bundle.target_file("pt2").read_bytes()
    assert again.target_file("pt2").read_bytes() == content
    for folder in (Path(__file__).parent, Path(torch.__file__).parent, checkpoints["t5"]):
        assert str(folder).encode() not in content


_ANONYMOUS = """
import sys
import numpy as np
from skrr_export import open_session
session = open_session(sys.argv[1], target="pt2")
session.encode(np.ones((1, 4), np.int64))
fields = dict(line.split(":") for line in open("/proc/self/smaps_rollup").read().splitlines()[1:])
maps = open("/proc/self/maps").read()
print(int(fields["Anonymous"].split()[0]), "weights.safetensors" in maps)
"""


def test_weights_stay_in_the_file(tmp_path: Path) -> None:
    """A second, ten times larger encoder costs no anonymous memory but its activations."""
    used = {}
    for layers, size in ((1, 64), (4, 512)):
        checkpoint = t5_checkpoint(tmp_path / f"c{size}", layers=layers, d_model=size, d_ff=4 * size, vocab_size=2000)
        made = pt2(checkpoint, tmp_path / f"b{size}")
        kib, mapped = run_python(_ANONYMOUS, made.directory).stdout.split()
        assert mapped == "True"
        used[size] = int(kib), made.weights.stat().st_size
    assert used[512][1] > 35_000_000
    assert used[512][0] - used[64][0] < used[512][1] / 1024 / 3


# What is refused


@pytest.mark.parametrize("damage", [b"", b"not a program", None], ids=["empty", "text", "cut"])
def test_a_damaged_program_is_named(damage: bytes | None, bundle: Bundle, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(bundle.directory, tmp_path / "b")
    file = tmp_path / "b" / "model.pt2"
    file.write_bytes(file.read_bytes()[:-3000] if damage is None else damage)
    with pytest.raises(BundleError, match=r"model\.pt2"):
        open_target(open_bundle(tmp_path / "b"), "pt2")
    copied = Bundle(tmp_path / "b", bundle.manifest)
    forge_hashes(copied)
    with pytest.raises(BundleError, match=r"cannot load .*model\.pt2"):
        open_target(open_bundle(tmp_path / "b"), "pt2")


def test_options_of_another_target_are_refused(bundle: Bundle) -> None:
    with pytest.raises(InputError, match="the target pt2 has none"):
        open_target(bundle, "pt2", threads=2)
    with pytest.raises(InputError, match="the target pt2 has none"):
        open_target(bundle, "pt2", mode="prepacked")
    with pytest.raises(BundleError, match="has no target 'onnx'; it has: pt2"):
        open_target(bundle, "onnx")


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
def test_no_gpu_is_said(bundle: Bundle) -> None:
    with pytest.raises(InputError, match=r"no GPU: torch .* sees none"):
        open_target(bundle, "pt2", device="cuda")
