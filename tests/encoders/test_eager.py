"""The encoder run a sub-block at a time is transformers' encoder: in any precision of the file, under any arrangement.

Tolerance: relative error of the worst row. Two orders of the same fp32 sums over fewer than 60 terms, through six
sub-blocks, gave up to 6e-6 here; weights used in bf16 instead of fp32 give more than 1e-3.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from skrr_export.checkpoint import open_checkpoint
from skrr_export.encoders.eager import EagerEncoder, Weights, unit_parameters, unit_prefix
from skrr_export.outputs import Output
from tests import reference
from tests.bundles import examples, plans, random_ids, random_mask, relative_error, soften
from tests.checkpoints import bert_checkpoint, contents, t5_checkpoint
from tests.families.clip import clip_checkpoint
from tests.families.decoders import decoder_checkpoint
from tests.reference import Sources
from tests.search import naive
from tests.search.subjects import CPU, eager

TOLERANCE = 2e-5
LAYERS = 3
DENSE: Sources = [(layer, layer) for layer in range(LAYERS)]
FAMILIES = ["t5 gated", "t5 relu", "bert"]
OTHERS = ["clip", "llama", "gemma3_text", "glm"]
"""Families whose own tests compare them at length; here it is their outputs that count."""
IDS = random_ids(np.random.default_rng(5), 3, 17)
MASK = random_mask(np.random.default_rng(6), 3, 17)
MASK_RIGHT = (np.arange(17) < np.array([[17], [4], [11]])).astype(np.int64)
"""Padding on the right, where it is: a causal encoder has a token to look at in every row."""

Checkpoints = Callable[..., Path]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    @cache
    def make(family: str, dtype: torch.dtype = torch.float32) -> Path:
        directory = tmp_path_factory.mktemp("checkpoint")
        if family == "bert":
            return bert_checkpoint(directory, dtype=dtype)
        if family == "clip":
            return clip_checkpoint(directory, dtype=dtype)
        if family in OTHERS:
            return decoder_checkpoint(directory, family, dtype=dtype)
        return soften(t5_checkpoint(directory, gated=family == "t5 gated", dtype=dtype))

    return make


def run(encoder: EagerEncoder, sources: Sources, ids: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    with torch.inference_mode():
        activations = encoder.start(ids, mask)
        for number, pair in enumerate(sources):
            activations[f"hidden_states.{number}"] = activations["hidden"]
            for kind, layer in enumerate(pair):
                if layer is not None:
                    activations["hidden"] = encoder.sub_block(2 * layer + kind, activations)
        activations[f"hidden_states.{len(sources)}"] = activations["hidden"]
        [output] = encoder.finish(activations).values()
    assert output.dtype == torch.float32
    return output.numpy()


def error(checkpoint: Path, sources: Sources = DENSE, *, masked: bool = True, **options: object) -> float:
    mask = MASK if masked else None
    ours = run(eager(checkpoint, masked=masked, **options), sources, IDS, mask)
    return relative_error(ours, reference.encode(checkpoint, sources, IDS, mask))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("masked", [True, False], ids=["masked", "unmasked"])
def test_all_sub_blocks_in_order_are_the_encoder(family: str, masked: bool, checkpoints: Checkpoints) -> None:
    checkpoint, mask = checkpoints(family), MASK if masked else None
    ours = run(eager(checkpoint, masked=masked), DENSE, IDS, mask)
    assert relative_error(ours, reference.encode(checkpoint, None, IDS, mask)) < TOLERANCE


@pytest.mark.parametrize("family", FAMILIES)
def test_sub_blocks_in_any_arrangement(family: str, checkpoints: Checkpoints) -> None:
    checkpoint = checkpoints(family)

    @examples(25)
    @given(plans(LAYERS), st.booleans(), st.integers(1, 4), st.integers(1, 40), st.integers(0, 2**32))
    def check(sources: Sources, masked: bool, batch: int, sequence: int, seed: int) -> None:
        random = np.random.default_rng(seed)
        ids, mask = random_ids(random, batch, sequence), random_mask(random, batch, sequence)
        ours = run(eager(checkpoint, masked=masked), sources, ids, mask if masked else None)
        truth = reference.encode(checkpoint, sources, ids, mask if masked else None)
        assert relative_error(ours, truth) < TOLERANCE

    check()


def states(*layers: int, join: Any = None) -> Output:
    return Output("hidden_states", layers, join)


OUTPUTS = {
    "the embedding": states(0),
    "on the way": states(1),
    "the last but one": states(LAYERS - 1),
    "after the last": states(LAYERS),
    "joined": states(2, 0, LAYERS, join="concatenate"),
    "joined, on the way": states(1, 2, join="concatenate"),
    "every layer, stacked": states(1, 2, LAYERS, join="stack"),
    "pooled": Output("pooler_output"),
    "pooled and projected": Output("text_embeds"),
}


@pytest.mark.parametrize("masked", [True, False], ids=["masked", "unmasked"])
@pytest.mark.parametrize(
    ("family", "name"),
    [
        (family, name)
        for family in ("t5 gated", "bert", *OTHERS)
        for name, output in OUTPUTS.items()
        if family == "clip" or not output.pooled
    ],
)
def test_every_output_under_a_plan(family: str, name: str, masked: bool, checkpoints: Checkpoints) -> None:
    checkpoint, output = checkpoints(family), OUTPUTS[name]
    mask = MASK_RIGHT if masked else None
    for plan in (DENSE, [(0, 0), (2, None), (2, 2)], [(None, 1), (1, 1), (1, None)]):
        encoder = eager(checkpoint, output, masked=masked)
        truth = naive.rows(checkpoint, plan, IDS, mask, output)
        needed = plan[: encoder.encoder.depth([output])]  # what comes after it is not even given
        ours = run(encoder, needed, IDS, mask)
        if output.join == "stack":
            assert ours.shape[:2] == (len(IDS), len(output.layers))
            ours = ours.transpose(0, 2, 1, 3).reshape(truth.shape)
        assert relative_error(ours, truth) < TOLERANCE


@pytest.mark.parametrize("family", ["t5 gated", "gemma3_text"])
def test_units_beyond_the_encoders_are_the_same_sub_blocks_on_other_weights(
    family: str, checkpoints: Checkpoints
) -> None:
    """Gemma's layers differ in more than their weights."""
    checkpoint = checkpoints(family)
    encoder = eager(checkpoint)
    prefixes = [unit_prefix(encoder.encoder, unit) for unit in range(3 * 2 * LAYERS)]
    assert len({*prefixes}) == len({*prefixes[: 2 * LAYERS]}) * 3
    tensors = open_checkpoint(checkpoint).tensors
    copies = {
        other + name.removeprefix(own): encoder.weights.stored(name)
        for own, other in zip(prefixes[: 2 * LAYERS] * 2, prefixes[2 * LAYERS :], strict=True)
        for name in tensors
        if name.startswith(own)
    }
    wider = eager(checkpoint, replaced=copies)
    for unit in range(2 * LAYERS):
        with torch.inference_mode():
            activations = encoder.start(IDS, MASK)
            for turn in (1, 2):
                ours = wider.sub_block(unit + turn * 2 * LAYERS, activations)
                assert torch.equal(ours, encoder.sub_block(unit, activations))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_files_of_other_precision_are_used_as_fp32(family: str, dtype: torch.dtype, checkpoints: Checkpoints) -> None:
    checkpoint = checkpoints(family, dtype)
    assert {tensor.code for tensor in open_checkpoint(checkpoint).tensors.values()} == {
        {torch.bfloat16: "BF16", torch.float16: "F16", torch.float64: "F64"}[dtype]
    }
    assert error(checkpoint) < TOLERANCE
    assert error(checkpoint, budget_bytes=1 << 30) < TOLERANCE


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shift", [1, 2, 3])
def test_tensors_at_odd_offsets(shift: int, dtype: torch.dtype, checkpoints: Checkpoints, tmp_path: Path) -> None:
    original = checkpoints("t5 gated", dtype)
    _shifted(original, tmp_path, shift)
    item = torch.empty((), dtype=dtype).element_size()
    offsets = {tensor.offset % item for tensor in open_checkpoint(tmp_path).tensors.values()}
    assert offsets == {shift % item}
    aligned = run(eager(original), DENSE, IDS, MASK)
    np.testing.assert_array_equal(run(eager(tmp_path), DENSE, IDS, MASK), aligned)
    np.testing.assert_array_equal(run(eager(tmp_path, budget_bytes=1 << 30), DENSE, IDS, MASK), aligned)


def _shifted(checkpoint: Path, directory: Path, shift: int) -> None:
    """The same checkpoint with every tensor so many bytes further on, for the format lets a header end in blanks."""
    content = (checkpoint / "model.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = content[8 : 8 + length] + b" " * shift
    (directory / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + content[8 + length :])
    (directory / "config.json").write_bytes((checkpoint / "config.json").read_bytes())


def test_shards(checkpoints: Checkpoints, tmp_path: Path) -> None:
    whole = t5_checkpoint(tmp_path / "whole")
    shards = t5_checkpoint(tmp_path / "shards", shard_size="20KB")
    assert len(list(shards.glob("*.safetensors"))) > 2
    np.testing.assert_array_equal(run(eager(shards), DENSE, IDS, MASK), run(eager(whole), DENSE, IDS, MASK))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_replaced_tensors_stand_in_for_the_checkpoints(dtype: torch.dtype, checkpoints: Checkpoints) -> None:
    """T5 is pre-norm: an attention whose output projection is zero, and a feed-forward likewise, adds nothing."""
    checkpoint = checkpoints("t5 gated")
    weights = load_file(checkpoint / "model.safetensors")
    names = ("encoder.block.1.layer.0.SelfAttention.o.weight", "encoder.block.2.layer.1.DenseReluDense.wo.weight")
    replaced = {name: torch.zeros_like(weights[name], dtype=dtype) for name in names}
    ours = run(eager(checkpoint, replaced=replaced, budget_bytes=1 << 30), DENSE, IDS, MASK)
    assert relative_error(ours, reference.encode(checkpoint, [(0, 0), (None, 1), (2, None)], IDS, MASK)) < TOLERANCE


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_memory_for_copies_changes_no_bit(family: str, dtype: torch.dtype, checkpoints: Checkpoints) -> None:
    checkpoint = checkpoints(family, dtype)
    outputs = []
    for budget in (0, 10_000, 1 << 30):
        encoder = eager(checkpoint, budget_bytes=budget)
        outputs += [run(encoder, DENSE, IDS, MASK), run(encoder, DENSE, IDS, MASK)]
    for output in outputs[1:]:
        np.testing.assert_array_equal(output, outputs[0])


@pytest.fixture(scope="module")
def odd(checkpoints: Checkpoints, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("odd")
    _shifted(checkpoints("t5 relu"), directory, 1)
    return directory


@given(budget=st.integers(0, 200_000), seed=st.integers(0, 99), converted=st.booleans())
def test_copies_stay_within_their_memory(
    budget: int, seed: int, converted: bool, checkpoints: Checkpoints, odd: Path
) -> None:
    """Copies are made to convert, and of tensors that lie at odd offsets."""
    tensors = open_checkpoint(checkpoints("t5 relu", torch.bfloat16) if converted else odd).tensors
    weights = Weights(tensors, CPU, torch.float32, budget_bytes=budget)
    names = sorted(tensors)
    np.random.default_rng(seed).shuffle(names)
    first = {name: weights[name] for name in names}
    kept = [name for name in names if weights[name] is first[name]]
    held = sum(first[name].nbytes for name in kept)
    assert held <= budget
    for name in names:
        assert name in kept or first[name].nbytes > budget - held, f"{name} would have fitted"


def test_weights_of_the_right_precision_are_not_copied(checkpoints: Checkpoints) -> None:
    tensors = open_checkpoint(checkpoints("t5 relu")).tensors
    weights = Weights(tensors, CPU, torch.float32, budget_bytes=0)
    for name, tensor in tensors.items():
        assert weights[name].data_ptr() == weights.stored(name).data_ptr()
        assert weights[name].shape == tensor.shape


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_nothing_is_written_to_the_checkpoint(dtype: torch.dtype, tmp_path: Path) -> None:
    checkpoint = t5_checkpoint(tmp_path / "t5", dtype=dtype)
    before = contents(checkpoint)
    encoder = eager(checkpoint)
    run(encoder, DENSE, IDS, MASK)
    for name in open_checkpoint(checkpoint).tensors:
        encoder.weights.stored(name).zero_()  # not even if somebody writes into what is mapped
    assert contents(checkpoint) == before


PARTS = {
    "clip": (("self_attn.", "layer_norm1."), ("mlp.", "layer_norm2.")),
    "llama": (("self_attn.", "input_layernorm."), ("mlp.", "post_attention_layernorm.")),
    "gemma3_text": (
        ("self_attn.", "input_layernorm.", "post_attention_layernorm."),
        ("mlp.", "pre_feedforward_layernorm.", "post_feedforward_layernorm."),
    ),
}
"""What belongs to an attention and to a feed-forward, by what their tensors' names begin with in a layer."""


@pytest.mark.parametrize("family", [*FAMILIES, *PARTS])
def test_parameters_of_the_units_and_of_the_rest_are_all(family: str, checkpoints: Checkpoints) -> None:
    checkpoint = checkpoints(family)
    encoder = eager(checkpoint).encoder
    sizes = {name: value.numel() for name, value in load_file(checkpoint / "model.safetensors").items()}
    counts = unit_parameters(encoder)
    assert len(counts) == 2 * LAYERS
    if family == "bert":
        parts = (("attention.",), ("intermediate.", "output."))
        units = [[f"encoder.layer.{unit // 2}.{part}" for part in parts[unit % 2]] for unit in range(2 * LAYERS)]
        rest = ["embeddings.", "pooler."]
    elif family in PARTS:
        [root] = {name.partition("layers.")[0] for name in sizes if "layers." in name}
        parts = PARTS[family]
        units = [[f"{root}layers.{unit // 2}.{part}" for part in parts[unit % 2]] for unit in range(2 * LAYERS)]
        rest = [name for name in sizes if "layers." not in name]
    else:
        units = [[f"encoder.block.{unit // 2}.layer.{unit % 2}."] for unit in range(2 * LAYERS)]
        rest = ["shared.", "encoder.final_layer_norm."]
    # The position biases lie in layer 0's attention and serve every layer: they go with no unit.
    biases = sum(size for name, size in sizes.items() if "relative_attention_bias" in name)
    expected = [sum(size for name, size in sizes.items() if name.startswith(tuple(unit))) for unit in units]
    expected[0] -= biases
    assert list(counts) == expected
    others = sum(size for name, size in sizes.items() if name.startswith(tuple(rest)))
    assert sum(counts) + biases + others == sum(sizes.values())
    model_type = json.loads((checkpoint / "config.json").read_text())["model_type"]
    assert encoder.family == {"clip_text_model": "clip", "gemma3_text": "gemma3"}.get(model_type, model_type)
