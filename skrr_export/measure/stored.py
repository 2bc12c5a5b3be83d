"""Embeddings on disk, for those of every prompt fill the memory."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from skrr_export.measure.worker import Embeddings
from skrr_export.staging import disk_errors


class Stored:
    """The outputs of batch after batch, in a file without a name; a context manager."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - closed at the end of the block
        self._places: list[dict[str, int]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()

    def add(self, embeddings: Embeddings) -> None:
        """Append a batch's."""
        places = {}
        with disk_errors(Path(tempfile.gettempdir())):
            for name, values in embeddings.items():
                places[name] = self._file.seek(0, os.SEEK_END)
                np.save(self._file, values)
        self._places.append(places)

    def __iter__(self) -> Iterator[Embeddings]:
        """Each batch's, in the order in which they were added."""
        return (self.get(number) for number in range(len(self._places)))

    def get(self, number: int) -> Embeddings:
        """A batch's, by the order in which they were added."""
        return {name: self._read(place) for name, place in self._places[number].items()}

    def _read(self, place: int) -> npt.NDArray[Any]:
        self._file.seek(place)
        values: npt.NDArray[Any] = np.load(self._file)
        return values
