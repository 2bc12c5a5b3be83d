"""The main job: checkpoint + plan -> bundle.

torch is imported only once the checkpoint has been found in order, so that a mistake is answered at once.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from skrr_export.bundle import Bundle
from skrr_export.checkpoint import TOKENIZER_FILES, Checkpoint, encoder_folders, find_tokenizer, open_checkpoint
from skrr_export.dtypes import BAKEABLE, FP16, FP32, READABLE, DType, bakeable
from skrr_export.errors import CheckpointError, InputError
from skrr_export.manifest import CONFIG, MANIFEST, TOKENIZER, WEIGHTS, FileEntry, Manifest, OutputEntry
from skrr_export.pipelines import Preset, find_preset, pipeline_encoders
from skrr_export.plan import Plan
from skrr_export.progress import Progress, part, silent
from skrr_export.staging import StagedDirectory, StagedFolder
from skrr_export.targets import TARGETS
from skrr_export.targets.tensorrt.options import ENGINES, EngineOptions
from skrr_export.tensorfile import Layout

if TYPE_CHECKING:
    from skrr_export.encoders import Encoder, Selection
    from skrr_export.portable import Recipe
    from skrr_export.targets.base import Source
    from skrr_export.tokenization import Tokenizer

PIPELINE = "pipeline.json"
"""The file by which an exported pipeline is known."""
MAX_SIZE = 1 << 20
"""Largest batch or sequence that can be fixed."""
MAX_VECTORS = 64
"""Most test vectors; those of a T5-XXL at 512 tokens take 8 MB each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportOptions:
    """How to export."""

    plan: Plan | None = None
    """Which weights run where; `None`: every layer its own."""
    pipeline: str = "plain"
    """Name of a preset of `skrr_export.pipelines`."""
    dtype: str | None = None
    """`fp32`, `fp16` or `bf16`; `None`: the checkpoint's own."""
    targets: tuple[str, ...] = ("onnx",)
    """Formats to write."""
    subfolder: str | None = None
    """The encoder's folder in a pipeline directory."""
    tokenizer: Path | None = None
    """Directory of the tokenizer; `None`: the one found with the checkpoint."""
    batch: int | None = None
    """Fixed batch size; `None`: free."""
    sequence: int | None = None
    """Fixed sequence length, in tokens; `None`: free."""
    inline: bool = False
    """Write an ONNX graph without model-local functions."""
    engine: EngineOptions = field(default_factory=EngineOptions)
    """How to build TensorRT's engines."""
    rescale: bool = True
    """Keep fp16 from overflowing; see `skrr_export.rescale`."""
    prompts: Sequence[str] | None = None
    """To measure activations on, for `rescale`; `None`: some of the shipped ones."""
    vectors: int = 0
    """How many test vectors to add; `transformers` computes them, and for that loads the checkpoint whole."""
    replace: bool = False
    """Replace a bundle that exists."""

    def __post_init__(self) -> None:
        unknown = [target for target in self.targets if target not in TARGETS]
        if unknown or not self.targets:
            raise InputError(f"unknown target '{', '.join(unknown)}'; known: {', '.join(TARGETS)}")
        for name, value in (("batch", self.batch), ("sequence", self.sequence)):
            if value is not None and not 1 <= value <= MAX_SIZE:
                raise InputError(f"the {name} size must be 1 to {MAX_SIZE:,}, not {value}")
        if not 0 <= self.vectors <= MAX_VECTORS:
            raise InputError(f"the number of test vectors must be 0 to {MAX_VECTORS}, not {self.vectors}")
        if self.dtype is not None:
            bakeable(self.dtype)


@dataclass(frozen=True, slots=True)
class Exported:
    """A bundle just written, and what the user should know about it."""

    bundle: Bundle
    warnings: tuple[str, ...]
    reports: Mapping[str, Mapping[str, Any]]
    """For each target what building it took, where it tells; not part of the bundle, for it differs from run to run."""
    dense_nbytes: int
    """What the weights would take without the plan, in the bundle's dtype."""


@dataclass(frozen=True, slots=True)
class _Job:
    """Everything that is decided before anything is written."""

    checkpoint: Checkpoint
    encoder: Encoder
    plan: Plan
    selection: Selection
    preset: Preset
    dtype: DType
    layout: Layout
    options: ExportOptions
    warnings: tuple[str, ...]


def export_checkpoint(
    location: str | Path,
    output: str | Path,
    options: ExportOptions = ExportOptions(),
    *,
    progress: Progress = silent,
) -> Exported:
    """Export a text encoder under a plan.

    Args:
        location: checkpoint directory or hub id.
        output: the bundle's directory; appears whole or not at all.
        options: how.
        progress: told how far the job is.

    Raises:
        SkrrError: of the kind that says what was wrong; nothing is written then.
    """
    with StagedDirectory(Path(output), replace=options.replace, marker=MANIFEST) as stage:
        job = _prepare(location, options)
        stage.require_space(_needed(job))
        return _export(job, Path(output), StagedFolder(stage), progress)


def export_pipeline(
    location: str | Path,
    output: str | Path,
    options: ExportOptions,
    plans: Mapping[str, Plan] | None = None,
    *,
    progress: Progress = silent,
) -> dict[str, Exported]:
    """Export every text encoder of a pipeline.

    Args:
        location: a pipeline's directory, as diffusers saves it, or its hub id.
        output: a directory that gets a bundle for each encoder, named like its folder (`text_encoder_2`); appears
            whole or not at all.
        options: how; `pipeline` names the preset, and what is given there goes for every encoder.
        plans: by the encoder's folder; the others are kept whole.
        progress: told how far the job is.

    Returns:
        The bundles by the encoders' folders.

    Raises:
        SkrrError: of the kind that says what was wrong; nothing is written then.
    """
    if options.plan is not None or options.subfolder is not None or options.tokenizer is not None:
        raise InputError("a plan, a subfolder or a tokenizer is for one encoder; this exports all of a pipeline")
    plans = plans or {}
    with StagedDirectory(Path(output), replace=options.replace, marker=PIPELINE, kind="folder of bundles") as stage:
        folders = encoder_folders(location, pipeline_encoders(options.pipeline))
        for folder in plans.keys() - folders:
            raise InputError(f"a plan for '{folder}', which is none of this pipeline's encoders: {', '.join(folders)}")
        jobs = {
            folder: _prepare(location, replace(options, subfolder=folder, plan=plans.get(folder))) for folder in folders
        }
        stage.require_space(sum(map(_needed, jobs.values())))
        exported = {}
        for number, (folder, job) in enumerate(jobs.items()):
            own = part(progress, number, len(jobs))
            exported[folder] = _export(job, Path(output) / folder, stage.folder(folder), own)
        document = {"format": "skrr-pipeline/1", "pipeline": options.pipeline, "encoders": list(folders)}
        stage.write(PIPELINE, json.dumps(document, indent=1).encode() + b"\n")
    return exported


def _needed(job: _Job) -> int:
    """Bytes of weights that will be written; an engine has its own."""
    return (1 + sum(target in ENGINES for target in job.options.targets)) * job.layout.nbytes


def _export(job: _Job, output: Path, stage: StagedFolder, progress: Progress) -> Exported:
    from skrr_export.bake import bake
    from skrr_export.rescale import UNCHANGED, rescale
    from skrr_export.targets.building import build_targets

    options = job.options
    rescaled = UNCHANGED
    if job.dtype is FP16 and options.rescale:
        rescaled = rescale(
            job.checkpoint, job.encoder, job.plan, job.preset, prompts=options.prompts, progress=progress
        )
    tokenizer = cache(lambda: _tokenizer(job))  # for the recipe, and for test vectors
    recipe, not_portable = _recipe(job, tokenizer)
    file = stage.create(WEIGHTS)
    tensors = job.selection.tensors
    baked = bake(tensors, job.layout, job.dtype, file, progress, rescaling=rescaled.rescaling)
    file.flush()
    source = _source(job, job.encoder.rescaled(rescaled.rescaling), Path(f"/proc/self/fd/{file.fileno()}"))
    files = {WEIGHTS: FileEntry(baked.sha256, baked.nbytes)}
    built = build_targets(options.targets, source, inline=options.inline, engine=options.engine, progress=progress)
    contents = {**_companions(job.checkpoint, source.encoder), **(recipe.files if recipe else {})}
    for each in built.values():
        contents |= each.files
    for name, content in contents.items():
        stage.write(name, content)
        files[name] = FileEntry(hashlib.sha256(content).hexdigest(), len(content))
    targets = {target: each.entry for target, each in built.items()}
    manifest = _manifest(job, targets, files, rescaled.describe(baked.subnormal), recipe)
    if options.vectors:
        manifest = _add_vectors(job, manifest, tokenizer(), stage, progress)
    stage.write(MANIFEST, manifest.to_json().encode())
    progress("flushing to disk", baked.nbytes, baked.nbytes)
    dense_nbytes = manifest.total_parameters * manifest.dtype.itemsize
    warnings = (*job.warnings, *not_portable, *baked.warnings, *rescaled.warnings)
    reports = {target: each.report for target, each in built.items() if each.report}
    return Exported(Bundle(output, manifest), warnings, reports, dense_nbytes)


def _prepare(location: str | Path, options: ExportOptions) -> _Job:
    checkpoint = open_checkpoint(location, options.subfolder)
    if options.tokenizer is not None:
        if find_tokenizer(options.tokenizer, options.tokenizer, None) is None:
            raise InputError(f"no tokenizer in {options.tokenizer} (looked for {', '.join(TOKENIZER_FILES[:2])}, ...)")
        checkpoint = replace(checkpoint, tokenizer=options.tokenizer)

    from skrr_export.bake import weights_layout
    from skrr_export.encoders import recognise, select, wrong_weights
    from skrr_export.targets.building import check_target

    encoder = recognise(checkpoint)
    plan = options.plan or Plan.identity(encoder.family, encoder.num_layers)
    preset = _resolved(find_preset(options.pipeline, encoder, options.subfolder), checkpoint)
    selection = select(checkpoint, encoder, plan, preset.outputs)
    if options.sequence is not None:
        if encoder.max_length is not None and options.sequence > encoder.max_length:
            raise InputError(f"a sequence of {options.sequence} exceeds this encoder's maximum of {encoder.max_length}")
        if options.sequence <= preset.crop[1] or options.sequence % preset.multiple_of:
            raise InputError(
                f"a sequence of {options.sequence} does not suit the pipeline '{preset.name}', which drops rows up to "
                f"{preset.crop[1]} and pads to a multiple of {preset.multiple_of}"
            )
        preset = replace(preset, max_length=options.sequence, padding="max_length")
    own = READABLE[selection.tensors[0].code]
    dtype = bakeable(options.dtype or (own.name if own.name in BAKEABLE else FP32.name))
    layout = weights_layout(selection.tensors, dtype, Path(WEIGHTS))
    for target in options.targets:
        check_target(target, dtype, preset, options.engine)
    wrong = wrong_weights(plan, checkpoint)
    warnings = () if wrong is None else (wrong,)
    return _Job(checkpoint, encoder, plan, selection, preset, dtype, layout, options, warnings)


def _resolved(preset: Preset, checkpoint: Checkpoint) -> Preset:
    """The preset with what depends on the tokenizer worked in."""
    if preset.resolved:
        return preset
    if checkpoint.tokenizer is None:
        raise InputError(
            f"pipeline '{preset.name}' puts text around the prompt that depends on the tokenizer, and none was found "
            f"with {checkpoint.directory}; give it with --tokenizer DIRECTORY"
        )
    from skrr_export.tokenization import Tokenizer

    return Tokenizer(checkpoint.tokenizer, checkpoint.directory, preset).preset


def _tokenizer(job: _Job) -> Tokenizer | None:
    from skrr_export.tokenization import Tokenizer

    directory = job.checkpoint.tokenizer
    return None if directory is None else Tokenizer(directory, job.checkpoint.directory, job.preset)


def _recipe(job: _Job, open_tokenizer: Callable[[], Tokenizer | None]) -> tuple[Recipe | None, tuple[str, ...]]:
    """How runtimes without transformers tokenise, and a warning where they could have but cannot."""
    from skrr_export.portable import find_recipe

    try:
        tokenizer = open_tokenizer()
        if tokenizer is None or job.checkpoint.tokenizer is None:
            return None, ()
        return find_recipe(tokenizer, job.checkpoint.tokenizer), ()
    except InputError as error:
        return None, (f"runtimes other than Python will take token ids only: {error}",)


def _source(job: _Job, encoder: Encoder, weights: Path) -> Source:
    from skrr_export.targets.base import Source

    return Source(
        encoder=encoder,
        plan=job.plan,
        layout=job.layout,
        weights=weights,
        dtype=job.dtype,
        preset=job.preset,
        batch=job.options.batch,
        sequence=job.options.sequence,
    )


def _manifest(
    job: _Job,
    targets: Mapping[str, Mapping[str, Any]],
    files: Mapping[str, FileEntry],
    rescaling: Mapping[str, Any] | None,
    recipe: Recipe | None,
) -> Manifest:
    return Manifest(
        family=job.encoder.family,
        num_layers=job.encoder.num_layers,
        hidden_size=job.encoder.hidden_size,
        vocab_size=job.encoder.vocab_size,
        max_length=job.encoder.max_length,
        plan=job.plan,
        pipeline=job.preset,
        dtype=job.dtype,
        batch=job.options.batch,
        sequence=job.options.sequence,
        outputs=tuple(OutputEntry(output, job.encoder.features(output.kind)) for output in job.preset.outputs),
        total_parameters=job.selection.total_parameters,
        kept_parameters=job.selection.kept_parameters,
        unread_parameters=job.selection.unread_parameters,
        rescaling=rescaling,
        tokenizer=None if recipe is None else recipe.entry,
        targets=targets,
        files=files,
        tools={name: importlib.metadata.version(name) for name in ("skrr-export", "torch", "onnxscript", "onnx-ir")},
    )


def _add_vectors(
    job: _Job, manifest: Manifest, tokenizer: Tokenizer | None, stage: StagedFolder, progress: Progress
) -> Manifest:
    """Write test vectors for what was just built, by the reference from the checkpoint's own weights."""
    from skrr_export import vectors
    from skrr_export.measure.reference import planned_reference

    progress("computing test vectors", 0, job.options.vectors)
    bundle = Bundle(Path(), manifest)  # not on disk yet: the reference reads nothing of it
    encode = planned_reference(bundle, job.checkpoint.directory)
    cases = list(vectors.choose_cases(manifest, tokenizer, job.options.vectors, ending=job.encoder.ending))
    entry, content = vectors.make(manifest, cases, encode)
    stage.write(entry.file, content)
    files = {**manifest.files, entry.file: FileEntry(hashlib.sha256(content).hexdigest(), len(content))}
    return replace(manifest, vectors=entry, files=files)


def _companions(checkpoint: Checkpoint, encoder: Encoder) -> dict[str, bytes]:
    """The small files that travel with the weights: the configuration, as they need it, and the tokenizer."""
    try:
        files = {CONFIG: (checkpoint.directory / CONFIG).read_bytes()}
        if (config := encoder.config(checkpoint.config)) != checkpoint.config:
            files[CONFIG] = json.dumps(config, indent=2).encode() + b"\n"
        if checkpoint.tokenizer is not None:
            for name in TOKENIZER_FILES:
                if (checkpoint.tokenizer / name).is_file():
                    files[f"{TOKENIZER}/{name}"] = (checkpoint.tokenizer / name).read_bytes()
    except OSError as error:
        raise CheckpointError(f"cannot read {error.filename}: {error.strerror}") from error
    return files
