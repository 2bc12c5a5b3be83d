"""Verification of every family, and of every kind of output: what is right passes, and each fault is seen.

But for two graphs the session is one without: tracing takes seconds, and is not what is tested here.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from skrr_export.bundle import Bundle, open_bundle
from skrr_export.cli import cli
from skrr_export.measure.cases import cases_of
from skrr_export.measure.verify import Report, verify
from skrr_export.outputs import LAST, Output
from skrr_export.targets.base import Ids
from tests.bundles import edit_weight, examples, plans, scale
from tests.measure.families import KINDS, DisturbedSession, TorchSession, choose_outputs, export
from tests.reference import Sources

LAYERS = 3
PROMPTS = ["", "a cat", "Two RED cubes, and a sign"]
STACK = Output("hidden_states", (1, 2, 3), "stack")
PROJECTED, POOLED = Output("text_embeds"), Output("pooler_output")
DAMAGED = {"gemma2": "post_attention_layernorm", "gemma3": "post_attention_layernorm"}
"""By family, whose weight is damaged where it is not the matrix of the values: a norm would make up for that."""

Checkpoints = Callable[..., Path]


@pytest.fixture(scope="module", autouse=True)
def _without_recipes() -> Iterator[None]:
    """No session here tokenises by another library, which takes an export a second to prove."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("skrr_export.portable.find_recipe", lambda *_: None)
        yield


@pytest.fixture
def without_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("skrr_export.targets.onnx.graph.build", lambda *_, **__: b"")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    @cache
    def make(name: str, *, tokenizer: bool = True) -> Path:
        return KINDS[name].save(tmp_path_factory.mktemp("checkpoint"), layers=LAYERS, tokenizer=tokenizer)

    return make


def failed_parts(report: Report) -> set[str]:
    """What the failures are of."""
    assert report.passed == (not report.failures)
    return {failure.partition(":")[0] for failure in report.failures}


@pytest.mark.usefixtures("without_graphs")
@pytest.mark.parametrize("name", KINDS)
def test_a_right_bundle_of_every_family_passes(name: str, checkpoints: Checkpoints, tmp_path: Path) -> None:
    kind, checkpoint = KINDS[name], checkpoints(name)
    # Early releases of transformers give padding other positions in a Qwen2.5-VL.
    options = {"reads_padding": not name.startswith("qwen2_5_vl")}

    @examples(2)
    @given(
        sources=plans(LAYERS), masked=st.booleans(), side=st.sampled_from(["left", "right"]), seed=st.integers(0, 99)
    )
    def check(sources: Sources, masked: bool, side: str, seed: int) -> None:
        random = np.random.default_rng(seed)
        outputs = choose_outputs(kind, LAYERS, random)
        made = {"masked": masked, "padding_side": side, **options}
        bundle = export(kind, checkpoint, tmp_path / "bundle", outputs, sources, **made)
        report = verify(bundle, TorchSession(bundle), PROMPTS, reference=checkpoint if random.integers(2) else None)
        assert report.passed, report.failures
        found = report.drift.to_dict()
        given = {False: ["tokens", "padding"], True: ["pooled"]}
        assert [part for part in found if found[part]] == [part for one in outputs for part in given[one.pooled]]
        assert all(part is None or part["relative_l2"] < 1e-5 for part in found.values())
        if report.loss is not None:
            assert [part for part, loss in report.loss.to_dict().items() if loss] == [
                part for part in found if found[part]
            ]

    check()


@pytest.mark.usefixtures("without_graphs")
@pytest.mark.parametrize("name", KINDS)
def test_one_damaged_weight_fails_in_every_family(name: str, checkpoints: Checkpoints, tmp_path: Path) -> None:
    kind, checkpoint = KINDS[name], checkpoints(name)
    bundle = export(kind, checkpoint, tmp_path / "bundle", (kind.pooled or LAST,), [(0, 0), (0, 2), (None, 2)])
    damaged = DAMAGED.get(kind.family, r"(v|value|v_proj)")
    [damaged] = [tensor for tensor in bundle.parameters() if re.search(rf"\.{damaged}\.weight$", tensor)]
    edit_weight(bundle, damaged, scale(1.02))
    bundle = open_bundle(bundle.directory)
    assert verify(bundle, TorchSession(bundle), PROMPTS).passed  # both sides read the bundle's weights
    report = verify(bundle, TorchSession(bundle), PROMPTS, reference=checkpoint)
    assert failed_parts(report) == {"pooled" if kind.pooled else "tokens"}


# One output alone


@pytest.mark.usefixtures("without_graphs")
def test_a_fault_in_the_pooled_output_alone_is_seen(checkpoints: Checkpoints, tmp_path: Path) -> None:
    checkpoint = checkpoints("clip")
    bundle = export(KINDS["clip"], checkpoint, tmp_path / "bundle", (Output("hidden_states", (2,)), PROJECTED))
    edit_weight(bundle, "text_projection.weight", scale(1.001))
    bundle = open_bundle(bundle.directory)
    report = verify(bundle, TorchSession(bundle), PROMPTS, reference=checkpoint)
    assert failed_parts(report) == {"pooled"}
    assert report.drift.tokens is not None
    assert (report.drift.tokens.relative_l2 or 1) < 1e-5


@pytest.mark.usefixtures("without_graphs")
def test_a_pooled_output_that_is_not_finite_fails(checkpoints: Checkpoints, tmp_path: Path) -> None:
    bundle = export(KINDS["clip"], checkpoints("clip"), tmp_path / "bundle", (LAST, PROJECTED))

    def spoil(ids: Ids, outputs: dict[str, np.ndarray]) -> None:
        if len(ids) == 4:
            outputs["text_embeds"][2, 5] = np.inf

    report = verify(bundle, DisturbedSession(TorchSession(bundle), spoil), PROMPTS)
    assert report.failures == ("pooled: 1 values are NaN or infinite; no limit would pass",)


@pytest.mark.usefixtures("without_graphs")
def test_another_rows_vector_is_seen_without_a_tokenizer(checkpoints: Checkpoints, tmp_path: Path) -> None:
    """Random ids end with the token that CLIP looks for; without it every vector would be the first row's."""
    checkpoint = checkpoints("clip, no projection", tokenizer=False)
    bundle = export(KINDS["clip"], checkpoint, tmp_path / "bundle", (POOLED,), masked=False)
    assert verify(bundle, TorchSession(bundle)).passed
    assert failed_parts(verify(bundle, TorchSession(bundle, eos_token_id=306))) == {"pooled"}


@pytest.mark.usefixtures("without_graphs")
@pytest.mark.parametrize("layer", range(3))
def test_a_fault_in_one_stacked_layer_alone_is_seen(layer: int, checkpoints: Checkpoints, tmp_path: Path) -> None:
    """In the first as well, of which the others are many times as large."""
    bundle = export(KINDS["qwen2"], checkpoints("qwen2"), tmp_path / "bundle", (STACK,))

    def change(ids: Ids, outputs: dict[str, np.ndarray]) -> None:
        outputs["hidden_states"][:, layer] *= 1.0002

    report = verify(bundle, DisturbedSession(TorchSession(bundle), change), PROMPTS)
    assert failed_parts(report) == {"tokens"}
    assert report.drift.tokens is not None
    assert report.drift.tokens.relative_l2 == pytest.approx(2e-4, rel=0.1)


@pytest.mark.usefixtures("without_graphs")
def test_a_weight_that_one_stacked_layer_alone_comes_by_is_seen(checkpoints: Checkpoints, tmp_path: Path) -> None:
    """The final norm, which transformers applies to the last of all hidden states and to no other."""
    checkpoint = checkpoints("qwen3")
    bundle = export(KINDS["qwen3"], checkpoint, tmp_path / "bundle", (STACK,))
    edit_weight(bundle, "norm.weight", scale(1.001))
    bundle = open_bundle(bundle.directory)
    assert failed_parts(verify(bundle, TorchSession(bundle), PROMPTS, reference=checkpoint)) == {"tokens"}


# What is compared on


@pytest.mark.usefixtures("without_graphs")
def test_random_ids_are_padded_where_the_pipeline_pads(checkpoints: Checkpoints, tmp_path: Path) -> None:
    for side in ("left", "right", None):
        bundle = export(KINDS["glm"], checkpoints("glm"), tmp_path / "bundle", padding_side=side)
        if side is None:  # as the tokenizer is set
            config = bundle.directory / "tokenizer" / "tokenizer_config.json"
            config.write_text(json.dumps({**json.loads(config.read_text()), "padding_side": "left"}))
        ragged = [case for case in cases_of(bundle, PROMPTS, 0) if not case.real.all()]
        assert {case.name.split()[0] for case in ragged} == {"prompts", "random"}
        for case in ragged:
            steps = np.diff(case.attention_mask, axis=1)
            assert (steps >= 0).all() if side != "right" else (steps <= 0).all()


@pytest.mark.usefixtures("without_graphs")
def test_no_case_is_longer_than_the_encoder_takes(checkpoints: Checkpoints, tmp_path: Path) -> None:
    bundle = export(KINDS["clip"], checkpoints("clip"), tmp_path / "bundle", (PROJECTED,), max_length=71)
    cases = cases_of(bundle, [*PROMPTS, "x" * 100], 0)
    assert max(case.input_ids.shape[1] for case in cases) == 71
    for case in cases:
        for ids, real in zip(case.input_ids, case.real, strict=True):
            assert not real.any() or ids[real][-1] == 1


@pytest.mark.usefixtures("without_graphs")
def test_rows_that_a_pipeline_crops_are_judged_and_those_of_a_prompt_are_what_it_reads(
    checkpoints: Checkpoints, tmp_path: Path
) -> None:
    bundle = export(KINDS["qwen2"], checkpoints("qwen2"), tmp_path / "bundle", crop=(0, 2), padding_rows="packed")
    [case] = [one for one in cases_of(bundle, PROMPTS, 0) if one.prompts]
    read = case.read(bundle.manifest.pipeline)
    assert read.sum(axis=1).tolist() == [max(0, int(real.sum()) - 2) for real in case.real]

    def change(ids: Ids, outputs: dict[str, np.ndarray]) -> None:
        outputs["last_hidden_state"][:, 0] += 1

    assert failed_parts(verify(bundle, DisturbedSession(TorchSession(bundle), change), PROMPTS)) == {"tokens"}


@pytest.mark.usefixtures("without_graphs")
def test_a_row_of_padding_that_counts_as_a_token_is_judged(checkpoints: Checkpoints, tmp_path: Path) -> None:
    """Chroma's denoiser reads one; another pipeline's nothing of padding."""

    def change(ids: Ids, outputs: dict[str, np.ndarray]) -> None:
        outputs["last_hidden_state"][-1] += 1  # in a batch of three or four, a row of nothing but padding

    for extra, parts in ((0, set()), (1, {"padding"})):
        bundle = export(KINDS["t5"], checkpoints("t5", tokenizer=False), tmp_path / "bundle", extra_rows=extra)

        def only_padding(ids: Ids, outputs: dict[str, np.ndarray]) -> None:
            if len(ids) > 2:
                change(ids, outputs)

        assert failed_parts(verify(bundle, DisturbedSession(TorchSession(bundle), only_padding))) == parts


# Through the command, on graphs


def command(bundle: Bundle, *options: object) -> Result:
    result = CliRunner().invoke(cli, ["verify", str(bundle.directory), *map(str, options)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


@pytest.mark.usefixtures("remembered_traces")
def test_the_command_shows_what_the_encoder_gives(checkpoints: Checkpoints, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a cat\ntwo dogs\n")
    options: tuple[Any, ...] = ("--prompts", prompts)
    parts = {"tokens", "padding", "pooled"}
    for name, outputs, expected in (
        ("clip", (Output("hidden_states", (2,)), PROJECTED), parts),
        ("clip", (PROJECTED,), {"pooled"}),
        ("qwen2", (STACK,), {"tokens", "padding"}),
    ):
        checkpoint, directory = checkpoints(name), tmp_path / "bundle"
        shutil.rmtree(directory, ignore_errors=True)
        bundle = export(KINDS[name], checkpoint, directory, outputs, [(0, 0), (0, None), (2, 2)], padding_side="left")
        text = command(bundle, *options, "--reference", checkpoint)
        assert text.exit_code == 0, text.output
        for part in parts:
            assert (f"drift, {part}" in text.stdout) == (f"loss, {part}" in text.stdout) == (part in expected)
        document = json.loads(command(bundle, *options, "--json").stdout)
        assert {part for part, found in document["drift"].items() if found is not None} == expected
        assert document["drift"].keys() == parts
