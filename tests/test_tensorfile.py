"""The safetensors format: what we write against the library that defines it, what we read, and what we refuse."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError, deserialize, safe_open
from safetensors.torch import load_file, save

from skrr_export.dtypes import ITEMSIZE
from skrr_export.errors import CheckpointError
from skrr_export.tensorfile import PAD_PREFIX, Layout, StoredTensor, TensorSpec, lay_out, read_header

TORCH = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "U16": torch.uint16,
    "I16": torch.int16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "U32": torch.uint32,
    "I32": torch.int32,
    "F32": torch.float32,
    "U64": torch.uint64,
    "I64": torch.int64,
    "F64": torch.float64,
    "C64": torch.complex64,
}
"""The type that `safetensors.torch` loads for each code of whole bytes."""

NAMES = st.text(min_size=1, max_size=12).filter(lambda name: name != "__metadata__" and not name.startswith(PAD_PREFIX))
SHAPES = st.lists(st.integers(0, 9), max_size=3) | st.tuples(st.integers(1, 4), st.sampled_from([64, 256]))


@st.composite
def specs(draw: st.DrawFn) -> list[TensorSpec]:
    """Tensors of any type, of odd sizes, of aligned sizes, and of none."""
    names = draw(st.lists(NAMES, max_size=6, unique=True))
    return [TensorSpec(name, draw(st.sampled_from(sorted(ITEMSIZE))), tuple(draw(SHAPES))) for name in names]


def content(spec: TensorSpec | StoredTensor) -> bytes:
    """Bytes that differ from tensor to tensor; those of a bool are 0 and 1."""
    values = random.Random(spec.name).randbytes(spec.nbytes)
    return bytes(value % 2 for value in values) if spec.code == "BOOL" else values


def written(path: Path, layout: Layout) -> bytes:
    """Write a file that was laid out, and return its bytes."""
    body = (bytes(item.nbytes) if item.name.startswith(PAD_PREFIX) else content(item) for item in layout.tensors)
    path.write_bytes(layout.header + b"".join(body))
    return path.read_bytes()


def raw(tensor: torch.Tensor) -> bytes:
    """A tensor's bytes."""
    return tensor.reshape(-1).view(torch.uint8).numpy().tobytes()


# What we write


def test_every_type_of_the_format_that_has_whole_bytes_is_known() -> None:
    assert {code: dtype.itemsize for code, dtype in TORCH.items()} == ITEMSIZE


@given(specs())
def test_the_library_reads_what_we_lay_out(tmp_path_factory: pytest.TempPathFactory, wanted: list[TensorSpec]) -> None:
    path = tmp_path_factory.mktemp("layout") / "x.safetensors"
    layout = lay_out(wanted, path)
    assert len(written(path, layout)) == layout.nbytes
    loaded = load_file(path)
    assert {name for name in loaded if not name.startswith(PAD_PREFIX)} == {spec.name for spec in wanted}
    for spec in wanted:
        tensor = loaded[spec.name]
        assert (tensor.dtype, tuple(tensor.shape), raw(tensor)) == (TORCH[spec.code], spec.shape, content(spec))
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"format": "pt"}  # transformers refuses a file without


@given(specs())
def test_what_we_lay_out_is_aligned_and_no_larger_than_it_must_be(wanted: list[TensorSpec]) -> None:
    layout = lay_out(wanted, Path("x"))
    assert len(layout.header) % 4096 == 0
    assert int.from_bytes(layout.header[:8], "little") == len(layout.header) - 8
    end = len(layout.header)
    for tensor in layout.tensors:
        assert tensor.offset == end
        assert tensor.offset % 256 == 0 or tensor.name.startswith(PAD_PREFIX)
        end += tensor.nbytes
    assert layout.nbytes == end
    padding = [tensor.nbytes for tensor in layout.tensors if tensor.name.startswith(PAD_PREFIX)]
    assert all(0 < nbytes < 256 for nbytes in padding)
    odd = sum(spec.nbytes % 256 != 0 for spec in wanted)
    assert len(padding) == max(odd - 1, 0)


@given(specs())
def test_reading_a_header_gives_the_layout_back(
    tmp_path_factory: pytest.TempPathFactory, wanted: list[TensorSpec]
) -> None:
    path = tmp_path_factory.mktemp("layout") / "x.safetensors"
    layout = lay_out(wanted, path)
    written(path, layout)
    assert read_header(path) == {tensor.name: tensor for tensor in layout.tensors}


def test_aligned_tensors_keep_the_order_in_which_they_are_used() -> None:
    wanted = [TensorSpec(name, "F32", shape) for name, shape in [("b", (64,)), ("odd", (3,)), ("a", (128,))]]
    assert [tensor.name for tensor in lay_out(wanted, Path("x")).tensors] == ["b", "a", "odd"]


def test_the_same_tensors_give_the_same_bytes(tmp_path: Path) -> None:
    wanted = [TensorSpec("ä", "BF16", (3, 5)), TensorSpec("b", "F32", (64, 2)), TensorSpec("c", "F16", (1,))]
    first, second = (written(tmp_path / name, lay_out(wanted, tmp_path / name)) for name in ("first", "second"))
    assert first == second


# What we read


@st.composite
def tensors(draw: st.DrawFn) -> dict[str, torch.Tensor]:
    """Tensors for the library to write."""
    items = [spec for spec in draw(specs()) if 0 not in spec.shape]
    return {
        item.name: torch.frombuffer(bytearray(content(item)), dtype=torch.uint8).view(TORCH[item.code]).view(item.shape)
        for item in items
    }


@given(tensors(), st.none() | st.dictionaries(NAMES, st.text(), min_size=1, max_size=2))
def test_we_find_what_the_library_wrote(
    tmp_path_factory: pytest.TempPathFactory, given_tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None
) -> None:
    path = tmp_path_factory.mktemp("library") / "x.safetensors"
    path.write_bytes(save(given_tensors, metadata))
    found = read_header(path)
    assert found.keys() == given_tensors.keys()
    whole = path.read_bytes()
    for name, tensor in given_tensors.items():
        stored = found[name]
        assert (stored.name, stored.file, stored.shape) == (name, path, tuple(tensor.shape))
        assert (TORCH[stored.code], stored.numel) == (tensor.dtype, tensor.numel())
        assert whole[stored.offset : stored.offset + stored.nbytes] == raw(tensor)


def test_keys_that_a_later_library_may_add_are_no_fault(tmp_path: Path) -> None:
    path = forged(tmp_path, {"a": {**entry(0, 8), "note": 1}}, bytes(8))
    assert deserialize(path.read_bytes())[0][0] == "a"
    assert read_header(path).keys() == {"a"}


# What we refuse


def entry(begin: Any, end: Any, **changes: Any) -> dict[str, Any]:
    """A header's entry for two floats."""
    return {"dtype": "F32", "shape": [2], "data_offsets": [begin, end], **changes}


def forged(folder: Path, header: Any, data: bytes, length: int | None = None) -> Path:
    """A file with this header, given as bytes or to be written as JSON, and with this data behind it."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path = folder / "x.safetensors"
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def refused(path: Path) -> str:
    """The message with which a file is refused; it always names the file."""
    with pytest.raises(CheckpointError) as caught:
        read_header(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("nbytes", range(8))
def test_a_file_too_short_for_a_length_is_truncated(tmp_path: Path, nbytes: int) -> None:
    (tmp_path / "x").write_bytes(bytes(nbytes))
    message = refused(tmp_path / "x")
    assert "is truncated or not a safetensors file" in message
    assert f"it is {nbytes} bytes long" in message


@pytest.mark.parametrize("length", [3, 2**31, 2**62, 2**64 - 1])
def test_a_header_longer_than_the_file_is_not_believed(tmp_path: Path, length: int) -> None:
    message = refused(forged(tmp_path, b"{}", b"", length=length))
    assert f"it is 10 bytes long, and its header claims {length} bytes" in message


def test_a_header_longer_than_the_librarys_limit_is_not_read(tmp_path: Path) -> None:
    path = forged(tmp_path, b"{}", b"", length=100_000_001)
    with path.open("r+b") as file:
        file.truncate(200_000_000)  # sparse: takes no room
    assert "a header of 100000001 bytes exceeds the limit of 100000000" in refused(path)


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (b"", "damaged header"),
        (b"\xff\xfe{}", "damaged header: 'utf-8' codec"),
        (b'{"a', "damaged header: Unterminated string"),
        (b"{} x", "damaged header: Extra data"),
        (b"[" * 100_000, "damaged header: maximum recursion depth"),
        (b'{"__metadata__":' * 5_000, "damaged header: maximum recursion depth"),
        (b"[]", "damaged header: not a JSON object"),
        (b"null", "damaged header: not a JSON object"),
        (b'"a"', "damaged header: not a JSON object"),
    ],
)
def test_a_header_that_is_no_json_object_is_damaged(tmp_path: Path, header: bytes, words: str) -> None:
    assert words in refused(forged(tmp_path, header, b""))


def test_a_name_that_stands_twice_is_named(tmp_path: Path) -> None:
    one = json.dumps(entry(0, 8))
    path = forged(tmp_path, f'{{"twin": {one}, "twin": {one}}}'.encode(), bytes(8))
    assert "the key 'twin' stands twice" in refused(path)


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ({"a": entry(0, 8), "b": entry(4, 12)}, "tensor 'b' overlaps the tensor before it"),
        ({"a": entry(0, 8), "b": entry(0, 8)}, "tensor 'b' overlaps the tensor before it"),
        ({"a": entry(0, 8), "b": entry(9, 17)}, "tensor 'b' leaves a hole before it"),
        ({"a": entry(1, 9)}, "tensor 'a' leaves a hole before it"),
        ({"a": entry(0, 8), "b": entry(20, 28)}, "is truncated: tensor 'b' ends at byte "),
        ({"a": entry(2**62, 2**62 + 8)}, "is truncated: tensor 'a' ends at byte "),
        ({"a": entry(0, 8)}, "9 bytes at the end belong to no tensor"),
        ({}, "17 bytes at the end belong to no tensor"),
        ({"a": entry(0, 8), "z": entry(2, 2, shape=[0])}, "tensor 'z' overlaps the tensor before it"),
    ],
)
def test_tensors_must_tile_the_data(tmp_path: Path, header: Any, words: str) -> None:
    assert words in refused(forged(tmp_path, header, bytes(17)))


@pytest.mark.parametrize(
    ("offsets"),
    [
        [-8, 0],
        [0, -8],
        [False, 8],
        [0, True],
        [0.0, 8],
        [0, 8.0],
        ["0", 8],
        [None, 8],
        [0],
        [0, 8, 16],
        [],
        8,
        None,
        {},
    ],
)
def test_offsets_must_be_two_natural_numbers(tmp_path: Path, offsets: Any) -> None:
    path = forged(tmp_path, {"a": entry(0, 8, data_offsets=offsets)}, bytes(8))
    assert "tensor 'a' has a malformed shape or data_offsets" in refused(path)


@pytest.mark.parametrize(
    "shape", [[-2], [2.0], [True, 2], ["2"], [None], [[2]], 2, None, {}, "2", [2**64, 0], [1] * 99]
)
def test_a_shape_must_be_natural_numbers(tmp_path: Path, shape: Any) -> None:
    path = forged(tmp_path, {"a": entry(0, 8, shape=shape)}, bytes(8))
    assert "tensor 'a' has a malformed shape or data_offsets" in refused(path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"shape": [3]}, "tensor 'a' of F32 [3] needs 12 bytes, but its offsets [0, 8] span 8"),
        ({"shape": []}, "needs 4 bytes, but its offsets [0, 8] span 8"),
        ({"shape": [2, 0]}, "needs 0 bytes, but its offsets [0, 8] span 8"),
        ({"dtype": "F64"}, "needs 16 bytes, but its offsets [0, 8] span 8"),
        ({"data_offsets": [8, 0]}, "needs 8 bytes, but its offsets [8, 0] span -8"),
        ({"shape": [2**62, 2**62]}, "bytes, but its offsets [0, 8] span 8"),
    ],
)
def test_offsets_must_span_what_the_shape_needs(tmp_path: Path, changes: Any, words: str) -> None:
    assert words in refused(forged(tmp_path, {"a": entry(0, 8, **changes)}, bytes(8)))


@pytest.mark.parametrize("digits", [30, 3000, 4299, 5000])
@pytest.mark.parametrize("key", ["shape", "data_offsets"])
def test_numbers_of_any_size_are_refused_and_not_choked_on(tmp_path: Path, key: str, digits: int) -> None:
    """Python itself refuses to print a number of more than 4300 digits, and so a message that holds one."""
    number = b"9" * digits
    header = (
        json.dumps({"a": entry(0, 8)})
        .encode()
        .replace(b'"%s": [' % key.encode(), b'"%s": [%b, ' % (key.encode(), number))
    )
    refused(forged(tmp_path, header, bytes(8)))
    refused(forged(tmp_path, header.replace(number, number + b"," + number), bytes(8)))


@pytest.mark.parametrize("code", ["F4", "f32", "", "float32", 7, None, True, [], ["F32"], {}])
def test_an_unknown_type_is_named(tmp_path: Path, code: Any) -> None:
    path = forged(tmp_path, {"a": entry(0, 8, dtype=code)}, bytes(8))
    assert f"tensor 'a' has the unknown dtype {code!r}" in refused(path)


@pytest.mark.parametrize("broken", [None, [], "F32", 1, {}])
def test_an_entry_must_be_an_object(tmp_path: Path, broken: Any) -> None:
    assert "tensor 'a' needs dtype, shape and data_offsets" in refused(forged(tmp_path, {"a": broken}, b""))


@pytest.mark.parametrize("missing", ["dtype", "shape", "data_offsets"])
def test_an_entry_must_have_its_keys(tmp_path: Path, missing: str) -> None:
    changed = entry(0, 8)
    del changed[missing]
    assert "tensor 'a' needs dtype, shape and data_offsets" in refused(forged(tmp_path, {"a": changed}, bytes(8)))


def test_a_file_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    assert "cannot read" in refused(tmp_path / "absent.safetensors")
    assert "cannot read" in refused(tmp_path)


VALID = save({"a": torch.arange(6.0).reshape(2, 3), "b.c": torch.ones(5, dtype=torch.bfloat16), "é": torch.zeros(0)})
HEADER_END = 8 + int.from_bytes(VALID[:8], "little")


@given(st.data())
def test_damage_is_a_checkpoint_error_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Bytes changed anywhere, mostly in the header; what the library still accepts we accept, and find the same."""
    damaged = bytearray(VALID)
    place = st.integers(0, HEADER_END - 1) | st.integers(0, len(VALID) - 1)
    for position in data.draw(st.lists(place, min_size=1, max_size=4)):
        damaged[position] = data.draw(st.integers(0, 255) | st.sampled_from(b'"{}[],:0123456789FB \\'))
    agree(tmp_path_factory.mktemp("damage") / "x.safetensors", bytes(damaged))


@given(st.integers(0, len(VALID) - 1))
def test_a_truncated_file_is_refused(tmp_path_factory: pytest.TempPathFactory, nbytes: int) -> None:
    path = tmp_path_factory.mktemp("damage") / "x.safetensors"
    path.write_bytes(VALID[:nbytes])
    refused(path)


@given(st.binary(max_size=64) | st.binary(max_size=64).map(lambda tail: len(tail).to_bytes(8, "little") + tail))
def test_any_bytes_are_a_safetensors_file_or_a_checkpoint_error(
    tmp_path_factory: pytest.TempPathFactory, whole: bytes
) -> None:
    agree(tmp_path_factory.mktemp("damage") / "x.safetensors", whole)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 30) | st.floats() | st.text(max_size=3) | st.sampled_from([*ITEMSIZE]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@given(st.data())
def test_a_header_of_any_values_is_a_checkpoint_error_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    header = {"a": entry(0, 8), "b": entry(8, 16)}
    name = data.draw(st.sampled_from(["a", "b", "__metadata__"]))
    key = data.draw(st.sampled_from([None, "dtype", "shape", "data_offsets"]))
    if key is None or name == "__metadata__":
        header[name] = data.draw(JSON)
    else:
        header[name][key] = data.draw(JSON)
    path = forged(tmp_path_factory.mktemp("damage"), header, bytes(16))
    agree(path, path.read_bytes())


def agree(path: Path, whole: bytes) -> None:
    """We may be laxer than the library about what does not concern us (metadata), but must know all that it knows."""
    path.write_bytes(whole)
    try:
        theirs = {name: (item["dtype"], tuple(item["shape"])) for name, item in deserialize(whole)}
    except SafetensorError:
        theirs = None
    try:
        ours = {name: (stored.code, stored.shape) for name, stored in read_header(path).items()}
    except CheckpointError:
        assert theirs is None
        return
    assert theirs is None or ours == theirs
