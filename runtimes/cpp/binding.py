"""The C interface from Python, as any language would bind it: nothing but what `skrr.h` says."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Sequence
from ctypes import POINTER, byref, c_char_p, c_float, c_int32, c_int64, c_size_t, c_void_p
from pathlib import Path
from typing import Any

import numpy as np

OK, BAD_INPUT, BAD_BUNDLE, MISSING_DEPENDENCY, FAILED, OUT_OF_MEMORY = range(6)
PROMPT, NEGATIVE_PROMPT = range(2)


class Options(ctypes.Structure):
    """skrr_options."""

    _fields_ = (
        ("struct_size", c_size_t),
        ("target", c_char_p),
        ("device", c_char_p),
        ("threads", c_int32),
        ("prepacked", c_int32),
        ("check_weights", c_int32),
        ("reserved", c_int32),
    )

    def __init__(self, **values: Any) -> None:
        super().__init__(ctypes.sizeof(Options), **values)


class CallError(Exception):
    """A status other than OK, and the message."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Library:
    """libskrr.so."""

    def __init__(self, path: Path) -> None:
        self.functions = ctypes.CDLL(str(path))
        for name, (result, *arguments) in _SIGNATURES.items():
            function = getattr(self.functions, name)
            function.restype, function.argtypes = result, arguments

    def call(self, name: str, *arguments: Any) -> None:
        """Call a function that returns a status.

        Raises:
            CallError: it is not OK.
        """
        status = getattr(self.functions, name)(*arguments)
        message = self.functions.skrr_last_error().decode()
        assert (status == OK) == (message == "")
        if status != OK:
            raise CallError(status, message)

    def open(self, bundle: Path, **options: Any) -> Encoder:
        """Open a bundle.

        Raises:
            CallError: it cannot be.
        """
        handle = c_void_p()
        self.call("skrr_encoder_open", str(bundle).encode(), byref(Options(**options)), byref(handle))
        return Encoder(self, handle)


class Encoder:
    """skrr_encoder."""

    def __init__(self, library: Library, handle: c_void_p) -> None:
        self._library, self.handle = library, handle

    def __del__(self) -> None:
        self._library.functions.skrr_encoder_close(self.handle)

    @property
    def info(self) -> dict[str, Any]:
        """What was opened."""
        document: dict[str, Any] = json.loads(self._library.functions.skrr_encoder_info(self.handle))
        return document

    def tokenize(self, prompts: Sequence[str], *, negative: bool = False) -> dict[str, np.ndarray]:
        """Ids and mask of prompts."""
        return self._output("skrr_tokenize", _texts(prompts), len(prompts), _role(negative))

    def encode(self, prompts: Sequence[str], *, negative: bool = False) -> dict[str, np.ndarray]:
        """Encode prompts: ids and mask, outputs by name, and of rows their `output_mask`."""
        return self._output("skrr_encode_prompts", _texts(prompts), len(prompts), _role(negative))

    def encode_ids(
        self, ids: np.ndarray, mask: np.ndarray | None = None, *, negative: bool = False
    ) -> dict[str, np.ndarray]:
        """Encode ids."""
        numbers = (_numbers(ids), None if mask is None else _numbers(mask))
        return self._output("skrr_encode_ids", *numbers, *ids.shape, _role(negative))

    def self_test(self) -> tuple[bool, str]:
        """Whether the bundle's vectors came out, and the line that says so."""
        passed, line = c_int32(-1), ctypes.create_string_buffer(300)
        self._library.call("skrr_self_test", self.handle, byref(passed), line, len(line))
        return bool(passed.value), line.value.decode()

    def _output(self, name: str, *arguments: Any) -> dict[str, np.ndarray]:
        output = c_void_p()
        self._library.call(name, self.handle, *arguments, byref(output))
        get = self._library.functions
        try:
            shape = (get.skrr_output_batch(output), get.skrr_output_sequence(output))
            arrays = {
                "input_ids": _copied(get.skrr_output_input_ids(output), shape),
                "attention_mask": _copied(get.skrr_output_attention_mask(output), shape),
            }
            for tensor in filter(None, (get.skrr_output_rows(output), get.skrr_output_pooled(output))):
                shape = tuple(get.skrr_tensor_shape(tensor)[: get.skrr_tensor_rank(tensor)])
                arrays[get.skrr_tensor_name(tensor).decode()] = _copied(get.skrr_tensor_values(tensor), shape)
            if rows := get.skrr_output_rows(output):
                sizes = get.skrr_tensor_shape(rows)[: get.skrr_tensor_rank(rows)]
                mask = get.skrr_output_rows_mask(output)
                arrays["output_mask"] = _copied(mask, (sizes[0], sizes[-2]))
            return arrays
        finally:
            get.skrr_output_free(output)


def _role(negative: bool) -> int:
    return NEGATIVE_PROMPT if negative else PROMPT


def _copied(pointer: Any, shape: tuple[int, ...]) -> np.ndarray:
    return np.ctypeslib.as_array(pointer, shape).copy()


def _texts(texts: Sequence[str]) -> Any:
    return (c_char_p * len(texts))(*(text.encode() for text in texts))


def _numbers(values: np.ndarray) -> Any:
    return np.ascontiguousarray(values, np.int64).ctypes.data_as(POINTER(c_int64))


_OUTPUT = (c_int32, c_void_p)
_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "skrr_version": (c_char_p,),
    "skrr_last_error": (c_char_p,),
    "skrr_encoder_open": (c_int32, c_char_p, POINTER(Options), POINTER(c_void_p)),
    "skrr_encoder_close": (None, c_void_p),
    "skrr_encoder_info": (c_char_p, c_void_p),
    "skrr_tokenize": (*_OUTPUT, POINTER(c_char_p), c_size_t, c_int32, POINTER(c_void_p)),
    "skrr_encode_prompts": (*_OUTPUT, POINTER(c_char_p), c_size_t, c_int32, POINTER(c_void_p)),
    "skrr_encode_ids": (*_OUTPUT, POINTER(c_int64), POINTER(c_int64), c_size_t, c_size_t, c_int32, POINTER(c_void_p)),
    "skrr_self_test": (*_OUTPUT, POINTER(c_int32), c_char_p, c_size_t),
    "skrr_output_batch": (c_size_t, c_void_p),
    "skrr_output_sequence": (c_size_t, c_void_p),
    "skrr_output_input_ids": (POINTER(c_int64), c_void_p),
    "skrr_output_attention_mask": (POINTER(c_int64), c_void_p),
    "skrr_output_rows": (c_void_p, c_void_p),
    "skrr_output_rows_mask": (POINTER(c_int64), c_void_p),
    "skrr_output_pooled": (c_void_p, c_void_p),
    "skrr_tensor_name": (c_char_p, c_void_p),
    "skrr_tensor_rank": (c_size_t, c_void_p),
    "skrr_tensor_shape": (POINTER(c_int64), c_void_p),
    "skrr_tensor_values": (POINTER(c_float), c_void_p),
    "skrr_output_free": (None, c_void_p),
}
