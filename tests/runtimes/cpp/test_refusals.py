"""Damaged bundles are refused by the C++ runtime in the words that all loaders share."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runtimes.cpp import binding
from runtimes.cpp.binding import CallError, Library
from skrr_export.bundle import Bundle
from tests.bundles import forge_hashes
from tests.runtimes.damage import CASES, Damage, edit

BundleOf = Callable[[str], Bundle]


@pytest.fixture
def copy(bundle_of: BundleOf, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle_of("plain").directory, tmp_path / "b"))


def refusal(library: Library, directory: object, **options: Any) -> str:
    """The message with which a bundle is refused."""
    with pytest.raises(CallError) as caught:
        library.open(Path(str(directory)), **options)
    assert caught.value.status == binding.BAD_BUNDLE
    return str(caught.value)


@pytest.mark.parametrize("damage", CASES, ids=lambda damage: damage.name)
def test_a_damaged_bundle(damage: Damage, copy: Path, library: Library) -> None:
    damage.damage(copy)
    target = {"target": b"onnx"} if damage.name == "target is missing" else {}
    message = refusal(library, copy, check_weights=damage.hashed, **target)
    assert re.fullmatch(damage.pattern(copy), message), message


def _without(*path: Any) -> Callable[[Path], object]:
    """Damage by taking a key of the manifest away."""

    def change(document: Any) -> None:
        for key in path[:-1]:
            document = document[key]
        document.pop(path[-1])

    return edit(change)


def _with(value: Any, *path: Any) -> Callable[[Path], object]:
    """Damage by giving a key of the manifest another value."""

    def change(document: Any) -> None:
        for key in path[:-1]:
            document = document[key]
        document[path[-1]] = value

    return edit(change)


MALFORMED = {
    "format": _without("format"),
    "family": _without("encoder", "family"),
    "plan for another family": _with("bert", "encoder", "family"),
    "plan for other layers": _with(5, "encoder", "num_layers"),
    "plan's source": _with(9, "plan", "layers", 0, "attention"),
    "plan's source that is dropped": _with(1, "plan", "layers", 0, "attention"),
    "plan's source that is no number": _with(0.5, "plan", "layers", 0, "attention"),
    "plan without layers": _with([], "plan", "layers"),
    "negative size": _with(-1, "encoder", "hidden_size"),
    "huge size": _with(2**64, "encoder", "vocab_size"),
    "size as boolean": _with(True, "encoder", "vocab_size"),
    "no inputs": _with([], "inputs"),
    "inputs of another rank": _with(["batch"], "inputs", 0, "shape"),
    "pipeline": _without("pipeline", "masked"),
    "padding": _with("shortest", "pipeline", "padding"),
    "no length": _with(0, "pipeline", "max_length"),
    "cleaning of another kind": _with("html", "pipeline", "clean"),
    "texts that are none": _with([1], "pipeline", "removed"),
    "prefix that is none": _with(None, "pipeline", "prefix"),
    "a multiple of nothing": _with(0, "pipeline", "multiple_of"),
    "side": _with("top", "pipeline", "padding_side"),
    "token to pad with": _with("bos", "pipeline", "pad"),
    "crop that ends before it begins": _with([3, 2], "pipeline", "crop"),
    "crop without an end": _with([3], "pipeline", "crop"),
    "no rows": _with(0, "pipeline", "max_rows"),
    "rows of padding": _with("hidden", "pipeline", "padding_rows"),
    "fewer than no extra rows": _with(-1, "pipeline", "extra_rows"),
    "negative prompts": _with("empty", "pipeline", "unconditional"),
    "nothing left for negative prompts": edit(
        lambda document: document["pipeline"].update(unconditional="bare", crop=[0, 512])
    ),
    "other outputs than the pipeline's": _with("pooler_output", "pipeline", "outputs", 0, "kind"),
    "more outputs than the pipeline's": _with([], "pipeline", "outputs"),
    "no outputs": _with([], "outputs"),
    "output of another kind": _with("logits", "outputs", 0, "kind"),
    "output by another name": _with("hidden", "outputs", 0, "name"),
    "output of layers that it has not": _with([1], "outputs", 0, "layers"),
    "hidden states of no layer": _with("hidden_states", "outputs", 0, "kind"),
    "one layer that is joined": _with("stack", "outputs", 0, "join"),
    "output of another rank": _with(["batch", 37], "outputs", 0, "shape"),
    "output without features": _with(0, "outputs", 0, "shape", 2),
    "unread parameters": _with(-1, "parameters", "unread"),
    "side of the tokenizer": _with(None, "tokenizer", "padding_side"),
    "dtype": _with("fp8", "dtype"),
    "target without a file": _with({}, "targets", "onnx"),
    "target that is a list": _with([], "targets", "onnx"),
    "files": _with([], "files"),
    "hash": _with("0", "files", "model.onnx", "sha256"),
    "negative bytes": _with(-1, "files", "model.onnx", "bytes"),
    "bytes": _with(1e300, "files", "model.onnx", "bytes"),
    "tokenizer": _with(-1, "tokenizer", "pad"),
    "tokenizer that adds more than fits": _with([1] * 513, "tokenizer", "suffix"),
    "vectors": _with(0, "vectors", "count"),
    "limits": _without("vectors", "limits", "fp16"),
    "rescaling": _with({"weights": {"x": "y"}}, "rescaling"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_manifest(name: str, copy: Path, library: Library) -> None:
    MALFORMED[name](copy)
    assert refusal(library, copy).startswith(f"{copy}/manifest.json: malformed manifest: ")


def test_a_key_that_stands_twice(copy: Path, library: Library) -> None:
    """Of which parsers take one or the other."""
    text = (copy / "manifest.json").read_text()
    (copy / "manifest.json").write_text(text.replace('"dtype"', '"dtype": "fp16", "dtype"', 1))
    assert refusal(library, copy).endswith("malformed manifest: the key 'dtype' stands twice in one object")


def test_unknown_keys_are_ignored(copy: Path, library: Library) -> None:
    def add(document: Any) -> None:
        for place in (document, document["encoder"], document["pipeline"], document["tokenizer"]):
            place["later"] = {"than": "this"}

    edit(add)(copy)
    library.open(copy)


def test_an_unknown_kind_of_tokenizer_leaves_ids(copy: Path, library: Library) -> None:
    _with("wordpiece", "tokenizer", "kind")(copy)
    assert library.open(copy).info["tokenizes"] is False


def test_a_stray_file_in_the_tokenizer(copy: Path, library: Library) -> None:
    (copy / "tokenizer" / "tokenizer.json").write_text("{}")
    assert re.fullmatch(
        r".*/tokenizer/tokenizer\.json is not part of the bundle; remove it, .*", refusal(library, copy)
    )


def test_names_are_printed_on_one_line(copy: Path, library: Library) -> None:
    edit(lambda document: document["files"].update({"a\x1b[31m\nb": {"sha256": "0" * 64, "bytes": 0}}))(copy)
    assert refusal(library, copy) == (
        f"{copy}/a [31m b is missing from the bundle; copy the bundle whole, or export again"
    )


def test_no_such_directory_and_slashes(tmp_path: Path, library: Library) -> None:
    missing = f"{tmp_path}/missing is not a bundle: cannot read manifest.json: No such file or directory"
    output = binding.c_void_p()
    for spelling in ("missing", "missing/", "missing///"):
        with pytest.raises(CallError, match=re.escape(missing)):
            library.call("skrr_encoder_open", f"{tmp_path}/{spelling}".encode(), None, binding.byref(output))
    (tmp_path / "file").touch()
    assert "cannot read manifest.json: Not a directory" in refusal(library, tmp_path / "file")


def _forged(bundle: Path, name: str, content: bytes) -> None:
    (bundle / name).write_bytes(content)
    forge_hashes(Bundle(bundle, None))  # type: ignore[arg-type]


def _header(document: Any, data: bytes = b"") -> bytes:
    text = document if isinstance(document, bytes) else json.dumps(document).encode()
    return len(text).to_bytes(8, "little") + text + data


def _tensor(code: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": code, "shape": shape, "data_offsets": offsets}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is truncated or not a safetensors file: it is 0 bytes long, and its header claims at least 8 bytes"),
        (b"\xff" * 8, "its header claims 18446744073709551615 bytes"),
        (_header(b"{"), "damaged header: "),
        (_header(b"[]"), "damaged header: not a JSON object"),
        (_header(b"[" * 50_000), "damaged header: it nests deeper than 64 levels"),
        (_header(b'{"x": 1, "x": 2}'), "damaged header: the key 'x' stands twice in one object"),
        (_header({"x": {}}), "damaged header: tensor 'x' needs dtype, shape and data_offsets"),
        (_header({"x": _tensor("F31")}, bytes(8)), "tensor 'x' has the unknown dtype 'F31'"),
        (_header({"x": _tensor(shape=[-2])}, bytes(8)), "tensor 'x' has a malformed shape or data_offsets"),
        (_header({"x": _tensor(shape=[2**64])}, bytes(8)), "tensor 'x' has a malformed shape or data_offsets"),
        (_header({"x": _tensor(shape=[1] * 65)}, bytes(8)), "tensor 'x' has a malformed shape or data_offsets"),
        (_header({"x": _tensor(shape=[3])}, bytes(8)),
         r"tensor 'x' of F32 \[3\] needs 12 bytes, but its offsets \[0, 8\] span 8"),
        (_header({"x": _tensor(shape=[2**62, 4])}, bytes(8)), r"needs more than 2\^64 bytes"),
        (_header({"x": _tensor(offsets=[8, 0])}, bytes(8)), r"its offsets \[8, 0\] span -8"),
        (_header({"x": _tensor()}, bytes(4)), r"is truncated: tensor 'x' ends at byte \d+, the file at \d+"),
        (_header({"x": _tensor(), "y": _tensor(offsets=[4, 12])}, bytes(12)), "'y' overlaps the tensor before it"),
        (_header({"x": _tensor(), "y": _tensor(offsets=[9, 17])}, bytes(17)), "'y' leaves a hole before it"),
        (_header({"x": _tensor()}, bytes(9)), "1 bytes at the end belong to no tensor"),
    ],
)  # fmt: skip
def test_a_damaged_weights_header(content: bytes, message: str, copy: Path, library: Library) -> None:
    _forged(copy, "weights.safetensors", content)
    found = refusal(library, copy, check_weights=True)
    assert found.startswith(f"{copy}/weights.safetensors")
    assert re.search(message, found), found


def test_damaged_files_that_have_their_hashes(bundle_of: BundleOf, library: Library, tmp_path: Path) -> None:
    for number, (name, content, message) in enumerate(
        (
            ("model.onnx", b"not a graph", r"ONNX Runtime cannot load .*/model\.onnx: "),
            ("tokenizer/spiece.model", b"not a model", r"SentencePiece cannot load .*/tokenizer/spiece\.model: "),
        )
    ):
        directory = Path(shutil.copytree(bundle_of("plain").directory, tmp_path / str(number)))
        _forged(directory, name, content)
        assert re.match(message, refusal(library, directory))


def test_half_precision_without_the_graph_for_processors(bundle_of: BundleOf, library: Library, tmp_path: Path) -> None:
    directory = Path(shutil.copytree(bundle_of("bf16").directory, tmp_path / "b"))
    _without("targets", "onnx", "cpu")(directory)
    message = "has no ONNX graph for processors, which lack bf16 kernels: export again, or use the device cuda"
    assert message in refusal(library, directory)


def test_no_target_that_runs_here(copy: Path, library: Library) -> None:
    edit(lambda document: document.update(targets={"pt2": document["targets"]["onnx"]}))(copy)
    with pytest.raises(CallError, match=f"none of the targets of {copy} runs here") as caught:
        library.open(copy)
    assert caught.value.status == binding.MISSING_DEPENDENCY
    edit(lambda document: document.update(targets={"aoti": document["targets"]["pt2"]}))(copy)
    for options in ({}, {"target": b"aoti"}):
        with pytest.raises(CallError, match=r"configure (it|skrr) with -DTorch_ROOT=DIRECTORY"):
            library.open(copy, **options)


def test_vectors_that_are_missing_or_malformed(copy: Path, library: Library) -> None:
    _forged(copy, "vectors.safetensors", _header({"x": _tensor()}, bytes(8)))
    encoder = library.open(copy)
    with pytest.raises(CallError, match=r"vectors\.safetensors: malformed test vectors: it has no prompts"):
        encoder.self_test()
    _with(None, "vectors")(copy)
    with pytest.raises(CallError, match="carries no test vectors; export again with --vectors 8"):
        library.open(copy).self_test()


@pytest.mark.parametrize(
    "path",
    [
        ("inputs", 0, "shape", 0),
        ("pipeline", "max_length"),
        ("pipeline", "multiple_of"),
        ("outputs", 0, "shape", 2),
    ],
)
def test_sizes_beyond_any_memory(path: tuple[Any, ...], bundle_of: BundleOf, library: Library, tmp_path: Path) -> None:
    """A manifest may ask for them; nothing is allocated, and no loop runs for as long."""
    directory = Path(shutil.copytree(bundle_of("lowercase").directory, tmp_path / "b"))
    _with(2**62, *path)(directory)
    with pytest.raises(CallError, match=r"tokens exceed the 16777216 of one call|out of memory"):
        library.open(directory).encode(["a cat"])
