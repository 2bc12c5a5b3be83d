"""Checkpoints as Hugging Face lays them out: `config.json` beside safetensors, one file or shards with an index.

Nothing is loaded here: a checkpoint is its configuration and, for each tensor, where its bytes lie.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skrr_export.errors import CheckpointError
from skrr_export.tensorfile import StoredTensor, read_header

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PIPELINE_INDEX = "model_index.json"
"""The file by which a pipeline's directory is known."""
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
    "spiece.model", "tokenizer.model", "sentencepiece.bpe.model", "vocab.txt", "vocab.json", "merges.txt",
)  # fmt: skip
"""Files that make up a tokenizer in a Hugging Face directory."""

_SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_PICKLES = ("pytorch_model*.bin", "*.ckpt", "*.pt", "*.pth")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint on disk."""

    directory: Path
    """Where `config.json` and the safetensors lie."""
    config: Mapping[str, Any]
    """Content of `config.json`."""
    tensors: Mapping[str, StoredTensor]
    tokenizer: Path | None
    """Directory of the tokenizer that belongs to it, if one was found."""


def open_checkpoint(location: str | Path, subfolder: str | None = None) -> Checkpoint:
    """Open a checkpoint.

    Args:
        location: a directory, or the id of a model on the Hugging Face hub (the local cache is enough when offline).
        subfolder: the encoder's folder within a pipeline directory, for example `text_encoder_2`; its tokenizer is
            then looked for in the folder beside it, `tokenizer_2`.

    Raises:
        CheckpointError: there is no such checkpoint, or it is damaged.
    """
    root = Path(location) if os.path.lexists(location) else _download(str(location), subfolder)
    directory = root / subfolder if subfolder else root
    if not directory.is_dir():
        raise CheckpointError(
            f"{directory} is a file; give the directory that holds config.json"
            if directory.exists()
            else f"no such directory: {directory}"
        )
    config = _read_config(directory, subfolder)
    return Checkpoint(directory, config, _read_tensors(directory), find_tokenizer(root, directory, subfolder))


def find_tokenizer(root: Path, directory: Path, subfolder: str | None) -> Path | None:
    """The tokenizer's directory: the checkpoint's own, or in a pipeline the `tokenizer*` folder of the same number."""
    candidates = [directory]
    if subfolder:
        candidates.append(root / subfolder.replace("text_encoder", "tokenizer"))
    for candidate in candidates:
        if any((candidate / name).is_file() for name in TOKENIZER_FILES if name != "special_tokens_map.json"):
            return candidate
    return None


def is_pipeline(location: str | Path) -> bool:
    """Whether a location is a pipeline's, as diffusers saves it, and not one encoder's.

    Raises:
        CheckpointError: it is neither a path nor a hub id that can be reached.
    """
    root = Path(location) if os.path.lexists(location) else _snapshot(str(location), [PIPELINE_INDEX])
    return (root / PIPELINE_INDEX).is_file() and not (root / "config.json").is_file()


def encoder_folders(location: str | Path, expected: Sequence[str]) -> tuple[str, ...]:
    """Which of a pipeline's text encoders are there: an optional one may have been left out.

    Args:
        location: a pipeline's directory or hub id.
        expected: the folders of encoders that such a pipeline has.

    Raises:
        CheckpointError: none is there, or it is no pipeline.
    """
    patterns = [PIPELINE_INDEX, *(f"{folder}/config.json" for folder in expected)]
    root = Path(location) if os.path.lexists(location) else _snapshot(str(location), patterns)
    if not (root / PIPELINE_INDEX).is_file():
        raise CheckpointError(f"{root} is not a pipeline: it has no {PIPELINE_INDEX}")
    found = tuple(folder for folder in expected if (root / folder / "config.json").is_file())
    if not found:
        raise CheckpointError(f"{root} has none of the text encoders {', '.join(expected)}")
    return found


def fingerprint(checkpoint: Checkpoint) -> str:
    """A digest that tells checkpoints apart, of the configuration, and of every tensor's name, type, shape and ends.

    Nothing is read whole.

    Raises:
        CheckpointError: a file cannot be read.
    """
    digest = hashlib.sha256(repr(sorted(checkpoint.config.items())).encode())
    try:
        for name, tensor in sorted(checkpoint.tensors.items()):
            digest.update(f"{name} {tensor.code} {tensor.shape}".encode())
            with tensor.file.open("rb") as file:
                for offset in (tensor.offset, max(tensor.offset, tensor.offset + tensor.nbytes - 64)):
                    file.seek(offset)
                    digest.update(file.read(min(64, tensor.nbytes)))
    except OSError as error:
        raise CheckpointError(f"cannot read {error.filename}: {error.strerror}") from error
    return digest.hexdigest()


def _download(model_id: str, subfolder: str | None) -> Path:
    folders = [f"{subfolder}/", f"{subfolder.replace('text_encoder', 'tokenizer')}/"] if subfolder else [""]
    names = ("config.json", SINGLE, INDEX, "model-*-of-*.safetensors", *TOKENIZER_FILES)
    return _snapshot(model_id, [f"{folder}{name}" for folder in folders for name in names])


def _snapshot(model_id: str, patterns: Sequence[str]) -> Path:
    """Some files of a model on the hub, from the local cache where they are."""
    if not _HUB_ID.fullmatch(model_id):
        raise CheckpointError(f"no such path: {model_id}")
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(huggingface_hub.snapshot_download(model_id, allow_patterns=list(patterns)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"no such path: {model_id}; as a hub id it is neither in the local cache nor can it be downloaded: {reason}"
        ) from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not a JSON file: {error}") from error
    if not isinstance(document, dict):
        raise CheckpointError(f"{path} must hold a JSON object")
    return document


def _read_config(directory: Path, subfolder: str | None) -> dict[str, Any]:
    if (directory / "config.json").is_file():
        return _read_json(directory / "config.json")
    if not subfolder and (directory / PIPELINE_INDEX).is_file():
        encoders = sorted(path.parent.name for path in directory.glob("text_encoder*/config.json"))
        raise CheckpointError(
            f"{directory} is a pipeline: choose its encoder with --subfolder ({', '.join(encoders) or 'none found'}), "
            "or export all with --pipeline NAME"
        )
    raise CheckpointError(f"{directory} is not a checkpoint: it has no config.json")


def _read_tensors(directory: Path) -> dict[str, StoredTensor]:
    if (directory / INDEX).is_file():
        return _read_shards(directory)
    if (directory / SINGLE).is_file():
        return read_header(directory / SINGLE)
    pickles = sorted(path.name for pattern in _PICKLES for path in directory.glob(pattern))
    if pickles:
        raise CheckpointError(
            f"{directory} holds only pickled weights ({pickles[0]}), which can run code when loaded; convert once with "
            f"transformers: AutoModel.from_pretrained('{directory}').save_pretrained(NEW_DIRECTORY)"
        )
    shards = sorted(path.name for path in directory.iterdir() if _SHARD.fullmatch(path.name))
    if shards:
        raise CheckpointError(f"{directory} holds shards ({shards[0]}, ...) but not their index, {INDEX}")
    raise CheckpointError(f"{directory} is not a checkpoint: it has neither {SINGLE} nor {INDEX}")


def _read_shards(directory: Path) -> dict[str, StoredTensor]:
    index = directory / INDEX
    weight_map = _read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} lacks its weight_map")
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or Path(shard).name != shard or shard in {"", ".", ".."}:
            raise CheckpointError(f"{index} places '{name}' outside the directory: {shard!r}")
    shards = {shard: directory / shard for shard in sorted(set(weight_map.values()))}
    present = sorted(path.name for path in directory.iterdir() if path.is_file())
    for shard in shards:
        if shard not in present:
            raise CheckpointError(f"{index} names the shard {shard}, which is missing")
    for name in present:
        if _SHARD.fullmatch(name) and name not in shards:
            raise CheckpointError(
                f"{directory / name} is a shard that {INDEX} does not name; remove it or mend the index"
            )
    headers = {shard: read_header(path) for shard, path in shards.items()}
    for name, shard in weight_map.items():
        if name not in headers[shard]:
            raise CheckpointError(f"{index} places '{name}' in {shard}, which does not hold it")
    return {name: headers[shard][name] for name, shard in weight_map.items()}
