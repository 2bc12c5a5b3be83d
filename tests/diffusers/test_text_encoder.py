"""An exported encoder as a pipeline sees it: called, moved, offloaded, saved, and asked for what it has not."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import skrr_export.diffusers
from skrr_export.bundle import Bundle
from skrr_export.diffusers import TextEncoder, load_text_encoder, text_encoder
from skrr_export.dtypes import BF16
from skrr_export.errors import BundleError, InputError, OutputError
from tests.bundles import export, relative_error, soften
from tests.checkpoints import t5_checkpoint
from tests.diffusers.sessions import ModelSession
from tests.pipelines.calls import PIPELINES

LAYERS = 3
TOLERANCE = 5e-5  # as in tests/encoders/test_t5.py
IDS = torch.tensor([[11, 12, 13, 1, 0, 0], [7, 9, 11, 13, 15, 1]])
MASK = (IDS != 0).long()

pytestmark = pytest.mark.usefixtures("remembered_traces")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return soften(t5_checkpoint(tmp_path_factory.mktemp("t5") / "checkpoint", layers=LAYERS))


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> Any:
    return transformers.T5EncoderModel.from_pretrained(checkpoint, attn_implementation="eager").eval()


@pytest.fixture(scope="module")
def masked(checkpoint: Path) -> Bundle:
    return export(checkpoint, checkpoint.with_name("masked.bundle"))


@pytest.fixture
def encoder(masked: Bundle) -> TextEncoder:
    return load_text_encoder(masked.directory)


class TestCall:
    @pytest.mark.parametrize(
        ("args", "kwargs"),
        [
            ((), {"input_ids": IDS, "attention_mask": MASK}),
            ((IDS, MASK), {}),
            ((IDS, MASK.bool()), {"return_dict": True, "output_hidden_states": False}),
            ((IDS.int(),), {"attention_mask": MASK.float(), "output_attentions": True, "use_cache": False}),
            ((IDS, MASK), {"position_ids": torch.arange(6)[None], "token_type_ids": torch.zeros_like(IDS)}),
            ((IDS, MASK), {"inputs_embeds": None}),
        ],
        ids=["by name", "by position", "bool", "int32 and float", "what changes nothing", "None"],
    )
    def test_gives_what_the_model_gives(
        self, args: Any, kwargs: Any, encoder: TextEncoder, model: Any, same: Callable[[Any, Any], None]
    ) -> None:
        given, expected = encoder(*args, **kwargs), model(IDS, MASK)
        same(given.last_hidden_state, expected.last_hidden_state)
        assert given[0] is given.last_hidden_state
        assert given.hidden_states is None
        assert not given[0].requires_grad

    def test_without_a_mask_every_token_counts(
        self, encoder: TextEncoder, model: Any, same: Callable[[Any, Any], None]
    ) -> None:
        same(encoder(IDS)[0], model(IDS)[0])

    @pytest.mark.parametrize(
        ("architecture", "is_a"),
        [
            ("Qwen3ForCausalLM", transformers.Qwen3ForCausalLM),
            ("Qwen3Model", transformers.Qwen3Model),
            ("OfSomeRepository", transformers.PreTrainedModel),
            ("pipeline", transformers.PreTrainedModel),
            (None, transformers.PreTrainedModel),
        ],
    )
    def test_its_class_is_the_one_that_the_configuration_names(
        self, architecture: str | None, is_a: type, tmp_path: Path
    ) -> None:
        session = stubbed("z-image", tmp_path).text_encoder.session
        path = tmp_path / "text_encoder" / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "architectures": architecture and [architecture]}))
        encoder = text_encoder(session)
        assert isinstance(encoder, is_a)
        assert hasattr(encoder(IDS), "logits") is (architecture == "Qwen3ForCausalLM")

    def test_as_a_tuple(self, encoder: TextEncoder, model: Any) -> None:
        given = encoder(IDS, MASK, return_dict=False, output_hidden_states=True)
        expected = model(IDS, MASK, return_dict=False, output_hidden_states=True)
        assert isinstance(given, tuple)
        assert [type(value) for value in given] == [type(value) for value in expected]

    def test_hidden_states_when_the_configuration_says_so(self, encoder: TextEncoder) -> None:
        encoder.config.output_hidden_states = True
        assert len(encoder(IDS).hidden_states) == LAYERS + 1

    @pytest.mark.parametrize(
        ("kwargs", "message"),
        [
            ({"position_ids": torch.arange(6).flip(0)[None]}, "positions from 0"),
            ({"position_ids": torch.arange(5)[None]}, "positions from 0"),
            ({"token_type_ids": torch.ones_like(IDS)}, "no token_type_ids"),
            ({"inputs_embeds": torch.zeros(2, 6, 37)}, "no inputs_embeds"),
            ({"attention_mask": MASK[:, :5]}, "attention_mask is"),
        ],
    )
    def test_refuses_what_would_change_the_result(self, kwargs: Any, message: str, encoder: TextEncoder) -> None:
        with pytest.raises(InputError, match=message):
            encoder(IDS, **kwargs)


class TestMaskless:
    """Of a pipeline that passes its encoder no mask."""

    def test_takes_a_mask_of_ones(self, tmp_path: Path) -> None:
        encoder = stubbed("flux.1", tmp_path).text_encoder_2
        expected = encoder(IDS)[0]
        for mask in (torch.ones_like(IDS), torch.ones_like(IDS).bool()):
            unchanged(encoder(IDS, mask)[0], expected)

    def test_refuses_a_mask_with_padding(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"'flux\.1', which passes its encoder no attention_mask"):
            stubbed("flux.1", tmp_path).text_encoder_2(IDS, MASK)


class TestUnexported:
    def test_the_last_of_a_t5_is_exported_and_the_others_are_there_to_look_at(
        self, encoder: TextEncoder, model: Any, same: Callable[[Any, Any], None]
    ) -> None:
        given = encoder(IDS, MASK, output_hidden_states=True).hidden_states
        expected = model(IDS, MASK, output_hidden_states=True).hidden_states
        same(given[-1], expected[-1])
        for one, other in zip(given[:-1], expected[:-1], strict=True):
            assert (one.shape, one.ndim, one.dim(), one.size(1)) == (other.shape, other.ndim, other.dim(), 6)
            assert (one.dtype, one.is_floating_point()) == (torch.float32, True)
            assert "is not exported" in repr(one)

    @pytest.mark.parametrize(
        "use",
        [
            lambda states: states[1] + 1,
            lambda states: states[-3][0],
            lambda states: states[1].repeat(1, 2, 1),
            lambda states: torch.cat([states[-1], states[1]], dim=-1),
            lambda states: torch.stack(states[1:]),
            lambda states: torch.stack(tensors=states),
            lambda states: len(states[1]),
            lambda states: states[1].to("cpu", torch.float16).view(-1),
            lambda states: states[1].numpy(),
            lambda states: torch.nn.functional.linear(input=states[1], weight=torch.ones(1, 37)),
        ],
    )
    def test_the_others_raise_when_they_are_used(self, use: Callable[[Any], Any], encoder: TextEncoder) -> None:
        with pytest.raises(InputError, match=r"hidden_states\[[0-2]\] is not exported: .*gives last_hidden_state"):
            use(encoder(IDS, output_hidden_states=True).hidden_states)

    def test_the_last_state_of_a_clip_is_not_normed_and_so_another_tensor(self, tmp_path: Path) -> None:
        given = stubbed("stable-cascade", tmp_path).text_encoder(IDS, output_hidden_states=True)
        assert given.hidden_states[-1].sum().isfinite()
        with pytest.raises(InputError, match=r"last_hidden_state is not exported.*gives hidden_states\[3\]"):
            given.last_hidden_state.sum()

    def test_layers_are_no_attributes(self, encoder: TextEncoder) -> None:
        assert not hasattr(encoder, "text_model")
        with pytest.raises(InputError, match="has no 'encoder'"):
            _ = encoder.encoder

    def test_what_takes_weights_is_refused(self, encoder: TextEncoder) -> None:
        with pytest.raises(InputError, match="no embeddings"):
            encoder.get_input_embeddings()
        with pytest.raises(InputError, match="writes no text"):
            encoder.generate(IDS)

    @pytest.mark.parametrize(
        ("name", "call", "message"),
        [
            ("sd1.5", {"device": "cpu", "num_images_per_prompt": 1, "do_classifier_free_guidance": False}, "hidden_st"),
            ("sdxl", {}, r"hidden_states\[1\] is not exported.*gives hidden_states\[2\]"),
            ("sd3", {"prompt_2": None, "prompt_3": None}, r"hidden_states\[1\].*gives hidden_states\[2\] and text_em"),
        ],
    )
    def test_clip_skip_is_refused(self, name: str, call: dict[str, Any], message: str, tmp_path: Path) -> None:
        pipe = stubbed(name, tmp_path)
        with pytest.raises(InputError, match=message):
            pipe.encode_prompt("a cat", clip_skip=1, **call)

    def test_another_pipelines_encoder_is_refused(self, tmp_path: Path) -> None:
        pipe = stubbed("flux.1", tmp_path)
        pipe.text_encoder = stubbed("sd1.5", tmp_path / "other").text_encoder
        with pytest.raises(InputError, match=r"pooler_output is not exported.*for the pipeline 'sd1\.5'"):
            pipe.encode_prompt("a cat", None)


class TestModule:
    def test_holds_no_weights(self, encoder: TextEncoder) -> None:
        assert encoder.num_parameters() == 0
        assert not encoder.eval().train(False).requires_grad_(False).training

    def test_outputs_have_its_dtype(self, encoder: TextEncoder) -> None:
        expected = encoder(IDS)[0]
        assert (encoder.dtype, expected.dtype) == (torch.float32, torch.float32)
        for convert in (lambda: encoder.to(torch.bfloat16), encoder.half, lambda: encoder.to("cpu", torch.float64)):
            given = convert()(IDS, output_hidden_states=True)
            assert {state.dtype for state in (given[0], *given.hidden_states)} == {encoder.dtype}
            torch.testing.assert_close(given[0], expected.to(encoder.dtype), rtol=0, atol=0)

    def test_a_half_precision_bundle_gives_its_own_dtype(self, encoder: TextEncoder) -> None:
        bundle = encoder.session.bundle
        encoder.session.bundle = replace(bundle, manifest=replace(bundle.manifest, dtype=BF16))
        assert text_encoder(encoder.session)(IDS)[0].dtype == torch.bfloat16

    def test_device_is_what_it_was_moved_to_and_outputs_go_where_the_ids_are(self, encoder: TextEncoder) -> None:
        assert encoder.device == torch.device("cpu")
        assert encoder.to("meta").device == torch.device("meta")
        assert encoder(IDS)[0].device == torch.device("cpu")

    def test_a_pipeline_moves_and_converts_it(self, tmp_path: Path) -> None:
        pipe = stubbed("flux.1", tmp_path).to("cpu", torch.bfloat16)
        assert (pipe.device, pipe.dtype) == (torch.device("cpu"), torch.bfloat16)
        embeds, pooled, _ = pipe.encode_prompt("a cat", None)
        assert (embeds.dtype, pooled.dtype) == (torch.bfloat16, torch.bfloat16)

    def test_options_are_those_of_a_session(self, masked: Bundle) -> None:
        encoder = load_text_encoder(masked.directory, "onnx", "cpu", mode="prepacked", threads=1, runtime="decomposed")
        session: Any = encoder.session
        assert (session.mode, session.runtime) == ("prepacked", "decomposed")
        with pytest.raises(BundleError, match="no target 'pt2'"):
            load_text_encoder(masked.directory, target="pt2")

    def test_what_transformers_cannot_read_is_the_bundles_fault(self, encoder: TextEncoder, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_text('{"model_type": "t5", "num_layers": "three"}')
        encoder.session.bundle = replace(encoder.session.bundle, directory=tmp_path)
        with pytest.raises(BundleError, match=r"cannot read .*config\.json"):
            text_encoder(encoder.session)


class TestOffloading:
    """As far as a machine without an accelerator goes: from the CPU to the CPU."""

    @pytest.fixture(autouse=True)
    def accelerate(self) -> Any:
        return pytest.importorskip("accelerate", reason="offloading is accelerate's")

    def test_of_models_one_after_the_other(self, tmp_path: Path) -> None:
        pipe = stubbed("flux.1", tmp_path)
        expected = pipe.encode_prompt("a cat", None)
        pipe.enable_model_cpu_offload(device="cpu")
        for _ in range(2):
            unchanged(pipe.encode_prompt("a cat", None), expected)
            pipe.maybe_free_model_hooks()
        pipe.remove_all_hooks()
        unchanged(pipe.encode_prompt("a cat", None), expected)

    def test_of_one_layer_after_the_other(self, accelerate: Any, tmp_path: Path) -> None:
        encoder = stubbed("sdxl", tmp_path).text_encoder_2
        expected = encoder(IDS, output_hidden_states=True)
        accelerate.cpu_offload(encoder, "cpu")
        given = encoder(IDS, output_hidden_states=True)
        unchanged([given[0], given.hidden_states[-2]], [expected[0], expected.hidden_states[-2]])
        with pytest.raises(InputError, match="is not exported"):
            given.hidden_states[0].sum()

    @pytest.mark.parametrize("kind", ["leaf_level", "block_level"])
    def test_in_groups(self, kind: str, tmp_path: Path) -> None:
        pipe = stubbed("flux.1", tmp_path)
        expected = pipe.encode_prompt("a cat", None)
        pipe.enable_group_offload(torch.device("cpu"), offload_type=kind, num_blocks_per_group=1)
        unchanged(pipe.encode_prompt("a cat", None), expected)


class TestSaving:
    @pytest.fixture
    def warnings(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        from diffusers.pipelines import pipeline_utils

        caught: list[str] = []
        monkeypatch.setattr(pipeline_utils.logger, "warning", caught.append)
        return caught

    def test_a_saved_pipeline_is_loaded_with_it(
        self, checkpoint: Path, masked: Bundle, model: Any, warnings: list[str], tmp_path: Path
    ) -> None:
        pixart(checkpoint, model).save_pretrained(tmp_path)
        ours = load_text_encoder(masked.directory)
        pipe = type(pixart(checkpoint, ours)).from_pretrained(tmp_path, text_encoder=ours)
        assert pipe.text_encoder is ours
        assert about_encoders(warnings) == []

    def test_a_pipeline_is_saved_with_it(
        self, checkpoint: Path, masked: Bundle, warnings: list[str], tmp_path: Path
    ) -> None:
        pipe = pixart(checkpoint, load_text_encoder(masked.directory))
        expected = pipe.encode_prompt("a cat", max_sequence_length=20)
        pipe.save_pretrained(tmp_path)
        loaded = type(pipe).from_pretrained(tmp_path)
        unchanged(loaded.encode_prompt("a cat", max_sequence_length=20), expected)
        loaded.save_pretrained(tmp_path)
        halved = type(pipe).from_pretrained(tmp_path, torch_dtype=torch.float16).text_encoder
        assert (halved.dtype, halved(IDS)[0].dtype) == (torch.float16, torch.float16)
        replaced = type(pipe).from_pretrained(tmp_path, text_encoder=pipe.text_encoder)
        assert replaced.text_encoder is pipe.text_encoder
        assert about_encoders(warnings) == []

    def test_a_place_that_cannot_be_written_is_named(self, encoder: TextEncoder, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(OutputError, match=r"cannot copy .*masked\.bundle to .*file"):
            encoder.save_pretrained(tmp_path / "file")


def test_the_library_is_not_hidden() -> None:
    import diffusers

    assert diffusers is not skrr_export.diffusers
    assert hasattr(diffusers, "FluxPipeline")


@pytest.fixture
def same() -> Callable[[Any, Any], None]:
    def compare(given: torch.Tensor, expected: torch.Tensor) -> None:
        assert relative_error(given.detach().numpy(), expected.detach().numpy()) < TOLERANCE

    return compare


def unchanged(given: Any, expected: Any) -> None:
    for one, other in zip(given, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def about_encoders(warnings: list[str]) -> list[str]:
    return [warning for warning in warnings if "encoder" in warning]


def stubbed(name: str, directory: Path) -> Any:
    """A pipeline of text encoders only, ours, whose graphs are the models themselves."""
    pipeline = PIPELINES[name]
    return pipeline.make(
        {
            slot: text_encoder(ModelSession(directory / slot, tiny, tiny.make_encoder(0), f"{name}/{slot}"))
            for slot, tiny in pipeline.encoders.items()
        }
    )


def pixart(checkpoint: Path, encoder: Any) -> Any:
    """A whole pipeline with a text encoder of its own."""
    from diffusers import PixArtSigmaPipeline

    from tests.checkpoints import byte_tokenizer
    from tests.diffusers.denoisers import parts

    return PixArtSigmaPipeline(tokenizer=byte_tokenizer("$A </s>"), text_encoder=encoder, **parts("pixart-sigma"))
