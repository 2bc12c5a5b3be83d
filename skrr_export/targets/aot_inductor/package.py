"""The AOTInductor package of a planned encoder: compiled code alone, its weights stay in the bundle.

Compiling needs a C++ compiler, running needs none. From C++, with libtorch:

    torch::inductor::AOTIModelPackageLoader loader("bundle/model.cpu.aoti.pt2");
    loader.load_constants(weights, false, true, /*user_managed=*/true);  // by name, from weights.safetensors
    loader.run({input_ids, attention_mask});
"""

from __future__ import annotations

import os
import shutil
import tempfile
import warnings
from dataclasses import replace
from pathlib import Path

import torch

from skrr_export.encoders.eager import Weights
from skrr_export.encoders.module import FunctionalEncoder, LoadedEncoder
from skrr_export.errors import DependencyError, SkrrError
from skrr_export.progress import Progress, silent
from skrr_export.targets.base import Built, Source
from skrr_export.targets.torch_export.program import example_inputs, free_sizes, trace

_CONFIG = {
    "aot_inductor.package_constants_in_so": False,
    "cpp.dynamic_threads": True,  # as many as there are where it runs, not where it was compiled
}

FILES = {"cpu": "model.cpu.aoti.pt2", "cuda": "model.cuda.aoti.pt2"}
"""The target's file in the bundle for each kind of device."""


def check() -> None:
    """Make sure that packages can be compiled here.

    Raises:
        DependencyError: there is no C++ compiler.
    """
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise DependencyError(
            f"the target aoti needs a C++ compiler, and there is no {compiler}: install g++, or set CXX"
        )


def build(source: Source, progress: Progress = silent) -> Built:
    """Compile for the CPU, and for the GPU if there is one.

    Raises:
        SkrrError: the compiler failed.
    """
    kinds = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    files = {}
    for done, kind in enumerate(kinds):
        progress(f"compiling for {kind}", done, len(kinds))
        files[FILES[kind]] = _compile(source, torch.device(kind))
    return Built(
        files=files,
        entry={
            "file": FILES["cpu"],
            "packages": {kind: FILES[kind] for kind in kinds},
            "torch": torch.__version__.partition("+")[0],
            "cpu": torch.backends.cpu.get_cpu_capability(),
        },
    )


def _compile(source: Source, device: torch.device) -> bytes:
    encoder = FunctionalEncoder(source.encoder, source.plan, source.preset.outputs, masked=source.preset.masked)
    tensors = {tensor.name: replace(tensor, file=source.weights) for tensor in source.layout.tensors}
    weights = Weights(tensors, device, source.dtype.torch, budget_bytes=0)
    module = LoadedEncoder(encoder, {name: weights[name] for name in encoder.shapes})
    program = trace(module, example_inputs(source, device), free_sizes(source))
    with tempfile.TemporaryDirectory() as directory, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        package = Path(directory) / "package.pt2"
        try:
            torch._inductor.aoti_compile_and_package(program, package_path=str(package), inductor_configs=_CONFIG)
        except Exception as error:  # the compiler's own kinds, of which there are many
            why = (str(error).strip().splitlines() or [type(error).__name__])[0]  # else the compiler's whole output
            raise SkrrError(f"AOTInductor cannot compile this encoder for {device.type}: {why}") from error
        return package.read_bytes()
