"""Searching on a GPU: the plan is the processor's, in the precision that is promised and the memory that is allowed."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest
import torch

from skrr_export.errors import InputError
from skrr_export.plan import Plan
from skrr_export.search.journal import Journal
from skrr_export.searching import SearchOptions, search_plans
from tests.bundles import soften
from tests.checkpoints import bert_checkpoint, t5_checkpoint

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available(),
        reason="torch sees no GPU: needs an NVIDIA GPU and a torch that is built for CUDA",
    ),
]

DEVICE = "cuda"
PROMPTS = ["a cat", "Two RED cubes, and a sign that says 'café'", "", "x", "a long walk along the shore at dawn"]
TOLERANCE = 1e-3
"""Relative, of D in fp32: a GPU adds in another order, and a difference of embeddings magnifies that."""
HALF = 0.1
"""The same where the one computes in bf16."""
MIB = 1 << 20


@pytest.fixture(params=["t5", "bert"])
def checkpoint(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    if request.param == "t5":
        return soften(t5_checkpoint(tmp_path / "checkpoint", layers=4, tokenizer=True))
    return bert_checkpoint(tmp_path / "checkpoint", layers=4, tokenizer=True)


def search(checkpoint: Path, device: str, **options: Any) -> Plan:
    options = {"sparsities": (0.3,), "prompts": PROMPTS, **options}
    journal, resume = options.pop("journal", None), options.pop("resume", False)
    (plan,) = search_plans(checkpoint, SearchOptions(device=device, **options), journal=journal, resume=resume)
    return plan


def value(plan: Plan) -> float:
    """D."""
    found: float = plan.provenance["discrepancy"]["value"]
    return found


def assert_same(ours: Plan, theirs: Plan) -> None:
    assert ours.sources == theirs.sources
    assert ours.provenance["order"] == theirs.provenance["order"]
    assert ours.provenance["settings"] == theirs.provenance["settings"]
    assert ours.provenance["discrepancy"] == {
        name: pytest.approx(number, rel=TOLERANCE) if isinstance(number, float) else number
        for name, number in theirs.provenance["discrepancy"].items()
    }


@pytest.mark.parametrize("method", ["skrr+", "skrr", "finercut", "shortgpt"])
def test_a_gpu_finds_the_plan_of_the_processor(checkpoint: Path, method: str) -> None:
    ours = search(checkpoint, DEVICE, method=method)
    assert ours.provenance["settings"]["dtype"] == "fp32"
    assert_same(ours, search(checkpoint, "cpu", method=method))


def test_a_gpu_is_taken_where_there_is_one(tmp_path: Path) -> None:
    checkpoint = t5_checkpoint(tmp_path / "checkpoint", tokenizer=True)
    gc.collect()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    search(checkpoint, "cpu", method="uniform")
    assert torch.cuda.max_memory_allocated() == before
    search(checkpoint, "auto", method="uniform")
    assert torch.cuda.max_memory_allocated() > before


def test_a_gpu_with_a_number_that_there_is_not(tmp_path: Path) -> None:
    checkpoint = t5_checkpoint(tmp_path / "checkpoint", tokenizer=True)
    count = torch.cuda.device_count()
    with pytest.raises(InputError, match=f"^no GPU number {count}: torch sees {count}$"):
        search(checkpoint, f"cuda:{count}")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_checkpoint_in_half_precision_is_searched_in_bf16(tmp_path: Path, dtype: torch.dtype) -> None:
    checkpoint = bert_checkpoint(tmp_path / "checkpoint", layers=4, tokenizer=True, dtype=dtype)
    half, whole = search(checkpoint, DEVICE, method="skrr"), search(checkpoint, DEVICE, method="skrr", dtype="fp32")
    assert [plan.provenance["settings"]["dtype"] for plan in (half, whole)] == ["bf16", "fp32"]
    assert_same(whole, search(checkpoint, "cpu", method="skrr"))  # where fp32 is what is chosen
    assert value(half) == pytest.approx(value(whole), rel=HALF)
    assert value(half) != pytest.approx(value(whole), rel=1e-6)  # it was not computed in fp32


def test_a_gpu_goes_on_where_the_processor_was_interrupted(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal, append = tmp_path / "journal", Journal._append

    def interrupt(self: Journal, record: dict[str, Any]) -> None:
        append(self, record)
        if record.get("name") == "skrr 2":
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "_append", interrupt)
        with pytest.raises(KeyboardInterrupt):
            search(checkpoint, "cpu", method="skrr", sparsities=(0.4,), journal=journal)
    begun = journal.read_bytes()
    ours = search(checkpoint, DEVICE, method="skrr", sparsities=(0.4,), journal=journal, resume=True)
    assert journal.read_bytes().startswith(begun)
    assert_same(ours, search(checkpoint, "cpu", method="skrr", sparsities=(0.4,)))


def test_the_cache_keeps_to_its_budget(tmp_path: Path) -> None:
    """Measured as what torch holds at most, over what it holds without a cache."""
    checkpoint = soften(
        t5_checkpoint(tmp_path / "checkpoint", layers=6, tokenizer=True, d_model=256, num_heads=4, d_kv=64, d_ff=512)
    )

    def peak(cache_gb: float) -> tuple[int, Plan]:
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        plan = search(checkpoint, DEVICE, pipeline="flux.1", method="skrr", cache_gb=cache_gb)
        return torch.cuda.max_memory_allocated() - before, plan

    (none, first), (little, second), (much, third) = (peak(cache_gb) for cache_gb in (0, 0.01, 10))
    assert first.sources == second.sources == third.sources
    assert little - none <= 0.01e9 + 2 * MIB  # the one more state that is made before another is dropped
    assert much - none > 0.02e9  # what it would take if it might: 0.5 MiB for each of six chunks after each sub-block
