"""The encoder's rows to those that the bundle's pipeline gives its denoiser; run by Triton's Python backend."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from skrr_export.bundle import read_manifest
from skrr_export.pipelines import rows
from skrr_export.triton.serving import Arrays, Model, Settings, says_negative, tensor


class TritonPythonModel(Model):
    """One instance."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Read what the pipeline does."""
        manifest = read_manifest(Settings(args).directory)
        assert manifest.rows is not None  # or there would be nothing to do
        self._output = manifest.rows.output
        self._preset = replace(manifest.pipeline, outputs=(self._output,))

    def read(self, request: Any) -> Arrays:
        return {name: tensor(request, name) for name in (self._output.name, "attention_mask")}

    def negative(self, request: Any) -> bool:
        return self._preset.negative != self._preset and says_negative(request)

    def run(self, inputs: Arrays, *, negative: bool) -> Arrays:
        preset, mask = self._preset.negative if negative else self._preset, inputs["attention_mask"]
        finished = rows.finish(preset, {self._output.name: inputs[self._output.name]}, mask)
        # What is rearranged for prompts but not for negative ones keeps the tokens' mask.
        return {"output_mask": mask, **finished} if rows.rearranged(self._preset) else finished

    def finish(self, outputs: Arrays) -> Arrays:
        """Fill packed rows up to the prompt with most of the request, as if it had come alone."""
        if self._preset.padding_rows != "packed":
            return outputs
        used = outputs["output_mask"].any(axis=0)
        return {name: array[:, used] if array.ndim < 4 else array[:, :, used] for name, array in outputs.items()}
