"""What the manifest says of an engine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from skrr_export.errors import BundleError, InputError
from skrr_export.targets.tensorrt.library import Flavour, version_of
from skrr_export.targets.tensorrt.options import Profile


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRecord:
    """An engine, and what it can be run by."""

    file: str
    library: str
    """Version that built it."""
    compute_capabilities: tuple[str, ...]
    """GPUs it was built for."""
    profile: Profile
    precision: str
    engine_nbytes: int
    weights_nbytes: int
    """Of the weights it was built from, each counted once."""
    layers: int | None
    """Layers after fusion; `None`: no GPU was at hand to count them."""
    weight_streaming: bool = False
    version_compatible: bool = False
    hardware_compatible: bool = False
    stripped: bool = False

    def to_entry(self) -> dict[str, Any]:
        """The target's entry in the manifest."""
        return {
            "file": self.file,
            "library": self.library,
            "compute_capabilities": list(self.compute_capabilities),
            "profile": str(self.profile),
            "precision": self.precision,
            "build": {"engine_bytes": self.engine_nbytes, "weights_bytes": self.weights_nbytes},
            "layers": self.layers,
            "weight_streaming": self.weight_streaming,
            "version_compatible": self.version_compatible,
            "hardware_compatible": self.hardware_compatible,
            "stripped": self.stripped,
        }

    @classmethod
    def from_entry(cls, entry: Mapping[str, Any]) -> EngineRecord:
        """Read a manifest's entry.

        Raises:
            BundleError: it is malformed.
        """
        try:
            return cls(
                file=str(entry["file"]),
                library=str(entry["library"]),
                compute_capabilities=tuple(str(each) for each in entry["compute_capabilities"]),
                profile=Profile.parse(str(entry["profile"])),
                precision=str(entry["precision"]),
                engine_nbytes=int(entry["build"]["engine_bytes"]),
                weights_nbytes=int(entry["build"]["weights_bytes"]),
                layers=None if entry["layers"] is None else int(entry["layers"]),
                weight_streaming=entry["weight_streaming"] is True,
                version_compatible=entry["version_compatible"] is True,
                hardware_compatible=entry["hardware_compatible"] is True,
                stripped=entry["stripped"] is True,
            )
        except (KeyError, TypeError, ValueError, InputError) as error:
            raise BundleError(f"the manifest's engine is malformed: {type(error).__name__}: {error}") from error

    def check_library(self, flavour: Flavour, version: str) -> None:
        """Make sure that a version of the library can run the engine.

        Raises:
            BundleError: it cannot.
        """
        later = self.version_compatible and version_of(version) >= version_of(self.library)
        if version != self.library and not later:
            raise BundleError(
                f"{self.file} was built by {flavour.title} {self.library}, and {version} is installed: "
                f"pip install '{flavour.package}=={self.library}', or export again"
            )

    def check_gpu(self, capability: str) -> None:
        """Make sure that a GPU can run the engine.

        Raises:
            BundleError: it cannot.
        """
        later = self.hardware_compatible and int(capability) >= 80
        if capability not in self.compute_capabilities and not later:
            raise BundleError(
                f"{self.file} was built for GPUs of compute capability {', '.join(self.compute_capabilities)}, "
                f"and this one has {capability}: export again for it"
            )
