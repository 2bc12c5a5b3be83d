"""What a user decides about an engine; knows nothing of NVIDIA's packages, which may be absent."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from skrr_export.errors import InputError

if TYPE_CHECKING:
    from skrr_export.pipelines import Preset

ENGINES = ("tensorrt-rtx", "tensorrt")
"""The targets that are built by TensorRT: for GeForce and workstation GPUs, without one; and for the GPU at hand."""
COMPUTE_CAPABILITIES = ("75", "80", "86", "89", "120", "121")
"""That TensorRT-RTX builds for: Turing, Ampere (A100; RTX 30), Ada (RTX 40), Blackwell (RTX 50; DGX Spark)."""

USUAL_LENGTH = 77
"""Tokens that kernels are tuned for where the pipeline pads to its longest prompt: a long prompt of today's users."""
LARGEST_BATCH = 8
"""Of a profile that nobody chose."""

_SIZES = re.compile(r"([0-9]{1,7})x([0-9]{1,7})")


@dataclass(frozen=True, slots=True)
class Profile:
    """The input sizes that an engine takes, each `(batch, sequence)`."""

    least: tuple[int, int]
    usual: tuple[int, int]
    """What its kernels are tuned for."""
    most: tuple[int, int]

    def __post_init__(self) -> None:
        for axis in range(2):
            if not 1 <= self.least[axis] <= self.usual[axis] <= self.most[axis]:
                raise InputError(f"a profile's sizes must rise from at least 1: {self}")

    def __str__(self) -> str:
        return ":".join(f"{batch}x{sequence}" for batch, sequence in (self.least, self.usual, self.most))

    @classmethod
    def parse(cls, text: str) -> Profile:
        """Read `MIN:OPT:MAX`, each a `BATCHxSEQUENCE`, for example `1x1:1x77:8x512`.

        Raises:
            InputError: it is something else.
        """
        found = [_SIZES.fullmatch(part) for part in text.split(":")]
        if len(found) != 3 or not all(found):
            raise InputError(f"a profile is MIN:OPT:MAX, each BATCHxSEQUENCE, such as 1x1:1x77:8x512, not {text!r}")
        least, usual, most = ((int(match[1]), int(match[2])) for match in found if match)
        return cls(least, usual, most)

    @classmethod
    def of(cls, preset: Preset) -> Profile:
        """The sizes that a pipeline feeds, in batches of up to 8."""
        length = preset.max_length
        if preset.padding == "max_length":
            return cls((1, length), (1, length), (LARGEST_BATCH, length))
        return cls((1, 1), (1, min(USUAL_LENGTH, length)), (LARGEST_BATCH, length))

    def fixed(self, batch: int | None, sequence: int | None) -> Profile:
        """The profile of a graph some of whose sizes are fixed; `None`: free."""
        sizes = [(batch or size[0], sequence or size[1]) for size in (self.least, self.usual, self.most)]
        return Profile(*sizes)

    def takes(self, batch: int, sequence: int) -> bool:
        """Whether an input of this size lies within."""
        return self.least[0] <= batch <= self.most[0] and self.least[1] <= sequence <= self.most[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """How to build an engine."""

    compute_capabilities: tuple[str, ...] = ("80", "86", "89", "120")
    """GPUs that a TensorRT-RTX engine is for; one of TensorRT is for the GPU it was built on."""
    profile: Profile | None = None
    """`None`: batches up to 8 of the pipeline's length."""
    workspace_gb: float | None = None
    """Gigabytes that kernels may use while they run; `None`: what TensorRT thinks best."""
    timing_cache: Path | None = None
    """TensorRT: file in which the timings of kernels are kept from build to build."""
    weight_streaming: bool = False
    """Whether weights may stay in the host's memory, as many as a session's budget says."""
    version_compatible: bool = False
    """TensorRT: whether later versions can run the engine."""
    hardware_compatible: bool = False
    """TensorRT: whether other GPUs from Ampere on can run the engine."""
    stripped: bool = False
    """TensorRT: leave the weights out; a session fills them in from `weights.safetensors`."""

    def __post_init__(self) -> None:
        if not self.compute_capabilities:
            raise InputError(f"no compute capability to build for; known: {', '.join(COMPUTE_CAPABILITIES)}")
        unknown = [each for each in self.compute_capabilities if each not in COMPUTE_CAPABILITIES]
        if unknown:
            raise InputError(
                f"unknown compute capability '{', '.join(unknown)}'; known: {', '.join(COMPUTE_CAPABILITIES)}"
            )
        if self.workspace_gb is not None and not 0 < self.workspace_gb < float("inf"):
            raise InputError(f"the workspace cannot have {self.workspace_gb} GB")
