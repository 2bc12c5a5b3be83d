"""The command line, called within the test's own process where that makes no difference."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from skrr_export.cli import main
from skrr_export.exporting import ExportOptions, export_checkpoint
from skrr_export.plan import Plan
from tests.checkpoints import bert_checkpoint, t5_checkpoint

PLAN = Plan("t5", ((0, 0), (None, 0), (0, 2)))


@dataclass(frozen=True)
class Result:
    """What a command did."""

    code: int
    out: str
    err: str


Run = Callable[..., Result]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """Run `skrr-export` with these arguments."""

    def call(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["skrr-export", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main()
        captured = capsys.readouterr()
        code = caught.value.code
        assert isinstance(code, int)
        return Result(code, captured.out, captured.err)

    handler = signal.getsignal(signal.SIGTERM)
    yield call
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture(scope="session")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A T5 of three layers with a tokenizer, in one file."""
    return t5_checkpoint(tmp_path_factory.mktemp("cli") / "t5", tokenizer=True)


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of three layers that takes 71 tokens, with a tokenizer."""
    return bert_checkpoint(tmp_path_factory.mktemp("cli") / "bert", tokenizer=True)


@pytest.fixture(scope="session")
def bundle(remembered_traces: None, t5: Path) -> Path:
    """A bundle of the T5 under `PLAN`, that no test changes."""
    return export_checkpoint(t5, t5.parent / "t5.bundle", ExportOptions(plan=PLAN)).bundle.directory
