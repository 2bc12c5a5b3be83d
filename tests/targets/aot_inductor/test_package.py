"""AOTInductor packages: code without weights, run from Python and from C++ on those of the bundle.

Compiling takes half a minute, so there are few packages, and each is looked at from every side.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils import cpp_extension

from skrr_export.bundle import Bundle, open_bundle
from skrr_export.errors import BundleError, DependencyError, InputError
from skrr_export.exporting import ExportOptions, export_checkpoint
from skrr_export.measure.verify import verify
from skrr_export.targets import open_target
from skrr_export.targets.aot_inductor import session
from tests import reference
from tests.bundles import PLAN, export, forge_hashes, random_ids, random_mask, relative_error, run_python, soften
from tests.checkpoints import bert_checkpoint, contents, t5_checkpoint

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="AOTInductor needs g++ to compile with")

RANDOM = np.random.default_rng(0)
IDS, MASK = random_ids(RANDOM, 3, 23), random_mask(RANDOM, 3, 23)


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return soften(t5_checkpoint(tmp_path_factory.mktemp("t5") / "t5", layers=4, tokenizer=True))


@pytest.fixture(scope="module")
def bundle(t5: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Two layers' weights run at two positions each."""
    return export(t5, tmp_path_factory.mktemp("bundle") / "b", PLAN, targets=("aoti",))


@pytest.mark.parametrize(("batch", "sequence"), [(3, 23), (1, 1), (1, 2), (2, 1), (5, 300), (1, 512)])
def test_it_equals_transformers_at_any_size(batch: int, sequence: int, bundle: Bundle, t5: Path) -> None:
    random = np.random.default_rng(batch * 1000 + sequence)
    ids, mask = random_ids(random, batch, sequence), random_mask(random, batch, sequence)
    hidden = open_target(bundle, "aoti").encode(ids, mask)["last_hidden_state"]
    assert relative_error(hidden, reference.encode(t5, PLAN, ids, mask)) < 2e-5


def test_verify_passes(bundle: Bundle, t5: Path) -> None:
    report = verify(bundle, open_target(bundle, "aoti"), prompts=["a cat", ""], reference=t5)
    assert report.passed, report.failures


def test_bert_in_bf16(tmp_path: Path) -> None:
    checkpoint = bert_checkpoint(tmp_path / "bert", layers=2)
    half = export(checkpoint, tmp_path / "b", [(0, 1), (0, 1)], targets=("aoti",), dtype="bf16", masked=False)
    opened = open_target(half, "aoti")
    assert opened.computes_in.name == "bf16"
    hidden = opened.encode(IDS)["last_hidden_state"]
    assert hidden.dtype == np.float32
    truth = reference.encode(checkpoint, [(0, 1), (0, 1)], IDS, rounded_to=torch.bfloat16)
    assert 1e-5 < relative_error(hidden, truth) < 8e-2


# What the package holds


def test_weights_are_stored_once_and_not_in_the_package(bundle: Bundle, t5: Path) -> None:
    """Every constant is one of the bundle's tensors; those that PLAN re-uses are there once, and nothing else is."""
    package = bundle.target_file("aoti")
    names = torch._inductor.aoti_load_package(str(package)).get_constant_fqns()
    stored = {name for name in bundle.tensors() if not name.startswith("_pad.")}
    assert sorted(names) == sorted(stored)
    table = np.frombuffer((t5 / "model.safetensors").read_bytes()[-4096:], np.uint8).tobytes()  # some weight's end
    with zipfile.ZipFile(package) as archive:
        for entry in archive.infolist():
            assert table[-1024:] not in archive.read(entry)


@pytest.mark.slow
def test_package_size_does_not_go_with_the_width(bundle: Bundle, tmp_path: Path) -> None:
    wide = t5_checkpoint(tmp_path / "wide", layers=1, d_model=256, d_ff=1024, vocab_size=4000)
    made = export(wide, tmp_path / "b", targets=("aoti",))
    assert made.weights.stat().st_size > 7_000_000
    assert made.target_file("aoti").stat().st_size < 3_000_000
    # ... and mapped: running it copies no weight.
    code = (
        "import sys, numpy as np; from skrr_export import open_session\n"
        "session = open_session(sys.argv[1], target='aoti')\n"
        "rollup = lambda: dict(line.split(':') for line in open('/proc/self/smaps_rollup').readlines()[1:])\n"
        "anonymous = lambda: int(rollup()['Anonymous'].split()[0])\n"
        "before = anonymous(); session.encode(np.ones((1, 4), np.int64)); after = anonymous()\n"
        "print(after - before, 'weights.safetensors' in open('/proc/self/maps').read())"
    )
    grown, mapped = run_python(code, made.directory).stdout.split()
    assert mapped == "True"
    assert int(grown) * 1024 < made.weights.stat().st_size / 2


def test_cpp_runs_it_on_mapped_weights(bundle: Bundle, t5: Path, tmp_path: Path) -> None:
    program = tmp_path / "run_package"
    includes = [f"-I{path}" for path in cpp_extension.include_paths()]
    libraries = Path(torch.__file__).parent / "lib"
    abi = f"-D_GLIBCXX_USE_CXX11_ABI={int(torch._C._GLIBCXX_USE_CXX11_ABI)}"
    source = Path(__file__).with_name("run_package.cpp")
    linked = [f"-L{libraries}", f"-Wl,-rpath,{libraries}", "-ltorch", "-ltorch_cpu", "-lc10"]
    subprocess.run(["g++", "-std=c++20", abi, *includes, source, "-o", program, *linked], check=True)
    tensors = tmp_path / "tensors.txt"
    lines = [
        " ".join(map(str, (name, tensor.offset, len(tensor.shape), *tensor.shape)))
        for name, tensor in bundle.tensors().items()
        if not name.startswith("_pad.")
    ]
    tensors.write_text("\n".join(lines))
    (tmp_path / "ids").write_bytes(IDS.tobytes())
    (tmp_path / "mask").write_bytes(MASK.tobytes())
    arguments = [bundle.target_file("aoti"), bundle.weights, tensors, tmp_path / "ids", tmp_path / "mask"]
    subprocess.run([program, *arguments, tmp_path / "out", *map(str, IDS.shape)], check=True)
    hidden = np.frombuffer((tmp_path / "out").read_bytes(), np.float32).reshape(*IDS.shape, -1)
    assert relative_error(hidden, reference.encode(t5, PLAN, IDS, MASK)) < 2e-5


# What is refused


def test_no_compiler_is_said_before_anything_is_written(
    t5: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    before = contents(tmp_path)
    with pytest.raises(DependencyError, match="needs a C\\+\\+ compiler, and there is no no-such-compiler: install g"):
        export_checkpoint(t5, tmp_path / "b", ExportOptions(targets=("onnx", "aoti")))
    assert contents(tmp_path) == before


def changed(bundle: Bundle, directory: Path, **entry: Any) -> Bundle:
    """A copy of the bundle whose manifest says something else of its package."""
    shutil.copytree(bundle.directory, directory)
    manifest = json.loads((directory / "manifest.json").read_text())
    manifest["targets"]["aoti"].update(entry)
    (directory / "manifest.json").write_text(json.dumps(manifest))
    return open_bundle(directory)


def test_another_processor_is_said(bundle: Bundle, tmp_path: Path) -> None:
    other = changed(bundle, tmp_path / "b", cpu="AMX9000")
    with pytest.raises(BundleError, match=r"compiled for processors with AMX9000, this one has \w+; export again"):
        open_target(other, "aoti")
    assert session._runs("AVX2", "AVX512")
    assert not session._runs("AVX512", "AVX2")


def test_a_damaged_package_is_named(bundle: Bundle, tmp_path: Path) -> None:
    other = changed(bundle, tmp_path / "b", torch="1.0")
    other.target_file("aoti").write_bytes(b"not a package")
    forge_hashes(other)
    with pytest.raises(BundleError, match=r"cannot load .*aoti\.pt2 \(it was compiled with torch 1\.0\)"):
        open_target(open_bundle(other.directory), "aoti")


def test_a_device_it_was_not_compiled_for(bundle: Bundle) -> None:
    with pytest.raises((InputError, BundleError), match=r"no GPU|was compiled for cpu, not for cuda"):
        open_target(bundle, "aoti", device="cuda")
