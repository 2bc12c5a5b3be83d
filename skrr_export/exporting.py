"""The main job: checkpoint + plan -> bundle."""

from __future__ import annotations

import hashlib
import importlib.metadata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from skrr_export.bundle import CONFIG, MANIFEST, TOKENIZER, WEIGHTS, Bundle, FileEntry, Manifest
from skrr_export.checkpoint import TOKENIZER_FILES, Checkpoint, find_tokenizer, open_checkpoint
from skrr_export.dtypes import BAKEABLE, FP32, READABLE, DType, bakeable
from skrr_export.errors import CheckpointError, InputError
from skrr_export.pipelines import preset
from skrr_export.plan import Plan
from skrr_export.staging import StagedDirectory

TARGETS = ("onnx",)
"""Formats `export_checkpoint` knows."""

Progress = Callable[[str, int, int], None]
"""Called with what is being done, and how much of how much is done."""


@dataclass(frozen=True, slots=True)
class Exported:
    """A bundle just written, and what the user should know about it."""

    bundle: Bundle
    warnings: tuple[str, ...]
    dense_nbytes: int
    """What the weights would take without the plan, in the bundle's dtype."""


def export_checkpoint(
    location: str | Path,
    output: str | Path,
    *,
    plan: Plan | None = None,
    pipeline: str = "plain",
    dtype: str | None = None,
    targets: Sequence[str] = TARGETS,
    subfolder: str | None = None,
    tokenizer: str | Path | None = None,
    batch: int | None = None,
    sequence: int | None = None,
    inline: bool = False,
    replace_output: bool = False,
    progress: Progress = lambda *_: None,
) -> Exported:
    """Export a text encoder under a plan.

    Args:
        location: checkpoint directory or hub id.
        output: the bundle's directory; appears whole or not at all.
        plan: which weights run where; default: all of them.
        pipeline: name of the preset, see `skrr_export.pipelines`.
        dtype: `fp32`, `fp16` or `bf16`; default: the checkpoint's own.
        targets: formats to write.
        subfolder: the encoder's folder in a pipeline directory.
        tokenizer: directory of the tokenizer; default: the one found with the checkpoint.
        batch: fix the batch size.
        sequence: fix the sequence length, in tokens.
        inline: write an ONNX graph without model-local functions.
        replace_output: replace a bundle that exists.
        progress: told how far the job is.

    Raises:
        SkrrError: of the kind that says what was wrong; nothing is written then.
    """
    _check_targets(targets)
    _check_size("--batch", batch)
    _check_size("--sequence", sequence)
    chosen = bakeable(dtype) if dtype is not None else None
    with StagedDirectory(Path(output), replace=replace_output, marker=MANIFEST) as stage:
        checkpoint = open_checkpoint(location, subfolder)
        if tokenizer is not None:
            checkpoint = _with_tokenizer(checkpoint, Path(tokenizer))

        from skrr_export.bake import bake, weights_layout
        from skrr_export.encoders import recognise, select
        from skrr_export.targets.onnx.graph import OPSET, build

        encoder = recognise(checkpoint)
        plan = plan or Plan.identity(encoder.family, encoder.num_layers)
        selection = select(checkpoint, encoder, plan)
        feed = preset(pipeline, encoder.family, encoder.max_length)
        if sequence is not None:
            if encoder.max_length is not None and sequence > encoder.max_length:
                raise InputError(f"--sequence {sequence}: this encoder takes at most {encoder.max_length} tokens")
            feed = replace(feed, max_length=sequence, padding="max_length")
        chosen = chosen or _own_dtype(READABLE[selection.tensors[0].code])
        layout = weights_layout(selection.tensors, chosen, Path(WEIGHTS))
        stage.require_space(layout.nbytes)

        progress("tracing", 0, layout.nbytes)
        sizes = (batch or "batch", sequence or "sequence")
        graph = build(encoder, plan, layout, chosen, masked=feed.masked, sizes=sizes, inline=inline)
        done = 0

        def baking(nbytes: int) -> None:
            nonlocal done
            done += nbytes
            progress("baking", done, layout.nbytes)

        baked = bake(selection.tensors, layout, chosen, stage.create(WEIGHTS), baking)
        files = {WEIGHTS: FileEntry(baked.sha256, baked.nbytes)}
        for name, content in {"model.onnx": graph, **_companions(checkpoint)}.items():
            stage.write(name, content)
            files[name] = FileEntry(hashlib.sha256(content).hexdigest(), len(content))
        manifest = Manifest(
            family=encoder.family,
            num_layers=encoder.num_layers,
            hidden_size=encoder.hidden_size,
            vocab_size=encoder.vocab_size,
            max_length=encoder.max_length,
            plan=plan,
            pipeline=feed,
            dtype=chosen,
            batch=batch,
            sequence=sequence,
            total_parameters=selection.total_parameters,
            kept_parameters=selection.kept_parameters,
            targets={"onnx": {"file": "model.onnx", "opset": OPSET, "inline": inline}},
            files=files,
            tools={name: importlib.metadata.version(name) for name in ("skrr-export", "torch", "onnxscript", "onnx-ir")},
        )
        stage.write(MANIFEST, manifest.to_json().encode())
        progress("writing to disk", layout.nbytes, layout.nbytes)
    dense = selection.total_parameters * chosen.itemsize
    return Exported(Bundle(Path(output), manifest), baked.warnings, dense)


def _check_targets(targets: Sequence[str]) -> None:
    unknown = [target for target in targets if target not in TARGETS]
    if unknown or not targets:
        raise InputError(f"unknown target '{', '.join(unknown)}'; choose of: {', '.join(TARGETS)}")


def _check_size(option: str, size: int | None) -> None:
    if size is not None and size < 1:
        raise InputError(f"{option} must be at least 1, not {size}")


def _own_dtype(stored: DType) -> DType:
    return stored if stored.name in BAKEABLE else FP32


def _with_tokenizer(checkpoint: Checkpoint, directory: Path) -> Checkpoint:
    if find_tokenizer(directory, directory, None) is None:
        raise InputError(f"--tokenizer {directory}: no tokenizer there (looked for {', '.join(TOKENIZER_FILES[:2])}, ...)")
    return replace(checkpoint, tokenizer=directory)


def _companions(checkpoint: Checkpoint) -> dict[str, bytes]:
    """The small files that travel with the weights: the configuration and the tokenizer."""
    try:
        files = {CONFIG: (checkpoint.directory / CONFIG).read_bytes()}
        if checkpoint.tokenizer is not None:
            for name in TOKENIZER_FILES:
                if (checkpoint.tokenizer / name).is_file():
                    files[f"{TOKENIZER}/{name}"] = (checkpoint.tokenizer / name).read_bytes()
    except OSError as error:
        raise CheckpointError(f"cannot read {error.filename}: {error.strerror}") from error
    return files
