"""The denoiser's own text projection: the first thing it does to an encoder's rows.

What this projection does not see cannot reach the image, so a search measures after it. The definitions are those of
diffusers: linear layers, with an activation between two, and an RMSNorm before or after.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from skrr_export.dtypes import READABLE
from skrr_export.errors import CheckpointError, InputError
from skrr_export.tensorfile import StoredTensor, read_header


@dataclass(frozen=True, slots=True)
class Linear:
    """A linear layer, by the name of its module."""

    name: str
    unbiased: bool = False
    """Whether it may lack its bias."""


@dataclass(frozen=True, slots=True)
class Norm:
    """An RMSNorm, by the name of its module."""

    name: str
    epsilon: float = 1e-5
    """The default in diffusers, which the published checkpoints have where they could have another."""
    optional: bool = False


Stage = Linear | Norm | type[nn.Module]
"""What a projection consists of; activations by their class."""


class GELU(nn.GELU):
    """The approximation by a tanh."""

    def __init__(self) -> None:
        super().__init__(approximate="tanh")


def _two_layers(name: str, activation: type[nn.Module]) -> tuple[Stage, ...]:
    return (Linear(f"{name}.linear_1"), activation, Linear(f"{name}.linear_2"))


CHAINS: tuple[tuple[Stage, ...], ...] = (
    (*_two_layers("caption_projection", GELU), Norm("caption_norm", optional=True)),  # PixArt, LTX, Allegro; Sana
    (Linear("context_embedder", unbiased=True),),  # FLUX.1, SD3, Chroma; without a bias AuraFlow and FLUX.2
    (Linear("patch_embed.text_proj"),),  # CogVideoX, CogView4
    (Linear("context_embedder.proj_in"),),  # HunyuanVideo
    _two_layers("condition_embedder.text_embedder", GELU),  # Wan
    _two_layers("text_embedder", nn.SiLU),  # HunyuanDiT's T5
    (Linear("time_embed.caption_proj"),),  # Mochi
    (Norm("time_caption_embed.caption_embedder.0"), Linear("time_caption_embed.caption_embedder.1")),  # Lumina2
    (Norm("cap_embedder.0"), Linear("cap_embedder.1")),  # Z-Image
    (Norm("txt_norm", epsilon=1e-6), Linear("txt_in")),  # Qwen-Image
    (Linear("caption_projection.48.linear", unbiased=True),),  # HiDream's T5
    (Linear("encoder_hid_proj"),),  # DeepFloyd IF
    (Linear("encoder_hidden_states_proj"),),  # Kandinsky's prior
    (Linear("clip_txt_mapper"),),  # Stable Cascade
)
"""The projections we know, as what runs in turn; none's first tensor is another's."""

FOLDERS = ("transformer", "unet", "prior")
"""Where a pipeline's directory has its denoiser."""
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
        """Project an encoder's rows, `[rows, width]` of any float type, to float32 `[rows, features]`."""
        features: Tensor = self.layers(rows.float())
        return features

    def describe(self) -> str:
        """One line for a plan's provenance: the weights, their shapes, and the file they come from."""
        weights = [f"{tensor.name} {list(tensor.shape)}" for tensor in self._stored if tensor.name.endswith(".weight")]
        files = sorted({tensor.file.name for tensor in self._stored})
        return f"{', '.join(weights)} of {' and '.join(files)}"


def open_projection(location: str | Path, width: int, names: Collection[str] = ()) -> Projection:
    """Load a denoiser's text projection, and nothing else of the denoiser.

    Args:
        location: directory of a diffusers denoiser, or of a pipeline, or one safetensors file.
        width: of the rows that it is given.
        names: the denoiser's parameters that read these rows, where that is known.

    Raises:
        InputError: the denoiser has no projection that we know, or one for an encoder of another width; or the
            directory holds several variants.
        CheckpointError: there is no denoiser, or its files are damaged.
    """
    known = [chain for chain in CHAINS if not names or any(f"{name}.weight" in names for name in _modules(chain))]
    if not known:
        raise InputError(
            f"the pipeline's denoiser reads this encoder by {', '.join(names)}: no text projection that we know; "
            "leave --denoiser out"
        )
    file = _weights_file(Path(location))
    tensors = _locate(file)
    first = [f"{next(_modules(chain))}.weight" for chain in known]
    chain = next((chain for chain, name in zip(known, first, strict=True) if name in tensors), None)
    if chain is None:
        raise InputError(f"{file} holds no text projection that we know; looked for {', '.join(first)}")
    stored = [_get(tensors, name, file) for name in _names(chain, tensors)]
    _check(stored, {stage.name for stage in chain if isinstance(stage, Norm)}, width)
    contents = [_read(tensor) for tensor in stored]
    digest = hashlib.sha256(b"".join(contents))
    values = {tensor.name: _decode(tensor, content) for tensor, content in zip(stored, contents, strict=True)}
    return Projection(nn.Sequential(*_layers(chain, values)), stored, digest.hexdigest())


def _modules(chain: Sequence[Stage]) -> Iterator[str]:
    """The names of what has parameters."""
    return (stage.name for stage in chain if isinstance(stage, (Linear, Norm)))


def _weights_file(location: Path) -> Path:
    """The safetensors file, or the index of several."""
    if location.is_file():
        return location
    if not location.is_dir():
        raise CheckpointError(f"no such path: {location}")
    directory = next((location / folder for folder in FOLDERS if (location / folder).is_dir()), location)
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
    parts = {f"{name}.{kind}" for chain in CHAINS for name in _modules(chain) for kind in ("weight", "bias")}
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


def _names(chain: Sequence[Stage], tensors: Mapping[str, StoredTensor]) -> Iterator[str]:
    """The tensors of a projection, in the order in which they are used."""
    for stage in chain:
        if isinstance(stage, Linear):
            yield f"{stage.name}.weight"
            if not stage.unbiased or f"{stage.name}.bias" in tensors:
                yield f"{stage.name}.bias"
        elif isinstance(stage, Norm) and (not stage.optional or f"{stage.name}.weight" in tensors):
            yield f"{stage.name}.weight"


def _check(stored: Sequence[StoredTensor], norms: Collection[str], width: int) -> None:
    first = stored[0]
    dimensions = 1 if first.name.removesuffix(".weight") in norms else 2
    if len(first.shape) == dimensions and first.shape[-1] != width:
        raise InputError(
            f"{first.file}: {first.name} takes {first.shape[-1]} features, the encoder gives {width}; "
            "give the denoiser that this encoder feeds"
        )
    for tensor in stored:
        expected: tuple[int, ...] = (width,)
        module, _, kind = tensor.name.rpartition(".")
        if kind == "weight" and module not in norms:
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


def _layers(chain: Sequence[Stage], values: Mapping[str, Tensor]) -> Iterator[nn.Module]:
    for stage in chain:
        if isinstance(stage, type):
            yield stage()
            continue
        weight, bias = values.get(f"{stage.name}.weight"), values.get(f"{stage.name}.bias")
        if weight is None:
            continue  # an optional norm
        layer: nn.Module
        if isinstance(stage, Norm):
            layer = nn.RMSNorm(len(weight), eps=stage.epsilon, device="meta")
        else:
            layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
        layer.load_state_dict({"weight": weight} | ({} if bias is None else {"bias": bias}), assign=True)
        yield layer
