"""Checkpoints as people have them: whole, sharded, in a pipeline, in the hub's cache; and damaged."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub.utils import filter_repo_objects
from safetensors.torch import load_file, save_file

from skrr_export.checkpoint import Checkpoint, open_checkpoint
from skrr_export.encoders import Selection, recognise, select
from skrr_export.errors import CheckpointError
from skrr_export.plan import Plan
from tests.bundles import run_python
from tests.checkpoints import bert_checkpoint, byte_tokenizer, t5_checkpoint

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return t5_checkpoint(tmp_path_factory.mktemp("t5") / "whole", tokenizer=True)


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return t5_checkpoint(tmp_path_factory.mktemp("t5") / "sharded", shard_size="60KB")


@pytest.fixture
def copied(t5: Path, tmp_path: Path) -> Path:
    """A checkpoint in one file, to be damaged."""
    return Path(shutil.copytree(t5, tmp_path / "checkpoint"))


@pytest.fixture
def shards(sharded: Path, tmp_path: Path) -> Path:
    """A sharded checkpoint, to be damaged."""
    return Path(shutil.copytree(sharded, tmp_path / "sharded"))


def stored(checkpoint: Checkpoint) -> dict[str, bytes]:
    """The bytes at the place of each tensor."""
    return {
        name: tensor.file.read_bytes()[tensor.offset : tensor.offset + tensor.nbytes]
        for name, tensor in checkpoint.tensors.items()
    }


def loaded(*files: Path) -> dict[str, bytes]:
    """The bytes of each tensor, as the safetensors library loads them."""
    return {name: tensor.numpy().tobytes() for file in files for name, tensor in load_file(file).items()}


def dense(checkpoint: Checkpoint) -> Selection:
    """What an export without a plan takes of a checkpoint."""
    encoder = recognise(checkpoint)
    return select(checkpoint, encoder, Plan.identity(encoder.family, encoder.num_layers))


def refused(directory: Path, subfolder: str | None = None) -> str:
    """The message with which a checkpoint is refused."""
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(directory, subfolder)
    return str(caught.value)


def edit(path: Path, change: Callable[[Any], Any]) -> None:
    """Change a JSON file in place."""
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


# What is read


def test_a_single_file_is_read_where_it_lies(t5: Path) -> None:
    checkpoint = open_checkpoint(t5)
    assert stored(checkpoint) == loaded(t5 / SINGLE)
    assert checkpoint.config == json.loads((t5 / "config.json").read_text())
    assert (checkpoint.directory, checkpoint.tokenizer) == (t5, t5)


def test_shards_are_read_as_one(t5: Path, sharded: Path) -> None:
    files = sorted(sharded.glob("model-*.safetensors"))
    assert len(files) > 2
    checkpoint = open_checkpoint(sharded)
    assert {tensor.file for tensor in checkpoint.tensors.values()} == set(files)
    assert stored(checkpoint) == loaded(*files) == loaded(t5 / SINGLE)
    assert checkpoint.tokenizer is None


def test_an_index_may_name_a_single_shard(copied: Path) -> None:
    whole = loaded(copied / SINGLE)
    (copied / SINGLE).rename(copied / "model-00001-of-00001.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(whole, "model-00001-of-00001.safetensors")}
    (copied / INDEX).write_text(json.dumps(index))
    assert stored(open_checkpoint(copied)) == whole


def test_only_the_encoder_of_a_whole_t5_is_taken(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(t5_checkpoint(tmp_path, decoder=True))
    assert any(name.startswith("decoder.") for name in checkpoint.tensors)
    selection = dense(checkpoint)
    wanted = {name for name in checkpoint.tensors if name.startswith("encoder.") or name == "shared.weight"}
    assert {tensor.name for tensor in selection.tensors} == wanted
    assert selection.total_parameters == sum(checkpoint.tensors[name].numel for name in wanted)
    assert selection.sparsity == 0


def test_a_t5_encoder_that_holds_its_embedding_itself_is_taken(copied: Path) -> None:
    weights = load_file(copied / SINGLE)
    weights["encoder.embed_tokens.weight"] = weights.pop("shared.weight")
    save_file(weights, copied / SINGLE)
    selection = dense(open_checkpoint(copied))
    assert {tensor.name for tensor in selection.tensors} == weights.keys()


def test_a_t5_that_holds_its_embedding_twice_gives_one(copied: Path) -> None:
    weights = load_file(copied / SINGLE)
    weights["encoder.embed_tokens.weight"] = weights["shared.weight"].clone()
    save_file(weights, copied / SINGLE)
    selection = dense(open_checkpoint(copied))
    assert {tensor.name for tensor in selection.tensors} == weights.keys() - {"encoder.embed_tokens.weight"}


@pytest.mark.parametrize("head", [False, True])
def test_only_the_encoder_of_a_bert_is_taken(tmp_path: Path, head: bool) -> None:
    checkpoint = open_checkpoint(bert_checkpoint(tmp_path, head=head))
    selection = dense(checkpoint)
    root = "bert." if head else ""
    wanted = {name for name in checkpoint.tensors if name.startswith((f"{root}embeddings.", f"{root}encoder."))}
    assert {tensor.name for tensor in selection.tensors} == wanted
    assert len(wanted) < len(checkpoint.tensors)


def test_the_encoder_of_a_pipeline_is_found_with_the_tokenizer_of_its_number(tmp_path: Path, t5: Path) -> None:
    pipeline = make_pipeline(tmp_path / "pipeline", t5)
    checkpoint = open_checkpoint(pipeline, "text_encoder_2")
    assert (checkpoint.directory, checkpoint.tokenizer) == (pipeline / "text_encoder_2", pipeline / "tokenizer_2")
    assert stored(checkpoint) == loaded(t5 / SINGLE)
    shutil.rmtree(pipeline / "tokenizer_2")
    assert open_checkpoint(pipeline, "text_encoder_2").tokenizer is None  # not the other encoder's


def make_pipeline(directory: Path, t5: Path) -> Path:
    """A pipeline as diffusers saves it: two encoders, their tokenizers, an index."""
    directory.mkdir()
    (directory / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    bert_checkpoint(directory / "text_encoder", layers=1)
    shutil.copytree(t5, directory / "text_encoder_2", ignore=shutil.ignore_patterns("tokenizer*"))
    for folder in ("tokenizer", "tokenizer_2"):
        byte_tokenizer("$A </s>").save_pretrained(directory / folder)
    return directory


IN_THE_HUBS_CACHE = """
import json, sys
from skrr_export.checkpoint import open_checkpoint
from skrr_export.errors import CheckpointError
def opened(location, subfolder=None):
    try:
        checkpoint = open_checkpoint(location, subfolder)
    except CheckpointError as error:
        return str(error)
    return [str(checkpoint.directory), str(checkpoint.tokenizer), len(checkpoint.tensors)]
json.dump([opened(*item) for item in json.loads(sys.argv[1])], sys.stdout)
"""


def test_a_hub_id_is_found_in_the_local_cache_without_a_network(tmp_path: Path, t5: Path) -> None:
    model, pipeline = hub_snapshot(tmp_path, "org/model"), hub_snapshot(tmp_path, "org/pipeline")
    blobs = tmp_path / "blobs"
    shutil.copytree(t5, blobs)
    model.mkdir(parents=True)
    for blob in blobs.iterdir():
        (model / blob.name).symlink_to(blob)  # as the hub's cache does
    pipeline.parent.mkdir(parents=True)
    make_pipeline(pipeline, t5)
    asked = [["org/model"], ["org/pipeline", "text_encoder_2"], ["org/pipeline"], ["org/absent"], ["./absent"], ["a b"]]
    run = run_python(IN_THE_HUBS_CACHE, json.dumps(asked), HF_HUB_CACHE=str(tmp_path / "hub"), HF_HUB_OFFLINE="1")
    found, inner, whole, absent, path, malformed = json.loads(run.stdout)
    assert found == [str(model), str(model), 30]
    assert inner == [str(pipeline / "text_encoder_2"), str(pipeline / "tokenizer_2"), 30]
    choices = "--subfolder (text_encoder, text_encoder_2), or export all with --pipeline NAME"
    assert whole.endswith(f"is a pipeline: choose its encoder with {choices}")
    assert absent.startswith("no such path: org/absent; as a hub id it is neither in the local cache nor ")
    assert path == "no such path: ./absent"
    assert malformed == "no such path: a b"


@pytest.mark.parametrize("subfolder", [None, "text_encoder_2"])
def test_only_what_is_needed_is_downloaded(
    tmp_path: Path, sharded: Path, subfolder: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A FLUX.1-dev is 54 GB, its text_encoder_2 9.5 GB; some models keep their weights in five formats."""
    remote = make_pipeline(tmp_path / "remote", sharded)
    encoder = remote / subfolder if subfolder else Path(shutil.copytree(sharded, remote, dirs_exist_ok=True))
    if not subfolder:
        byte_tokenizer("$A </s>").save_pretrained(encoder)
    wanted = {path for path in encoder.iterdir() if path.is_file()} - {remote / "model_index.json"}
    if subfolder:
        wanted |= set((remote / "tokenizer_2").iterdir())
    for name in ("pytorch_model.bin", "tf_model.h5", "model.fp16.safetensors", "onnx.safetensors", "README.md"):
        (encoder / name).write_bytes(b"")

    def download(model_id: str, allow_patterns: list[str]) -> str:
        files = [str(path.relative_to(remote)) for path in remote.rglob("*") if path.is_file()]
        for name in filter_repo_objects(files, allow_patterns=allow_patterns):
            (tmp_path / "local" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(remote / name, tmp_path / "local" / name)
        return str(tmp_path / "local")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    checkpoint = open_checkpoint("org/model", subfolder)
    downloaded = {path.relative_to(tmp_path / "local") for path in (tmp_path / "local").rglob("*") if path.is_file()}
    assert downloaded == {path.relative_to(remote) for path in wanted}
    assert len(checkpoint.tensors) == 30
    assert checkpoint.tokenizer == tmp_path / "local" / ("tokenizer_2" if subfolder else "")


def hub_snapshot(folder: Path, model_id: str) -> Path:
    """Where the hub's cache keeps the files of a model; names the revision, makes no snapshot."""
    home = folder / "hub" / f"models--{model_id.replace('/', '--')}"
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text("0123456789abcdef0123456789abcdef01234567")
    return home / "snapshots" / "0123456789abcdef0123456789abcdef01234567"


# What is refused


def test_a_path_that_leads_nowhere_is_named(tmp_path: Path, t5: Path) -> None:
    assert refused(tmp_path / "absent") == f"no such path: {tmp_path / 'absent'}"
    assert refused(t5, "absent") == f"no such directory: {t5 / 'absent'}"
    (tmp_path / "dangling").symlink_to("nowhere")
    assert refused(tmp_path / "dangling") == f"no such directory: {tmp_path / 'dangling'}"


def test_a_file_is_no_checkpoint(t5: Path) -> None:
    assert refused(t5 / SINGLE) == f"{t5 / SINGLE} is a file; give the directory that holds config.json"


def test_a_directory_without_a_configuration_is_no_checkpoint(tmp_path: Path) -> None:
    assert refused(tmp_path) == f"{tmp_path} is not a checkpoint: it has no config.json"


def test_a_pipeline_without_an_encoder_says_so(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text("{}")
    assert refused(tmp_path).endswith(
        "choose its encoder with --subfolder (none found), or export all with --pipeline NAME"
    )


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"{", "is not a JSON file"),
        (b"", "is not a JSON file"),
        (b"\xff", "is not a JSON file"),
        (b"[" * 100_000, "is not a JSON file"),
        (b"[]", "must hold a JSON object"),
        (b"null", "must hold a JSON object"),
    ],
)
@pytest.mark.parametrize("name", ["config.json", INDEX])
def test_a_json_file_that_is_none_is_named(shards: Path, name: str, content: bytes, words: str) -> None:
    (shards / name).write_bytes(content)
    message = refused(shards)
    assert message.startswith(f"{shards / name} ")
    assert words in message


def test_a_directory_without_weights_is_no_checkpoint(copied: Path) -> None:
    (copied / SINGLE).unlink()
    assert refused(copied) == f"{copied} is not a checkpoint: it has neither {SINGLE} nor {INDEX}"


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "t5.ckpt", "t5.pt", "t5.pth"]
)
def test_pickles_are_not_opened_and_it_is_said_how_to_convert_them(copied: Path, name: str) -> None:
    (copied / SINGLE).rename(copied / name)
    message = refused(copied)
    assert f"holds only pickled weights ({name}), which can run code when loaded; convert" in message
    assert f"AutoModel.from_pretrained('{copied}').save_pretrained(" in message


def test_a_pickle_beside_safetensors_is_ignored(copied: Path) -> None:
    (copied / "pytorch_model.bin").write_bytes(b"not a pickle either")
    assert len(open_checkpoint(copied).tensors) == 30


def test_shards_without_their_index_are_refused(shards: Path) -> None:
    (shards / INDEX).unlink()
    assert "holds shards (model-00001-of-" in refused(shards)
    assert refused(shards).endswith(f"but not their index, {INDEX}")


@pytest.mark.parametrize("weight_map", [None, [], {}, "x", 5])
def test_an_index_without_a_weight_map_is_refused(shards: Path, weight_map: Any) -> None:
    edit(shards / INDEX, lambda index: index.update(weight_map=weight_map))
    assert refused(shards) == f"{shards / INDEX} lacks its weight_map"


@pytest.mark.parametrize(
    "shard", ["../model.safetensors", "/etc/passwd", "sub/model.safetensors", "", ".", "..", "x/", None, 5, ["x"], {}]
)
def test_an_index_that_points_outside_the_directory_is_refused(shards: Path, shard: Any) -> None:
    edit(shards / INDEX, lambda index: index["weight_map"].update({"shared.weight": shard}))
    assert refused(shards) == f"{shards / INDEX} places 'shared.weight' outside the directory: {shard!r}"


@pytest.mark.parametrize("shard", ["absent.safetensors", "x" * 300, "\x00", "\ud800"])
def test_an_index_that_names_a_shard_that_cannot_exist_is_refused(shards: Path, shard: str) -> None:
    edit(shards / INDEX, lambda index: index["weight_map"].update({"shared.weight": shard}))
    assert refused(shards).startswith(f"{shards / INDEX} names the shard {shard}, which is missing")


def test_a_missing_shard_is_named(shards: Path) -> None:
    shard = sorted(shards.glob("model-*"))[1]
    shard.unlink()
    assert refused(shards) == f"{shards / INDEX} names the shard {shard.name}, which is missing"


def test_a_shard_that_the_index_does_not_name_is_refused(shards: Path) -> None:
    extra = shards / "model-00099-of-00099.safetensors"
    shutil.copy(sorted(shards.glob("model-*"))[0], extra)
    assert refused(shards).startswith(f"{extra} is a shard that {INDEX} does not name")


def test_a_tensor_that_is_not_in_its_shard_is_named(shards: Path) -> None:
    first, last = (sorted(shards.glob("model-*"))[at].name for at in (0, -1))
    weight_map = json.loads((shards / INDEX).read_text())["weight_map"]
    name = next(name for name, shard in weight_map.items() if shard == first)
    edit(shards / INDEX, lambda index: index["weight_map"].update({name: last}))
    assert refused(shards) == f"{shards / INDEX} places '{name}' in {last}, which does not hold it"


def test_a_truncated_shard_is_named(shards: Path) -> None:
    shard = sorted(shards.glob("model-*"))[1]
    shard.write_bytes(shard.read_bytes()[:-1])
    assert refused(shards).startswith(f"{shard} is truncated: ")


def test_a_missing_tensor_is_named(copied: Path) -> None:
    weights = load_file(copied / SINGLE)
    del weights["encoder.block.1.layer.1.DenseReluDense.wo.weight"]
    save_file(weights, copied / SINGLE)
    with pytest.raises(CheckpointError) as caught:
        dense(open_checkpoint(copied))
    assert str(caught.value) == f"{copied}: the tensor 'encoder.block.1.layer.1.DenseReluDense.wo.weight' is missing"


def test_a_tensor_that_the_plan_skips_must_be_there_too(copied: Path) -> None:
    """A damaged checkpoint is refused whatever the plan, so that a plan cannot hide the damage."""
    weights = load_file(copied / SINGLE)
    del weights["encoder.block.1.layer.1.DenseReluDense.wo.weight"]
    save_file(weights, copied / SINGLE)
    checkpoint = open_checkpoint(copied)
    with pytest.raises(CheckpointError, match="is missing"):
        select(checkpoint, recognise(checkpoint), Plan("t5", ((0, 0), (None, None), (2, 2))))


def test_a_tensor_that_has_no_place_is_named(copied: Path) -> None:
    edit(copied / "config.json", lambda config: config.update(num_layers=2))
    with pytest.raises(CheckpointError, match=r"tensor 'encoder\.block\.2\..*' has no place in the encoder .*2 layers"):
        dense(open_checkpoint(copied))


def test_a_wrong_shape_is_named(copied: Path) -> None:
    edit(copied / "config.json", lambda config: config.update(d_ff=54))
    with pytest.raises(CheckpointError) as caught:
        dense(open_checkpoint(copied))
    name = "encoder.block.0.layer.1.DenseReluDense.wi_0.weight"
    assert (
        str(caught.value) == f"{copied / SINGLE}: the tensor '{name}' has shape [53, 37], config.json asks for [54, 37]"
    )


@pytest.mark.parametrize(("dtype", "code"), [(torch.int8, "I8"), (torch.float8_e4m3fn, "F8_E4M3")])
def test_quantised_weights_are_refused(copied: Path, dtype: torch.dtype, code: str) -> None:
    weights = load_file(copied / SINGLE)
    weights["shared.weight"] = weights["shared.weight"].to(dtype)
    save_file(weights, copied / SINGLE)
    with pytest.raises(CheckpointError) as caught:
        dense(open_checkpoint(copied))
    assert str(caught.value).endswith(f"'shared.weight' is stored as {code}; readable: F64, F32, F16, BF16")


@pytest.mark.parametrize("model_type", ["gpt2", "T5", None, 5, ["t5"], {}])
def test_an_unknown_architecture_lists_the_known_ones(copied: Path, model_type: Any) -> None:
    edit(copied / "config.json", lambda config: config.update(model_type=model_type))
    with pytest.raises(CheckpointError) as caught:
        recognise(open_checkpoint(copied))
    known = "bert, clip, clip_text_model, gemma2, gemma3, gemma3_text, glm, llama, mistral, mistral3, mt5, qwen2, "
    assert f"unknown architecture {model_type!r}; known: {known}" in str(caught.value)


@pytest.mark.parametrize("value", [0, -1, "3", 3.0, True, None, [], {}, 10**12, 10**30])
@pytest.mark.parametrize("key", ["num_layers", "d_model", "vocab_size", "num_heads", "relative_attention_max_distance"])
def test_a_dimension_that_is_none_is_named(copied: Path, key: str, value: Any) -> None:
    edit(copied / "config.json", lambda config: config.update({key: value}))
    with pytest.raises(CheckpointError, match=f"'{key}' must be a positive integer") as caught:
        dense(open_checkpoint(copied))
    assert str(copied) in str(caught.value)


@pytest.mark.parametrize("value", [0, 1.0, -1e-6, "1e-6", None, True, float("nan"), float("inf"), []])
def test_an_epsilon_that_is_none_is_named(copied: Path, value: Any) -> None:
    edit(copied / "config.json", lambda config: config.update(layer_norm_epsilon=value))
    with pytest.raises(CheckpointError, match="'layer_norm_epsilon' must be a number between 0 and 1"):
        recognise(open_checkpoint(copied))


@pytest.mark.parametrize("value", ["swish", "gated-swish", "gated-", "", "gated", "a-relu", 5, None, [], {}])
def test_an_unknown_t5_activation_is_named(copied: Path, value: Any) -> None:
    edit(copied / "config.json", lambda config: config.update(feed_forward_proj=value))
    with pytest.raises(CheckpointError, match=r"unknown (activation|feed_forward_proj)"):
        recognise(open_checkpoint(copied))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hidden_act": "swish"}, "unknown activation 'swish'; known: relu, "),
        ({"hidden_act": ["gelu"]}, "unknown activation ['gelu']"),
        ({"hidden_act": None}, "unknown activation None"),
        ({"num_attention_heads": 4}, "hidden_size 39 is not a multiple of 4 heads"),
        ({"position_embedding_type": "relative_key"}, "only BERT encoders with absolute positions"),
        ({"is_decoder": True}, "only BERT encoders with absolute positions"),
        ({"layer_norm_eps": 2}, "'layer_norm_eps' must be a number between 0 and 1"),
        ({"max_position_embeddings": "71"}, "'max_position_embeddings' must be a positive integer"),
    ],
)
def test_a_bert_that_we_cannot_run_is_refused(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    directory = bert_checkpoint(tmp_path, layers=1)
    edit(directory / "config.json", lambda config: config.update(changes))
    with pytest.raises(CheckpointError) as caught:
        recognise(open_checkpoint(directory))
    assert words in str(caught.value)
