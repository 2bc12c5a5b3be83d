"""What `import skrr_export` offers, and what it costs."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import numpy as np
import pytest

import skrr_export
from tests.bundles import relative_error, run_python
from tests.checkpoints import t5_checkpoint

NAMES = {
    "Bundle", "ExportOptions", "MeasureOptions", "Plan", "SearchOptions", "SkrrError", "encode_prompts",
    "encode_unconditional", "export_checkpoint", "export_pipeline", "measure_bundle", "open_bundle", "open_session",
    "reuse_published", "search_plans", "verify",
}  # fmt: skip
HEAVY = ["torch", "transformers", "onnxruntime", "onnx", "onnx_ir", "onnxscript", "huggingface_hub", "numpy", "rich"]


def test_public_names_are_these() -> None:
    assert set(skrr_export.__all__) == NAMES
    assert len(skrr_export.__all__) == len(NAMES)


@pytest.mark.parametrize("name", sorted(NAMES))
def test_public_name_loads_and_is_explained(name: str) -> None:
    value = getattr(skrr_export, name)
    assert value.__name__ == name
    assert value.__module__.startswith("skrr_export")
    assert inspect.getdoc(value)


def test_star_import_gives_all_names() -> None:
    namespace: dict[str, object] = {}
    exec("from skrr_export import *", namespace)
    assert namespace.keys() >= NAMES


def test_other_names_do_not_exist() -> None:
    with pytest.raises(AttributeError, match="module 'skrr_export' has no attribute 'exprot'"):
        _ = skrr_export.exprot


def test_every_error_is_a_skrr_error() -> None:
    from skrr_export import errors

    kinds = [value for value in vars(errors).values() if inspect.isclass(value)]
    assert len(kinds) > 5
    assert all(issubclass(kind, skrr_export.SkrrError) for kind in kinds)


LOADED = "import json, sys; {}; print(json.dumps(sorted(set(sys.modules) & set({}))))"


@pytest.mark.parametrize(
    ("statement", "allowed"),
    [
        ("import skrr_export", set()),
        ("from skrr_export import Plan, SkrrError", set()),
        ("import skrr_export.cli, skrr_export.cli.plan, skrr_export.cli.export, skrr_export.cli.verify", set()),
        ("from skrr_export import Bundle, open_bundle, open_session, ExportOptions, export_checkpoint", set()),
    ],
)
def test_importing_costs_nothing(statement: str, allowed: set[str]) -> None:
    """torch alone takes seconds; each is imported by the function that needs it."""
    assert set(json.loads(run_python(LOADED.format(statement, HEAVY)).stdout)) <= allowed


def test_running_a_bundle_needs_no_torch_and_no_transformers(tmp_path: Path) -> None:
    """A server that only runs bundles installs neither; half precision needs onnx-ir beside ONNX Runtime."""
    checkpoint = t5_checkpoint(tmp_path / "t5", layers=1)
    skrr_export.export_checkpoint(checkpoint, tmp_path / "bundle", skrr_export.ExportOptions(dtype="bf16"))
    run = "import skrr_export, numpy; skrr_export.open_session(sys.argv[1]).encode(numpy.ones((1, 3), numpy.int64))"
    loaded = set(json.loads(run_python(LOADED.format(run, HEAVY), tmp_path / "bundle").stdout))
    assert loaded.isdisjoint({"torch", "transformers", "onnxscript", "huggingface_hub"})


@pytest.mark.usefixtures("remembered_traces")
def test_example_of_the_documentation_runs(tmp_path: Path) -> None:
    """The one in the package's own docstring."""
    checkpoint = t5_checkpoint(tmp_path / "t5", tokenizer=True)
    skrr_export.Plan.identity("t5", 3)
    (tmp_path / "plan.json").write_text(skrr_export.Plan("t5", ((0, 0), (0, None), (2, 2))).to_json())
    plan = skrr_export.Plan.load(tmp_path / "plan.json")
    options = skrr_export.ExportOptions(plan=plan)
    exported = skrr_export.export_checkpoint(checkpoint, tmp_path / "t5.bundle", options)
    session = skrr_export.open_session(tmp_path / "t5.bundle")
    assert session.encode(np.ones((1, 4), np.int64))["last_hidden_state"].shape == (1, 4, 37)
    assert skrr_export.verify(skrr_export.open_bundle(tmp_path / "t5.bundle"), session, ["a cat"]).passed
    assert exported.bundle == skrr_export.open_bundle(str(tmp_path / "t5.bundle"))
    rows = skrr_export.encode_prompts(session, ["a cat"])
    again = session.encode(rows["input_ids"], rows["attention_mask"])
    assert relative_error(rows["last_hidden_state"], again["last_hidden_state"]) == 0
