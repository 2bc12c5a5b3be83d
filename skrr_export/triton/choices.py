"""What to serve and how: what a user may choose, what follows from the bundle, and what cannot work."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from skrr_export.bundle import Bundle
from skrr_export.dtypes import FP32, DType
from skrr_export.errors import InputError
from skrr_export.manifest import Manifest
from skrr_export.pipelines.rows import rearranged
from skrr_export.targets.tensorrt.options import Profile
from skrr_export.targets.tensorrt.record import EngineRecord
from skrr_export.triton.cores import cores

BACKENDS = ("onnxruntime", "tensorrt", "python")
MAX_BATCH = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Choices:
    """What a user may choose."""

    name: str | None = None
    """Of the model that takes prompts; `None`: after the bundle's directory."""
    backend: str | None = None
    """Of the encoder; `None`: what maps the weights on a CPU, `python`, or `onnxruntime` on a GPU."""
    device: str = "cpu"
    instances: int = 1
    """Of the encoder; on a GPU, on each one."""
    max_batch: int | None = None
    threads: int | None = None
    """Of an instance, on a CPU; `None`: its share of the cores."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """What a repository serves, and how."""

    manifest: Manifest
    name: str
    backend: str
    device: str
    instances: int
    threads: int | None
    """`None`: the backend decides where it runs."""
    max_batch: int
    """Rows that Triton may put together; 0: the graph's own batch size is fixed, and is part of the shapes."""
    file: str
    """What the encoder's backend opens."""

    @property
    def tokenizer(self) -> str:
        """Name of the model that makes ids of prompts."""
        return f"{self.name}_tokenizer"

    @property
    def encoder(self) -> str:
        """Name of the model that encodes ids."""
        return f"{self.name}_encoder"

    @property
    def finisher(self) -> str | None:
        """Name of the model that makes of the encoder's rows what the pipeline does; `None`: it takes them all."""
        pipeline = self.manifest.pipeline
        finishes = rearranged(pipeline) or pipeline.padding_rows != "kept"
        return f"{self.name}_rows" if finishes and self.manifest.rows is not None else None

    @property
    def models(self) -> list[str]:
        """Names of all models, the one that takes prompts first."""
        return [self.name, self.tokenizer, self.encoder, *filter(None, [self.finisher])]

    @property
    def dtype(self) -> DType:
        """Of the embeddings: on a CPU everything is computed in fp32, and numpy has no bf16."""
        dtype = self.manifest.dtype
        return FP32 if self.device == "cpu" or (self.backend, dtype.name) == ("python", "bf16") else dtype

    @property
    def rows(self) -> list[int]:
        """The dimensions before a tensor's own; where Triton makes batches it adds theirs itself."""
        return [] if self.max_batch else [self.manifest.batch or 1]

    @property
    def longest(self) -> int:
        """Most tokens of a row."""
        pipeline = self.manifest.pipeline
        return pipeline.max_length + -pipeline.max_length % pipeline.multiple_of

    @property
    def length(self) -> int:
        """Tokens of a row; -1: any number, and so it is where negative prompts are shorter."""
        pipeline = self.manifest.pipeline
        fixed = pipeline.padding == "max_length" and pipeline.negative.max_length == pipeline.max_length
        return self.longest if fixed else -1

    @property
    def finished_length(self) -> int:
        """Rows that the pipeline keeps of them; -1: any number."""
        pipeline = self.manifest.pipeline
        if self.length < 0 or pipeline.padding_rows == "packed":
            return -1
        return len(np.delete(np.arange(self.length), slice(*pipeline.crop))[: pipeline.max_rows])


def decide(bundle: Bundle, choices: Choices) -> Serving:
    """Turn choices into what is served.

    Raises:
        BundleError: the bundle was not exported to what the backend runs.
        InputError: a choice is unknown, or cannot work with this bundle.
    """
    backend = choices.backend or ("python" if choices.device == "cpu" else "onnxruntime")
    _check_choices(choices, backend)
    manifest = bundle.manifest
    _check_length(manifest)
    profile = _profile(bundle) if backend == "tensorrt" else None
    serving = Serving(
        manifest=manifest,
        name=choices.name or default_name(bundle),
        backend=backend,
        device=choices.device,
        instances=choices.instances,
        threads=_threads(choices, backend),
        max_batch=_max_batch(manifest, choices.max_batch, profile),
        file=_file(bundle, backend, choices.device),
    )
    if serving.finisher is not None and serving.dtype.name == "bf16":
        raise InputError(
            f"the pipeline '{manifest.pipeline.name}' takes some of the encoder's rows only, which a model in Python "
            "does, and numpy has no bf16: use --backend python, or export again with --dtype fp16"
        )
    return serving


def default_name(bundle: Bundle) -> str:
    """A model name after the bundle's directory."""
    stem = bundle.directory.absolute().name.removesuffix(".bundle")
    return re.sub("[^A-Za-z0-9_-]+", "_", stem).strip("_-") or "encoder"


def _check_choices(choices: Choices, backend: str) -> None:
    if backend not in BACKENDS:
        raise InputError(f"unknown backend '{backend}'; known: {', '.join(BACKENDS)}")
    if choices.device not in ("cpu", "cuda"):
        raise InputError(f"unknown device '{choices.device}'; known: cpu, cuda")
    if choices.name is not None and not re.fullmatch("[A-Za-z0-9_][A-Za-z0-9_.-]*", choices.name):
        raise InputError(f"'{choices.name}' is no model name: letters, digits, '_', '-' and '.' make one")
    numbers = {"instances": choices.instances, "largest batch": choices.max_batch, "threads": choices.threads}
    for what, number in numbers.items():
        if number is not None and number < 1:
            raise InputError(f"{what}: must be at least 1, not {number}")
    if choices.device == "cpu" and backend == "tensorrt":
        raise InputError("engines run on an NVIDIA GPU: use --device cuda")
    if choices.device == "cuda" and choices.threads is not None:
        raise InputError("threads are for a CPU; --device cuda takes none")


def _check_length(manifest: Manifest) -> None:
    """A fixed length must be the one that the tokenizer makes."""
    pipeline = manifest.pipeline
    made = f"{pipeline.max_length} tokens" if pipeline.padding == "max_length" else "as many tokens as a prompt has"
    if manifest.sequence is not None and (pipeline.padding, pipeline.max_length) != ("max_length", manifest.sequence):
        raise InputError(
            f"the bundle takes {manifest.sequence} tokens and nothing else, the pipeline '{pipeline.name}' "
            f"feeds {made}: export again without --sequence"
        )


def _profile(bundle: Bundle) -> Profile:
    """The sizes that the bundle's engine takes."""
    if "tensorrt" not in bundle.manifest.targets and "tensorrt-rtx" in bundle.manifest.targets:
        raise InputError(
            f"{bundle.directory} has an engine of TensorRT-RTX, which Triton does not run: "
            "export again --to tensorrt on the server's GPU, or use --backend onnxruntime"
        )
    bundle.target_file("tensorrt")
    record = EngineRecord.from_entry(bundle.manifest.targets["tensorrt"])
    if record.stripped:
        raise InputError(
            f"{record.file} has no weights, and Triton gives it none: export again without --strip-weights"
        )
    profile, length = record.profile, bundle.manifest.pipeline.max_length
    if not all(profile.takes(rows, length) for rows in (bundle.manifest.batch or 1, profile.most[0])):
        raise InputError(f"{record.file} takes {profile}, and not a prompt of {length} tokens alone: export again")
    return profile


def _max_batch(manifest: Manifest, chosen: int | None, profile: Profile | None) -> int:
    if manifest.batch is not None:
        if chosen is not None:
            raise InputError(f"the bundle's batch size is fixed at {manifest.batch}: leave --max-batch out")
        return 0
    most = MAX_BATCH if profile is None else profile.most[0]
    if profile is not None and chosen is not None and chosen > most:
        raise InputError(f"the engine takes batches of up to {most}, not {chosen}")
    return chosen or most


def _threads(choices: Choices, backend: str) -> int | None:
    """Where several instances share a CPU each gets its part; the Python model finds that out where it runs."""
    if choices.threads is not None or choices.device == "cuda" or backend == "python" or choices.instances == 1:
        return choices.threads
    return max(1, cores() // choices.instances)


def _file(bundle: Bundle, backend: str, device: str) -> str:
    """What the backend opens; half precision has a graph of its own for a CPU."""
    if backend == "python":
        bundle.target_file("onnx")  # it has that target
        return "model.py"
    file = bundle.target_file("tensorrt") if backend == "tensorrt" else bundle.onnx_graph(device)
    return file.relative_to(bundle.directory).as_posix()
