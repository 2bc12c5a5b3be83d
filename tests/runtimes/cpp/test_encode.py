"""Embeddings and token ids of the C++ runtime, against Python's session and against transformers itself.

It cannot see what needs a GPU.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from runtimes.cpp.binding import CallError, Library
from skrr_export.bundle import Bundle, open_bundle
from skrr_export.prompts import calibration_prompts, default_prompts
from skrr_export.targets import open_target
from skrr_export.tokenization import Tokenizer, encode_prompts
from tests import reference
from tests.bundles import PLAN, export, random_ids, random_mask, relative_error, run_python
from tests.checkpoints import bert_checkpoint
from tests.runtimes.cpp import building
from tests.runtimes.cpp.building import Installation
from tests.runtimes.cpp.conftest import SPECS
from tests.runtimes.damage import edit

BundleOf = Callable[[str], Bundle]

PROMPTS = ["a cat", "", "two dogs on a hill, oil on canvas", "ein Bär, 熊, медведь", " spaced  out "]
ROUNDED = {"bf16": torch.bfloat16, "fp16": torch.float16}


@pytest.mark.parametrize("name", SPECS)
def test_prompts_give_what_pythons_session_gives(name: str, bundle_of: BundleOf, library: Library) -> None:
    bundle = bundle_of(name)
    ours = library.open(bundle.directory).encode(PROMPTS)
    truth = encode_prompts(open_target(bundle), PROMPTS)
    for array in ("input_ids", "attention_mask"):
        np.testing.assert_array_equal(ours[array], truth[array])
    assert relative_error(ours["last_hidden_state"], truth["last_hidden_state"]) < 1e-5


@pytest.mark.parametrize("name", [name for name in SPECS if name != "fixed"])
@pytest.mark.parametrize("shape", [(1, 1), (3, 23), (2, 100)], ids=str)
def test_ids_give_what_transformers_gives(
    name: str, shape: tuple[int, int], bundle_of: BundleOf, library: Library, t5: Path
) -> None:
    random = np.random.default_rng(0)
    ids, mask = random_ids(random, *shape), random_mask(random, *shape)
    given = mask if bundle_of(name).manifest.pipeline.masked else None
    encoder = library.open(bundle_of(name).directory)
    assert encoder.info["computes_in"] == "fp32"
    hidden = encoder.encode_ids(ids, given)["last_hidden_state"]
    truth = reference.encode(t5, PLAN, ids, given, rounded_to=ROUNDED.get(name, torch.float32))
    assert relative_error(hidden, truth) < 2e-5


def test_no_mask_is_all_ones(bundle_of: BundleOf, library: Library) -> None:
    encoder, ids = library.open(bundle_of("plain").directory), random_ids(np.random.default_rng(1), 2, 9)
    without, ones = encoder.encode_ids(ids), encoder.encode_ids(ids, np.ones_like(ids))
    np.testing.assert_array_equal(without["last_hidden_state"], ones["last_hidden_state"])
    np.testing.assert_array_equal(without["attention_mask"], np.ones_like(ids))


def test_more_prompts_than_a_batch(bundle_of: BundleOf, library: Library) -> None:
    """They are run 8 at a time, or as many as are fixed, and padded as one."""
    prompts = default_prompts()[:19]
    for name in ("plain", "fixed"):
        ours = library.open(bundle_of(name).directory).encode(prompts)
        truth = encode_prompts(open_target(bundle_of(name)), prompts)
        np.testing.assert_array_equal(ours["input_ids"], truth["input_ids"])
        assert relative_error(ours["last_hidden_state"], truth["last_hidden_state"]) < 1e-5


# Token ids


def _same_ids(bundle: Bundle, library: Library, prompts: list[str]) -> None:
    ours, truth = library.open(bundle.directory).tokenize(prompts), Tokenizer.of_bundle(bundle)(prompts)
    np.testing.assert_array_equal(ours["input_ids"], truth.input_ids)
    np.testing.assert_array_equal(ours["attention_mask"], truth.attention_mask)


@pytest.mark.parametrize("name", ["plain", "unmasked", "lowercase", "fixed"])
def test_ids_of_all_shipped_prompts(name: str, bundle_of: BundleOf, library: Library) -> None:
    """The fixed bundle's 24 tokens cut most of them."""
    _same_ids(bundle_of(name), library, [*default_prompts(), *calibration_prompts()])


def test_prompts_are_lower_cased_in_every_script(
    bundle_of: BundleOf, library: Library, installation: Installation
) -> None:
    if "of every script" not in installation.summary:
        pytest.skip("this build has no ICU")
    spaces = "\t\n\x0b\x0c\r\x1c\x1d\x1e\x1f \x85\xa0\u1680\u2000\u200a\u2028\u2029\u202f\u205f\u3000"
    words = [
        "ÄÖÜ ÉÈ Å",
        "МЕДВЕДЬ",
        "ΟΔΥΣΣΕΥΣ ΣΑΣ Σ",
        "İSTANBUL I",
        "ǅ Ǆ ẞ",
        "\uff21\uff22\uff23",
        "\U00010400 Deseret",
        "K Å signs",
    ]
    prompts = [*words, *(f"{space}A cat{space}" for space in spaces), spaces, "\u200bA\u200b", "\ufeffA"]
    _same_ids(bundle_of("lowercase"), library, prompts)


@pytest.mark.parametrize("prompt", ["a </s> b", "<extra_id_7>", "<pad>"])
def test_special_tokens_in_a_prompt_are_refused(prompt: str, bundle_of: BundleOf, library: Library) -> None:
    encoder = library.open(bundle_of("plain").directory)
    with pytest.raises(CallError, match=r"^a prompt holds '<.*>', which transformers reads as a token"):
        encoder.encode(["fine", prompt])


def test_they_are_looked_for_in_what_the_tokenizer_gets(bundle_of: BundleOf, library: Library) -> None:
    with pytest.raises(CallError, match="a prompt holds '</s>'"):
        library.open(bundle_of("lowercase").directory).encode(["a </S> b"])


@pytest.mark.parametrize("name", ["bert", "wordpiece"])
def test_other_tokenizers_are_openvinos(name: str, bundle_of: BundleOf, library: Library) -> None:
    """Byte-level BPE and WordPiece; prompts beyond the 71 tokens of this BERT are cut there."""
    bundle = changed_manifest(bundle_of(name), lambda document: document["pipeline"].update(max_length=71))
    _same_ids(bundle, library, [*default_prompts(), *calibration_prompts(), "a [SEP] b </s> c"])
    ours = library.open(bundle.directory).encode(PROMPTS)
    truth = encode_prompts(open_target(bundle), PROMPTS)
    assert relative_error(ours["last_hidden_state"], truth["last_hidden_state"]) < 1e-5


def changed_manifest(bundle: Bundle, change: Callable[[Any], object]) -> Bundle:
    """A copy of a bundle that says something else of itself."""
    directory = Path(tempfile.mkdtemp(dir=bundle.directory.parent)) / "b"
    shutil.copytree(bundle.directory, directory)
    edit(change)(directory)
    return open_bundle(directory)


def test_a_tokenizer_for_python_only_is_said(bundle_of: BundleOf, library: Library, bert: Path) -> None:
    bundle = changed_manifest(bundle_of("bert"), lambda document: document.update(tokenizer=None))
    encoder, random = library.open(bundle.directory), np.random.default_rng(2)
    assert encoder.info["tokenizes"] is False
    with pytest.raises(CallError, match=rf"^{bundle.directory} carries a tokenizer for Python only, so here it takes"):
        encoder.encode(["a cat"])
    ids, mask = random_ids(random, 2, 30), random_mask(random, 2, 30)
    hidden = encoder.encode_ids(ids, mask)["last_hidden_state"]
    assert relative_error(hidden, reference.encode(bert, None, ids, mask)) < 2e-5


def test_no_tokenizer_is_said(library: Library, tmp_path: Path, remembered_traces: None) -> None:
    bundle = export(bert_checkpoint(tmp_path / "bert"), tmp_path / "b")
    with pytest.raises(
        CallError, match=f"^{bundle.directory} carries no tokenizer, so it takes token ids only; export"
    ):
        library.open(bundle.directory).encode(["a cat"])


def test_without_its_plug_in_the_library_takes_ids_and_says_why(
    installation: Installation, bundle_of: BundleOf, tmp_path: Path
) -> None:
    shutil.copy(installation.library, tmp_path)
    code = """
import sys
from pathlib import Path
from runtimes.cpp.binding import CallError, Library
encoder = Library(Path(sys.argv[1])).open(Path(sys.argv[2]))
print(encoder.info["tokenizes"], *encoder.self_test())
try:
    encoder.encode(["a cat"])
except CallError as error:
    print(error)
"""
    answer = run_python(code, tmp_path / "libskrr.so", bundle_of("bert").directory).stdout
    tested, refused = answer.splitlines()
    assert tested.startswith("False True self-test: 4 vectors")
    assert tested.endswith("token ids not checked: passed")
    assert re.search("needs OpenVINO Tokenizers: libskrr_openvino.so: .*; configure skrr with -DOPENVINO_TOK", refused)


# Programs that link the installed library


@pytest.mark.parametrize("example", ["example_cpp", "example_c"])
def test_examples_run(example: str, installation: Installation, bundle_of: BundleOf) -> None:
    program = installation.prefix.parent / "examples" / example
    size, *norms = building.run(program, bundle_of("plain").directory, "a cat", "two dogs").splitlines()
    truth = encode_prompts(open_target(bundle_of("plain")), ["a cat", "two dogs"])["last_hidden_state"]
    assert size == " ".join(map(str, ("last_hidden_state", *truth.shape)))
    np.testing.assert_allclose(np.array(norms, float), np.linalg.norm(truth[:, 0], axis=-1), rtol=1e-4)


@pytest.mark.parametrize("name", ["plain", "bf16", "unmasked", "wordpiece"])
def test_many_threads_share_an_encoder(name: str, installation: Installation, bundle_of: BundleOf) -> None:
    program = installation.prefix.parent / "threads" / "threads"
    assert building.run(program, bundle_of(name).directory) == "96 batches, 0 wrong\n"
