"""Run a bundle's torch.export program with torch."""

from __future__ import annotations

import logging
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.export.passes import move_to_device_pass

from skrr_export.bundle import Bundle
from skrr_export.errors import BundleError
from skrr_export.targets.base import Arrays, Ids, Session
from skrr_export.targets.torch_weights import map_weights, torch_device


class ProgramSession(Session):
    """An encoder run by torch, operator by operator."""

    def __init__(self, bundle: Bundle, *, device: str = "cpu") -> None:
        """Load a bundle; on a CPU its weights stay in the file's pages.

        Args:
            bundle: an open bundle with the target `pt2`.
            device: `cpu` or `cuda`.

        Raises:
            BundleError: the bundle has no program, or torch cannot read it.
            InputError: there is no such device.
        """
        super().__init__(bundle, bundle.manifest.dtype)
        file = bundle.target_file("pt2")
        self._device = torch_device(device)
        program = _load(file)
        if self._device.type != "cpu":
            program = move_to_device_pass(program, self._device)
        self._module = program.module()
        self._weights = dict(sorted(map_weights(bundle, self._device).items()))

    @torch.inference_mode()
    def _run(self, feed: Mapping[str, Ids]) -> Arrays:
        outputs = self._module(self._weights, *(torch.from_numpy(ids).to(self._device) for ids in feed.values()))
        return to_arrays(outputs)


def _load(file: Path) -> ExportedProgram:
    logger = logging.getLogger("torch.export")
    level = logger.level
    logger.setLevel(logging.ERROR)  # before it gives up on a damaged file torch logs a page about it
    try:
        return torch.export.load(file)
    except (RuntimeError, ValueError, KeyError, OSError, zipfile.BadZipFile) as error:
        raise BundleError(f"torch {torch.__version__} cannot load {file}: {error}") from error
    finally:
        logger.setLevel(level)


def to_arrays(outputs: Mapping[str, Tensor]) -> Arrays:
    """Results as NumPy arrays; bf16, which NumPy lacks, as fp32."""
    wide = {name: value.float() if value.dtype is torch.bfloat16 else value for name, value in outputs.items()}
    return {name: np.ascontiguousarray(value.cpu().numpy()) for name, value in wide.items()}
