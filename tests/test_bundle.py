"""The bundle: what is in it, that it can be moved, and that no damage passes unnoticed."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from skrr_export.bundle import Bundle, open_bundle
from skrr_export.dtypes import BAKEABLE
from skrr_export.errors import BundleError
from skrr_export.exporting import ExportOptions, export_checkpoint
from skrr_export.manifest import FileEntry, Manifest, OutputEntry, TokenizerEntry, VectorsEntry
from skrr_export.outputs import Output
from skrr_export.pipelines import PRESETS, Preset
from skrr_export.plan import Plan
from skrr_export.targets.onnx.session import OnnxSession
from tests.bundles import plans
from tests.checkpoints import contents, t5_checkpoint

PLAN = Plan("t5", ((0, 0), (None, 0), (0, 2)), {"method": "by hand"})
TOKENIZER = ("tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json")
CONVERTED = ("tokenizer.openvino.xml", "tokenizer.openvino.bin")
FILES = ("weights.safetensors", "model.onnx", "config.json", *TOKENIZER, *CONVERTED)
IDS = np.array([[5, 6, 7, 1, 0], [250, 9, 1, 0, 0]])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return t5_checkpoint(tmp_path_factory.mktemp("bundle") / "t5", tokenizer=True)


@pytest.fixture(scope="module")
def exported(remembered_traces: None, checkpoint: Path) -> Path:
    """A bundle that no test changes."""
    return export_checkpoint(checkpoint, checkpoint.parent / "t5.bundle", ExportOptions(plan=PLAN)).bundle.directory


@pytest.fixture
def copied(exported: Path, tmp_path: Path) -> Path:
    """A bundle to be damaged."""
    return Path(shutil.copytree(exported, tmp_path / "copied.bundle"))


def refused(directory: Path) -> str:
    """The message with which a bundle is refused."""
    with pytest.raises(BundleError) as caught:
        open_bundle(directory)
    return str(caught.value)


def edit(directory: Path, change: Callable[[Any], object]) -> None:
    """Change the manifest in place."""
    document = json.loads((directory / "manifest.json").read_text())
    change(document)
    (directory / "manifest.json").write_text(json.dumps(document))


# What is in it


def test_a_bundle_holds_its_files_and_no_others(exported: Path) -> None:
    assert contents(exported).keys() == {"manifest.json", "tokenizer", *FILES}


def test_the_manifest_guards_every_file_but_itself(exported: Path) -> None:
    entries = {
        name: FileEntry(hashlib.sha256(content).hexdigest(), len(content))
        for name, content in contents(exported).items()
        if content is not None and name != "manifest.json"
    }
    assert open_bundle(exported).manifest.files == entries


def test_the_companions_are_the_checkpoints_own(checkpoint: Path, exported: Path) -> None:
    for name in ("config.json", *TOKENIZER):
        assert (exported / name).read_bytes() == (checkpoint / Path(name).name).read_bytes()


def test_the_manifest_says_what_the_bundle_is(checkpoint: Path, exported: Path) -> None:
    document = json.loads((exported / "manifest.json").read_text())
    kept = sum(tensor.numel() for name, tensor in load_file(exported / "weights.safetensors").items() if name[0] != "_")
    total = sum(tensor.numel() for tensor in load_file(checkpoint / "model.safetensors").values())
    assert document["format"] == "skrr-bundle/1"
    assert document["encoder"] == {
        "family": "t5",
        "num_layers": 3,
        "hidden_size": 37,
        "vocab_size": 307,
        "max_length": None,
    }
    assert document["plan"] == PLAN.to_dict()
    assert document["pipeline"] == PRESETS["plain"].to_dict() | {"families": None}
    assert document["dtype"] == "fp32"
    assert document["inputs"] == [
        {"name": name, "dtype": "int64", "shape": ["batch", "sequence"]} for name in ("input_ids", "attention_mask")
    ]
    last = {"name": "last_hidden_state", "kind": "last_hidden_state", "layers": [], "join": None}
    assert document["outputs"] == [{**last, "dtype": "fp32", "shape": ["batch", "sequence", 37]}]
    assert document["parameters"] == {"total": total, "kept": kept, "unread": 0}
    assert document["targets"]["onnx"]["file"] == "model.onnx"
    assert document["tools"].keys() >= {"skrr-export", "torch"}


def test_sizes_that_are_fixed_are_recorded(remembered_traces: None, checkpoint: Path, tmp_path: Path) -> None:
    options = ExportOptions(batch=2, sequence=5, pipeline="sd3", dtype="bf16")
    manifest = open_bundle(export_checkpoint(checkpoint, tmp_path / "b", options).bundle.directory).manifest
    document = json.loads(manifest.to_json())
    assert document["inputs"] == [{"name": "input_ids", "dtype": "int64", "shape": [2, 5]}]
    [output] = document["outputs"]
    assert (output["dtype"], output["shape"]) == ("bf16", [2, 5, 37])
    assert (manifest.batch, manifest.sequence, manifest.dtype.name) == (2, 5, "bf16")
    assert (manifest.pipeline.max_length, manifest.pipeline.padding) == (5, "max_length")


def test_the_same_input_gives_the_same_bytes(
    remembered_traces: None, checkpoint: Path, exported: Path, tmp_path: Path
) -> None:
    again = export_checkpoint(checkpoint, tmp_path / "again", ExportOptions(plan=PLAN)).bundle
    assert contents(again.directory) == contents(exported)


def test_tensors_are_found_where_they_lie(exported: Path) -> None:
    whole = (exported / "weights.safetensors").read_bytes()
    loaded = load_file(exported / "weights.safetensors")
    tensors = open_bundle(exported).tensors()
    assert tensors.keys() == loaded.keys()
    for name, tensor in tensors.items():
        assert whole[tensor.offset : tensor.offset + tensor.nbytes] == loaded[name].numpy().tobytes()
    padding = {name for name in loaded if name.startswith("_pad.")}
    assert padding
    assert open_bundle(exported).parameters() == {name: tensors[name] for name in tensors.keys() - padding}


# The manifest's file


def tokenizers(names: list[str]) -> st.SearchStrategy[TokenizerEntry]:
    ids = st.lists(st.integers(0, 10**6), max_size=3).map(tuple)
    special = st.lists(st.text(), max_size=3).map(tuple)
    kinds = st.sampled_from([("sentencepiece", st.none()), ("openvino", st.sampled_from(names))])
    return kinds.flatmap(
        lambda kind: st.builds(
            TokenizerEntry,
            kind=st.just(kind[0]),
            file=st.sampled_from(names),
            data=kind[1],
            prefix=ids,
            suffix=ids,
            pad=st.integers(0, 10**6),
            padding_side=st.sampled_from(["left", "right"]),
            special=special,
        )
    )


def vectors(names: list[str]) -> st.SearchStrategy[VectorsEntry]:
    limit = st.floats(0, 1).map(lambda value: {"relative_l2": value, "cosine_distance": value / 2})
    limits = limit.map(lambda value: dict.fromkeys(BAKEABLE, value))
    return st.builds(VectorsEntry, file=st.sampled_from(names), count=st.integers(1, 10**6), limits=limits)


@st.composite
def outputs(draw: st.DrawFn, num_layers: int) -> tuple[Output, ...]:
    """What a pipeline can take."""
    layers = st.integers(0, num_layers)
    several = st.lists(layers, min_size=2, max_size=3).map(tuple)
    rows = (
        st.just(Output("last_hidden_state"))
        | layers.map(lambda layer: Output("hidden_states", (layer,)))
        | st.builds(Output, st.just("hidden_states"), several, st.sampled_from(["concatenate", "stack"]))
    )
    pooled = st.sampled_from([Output("pooler_output"), Output("text_embeds")])
    return draw(st.tuples(rows) | st.tuples(pooled) | st.tuples(rows, pooled))


@st.composite
def presets(draw: st.DrawFn, num_layers: int) -> Preset:
    """Any preset that a manifest can hold."""
    preset = draw(st.sampled_from(list(PRESETS.values())))
    taken = draw(outputs(num_layers))
    return dataclasses.replace(preset, chat=None, prefix_on_top=False, outputs=taken)


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    """Any manifest that an export can write."""
    naturals = st.integers(1, 10**12)
    sources = draw(st.integers(1, 6).flatmap(plans))
    names = draw(st.lists(st.from_regex(r"[a-z]{1,8}(/[a-z.]{1,8}x)?", fullmatch=True), min_size=1, unique=True))
    hashes = st.binary(min_size=32, max_size=32).map(bytes.hex)
    files = {name: FileEntry(draw(hashes), draw(naturals)) for name in ["weights.safetensors", *names]}
    preset = draw(presets(len(sources)))
    return Manifest(
        family="t5",
        num_layers=len(sources),
        hidden_size=draw(naturals),
        vocab_size=draw(naturals),
        max_length=draw(st.none() | naturals),
        plan=Plan("t5", tuple(sources)),
        pipeline=preset,
        dtype=draw(st.sampled_from(list(BAKEABLE.values()))),
        batch=draw(st.none() | naturals),
        sequence=draw(st.none() | naturals),
        outputs=tuple(OutputEntry(output, draw(naturals)) for output in preset.outputs),
        total_parameters=draw(naturals),
        kept_parameters=draw(naturals),
        unread_parameters=draw(st.integers(0, 10**12)),
        tokenizer=draw(st.none() | tokenizers(names)),
        vectors=draw(st.none() | vectors(names)),
        targets={"onnx": {"file": names[0], "opset": 23}},
        files=files,
        tools={"torch": draw(st.text())},
    )


@given(manifests())
def test_a_manifest_survives_its_file_unchanged(manifest: Manifest) -> None:
    again = Manifest.from_json(manifest.to_json())
    assert again == manifest
    assert again.to_json() == manifest.to_json()


@st.composite
def altered_manifests(draw: st.DrawFn) -> dict[str, Any]:
    """The document of a manifest in which one value, at any depth, is another."""
    document = json.loads(draw(manifests()).to_json())
    place, path = document, []
    while isinstance(place, dict | list) and place and (not path or draw(st.booleans())):
        path.append(draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place)))))
        place = place[path[-1]]
    values = st.none() | st.booleans() | st.integers(-2, 2) | st.floats() | st.text(max_size=3)
    value = draw(values | st.lists(values, max_size=2) | st.dictionaries(st.text(max_size=2), values, max_size=2))
    reduce(getitem, path[:-1], document)[path[-1]] = value
    return document


@given(altered_manifests())
def test_a_manifest_with_any_value_changed_is_a_manifest_or_a_bundle_error(document: dict[str, Any]) -> None:
    """And one that is accepted can be shown: what `inspect` prints."""
    try:
        read = Manifest.from_json(json.dumps(document))
    except BundleError:
        return
    json.dumps(json.loads(read.to_json()), allow_nan=False)
    assert read.sparsity <= 1
    assert sum(entry.nbytes for entry in read.files.values()) >= 0
    assert all(len(entry.sha256[:16]) == 16 for entry in read.files.values())
    assert ", ".join([*read.targets, read.family, read.pipeline.name])


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"[]", b"null", b"5", b"{}", b"\xff", b"[" * 100_000, b'{"format": ' * 100_000],
)
def test_a_manifest_that_is_none_is_named(copied: Path, text: bytes) -> None:
    (copied / "manifest.json").write_bytes(text)
    message = refused(copied)
    assert str(copied) in message
    assert "manifest" in message


def test_a_manifest_with_a_key_twice_is_malformed(copied: Path) -> None:
    path = copied / "manifest.json"
    path.write_text(path.read_text().replace('"dtype": "fp32",', '"dtype": "fp32", "dtype": "fp32",', 1))
    assert refused(copied).endswith("malformed manifest: ValueError: the key 'dtype' stands twice in one object")


def test_another_kind_of_tokenizer_is_left_to_later_releases(copied: Path) -> None:
    edit(copied, lambda document: document.update(tokenizer={"kind": "byte-pairs", "file": "config.json"}))
    assert open_bundle(copied).manifest.tokenizer is None


@pytest.mark.parametrize("value", ["skrr-bundle/2", None, 1, [], {}])
def test_a_manifest_of_another_format_is_refused(copied: Path, value: Any) -> None:
    edit(copied, lambda document: document.update(format=value))
    assert refused(copied).endswith(f"the bundle's format is {value!r}; this release reads 'skrr-bundle/1'")


@pytest.mark.parametrize(
    "key", ["format", "encoder", "plan", "pipeline", "dtype", "inputs", "parameters", "targets", "files", "tools"]
)
def test_a_manifest_that_lacks_a_key_is_malformed(copied: Path, key: str) -> None:
    edit(copied, lambda document: document.pop(key))
    assert refused(copied) == f"{copied / 'manifest.json'}: malformed manifest: KeyError: '{key}'"


@pytest.mark.parametrize("value", ["3", 3.0, True, -3, [3]])
@pytest.mark.parametrize(
    "path",
    [
        ("encoder", "num_layers"),
        ("encoder", "hidden_size"),
        ("encoder", "vocab_size"),
        ("encoder", "max_length"),
        ("inputs", 0, "shape", 0),
        ("inputs", 0, "shape", 1),
        ("parameters", "total"),
        ("parameters", "kept"),
        ("files", "weights.safetensors", "bytes"),
    ],
)
def test_a_number_that_is_none_is_malformed(copied: Path, path: tuple[Any, ...], value: Any) -> None:
    def change(document: Any) -> None:
        reduce(getitem, path[:-1], document)[path[-1]] = value

    edit(copied, change)
    assert f"{copied / 'manifest.json'}: malformed manifest: " in refused(copied)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("encoder", "family"), 5),
        (("encoder", "family"), "bert"),
        (("encoder", "num_layers"), 4),
        (("plan", "layers", 0, "attention"), 1),
        (("plan", "format"), "skrr-plan/2"),
        (("pipeline", "padding"), "left"),
        (("pipeline", "padding_rows"), "hidden"),
        (("pipeline", "crop"), [3, 2]),
        (("pipeline", "outputs"), []),
        (("pipeline", "outputs", 0, "kind"), "pooler_output"),
        (("outputs",), []),
        (("outputs", 0, "kind"), "hidden_states"),
        (("outputs", 0, "name"), "hidden_states.3"),
        (("outputs", 0, "layers"), [3]),
        (("outputs", 0, "shape"), ["batch", 37]),
        (("outputs", 0, "shape", 2), 0),
        (("dtype",), "fp8"),
        (("dtype",), ["fp32"]),
        (("inputs",), []),
        (("targets",), []),
        (("targets", "onnx"), "model.onnx"),
        (("targets", "onnx", "file"), 5),
        (("targets", "onnx", "file"), ["model.onnx"]),
        (("files",), []),
        (("files", "model.onnx"), None),
        (("files", "model.onnx", "sha256"), 5),
        (("files", "model.onnx", "sha256"), "0123"),
        (("tools",), 5),
    ],
)
def test_a_value_of_another_kind_is_malformed(copied: Path, path: tuple[Any, ...], value: Any) -> None:
    def change(document: Any) -> None:
        reduce(getitem, path[:-1], document)[path[-1]] = value

    edit(copied, change)
    assert refused(copied).startswith(f"{copied / 'manifest.json'}: ")


@pytest.mark.parametrize(
    "name",
    ["/etc/passwd", "../outside", "tokenizer/../../outside", "..", "", "a//b", "./a", "..\\outside", "C:\\outside"],
)
def test_a_manifest_that_names_files_outside_is_refused(copied: Path, name: str) -> None:
    (copied.parent / "outside").write_bytes(b"")
    entry = {"sha256": hashlib.sha256(b"").hexdigest(), "bytes": 0}
    edit(copied, lambda document: document["files"].update({name: entry}))
    assert refused(copied).endswith(f"the manifest names a file outside the bundle: {name}")


@pytest.mark.parametrize("name", ["model.onnx", "weights.safetensors"])
def test_a_file_that_is_run_must_have_a_hash(copied: Path, name: str) -> None:
    edit(copied, lambda document: document["files"].pop(name))
    assert refused(copied).endswith(f"the manifest gives no hash for {name}")


def test_a_target_cannot_be_a_file_that_the_manifest_does_not_guard(copied: Path) -> None:
    (copied / "evil.onnx").write_bytes((copied / "model.onnx").read_bytes())
    edit(copied, lambda document: document["targets"]["onnx"].update(file="evil.onnx"))
    assert refused(copied).endswith("the manifest gives no hash for evil.onnx")


# Damage


def test_a_bundle_can_be_moved(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = OnnxSession(open_bundle(exported)).encode(IDS)["last_hidden_state"]
    first = Path(shutil.copytree(exported, tmp_path / "first"))
    first.rename(tmp_path / "sécond [x]")
    monkeypatch.chdir(tmp_path)
    moved = open_bundle("sécond [x]")
    moved.check_hashes()
    assert np.array_equal(OnnxSession(moved).encode(IDS)["last_hidden_state"], before)


def test_what_is_none_is_no_bundle(tmp_path: Path, checkpoint: Path) -> None:
    reasons = {
        tmp_path / "absent": "No such file or directory",
        checkpoint: "No such file or directory",
        checkpoint / "config.json": "Not a directory",
    }
    for path, reason in reasons.items():
        assert refused(path) == f"{path} is not a bundle: cannot read manifest.json: {reason}"


def test_a_tokenizer_file_without_a_hash_is_refused(copied: Path) -> None:
    (copied / "tokenizer" / "added_tokens.json").write_text('{"cat": 1}')
    assert "added_tokens.json is not part of the bundle" in refused(copied)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(copied: Path, name: str) -> None:
    (copied / name).unlink()
    assert refused(copied).startswith(f"{copied / name} is missing from the bundle")


@pytest.mark.parametrize("name", FILES)
def test_a_directory_in_a_files_place_is_named(copied: Path, name: str) -> None:
    (copied / name).unlink()
    (copied / name).mkdir()
    assert refused(copied).startswith(f"{copied / name} is missing from the bundle")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("change", [-1, 1])
def test_a_file_that_was_truncated_or_extended_is_named(copied: Path, name: str, change: int) -> None:
    size = (copied / name).stat().st_size
    os.truncate(copied / name, size + change)
    assert refused(copied).startswith(f"{copied / name} is {size + change} bytes long, the manifest says {size}")


@pytest.mark.parametrize("name", FILES[1:])
def test_a_file_that_was_changed_is_named(copied: Path, name: str) -> None:
    opened = open_bundle(copied)
    flip(copied / name, -2)
    assert refused(copied).startswith(f"{copied / name} was changed: its hash is not the manifest's")
    with pytest.raises(BundleError) as caught:
        opened.check_hashes()
    assert str(caught.value).startswith(f"{copied / name} was changed")


@pytest.mark.parametrize("position", [0, 20, 5000, -1])
def test_weights_that_were_changed_are_named_by_the_whole_check(copied: Path, position: int) -> None:
    """They are not hashed when a bundle is opened, which a server does that maps them."""
    open_bundle(copied).check_hashes()
    flip(copied / "weights.safetensors", position)
    with pytest.raises(BundleError) as caught:
        open_bundle(copied).check_hashes()
    assert str(caught.value).startswith(f"{copied / 'weights.safetensors'} was changed")


def test_weights_with_a_damaged_header_are_named(copied: Path) -> None:
    bundle = open_bundle(copied)
    flip(copied / "weights.safetensors", 8)
    with pytest.raises(BundleError) as caught:
        bundle.tensors()
    assert str(copied / "weights.safetensors") in str(caught.value)


def flip(path: Path, position: int) -> None:
    """Change one byte."""
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def test_the_check_tells_how_far_it_is(exported: Path) -> None:
    told: list[tuple[str, int, int]] = []
    bundle = open_bundle(exported)
    bundle.check_hashes(lambda *news: told.append(news))
    assert [what for what, _, _ in told] == [f"checking {name}" for name in bundle.manifest.files]
    assert all(done <= total == bundle.nbytes for _, done, total in told)


def test_a_target_that_the_bundle_lacks_is_named(exported: Path) -> None:
    bundle: Bundle = open_bundle(exported)
    with pytest.raises(BundleError) as caught:
        bundle.target_file("tensorrt")
    assert str(caught.value) == f"{exported} has no target 'tensorrt'; it has: onnx"
