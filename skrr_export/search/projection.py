"""The denoiser's own text projection: the first thing it does to an encoder's rows.

What this projection does not see cannot reach the image, so a search measures after it. The definitions are those of
diffusers: `PixArtAlphaTextProjection`, or a plain linear layer.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from skrr_export.dtypes import READABLE
from skrr_export.errors import CheckpointError, InputError
from skrr_export.tensorfile import StoredTensor, read_header

CHAINS = (
    ("caption_projection.linear_1", "caption_projection.linear_2"),  # PixArt, LTX-Video, Sana
    ("context_embedder",),  # FLUX.1, SD3, AuraFlow
    ("patch_embed.text_proj",),  # CogVideoX
)
"""Linear layers of the projections we know, in the order in which they run, a tanh-GELU between two."""
UNBIASED = "context_embedder"
"""The layer that may lack its bias: AuraFlow's does."""
NORM = "caption_norm.weight"
"""Of the RMSNorm after Sana's projection."""
NORM_EPSILON = 1e-5
"""Fixed in diffusers, not read from the configuration."""

SINGLE = "diffusion_pytorch_model.safetensors"
INDEX = "diffusion_pytorch_model.safetensors.index.json"
VARIANTS = ("diffusion_pytorch_model.safetensors.index.*.json", "diffusion_pytorch_model.*.safetensors")
"""Files of variants such as `bf16`; taken where there is no other."""


class Projection(nn.Module):
    """A text projection that computes in fp32 on the weights as they are stored; frozen."""

    def __init__(self, layers: nn.Sequential, stored: Sequence[StoredTensor], sha256: str) -> None:
        """Take over the layers, made of the stored tensors."""
        super().__init__()
        self.layers = layers.requires_grad_(False)
        self.sha256 = sha256
        """Of the tensors' bytes as they are stored, in the order in which they are used."""
        self._stored = tuple(stored)

    def forward(self, rows: Tensor) -> Tensor:
        """Project an encoder's rows, `[rows, hidden_size]` of any float type, to float32 `[rows, features]`."""
        features: Tensor = self.layers(rows.float())
        return features

    def describe(self) -> str:
        """One line for a plan's provenance: the weights, their shapes, and the file they come from."""
        weights = [f"{tensor.name} {list(tensor.shape)}" for tensor in self._stored if tensor.name.endswith(".weight")]
        files = sorted({tensor.file.name for tensor in self._stored})
        return f"{', '.join(weights)} of {' and '.join(files)}"


def open_projection(location: str | Path, hidden_size: int) -> Projection:
    """Load a denoiser's text projection, and nothing else of the denoiser.

    Args:
        location: a diffusers transformer directory, a pipeline directory with a `transformer` folder, or one
            safetensors file.
        hidden_size: of the encoder.

    Raises:
        InputError: the denoiser has no projection that we know, or one for an encoder of another width; or the
            directory holds several variants.
        CheckpointError: there is no denoiser, or its files are damaged.
    """
    file = _weights_file(Path(location))
    tensors = _locate(file)
    chain = next((chain for chain in CHAINS if f"{chain[0]}.weight" in tensors), None)
    if chain is None:
        names = ", ".join(f"{chain[0]}.weight" for chain in CHAINS)
        raise InputError(f"{file} holds no text projection that we know; looked for {names}")
    stored = [_get(tensors, name, file) for name in _names(chain, tensors)]
    _check(stored, hidden_size)
    contents = [_read(tensor) for tensor in stored]
    digest = hashlib.sha256(b"".join(contents))
    values = {tensor.name: _decode(tensor, content) for tensor, content in zip(stored, contents, strict=True)}
    return Projection(nn.Sequential(*_layers(chain, values)), stored, digest.hexdigest())


def _weights_file(location: Path) -> Path:
    """The safetensors file, or the index of several."""
    if location.is_file():
        return location
    if not location.is_dir():
        raise CheckpointError(f"no such path: {location}")
    directory = location / "transformer" if (location / "transformer").is_dir() else location
    for pattern in (INDEX, SINGLE, *VARIANTS):
        found = sorted(directory.glob(pattern))
        if len(found) > 1:
            raise InputError(f"{directory} holds several variants; give one: {', '.join(path.name for path in found)}")
        if found:
            return found[0]
    raise CheckpointError(
        f"{directory} holds neither {SINGLE} nor {INDEX}; give the directory of a diffusers transformer or pipeline, "
        "or a .safetensors file"
    )


def _locate(file: Path) -> Mapping[str, StoredTensor]:
    """Where the tensors lie; of shards only those are opened that hold a part of a projection."""
    if file.suffix != ".json":
        return read_header(file)
    parts = {f"{layer}.{kind}" for chain in CHAINS for layer in chain for kind in ("weight", "bias")} | {NORM}
    shards = {name: shard for name, shard in _weight_map(file).items() if name in parts}
    headers = {shard: read_header(file.parent / shard) for shard in sorted(set(shards.values()))}
    return {name: _get(headers[shard], name, file.parent / shard) for name, shard in shards.items()}


def _weight_map(index: Path) -> dict[str, str]:
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        for name, shard in weight_map.items():
            if not isinstance(shard, str) or Path(shard).name != shard:
                raise CheckpointError(f"{index} places '{name}' outside the directory: {shard!r}")
        return dict(weight_map)
    except OSError as error:
        raise CheckpointError(f"cannot read {index}: {error.strerror}") from error
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index} is not an index with a weight_map") from error


def _get(tensors: Mapping[str, StoredTensor], name: str, file: Path) -> StoredTensor:
    if name not in tensors:
        raise CheckpointError(f"{file}: the tensor '{name}' is missing")
    return tensors[name]


def _names(chain: Sequence[str], tensors: Mapping[str, StoredTensor]) -> Iterator[str]:
    """The tensors of a projection, in the order in which they are used."""
    for layer in chain:
        yield f"{layer}.weight"
        if layer != UNBIASED or f"{layer}.bias" in tensors:
            yield f"{layer}.bias"
    if NORM in tensors:
        yield NORM


def _check(stored: Sequence[StoredTensor], hidden_size: int) -> None:
    first = stored[0]
    if len(first.shape) == 2 and first.shape[1] != hidden_size:
        raise InputError(
            f"{first.file}: {first.name} takes {first.shape[1]} features, the encoder gives {hidden_size}; "
            "give the denoiser that this encoder feeds"
        )
    width = hidden_size
    for tensor in stored:
        expected: tuple[int, ...] = (width,)
        if tensor.name.endswith(".weight") and tensor.name != NORM:
            expected = (max((1, *tensor.shape[:1])), width)
            width = expected[0]
        if tensor.shape != expected:
            raise CheckpointError(
                f"{tensor.file}: the tensor '{tensor.name}' has shape {list(tensor.shape)}, not {list(expected)}"
            )
        if tensor.code not in READABLE:
            raise CheckpointError(
                f"{tensor.file}: the tensor '{tensor.name}' is stored as {tensor.code}; readable: {', '.join(READABLE)}"
            )


def _read(tensor: StoredTensor) -> bytearray:
    try:
        with tensor.file.open("rb") as file:
            file.seek(tensor.offset)
            content = bytearray(file.read(tensor.nbytes))
    except OSError as error:
        raise CheckpointError(f"cannot read '{tensor.name}' from {tensor.file}: {error.strerror}") from error
    if len(content) != tensor.nbytes:
        raise CheckpointError(f"{tensor.file} was truncated while '{tensor.name}' was being read")
    return content


def _decode(tensor: StoredTensor, content: bytearray) -> Tensor:
    values = torch.frombuffer(content, dtype=READABLE[tensor.code].torch).reshape(tensor.shape).float()
    if not bool(values.isfinite().all()):
        raise CheckpointError(f"{tensor.file}: the tensor '{tensor.name}' holds NaN or infinity")
    return values


def _layers(chain: Sequence[str], values: Mapping[str, Tensor]) -> Iterator[nn.Module]:
    for number, layer in enumerate(chain):
        if number:
            yield nn.GELU(approximate="tanh")
        weight, bias = values[f"{layer}.weight"], values.get(f"{layer}.bias")
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
        linear.load_state_dict({"weight": weight} | ({} if bias is None else {"bias": bias}), assign=True)
        yield linear
    if NORM in values:
        norm = nn.RMSNorm(len(values[NORM]), eps=NORM_EPSILON, device="meta")
        norm.load_state_dict({"weight": values[NORM]}, assign=True)
        yield norm
