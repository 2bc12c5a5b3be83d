"""What a bundle says of itself: `manifest.json`. The format is specified in `runtimes/BUNDLE.md`."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from skrr_export import strict_json
from skrr_export.dtypes import BAKEABLE, DType
from skrr_export.errors import BundleError, PlanError
from skrr_export.outputs import Output
from skrr_export.pipelines import Preset
from skrr_export.plan import Plan

FORMAT = "skrr-bundle/1"
MANIFEST = "manifest.json"
WEIGHTS = "weights.safetensors"
TOKENIZER = "tokenizer"
CONFIG = "config.json"
TOKENIZER_KINDS = ("sentencepiece", "openvino")


@dataclass(frozen=True, slots=True)
class FileEntry:
    """A file of the bundle, as it must be."""

    sha256: str
    nbytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerEntry:
    """How a runtime without `transformers` tokenises: by a library that at export gave the same ids."""

    kind: str
    """Of `TOKENIZER_KINDS`."""
    file: str
    """What the library opens, in the bundle."""
    data: str | None = None
    """The file of the vocabulary, where it is one of its own."""
    prefix: tuple[int, ...]
    """Ids put before those of the text."""
    suffix: tuple[int, ...]
    """Ids put after them."""
    pad: int
    """Id of padding."""
    padding_side: str
    """`left` or `right`."""
    special: tuple[str, ...]
    """Tokens that `transformers` finds in a prompt where they are spelled out, and the library does not."""

    def to_dict(self) -> dict[str, Any]:
        """The entry as the manifest holds it."""
        return {
            "kind": self.kind,
            "file": self.file,
            **({} if self.data is None else {"data": self.data}),
            "prefix": list(self.prefix),
            "suffix": list(self.suffix),
            "pad": self.pad,
            "padding_side": self.padding_side,
            "special": list(self.special),
        }

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Self:
        """Read an entry from a manifest.

        Raises:
            KeyError, TypeError, ValueError: it is malformed.
        """
        kind, data = document["kind"], document.get("data")
        if (data is None) is (kind == "openvino"):
            raise ValueError(f"a tokenizer of the kind {kind!r} with the data {data!r}")
        return cls(
            kind=kind,
            file=_text(document["file"]),
            data=None if data is None else _text(data),
            prefix=tuple(_natural(number) for number in _list(document["prefix"])),
            suffix=tuple(_natural(number) for number in _list(document["suffix"])),
            pad=_natural(document["pad"]),
            padding_side=_side(document["padding_side"]),
            special=tuple(_text(token) for token in _list(document["special"])),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class VectorsEntry:
    """Test vectors that the bundle carries; see `skrr_export.vectors`."""

    file: str
    count: int
    limits: Mapping[str, Mapping[str, float]]
    """Largest `relative_l2` and `cosine_distance` that pass, by the precision that a runtime computes in."""

    def to_dict(self) -> dict[str, Any]:
        """The entry as the manifest holds it."""
        limits = {precision: dict(limit) for precision, limit in self.limits.items()}
        return {"file": self.file, "count": self.count, "limits": limits}

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Self:
        """Read an entry from a manifest.

        Raises:
            KeyError, TypeError, ValueError: it is malformed.
        """
        limits = {
            precision: {
                name: _limit(document["limits"][precision][name]) for name in ("relative_l2", "cosine_distance")
            }
            for precision in BAKEABLE
        }
        return cls(file=_text(document["file"]), count=_positive(document["count"]), limits=limits)


@dataclass(frozen=True, slots=True)
class OutputEntry:
    """An output of the graphs."""

    output: Output
    features: int
    """Width of one hidden state or pooled vector; of layers side by side, the last axis is several times as wide."""

    @property
    def shape(self) -> tuple[int | str, ...]:
        """With `batch` and `sequence` where sizes are free."""
        return self.output.shape(self.features)

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Self:
        """Read an entry from a manifest.

        Raises:
            KeyError, TypeError, ValueError: it is malformed.
        """
        output, shape = Output.from_dict(document), document["shape"]
        joined = len(output.layers) if output.join == "concatenate" else 1
        entry = cls(output, _positive(shape[-1]) // joined)
        pairs = zip(entry.shape, shape, strict=False)
        fits = len(shape) == len(entry.shape) and all(size in (given, "batch", "sequence") for size, given in pairs)
        if document["name"] != output.name or not fits:
            raise ValueError(f"the output {document['name']!r} of the shape {shape} is not {output.name}")
        return entry


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
    outputs: tuple[OutputEntry, ...]
    """What the graphs give: one output per token, or one pooled, or both in this order."""
    total_parameters: int
    """Of the dense encoder, embedding included."""
    kept_parameters: int
    """Of the tensors in the bundle."""
    unread_parameters: int = 0
    """Of those that no plan has to skip, because no output of this bundle needs them."""
    rescaling: Mapping[str, Any] | None = None
    """Powers of two that the weights took over so that fp16 cannot overflow, and what they were chosen from."""
    tokenizer: TokenizerEntry | None = None
    """`None`: without `transformers`, the bundle takes token ids only."""
    vectors: VectorsEntry | None = None
    """`None`: it carries no test vectors."""
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
    def rows(self) -> OutputEntry | None:
        """The output with a row a token, if there is one."""
        return next((entry for entry in self.outputs if not entry.output.pooled), None)

    @property
    def pooled(self) -> OutputEntry | None:
        """The output with a row a prompt, if there is one."""
        return next((entry for entry in self.outputs if entry.output.pooled), None)

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
            "outputs": [self._describe(entry) for entry in self.outputs],
            "parameters": {
                "total": self.total_parameters,
                "kept": self.kept_parameters,
                "unread": self.unread_parameters,
            },
            "rescaling": None if self.rescaling is None else dict(self.rescaling),
            "tokenizer": self.tokenizer and self.tokenizer.to_dict(),
            "vectors": self.vectors and self.vectors.to_dict(),
            "targets": {name: dict(target) for name, target in self.targets.items()},
            "files": {
                name: {"sha256": entry.sha256, "bytes": entry.nbytes} for name, entry in sorted(self.files.items())
            },
            "tools": dict(self.tools),
        }
        return json.dumps(document, indent=1) + "\n"

    def _describe(self, entry: OutputEntry) -> dict[str, Any]:
        sizes = {"batch": self.batch or "batch", "sequence": self.sequence or "sequence"}
        shape = [sizes.get(str(dim), dim) for dim in entry.shape]
        return {"name": entry.output.name, **entry.output.to_dict(), "dtype": self.dtype.name, "shape": shape}

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """Read `manifest.json`.

        Raises:
            BundleError: it is malformed, or of a format this release does not know.
        """
        try:
            document = strict_json.loads(text)
            if document["format"] != FORMAT:
                raise BundleError(f"the bundle's format is {document['format']!r}; this release reads '{FORMAT}'")
            _check_names(document)
            encoder, plan = document["encoder"], Plan.from_dict(document["plan"])
            batch, sequence = document["inputs"][0]["shape"]
            outputs = tuple(OutputEntry.from_dict(output) for output in document["outputs"])
            if [entry.output.pooled for entry in outputs] not in ([False], [True], [False, True]):
                raise ValueError("outputs must be one per token, or one pooled, or both in this order")
            pipeline = Preset.from_dict(document["pipeline"])
            if pipeline.outputs != tuple(entry.output for entry in outputs):
                raise ValueError("the pipeline takes other outputs than the graphs give")
            vectors = document.get("vectors")
            if (encoder["family"], encoder["num_layers"]) != (plan.family, plan.num_layers):
                raise ValueError("the plan is for another encoder")
            return cls(
                family=plan.family,
                num_layers=_positive(encoder["num_layers"]),
                hidden_size=_positive(encoder["hidden_size"]),
                vocab_size=_positive(encoder["vocab_size"]),
                max_length=None if encoder["max_length"] is None else _positive(encoder["max_length"]),
                plan=plan,
                pipeline=pipeline,
                dtype=BAKEABLE[document["dtype"]],
                batch=None if batch == "batch" else _positive(batch),
                sequence=None if sequence == "sequence" else _positive(sequence),
                outputs=outputs,
                total_parameters=_positive(document["parameters"]["total"]),
                kept_parameters=_positive(document["parameters"]["kept"]),
                unread_parameters=_natural(document["parameters"].get("unread", 0)),
                rescaling=_rescaling(document.get("rescaling")),
                tokenizer=_tokenizer(document.get("tokenizer")),
                vectors=None if vectors is None else VectorsEntry.from_dict(vectors),
                targets=document["targets"],
                files={name: _file_entry(file) for name, file in document["files"].items()},
                tools={name: str(version) for name, version in document["tools"].items()},
            )
        except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError, PlanError) as error:
            raise BundleError(f"malformed manifest: {type(error).__name__}: {error}") from error


def _positive(value: Any) -> int:
    if type(value) is not int or value < 1:
        raise ValueError(f"{value!r} is not a positive integer")
    return value


def _natural(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is not a natural number")
    return value


def _limit(value: Any) -> float:
    if type(value) not in (int, float) or not 0 <= value < math.inf:
        raise ValueError(f"{value!r} is not a limit")
    return float(value)


def _text(value: Any) -> str:
    if type(value) is not str:
        raise TypeError(f"{value!r} is not a text")
    return value


def _side(value: Any) -> str:
    if value not in ("left", "right"):
        raise ValueError(f"{value!r} is not a side")
    return str(value)


def _list(value: Any) -> list[Any]:
    if type(value) is not list:
        raise TypeError(f"{value!r} is not a list")
    return value


def _tokenizer(document: Any) -> TokenizerEntry | None:
    """A later release may know other kinds; to us, such a bundle takes token ids only."""
    if document is None or _text(document["kind"]) not in TOKENIZER_KINDS:
        return None
    return TokenizerEntry.from_dict(document)


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
        if not _is_inside(name):
            raise BundleError(f"the manifest names a file outside the bundle: {name}")
    for name in (WEIGHTS, *_named_files(document)):
        if name not in document["files"]:
            raise BundleError(f"the manifest gives no hash for {name}")


def _is_inside(name: str) -> bool:
    """Whether it is a relative path in its plain spelling, without `.`, `..`, or what another system takes for them."""
    return not re.search(r"[\\:\0]", name) and all(part not in ("", ".", "..") for part in name.split("/"))


def _named_files(document: Mapping[str, Any]) -> Iterator[str]:
    """Every file that a runtime opens because the manifest says so."""
    for target in document["targets"].values():
        yield target["file"]
        yield from target.get("packages", {}).values()
    if "cpu" in document["targets"].get("onnx", {}):
        yield document["targets"]["onnx"]["cpu"]["file"]
    for key in ("tokenizer", "vectors"):
        if document.get(key) is not None:
            yield document[key]["file"]
            if document[key].get("data") is not None:
                yield document[key]["data"]
