"""Run a bundle's AOTInductor package."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from skrr_export.bundle import Bundle
from skrr_export.errors import BundleError
from skrr_export.targets.base import Arrays, Ids, Session
from skrr_export.targets.torch_export.session import to_arrays
from skrr_export.targets.torch_weights import map_weights, torch_device

_CAPABILITIES = ("DEFAULT", "AVX2", "AVX512")
"""What torch says of x86 processors, each of which runs code for those before it."""


class PackageSession(Session):
    """An encoder compiled by AOTInductor."""

    def __init__(self, bundle: Bundle, *, device: str = "cpu") -> None:
        """Load a bundle; on a CPU its weights stay in the file's pages.

        Args:
            bundle: an open bundle with the target `aoti`.
            device: `cpu` or `cuda`.

        Raises:
            BundleError: the bundle has no package for this device or processor, or torch cannot read it.
            InputError: there is no such device.
        """
        super().__init__(bundle, bundle.manifest.dtype)
        bundle.target_file("aoti")  # raises where there is none
        entry = bundle.manifest.targets["aoti"]
        self._device = torch_device(device)
        packages = entry["packages"]
        if device not in packages:
            raise BundleError(f"{bundle.directory} was compiled for {', '.join(packages)}, not for {device}")
        here = torch.backends.cpu.get_cpu_capability()
        if not _runs(str(entry["cpu"]), here):
            raise BundleError(
                f"{bundle.directory} was compiled for processors with {entry['cpu']}, this one has {here}; export again"
            )
        file = bundle.directory / str(packages[device])
        try:
            self._model = torch._inductor.aoti_load_package(str(file))
            names = self._model.get_constant_fqns()
            weights = map_weights(bundle, self._device)
            self._weights = {name: weights[name] for name in names}  # the model borrows them
            self._model.load_constants(self._weights, check_full_update=True, user_managed=True)
        except (RuntimeError, KeyError, OSError) as error:
            made = f"it was compiled with torch {entry['torch']}"
            raise BundleError(f"torch {torch.__version__} cannot load {file} ({made}): {error}") from error

    @torch.inference_mode()
    def _run(self, feed: Mapping[str, Ids]) -> Arrays:
        outputs = self._model(*(torch.from_numpy(ids).to(self._device) for ids in feed.values()))
        return to_arrays(outputs)


def _runs(compiled_for: str, here: str) -> bool:
    if compiled_for in _CAPABILITIES and here in _CAPABILITIES:
        return _CAPABILITIES.index(compiled_for) <= _CAPABILITIES.index(here)
    return compiled_for == here
