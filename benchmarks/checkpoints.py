"""Synthetic T5 v1.1 encoder checkpoints, laid out as Hugging Face lays them out.

The benchmarks need checkpoints of the real sizes without downloading them. Values are random, but scaled as a trained
or freshly initialised T5 scales them, so activations stay sane and outputs can be compared.

    python benchmarks/checkpoints.py DIR --shape large
    python benchmarks/checkpoints.py DIR --shape xxl
    python benchmarks/checkpoints.py DIR --layers 4 --width 64 --heads 4 --d-kv 16 --d-ff 128 --vocab 512
"""

from __future__ import annotations

import argparse
import hashlib
import json
import struct
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import numpy.typing as npt
from exporters import positive

if TYPE_CHECKING:
    from collections.abc import Iterator

BYTES_PER_ELEMENT = {"fp32": 4, "bf16": 2, "fp16": 2}
"""Bytes of one element, by name of the dtype."""

_SAFETENSORS_NAMES = {"fp32": "F32", "bf16": "BF16", "fp16": "F16"}
_TORCH_NAMES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
_BUCKETS = 32  # of the relative position bias, the same in every T5
_NORM_SPREAD = 0.1
_BIAS_SPREAD = 0.5
_BLOCK_ELEMENTS = 8 * 1024**2
_PIECE_ELEMENTS = 1024**2


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Dimensions and storage of a T5 v1.1 encoder."""

    layers: int
    width: int
    """`d_model`: size of the residual stream."""
    heads: int
    d_kv: int
    """Size of one attention head."""
    d_ff: int
    vocab: int
    dtype: str = "fp32"
    """`fp32`, `bf16` or `fp16`."""
    shards: int = 1
    """Number of safetensors files."""


SHAPES = {
    "large": Shape(layers=24, width=1024, heads=16, d_kv=64, d_ff=2816, vocab=32128),
    "xxl": Shape(layers=24, width=4096, heads=64, d_kv=64, d_ff=10240, vocab=32128, dtype="bf16", shards=4),
    "base": Shape(layers=12, width=768, heads=12, d_kv=64, d_ff=2048, vocab=32128),
    "tiny": Shape(layers=24, width=64, heads=4, d_kv=16, d_ff=256, vocab=512),
}
"""Shapes of google/t5-v1_1-large and -base (fp32) and of the T5-XXL encoder that image pipelines ship (bf16), and one
to try a benchmark with."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One tensor of the checkpoint: its name, its dimensions and the distribution its values are drawn from."""

    name: str
    shape: tuple[int, ...]
    mean: float
    std: float

    @property
    def elements(self) -> int:
        """Number of elements."""
        return int(np.prod(self.shape))


def tensor_specs(shape: Shape) -> list[TensorSpec]:
    """All tensors of an encoder, in checkpoint order.

    Linear weights have a standard deviation of one over the root of their inputs, so they keep the scale of what they
    read. T5 does not scale attention logits, so `q` carries the usual `d_kv ** -0.5` as well.
    """
    inner = shape.heads * shape.d_kv
    by_width, by_inner, by_ff = shape.width**-0.5, inner**-0.5, shape.d_ff**-0.5
    specs = [TensorSpec("shared.weight", (shape.vocab, shape.width), 0.0, 1.0)]
    for layer in range(shape.layers):
        attention, feed_forward = (f"encoder.block.{layer}.layer.{kind}" for kind in (0, 1))
        specs += [
            TensorSpec(f"{attention}.SelfAttention.q.weight", (inner, shape.width), 0.0, by_width * shape.d_kv**-0.5),
            TensorSpec(f"{attention}.SelfAttention.k.weight", (inner, shape.width), 0.0, by_width),
            TensorSpec(f"{attention}.SelfAttention.v.weight", (inner, shape.width), 0.0, by_width),
            TensorSpec(f"{attention}.SelfAttention.o.weight", (shape.width, inner), 0.0, by_inner),
        ]
        if layer == 0:
            bias = f"{attention}.SelfAttention.relative_attention_bias.weight"
            specs.append(TensorSpec(bias, (_BUCKETS, shape.heads), 0.0, _BIAS_SPREAD))
        specs += [
            TensorSpec(f"{attention}.layer_norm.weight", (shape.width,), 1.0, _NORM_SPREAD),
            TensorSpec(f"{feed_forward}.DenseReluDense.wi_0.weight", (shape.d_ff, shape.width), 0.0, by_width),
            TensorSpec(f"{feed_forward}.DenseReluDense.wi_1.weight", (shape.d_ff, shape.width), 0.0, by_width),
            TensorSpec(f"{feed_forward}.DenseReluDense.wo.weight", (shape.width, shape.d_ff), 0.0, by_ff),
            TensorSpec(f"{feed_forward}.layer_norm.weight", (shape.width,), 1.0, _NORM_SPREAD),
        ]
    specs.append(TensorSpec("encoder.final_layer_norm.weight", (shape.width,), 1.0, _NORM_SPREAD))
    return specs


def parameter_count(shape: Shape) -> int:
    """Number of parameters of an encoder."""
    return sum(spec.elements for spec in tensor_specs(shape))


def unit_parameters(shape: Shape, unit: int) -> int:
    """Parameters that dropping a unit saves; the table of position biases serves every layer and stays."""
    prefix = f"encoder.block.{unit // 2}.layer.{unit % 2}."
    specs = (spec for spec in tensor_specs(shape) if spec.name.startswith(prefix))
    return sum(spec.elements for spec in specs if "relative_attention_bias" not in spec.name)


def resized(shape: Shape, *, layers: int | None = None, width: int | None = None) -> Shape:
    """The shape with another depth, or narrower in proportion and then in one file; `None`: as it is."""
    if layers is not None:
        shape = replace(shape, layers=layers)
    if width is None or width == shape.width:
        return shape
    heads, d_ff = (max(1, size * width // shape.width) for size in (shape.heads, shape.d_ff))
    return replace(shape, width=width, heads=heads, d_ff=d_ff, shards=1)


class Noise:
    """Normal numbers, fast: one block is drawn, and every piece of every tensor is a slice of it at a random offset.

    Drawing 4.76 billion numbers would take minutes; slicing takes seconds. The price is that tensors share numbers, at
    offsets which differ from piece to piece, and that is harmless here: no two tensors are equal, and nothing measured
    depends on independence. A tensor's values depend on the seed and its name only, not on the tensors around it.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._block = np.random.default_rng(seed).standard_normal(_BLOCK_ELEMENTS, dtype=np.float32)

    def pieces(self, spec: TensorSpec) -> Iterator[npt.NDArray[np.float32]]:
        """The values of a tensor, flat and in order, as float32 arrays of at most 4 MiB."""
        digest = hashlib.sha256(f"{self._seed}:{spec.name}".encode()).digest()
        offsets = np.random.default_rng(int.from_bytes(digest[:8], "little"))
        for start in range(0, spec.elements, _PIECE_ELEMENTS):
            count = min(_PIECE_ELEMENTS, spec.elements - start)
            offset = int(offsets.integers(_BLOCK_ELEMENTS - count))
            yield self._block[offset : offset + count] * np.float32(spec.std) + np.float32(spec.mean)


def encode_values(values: npt.NDArray[np.float32], dtype: str) -> bytes:
    """Little-endian bytes of the values in the dtype, rounded to nearest even. Values must be finite."""
    if dtype == "fp32":
        return values.astype("<f4", copy=False).tobytes()
    if dtype == "fp16":
        return values.astype("<f2").tobytes()
    # NumPy has no bfloat16: keep the upper half of each float32, after adding what rounds the lower half to even.
    bits = values.view(np.uint32)
    rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    return (rounded >> np.uint32(16)).astype("<u2").tobytes()


def split_into_shards(specs: list[TensorSpec], shards: int) -> list[list[TensorSpec]]:
    """Consecutive runs of tensors of about the same size, one per shard."""
    total = sum(spec.elements for spec in specs)
    groups: list[list[TensorSpec]] = [[] for _ in range(shards)]
    before = 0
    for spec in specs:
        groups[min(before * shards // total, shards - 1)].append(spec)
        before += spec.elements
    return groups


def write_checkpoint(directory: Path, shape: Shape, seed: int = 0) -> int:
    """Write a checkpoint, tensor by tensor; memory stays below 100 MiB whatever its size.

    Args:
        directory: made if missing; its checkpoint files are overwritten.
        shape: dimensions, dtype and number of shards.
        seed: the same seed and shape give the same bytes.

    Returns:
        Bytes of tensor data written.

    Raises:
        ValueError: the shape asks for more shards than it has tensors to fill them.
    """
    groups = split_into_shards(tensor_specs(shape), shape.shards)
    if not all(groups):
        raise ValueError(f"{shape.shards} shards are too many for these tensors")
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config(shape), indent=2) + "\n", encoding="utf-8")
    names = [f"model-{i + 1:05}-of-{shape.shards:05}.safetensors" for i in range(shape.shards)]
    if shape.shards == 1:
        names = ["model.safetensors"]
    noise = Noise(seed)
    for name, group in zip(names, groups, strict=True):
        with (directory / name).open("wb") as file:
            _write_safetensors(file, group, shape.dtype, noise)
    size = parameter_count(shape) * BYTES_PER_ELEMENT[shape.dtype]
    if shape.shards > 1:
        weight_map = {spec.name: name for name, group in zip(names, groups, strict=True) for spec in group}
        index = {"metadata": {"total_size": size}, "weight_map": weight_map}
        (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return size


def ensure_checkpoint(directory: Path, shape: Shape, seed: int = 0) -> Path:
    """Write the checkpoint unless the directory already holds just this one; returns the directory.

    A stamp written last tells a whole checkpoint from one whose writing was interrupted.
    """
    stamp = directory / "benchmark-checkpoint.json"
    wanted = json.dumps({"shape": repr(shape), "seed": seed})
    if not (stamp.is_file() and stamp.read_text(encoding="utf-8") == wanted):
        write_checkpoint(directory, shape, seed)
        stamp.write_text(wanted, encoding="utf-8")
    return directory


def add_shape_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `--layers` and `--width`."""
    parser.add_argument("--layers", type=positive, help="to try it on something smaller")
    parser.add_argument("--width", type=positive, help="likewise; a multiple of 64")


def chosen_checkpoint(name: str, arguments: argparse.Namespace) -> tuple[Path, Shape]:
    """A checkpoint in the work directory, and its shape: one of `SHAPES`, resized as the arguments say."""
    shape = resized(SHAPES[name], layers=arguments.layers, width=arguments.width)
    folder = name if shape == SHAPES[name] else f"{name}-{shape.layers}x{shape.width}"
    return ensure_checkpoint(arguments.work / "checkpoints" / folder, shape), shape


def config(shape: Shape) -> dict[str, Any]:
    """Content of `config.json`, with the fields of a T5 v1.1 encoder saved by transformers."""
    return {
        "architectures": ["T5EncoderModel"],
        "d_ff": shape.d_ff,
        "d_kv": shape.d_kv,
        "d_model": shape.width,
        "decoder_start_token_id": 0,
        "dense_act_fn": "gelu_new",
        "dropout_rate": 0.1,
        "eos_token_id": 1,
        "feed_forward_proj": "gated-gelu",
        "initializer_factor": 1.0,
        "is_encoder_decoder": False,
        "is_gated_act": True,
        "layer_norm_epsilon": 1e-06,
        "model_type": "t5",
        "num_decoder_layers": shape.layers,
        "num_heads": shape.heads,
        "num_layers": shape.layers,
        "output_past": True,
        "pad_token_id": 0,
        "relative_attention_max_distance": 128,
        "relative_attention_num_buckets": _BUCKETS,
        "tie_word_embeddings": False,
        "torch_dtype": _TORCH_NAMES[shape.dtype],
        "use_cache": False,
        "vocab_size": shape.vocab,
    }


def _write_safetensors(file: BinaryIO, specs: list[TensorSpec], dtype: str, noise: Noise) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for spec in specs:
        begin, end = end, end + spec.elements * BYTES_PER_ELEMENT[dtype]
        header[spec.name] = {
            "dtype": _SAFETENSORS_NAMES[dtype],
            "shape": list(spec.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format wants the data aligned to 8 bytes
    file.write(struct.pack("<Q", len(text)) + text)
    for spec in specs:
        for piece in noise.pieces(spec):
            file.write(encode_values(piece, dtype))


def _parse_arguments() -> tuple[Path, Shape, int]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, metavar="DIR")
    parser.add_argument("--shape", choices=sorted(SHAPES), default="large", help="start from this (default: large)")
    for name in ("layers", "width", "heads", "d-kv", "d-ff", "vocab", "shards"):
        parser.add_argument(f"--{name}", type=int)
    parser.add_argument("--dtype", choices=sorted(BYTES_PER_ELEMENT))
    parser.add_argument("--seed", type=int, default=0)
    arguments = vars(parser.parse_args())
    directory, seed, shape = arguments.pop("directory"), arguments.pop("seed"), SHAPES[arguments.pop("shape")]
    return directory, replace(shape, **{name: value for name, value in arguments.items() if value is not None}), seed


def main() -> None:
    """Command line."""
    directory, shape, seed = _parse_arguments()
    size = write_checkpoint(directory, shape, seed)
    print(f"{directory}: {parameter_count(shape) / 1e6:,.1f} M parameters, {size / 1e9:.3f} GB of tensors")


if __name__ == "__main__":
    main()
