"""Baking: every byte against torch's own casts, every used tensor once, nothing else."""

from __future__ import annotations

import hashlib
import io
import tracemalloc
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, load_file, save_file

from skrr_export import bake as bake_module
from skrr_export.bake import Baked, bake, weights_layout
from skrr_export.checkpoint import open_checkpoint
from skrr_export.dtypes import BAKEABLE, READABLE, DType
from skrr_export.encoders import Selection, recognise, select
from skrr_export.errors import CheckpointError
from skrr_export.plan import Plan
from skrr_export.tensorfile import PAD_PREFIX, StoredTensor, read_header
from tests.checkpoints import bert_checkpoint, t5_checkpoint

FP32, FP16, BF16 = (BAKEABLE[name] for name in ("fp32", "fp16", "bf16"))


def bake_to_bytes(tensors: list[StoredTensor] | tuple[StoredTensor, ...], dtype: DType) -> tuple[bytes, Baked]:
    """The weights file, and what is said of it."""
    output = io.BytesIO()
    baked = bake(tensors, weights_layout(tensors, dtype, Path("weights")), dtype, output)
    return output.getvalue(), baked


def bake_file(path: Path, dtype: DType) -> tuple[dict[str, torch.Tensor], Baked]:
    """Bake all tensors of a file; they are loaded by the safetensors library."""
    whole, baked = bake_to_bytes(list(read_header(path).values()), dtype)
    return {name: tensor for name, tensor in load(whole).items() if not name.startswith(PAD_PREFIX)}, baked


def any_bits(dtype: DType, seed: int, *shape: int) -> torch.Tensor:
    """Values of every bit pattern alike: normal, subnormal, zero of both signs, infinite; NaN made zero."""
    nbytes = dtype.itemsize * torch.Size(shape).numel()
    bits = torch.randint(0, 256, (nbytes,), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    return bits.view(dtype.torch).reshape(shape).nan_to_num(nan=0.0, posinf=torch.inf, neginf=-torch.inf)


def hard_cases(dtype: DType) -> torch.Tensor:
    """Halfway between two values of a narrower type, just off it, at the ends of its range, below its normals."""
    fp32 = torch.tensor([1, 2**-14, 2**-24, 2**-25, 65504, 2**-126, 2**-133, 2**-134, 3.3895e38, 1e-7, 3, -7, 0.1])
    halves = [fp32 * (1 + sign * step) for step in (2**-8, 2**-9, 2**-11, 2**-12, 2**-23) for sign in (1, -1)]
    halves += [fp32 * (1 + 3 * step) for step in (2**-9, 2**-12)]
    return torch.cat([fp32, *halves]).to(dtype.torch)


def raw(tensor: torch.Tensor) -> bytes:
    return tensor.reshape(-1).view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("chunk", [8, 64, 8 << 20])
@pytest.mark.parametrize("target", BAKEABLE.values(), ids=lambda dtype: dtype.name)
@pytest.mark.parametrize("source", READABLE.values(), ids=lambda dtype: dtype.name)
def test_bytes_are_those_of_torchs_own_cast(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: DType, target: DType, chunk: int
) -> None:
    """In chunks of a single value, in chunks that end within a row, and all in one."""
    tensors = {"hard": hard_cases(source), "scalar": torch.tensor(0.3, dtype=source.torch)}
    tensors |= {f"bits {shape}": any_bits(source, sum(shape), *shape) for shape in [(64, 4), (37, 11), (1,), (3, 1, 5)]}
    save_file(tensors, tmp_path / "x.safetensors")
    monkeypatch.setattr(bake_module, "CHUNK_BYTES", chunk)
    loaded, _ = bake_file(tmp_path / "x.safetensors", target)
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        expected = tensor.to(target.torch)
        assert (loaded[name].dtype, loaded[name].shape) == (expected.dtype, expected.shape)
        assert raw(loaded[name]) == raw(expected)


def test_tensors_larger_than_two_chunks_are_written_whole(tmp_path: Path) -> None:
    """At the real chunk size, where each buffer is used again."""
    tensors = {"large": torch.arange(bake_module.CHUNK_BYTES + 1.0), "small": torch.arange(5.0)}
    save_file(tensors, tmp_path / "x.safetensors")
    for target in (FP32, BF16):
        loaded, _ = bake_file(tmp_path / "x.safetensors", target)
        for name, tensor in tensors.items():
            assert torch.equal(loaded[name], tensor.to(target.torch))


def test_memory_is_bounded_whatever_the_size_of_a_tensor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bake_module, "CHUNK_BYTES", 1 << 20)
    path = tmp_path / "x.safetensors"
    save_file({"x": torch.zeros(1)}, path)
    header = path.read_bytes()[:-4].replace(b"[1]", b"[25165824]").replace(b"[0,4]", b"[0,100663296]").rstrip()
    text = header[8:]
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + (96 << 20))  # sparse: takes no room
    tensors = list(read_header(path).values())
    tracemalloc.start()
    try:
        with Path("/dev/null").open("wb") as output:
            baked = bake(tensors, weights_layout(tensors, FP32, Path("weights")), FP32, output)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert baked.nbytes > 96 << 20
    assert peak < 5 << 20


# What is said of the weights


def written(folder: Path, **values: list[float]) -> Path:
    """A file of fp32 tensors."""
    save_file({name: torch.tensor(value) for name, value in values.items()}, folder / "x.safetensors")
    return folder / "x.safetensors"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("target", BAKEABLE.values(), ids=lambda dtype: dtype.name)
def test_a_tensor_that_holds_nan_or_infinity_is_named(tmp_path: Path, target: DType, value: float) -> None:
    path = written(tmp_path, fine=[1.0, 2.0], broken=[0.0, value, 1.0], alike=[1.0])
    loaded, baked = bake_file(path, target)
    assert baked.warnings == (f"tensor 'broken' of {path} holds NaN or infinity",)
    assert torch.equal(loaded["broken"].isnan(), torch.tensor([0.0, value, 1.0]).isnan())
    assert torch.equal(loaded["broken"].isinf(), torch.tensor([0.0, value, 1.0]).isinf())


def test_a_broken_tensor_is_named_once_however_many_chunks_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bake_module, "CHUNK_BYTES", 8)
    path = written(tmp_path, broken=[1.0] * 9 + [float("nan")] * 9, other=[float("inf")])
    _, baked = bake_file(path, FP16)
    assert sorted(baked.warnings) == [
        f"tensor '{name}' of {path} holds NaN or infinity" for name in ("broken", "other")
    ]


def test_weights_that_overflow_fp16_are_named(tmp_path: Path) -> None:
    path = written(tmp_path, most=[65504.0, -65519.99], more=[1.0, 65520.0], less=[-65520.0])
    loaded, baked = bake_file(path, FP16)
    assert sorted(baked.warnings) == [
        f"tensor '{name}' holds values that overflow fp16; bake to bf16 or fp32" for name in ("less", "more")
    ]
    assert loaded["more"].isinf().tolist() == [False, True]
    for target in (BF16, FP32):
        assert bake_file(path, target)[1].warnings == ()


def test_weights_that_overflow_bf16_are_not_told_to_use_it(tmp_path: Path) -> None:
    path = written(tmp_path, largest=[torch.finfo(torch.float32).max])
    _, baked = bake_file(path, BF16)
    (warning,) = baked.warnings
    assert "tensor 'largest' holds values that overflow bf16" in warning
    assert "bake to bf16" not in warning


def test_the_hash_and_size_are_those_of_the_file(tmp_path: Path) -> None:
    path = written(tmp_path, a=[1.0, 2.0, 3.0], b=[0.5] * 64)
    whole, baked = bake_to_bytes(list(read_header(path).values()), BF16)
    assert (baked.sha256, baked.nbytes) == (hashlib.sha256(whole).hexdigest(), len(whole))


def test_progress_rises_to_the_size_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bake_module, "CHUNK_BYTES", 64)
    tensors = list(read_header(written(tmp_path, a=[1.0] * 99, b=[2.0] * 33)).values())
    told: list[tuple[str, int, int]] = []
    layout = weights_layout(tensors, FP32, Path("weights"))
    bake(tensors, layout, FP32, io.BytesIO(), lambda *news: told.append(news))
    done = [amount for _, amount, _ in told]
    assert done == sorted(done)
    assert done[-1] == layout.nbytes
    assert {(what, total) for what, _, total in told} == {("baking", layout.nbytes)}


@pytest.mark.parametrize("left", [0, 1, 3])
def test_a_checkpoint_that_shrinks_meanwhile_is_named(tmp_path: Path, left: int) -> None:
    path = written(tmp_path, a=[1.0, 2.0])
    tensors = list(read_header(path).values())
    path.write_bytes(path.read_bytes()[: -8 + left])
    with pytest.raises(CheckpointError) as caught:
        bake_to_bytes(tensors, FP32)
    assert str(caught.value) == f"{path} was truncated while 'a' was being read"


def test_a_checkpoint_that_vanishes_meanwhile_is_named(tmp_path: Path) -> None:
    path = written(tmp_path, a=[1.0, 2.0])
    tensors = list(read_header(path).values())
    path.unlink()
    with pytest.raises(CheckpointError) as caught:
        bake_to_bytes(tensors, FP32)
    assert str(caught.value) == f"cannot read 'a' from {path}: No such file or directory"


# What a plan leaves


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return t5_checkpoint(tmp_path_factory.mktemp("bake") / "t5")


def selected(checkpoint: Path, plan: Plan) -> Selection:
    """The tensors of a checkpoint that a plan uses."""
    opened = open_checkpoint(checkpoint)
    return select(opened, recognise(opened), plan)


def baked_names(checkpoint: Path, plan: Plan) -> list[str]:
    """The names in the weights file that a plan leaves, padding aside."""
    whole, _ = bake_to_bytes(selected(checkpoint, plan).tensors, FP32)
    return [name for name in load(whole) if not name.startswith(PAD_PREFIX)]


def test_a_dense_bake_holds_the_checkpoint(t5: Path) -> None:
    whole, _ = bake_to_bytes(selected(t5, Plan.identity("t5", 3)).tensors, FP32)
    baked = {name: raw(tensor) for name, tensor in load(whole).items() if not name.startswith(PAD_PREFIX)}
    assert baked == {name: raw(tensor) for name, tensor in load_file(t5 / "model.safetensors").items()}


def test_skipped_tensors_are_absent_and_reused_ones_there_once(t5: Path) -> None:
    plan = Plan("t5", ((0, 0), (0, 0), (2, None)))
    every = load_file(t5 / "model.safetensors").keys()
    dropped = {name for name in every if name.startswith(("encoder.block.1.", "encoder.block.2.layer.1."))}
    names = baked_names(t5, plan)
    assert len(dropped) == 5 + 4 + 4
    assert sorted(names) == sorted(every - dropped)


def test_the_position_bias_stays_when_the_attention_it_lies_in_is_skipped(t5: Path) -> None:
    names = baked_names(t5, Plan("t5", ((None, 0), (1, 1), (1, 2))))
    first = [name for name in names if name.startswith("encoder.block.0.layer.0.")]
    assert first == ["encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"]


def test_the_position_bias_is_there_once_when_the_first_attention_is_reused(t5: Path) -> None:
    names = baked_names(t5, Plan("t5", ((0, 0), (0, 1), (0, 2))))
    assert sorted(names) == sorted(set(names))
    assert sum("relative_attention_bias" in name for name in names) == 1


def test_sparsity_counts_what_no_position_uses(t5: Path) -> None:
    selection = selected(t5, Plan("t5", ((0, 0), (0, 1), (2, None))))
    parameters = {name: tensor.numel() for name, tensor in load_file(t5 / "model.safetensors").items()}
    dropped = sum(
        count
        for name, count in parameters.items()
        if name.startswith(("encoder.block.1.layer.0.", "encoder.block.2.layer.1."))
    )
    assert selection.total_parameters == sum(parameters.values())
    assert selection.kept_parameters == sum(parameters.values()) - dropped
    assert selection.sparsity == 1 - selection.kept_parameters / selection.total_parameters


def test_the_same_weights_give_the_same_bytes_whole_or_sharded(tmp_path: Path, t5: Path) -> None:
    plan = Plan("t5", ((0, 0), (None, 0), (2, 2)))
    sharded = t5_checkpoint(tmp_path / "sharded", shard_size="60KB")
    first, again, other = (bake_to_bytes(selected(path, plan).tensors, BF16)[0] for path in (t5, t5, sharded))
    assert first == again == other


def test_a_bert_under_a_plan_holds_its_embeddings_and_what_runs(tmp_path: Path) -> None:
    bert = bert_checkpoint(tmp_path, head=True, layers=2)
    names = baked_names(bert, Plan("bert", ((0, None), (0, 1))))
    attention = {f"attention.{part}" for part in ("self.query", "self.key", "self.value", "output.dense")}
    expected = {f"bert.embeddings.{part}_embeddings.weight" for part in ("word", "position", "token_type")}
    expected |= {f"bert.embeddings.LayerNorm.{kind}" for kind in ("weight", "bias")}
    expected |= {
        f"bert.encoder.layer.0.{part}.{kind}"
        for part in {*attention, "attention.output.LayerNorm"}
        for kind in ("weight", "bias")
    }
    expected |= {
        f"bert.encoder.layer.1.{part}.{kind}"
        for part in ("intermediate.dense", "output.dense", "output.LayerNorm")
        for kind in ("weight", "bias")
    }
    assert sorted(names) == sorted(expected)
