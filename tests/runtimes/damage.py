"""Damaged bundles, and the one wording with which every loader refuses them: Python, C++ and Triton.

A message is a regular expression for the whole of it; `{directory}` stands for the bundle's directory as the loader was
given it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Damage:
    """What was done to a bundle, and what a loader must say of it."""

    name: str
    damage: Callable[[Path], object]
    message: str
    hashed: bool = False
    """Seen only by a loader that hashes the weights."""

    def pattern(self, directory: Path) -> str:
        """The message for a bundle in a directory, as a regular expression."""
        return self.message.replace("{directory}", re.escape(str(directory)))


def edit(change: Callable[[Any], object]) -> Callable[[Path], object]:
    """Damage by changing the manifest's document."""

    def damage(directory: Path) -> None:
        path = directory / "manifest.json"
        document = json.loads(path.read_text())
        change(document)
        path.write_text(json.dumps(document))

    return damage


def _truncate(name: str, count: int) -> Callable[[Path], object]:
    return lambda directory: (directory / name).write_bytes((directory / name).read_bytes()[:-count])


def _flip(name: str, position: int) -> Callable[[Path], object]:
    def damage(directory: Path) -> None:
        content = bytearray((directory / name).read_bytes())
        content[position] ^= 1
        (directory / name).write_bytes(content)

    return damage


def _forge(directory: Path) -> None:
    """Make the manifest agree with the files as they are."""

    def change(document: Any) -> None:
        for name, entry in document["files"].items():
            content = (directory / name).read_bytes()
            entry.update(sha256=hashlib.sha256(content).hexdigest(), bytes=len(content))

    edit(change)(directory)


def _twice(directory: Path) -> None:
    path = directory / "manifest.json"
    path.write_text(path.read_text().replace('"dtype": "fp32"', '"dtype": "fp32", "dtype": "fp32"', 1))


def _lie(directory: Path) -> None:
    """Make the weights' header claim more than the file holds."""
    path = directory / "weights.safetensors"
    path.write_bytes((1 << 40).to_bytes(8, "little") + path.read_bytes()[8:])
    _forge(directory)


def _outside(name: str) -> Callable[[Path], object]:
    return edit(lambda document: document["files"].update({name: {"sha256": "0" * 64, "bytes": 0}}))


_MANIFEST = r"{directory}/manifest\.json: "

CASES = [
    Damage("no manifest", lambda directory: (directory / "manifest.json").unlink(),
           r"{directory} is not a bundle: cannot read manifest\.json: No such file or directory"),
    Damage("manifest is not text", lambda directory: (directory / "manifest.json").write_bytes(b"\xff\xfe"),
           r"{directory} is not a bundle: cannot read manifest\.json: not UTF-8 text"),
    Damage("manifest is cut", _truncate("manifest.json", 20), _MANIFEST + "malformed manifest: .*"),
    Damage("manifest is empty", lambda directory: (directory / "manifest.json").write_bytes(b""),
           _MANIFEST + "malformed manifest: .*"),
    Damage("manifest is nested deeply", lambda directory: (directory / "manifest.json").write_bytes(b"[" * 100_000),
           _MANIFEST + "malformed manifest: .*"),
    Damage("manifest lacks a key", edit(lambda document: document.pop("encoder")),
           _MANIFEST + "malformed manifest: .*encoder.*"),
    Damage("manifest has a key twice", _twice,
           _MANIFEST + "malformed manifest: .*the key 'dtype' stands twice in one object"),
    Damage("manifest has a number that is none", edit(lambda document: document["encoder"].update(hidden_size="37")),
           _MANIFEST + "malformed manifest: .*"),
    Damage("newer format", edit(lambda document: document.update(format="skrr-bundle/2")),
           _MANIFEST + r"the bundle's format is 'skrr-bundle/2'; this release reads 'skrr-bundle/1'"),
    *(Damage(f"names {name}", _outside(name), _MANIFEST + f"the manifest names a file outside the bundle: {name}")
      for name in ("/etc/passwd", "../outside", "tokenizer/../../outside")),
    Damage("graph without a hash", edit(lambda document: document["files"].pop("model.onnx")),
           _MANIFEST + r"the manifest gives no hash for model\.onnx"),
    Damage("weights without a hash", edit(lambda document: document["files"].pop("weights.safetensors")),
           _MANIFEST + r"the manifest gives no hash for weights\.safetensors"),
    *(Damage(f"{name} is missing", lambda directory, name=name: (directory / name).unlink(),
             f"{{directory}}/{re.escape(name)} is missing from the bundle; copy the bundle whole, or export again")
      for name in ("weights.safetensors", "model.onnx", "config.json")),
    *(Damage(f"{name} is truncated", _truncate(name, 7),
             rf"{{directory}}/{re.escape(name)} is \d+ bytes long, the manifest says \d+; it was truncated or changed")
      for name in ("weights.safetensors", "model.onnx")),
    *(Damage(f"{name} is changed", _flip(name, 300), hashed=name == "weights.safetensors",
             message=rf"{{directory}}/{re.escape(name)} was changed: its hash is not the manifest's; export again")
      for name in ("model.onnx", "config.json", "weights.safetensors")),
    Damage("weights' header lies", _lie,
           r"{directory}/weights\.safetensors is truncated or not a safetensors file: it is \d+ bytes long, "
           r"and its header claims 1099511627776 bytes", hashed=True),
    Damage("target is missing", edit(lambda document: document.update(targets={"pt2": document["targets"]["onnx"]})),
           r"{directory} has no target 'onnx'; it has: pt2"),
]  # fmt: skip
