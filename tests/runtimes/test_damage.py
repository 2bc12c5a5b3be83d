"""The Python loader, against the wording that all loaders share."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from skrr_export.bundle import open_bundle
from skrr_export.errors import BundleError
from skrr_export.exporting import export_checkpoint
from skrr_export.targets import open_target
from tests.checkpoints import t5_checkpoint
from tests.runtimes.damage import CASES, Damage


@pytest.fixture(scope="module")
def bundle(remembered_traces: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("damage")
    return export_checkpoint(t5_checkpoint(directory / "t5"), directory / "b").bundle.directory


def load(directory: Path, *, hashed: bool) -> None:
    opened = open_bundle(directory)
    if hashed:
        opened.check_hashes()
        opened.tensors()
    open_target(opened)


@pytest.mark.parametrize("damage", CASES, ids=lambda damage: damage.name)
def test_a_damaged_bundle_is_refused_in_the_shared_words(damage: Damage, bundle: Path, tmp_path: Path) -> None:
    directory = Path(shutil.copytree(bundle, tmp_path / "b"))
    damage.damage(directory)
    with pytest.raises(BundleError) as caught:
        load(directory, hashed=damage.hashed)
    assert re.fullmatch(damage.pattern(directory), str(caught.value)), str(caught.value)
