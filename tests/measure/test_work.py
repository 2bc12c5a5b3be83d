from __future__ import annotations

from pathlib import Path

import pytest

from skrr_export.encoders import bundle_encoder
from skrr_export.measure.record import Hardware
from skrr_export.measure.work import Work
from skrr_export.outputs import Output
from tests.bundles import PLAN, export
from tests.checkpoints import BERT_DIMENSIONS, T5_DIMENSIONS, bert_checkpoint, t5_checkpoint
from tests.measure import families
from tests.measure.families import KINDS

pytestmark = pytest.mark.usefixtures("remembered_traces")


def t5_flops(attentions: int, feed_forwards: int, batch: int, sequence: int) -> int:
    """Twice the multiplications of every matrix product of a gated T5, counted by hand."""
    width, inner, d_ff = T5_DIMENSIONS["d_model"], 33, T5_DIMENSIONS["d_ff"]
    tokens = batch * sequence
    attention = 4 * tokens * width * inner + 2 * batch * sequence**2 * inner
    return 2 * (attentions * attention + feed_forwards * 3 * tokens * width * d_ff)


def test_multiplications_are_those_of_the_sub_blocks_that_run(tmp_path: Path) -> None:
    bundle = export(t5_checkpoint(tmp_path / "t5", layers=4), tmp_path / "bundle", PLAN)
    encoder = bundle_encoder(bundle)
    dense = Work.dense(encoder, bundle.manifest)
    planned = Work.planned(encoder, bundle.manifest)
    attentions, feed_forwards = ([source for source in kind if source is not None] for kind in zip(*PLAN, strict=True))
    for batch, sequence in ((1, 5), (3, 17)):
        assert dense.flops(batch, sequence, masked=True) == t5_flops(4, 4, batch, sequence)
        found = planned.flops(batch, sequence, masked=True)
        assert found == t5_flops(len(attentions), len(feed_forwards), batch, sequence)  # a re-used one runs again


def test_a_bert_is_counted_likewise_without_a_mask(tmp_path: Path) -> None:
    bundle = export(bert_checkpoint(tmp_path / "bert", layers=2), tmp_path / "bundle", masked=False)
    work = Work.planned(bundle_encoder(bundle), bundle.manifest)
    width, inner = BERT_DIMENSIONS["hidden_size"], BERT_DIMENSIONS["intermediate_size"]
    layer = 4 * 10 * width**2 + 2 * 2 * 5**2 * width + 2 * 10 * width * inner
    assert work.flops(2, 5, masked=False) == 2 * 2 * layer


def test_what_nobody_reads_is_no_work_but_for_the_dense_encoder(tmp_path: Path) -> None:
    """transformers runs every layer of that, whatever is read."""
    checkpoint, kind = t5_checkpoint(tmp_path / "t5", layers=4), KINDS["t5"]
    bundle = families.export(kind, checkpoint, tmp_path / "bundle", (Output("hidden_states", (2,)),))
    encoder, manifest = bundle_encoder(bundle), bundle.manifest
    assert Work.planned(encoder, manifest).flops(2, 5, masked=True) == t5_flops(2, 2, 2, 5)
    assert Work.planned(encoder, manifest).weights_bytes == 4 * manifest.kept_parameters
    assert Work.dense(encoder, manifest).flops(2, 5, masked=True) == t5_flops(4, 4, 2, 5)
    assert Work.dense(encoder, manifest).weights_bytes == 4 * manifest.total_parameters


@pytest.mark.parametrize(("dtype", "itemsize"), [("fp32", 4), ("bf16", 2)])
def test_bytes_are_those_of_the_tensors_each_once(dtype: str, itemsize: int, tmp_path: Path) -> None:
    bundle = export(t5_checkpoint(tmp_path / "t5", layers=4), tmp_path / "bundle", PLAN, dtype=dtype)
    work = Work.planned(bundle_encoder(bundle), bundle.manifest)
    stored = {name: tensor.nbytes for name, tensor in bundle.parameters().items()}
    assert work.weights_bytes == sum(stored.values()) == itemsize * bundle.manifest.kept_parameters
    # The vocabulary is looked up, not read whole.
    hardware = Hardware(copy_bytes_per_second=1.0, matmul_flops_per_second={"fp32": 1e18})
    bound = work.bound(hardware, "fp32", flops=1, median=1.0)
    assert bound is not None
    assert bound.name == "memory"
    assert bound.seconds == sum(stored.values()) - stored["shared.weight"]


def test_the_nearest_limit_is_named(tmp_path: Path) -> None:
    bundle = export(t5_checkpoint(tmp_path / "t5", layers=4), tmp_path / "bundle", PLAN)
    work = Work.planned(bundle_encoder(bundle), bundle.manifest)
    hardware = Hardware(copy_bytes_per_second=1e18, matmul_flops_per_second={"fp32": 100.0})
    bound = work.bound(hardware, "fp32", flops=200, median=8.0)
    assert bound is not None
    assert (bound.name, bound.seconds, bound.share) == ("compute", 2.0, 0.25)
    assert work.bound(hardware, "bf16", flops=200, median=8.0) is None
    nothing = Hardware(copy_bytes_per_second=None, matmul_flops_per_second={"fp32": 100.0})
    assert work.bound(nothing, "fp32", flops=200, median=8.0) is None
