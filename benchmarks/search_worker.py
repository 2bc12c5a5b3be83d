"""One run of search_speed.py or search_xxl.py in a process of its own.

    python search_worker.py ours|naive CHECKPOINT PROMPTS SPARSITY
    python search_worker.py forward CHECKPOINT TOKENIZER PROMPTS PIPELINE DTYPE

The last line on standard output is a JSON object. Seconds are counted once everything is imported: `ours` and `naive`
both open the checkpoint, tokenise the prompts, and search.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from search_naive import NaiveLoop, Positions, reuse, skip_order
from transformers import AutoConfig, AutoTokenizer  # noqa: F401 - imported now, so that no search counts it

from skrr_export.calibration import Calibration, calibrate
from skrr_export.checkpoint import open_checkpoint
from skrr_export.encoders import parameter_shapes, recognise
from skrr_export.encoders.eager import EagerEncoder, Weights, unit_parameters
from skrr_export.pipelines import find_preset
from skrr_export.plan import Plan
from skrr_export.prompts import read_prompts
from skrr_export.search.activations import ActivationEngine
from skrr_export.search.goal import reaches
from skrr_export.search.space import arrangement_of
from skrr_export.searching import SearchOptions, search_plans
from skrr_export.tokenization import Tokenizer

BEAM = 3
_FORWARD_WEIGHTS = 6e9  # bytes of converted copies; about what a search may keep on a machine of 24 GB


def ours(checkpoint: Path, prompts: Path, sparsity: float) -> dict[str, Any]:
    """The package's search, as `plan search --method skrr --device cpu` runs it."""
    options = SearchOptions(
        sparsities=(sparsity,), method="skrr", prompts=read_prompts(prompts), beam=BEAM, device="cpu", dtype="fp32"
    )
    with tempfile.TemporaryDirectory() as directory:
        journal = Path(directory) / "journal"
        start = time.perf_counter()
        plan = search_plans(checkpoint, options, journal=journal)[0]
        seconds = time.perf_counter() - start
        records = [json.loads(line) for line in journal.read_text(encoding="utf-8").splitlines()[1:]]
    terms = next(record["value"] for record in records if record["name"] == "terms")  # D in all its digits
    return {
        "seconds": seconds,
        "positions": arrangement_of(plan),
        "order": plan.provenance["order"],
        "discrepancy": sum(terms[0]),
        "sparsity": plan.provenance["sparsity"],
        "tokens": plan.provenance["calibration"]["tokens"],
        **plan.provenance["evaluations"],
    }


def naive(checkpoint: Path, prompts: Path, sparsity: float) -> dict[str, Any]:
    """The same search, every candidate measured whole."""
    texts = read_prompts(prompts)
    start = time.perf_counter()
    encoder, calibration = opened(checkpoint, checkpoint, texts, "plain", torch.float32)
    loop = NaiveLoop(encoder, (calibration.null, *calibration.chunks))
    reached = sparsity_of(encoder)
    order, values = skip_order(loop, BEAM, lambda positions: reaches(reached(positions), sparsity))
    positions, value = reuse(loop, order, values[-1])
    return {
        "seconds": time.perf_counter() - start,
        "positions": positions,
        "order": order,
        "discrepancy": value,
        "sparsity": {"wanted": sparsity, "reached": reached(positions)},
        "tokens": calibration.tokens,
        "chunks": len(calibration.chunks),
        "sub_blocks": loop.evaluated,
    }


def forward(checkpoint: Path, tokenizer: Path, prompts: Path, pipeline: str, dtype: str) -> dict[str, Any]:
    """Seconds of one dense forward over all prompts, the first and the second."""
    torch_dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]
    encoder, calibration = opened(checkpoint, tokenizer, read_prompts(prompts), pipeline, torch_dtype)
    chunks = (calibration.null, *calibration.chunks)
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        engine = ActivationEngine(encoder, chunks, 0)
        dense = tuple(range(2 * encoder.encoder.num_layers))
        finite = [bool(engine.output(number, dense, 0).isfinite().all()) for number in range(len(chunks))]
        assert all(finite), "the dense encoder overflows"
        seconds.append(time.perf_counter() - start)
    return {
        "first_seconds": seconds[0],
        "seconds": seconds[1],
        "work": engine.evaluated,
        "chunks": [chunk.input_ids.shape for chunk in chunks],
        "tokens": calibration.tokens,
    }


def opened(
    checkpoint: Path, tokenizer: Path, prompts: list[str], pipeline: str, dtype: torch.dtype
) -> tuple[EagerEncoder, Calibration]:
    """The encoder and the chunks of prompts, as the package's search makes them on a CPU."""
    files = open_checkpoint(checkpoint)
    encoder = recognise(files)
    preset = find_preset(pipeline, encoder)
    calibration = calibrate(Tokenizer(tokenizer, files.directory, preset), prompts)
    device = torch.device("cpu")
    weights = Weights(files.tensors, device, dtype, budget_bytes=int(_FORWARD_WEIGHTS))
    return EagerEncoder(encoder, weights, device, masked=preset.masked), calibration


def sparsity_of(encoder: EagerEncoder) -> Any:
    """A function from an arrangement to the share of the encoder's parameters that it does not use."""
    definition = encoder.encoder
    sizes = unit_parameters(definition)
    shapes = parameter_shapes(definition, Plan.identity(definition.family, definition.num_layers))
    total = sum(int(np.prod(shape)) for shape in shapes.values())

    def share(positions: Positions) -> float:
        return sum(size for unit, size in enumerate(sizes) if unit not in positions) / total

    return share


def main() -> None:
    """Command line."""
    kind, *words = sys.argv[1:]
    if kind == "forward":
        result = forward(Path(words[0]), Path(words[1]), Path(words[2]), words[3], words[4])
    else:
        result = {"ours": ours, "naive": naive}[kind](Path(words[0]), Path(words[1]), float(words[2]))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
