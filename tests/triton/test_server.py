"""A real Triton server on repositories of ours: NVIDIA's binary, one server for all tests but the last.

Its onnxruntime and tensorrt backends come in NVIDIA's container only, so here the encoders run in Python.
"""

from __future__ import annotations

import json
import re
import shutil
import urllib.request
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

import skrr_export
from runtimes.triton.local_server import Server, absent, running, stop
from skrr_export import vectors
from skrr_export.bundle import Bundle
from skrr_export.dtypes import FP32
from skrr_export.measure.memory import memory_of
from skrr_export.targets.base import Arrays, Ids, Session
from skrr_export.triton.choices import Choices
from skrr_export.triton.repository import write_repository
from tests.bundles import export, relative_error
from tests.checkpoints import t5_checkpoint
from tests.runtimes.damage import CASES, Damage
from tests.runtimes.presets import BundleFor

pytestmark = pytest.mark.skipif(absent() is not None, reason=str(absent()))

INSTANCES = 2
WIDE = {"d_model": 512, "num_heads": 8, "d_kv": 64, "d_ff": 2048}
"""Dimensions of the encoder whose weights are large enough to be told from everything else in memory."""
README = Path(__file__).parents[2] / "runtimes" / "triton" / "README.md"
CLIENTS = {"http": tritonclient.http, "grpc": tritonclient.grpc}
Outputs = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def wide(remembered_traces: None, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """At least 60 MB of weights."""
    folder = tmp_path_factory.mktemp("wide")
    bundle = export(t5_checkpoint(folder / "t5", layers=4, tokenizer=True, **WIDE), folder / "wide.bundle", vectors=4)
    assert bundle.weights.stat().st_size > 60e6
    return bundle


TAKEN = ("bare", "packed")
"""Models that take some of the encoder's rows."""
RULES = {"bare": "cropped inside, bare negatives", "packed": "stacked, packed", "clip": "sd3/text_encoder"}
"""Models whose pipelines have rules for rows, or several outputs, and what they stand in for."""


@pytest.fixture(scope="module")
def bundles(wide: Bundle, padded: Bundle, half: Bundle, pair: Bundle, bundle_for: BundleFor) -> dict[str, Bundle]:
    """What the server serves, by model."""
    rules = {name: bundle_for(key) for name, key in RULES.items()}
    return {"wide": wide, "padded": padded, "half": half, "pair": pair, **rules}


@pytest.fixture(scope="module")
def repositories(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of model repositories; `spare` is one that is empty at first."""
    folder = tmp_path_factory.mktemp("repositories")
    (folder / "spare").mkdir()
    return folder


@pytest.fixture(scope="module")
def server(repositories: Path, bundles: dict[str, Bundle]) -> Iterator[Server]:
    for name, bundle in bundles.items():
        choices = Choices(name=name, instances=INSTANCES if name == "wide" else 1, threads=1)
        write_repository(bundle, repositories / name, choices)
    arguments = [
        "--model-control-mode=explicit",
        *(f"--load-model={name}" for name in bundles),
        *(f"--model-repository={repositories / name}" for name in bundles),
    ]
    with running(repositories / "spare", *arguments) as server:
        yield server


@pytest.fixture(scope="module")
def sessions(bundles: dict[str, Bundle]) -> dict[str, Any]:
    """Python's own sessions on the same bundles."""
    return {name: skrr_export.open_session(bundle.directory) for name, bundle in bundles.items()}


def client(server: Server, protocol: str) -> Any:
    return CLIENTS[protocol].InferenceServerClient(server.http if protocol == "http" else server.grpc)


@pytest.fixture(params=["http", "grpc"])
def protocol(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def ask(server: Server, protocol: str, model: str, inputs: dict[str, Any], **parameters: Any) -> Outputs:
    """Call a model; its inputs are arrays, or lists of prompts."""
    library, tensors = CLIENTS[protocol], []
    for name, value in inputs.items():
        array = np.array([[prompt] for prompt in value], dtype=object).reshape(-1, 1) if name == "text" else value
        tensor = library.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
        tensor.set_data_from_numpy(array)
        tensors.append(tensor)
    with client(server, protocol) as connection:
        answer = connection.infer(model, tensors, parameters=parameters or None)
        response = answer.get_response()
        outputs = response["outputs"] if isinstance(response, dict) else response.outputs
        names = [output["name"] if isinstance(output, dict) else output.name for output in outputs]
        return {name: answer.as_numpy(name) for name in names}


def expect_same(ours: Outputs, session: Any, prompts: list[str], *, negative: bool = False) -> None:
    """Compare with Python's own result, for the same prompts alone."""
    expected = skrr_export.encode_prompts(session, prompts, negative=negative)
    expected.setdefault("output_mask", expected["attention_mask"])
    assert ours.keys() >= {"attention_mask", *(entry.output.name for entry in session.bundle.manifest.outputs)}
    for name, array in ours.items():
        assert array.dtype == expected[name].dtype
        if array.dtype == np.int64:
            np.testing.assert_array_equal(array, expected[name])
            continue
        read = np.ones(array.shape[:-1], bool)
        if array.ndim == 3 and session.bundle.manifest.pipeline.masked:
            read = expected["output_mask"].astype(bool)  # padding is masked, and its rows mean nothing
        zero = ~expected[name].any(axis=-1)
        assert not array[zero].any()
        assert relative_error(array[read & ~zero], expected[name][read & ~zero]) < 1e-5


# Memory, before anything else makes activations of its own


def stubs(server: Server, model: str) -> list[int]:
    """Processes of a model's instances."""
    return [pid for pid in server.stubs() if f"/{model}/" in Path(f"/proc/{pid}/cmdline").read_text()]


def of_weights(pid: int) -> dict[str, int]:
    """Bytes of the map of the weights, by the names that smaps gives them."""
    total: dict[str, int] = {}
    inside = False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        key, *rest = line.split()
        if not key.endswith(":"):
            inside = line.endswith("/weights.safetensors")
        elif inside and rest[-1:] == ["kB"]:
            total[key[:-1]] = total.get(key[:-1], 0) + int(rest[0]) * 1024
    return total


def test_instances_share_the_pages_of_the_weights(server: Server, wide: Bundle) -> None:
    weights = wide.weights.stat().st_size
    instances = stubs(server, "wide_encoder")
    [small] = stubs(server, "padded_encoder")
    assert len(instances) == INSTANCES
    maps = [of_weights(pid) for pid in instances]
    assert all(each["Rss"] > 0.9 * weights for each in maps)  # all of it was used, in the warm-up
    assert sum(each["Pss"] for each in maps) < 1.05 * weights  # and counts once
    assert sum(each["Private_Dirty"] + each["Anonymous"] for each in maps) == 0
    for pid in instances:
        assert memory_of(pid).anonymous - memory_of(small).anonymous < 0.5 * weights


# What the server says of its models


def test_the_server_is_live_and_ready(server: Server, protocol: str, bundles: dict[str, Bundle]) -> None:
    with client(server, protocol) as connection:
        assert connection.is_server_live()
        assert connection.is_server_ready()
        for name in bundles:
            models = (name, f"{name}_tokenizer", f"{name}_encoder", *([f"{name}_rows"] if name in TAKEN else []))
            for model in models:
                assert connection.is_model_ready(model)


def test_models_are_described_to_clients(server: Server) -> None:
    with client(server, "http") as connection:
        described = connection.get_model_metadata("wide")
        assert described["versions"] == ["1"]
        assert described["inputs"] == [{"name": "text", "datatype": "BYTES", "shape": [-1, 1]}]
        assert described["outputs"] == [
            {"name": "last_hidden_state", "datatype": "FP32", "shape": [-1, -1, 512]},
            {"name": "attention_mask", "datatype": "INT64", "shape": [-1, -1]},
        ]
        assert connection.get_model_metadata("padded_encoder")["inputs"] == [
            {"name": "input_ids", "datatype": "INT64", "shape": [-1, 128]}
        ]
        assert connection.get_model_metadata("pair")["inputs"] == [
            {"name": "text", "datatype": "BYTES", "shape": [2, 1]}
        ]


def test_configurations_are_taken_as_they_are_written(server: Server) -> None:
    with client(server, "http") as connection:
        encoder = connection.get_model_config("wide_encoder")
        assert encoder["max_batch_size"] == 8
        assert [(group["count"], group["kind"]) for group in encoder["instance_group"]] == [(INSTANCES, "KIND_CPU")]
        assert encoder["dynamic_batching"]["preferred_batch_size"] == [2, 4, 8]
        assert connection.get_model_config("pair_encoder")["max_batch_size"] == 0
        steps = connection.get_model_config("wide")["ensemble_scheduling"]["step"]
        assert [step["model_name"] for step in steps] == ["wide_tokenizer", "wide_encoder"]


# Prompts and ids


@pytest.mark.parametrize("model", ["wide", "padded", "half", *RULES])
@pytest.mark.parametrize(
    "prompts",
    [["a cat"], [""], ["A Café, 猫 🐈 ", "", "word " * 200], ["x"] * 8],
    ids=["one", "empty", "mixed", "full batch"],
)
def test_prompts_give_what_python_gives(
    server: Server, sessions: dict[str, Any], protocol: str, model: str, prompts: list[str]
) -> None:
    answer = ask(server, protocol, model, {"text": [prompt.encode() for prompt in prompts]})
    expect_same(answer, sessions[model], prompts)


@pytest.mark.parametrize("model", ["bare", "packed"])
@pytest.mark.parametrize("negative", [False, True])
def test_negative_prompts_are_a_parameter(
    server: Server, sessions: dict[str, Any], protocol: str, model: str, negative: bool
) -> None:
    """Which goes through the ensemble to its models."""
    answer = ask(server, protocol, model, {"text": [b"a cat", b""]}, negative=negative)
    expect_same(answer, sessions[model], ["a cat", ""], negative=negative)
    if model == "bare":
        assert (answer["attention_mask"].shape == (2, 300)) == negative
        with pytest.raises(InferenceServerException, match="'negative' must be true or false, not 'yes'"):
            ask(server, protocol, model, {"text": [b"a cat"]}, negative="yes")


def test_what_a_pipeline_makes_of_rows_has_its_own_shape(server: Server) -> None:
    with client(server, "http") as connection:
        shapes = {
            name: {output["name"]: output["shape"] for output in connection.get_model_metadata(name)["outputs"]}
            for name in RULES
        }
    assert shapes == {
        "bare": {"last_hidden_state": [-1, -1, 37], "output_mask": [-1, -1], "attention_mask": [-1, -1]},
        "packed": {"hidden_states": [-1, 3, -1, 37], "output_mask": [-1, -1], "attention_mask": [-1, -1]},
        "clip": {"hidden_states.3": [-1, 77, 39], "text_embeds": [-1, 29], "attention_mask": [-1, 77]},
    }


def test_a_fixed_batch_is_served_whole(server: Server, sessions: dict[str, Any], protocol: str) -> None:
    expect_same(ask(server, protocol, "pair", {"text": [b"a cat", b""]}), sessions["pair"], ["a cat", ""])
    with pytest.raises(InferenceServerException, match=r"unexpected shape for input 'text'"):
        ask(server, protocol, "pair", {"text": [b"a cat"]})


def test_ids_can_be_sent_to_the_encoder(server: Server, sessions: dict[str, Any], protocol: str) -> None:
    ids = np.array([[5, 6, 7, 1], [8, 1, 0, 0]])
    mask = np.array([[1, 1, 1, 1], [1, 1, 0, 0]])
    answer = ask(server, protocol, "wide_encoder", {"input_ids": ids, "attention_mask": mask})
    expected = sessions["wide"].encode(ids, mask)
    assert relative_error(answer["last_hidden_state"], expected["last_hidden_state"]) < 1e-5
    ids = np.arange(256).reshape(2, 128)
    answer = ask(server, protocol, "padded_encoder", {"input_ids": ids})
    expected = sessions["padded"].encode(ids)
    assert relative_error(answer["last_hidden_state"], expected["last_hidden_state"]) < 1e-5


def test_prompts_can_be_tokenised_only(server: Server, protocol: str) -> None:
    answer = ask(server, protocol, "wide_tokenizer", {"text": [b"ab", b""]})
    assert answer["input_ids"].tolist() == [[68, 69, 1], [1, 0, 0]]
    assert answer["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]


@pytest.mark.parametrize(
    "wanted", [["last_hidden_state"], ["attention_mask", "last_hidden_state"]], ids=["embedding", "both"]
)
@pytest.mark.parametrize("model", ["wide", "padded"])
def test_plain_http_gets_the_outputs_it_asks_for(server: Server, model: str, wanted: list[str]) -> None:
    """What curl sends: see runtimes/triton/README.md."""
    tensor = {"name": "text", "datatype": "BYTES", "shape": [1, 1], "data": ["a cat"]}
    body = json.dumps({"inputs": [tensor], "outputs": [{"name": name} for name in wanted]}).encode()
    with urllib.request.urlopen(f"http://{server.http}/v2/models/{model}/infer", body) as answer:
        outputs = json.load(answer)["outputs"]
    assert sorted(output["name"] for output in outputs) == wanted
    assert all(output["shape"][:2] == [1, 6 if model == "wide" else 128] for output in outputs)


def test_the_readmes_python_works(server: Server) -> None:
    text = (README.read_text()).replace("localhost:8001", server.grpc)
    for written, here in (('"t5"', '"padded"'), ('"t5_encoder"', '"padded_encoder"'), ("(1, 512)", "(1, 128)")):
        assert written in text
        text = text.replace(written, here)
    names: dict[str, Any] = {}
    for snippet in re.findall("```python\n(.*?)```", text, re.DOTALL):
        exec(snippet, names)
    assert names["embeddings"].shape == (2, 128, 37)
    assert names["mask"].shape == (2, 128)


def test_many_clients_at_once_get_each_its_own_answer(server: Server, sessions: dict[str, Any]) -> None:
    random = np.random.default_rng(0)
    words = ["cat", "dog", "a", "très", "猫", "of", "light", ""]
    jobs = [
        (
            ("http", "grpc")[index % 2],
            ("wide", "padded", "half", "bare", "packed", "clip")[index % 6],
            [" ".join(random.choice(words, random.integers(0, 9))) for _ in range(random.integers(1, 4))],
        )
        for index in range(96)
    ]

    def run(job: tuple[str, str, list[str]]) -> Outputs:
        protocol, model, prompts = job
        return ask(server, protocol, model, {"text": [prompt.encode() for prompt in prompts]})

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(run, jobs))
    for (_, model, prompts), answer in zip(jobs, answers, strict=True):
        expect_same(answer, sessions[model], prompts)


def test_requests_were_put_together(server: Server) -> None:
    """Fewer executions than requests; runs after many clients called at once, and makes sure itself."""
    ids = {"input_ids": np.ones((1, 128), np.int64)}
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda _: ask(server, "grpc", "padded_encoder", ids), range(48)))
    with client(server, "http") as connection:
        [statistics] = connection.get_inference_statistics("padded_encoder")["model_stats"]
    assert statistics["execution_count"] < statistics["inference_count"]
    assert max(batch["batch_size"] for batch in statistics["batch_stats"]) > 1


class Remote(Session):
    """The server's encoder, as a session."""

    def __init__(self, bundle: Bundle, server: Server, model: str) -> None:
        super().__init__(bundle, FP32)
        self._server, self._model = server, model

    def _run(self, feed: Mapping[str, Ids]) -> Arrays:
        return ask(self._server, "grpc", f"{self._model}_encoder", dict(feed))


@pytest.mark.parametrize("model", ["wide", "padded", "half", *RULES])
def test_the_server_passes_the_bundles_self_test(server: Server, bundles: dict[str, Bundle], model: str) -> None:
    result = vectors.self_test(Remote(bundles[model], server, model))
    assert result.passed, str(result)
    assert result.vectors == (3 if model in RULES else 4)
    for vector in vectors.read(bundles[model]):
        answer = ask(server, "http", f"{model}_tokenizer", {"text": [text.encode() for text in vector.case.prompts]})
        np.testing.assert_array_equal(answer["input_ids"], vector.case.input_ids)
        np.testing.assert_array_equal(answer["attention_mask"], vector.case.attention_mask)


# Mistakes


ONES = np.ones((1, 2), np.int64)
MISTAKES: dict[str, tuple[str, dict[str, Any], str]] = {
    "no prompt": ("wide", {"text": []}, "expected 1 string elements for inference input 'text'"),
    "a long prompt": (
        "wide",
        {"text": [b"a" * 10_000]},
        "prompt 0 has 10000 characters, more than the 8192 this server takes",
    ),
    "not UTF-8": ("wide", {"text": [b"a", b"\xff"]}, "prompt 1 is not UTF-8 text: invalid start byte at byte 0"),
    "too many prompts": ("wide", {"text": [b"a"] * 9}, "batch-size must be <= 8 for 'wide'"),
    "ids for prompts": ("wide", {"input_ids": ONES}, "unexpected inference input 'input_ids' for model 'wide'"),
    "no such model": ("none", {"text": [b"a"]}, "unknown model"),
    "no mask": ("wide_encoder", {"input_ids": ONES}, "expected 2 inputs but got 1"),
    "another type": ("padded_encoder", {"input_ids": ONES.astype(np.int32)}, "data-type"),
    "another length": ("padded_encoder", {"input_ids": ONES}, "unexpected shape for input 'input_ids'"),
    "ids out of range": (
        "wide_encoder",
        {"input_ids": ONES * 307, "attention_mask": ONES},
        "input_ids must lie in 0 to 306; these span 307 to 307",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_answered_and_the_server_lives_on(
    server: Server, sessions: dict[str, Any], protocol: str, mistake: str
) -> None:
    model, inputs, words = MISTAKES[mistake]
    with pytest.raises(InferenceServerException) as caught:
        ask(server, protocol, model, inputs)
    assert words in str(caught.value)
    assert caught.value.status() in {"400", "404", "StatusCode.INVALID_ARGUMENT", "StatusCode.NOT_FOUND"}
    expect_same(ask(server, protocol, "wide", {"text": [b"a cat"]}), sessions["wide"], ["a cat"])


def test_mistakes_among_good_requests_spoil_none(server: Server, sessions: dict[str, Any]) -> None:
    def run(index: int) -> Outputs | str:
        try:
            return ask(server, "grpc", "padded", {"text": [b"\xff" if index % 3 == 0 else b"prompt %d" % index]})
        except InferenceServerException as error:
            return str(error)

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(run, range(48)))
    for index, answer in enumerate(answers):
        if index % 3 == 0:
            assert isinstance(answer, str)
            assert "prompt 0 is not UTF-8 text" in answer
        else:
            assert not isinstance(answer, str), answer
            expect_same(answer, sessions["padded"], [f"prompt {index}"])


# Damaged bundles


@pytest.fixture
def damaged(repositories: Path, padded: Bundle) -> Iterator[Path]:
    """Models whose files are copies, in the repository that was empty: `bad_encoder` and `bad_tokenizer`."""
    models = repositories / "spare"
    write_repository(padded, repositories / "written", Choices(name="bad"))
    for model in ("bad_encoder", "bad_tokenizer"):
        shutil.copytree(repositories / "written" / model, models / model)
    shutil.rmtree(repositories / "written")
    yield models
    for model in models.iterdir():
        shutil.rmtree(model)


def refusal(server: Server, model: str) -> str:
    """Why the server does not load a model."""
    with client(server, "http") as connection:
        with pytest.raises(InferenceServerException) as caught:
            connection.load_model(model)
        [state] = [each["state"] for each in connection.get_model_repository_index() if each["name"] == model]
        assert state == "UNAVAILABLE"
        assert not connection.is_model_ready(model)
    return str(caught.value)


@pytest.mark.parametrize("damage", CASES, ids=lambda damage: damage.name)
def test_a_damaged_bundle_is_refused_in_the_shared_words(server: Server, damaged: Path, damage: Damage) -> None:
    directory = damaged / "bad_encoder" / "1"
    damage.damage(directory)
    assert re.search(damage.pattern(directory), refusal(server, "bad_encoder"))


def test_a_damaged_tokenizer_is_refused_and_other_models_go_on(
    server: Server, damaged: Path, sessions: dict[str, Any]
) -> None:
    path = damaged / "bad_tokenizer" / "1" / "tokenizer" / "tokenizer.json"
    path.write_text(path.read_text().replace("a", "b", 1))
    assert f"{path} was changed: its hash is not the manifest's; export again" in refusal(server, "bad_tokenizer")
    expect_same(ask(server, "grpc", "wide", {"text": [b"a cat"]}), sessions["wide"], ["a cat"])


# The end


def regions() -> set[str]:
    """Shared memory of servers and their models' processes."""
    return {path.name for path in Path("/dev/shm").glob("triton_*")}


def test_a_server_stops_cleanly(tmp_path: Path, padded: Bundle) -> None:
    write_repository(padded, tmp_path / "models", Choices(name="t5", threads=1))
    before = regions()
    with running(tmp_path / "models") as server:
        instances = server.stubs()
        assert len(instances) == 2
        expected = ask(server, "http", "t5", {"text": [b"a cat"]})
        assert expected["last_hidden_state"].shape == (1, 128, 37)
        assert stop(server) == 0
        assert not [pid for pid in instances if Path(f"/proc/{pid}").exists()]
    assert regions() <= before
