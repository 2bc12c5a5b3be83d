"""The bundle: one directory that is shipped, described by its manifest and guarded by hashes."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from skrr_export.dtypes import BAKEABLE, DType
from skrr_export.errors import BundleError, CheckpointError, PlanError
from skrr_export.pipelines import Preset
from skrr_export.plan import Plan
from skrr_export.progress import Progress, silent
from skrr_export.tensorfile import PAD_PREFIX, StoredTensor, read_header

FORMAT = "skrr-bundle/1"
MANIFEST = "manifest.json"
WEIGHTS = "weights.safetensors"
TOKENIZER = "tokenizer"
CONFIG = "config.json"


@dataclass(frozen=True, slots=True)
class FileEntry:
    """A file of the bundle, as it must be."""

    sha256: str
    nbytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What a bundle says of itself; runtimes decide from this, never from a file name."""

    family: str
    num_layers: int
    hidden_size: int
    vocab_size: int
    max_length: int | None
    """Longest sequence the encoder can take, in tokens; `None` if it has no limit."""
    plan: Plan
    pipeline: Preset
    dtype: DType
    """Of the weights, and of the graph's activations."""
    batch: int | None
    """Fixed batch size of the graphs; `None` if free."""
    sequence: int | None
    """Fixed sequence length of the graphs; `None` if free."""
    total_parameters: int
    """Of the dense encoder, embedding included."""
    kept_parameters: int
    """Of the tensors in the bundle."""
    rescaling: Mapping[str, Any] | None = None
    """Powers of two that the weights took over so that fp16 cannot overflow, and what they were chosen from."""
    targets: Mapping[str, Mapping[str, Any]]
    """For each target: its `file`, and what a runtime needs to know of it."""
    files: Mapping[str, FileEntry]
    """Every file of the bundle but the manifest, by path."""
    tools: Mapping[str, str] = field(default_factory=dict)
    """Versions of what made the bundle."""

    @property
    def sparsity(self) -> float:
        """Parameters that no position uses, as a share of all."""
        return 1 - self.kept_parameters / self.total_parameters

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the graphs' inputs, all int64 `[batch, sequence]`."""
        return ("input_ids", "attention_mask") if self.pipeline.masked else ("input_ids",)

    def to_json(self) -> str:
        """The text of `manifest.json`; the same manifest gives the same bytes."""
        document = {
            "format": FORMAT,
            "encoder": {
                "family": self.family,
                "num_layers": self.num_layers,
                "hidden_size": self.hidden_size,
                "vocab_size": self.vocab_size,
                "max_length": self.max_length,
            },
            "plan": self.plan.to_dict(),
            "pipeline": self.pipeline.to_dict(),
            "dtype": self.dtype.name,
            "inputs": [
                {"name": name, "dtype": "int64", "shape": [self.batch or "batch", self.sequence or "sequence"]}
                for name in self.inputs
            ],
            "outputs": [
                {
                    "name": "last_hidden_state",
                    "dtype": self.dtype.name,
                    "shape": [self.batch or "batch", self.sequence or "sequence", self.hidden_size],
                }
            ],
            "parameters": {"total": self.total_parameters, "kept": self.kept_parameters},
            "rescaling": None if self.rescaling is None else dict(self.rescaling),
            "targets": {name: dict(target) for name, target in self.targets.items()},
            "files": {
                name: {"sha256": entry.sha256, "bytes": entry.nbytes} for name, entry in sorted(self.files.items())
            },
            "tools": dict(self.tools),
        }
        return json.dumps(document, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """Read `manifest.json`.

        Raises:
            BundleError: it is malformed, or of a format this release does not know.
        """
        try:
            document = json.loads(text, parse_constant=_no_constant)
            if document["format"] != FORMAT:
                raise BundleError(f"the bundle's format is {document['format']!r}; this release reads '{FORMAT}'")
            _check_names(document)
            encoder, plan = document["encoder"], Plan.from_dict(document["plan"])
            batch, sequence = document["inputs"][0]["shape"]
            if (encoder["family"], encoder["num_layers"]) != (plan.family, plan.num_layers):
                raise ValueError("the plan is for another encoder")
            return cls(
                family=plan.family,
                num_layers=_positive(encoder["num_layers"]),
                hidden_size=_positive(encoder["hidden_size"]),
                vocab_size=_positive(encoder["vocab_size"]),
                max_length=None if encoder["max_length"] is None else _positive(encoder["max_length"]),
                plan=plan,
                pipeline=Preset.from_dict(document["pipeline"]),
                dtype=BAKEABLE[document["dtype"]],
                batch=None if batch == "batch" else _positive(batch),
                sequence=None if sequence == "sequence" else _positive(sequence),
                total_parameters=_positive(document["parameters"]["total"]),
                kept_parameters=_positive(document["parameters"]["kept"]),
                rescaling=_rescaling(document.get("rescaling")),
                targets=document["targets"],
                files={name: _file_entry(file) for name, file in document["files"].items()},
                tools={name: str(version) for name, version in document["tools"].items()},
            )
        except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError, PlanError) as error:
            raise BundleError(f"malformed manifest: {type(error).__name__}: {error}") from error


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number in JSON")


def _positive(value: Any) -> int:
    if type(value) is not int or value < 1:
        raise ValueError(f"{value!r} is not a positive integer")
    return value


def _rescaling(document: Any) -> dict[str, Any] | None:
    if document is None:
        return None
    powers = document["weights"]
    if not all(type(name) is str and type(power) is int for name, power in powers.items()):
        raise ValueError(f"{powers!r} are not powers of two by the end of a tensor's name")
    return dict(document)


def _file_entry(document: Mapping[str, Any]) -> FileEntry:
    sha256, nbytes = document["sha256"], document["bytes"]
    if not re.fullmatch("[0-9a-f]{64}", sha256) or type(nbytes) is not int or nbytes < 0:
        raise ValueError(f"{sha256!r} and {nbytes!r} are not a hash and a size")
    return FileEntry(sha256, nbytes)


def _check_names(document: Mapping[str, Any]) -> None:
    """A bundle may come from anywhere: it must not name files outside its directory, or files without a hash."""
    for name in document["files"]:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise BundleError(f"the manifest names a file outside the bundle: {name}")
    for name in (WEIGHTS, *(target["file"] for target in document["targets"].values())):
        if name not in document["files"]:
            raise BundleError(f"the manifest gives no hash for {name}")


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle on disk whose files are there and have their sizes."""

    directory: Path
    manifest: Manifest

    @property
    def weights(self) -> Path:
        """The weights file."""
        return self.directory / WEIGHTS

    @property
    def nbytes(self) -> int:
        """Size of all files but the manifest."""
        return sum(entry.nbytes for entry in self.manifest.files.values())

    def tensors(self) -> dict[str, StoredTensor]:
        """Where every tensor lies; reads no weights.

        Raises:
            BundleError: the weights file is damaged.
        """
        try:
            return read_header(self.weights)
        except CheckpointError as error:
            raise BundleError(str(error)) from error

    def parameters(self) -> dict[str, StoredTensor]:
        """Where the encoder's tensors lie: all but the padding between them.

        Raises:
            BundleError: the weights file is damaged.
        """
        return {name: tensor for name, tensor in self.tensors().items() if not name.startswith(PAD_PREFIX)}

    def target_file(self, target: str) -> Path:
        """The file of a target.

        Raises:
            BundleError: the bundle was not exported to it.
        """
        if target not in self.manifest.targets:
            known = ", ".join(self.manifest.targets) or "none"
            raise BundleError(f"{self.directory} has no target '{target}'; it has: {known}")
        return self.directory / str(self.manifest.targets[target]["file"])

    def check_hashes(self, progress: Progress = silent) -> None:
        """Read every file and compare its hash; 1 to 2 GB/s.

        Raises:
            BundleError: a file was changed; the message names it.
        """
        done = 0
        for name, entry in self.manifest.files.items():
            progress(f"checking {name}", done, self.nbytes)
            _check_hash(self.directory / name, entry)
            done += entry.nbytes


def open_bundle(directory: str | Path) -> Bundle:
    """Open a bundle, after checking that each file is there with its size, and the hashes of all but the weights.

    The weights are hashed by `Bundle.check_hashes`, which reads them whole: a server that maps them would not want to.

    Raises:
        BundleError: it is not a bundle, or a file is missing, truncated or changed; the message names the file.
    """
    directory = Path(directory)
    try:
        text = (directory / MANIFEST).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise BundleError(f"{directory} is not a bundle: cannot read {MANIFEST}: {reason}") from error
    try:
        manifest = Manifest.from_json(text)
    except BundleError as error:
        raise BundleError(f"{directory / MANIFEST}: {error}") from error
    for name, entry in manifest.files.items():
        _check_file(directory / name, entry, hashed=name != WEIGHTS)
    for path in sorted((directory / TOKENIZER).glob("*")):  # whose loader reads whatever it finds there
        if f"{TOKENIZER}/{path.name}" not in manifest.files:
            raise BundleError(f"{path} is not part of the bundle; remove it, or export again with --tokenizer")
    return Bundle(directory, manifest)


def _check_file(path: Path, entry: FileEntry, *, hashed: bool) -> None:
    if not path.is_file():
        raise BundleError(f"{path} is missing from the bundle; copy the bundle whole, or export again")
    size = path.stat().st_size
    if size != entry.nbytes:
        raise BundleError(f"{path} is {size} bytes long, the manifest says {entry.nbytes}; it was truncated or changed")
    if hashed:
        _check_hash(path, entry)


def _check_hash(path: Path, entry: FileEntry) -> None:
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != entry.sha256:
            raise BundleError(f"{path} was changed: its hash is not the manifest's; export again")
