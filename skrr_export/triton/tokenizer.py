"""The part of a bundle that tokenises, in a directory of its own: what is small, without the weights."""

from __future__ import annotations

from pathlib import Path

from skrr_export.bundle import Bundle, check_file, check_no_strays, read_manifest
from skrr_export.manifest import CONFIG, TOKENIZER, Manifest
from skrr_export.tokenization import Tokenizer


def tokenizer_files(manifest: Manifest) -> list[str]:
    """Those of a bundle's files that tokenising needs."""
    return [name for name in manifest.files if name == CONFIG or name.startswith(f"{TOKENIZER}/")]


def open_tokenizer(directory: Path) -> Tokenizer:
    """Open the tokenizer in a directory that holds a bundle's manifest and `tokenizer_files`, after checking these.

    Raises:
        BundleError: a file is missing, truncated or changed; the message names it.
    """
    manifest = read_manifest(directory)
    for name in tokenizer_files(manifest):
        check_file(directory / name, manifest.files[name], hashed=True)
    check_no_strays(directory, manifest)
    return Tokenizer.of_bundle(Bundle(directory, manifest))
