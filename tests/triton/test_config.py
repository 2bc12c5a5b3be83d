"""Configurations: each is read by NVIDIA's schema, and the three fit together, whatever is chosen."""

from __future__ import annotations

from typing import Any

from google.protobuf import text_format
from hypothesis import assume, given
from hypothesis import strategies as st
from tritonclient.grpc import model_config_pb2 as schema
from tritonclient.grpc.model_config_pb2 import ModelConfig

from skrr_export.bundle import Bundle
from skrr_export.errors import InputError
from skrr_export.pipelines import PRESETS
from skrr_export.triton.choices import BACKENDS, Choices, Serving, decide
from skrr_export.triton.config import encoder_config, ensemble_config, tokenizer_config
from skrr_export.triton.pbtxt import to_text
from tests.triton.manifests import bundle, engine


@st.composite
def servings(draw: st.DrawFn) -> Serving:
    """Every combination that is not refused."""
    pipeline = draw(st.sampled_from(sorted(PRESETS)))
    length = PRESETS[pipeline].max_length
    dtype = draw(st.sampled_from(["fp32", "fp16", "bf16"]))
    made: Bundle = bundle(
        pipeline,
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


@given(servings())
def test_the_models_fit_together(serving: Serving) -> None:
    tokenizer, encoder, ensemble = (
        parse(make(serving)) for make in (tokenizer_config, encoder_config, ensemble_config)
    )
    assert [model.max_batch_size for model in (tokenizer, encoder, ensemble)] == [serving.max_batch] * 3
    made = tensors(tokenizer.output)
    assert tensors(encoder.input).items() <= made.items()
    assert tensors(ensemble.input) == tensors(tokenizer.input)
    mask = made["attention_mask"]
    assert tensors(ensemble.output) == {"attention_mask": mask, **tensors(encoder.output)}
    first, second = ensemble.ensemble_scheduling.step
    assert [first.model_name, second.model_name] == [tokenizer.name, encoder.name]
    assert dict(first.output_map) == {name: name for name in made}
    assert dict(second.input_map) == {each.name: each.name for each in encoder.input}


@given(servings())
def test_the_encoders_tensors_are_the_manifests(serving: Serving) -> None:
    encoder, manifest = parse(encoder_config(serving)), serving.manifest
    padded = manifest.pipeline.padding == "max_length"
    length = manifest.pipeline.max_length if padded else -1
    rows = [] if manifest.batch is None else [manifest.batch]
    assert list(tensors(encoder.input)) == list(manifest.inputs)
    assert set(map(str, tensors(encoder.input).values())) == {str((schema.TYPE_INT64, [*rows, length]))}
    [(kind, dims)] = tensors(encoder.output).values()
    assert dims == [*rows, length, manifest.hidden_size]
    widened = serving.device == "cpu" or (serving.backend == "python" and manifest.dtype.name == "bf16")
    assert kind == getattr(schema, f"TYPE_{'FP32' if widened else manifest.dtype.name.upper()}")


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
