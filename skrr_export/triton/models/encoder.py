"""Token ids to embeddings, from weights that all instances map; run by Triton's Python backend."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from skrr_export.bundle import open_bundle
from skrr_export.targets import open_target
from skrr_export.triton.cores import cores
from skrr_export.triton.serving import Arrays, Model, Settings, tensor


class TritonPythonModel(Model):
    """One instance."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Open the bundle that this file lies in."""
        settings = Settings(args)
        bundle = open_bundle(settings.directory)
        if settings.parameter("check_hashes") == "true":
            bundle.check_hashes()
            bundle.tensors()  # its header may lie all the same
        threads = settings.parameter("intra_op_thread_count")
        share = max(1, cores() // settings.instances)
        self._session = open_target(bundle, device=settings.device, threads=int(threads) if threads else share)

    def read(self, request: Any) -> Arrays:
        return {name: tensor(request, name) for name in self._session.bundle.manifest.inputs}

    def run(self, inputs: Arrays, *, negative: bool) -> Arrays:
        return self._session.encode(inputs["input_ids"], inputs.get("attention_mask"))
