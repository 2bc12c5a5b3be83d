"""What a measurement says: the document that `measure` writes, `compare` reads, and the report shows.

Sizes are bytes, times are seconds, shares are 0 to 1. What was not measured is `None`, in JSON `null`, and never 0.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from skrr_export.measure.fidelity import Comparison, Deviation

FORMAT = "skrr-measurement/1"
STAGES = ("import", "load", "first", "steady")
"""What a process had done when its memory was read: libraries imported, encoder loaded, one prompt encoded, every size
run several times, of which the largest reading counts."""
MEMORY_SOURCES = {
    "anonymous": "/proc/PID/smaps_rollup Anonymous: exact, at the end of the stage; steady: the largest after any run",
    "file_backed": "/proc/PID/smaps_rollup Rss less Anonymous and shared memory: exact, at the end of the stage",
    "proportional": "/proc/PID/smaps_rollup Pss: exact, at the end of the stage; all processes on the machine count",
    "peak_rss": "/proc/PID/status VmHWM: kept by the kernel, since the process began",
    "peak_anonymous": "/proc/PID/status RssAnon: sampled every 20 ms, so a shorter peak may be missed",
    "gpu.process": "NVML's list of processes: context and libraries included",
    "gpu.torch_peak": "torch.cuda.max_memory_allocated: what torch's allocator gave out at most",
    "gpu.engine": "the TensorRT engine's own figure: its activations, without its weights",
}
"""Where each number of a process's memory comes from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Memory of a live process, in bytes."""

    anonymous: int
    """Allocated by the process: heap, stacks, private pages it wrote. It can never be shared."""
    file_backed: int
    """Resident pages of mapped files, libraries included. They belong to the page cache, which processes share and
    which the system may drop at any time."""
    shared: int
    """Resident pages of shared memory (tmpfs, shm)."""
    proportional: int
    """PSS: as resident, but a page that n processes map counts one n-th. It sums over processes."""
    swap: int
    """Anonymous memory that was swapped out; where it is not 0, `anonymous` reads too low."""
    peak_rss: int
    """Largest resident set since the process began."""

    @property
    def resident(self) -> int:
        """Bytes that are in the machine's memory, whoever else may map them."""
        return self.anonymous + self.file_backed + self.shared


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuMemory:
    """Memory that a process holds on the GPU after all runs, by three ways of counting; they do not add up."""

    process: int | None
    """All that the driver counts as the process's, its context included."""
    torch_peak: int | None
    engine: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessMemory:
    """Memory of a subject in a process of its own."""

    stages: Mapping[str, Memory]
    """By the name of the stage, see `STAGES`; those that were reached."""
    peak_anonymous: int | None
    processes: int | None
    """How many processes ran the subject at the same time for `total_proportional`."""
    total_proportional: int | None
    """Their PSS, summed, in the steady state."""
    gpu: GpuMemory | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ColdStart:
    """From the start of a process to its first embedding, files in the page cache; medians over all starts."""

    starts: int
    interpreter: float
    """Python and this harness; a program of your own has another."""
    imports: float
    load: float
    first: float
    """The first prompt, which pages weights in and makes buffers."""
    total: float
    """From start to embedding."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """A subject's time over another's, from pairs of runs that followed one another."""

    median: float
    low: float
    """First decile of the pairs' ratios."""
    high: float
    """Last decile."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """The limit of the hardware that is nearest, as it was measured in the same run."""

    name: Literal["memory", "compute"]
    """`memory`: the weights, each once, at the measured copy bandwidth. `compute`: the multiplications, at the measured
    speed of a large matrix product."""
    seconds: float
    share: float
    """The limit's time over the median: 1 is perfect, and above it the machine was disturbed when it was measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """How long one size of input takes, from ids on the host to embeddings on the host."""

    batch: int
    sequence: int
    seconds: tuple[float, ...]
    """Every timed run, in order."""
    median: float
    p95: float
    variation: float
    """Coefficient of variation: standard deviation over mean."""
    tokens_per_second: float
    bound: Bound | None
    ratios: Mapping[str, Ratio]
    """To other subjects of the same round, by their names: PyTorch's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptDeviation:
    """One prompt's rows that the denoiser reads; its pooled vector, where the encoder gives nothing else."""

    prompt: str
    tokens: int
    relative_l2: float | None
    cosine_min: float | None
    cosine_mean: float | None
    nonfinite: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement(Comparison):
    """Embeddings against a reference."""

    null: Deviation | None
    """The empty prompt, compared as each of `prompts`; `None` without a tokenizer."""
    projected: Deviation | None
    """The rows that the denoiser reads, after its own projection of them; `None` without a denoiser."""
    cosine_distances: Mapping[str, int]
    """How many tokens lie within each cosine distance of the reference, from the last bound to this one; prompts, where
    the encoder gives pooled vectors alone."""
    prompts: tuple[PromptDeviation, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Invariance:
    """What must not change a subject's result; relative L2 of what it did change, of the worst prompt."""

    repeat: float | None
    """The same batch once more."""
    batch: float | None
    """A prompt alone instead of in a batch, at the same length."""
    sequence: float | None
    """A prompt without its padding; `None` where the encoder is given no mask, and so no such promise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SubjectRecord:
    """One way to run the encoder, and all that was measured of it."""

    name: str
    """`torch-dense`, `torch-plan`, or the target: `onnx`, `onnx:prepacked`, `pt2`, ..."""
    title: str
    """For people."""
    role: Literal["pytorch", "target", "peer"]
    planned: bool
    """Whether it runs the bundle's plan, or the dense encoder."""
    computes_in: str | None
    weights_bytes: int | None
    """Of the tensors it runs, each once."""
    error: str | None = None
    """Why it was not measured, or not to the end."""
    skipped: bool = False
    """Whether that is by design: it cannot run on this device."""
    memory: ProcessMemory | None = None
    cold_start: ColdStart | None = None
    latencies: tuple[Latency, ...] = ()
    drift: Agreement | None = None
    """Against transformers in fp32 under the same plan: the error of the export, or of PyTorch in this precision."""
    loss: Agreement | None = None
    """Against the dense original in fp32: what the plan costs."""
    invariance: Invariance | None = None
    notes: tuple[str, ...] = ()

    @property
    def steady(self) -> Memory | None:
        """Its memory after it ran every size several times."""
        return None if self.memory is None else self.memory.stages.get("steady")

    @property
    def gpu_bytes(self) -> int | None:
        """What the driver counts as its process's on the GPU."""
        return None if self.memory is None or self.memory.gpu is None else self.memory.gpu.process


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """One check."""

    check: str
    """What was checked, of which subject."""
    passed: bool
    value: float | None
    """What was found; `None`: not measured, which never passes."""
    limit: float | None
    """Largest value that passes; `None` where there is nothing to compare."""
    message: str
    """One line for people: what failed, and by how much."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """What this machine can do at best, measured in the same run with the same threads."""

    copy_bytes_per_second: float | None
    """Reads plus writes of a copy that no cache holds."""
    matmul_flops_per_second: Mapping[str, float]
    """Of a large square matrix product, by precision."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleFacts:
    """Which bundle was measured."""

    path: str
    manifest_sha256: str
    family: str
    num_layers: int
    hidden_size: int
    dtype: str
    pipeline: str
    plan: Mapping[str, Any]
    """The plan file's document."""
    total_parameters: int
    kept_parameters: int
    weights_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How it was measured."""

    command: str
    """The command line that measures this again."""
    reference: str | None
    device: str
    threads: int
    runs: int
    """Timed runs of each subject and size."""
    processes: int
    prompts: int
    """Prompts whose embeddings were compared; 0: random ids only."""
    denoiser: str | None
    """The projection that `projected` is after."""
    largest: tuple[int, int]
    """Batch and sequence of the largest size; memory is that of a process which ran it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """A whole measurement."""

    tool: str
    started: str
    """ISO 8601, UTC."""
    seconds: float
    """That measuring took."""
    bundle: BundleFacts
    settings: Settings
    machine: Mapping[str, str | int | None]
    """Processor, cores, memory, kernel, GPU."""
    versions: Mapping[str, str]
    """Of Python and the libraries."""
    hardware: Hardware
    subjects: tuple[SubjectRecord, ...]
    verdicts: tuple[Verdict, ...]
    notes: tuple[str, ...] = ()
    memory_sources: Mapping[str, str] = field(default_factory=lambda: MEMORY_SOURCES)

    @property
    def passed(self) -> bool:
        """Whether every check passed."""
        return all(verdict.passed for verdict in self.verdicts)

    def subject(self, name: str) -> SubjectRecord | None:
        """A subject by its name."""
        return next((subject for subject in self.subjects if subject.name == name), None)

    def to_dict(self) -> dict[str, Any]:
        """The document, as its schema `data/measurement.schema.json` has it."""
        return {"format": FORMAT, "passed": self.passed, **asdict(self)}

    def to_json(self) -> str:
        """The text of the JSON file."""
        return json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n"
