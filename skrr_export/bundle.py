"""The bundle: one directory that is shipped, described by its manifest and guarded by hashes."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from skrr_export.dtypes import FP32
from skrr_export.errors import BundleError, CheckpointError
from skrr_export.manifest import MANIFEST, TOKENIZER, WEIGHTS, FileEntry, Manifest
from skrr_export.progress import Progress, silent
from skrr_export.tensorfile import PAD_PREFIX, StoredTensor, read_header


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

    @property
    def carries_tokenizer(self) -> bool:
        """Whether it takes prompts, by `transformers`, or token ids only."""
        return (self.directory / TOKENIZER).is_dir()

    def onnx_graph(self, device: str) -> Path:
        """The graph of the target `onnx` for a device: on a CPU a half-precision bundle has one that computes in fp32.

        Raises:
            BundleError: the bundle has none.
        """
        graph = self.target_file("onnx")
        if device != "cpu" or self.manifest.dtype is FP32:
            return graph
        entry = self.manifest.targets["onnx"]
        if "cpu" not in entry:
            raise BundleError(f"{self.directory} has no ONNX graph that computes in fp32; export again")
        return self.directory / str(entry["cpu"]["file"])

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
    manifest = read_manifest(directory)
    for name, entry in manifest.files.items():
        check_file(directory / name, entry, hashed=name != WEIGHTS)
    check_no_strays(directory, manifest)
    return Bundle(directory, manifest)


def read_manifest(directory: Path) -> Manifest:
    """Read a bundle's manifest, and look at none of the files it names.

    Raises:
        BundleError: it is missing or malformed.
    """
    try:
        text = (directory / MANIFEST).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise BundleError(f"{directory} is not a bundle: cannot read {MANIFEST}: {reason}") from error
    try:
        return Manifest.from_json(text)
    except BundleError as error:
        raise BundleError(f"{directory / MANIFEST}: {error}") from error


def check_no_strays(directory: Path, manifest: Manifest) -> None:
    """Make sure that the tokenizer's folder holds only its own files: its loader reads whatever it finds there.

    Raises:
        BundleError: there is another.
    """
    for path in sorted((directory / TOKENIZER).glob("*")):
        if f"{TOKENIZER}/{path.name}" not in manifest.files:
            raise BundleError(f"{path} is not part of the bundle; remove it, or export again with --tokenizer")


def check_file(path: Path, entry: FileEntry, *, hashed: bool) -> None:
    """Make sure that a file is what the manifest says, in size or also in hash.

    Raises:
        BundleError: it is missing, truncated or changed.
    """
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
