"""Finding plans: checkpoint + prompts -> the plan that changes the embeddings least at a wanted sparsity.

The Python API of `skrr-export plan search` and of the re-use phase of `plan published`. torch is imported only once
the options have been found in order.
"""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from skrr_export.checkpoint import Checkpoint, find_tokenizer, fingerprint, open_checkpoint
from skrr_export.errors import InputError, OutputError, PlanError
from skrr_export.outputs import LAST, Output
from skrr_export.pipelines import Preset, find_preset
from skrr_export.plan import Plan
from skrr_export.progress import Progress, silent
from skrr_export.prompts import calibration_prompts, spread
from skrr_export.published import SOURCE, PublishedOrder, check_xxl, prefix_for
from skrr_export.search.goal import reaches

if TYPE_CHECKING:
    from skrr_export.calibration import Calibration
    from skrr_export.encoders import Encoder
    from skrr_export.search.journal import Journal
    from skrr_export.search.methods import Found, Reuse, Search
    from skrr_export.search.projection import Projection
    from skrr_export.search.space import Granularity, Space
    from skrr_export.search.workers import Workers

METHODS = ("skrr+", "skrr", "finercut", "shortgpt", "laco", "uniform", "random")
REUSING = ("skrr+", "skrr")
"""Methods that re-use unless told not to."""
BY_LAYER = ("shortgpt", "laco")
"""Methods that drop whole layers, by their definition."""
DTYPES = ("fp32", "bf16")
"""Precisions to compute in; fp16 overflows in a T5."""

_SHARES = {"cpu": (0.3, 0.2), "cuda": (0.6, 0.2)}
"""Of the free memory, what converted weights and hidden states may hold. A CPU also needs room for the mapped file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchOptions:
    """How to search."""

    sparsities: tuple[float, ...]
    """Shares of the encoder's parameters to do without, each above 0 and below 1; a plan is found for each."""
    method: str = "skrr+"
    """One of `METHODS`."""
    pipeline: str = "plain"
    """Name of a preset of `skrr_export.pipelines`; it says what is read of the encoder, and so what D is taken on."""
    denoiser: str | Path | None = None
    """Where the denoiser's text projection lies; `None`: the discrepancy is taken on the embedding itself."""
    prompts: Sequence[str] | None = None
    """To calibrate on; `None`: the shipped ones."""
    max_prompts: int | None = None
    """Use this many of them, evenly spread; `None`: all."""
    beam: int = 3
    """States that go on after each step, the paper's k."""
    granularity: Literal["sub-block", "layer"] | None = None
    """What is dropped at a time; `None`: the method's own."""
    reuse: bool | None = None
    """Whether dropped units are replaced by kept ones; `None`: the method's own."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda` or `cuda:N`."""
    dtype: str | None = None
    """To compute in, `fp32` or `bf16`; `None`: bf16 for half-precision checkpoints on a GPU, else fp32."""
    cache_gb: float | None = None
    """Gigabytes for hidden states that several candidates share; `None`: a fifth of the free memory."""
    seed: int = 0
    """Of the method `random`."""
    subfolder: str | None = None
    """The encoder's folder in a pipeline directory."""
    tokenizer: Path | None = None
    """Directory of the tokenizer; `None`: the one found with the checkpoint."""
    merged: Path | None = None
    """Directory to be made for the checkpoint that the method `laco` merges, and that its plan is for."""

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise InputError(f"unknown method '{self.method}'; known: {', '.join(METHODS)}")
        if not self.sparsities or not all(0 < sparsity < 1 for sparsity in self.sparsities):
            raise InputError("a sparsity is a share above 0 and below 1, such as 0.42")
        if self.beam < 1:
            raise InputError(f"the beam must be at least 1, not {self.beam}")
        if self.max_prompts is not None and self.max_prompts < 1:
            raise InputError(f"at least one prompt is needed, not {self.max_prompts}")
        if self.cache_gb is not None and not 0 <= self.cache_gb < float("inf"):
            raise InputError(f"the cache cannot have {self.cache_gb} GB")
        if self.dtype is not None and self.dtype not in DTYPES:
            raise InputError(f"cannot search in '{self.dtype}'; choose one of {', '.join(DTYPES)}")
        self._check_method()

    def _check_method(self) -> None:
        """Whether the other options fit the method."""
        if self.granularity == "sub-block" and self.method in BY_LAYER:
            raise InputError(f"{self.method} drops whole layers by its definition; leave --granularity out")
        if self.reuse is False and self.method == "skrr+":
            raise InputError("skrr+ is about re-use; for skips alone use --method skrr --no-reuse")
        if self.method == "laco" and self.merged is None:
            raise InputError("laco merges layers: name a directory for the merged checkpoint with --merged")
        if self.method != "laco" and self.merged is not None:
            raise InputError(f"{self.method} merges no layers; --merged is for --method laco")

    @property
    def reuses(self) -> bool:
        """Whether dropped units are replaced by kept ones."""
        return self.method in REUSING if self.reuse is None else self.reuse

    @property
    def grain(self) -> Granularity:
        """What is dropped at a time."""
        return self.granularity or ("layer" if self.method in BY_LAYER else "sub-block")

    @property
    def merged_directories(self) -> tuple[Path, ...]:
        """The merged checkpoint of each sparsity; of several, each has its sparsity in its name."""
        if self.merged is None:
            return ()
        if len(self.sparsities) == 1:
            return (self.merged,)
        return tuple(self.merged.with_name(f"{self.merged.name}-{sparsity}") for sparsity in self.sparsities)


def search_plans(
    location: str | Path,
    options: SearchOptions,
    *,
    journal: Path | None = None,
    resume: bool = False,
    progress: Progress = silent,
) -> list[Plan]:
    """Search a plan for each wanted sparsity.

    Under `torchrun` the processes share the prompts, and all return the same plans. A merged checkpoint is written
    once everything is decided.

    Args:
        location: checkpoint directory or hub id.
        options: how.
        journal: file that keeps every decision while the search runs; it is the caller's to remove afterwards.
        resume: go on with that journal if it exists.
        progress: told how far the job is.

    Returns:
        A plan for each of `options.sparsities`, in that order. Their provenance holds every step.

    Raises:
        SkrrError: of the kind that says what was wrong.
    """
    for directory in options.merged_directories:
        _check_new(directory)
    with _prepared(location, options) as job, _open_journal(job, journal, resume=resume) as kept:
        from skrr_export.search.methods import run_method

        search = _search(job, kept, progress)
        found = run_method(search, options.method)
        plans = _plans(job, search, found)
        if options.merged is None:
            return plans
        results = zip(plans, found, options.merged_directories, strict=True)
        return [_merged(job, plan, each, directory, progress) for plan, each, directory in results]


def reuse_published(
    location: str | Path,
    order: PublishedOrder,
    options: SearchOptions,
    *,
    journal: Path | None = None,
    resume: bool = False,
    progress: Progress = silent,
) -> list[Plan]:
    """Decide on a checkpoint's own weights what runs in the places that a published order drops.

    Args:
        location: checkpoint directory or hub id; a T5-XXL.
        order: which units are dropped, and in which order.
        options: how; `method` is that of re-use, `skrr` or `skrr+`.
        journal: as for `search_plans`.
        resume: likewise.
        progress: told how far the job is.

    Returns:
        A plan for each of `options.sparsities`, in that order.

    Raises:
        SkrrError: of the kind that says what was wrong, such as an encoder of another shape.
    """
    for sparsity in options.sparsities:
        prefix_for(order, sparsity)  # raises, and says which of this order's sparsities is nearest
    with (
        _prepared(location, options, check=check_xxl) as job,
        _open_journal(job, journal, resume=resume, order=order.name) as kept,
    ):
        from skrr_export.search.methods import refine_order

        search = _search(job, kept, progress)
        units = [(unit,) for unit in order.units if unit in search.space.dense]
        found = refine_order(search, units, order.name, whole_curve=False)
        return _plans(job, search, found, method="published", source=f"{SOURCE}: {order.denoiser}")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """Everything that is decided before anything is computed."""

    checkpoint: Checkpoint
    encoder: Encoder
    tokenizer: Path
    preset: Preset
    space: Space
    options: SearchOptions
    workers: Workers
    calibration: Calibration
    projection: Projection | None
    dtype: str
    fingerprint: str

    @property
    def null(self) -> bool:
        """Whether the null prompt counts: the pipeline may have zeros in its place, which no plan changes."""
        return self.preset.unconditional != "zeros"


@contextmanager
def _prepared(
    location: str | Path, options: SearchOptions, check: Callable[[Encoder], None] = lambda _: None
) -> Iterator[_Job]:
    checkpoint = open_checkpoint(location, options.subfolder)
    tokenizer = options.tokenizer or checkpoint.tokenizer
    if tokenizer is None or find_tokenizer(tokenizer, tokenizer, None) is None:
        raise InputError(f"no tokenizer in {tokenizer or checkpoint.directory}; name its directory with --tokenizer")

    from skrr_export.calibration import calibrate
    from skrr_export.encoders import recognise
    from skrr_export.search.projection import open_projection
    from skrr_export.search.workers import join_workers
    from skrr_export.tokenization import Tokenizer

    encoder = recognise(checkpoint)
    check(encoder)
    preset = find_preset(options.pipeline, encoder, options.subfolder)
    space = _space(checkpoint, encoder, preset)
    for wanted in options.sparsities:
        if reaches(gone := space.sparsity(space.dense), wanted):
            raise PlanError(f"sparsity {wanted:.1%} needs no plan: pipeline '{preset.name}' does without {gone:.1%}")
    projection = None
    if options.denoiser is not None:
        *_, width = encoder.shape(_judged(preset))
        projection = open_projection(options.denoiser, int(width), preset.projection)
    prompts = spread(options.prompts if options.prompts is not None else calibration_prompts(), options.max_prompts)
    calibration = calibrate(Tokenizer(tokenizer, checkpoint.directory, preset), prompts)
    workers = join_workers(options.device)
    try:
        half = {tensor.code for tensor in checkpoint.tensors.values()} <= {"BF16", "F16"}
        dtype = options.dtype or ("bf16" if half and workers.device.type == "cuda" else "fp32")
        yield _Job(
            checkpoint=checkpoint,
            encoder=encoder,
            tokenizer=tokenizer,
            preset=preset,
            space=space,
            options=options,
            workers=workers,
            calibration=calibration,
            projection=projection,
            dtype=dtype,
            fingerprint=fingerprint(checkpoint),
        )
    finally:
        workers.leave()


def _judged(preset: Preset) -> Output:
    """The output that D is taken on: the one per token if there is one, else the pooled one."""
    return preset.outputs[0]


def _space(checkpoint: Checkpoint, encoder: Encoder, preset: Preset) -> Space:
    """What can be dropped: what the judged output depends on. To drop anything else would seem to cost nothing."""
    from skrr_export.encoders import select
    from skrr_export.encoders.eager import unit_parameters
    from skrr_export.search.space import Space

    dense = select(checkpoint, encoder, Plan.identity(encoder.family, encoder.num_layers), preset.outputs)
    units = unit_parameters(encoder)[: 2 * encoder.depth([_judged(preset)])]
    return Space(encoder.family, encoder.num_layers, units, dense.total_parameters, dense.unread_parameters)


def _check_new(directory: Path) -> None:
    """Notice before the search, not after hours, that its merged checkpoint could not be written."""
    if os.path.lexists(directory):
        raise OutputError(f"{directory} exists; remove it, or choose another --merged")
    ancestor = next(path for path in directory.absolute().parents if path.exists())
    if not ancestor.is_dir() or not os.access(ancestor, os.W_OK | os.X_OK):
        raise OutputError(f"cannot write {directory}: {ancestor} is not a directory that can be written to")


def _open_journal(job: _Job, path: Path | None, *, resume: bool, order: str | None = None) -> Journal:
    from skrr_export.search.journal import Journal

    return Journal(path, {**_subject(job), "order": order}, job.workers, resume=resume)


def _subject(job: _Job) -> dict[str, Any]:
    """Everything that decides the plans; devices and memory do not."""
    return {
        "checkpoint": job.fingerprint,
        "prompts": job.calibration.sha256,
        "null prompt": job.null,
        "attention mask": job.preset.masked,
        "outputs": [output.to_dict() for output in job.preset.outputs],
        "denoiser": job.projection and job.projection.sha256,
        "method": job.options.method,
        "sparsity": list(job.options.sparsities),
        "beam": job.options.beam,
        "granularity": job.options.grain,
        "re-use": job.options.reuses,
        "seed": job.options.seed,
        "dtype": job.dtype,
        "release": importlib.metadata.version("skrr-export"),
    }


def _search(job: _Job, journal: Journal, progress: Progress) -> Search:
    import torch

    from skrr_export.encoders.eager import EagerEncoder, Weights
    from skrr_export.search.activations import ActivationEngine
    from skrr_export.search.discrepancy import Discrepancy
    from skrr_export.search.methods import Search

    device, space = job.workers.device, job.space
    free = _free_bytes(device)
    cache_gb = job.options.cache_gb
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[job.dtype]
    weights_share, cache_share = _SHARES[device.type]
    weights = Weights(job.checkpoint.tensors, device, dtype, budget_bytes=int(free * weights_share))
    engine = ActivationEngine(
        EagerEncoder(job.encoder, weights, device, masked=job.preset.masked, outputs=[_judged(job.preset)]),
        (job.calibration.null, *job.calibration.chunks),
        int(free * cache_share if cache_gb is None else min(cache_gb * 1e9, 1e18)),
    )
    projection = None if job.projection is None else job.projection.to(device)
    return Search(
        space=space,
        items=space.items(job.options.grain),
        discrepancy=Discrepancy(engine, job.workers, space.dense, projection=projection, null=job.null),
        plain=Discrepancy(engine, job.workers, space.dense, null=False),
        wanted=job.options.sparsities,
        beam=job.options.beam,
        reuse=_reuse(job.options),
        seed=job.options.seed,
        journal=journal,
        progress=progress,
    )


def _reuse(options: SearchOptions) -> Reuse:
    if not options.reuses:
        return "no"
    return "every" if options.method == "skrr+" else "nearest"


def _free_bytes(device: Any) -> int:
    """Memory that is free on the device, this process's share of it."""
    if device.type == "cuda":
        import torch

        return torch.cuda.mem_get_info(device)[0]
    siblings = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        available = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    return available // siblings


def _plans(job: _Job, search: Search, found: Sequence[Found], **special: str) -> list[Plan]:
    """The results as plans; `special` stands over what is common to all in their provenance."""
    from skrr_export.search.methods import terms_of
    from skrr_export.search.provenance import provenance

    scale = search.journal.remember("scale", search.discrepancy.scale)
    common = {
        "tool": f"skrr-export {importlib.metadata.version('skrr-export')}",
        "method": job.options.method,
        "calibration": {
            "pipeline": job.preset.name,
            "prompts": job.calibration.prompts,
            "tokens": job.calibration.tokens,
            "truncated": job.calibration.truncated,
            "sha256": job.calibration.sha256,
        },
        "settings": {
            "beam": job.options.beam,
            "granularity": job.options.grain,
            "reuse": _reuse(job.options),
            "seed": job.options.seed,
            "dtype": job.dtype,
        },
        "checkpoint": {"name": job.checkpoint.directory.resolve().name, "sha256": job.fingerprint},
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "transformers")},
        **special,
    }
    space = _name(_judged(job.preset)) if job.projection is None else job.projection.describe()
    plans = []
    for each, wanted, terms in zip(found, job.options.sparsities, terms_of(search, found), strict=True):
        own = provenance(search, each, wanted, terms, scale)
        own["discrepancy"]["space"] = space
        plans.append(search.space.plan(each.arrangement, {**common, **own}))
    return plans


def _name(output: Output) -> str:
    """Where D is taken without a projection."""
    if output == LAST:
        return "embedding"
    return output.name if output.join is None else f"{output.name} {', '.join(map(str, output.layers))}"


def _merged(job: _Job, plan: Plan, found: Found, directory: Path, progress: Progress) -> Plan:
    """Write the merged checkpoint that a plan is for, and name it in the plan."""
    from skrr_export.search.laco import write_merged

    sha256 = None
    if job.workers.rank == 0:
        write_merged(directory, job.checkpoint, job.tokenizer, found.merges, progress)
        sha256 = fingerprint(open_checkpoint(directory))
    merged = {"name": directory.resolve().name, "sha256": job.workers.agree(sha256)}
    return replace(plan, provenance={**plan.provenance, "merged": merged})
