"""Exported language models against transformers: what `test_decoder` proves of our parts holds of the graphs too.

Tracing a family takes seconds, so each is exported to as few kinds of graph as show everything. Tolerances are those of
`test_decoder`: ONNX Runtime sums in yet another order, and stays below 7e-6 here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from skrr_export.bundle import Bundle
from skrr_export.outputs import LAST, Output
from skrr_export.pipelines import Preset
from skrr_export.plan import Plan
from skrr_export.targets import open_target
from skrr_export.targets.onnx.session import OnnxSession
from tests import bundles
from tests.bundles import PLAN, examples, plans, random_ids, relative_error
from tests.encoders.test_decoder import TOLERANCE, any_mask
from tests.families.decoders import FAMILIES, decoder_checkpoint, encode
from tests.reference import Sources

SHAPES = [(1, 1), (2, 9), (3, 40), (1, 300)]

pytestmark = pytest.mark.usefixtures("remembered_traces")

Checkpoints = Callable[..., Path]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    @cache
    def make(model_type: str, layers: int = 4) -> Path:
        return decoder_checkpoint(tmp_path_factory.mktemp(model_type), model_type, layers=layers)

    return make


def export(
    checkpoint: Path,
    directory: Path,
    family: str,
    sources: Sources,
    outputs: Sequence[Output] = (LAST,),
    *,
    masked: bool = True,
    **options: Any,
) -> Bundle:
    preset = Preset(
        name="test", max_length=512, padding="longest", masked=masked, reads_padding=True, outputs=tuple(outputs)
    )
    return bundles.export(checkpoint, directory / "bundle", plan=Plan(family, tuple(sources)), preset=preset, **options)


def inputs(bundle: Bundle, shape: tuple[int, int], seed: int = 0) -> tuple[np.ndarray, np.ndarray | None]:
    random = np.random.default_rng(seed)
    return random_ids(random, *shape), any_mask(random, *shape) if bundle.manifest.pipeline.masked else None


@pytest.mark.parametrize("model_type", ["qwen3", "gemma3_text"])
def test_graph_equals_transformers(model_type: str, checkpoints: Checkpoints, tmp_path: Path) -> None:
    checkpoint, family = checkpoints(model_type), FAMILIES[model_type]
    for sources in (PLAN, [(layer, layer) for layer in range(4)]):
        bundle = export(checkpoint, tmp_path, family, sources)
        for runtime in ("default", "decomposed"):
            session = OnnxSession(bundle, runtime=runtime)
            for shape in SHAPES:
                ids, mask = inputs(bundle, shape)
                hidden = session.encode(ids, mask)["last_hidden_state"]
                assert relative_error(hidden, encode(checkpoint, sources, ids, mask)) < TOLERANCE


def test_any_plan_equals_transformers(checkpoints: Checkpoints, tmp_path: Path) -> None:
    begun = plans(4).filter(lambda sources: sources[0][0] is not None)  # the others are traced anew, which is slow

    @examples(4)
    @given(sources=begun, batch=st.integers(1, 4), sequence=st.integers(1, 60), seed=st.integers(0, 2**32))
    def check(sources: Sources, batch: int, sequence: int, seed: int) -> None:
        checkpoint = checkpoints("gemma3_text")
        bundle = export(checkpoint, tmp_path, "gemma3", sources)
        ids, mask = inputs(bundle, (batch, sequence), seed)
        hidden = OnnxSession(bundle).encode(ids, mask)["last_hidden_state"]
        assert relative_error(hidden, encode(checkpoint, sources, ids, mask)) < TOLERANCE

    check()


def test_cogview4_reads_the_hidden_state_before_the_last_layer(checkpoints: Checkpoints, tmp_path: Path) -> None:
    checkpoint, output = checkpoints("glm"), Output("hidden_states", (3,))
    bundle = export(checkpoint, tmp_path, "glm", PLAN, [output], masked=False, targets=("onnx", "pt2"))
    assert not any(name.startswith("norm.") for name in bundle.parameters())
    for target in ("onnx", "pt2"):
        session = open_target(bundle, target)
        for shape in SHAPES:
            ids, _ = inputs(bundle, shape)
            hidden = session.encode(ids)["hidden_states.3"]
            assert relative_error(hidden, encode(checkpoint, PLAN, ids, None, "hidden_states.3")) < TOLERANCE


def test_flux2_joins_layers_of_a_model_that_sees_images_too(checkpoints: Checkpoints, tmp_path: Path) -> None:
    """In fp16, where no bias drowns the logits of a row that sees no key; ONNX Runtime computes in fp32 on the CPU."""
    checkpoint, output = checkpoints("mistral3"), Output("hidden_states", (1, 2, 4), "concatenate")
    bundle = export(checkpoint, tmp_path, "mistral", PLAN, [output], dtype="fp16")
    ids, mask = inputs(bundle, (3, 40))
    assert mask is not None
    mask[0] = np.arange(40) >= 11
    states = [
        encode(checkpoint, PLAN, ids, mask, f"hidden_states.{layer}", rounded_to=torch.float16) for layer in (1, 2, 4)
    ]
    for runtime in ("default", "decomposed"):
        joined = OnnxSession(bundle, runtime=runtime).encode(ids, mask)["hidden_states"]
        assert relative_error(joined, np.concatenate(states, axis=-1)) < TOLERANCE


def test_gemma2_in_bf16(tmp_path: Path) -> None:
    """Of a width at which the scale of its embedding is not exact."""
    checkpoint = decoder_checkpoint(tmp_path / "gemma2", "gemma2", layers=2, hidden_size=38, num_attention_heads=2)
    sources: Sources = [(0, 0), (1, 0)]
    bundle = export(checkpoint, tmp_path, "gemma2", sources, dtype="bf16", targets=("onnx", "pt2"))
    for shape in SHAPES:
        ids, mask = inputs(bundle, shape)
        truth = encode(checkpoint, sources, ids, mask, rounded_to=torch.bfloat16)
        for runtime in ("default", "decomposed"):
            hidden = OnnxSession(bundle, runtime=runtime).encode(ids, mask)["last_hidden_state"]
            assert relative_error(hidden, truth) < TOLERANCE
    own = open_target(bundle, "pt2").encode(ids, mask)["last_hidden_state"].astype(np.float32)
    assert relative_error(own, truth) < 0.1  # computed in bf16
