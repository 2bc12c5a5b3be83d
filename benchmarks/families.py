"""How exactly each family of encoders is exported: its drift from transformers in every precision.

    python benchmarks/families.py [--layers 4] [--width 256] [--family NAME ...] [--work DIR]

For each family transformers writes a checkpoint with its own random initialisation. The truth is transformers in fp32
with plain attention. In fp32 ONNX Runtime and torch.export run the bundle; in half precision, where ONNX Runtime's CPU
provider has no kernels, torch.export does, and beside it stands transformers' own error at that precision. A drift is
the relative L2 over the rows of tokens, of the worst of several batches.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from report import add_work_argument, machine_line, print_table, write_records

from skrr_export.exporting import ExportOptions, export_checkpoint
from skrr_export.targets import open_target

FP32_LIMIT = 2e-5
HALF_LIMIT = 1.5
"""Times PyTorch's own error at that precision."""
HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}
SIZES = ((1, 16), (4, 77), (2, 200))
VOCABULARY = 2048

Ids = npt.NDArray[np.int64]
Rows = npt.NDArray[np.float64]
Run = Callable[[Ids, Ids], Rows]


@dataclass(frozen=True, slots=True)
class Family:
    """A family's class in transformers, and what its configuration needs."""

    model: str
    config: str
    settings: Mapping[str, Any]


def families(layers: int, width: int) -> dict[str, Family]:
    """By name; `width` is the hidden size."""
    heads, sizes = 8, {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    t5 = {
        "vocab_size": VOCABULARY, "num_layers": layers, "d_model": width, "num_heads": heads, "d_kv": width // heads,
        "d_ff": 3 * width, "feed_forward_proj": "gated-gelu",
    }  # fmt: skip
    plain = {
        **sizes, "num_hidden_layers": layers, "hidden_size": width, "num_attention_heads": heads,
        "intermediate_size": 3 * width,
    }  # fmt: skip
    grouped = {**plain, "num_key_value_heads": heads // 2, "head_dim": width // heads}
    windowed = {**grouped, "sliding_window": 64, "query_pre_attn_scalar": width // heads}
    clip = {**plain, "max_position_embeddings": 256, "projection_dim": width // 2}
    return {
        "t5": Family("T5EncoderModel", "T5Config", t5),
        "umt5": Family("UMT5EncoderModel", "UMT5Config", t5),
        "bert": Family("BertModel", "BertConfig", plain),
        "clip": Family("CLIPTextModelWithProjection", "CLIPTextConfig", clip),
        "llama": Family("LlamaModel", "LlamaConfig", grouped),
        "mistral": Family("MistralModel", "MistralConfig", grouped),
        "qwen2.5": Family("Qwen2Model", "Qwen2Config", grouped),
        "qwen3": Family("Qwen3Model", "Qwen3Config", grouped),
        "gemma2": Family("Gemma2Model", "Gemma2Config", windowed),
        "gemma3": Family("Gemma3TextModel", "Gemma3TextConfig", windowed),
        "glm": Family("GlmModel", "GlmConfig", grouped),
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=256, help="hidden size, a multiple of 16 (default: %(default)s)")
    parser.add_argument("--family", action="append", help="one of them; default: all")
    add_work_argument(parser)
    arguments = parser.parse_args()
    known = families(arguments.layers, arguments.width)
    chosen = arguments.family or list(known)
    if unknown := [name for name in chosen if name not in known]:
        parser.error(f"unknown family '{unknown[0]}'; known: {', '.join(known)}")
    logging.getLogger("transformers").setLevel(logging.ERROR)
    records = [measure(name, known[name]) for name in chosen]
    for record in records:
        record |= {"layers": arguments.layers, "width": arguments.width}
    rows = [
        [record["family"], *(f"{record[key]:.1e}" for key in ("onnx", "pt2")), *_half_cells(record)]
        for record in records
    ]
    halves = [f"{name} {who}" for name in HALVES for who in ("PyTorch", "ours", "ratio")]
    print_table("drift from transformers in fp32", ("family", "onnx fp32", "pt2 fp32", *halves), rows, machine_line())
    arguments.work.mkdir(parents=True, exist_ok=True)
    write_records(arguments.work, "families", records)
    if failures := list(failed(records)):
        raise SystemExit("\n".join(failures))


def _half_cells(record: Mapping[str, Any]) -> Iterator[str]:
    for name in HALVES:
        yield from (f"{record[name][who]:.1e}" for who in ("pytorch", "ours"))
        yield f"{record[name]['ours'] / record[name]['pytorch']:.2f}"


def failed(records: list[dict[str, Any]]) -> Iterator[str]:
    """What is beyond its limit."""
    for record in records:
        for target in ("onnx", "pt2"):
            if not record[target] <= FP32_LIMIT:
                yield f"{record['family']}: {target} drifts by {record[target]:.1e} in fp32, the limit is {FP32_LIMIT}"
        for name in HALVES:
            if not record[name]["ours"] <= HALF_LIMIT * record[name]["pytorch"]:
                yield f"{record['family']}: {name} drifts by over {HALF_LIMIT} times PyTorch's own error"


def measure(name: str, family: Family) -> dict[str, Any]:
    """Write a checkpoint, export it in each precision, and compare."""
    import transformers

    with tempfile.TemporaryDirectory() as directory:
        checkpoint = Path(directory) / "checkpoint"
        torch.manual_seed(0)
        made = getattr(transformers, family.model)(getattr(transformers, family.config)(**family.settings))
        made.save_pretrained(checkpoint)
        load = partial(getattr(transformers, family.model).from_pretrained, checkpoint)
        truth = list(run_all(pytorch(load(attn_implementation="eager"))))
        record: dict[str, Any] = {"family": name}
        for target in ("onnx", "pt2"):
            record[target] = drift(run_all(ours(checkpoint, directory, target, "fp32")), truth)
        for precision, dtype in HALVES.items():
            record[precision] = {
                "pytorch": drift(run_all(pytorch(load(dtype=dtype))), truth),
                "ours": drift(run_all(ours(checkpoint, directory, "pt2", precision)), truth),
            }
    return record


def run_all(run: Run) -> Iterator[Rows]:
    """The rows of tokens of several batches."""
    random = np.random.default_rng(0)
    for batch, sequence in SIZES:
        ids = random.integers(3, VOCABULARY, (batch, sequence))
        mask = (np.arange(sequence) < random.integers(sequence // 2, sequence + 1, (batch, 1))).astype(np.int64)
        yield run(ids, mask)[mask != 0]


def pytorch(model: Any) -> Run:
    """Run a model of transformers."""

    @torch.inference_mode()
    def run(ids: Ids, mask: Ids) -> Rows:
        output = model.eval()(input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask))
        rows: Rows = output.last_hidden_state.double().numpy()
        return rows

    return run


def ours(checkpoint: Path, directory: str, target: str, precision: str) -> Run:
    """Export a checkpoint and run the bundle."""
    options = ExportOptions(dtype=precision, targets=(target,), replace=True)
    session = open_target(export_checkpoint(checkpoint, Path(directory) / "bundle", options).bundle, target)
    return lambda ids, mask: session.encode(ids, mask)["last_hidden_state"].astype(np.float64)


def drift(outputs: Iterator[Rows], truth: list[Rows]) -> float:
    """The relative L2 of the worst batch."""
    pairs = zip(outputs, truth, strict=True)
    return max(float(np.linalg.norm(rows - true) / np.linalg.norm(true)) for rows, true in pairs)


if __name__ == "__main__":
    main()
