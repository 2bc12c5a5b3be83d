"""The C interface: every wrong call gives a status and a reason, none crashes or leaves something behind."""

from __future__ import annotations

import ctypes
import importlib.metadata
from collections.abc import Callable
from ctypes import byref, c_char_p, c_int64, c_size_t, c_void_p
from typing import Any

import numpy as np
import pytest

from runtimes.cpp import binding
from runtimes.cpp.binding import CallError, Encoder, Library, Options
from skrr_export.bundle import Bundle

BundleOf = Callable[[str], Bundle]

IDS = (c_int64 * 6)(1, 2, 3, 4, 5, 6)
OUTSIDE = (c_int64 * 2)(1, 1100)
NEGATIVE = (c_int64 * 2)(1, -1)
TEXTS = (c_char_p * 2)(b"a cat", b"two dogs")


@pytest.fixture
def encoder(bundle_of: BundleOf, library: Library) -> Encoder:
    return library.open(bundle_of("plain").directory)


def test_version_is_the_packages(library: Library) -> None:
    assert library.functions.skrr_version().decode() == importlib.metadata.version("skrr-export")


def test_info(encoder: Encoder) -> None:
    info = encoder.info
    assert info.pop("library").startswith("ONNX Runtime 1.")
    assert info == {
        "family": "t5", "pipeline": "plain", "dtype": "fp32", "target": "onnx", "device": "cpu", "computes_in": "fp32",
        "outputs": [{"name": "last_hidden_state", "pooled": False, "shape": [None, None, 37]}],
        "hidden_size": 37, "vocab_size": 1100, "max_length": 512, "batch": None, "sequence": None,
        "pads_to_max_length": False, "masked": True, "tokenizes": True,
        "clean": None, "unconditional": "encoded", "unconditional_text": "",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("skrr_encode_ids", (None, None, 1, 1), "input_ids is NULL"),
        ("skrr_encode_ids", (IDS, None, 0, 6), r"input_ids must be integers \[batch, sequence\], not int64 \[0, 6\]"),
        ("skrr_encode_ids", (IDS, None, 1, 0), r"input_ids must be integers \[batch, sequence\], not int64 \[1, 0\]"),
        ("skrr_encode_ids", (IDS, None, 2**63, 2), "tokens exceed the 16777216 of one call"),
        ("skrr_encode_ids", (IDS, None, 1, 2**62), "tokens exceed the 16777216 of one call"),
        ("skrr_encode_ids", (IDS, None, 0, 2**64 - 1), "input_ids must be integers"),
        ("skrr_encode_ids", (OUTSIDE, None, 1, 2), "input_ids must lie in 0 to 1099; these span 1 to 1100"),
        ("skrr_encode_ids", (NEGATIVE, None, 2, 1), "input_ids must lie in 0 to 1099; these span -1 to 1"),
        ("skrr_encode_prompts", (None, 2), "prompts is NULL"),
        ("skrr_encode_prompts", (TEXTS, 0), "no prompt given"),
        ("skrr_encode_prompts", (TEXTS, 2**64 - 1), "tokens exceed"),
        ("skrr_encode_prompts", ((c_char_p * 2)(b"a", None), 2), "a prompt is NULL"),
        ("skrr_encode_prompts", ((c_char_p * 1)(b"\xff"), 1), "a prompt is not UTF-8 text"),
        ("skrr_encode_prompts", ((c_char_p * 1)(b"\xed\xa0\x80"), 1), "a prompt is not UTF-8 text"),
        ("skrr_tokenize", (None, 1), "prompts is NULL"),
    ],
)
def test_wrong_arguments(
    name: str, arguments: tuple[Any, ...], message: str, encoder: Encoder, library: Library
) -> None:
    output = c_void_p(1)
    with pytest.raises(CallError, match=message) as caught:
        library.call(name, encoder.handle, *arguments, binding.PROMPT, byref(output))
    assert caught.value.status == binding.BAD_INPUT
    assert output.value is None


def test_a_role_that_is_none(encoder: Encoder, library: Library) -> None:
    output = c_void_p(1)
    for name, *arguments in (
        ("skrr_tokenize", TEXTS, 2),
        ("skrr_encode_prompts", TEXTS, 2),
        ("skrr_encode_ids", IDS, None, 1, 6),
    ):
        with pytest.raises(CallError, match="role must be SKRR_PROMPT or SKRR_NEGATIVE_PROMPT, not 2"):
            library.call(name, encoder.handle, *arguments, 2, byref(output))
        assert output.value is None


def test_null_objects(encoder: Encoder, library: Library) -> None:
    output = c_void_p()
    for call in (
        ("skrr_encode_ids", None, IDS, None, 1, 6, binding.PROMPT, byref(output)),
        ("skrr_encode_prompts", None, TEXTS, 2, binding.PROMPT, byref(output)),
        ("skrr_tokenize", None, TEXTS, 2, binding.PROMPT, byref(output)),
        ("skrr_encode_ids", encoder.handle, IDS, None, 1, 6, binding.PROMPT, None),
        ("skrr_encode_prompts", encoder.handle, TEXTS, 2, binding.PROMPT, None),
        ("skrr_encoder_open", None, None, byref(output)),
        ("skrr_encoder_open", b"b", None, None),
        ("skrr_self_test", None, byref(ctypes.c_int32()), None, 0),
        ("skrr_self_test", encoder.handle, None, None, 0),
    ):
        with pytest.raises(CallError, match="is NULL") as caught:
            library.call(*call)
        assert caught.value.status == binding.BAD_INPUT
    functions = library.functions
    functions.skrr_encoder_close(None)
    functions.skrr_output_free(None)
    assert functions.skrr_encoder_info(None) == b""
    assert functions.skrr_output_batch(None) == functions.skrr_output_sequence(None) == 0
    assert functions.skrr_tensor_name(None) == b""
    assert functions.skrr_tensor_rank(None) == 0
    for part in ("output_input_ids", "output_attention_mask", "output_rows", "output_rows_mask", "output_pooled"):
        assert not getattr(functions, f"skrr_{part}")(None)
    assert not functions.skrr_tensor_shape(None)
    assert not functions.skrr_tensor_values(None)


def test_tokens_alone_have_no_tensors(encoder: Encoder, library: Library) -> None:
    output = c_void_p()
    library.call("skrr_tokenize", encoder.handle, TEXTS, 2, binding.PROMPT, byref(output))
    for part in ("rows", "rows_mask", "pooled"):
        assert not getattr(library.functions, f"skrr_output_{part}")(output)
    library.functions.skrr_output_free(output)


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        ({"target": b"onxx"}, binding.BAD_INPUT, "unknown target 'onxx'; known: tensorrt, tensorrt-rtx, onnx, aoti"),
        ({"target": b"pt2"}, binding.BAD_INPUT, "the target pt2 runs in Python only"),
        ({"target": b"aoti"}, binding.BAD_BUNDLE, "has no target 'aoti'; it has: onnx"),
        ({"device": b"tpu"}, binding.BAD_INPUT, "unknown device 'tpu'; known: cpu, cuda"),
        ({"device": b"cuda"}, binding.MISSING_DEPENDENCY, "cannot run on cuda"),
        ({"threads": -1}, binding.BAD_INPUT, "the number of threads must be at least 1, not -1"),
        ({"prepacked": 2}, binding.BAD_INPUT, "prepacked must be 0 or 1, not 2"),
        ({"check_weights": -1}, binding.BAD_INPUT, "check_weights must be 0 or 1, not -1"),
        ({"reserved": 1}, binding.BAD_INPUT, "reserved must be 0"),
    ],
)
def test_wrong_options(
    options: dict[str, Any], status: int, message: str, bundle_of: BundleOf, library: Library
) -> None:
    with pytest.raises(CallError, match=message) as caught:
        library.open(bundle_of("plain").directory, **options)
    assert caught.value.status == status


def test_options_of_other_versions(bundle_of: BundleOf, library: Library) -> None:
    """Those of an earlier version are too short, those of a later one may say more only if it is the default."""

    class Later(ctypes.Structure):
        _fields_ = (*Options._fields_, ("later", c_size_t))

    def open_with(options: Any, size: int) -> None:
        handle, options.struct_size = c_void_p(), size
        pointer = ctypes.cast(byref(options), ctypes.POINTER(Options))
        library.call("skrr_encoder_open", str(bundle_of("plain").directory).encode(), pointer, byref(handle))
        library.functions.skrr_encoder_close(handle)

    open_with(Later(), ctypes.sizeof(Later))
    with pytest.raises(CallError, match="the options are of a later version of skrr"):
        open_with(Later(later=1), ctypes.sizeof(Later))
    for size in (0, 8, 39, 2**64 - 1):
        with pytest.raises(CallError, match="struct_size of the options is"):
            open_with(Later(), size)


def test_outputs_outlive_their_encoder(bundle_of: BundleOf, library: Library) -> None:
    encoder, output = library.open(bundle_of("plain").directory), c_void_p()
    library.call("skrr_encode_ids", encoder.handle, IDS, None, 2, 3, binding.PROMPT, byref(output))
    del encoder
    rows = library.functions.skrr_output_rows(output)
    hidden = np.ctypeslib.as_array(library.functions.skrr_tensor_values(rows), (2, 3, 37))
    assert np.isfinite(hidden).all()
    library.functions.skrr_output_free(output)


def test_a_mask_where_the_pipeline_has_none(bundle_of: BundleOf, library: Library) -> None:
    encoder, ids = library.open(bundle_of("unmasked").directory), np.ones((1, 4), np.int64)
    with pytest.raises(CallError, match="the pipeline 'ltx-video' passes its encoder no attention_mask; pass none"):
        encoder.encode_ids(ids, ids)


def test_sizes_that_do_not_fit(bundle_of: BundleOf, library: Library) -> None:
    for name, shape, message in (
        ("fixed", (2, 24), "this bundle's batch size is fixed at 3, not 2"),
        ("fixed", (3, 23), "this bundle's sequence size is fixed at 24, not 23"),
        ("bert", (1, 72), "72 tokens exceed this encoder's maximum of 71"),
    ):
        with pytest.raises(CallError, match=message):
            library.open(bundle_of(name).directory).encode_ids(np.ones(shape, np.int64))


def test_a_message_is_gone_after_the_next_call(encoder: Encoder, library: Library) -> None:
    with pytest.raises(CallError):
        encoder.encode([])
    assert library.functions.skrr_last_error() == b"no prompt given"
    encoder.encode(["a cat"])
    assert library.functions.skrr_last_error() == b""


def test_self_test(bundle_of: BundleOf, library: Library) -> None:
    for name in ("plain", "bf16", "unmasked", "lowercase", "fixed", "bert", "wordpiece"):
        passed, line = library.open(bundle_of(name).directory).self_test()
        assert passed, line
        assert line.endswith("token ids equal: passed")


def test_a_line_that_has_no_room_is_cut(encoder: Encoder, library: Library) -> None:
    passed, line = ctypes.c_int32(), ctypes.create_string_buffer(b"x" * 20, 20)
    library.call("skrr_self_test", encoder.handle, byref(passed), line, 10)
    assert line.raw == b"self-test\0" + b"x" * 10
