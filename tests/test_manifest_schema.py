"""The manifest's JSON schema says what the code does: it takes what exports write, and refuses what the loader does."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given

from skrr_export.errors import BundleError
from skrr_export.manifest import Manifest
from tests.bundles import PLAN, export
from tests.checkpoints import bert_checkpoint, sentencepiece_tokenizer, t5_checkpoint
from tests.test_bundle import altered_manifests, manifests

SCHEMA = jsonschema.Draft202012Validator(
    json.loads(resources.files("skrr_export").joinpath("data", "manifest.schema.json").read_text(encoding="utf-8"))
)
BEYOND_SCHEMA = re.compile(
    r"gives no hash|the plan is for another encoder|PlanError|ValueError: -?\d+\.0 is not|must not be .*\b\d+\.0\b"
    r"|is not hidden_states|the pipeline takes other outputs|crop must not be \[\d+, \d+\]"
)
"""What no schema can say: rules between several fields, and that 1.0 is no integer."""


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA.schema)


@pytest.mark.parametrize("options", [{}, {"dtype": "fp16", "vectors": 1}, {"batch": 2, "sequence": 5, "dtype": "bf16"}])
@pytest.mark.parametrize("family", ["t5", "bert"])
def test_it_takes_what_exports_write(
    remembered_traces: None, family: str, options: dict[str, Any], tmp_path: Path
) -> None:
    if family == "t5":
        checkpoint = sentencepiece_tokenizer(t5_checkpoint(tmp_path / "c", layers=4, vocab_size=1100))
    else:
        checkpoint = bert_checkpoint(tmp_path / "c", layers=4)
    directory = export(checkpoint, tmp_path / "b", PLAN, **options).directory
    document = json.loads((directory / "manifest.json").read_text())
    SCHEMA.validate(document)
    assert document.keys() == SCHEMA.schema["properties"].keys()  # and knows every field by its name


@given(manifests())
def test_it_takes_every_manifest_that_can_be(manifest: Manifest) -> None:
    SCHEMA.validate(json.loads(manifest.to_json()))


@given(altered_manifests())
def test_what_the_loader_refuses_it_refuses(document: dict[str, Any]) -> None:
    refusal = _refusal(json.dumps(document))
    if refusal is not None and not BEYOND_SCHEMA.search(refusal):
        assert not SCHEMA.is_valid(document), refusal


def _refusal(text: str) -> str | None:
    try:
        Manifest.from_json(text)
    except BundleError as error:
        return str(error)
    return None


def test_the_specification_describes_every_field() -> None:
    text = (Path(__file__).parents[1] / "runtimes" / "BUNDLE.md").read_text(encoding="utf-8")
    for path, fields in _objects(SCHEMA.schema, ""):
        for field in fields:
            assert re.search(rf"\b{field}\b", text), f"{path}.{field}"


def _objects(schema: Any, path: str) -> Iterator[tuple[str, list[str]]]:
    if isinstance(schema, dict):
        if isinstance(schema.get("properties"), dict):
            yield path, list(schema["properties"])
        for key, value in schema.items():
            yield from _objects(value, f"{path}.{key}")
    elif isinstance(schema, list):
        for value in schema:
            yield from _objects(value, path)
