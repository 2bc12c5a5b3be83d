"""`plan show`: the page, the other plans on it, and the line about how a plan was found."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from skrr_export.page.plan import page
from skrr_export.plan import Plan
from tests.bundles import run_python
from tests.checkpoints import contents
from tests.cli.conftest import PLAN, Run
from tests.page.provenances import provenance

SHOWN = Plan("t5", ((1, 0), (1, 2), (2, 2), (None, 3)), provenance())
OTHER = Plan("t5", SHOWN.sources, provenance("laco"))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a test works, with plans in it."""
    monkeypatch.chdir(tmp_path)
    Path("plan.json").write_text(SHOWN.to_json())
    Path("other.json").write_text(OTHER.to_json())
    Path("bare.json").write_text(PLAN.to_json())
    return tmp_path


def test_the_page_is_the_librarys(run: Run, folder: Path) -> None:
    result = run("plan", "show", "plan.json", "--html", "plan.html", "--with", "other.json", "--with", "bare.json")
    assert (result.code, result.err) == (0, "")
    assert Path("plan.html").read_text() == page(SHOWN, {"other.json": OTHER, "bare.json": PLAN})
    assert contents(folder).keys() == {"plan.json", "other.json", "bare.json", "plan.html"}


def test_an_existing_page_is_replaced(run: Run, folder: Path) -> None:
    Path("plan.html").write_text("old")
    assert run("plan", "show", "bare.json", "--html", "plan.html", "--svg", "plan.svg").code == 0
    assert Path("plan.html").read_text() == page(PLAN, {})
    assert Path("plan.svg").read_text().startswith("<svg ")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["absent.json", "--html", "a.html"], "cannot read the plan 'absent.json': No such file or directory"),
        (["plan.json", "--html", "a.html", "--with", "absent.json"], "cannot read the plan 'absent.json': No such"),
        (["plan.json", "--html", "a.html", "--with", "bad.json"], "bad.json: not a JSON file: "),
        (["plan.json", "--html", "absent/a.html"], "cannot write absent/a.html: No such file or directory"),
        (["plan.json", "--html", "."], "cannot write .: Is a directory"),
        (["plan.json", "--with", "other.json"], "--with adds plans to a page; name its file with --html (see "),
    ],
)
def test_what_cannot_be_done_changes_nothing(run: Run, folder: Path, arguments: list[str], complaint: str) -> None:
    Path("bad.json").write_text("{")
    before = contents(folder)
    result = run("plan", "show", *arguments)
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith(f"error: {complaint}")
    assert result.err.count("\n") == 1
    assert contents(folder) == before


def test_a_bad_other_plan_leaves_the_old_files_as_they_were(run: Run, folder: Path) -> None:
    Path("plan.html").write_text("old")
    before = contents(folder)
    assert run("plan", "show", "plan.json", "--svg", "a.svg", "--html", "plan.html", "--with", "absent.json").code == 2
    assert contents(folder) == before


def test_the_terminal_says_how_the_plan_was_found(run: Run, folder: Path) -> None:
    bare, shown = run("plan", "show", "bare.json").out, run("plan", "show", "plan.json").out
    assert shown.splitlines()[-1] == (
        "method Skrr+, sparsity 41.9% (40.0% wanted), D 0.0123 (4.1% of the dense mean square)"
    )
    assert bare.splitlines()[-1].startswith("└")
    printed = json.loads(run("plan", "show", "plan.json", "--json", "--html", "plan.html").out)
    assert printed == {**SHOWN.to_dict(), "counts": SHOWN.counts()}
    assert run("plan", "show", "plan.json", "--quiet", "--html", "plan.html").out == ""


CALL = """
import os, sys
from skrr_export.cli import main
sys.argv = ["skrr-export", *map(os.fsdecode, map(bytes.fromhex, sys.argv[1:]))]
try:
    main()
except SystemExit as error:
    assert error.code == 0, error.code
heavy = {"torch", "transformers", "onnxruntime", "onnx", "onnx_ir", "huggingface_hub", "numpy"}
assert not heavy & sys.modules.keys()
"""


def test_odd_names_and_a_poor_terminal_and_nothing_heavy(folder: Path) -> None:
    os.link("other.json", b"\xff<b>.json")
    Path("plan.json").write_text(Plan("t5", SHOWN.sources, provenance("日本\ud800")).to_json())
    arguments = ["plan", "show", "plan.json", "--html", "plan.html", "--with", "\udcff<b>.json"]
    shown = run_python(CALL, *(os.fsencode(item).hex() for item in arguments), PYTHONIOENCODING="ascii").stdout
    assert shown.splitlines()[-1].startswith("method ???, sparsity 41.9%")
    assert "\ufffd&lt;b&gt;.json" in Path("plan.html").read_text()
