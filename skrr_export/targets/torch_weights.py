"""A bundle's weights as torch tensors, for the targets that torch runs."""

from __future__ import annotations

import torch
from torch import Tensor

from skrr_export.bundle import Bundle
from skrr_export.encoders.eager import Weights
from skrr_export.errors import InputError


def map_weights(bundle: Bundle, device: torch.device) -> dict[str, Tensor]:
    """Every tensor by name: on a CPU in the pages of the file, on a GPU as one copy.

    Raises:
        BundleError: the weights file is damaged.
    """
    tensors = bundle.parameters()
    weights = Weights(tensors, device, bundle.manifest.dtype.torch, budget_bytes=0)
    return {name: weights[name] for name in tensors}


def torch_device(name: str) -> torch.device:
    """`cpu` or `cuda`.

    Raises:
        InputError: there is no such device.
    """
    if name not in ("cpu", "cuda"):
        raise InputError(f"unknown device '{name}'; known: cpu, cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError(f"no GPU: torch {torch.__version__} sees none; use the device cpu")
    return torch.device(name)
