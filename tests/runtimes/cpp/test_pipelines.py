"""What pipelines make of prompts and rows: the C++ runtime gives what Python gives, which is compared with diffusers.

See `tests/pipelines`.
"""

from __future__ import annotations

import numpy as np
import pytest

from runtimes.cpp.binding import CallError, Library
from skrr_export.pipelines.rows import finish
from skrr_export.targets import open_target
from skrr_export.tokenization import Tokenizer, encode_prompts
from tests.bundles import relative_error
from tests.runtimes.presets import CLIPS, STAND_INS, BundleFor, prompts_for


def expect_same(ours: dict[str, np.ndarray], truth: dict[str, np.ndarray]) -> None:
    """C++ tells for all rows which are tokens, Python where these are not the tokens' own."""
    rows = [name for name, array in ours.items() if array.ndim > 2]
    assert ours.keys() - {"output_mask"} == truth.keys() - {"output_mask"}
    if rows:
        truth = {"output_mask": truth["attention_mask"], **truth}
    for name, array in ours.items():
        expected = truth[name]
        assert array.shape == expected.shape
        if expected.dtype == np.int64:
            np.testing.assert_array_equal(array, expected, err_msg=name)
        else:
            zero = ~expected.any(axis=-1)
            assert not array[zero].any()
            assert relative_error(array[~zero], expected[~zero]) < 1e-5


@pytest.mark.parametrize("negative", [False, True], ids=["prompts", "negative prompts"])
@pytest.mark.parametrize("key", [*STAND_INS, *CLIPS])
def test_prompts_give_what_python_gives(key: str, negative: bool, bundle_for: BundleFor, library: Library) -> None:
    bundle = bundle_for(key)
    session, encoder = open_target(bundle), library.open(bundle.directory)
    prompts = prompts_for(bundle)
    for batch in (prompts, prompts[:2]):
        ours = encoder.encode(batch, negative=negative)
        expect_same(ours, encode_prompts(session, batch, negative=negative))
        tokens = encoder.tokenize(batch, negative=negative)
        for name in ("input_ids", "attention_mask"):
            np.testing.assert_array_equal(tokens[name], ours[name])


@pytest.mark.parametrize("negative", [False, True], ids=["prompts", "negative prompts"])
@pytest.mark.parametrize("key", ["cropped inside, bare negatives", "packed", "stacked", "sd3/text_encoder"])
def test_ids_give_what_their_prompts_give(key: str, negative: bool, bundle_for: BundleFor, library: Library) -> None:
    bundle = bundle_for(key)
    tokenizer, session, encoder = Tokenizer.of_bundle(bundle), open_target(bundle), library.open(bundle.directory)
    tokens = tokenizer(["a cat", "two dogs on a hill"], negative=negative)
    mask = tokens.attention_mask if encoder.info["masked"] else None
    ours = encoder.encode_ids(tokens.input_ids, mask, negative=negative)
    preset = bundle.manifest.pipeline.negative if negative else bundle.manifest.pipeline
    given = np.ones_like(tokens.input_ids) if mask is None else tokens.attention_mask
    outputs = session.encode(tokens.input_ids, given if bundle.manifest.pipeline.masked else None)
    taken = finish(preset, outputs, given)
    expect_same(ours, {"input_ids": tokens.input_ids, "attention_mask": given, **taken})


@pytest.mark.parametrize("key", [*STAND_INS, *CLIPS])
def test_self_test(key: str, bundle_for: BundleFor, library: Library) -> None:
    bundle = bundle_for(key)
    passed, line = library.open(bundle.directory).self_test()
    assert passed, line
    assert line.endswith("token ids equal: passed")
    several = len(bundle.manifest.outputs) > 1
    assert several == (", relative L2 of " in line) == (", cosine distance of " in line)


def test_what_is_told_of_outputs(bundle_for: BundleFor, library: Library) -> None:
    shapes = {
        "flux.1/text_encoder": {"pooler_output": [None, 39]},
        "sd3/text_encoder": {"hidden_states.3": [None, None, 39], "text_embeds": [None, 29]},
        "stacked": {"hidden_states": [None, 2, None, 37]},
        "concatenated": {"hidden_states": [None, None, 3 * 37]},
    }
    for key, expected in shapes.items():
        outputs = library.open(bundle_for(key).directory).info["outputs"]
        assert {output["name"]: output["shape"] for output in outputs} == expected
        assert [output["pooled"] for output in outputs] == [len(shape) == 2 for shape in expected.values()]


def test_what_is_told_of_the_rules(bundle_for: BundleFor, library: Library) -> None:
    told = ("clean", "unconditional", "unconditional_text", "masked")
    for key, expected in {
        "zeroed": ("text", "encoded", "", True),
        "cropped inside, bare negatives": (None, "bare", "", True),
        "left, in sixteens": (None, "encoded", "", False),
    }.items():
        info = library.open(bundle_for(key).directory).info
        assert tuple(info[name] for name in told) == expected


def test_a_pooled_output_alone_has_no_rows(bundle_for: BundleFor, library: Library) -> None:
    encoder = library.open(bundle_for("flux.1/text_encoder").directory)
    ours = encoder.encode(["a cat", "two dogs"])
    assert ours.keys() == {"input_ids", "attention_mask", "pooler_output"}
    assert ours["pooler_output"].shape == (2, 39)


def test_special_tokens_are_the_pipelines_to_use(bundle_for: BundleFor, library: Library) -> None:
    """In its texts they are tokens; were they none to the library, it would not be used."""
    for key in ("text around, cropped", "chat"):
        bundle = bundle_for(key)
        pipeline, entry = bundle.manifest.pipeline, bundle.manifest.tokenizer
        assert "<|" in pipeline.prefix + pipeline.suffix
        assert entry is not None
        ids = library.open(bundle.directory).tokenize(["a cat"])["input_ids"][0]
        assert {4, 5, 6} & set(ids.tolist())  # <|im_start|>, <|im_end|>, <|eot_id|>


def test_a_mask_where_nothing_reads_it(bundle_for: BundleFor, library: Library) -> None:
    ids = np.ones((1, 16), np.int64)
    with pytest.raises(CallError, match="the pipeline 'sd3' passes its encoder no attention_mask; pass none"):
        library.open(bundle_for("sd3/text_encoder").directory).encode_ids(ids, ids)
