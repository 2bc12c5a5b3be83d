"""Configurations: each is read by NVIDIA's schema, and the three fit together, whatever is chosen."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from google.protobuf import text_format
from hypothesis import assume, given
from hypothesis import strategies as st
from tritonclient.grpc import model_config_pb2 as schema
from tritonclient.grpc.model_config_pb2 import ModelConfig

from skrr_export.bundle import Bundle
from skrr_export.errors import InputError
from skrr_export.outputs import LAST, Output
from skrr_export.pipelines import PRESETS
from skrr_export.pipelines.rows import finish
from skrr_export.triton.choices import BACKENDS, Choices, Serving, decide
from skrr_export.triton.config import ENCODED, encoder_config, ensemble_config, finisher_config, tokenizer_config
from skrr_export.triton.pbtxt import to_text
from tests.test_bundle import outputs
from tests.triton.manifests import bundle, engine


@st.composite
def servings(draw: st.DrawFn) -> Serving:
    """Every combination that is not refused."""
    preset = PRESETS[draw(st.sampled_from(sorted(PRESETS)))]
    preset = replace(preset, chat=None, prefix_on_top=False, outputs=draw(outputs(2)))
    length = preset.max_length
    dtype = draw(st.sampled_from(["fp32", "fp16", "bf16"]))
    made: Bundle = bundle(
        preset,
        dtype,
        batch=draw(st.sampled_from([None, 1, 3])),
        sequence=draw(st.sampled_from([None, length])),
    )
    made.manifest.targets["tensorrt"] = engine(f"1x1:1x{length}:{draw(st.integers(1, 16))}x{length}")  # type: ignore[index]
    chosen = Choices(
        name=draw(st.sampled_from([None, "my-encoder"])),
        backend=draw(st.sampled_from([None, *BACKENDS])),
        device=draw(st.sampled_from(["cpu", "cuda"])),
        instances=draw(st.integers(1, 5)),
        max_batch=draw(st.none() | st.integers(1, 20)),
        threads=draw(st.none() | st.integers(1, 64)),
    )
    try:
        return decide(made, chosen)
    except InputError:
        assume(False)
        raise


def parse(message: Any) -> ModelConfig:
    return text_format.Parse(to_text(message), ModelConfig())


def tensors(fields: Any) -> dict[str, tuple[int, list[int]]]:
    """Type and dimensions by name."""
    return {field.name: (field.data_type, list(field.dims)) for field in fields}


def configurations(serving: Serving) -> dict[str, ModelConfig]:
    """Of every model, by name."""
    makers = [tokenizer_config, encoder_config, ensemble_config]
    if serving.finisher is not None:
        makers.append(finisher_config)
    found = [parse(make(serving)) for make in makers]
    return {model.name: model for model in found}


@given(servings())
def test_the_models_fit_together(serving: Serving) -> None:
    """Every tensor that a step reads is made by an earlier one with the same type and dimensions."""
    models = configurations(serving)
    assert sorted(models) == sorted(serving.models)
    assert {model.max_batch_size for model in models.values()} == {serving.max_batch}
    ensemble = models[serving.name]
    known = tensors(ensemble.input)
    assert known == tensors(models[serving.tokenizer].input)
    steps = ensemble.ensemble_scheduling.step
    assert [serving.name, *(step.model_name for step in steps)] == serving.models
    for step in steps:
        model = models[step.model_name]
        assert {name: known[inner] for name, inner in step.input_map.items()} == tensors(model.input)
        given_ = tensors(model.output)
        known |= {inner: given_[name] for name, inner in step.output_map.items()}
    assert tensors(ensemble.output).items() <= known.items()


@given(servings())
def test_clients_get_what_python_gives(serving: Serving) -> None:
    ensemble, manifest = configurations(serving)[serving.name], serving.manifest
    rows, length = manifest.batch or 2, serving.longest
    sizes = {"batch": rows, "sequence": length}
    shapes = {entry.output.name: [sizes.get(str(size), size) for size in entry.shape] for entry in manifest.outputs}
    mask = np.arange(length) < np.full((rows, 1), length // 2)
    made = finish(
        manifest.pipeline,
        {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()},
        mask.astype(np.int64),
    )
    if manifest.rows is None:
        made.pop("output_mask", None)  # there are no rows
    made["attention_mask"] = mask
    told = tensors(ensemble.output)
    assert list(told) == list(made)
    for name, (_, dims) in told.items():
        shape = made[name].shape if serving.max_batch == 0 else made[name].shape[1:]
        assert len(dims) == len(shape)
        assert all(size in (-1, real) for size, real in zip(dims, shape, strict=True))
        fixed = manifest.pipeline.padding == "max_length" and manifest.pipeline.unconditional != "bare"
        packed = manifest.pipeline.padding_rows == "packed"
        if fixed and not (packed and name != "attention_mask"):
            assert -1 not in dims


@given(servings())
def test_the_encoders_tensors_are_the_manifests(serving: Serving) -> None:
    encoder, manifest = parse(encoder_config(serving)), serving.manifest
    rows = [] if manifest.batch is None else [manifest.batch]
    assert list(tensors(encoder.input)) == list(manifest.inputs)
    assert set(map(str, tensors(encoder.input).values())) == {str((schema.TYPE_INT64, [*rows, serving.length]))}
    given_ = tensors(encoder.output)
    assert list(given_) == [entry.output.name for entry in manifest.outputs]
    widened = serving.device == "cpu" or (serving.backend == "python" and manifest.dtype.name == "bf16")
    for entry, (kind, dims) in zip(manifest.outputs, given_.values(), strict=True):
        assert dims == [*rows, *(serving.length if size == "sequence" else size for size in entry.shape[1:])]
        assert kind == getattr(schema, f"TYPE_{'FP32' if widened else manifest.dtype.name.upper()}")


def test_rows_that_the_pipeline_rearranges_pass_a_model_more() -> None:
    outputs_ = (LAST, Output("text_embeds"))
    cropped = replace(PRESETS["hunyuanvideo/text_encoder"], outputs=outputs_)
    for preset, finisher in (
        (PRESETS["flux.1/text_encoder_2"], None),
        (PRESETS["auraflow"], "t5_rows"),  # zeroed
        (PRESETS["chroma"], "t5_rows"),  # another mask
        (cropped, "t5_rows"),
        (replace(cropped, outputs=outputs_[1:]), None),  # there are no rows
    ):
        assert decide(bundle(preset), Choices(name="t5")).finisher == finisher
    ensemble = parse(ensemble_config(decide(bundle(cropped), Choices(name="t5"))))
    assert {name: dims for name, (_, dims) in tensors(ensemble.output).items()} == {
        "last_hidden_state": [256, 37],
        "text_embeds": [29],
        "output_mask": [256],
        "attention_mask": [351],
    }
    assert dict(ensemble.ensemble_scheduling.step[2].input_map)["last_hidden_state"] == ENCODED


@given(servings())
def test_each_is_batched_warmed_up_and_placed(serving: Serving) -> None:
    for model in (parse(tokenizer_config(serving)), parse(encoder_config(serving))):
        assert model.version_policy.latest.num_versions == 1
        assert model.HasField("dynamic_batching") == (serving.max_batch > 1)
        sizes = list(model.dynamic_batching.preferred_batch_size)
        assert sizes == sorted(set(sizes))
        assert not sizes or sizes[-1] == serving.max_batch
        assert model.model_warmup[0].batch_size == 1
        for warmup in model.model_warmup:
            assert set(warmup.inputs) == {each.name for each in model.input}
            assert all(min(each.dims) > 0 and each.zero_data for each in warmup.inputs.values())
    [group] = parse(encoder_config(serving)).instance_group
    assert group.count == serving.instances
    assert group.kind == (group.KIND_CPU if serving.device == "cpu" else group.KIND_GPU)
    [alone] = parse(tokenizer_config(serving)).instance_group
    assert (alone.count, alone.kind) == (1, alone.KIND_CPU)


def parameters(model: ModelConfig) -> dict[str, str]:
    return {name: value.string_value for name, value in model.parameters.items()}


def test_parameters_are_those_the_backend_knows() -> None:
    python = decide(bundle(), Choices(threads=3))
    native = decide(bundle(), Choices(backend="onnxruntime", threads=3))
    assert parameters(parse(encoder_config(python))) == {"check_hashes": "true", "intra_op_thread_count": "3"}
    assert parameters(parse(encoder_config(native))) == {"intra_op_thread_count": "3"}
    assert parameters(parse(encoder_config(decide(bundle(), Choices(device="cuda"))))) == {}
    assert parameters(parse(tokenizer_config(python))) == {"max_characters": "8192"}


def test_a_gpu_is_warmed_up_with_the_largest_batch_too() -> None:
    on_gpu = parse(encoder_config(decide(bundle(), Choices(device="cuda", max_batch=6))))
    assert [warmup.batch_size for warmup in on_gpu.model_warmup] == [1, 6]
    assert list(on_gpu.instance_group[0].gpus) == []
    python = parse(encoder_config(decide(bundle(), Choices(device="cuda", backend="python"))))
    assert list(python.instance_group[0].gpus) == [0]
