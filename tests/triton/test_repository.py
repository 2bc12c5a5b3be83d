"""The model repository on disk."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from skrr_export.bundle import Bundle, open_bundle
from skrr_export.errors import BundleError, OutputError
from skrr_export.triton.choices import Choices
from skrr_export.triton.repository import write_repository
from skrr_export.triton.tokenizer import open_tokenizer
from tests.bundles import forge_hashes
from tests.checkpoints import contents
from tests.runtimes.presets import BundleFor
from tests.triton.fake import read_config

SMALL = ["config.json", "manifest.json", "tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json"]


def files(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file())


def test_three_models_of_which_the_encoder_is_the_bundle(tmp_path: Path, plain: Bundle) -> None:
    write_repository(plain, tmp_path / "models", Choices())
    assert files(tmp_path / "models") == sorted(
        [
            "plain/1/.keep",
            *(f"plain{model}/config.pbtxt" for model in ("", "_encoder", "_tokenizer")),
            *(f"plain_encoder/1/{name}" for name in ("model.py", *files(plain.directory))),
            *(f"plain_tokenizer/1/{name}" for name in ("model.py", *SMALL)),
        ]
    )
    assert open_bundle(tmp_path / "models" / "plain_encoder" / "1").manifest == plain.manifest
    assert open_tokenizer(tmp_path / "models" / "plain_tokenizer" / "1")(["a cat"]).input_ids.shape == (1, 6)
    for model in ("plain", "plain_encoder", "plain_tokenizer"):
        assert read_config(tmp_path / "models" / model / "config.pbtxt").name == model


def test_rows_are_taken_by_a_model_that_needs_the_manifest_only(tmp_path: Path, bundle_for: BundleFor) -> None:
    bundle = bundle_for("packed")
    write_repository(bundle, tmp_path / "models", Choices(name="t5"))
    assert files(tmp_path / "models" / "t5_rows") == ["1/manifest.json", "1/model.py", "config.pbtxt"]
    assert read_config(tmp_path / "models" / "t5_rows" / "config.pbtxt").name == "t5_rows"
    write_repository(bundle, tmp_path / "models", Choices(name="t5"), replace=True)


def test_the_bundles_files_are_linked_and_not_copied(tmp_path: Path, plain: Bundle) -> None:
    write_repository(plain, tmp_path / "models", Choices())
    for name in files(plain.directory):
        assert (tmp_path / "models/plain_encoder/1" / name).samefile(plain.directory / name)
    for name in SMALL:
        assert not (tmp_path / "models/plain_tokenizer/1" / name).samefile(plain.directory / name)


@pytest.mark.parametrize(
    ("backend", "file"), [("onnxruntime", "model.cpu.onnx"), ("python", "model.py")], ids=["onnxruntime", "python"]
)
def test_the_backend_finds_its_file(tmp_path: Path, half: Bundle, backend: str, file: str) -> None:
    write_repository(half, tmp_path / "models", Choices(backend=backend, name="t5"))
    encoder = tmp_path / "models" / "t5_encoder"
    config = read_config(encoder / "config.pbtxt")
    assert (config.backend, config.default_model_filename) == (backend, file)
    assert (encoder / "1" / file).is_file()
    assert (encoder / "1" / "model.py").exists() == (backend == "python")


def test_a_repository_is_replaced_only_when_asked_to(tmp_path: Path, plain: Bundle) -> None:
    repository = tmp_path / "models"
    write_repository(plain, repository, Choices())
    before = contents(repository)
    with pytest.raises(OutputError, match="exists; --force replaces it"):
        write_repository(plain, repository, Choices(instances=2))
    assert contents(repository) == before
    write_repository(plain, repository, Choices(instances=2), replace=True)
    assert read_config(repository / "plain_encoder" / "config.pbtxt").instance_group[0].count == 2


def test_other_models_are_not_removed(tmp_path: Path, plain: Bundle) -> None:
    repository = tmp_path / "models"
    write_repository(plain, repository, Choices())
    (repository / "vae").mkdir()
    before = contents(repository)
    with pytest.raises(OutputError, match="also holds vae, which --force would remove; choose another output"):
        write_repository(plain, repository, Choices(), replace=True)
    assert contents(repository) == before


def test_a_directory_that_is_no_repository_is_not_replaced(tmp_path: Path, plain: Bundle) -> None:
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "notes").write_text("mine")
    with pytest.raises(OutputError, match="is not a Triton repository of plain"):
        write_repository(plain, tmp_path, Choices(), replace=True)


def test_a_bundle_without_a_tokenizer_is_refused(tmp_path: Path, plain: Bundle) -> None:
    shutil.copytree(plain.directory, tmp_path / "bare.bundle")
    shutil.rmtree(tmp_path / "bare.bundle" / "tokenizer")
    manifest = json.loads((tmp_path / "bare.bundle" / "manifest.json").read_text())
    for name in [name for name in manifest["files"] if name.startswith("tokenizer/")]:
        del manifest["files"][name]
    (tmp_path / "bare.bundle" / "manifest.json").write_text(json.dumps(manifest))
    forge_hashes(Bundle(tmp_path / "bare.bundle", plain.manifest))
    with pytest.raises(BundleError, match="carries no tokenizer, so it takes token ids only"):
        write_repository(open_bundle(tmp_path / "bare.bundle"), tmp_path / "models", Choices())
    assert [path.name for path in tmp_path.iterdir()] == ["bare.bundle"]


@pytest.mark.parametrize("name", SMALL)
def test_a_tokenizers_directory_is_checked(tmp_path: Path, plain: Bundle, name: str) -> None:
    write_repository(plain, tmp_path / "models", Choices())
    tokenizer = tmp_path / "models" / "plain_tokenizer" / "1"
    path = tokenizer / name
    content = path.read_bytes()
    if name == "manifest.json":
        path.write_text("{}")
        with pytest.raises(BundleError, match=f"^{path}: malformed manifest: "):
            open_tokenizer(tokenizer)
    path.write_bytes(content + b" ")
    if name != "manifest.json":
        with pytest.raises(BundleError, match=f"^{path} is {len(content) + 1} bytes long, the manifest says"):
            open_tokenizer(tokenizer)
    path.unlink()
    with pytest.raises(BundleError, match=r"missing from the bundle|cannot read manifest.json: No"):
        open_tokenizer(tokenizer)
