"""fp16 that cannot overflow: exact in fp32, finite in fp16 where plain casts are not, one copy for re-used blocks."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from skrr_export.bake import bake, weights_layout
from skrr_export.calibration import Chunk
from skrr_export.checkpoint import open_checkpoint
from skrr_export.dtypes import BAKEABLE
from skrr_export.encoders import recognise, select
from skrr_export.encoders.base import NO_RESCALING, Rescaling
from skrr_export.errors import CheckpointError
from skrr_export.exporting import ExportOptions, export_checkpoint
from skrr_export.measure.verify import verify
from skrr_export.outputs import LAST, Output
from skrr_export.pipelines import PRESETS
from skrr_export.plan import Plan
from skrr_export.rescale import HEADROOM, LARGEST, Maxima, Rescaled, measure_maxima, random_chunks, rescale
from skrr_export.targets import open_target
from tests import reference
from tests.bundles import (
    PLAN,
    SPECIAL_PLANS,
    examples,
    export,
    overflowing,
    plans,
    random_ids,
    random_mask,
    relative_error,
    soften,
)
from tests.checkpoints import bert_checkpoint, t5_checkpoint
from tests.families import clip
from tests.families.clip import clip_checkpoint
from tests.families.decoders import decoder_checkpoint

pytestmark = pytest.mark.usefixtures("remembered_traces")

LAYERS = 4
RANDOM = np.random.default_rng(0)
IDS, MASK = random_ids(RANDOM, 3, 23), random_mask(RANDOM, 3, 23)


@pytest.fixture(scope="module", params=["gated", "plain"])
def large(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("large") / request.param
    return overflowing(soften(t5_checkpoint(directory, layers=LAYERS, gated=request.param == "gated")))


def maxima_of(checkpoint: Path, sources: reference.Sources, *outputs: Output) -> Maxima:
    """Of what the outputs need; only that is given."""
    opened = open_checkpoint(checkpoint)
    encoder = recognise(opened)
    chunk = Chunk(IDS, MASK, MASK != 0)
    plan = Plan(encoder.family, tuple(sources))
    needed = {tensor.name: tensor for tensor in select(opened, encoder, plan, outputs or (LAST,)).tensors}
    return measure_maxima(encoder, needed, plan, [chunk], outputs or (LAST,), masked=True)


# The measured maxima


def by_transformers(checkpoint: Path, layers: int | None = None) -> dict[str, float]:
    """The maxima of the dense encoder, from hooks on transformers' own modules; of its first layers, or of all of it.

    Of some layers, what they hand on is an output.
    """
    from transformers import T5EncoderModel

    model = T5EncoderModel.from_pretrained(checkpoint, dtype=torch.float32, attn_implementation="eager").eval()
    found: dict[str, float] = {}

    def add(name: str, value: torch.Tensor) -> None:
        found[name] = max(found.get(name, 0.0), value.abs().max().item())

    model.encoder.block = model.encoder.block[:layers]
    for name, module in model.named_modules():
        part = "attention" if ".layer.0." in name else "feed_forward"
        if isinstance(module, torch.nn.Linear):
            key = f"{part}.{name.split('.', 5)[5]}"
            module.register_forward_hook(
                lambda _, inputs, output, key=key: (add(f"{key}.in", inputs[0]), add(f"{key}.out", output), None)[2]
            )
        if name.endswith("layer_norm"):  # what a norm reads is the residual stream
            module.register_forward_hook(lambda _, inputs, __: add("hidden", inputs[0]))
    stream: list[torch.Tensor] = []
    model.encoder.final_layer_norm.register_forward_pre_hook(lambda _, inputs: stream.append(inputs[0]))
    with torch.inference_mode():
        last = model(input_ids=torch.from_numpy(IDS), attention_mask=torch.from_numpy(MASK)).last_hidden_state
    add("last_hidden_state" if layers is None else f"hidden_states.{layers}", last if layers is None else stream[0])
    return found


@pytest.mark.parametrize("layers", [None, 0, 2, LAYERS - 1])
def test_maxima_are_those_of_transformers(large: Path, layers: int | None) -> None:
    """Of an output on the way, without what comes after it."""
    outputs = () if layers is None else (Output("hidden_states", (layers,)),)
    found = maxima_of(large, [(layer, layer) for layer in range(LAYERS)], *outputs).values
    truth = by_transformers(large, layers)
    assert found.keys() == truth.keys()
    for name, value in truth.items():
        assert found[name] == pytest.approx(value, rel=1e-4), name


def test_maxima_of_several_outputs(tmp_path: Path) -> None:
    """CLIP's projection is a linear map too."""
    checkpoint = clip_checkpoint(tmp_path / "clip", layers=3)
    names = ("hidden_states.0", "hidden_states.3", "last_hidden_state", "pooler_output", "text_embeds")
    outputs = [Output("hidden_states", (0,)), Output("hidden_states", (3,)), *map(Output, names[2:])]
    plan: reference.Sources = [(0, 0), (0, None), (2, 2)]
    found = maxima_of(checkpoint, plan, *outputs).values
    truth = {name: clip.encode(checkpoint, plan, IDS, MASK, name) for name in names}
    for name, value in truth.items():
        assert found[name] == pytest.approx(np.abs(value).max(), rel=1e-4), name
    assert found["text_projection.in"] == found["pooler_output"]
    assert found["text_projection.out"] == found["text_embeds"]
    assert found["hidden"] >= max(found["hidden_states.0"], found["hidden_states.3"])
    stacked = maxima_of(checkpoint, plan, Output("hidden_states", (0, 3), "stack")).values
    assert stacked["hidden_states"] == max(found["hidden_states.0"], found["hidden_states.3"])
    assert not any(name.startswith("text_projection") for name in stacked)


def test_maxima_are_those_of_the_plan(large: Path) -> None:
    dense, planned = (
        maxima_of(large, [(i, i) for i in range(LAYERS)]),
        maxima_of(large, [(0, None), *[(None, None)] * 3]),
    )
    assert planned.values["hidden"] < dense.values["hidden"]
    assert not any("feed_forward" in name for name in planned.values)


def test_an_encoder_that_is_not_finite_in_fp32_is_refused(tmp_path: Path) -> None:
    checkpoint = t5_checkpoint(tmp_path / "t5", layers=1)
    weights = load_file(checkpoint / "model.safetensors")
    weights["encoder.block.0.layer.0.SelfAttention.o.weight"][:] = 3e38
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="the encoder's own activations are not finite"):
        maxima_of(checkpoint, [(0, 0)])


def test_random_ids_fill_the_pipelines_length() -> None:
    [chunk] = random_chunks(307, 40)
    assert chunk.input_ids.shape == (2, 40)
    assert 0 <= chunk.input_ids.min() <= chunk.input_ids.max() < 307


# The powers of two


@given(value=st.floats(1e-3, 1e30), limit=st.floats(1.0, 1e5))
def test_powers_are_the_smallest_that_are_enough(value: float, limit: float, gated_t5: Path) -> None:
    encoder = recognise(open_checkpoint(gated_t5))
    rescaling = encoder.rescaling({"hidden": value, "feed_forward.DenseReluDense.wo.in": value / 7}, limit)
    for power, largest in ((rescaling.residual, value), (rescaling.inner, value / 7)):
        assert math.ldexp(largest, -power) <= limit * (1 + 1e-12)
        assert power == 0 or math.ldexp(largest, 1 - power) > limit * (1 - 1e-12)


@pytest.fixture(scope="module")
def gated_t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return t5_checkpoint(tmp_path_factory.mktemp("gated") / "t5", layers=1)


def test_nothing_is_moved_where_nothing_is_large(tmp_path: Path) -> None:
    checkpoint = soften(t5_checkpoint(tmp_path / "t5", layers=LAYERS))
    with_, without = (
        export_checkpoint(checkpoint, tmp_path / str(moved), ExportOptions(dtype="fp16", rescale=moved)).bundle
        for moved in (True, False)
    )
    assert (with_.manifest.rescaling or {})["residual"] == (with_.manifest.rescaling or {})["inner"] == 0
    assert without.manifest.rescaling is None
    assert with_.weights.read_bytes() == without.weights.read_bytes()


def decide(checkpoint: Path, *outputs: Output) -> Rescaled:
    opened = open_checkpoint(checkpoint)
    encoder = recognise(opened)
    preset = replace(PRESETS["plain"], outputs=outputs, max_length=64)
    return rescale(opened, encoder, Plan.identity(encoder.family, encoder.num_layers), preset)


def test_nothing_is_moved_where_the_stream_itself_is_taken(large: Path) -> None:
    """An output on the way would come out scaled; the last hidden state is normed, under either name."""
    normed = [decide(large, output) for output in (LAST, Output("hidden_states", (LAYERS,)))]
    for each in normed:
        assert each.rescaling == normed[0].rescaling
        assert each.rescaling.residual > 0
        assert each.warnings == ()
    for outputs in (
        [Output("hidden_states", (LAYERS - 1,))],
        [Output("hidden_states", (0, LAYERS), "stack")],
        [Output("hidden_states", (1, 2), "concatenate")],
    ):
        exposed = decide(large, *outputs)
        assert exposed.rescaling == NO_RESCALING
        assert exposed.after == exposed.before
        [warning] = exposed.warnings
        assert "fp16 overflows: '" in warning
        assert warning.endswith("; use bf16")


@pytest.mark.parametrize("model_type", ["clip", "llama", "gemma2"])
def test_families_without_that_freedom_are_warned_of(model_type: str, tmp_path: Path) -> None:
    """Only where what is too large is run."""
    if model_type == "clip":
        checkpoint = clip_checkpoint(tmp_path / "it", layers=3)
        name, activation = "encoder.layers.2.mlp.fc1.weight", "feed_forward.mlp.fc1.out"
    else:
        checkpoint = decoder_checkpoint(tmp_path / "it", model_type, layers=3)
        name, activation = "layers.2.mlp.gate_proj.weight", "feed_forward.mlp.gate_proj.out"
    weights = load_file(checkpoint / "model.safetensors")
    [key] = [key for key in weights if key.endswith(name)]
    assert decide(checkpoint, LAST).warnings == ()
    weights[key] *= 1e5
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    [warning] = decide(checkpoint, LAST).warnings
    # What it makes of that may be larger still.
    assert "fp16 overflows: '" in warning
    found = maxima_of(checkpoint, [(0, 0), (1, 1), (2, 2)]).values
    assert found[activation] > LARGEST
    assert decide(checkpoint, LAST).rescaling == NO_RESCALING
    assert decide(checkpoint, Output("hidden_states", (2,))).warnings == ()


def test_an_activation_that_is_not_homogeneous_keeps_its_input(tmp_path: Path) -> None:
    """gelu(2x) is not 2 gelu(x): where no second matrix carries the product, its scale cannot move."""
    checkpoint = t5_checkpoint(tmp_path / "t5", layers=1, gated=False, feed_forward_proj="gelu")
    encoder = recognise(open_checkpoint(checkpoint))
    assert encoder.rescaling({"feed_forward.DenseReluDense.wo.in": 1e9, "hidden": 1.0}, 100.0).inner == 0


# Exactness in fp32


def rescaled_copy(checkpoint: Path, directory: Path, rescaling: Rescaling) -> Path:
    """The checkpoint with its weights rescaled, baked in fp32, and the configuration that goes with them."""
    opened = open_checkpoint(checkpoint)
    encoder = recognise(opened)
    tensors = select(opened, encoder, Plan.identity(encoder.family, encoder.num_layers)).tensors
    directory.mkdir()
    fp32 = BAKEABLE["fp32"]
    with (directory / "model.safetensors").open("wb") as file:
        bake(tensors, weights_layout(tensors, fp32, Path("model.safetensors")), fp32, file, rescaling=rescaling)
    config = encoder.rescaled(rescaling).config(opened.config)
    (directory / "config.json").write_text(json.dumps(config))
    return directory


@examples(8)
@given(sources=plans(LAYERS), residual=st.integers(0, 20), inner=st.integers(0, 12))
def test_fp32_results_are_the_same(
    sources: reference.Sources, residual: int, inner: int, gated4: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """transformers itself reads the rescaled checkpoint: the configuration carries all that it needs."""
    encoder = recognise(open_checkpoint(gated4))
    reached = {"hidden": 2.0**residual, "feed_forward.DenseReluDense.wo.in": 2.0**inner}
    rescaling = encoder.rescaling(reached, 1.0)
    assert (rescaling.residual, rescaling.inner) == (residual, inner)
    copy = rescaled_copy(gated4, tmp_path_factory.mktemp("copy") / "t5", rescaling)
    truth = reference.encode(gated4, sources, IDS, MASK)
    assert relative_error(reference.encode(copy, sources, IDS, MASK), truth) < 1e-6


@pytest.fixture(scope="module")
def gated4(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return soften(t5_checkpoint(tmp_path_factory.mktemp("gated4") / "t5", layers=LAYERS))


# What it is for


def test_transformers_is_finite_only_for_it_clamps(large: Path, tmp_path: Path) -> None:
    """It cuts what overflows to 64504, after every sub-block: finite, and wrong."""
    from transformers import T5EncoderModel

    model = T5EncoderModel.from_pretrained(large, dtype=torch.float32).half().eval()
    with torch.inference_mode():
        clamped = model(input_ids=torch.from_numpy(IDS), attention_mask=torch.from_numpy(MASK)).last_hidden_state
    truth = reference.encode(large, None, IDS, MASK)
    ours = open_target(export(large, tmp_path / "b", dtype="fp16", targets=("pt2",)), "pt2").encode(IDS, MASK)
    error = relative_error(ours["last_hidden_state"].astype(np.float32), truth)
    assert relative_error(clamped.float().numpy(), truth) > 20 * error


@pytest.mark.parametrize(
    "sources", [PLAN, SPECIAL_PLANS["one source at many positions"] + [(1, 2)]], ids=["plan", "one"]
)
def test_fp16_is_finite_and_closer_than_bf16(large: Path, sources: reference.Sources, tmp_path: Path) -> None:
    """Run in real half precision by torch, on a plan that re-uses."""
    truth = reference.encode(large, sources, IDS, MASK)
    errors = {}
    for dtype in ("fp16", "bf16"):
        bundle = export(large, tmp_path / dtype, sources, dtype=dtype, targets=("pt2",))
        session = open_target(bundle, "pt2")
        assert session.computes_in.name == dtype
        errors[dtype] = relative_error(session.encode(IDS, MASK)["last_hidden_state"].astype(np.float32), truth)
    assert errors["fp16"] < 1.5 * errors["bf16"]
    assert errors["fp16"] < 0.5 * errors["bf16"]  # three more bits: in truth it is far better


def test_without_rescaling_it_is_not_finite(large: Path, tmp_path: Path) -> None:
    bundle = export(large, tmp_path / "b", PLAN, dtype="fp16", targets=("pt2",), rescale=False)
    assert not np.isfinite(open_target(bundle, "pt2").encode(IDS, MASK)["last_hidden_state"]).all()


def test_the_manifest_tells(large: Path, tmp_path: Path) -> None:
    bundle = export(large, tmp_path / "b", PLAN, dtype="fp16", targets=("onnx", "pt2"))
    told = bundle.manifest.rescaling
    assert told is not None
    assert told["residual"] > 0
    assert told["inner"] > 0
    assert told["largest"]["value"] > LARGEST
    assert told["headroom"] >= HEADROOM
    assert told["weights"]["shared.weight"] == -told["residual"]
    epsilon = json.loads((bundle.directory / "config.json").read_text())["layer_norm_epsilon"]
    assert epsilon == math.ldexp(1e-6, -2 * told["residual"])
    # Each tensor once, though PLAN re-uses some of them.
    stored = load_file(bundle.weights)
    original = load_file(large / "model.safetensors")
    for name, value in stored.items():
        if not name.startswith("_pad"):
            power = next((power for end, power in told["weights"].items() if name.endswith(end)), 0)
            assert torch.equal(value, (original[name] * 2.0**power).half()), name


def test_tiny_weights_are_counted(tmp_path: Path) -> None:
    checkpoint = overflowing(t5_checkpoint(tmp_path / "t5", layers=2))
    weights = load_file(checkpoint / "model.safetensors")
    table = weights["shared.weight"]
    table.view(-1)[:1000] = 1e-3  # far below the rest, and below fp16's normal range once the stream is rescaled
    table.view(-1)[1000:1010] = 0.0  # zeros lose nothing
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    bundle = export(checkpoint, tmp_path / "b", dtype="fp16")
    told = bundle.manifest.rescaling
    assert told is not None
    stored = load_file(bundle.weights)
    count = sum(
        int(((value.abs() < 2.0**-14) & (weights[name] != 0)).sum())
        for name, value in stored.items()
        if not name.startswith("_pad")
    )
    assert told["subnormal_weights"] == count >= 1000


def test_verify_states_the_headroom_and_fails_without_any(large: Path, tmp_path: Path) -> None:
    for moved in (True, False):
        bundle = export(large, tmp_path / str(moved), PLAN, dtype="fp16", rescale=moved)
        for checkpoint in (None, large):
            report = verify(bundle, open_target(bundle), reference=checkpoint)
            assert report.headroom is not None
            assert report.headroom.factor == pytest.approx(LARGEST / report.headroom.value)
            assert (report.headroom.factor > 1) == moved
            # ONNX Runtime computes in fp32 here: nothing overflows, and only the head-room tells.
            assert report.passed == moved
            assert moved or "it overflows; export to bf16" in report.failures[0]


def test_weights_that_fp16_cannot_hold_are_verified_too(tmp_path: Path) -> None:
    """Rescaled they fit; the reference must not round them to fp16 as they were."""
    checkpoint = overflowing(soften(t5_checkpoint(tmp_path / "t5", layers=2)))
    weights = load_file(checkpoint / "model.safetensors")
    for name in weights:
        if name == "shared.weight" or name.endswith((".o.weight", ".wo.weight")):
            weights[name] *= 100.0
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    assert weights["shared.weight"].abs().max() > LARGEST
    bundle = export(checkpoint, tmp_path / "b", dtype="fp16", targets=("pt2",))
    report = verify(bundle, open_target(bundle, "pt2"), reference=checkpoint)
    assert report.passed, report.failures


def test_bert_needs_none_and_says_how_far_it_reaches(tmp_path: Path) -> None:
    bundle = export(bert_checkpoint(tmp_path / "bert"), tmp_path / "b", dtype="fp16")
    told = bundle.manifest.rescaling
    assert told is not None
    assert (told["residual"], told["inner"], told["weights"]) == (0, 0, {})
    assert told["headroom"] > 100


def test_an_activation_that_cannot_be_made_small_is_warned_of(tmp_path: Path) -> None:
    checkpoint = t5_checkpoint(tmp_path / "t5", layers=1)
    weights = load_file(checkpoint / "model.safetensors")
    weights["encoder.block.0.layer.1.DenseReluDense.wi_0.weight"] *= 1e5  # before the gelu, whose scale cannot move
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    exported = export_checkpoint(checkpoint, tmp_path / "b", ExportOptions(dtype="fp16"))
    [warning] = [warning for warning in exported.warnings if "fp16 overflows" in warning]
    assert "feed_forward.DenseReluDense.wi_0.out" in warning
    assert "use bf16" in warning


@pytest.mark.parametrize("tokenizer", [True, False])
def test_prompts_and_random_ids(tokenizer: bool, tmp_path: Path) -> None:
    checkpoint = soften(t5_checkpoint(tmp_path / "t5", layers=2, tokenizer=tokenizer))
    tokens = []
    for prompts in (None, ["a"], ["a" * 100, "b" * 200]):
        bundle = export(checkpoint, tmp_path / "b", dtype="fp16", prompts=prompts)
        tokens.append((bundle.manifest.rescaling or {})["tokens"])
    assert tokens[1:] == ([3, 403] if tokenizer else [1024, 1024])  # bytes, an end each, padded; the empty one
    assert tokens[0] > 512
