"""The C++ library through its C interface, skrr.h, by ctypes."""

from __future__ import annotations

import ctypes
import json
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

    from skrr_export.measure.worker import Embeddings, Ids


class _Options(ctypes.Structure):
    _fields_ = (
        ("struct_size", ctypes.c_size_t),
        ("target", ctypes.c_char_p),
        ("device", ctypes.c_char_p),
        ("threads", ctypes.c_int32),
        ("prepacked", ctypes.c_int32),
        ("check_weights", ctypes.c_int32),
        ("reserved", ctypes.c_int32),
    )


class Encoder:
    """An open bundle; lives as long as its process."""

    def __init__(self, library: Path, bundle: Path, threads: int) -> None:
        """Open a bundle.

        Raises:
            RuntimeError: the library refused it.
        """
        self._skrr = ctypes.CDLL(str(library))
        self._skrr.skrr_last_error.restype = ctypes.c_char_p
        self._skrr.skrr_encoder_info.restype = ctypes.c_char_p
        self._skrr.skrr_output_last_hidden_state.restype = ctypes.POINTER(ctypes.c_float)
        self._skrr.skrr_output_hidden_size.restype = ctypes.c_size_t
        self._handle = ctypes.c_void_p()
        options = _Options(ctypes.sizeof(_Options), None, b"cpu", threads)
        self._call("skrr_encoder_open", str(bundle).encode(), ctypes.byref(options), ctypes.byref(self._handle))
        info: dict[str, Any] = json.loads(self._skrr.skrr_encoder_info(self._handle))
        self.computes_in: str = info["computes_in"]

    def encode(self, input_ids: Ids, attention_mask: Ids | None) -> Embeddings:
        """`last_hidden_state` `[batch, sequence, hidden_size]`, copied out of the library's buffer.

        Raises:
            RuntimeError: the library refused the ids.
        """
        output = ctypes.c_void_p()
        arrays = [None if ids is None else np.ascontiguousarray(ids, np.int64) for ids in (input_ids, attention_mask)]
        pointers = [None if ids is None else ids.ctypes.data_as(ctypes.c_void_p) for ids in arrays]
        batch, sequence = (ctypes.c_size_t(size) for size in input_ids.shape)
        self._call("skrr_encode_ids", self._handle, *pointers, batch, sequence, ctypes.byref(output))
        try:
            shape = (*input_ids.shape, self._skrr.skrr_output_hidden_size(output))
            values = np.ctypeslib.as_array(self._skrr.skrr_output_last_hidden_state(output), shape)
            return values.copy()
        finally:
            self._skrr.skrr_output_free(output)

    def _call(self, function: str, *arguments: Any) -> None:
        if getattr(self._skrr, function)(*arguments):
            raise RuntimeError(self._skrr.skrr_last_error().decode())
