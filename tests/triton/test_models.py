"""The models in Python, called as Triton's Python backend calls them."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import skrr_export
from skrr_export.bundle import Bundle
from skrr_export.errors import BundleError
from skrr_export.triton.choices import Choices
from skrr_export.triton.models import encoder as encoder_module
from skrr_export.triton.repository import write_repository
from tests.bundles import relative_error
from tests.runtimes.presets import CLIPS, STAND_INS, BundleFor, prompts_for
from tests.triton import fake
from tests.triton.fake import InferenceResponse, Request, text


@pytest.fixture(autouse=True)
def pb_utils(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", None)  # put back as it was, in the end
    fake.install(sys.modules)


def repository(bundle: Bundle, directory: Path) -> Path:
    """The repository of a bundle, written once."""
    if not directory.exists():
        write_repository(bundle, directory, Choices(name="t5"))
    return directory


@pytest.fixture
def plain_repository(plain: Bundle) -> Path:
    return repository(plain, plain.directory.parent / "plain-models")


@pytest.fixture
def padded_repository(padded: Bundle) -> Path:
    return repository(padded, padded.directory.parent / "padded-models")


@pytest.fixture
def tokenizer(plain_repository: Path) -> Any:
    return fake.load(plain_repository / "t5_tokenizer")


@pytest.fixture
def encoder(plain_repository: Path) -> Any:
    return fake.load(plain_repository / "t5_encoder")


def reason(response: InferenceResponse) -> str:
    assert response.error is not None
    assert response.error.code == "INVALID_ARG"
    assert response.output_tensors is None
    return response.error.message


def same(ours: InferenceResponse, alone: InferenceResponse) -> None:
    assert list(ours.outputs) == list(alone.outputs)
    for name, array in ours.outputs.items():
        np.testing.assert_array_equal(array, alone.outputs[name])
        assert array.flags.c_contiguous


requests_of_text = st.lists(st.lists(st.text(max_size=40), min_size=1, max_size=3), min_size=1, max_size=5)


@given(requests_of_text)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_ids_do_not_depend_on_other_requests(tokenizer: Any, batches: list[list[str]]) -> None:
    requests = [text(*prompts) for prompts in batches]
    together = tokenizer.execute(requests)
    for response, request in zip(together, requests, strict=True):
        same(response, *tokenizer.execute([request]))


def test_prompts_are_tokenised_in_one_call(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    genuine = tokenizer.run
    monkeypatch.setattr(
        tokenizer, "run", lambda inputs, **options: calls.append(len(inputs["text"])) or genuine(inputs, **options)
    )
    tokenizer.execute([text("a"), text("b", "c"), text("d")])
    assert calls == [4]


def test_the_empty_string_is_the_null_prompt(tokenizer: Any) -> None:
    [response] = tokenizer.execute([text("")])
    assert response.outputs["input_ids"].tolist() == [[1]]
    assert response.outputs["attention_mask"].tolist() == [[1]]


def test_a_pipeline_that_pads_always_does(padded_repository: Path) -> None:
    short, long = fake.load(padded_repository / "t5_tokenizer").execute([text("a"), text("b" * 8192, "c")])
    assert short.outputs["input_ids"].shape == (1, 128)
    assert long.outputs["input_ids"].shape == (2, 128)
    assert short.outputs["attention_mask"].sum() == 2


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ({}, "the request has no input 'text'"),
        (text(), "the batch is empty: 'text' has no rows"),
        ({"text": np.array([b"a"], object)}, "text must be [batch, 1], not [1]"),
        ({"text": np.array([[b"a", b"b"]], object)}, "text must be [batch, 1], not [1, 2]"),
        (text("fine", b"\xff\xfe"), "prompt 1 is not UTF-8 text: invalid start byte at byte 0"),
        (text(b"\xed\xa0\x80"), "prompt 0 is not UTF-8 text: invalid continuation byte at byte 0"),
        (text("é" * 8193), "prompt 0 has 8193 characters, more than the 8192 this server takes"),
    ],
)
def test_a_bad_request_is_refused_alone(tokenizer: Any, request_: Request, words: str) -> None:
    before, refused, after = tokenizer.execute([text("a cat"), request_, text("é" * 8192)])
    assert reason(refused) == words
    assert before.outputs["input_ids"].shape == (1, 6)
    assert after.outputs["input_ids"].shape == (1, 512)


def test_the_longest_prompt_is_a_parameter(plain_repository: Path) -> None:
    model = fake.load(plain_repository / "t5_tokenizer", parameters={"max_characters": "3"})
    fine, refused = model.execute([text("abc"), text("abcd")])
    assert fine.outputs["input_ids"].shape == (1, 4)
    assert reason(refused) == "prompt 0 has 4 characters, more than the 3 this server takes"


def ids(*rows: list[int], masked: list[int] | None = None) -> Request:
    array = np.array(rows, np.int64)
    mask = np.ones_like(array)
    if masked is not None:
        mask[:, masked] = 0
    return {"input_ids": array, "attention_mask": mask}


def test_requests_are_encoded_together_by_length_and_answered_in_order(
    plain: Bundle, encoder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = [ids([5, 6, 1]), ids([7, 1]), ids([8, 9, 1], [3, 4, 1]), ids([2, 1], masked=[0])]
    calls = []
    genuine = encoder.run
    monkeypatch.setattr(
        encoder, "run", lambda inputs, **options: calls.append(inputs["input_ids"].shape) or genuine(inputs, **options)
    )
    responses = encoder.execute(requests)
    assert calls == [(3, 3), (2, 2)]
    session = skrr_export.open_session(plain.directory)
    for response, request in zip(responses, requests, strict=True):
        expected = session.encode(request["input_ids"], request["attention_mask"])["last_hidden_state"]
        assert relative_error(response.outputs["last_hidden_state"], expected) < 1e-5


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ({"input_ids": np.ones((1, 2), np.int64)}, "the request has no input 'attention_mask'"),
        (ids([5, 307]), "input_ids must lie in 0 to 306; these span 5 to 307"),
        (ids([5, -1]), "input_ids must lie in 0 to 306; these span -1 to 5"),
        ({"input_ids": np.ones((0, 2), np.int64), "attention_mask": np.ones((0, 2))}, "the batch is empty"),
        ({"input_ids": np.ones((1, 0), np.int64), "attention_mask": np.ones((1, 0))}, "integers [batch, sequence]"),
        ({**ids([5, 6]), "attention_mask": np.ones((1, 3), np.int64)}, "attention_mask is [1, 3], input_ids [1, 2]"),
    ],
)
def test_bad_ids_are_refused_alone(encoder: Any, request_: Request, words: str) -> None:
    before, refused, after = encoder.execute([ids([5, 6]), request_, ids([7, 8])])
    assert words in reason(refused)
    assert before.outputs["last_hidden_state"].shape == after.outputs["last_hidden_state"].shape == (1, 2, 37)


@pytest.mark.parametrize(("parameter", "threads"), [({}, 3), ({"intra_op_thread_count": "5"}, 5)])
def test_an_instance_takes_its_share_of_the_cores(
    plain: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parameter: dict[str, str], threads: int
) -> None:
    write_repository(plain, tmp_path / "models", Choices(name="t5", instances=4))
    taken = []
    monkeypatch.setattr(encoder_module, "cores", lambda: 13)
    monkeypatch.setattr(encoder_module, "open_target", lambda bundle, **options: taken.append(options))
    fake.load(tmp_path / "models" / "t5_encoder", parameters=parameter)
    fake.load(tmp_path / "models" / "t5_encoder", parameters=parameter, kind="GPU")
    assert taken == [{"device": device, "threads": threads} for device in ("cpu", "cuda")]


@pytest.mark.parametrize("name", ["tokenizer/tokenizer.json", "tokenizer/added_tokens.json"])
def test_a_tokenizer_that_was_changed_is_refused(plain: Bundle, tmp_path: Path, name: str) -> None:
    """The second is none of the bundle's files, and transformers would read it."""
    write_repository(plain, tmp_path / "models", Choices(name="t5"))
    (tmp_path / "models" / "t5_tokenizer" / "1" / name).write_text("{}")
    with pytest.raises(BundleError, match=f"{name} is (2 bytes long|not part of the bundle)"):
        fake.load(tmp_path / "models" / "t5_tokenizer")


def test_changed_weights_are_noticed_unless_told_not_to(plain: Bundle, tmp_path: Path) -> None:
    write_repository(plain, tmp_path / "models", Choices(name="t5"))
    weights = tmp_path / "models" / "t5_encoder" / "1" / "weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.unlink()  # a link: the bundle keeps its own
    weights.write_bytes(content)
    with pytest.raises(BundleError, match=f"^{weights} was changed: its hash is not the manifest's; export again$"):
        fake.load(tmp_path / "models" / "t5_encoder")
    fake.load(tmp_path / "models" / "t5_encoder", parameters={"check_hashes": "false"})


# Pipelines with rules for rows


def answers(models: dict[str, Any], requests: list[Request]) -> list[dict[str, np.ndarray]]:
    """What an ensemble of models gives, each of them executed once on all requests."""

    def then(model: str, inputs: list[dict[str, np.ndarray]]) -> list[dict[str, np.ndarray]]:
        passed = [Request(each) for each in inputs]
        for one, request in zip(passed, requests, strict=True):
            one.told = request.told
        return [response.outputs for response in models[model].execute(passed)]

    tokens = then("tokenizer", requests)  # type: ignore[arg-type]
    found = [{**one, **two} for one, two in zip(tokens, then("encoder", tokens), strict=True)]
    if "rows" in models:
        found = [{**one, **two} for one, two in zip(found, then("rows", found), strict=True)]
    return found


@pytest.mark.parametrize("key", [*STAND_INS, *CLIPS])
def test_requests_get_what_python_gives_to_each_alone(key: str, bundle_for: BundleFor, tmp_path: Path) -> None:
    bundle = bundle_for(key)
    serving = write_repository(bundle, tmp_path / "models", Choices(name="t5"))
    models = {name.partition("_")[2]: fake.load(tmp_path / "models" / name) for name in serving.models[1:]}
    assert ("rows" in models) == (serving.finisher is not None)
    prompts = prompts_for(bundle)
    batches = [prompts[:1], prompts[1:3], prompts[:2], prompts[3:], prompts[2:3]]
    requests = [text(*batch, negative=negative) for negative in (False, True) for batch in batches]
    random = np.random.default_rng(0)
    order = random.permutation(len(requests))
    session = skrr_export.open_session(bundle.directory)
    for number, answer in zip(order, answers(models, [requests[number] for number in order]), strict=True):
        negative, batch = bool(number // len(batches)), batches[number % len(batches)]
        truth = skrr_export.encode_prompts(session, batch, negative=negative)
        if bundle.manifest.rows is None:
            truth.pop("output_mask", None)
        assert truth.keys() <= answer.keys()
        for name, expected in truth.items():
            assert answer[name].dtype == expected.dtype
            assert answer[name].shape == expected.shape, name
            np.testing.assert_allclose(answer[name], expected, rtol=0, atol=1e-4 * np.abs(expected).max(initial=1))
        if "output_mask" in answer and "output_mask" not in truth:  # of negative prompts alone
            np.testing.assert_array_equal(answer["output_mask"], answer["attention_mask"])


@pytest.mark.parametrize("model", ["tokenizer", "rows"])
@pytest.mark.parametrize("value", ["yes", 1, None])
def test_what_is_said_of_negative_prompts_is_true_or_false(
    model: str, value: Any, bundle_for: BundleFor, tmp_path: Path
) -> None:
    bundle = bundle_for("cropped inside, bare negatives")
    write_repository(bundle, tmp_path / "models", Choices(name="t5"))
    loaded = fake.load(tmp_path / "models" / f"t5_{model}")
    request = text("a cat", negative=value)
    if model == "rows":
        request = Request(last_hidden_state=np.zeros((1, 300, 37), np.float32), attention_mask=np.ones((1, 300), int))
        request.told = {"negative": value}
    fine, refused = Request(request), request
    assert (
        reason(loaded.execute([fine, refused])[1]) == f"the parameter 'negative' must be true or false, not {value!r}"
    )
    assert loaded.execute([fine])[0].error is None


REQUIREMENTS = Path(skrr_export.__file__).parents[1] / "runtimes" / "triton" / "requirements.txt"


def installed_by(requirements: Path) -> set[str]:
    """Names of packages that a file of requirements brings, with all that these need."""
    wanted = [Requirement(line.partition("#")[0]) for line in requirements.read_text().splitlines() if line[:1] != "#"]
    found: set[str] = set()
    while wanted:
        one = wanted.pop()
        name = canonicalize_name(one.name)
        if name not in found and (one.marker is None or one.marker.evaluate({"extra": ""})):
            found.add(name)
            wanted += [Requirement(line) for line in metadata.requires(name) or []]
    return found


def test_models_run_on_the_requirements_alone(plain_repository: Path, tmp_path: Path) -> None:
    names = installed_by(REQUIREMENTS)
    assert "torch" not in names
    assert "onnx" not in names
    for name in names:
        for file in metadata.files(name) or []:
            top = file.parts[0]
            if top != ".." and not (tmp_path / top).exists():
                (tmp_path / top).symlink_to(Path(str(file.locate())).parents[len(file.parts) - 1] / top)
    code = """
import json, sys
from tests.triton import fake
fake.install(sys.modules)
tokenizer, encoder = map(fake.start, json.loads(sys.argv[1]))
[tokens] = tokenizer.execute([fake.text("a cat")])
[encoded] = encoder.execute([tokens.outputs])
print(encoded.outputs["last_hidden_state"].shape)
"""
    told = [fake.arguments(plain_repository / f"t5_{part}") for part in ("tokenizer", "encoder")]
    result = subprocess.run(
        [sys.executable, "-S", "-c", code, json.dumps(told)],
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONPATH": f"{tmp_path}:{REQUIREMENTS.parents[2]}"},
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == "(1, 6, 37)\n"
