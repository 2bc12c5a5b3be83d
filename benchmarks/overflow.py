"""fp16 that cannot overflow, beside what else one can do with a T5 whose activations do not fit into fp16.

    python benchmarks/overflow.py [--shape base|large|tiny] [--work DIR]

Two encoders that compute the same in fp32 as a T5 of random weights, but for the epsilon of their norms, on larger
activations: in one the residual stream overflows fp16, in the other the gated product of the feed-forward as well. The
weights fit into fp16. Each is run on a CPU in real half precision, on ids that the export did not measure, and compared
with fp32; then ours once more under a plan that re-uses, compared with fp32 under that plan.

The command fails if ours has a value that is not finite, or is not closer to fp32 than bf16 is; or if the plain cast is
finite, for then the encoder is no test.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from checkpoints import SHAPES, Shape, ensure_checkpoint
from engines import published_plan
from exporters import positive
from report import add_work_argument, machine_line, print_table, write_records
from safetensors.numpy import load_file, save_file

from skrr_export.bundle import Bundle
from skrr_export.exporting import ExportOptions, export_checkpoint
from skrr_export.measure.fidelity import Deviation, DeviationMeter
from skrr_export.measure.limits import QUANTILES
from skrr_export.plan import Plan
from skrr_export.rescale import LARGEST
from skrr_export.targets import open_target

CASES = {"stream": (8_000.0, 1.0), "stream and product": (8_000.0, 10_000.0)}
"""How many times as large the residual stream and the gated product are; no powers of two."""
SPARSITY = 0.4
OURS = "ours: fp16, rescaled"
PLAIN = "fp16, cast as it is"
REFERENCE = "transformers fp32"
BF16 = "transformers bf16", "ours: bf16"
"""The rows whose error is the measure, in the dense table and under a plan."""
COLUMNS = (
    "", "weights bytes", "beyond half", "not finite", "relative L2", "to bf16's", *(f"|d| {q:g}" for q in QUANTILES),
    "head-room",
)  # fmt: skip

Ids = npt.NDArray[np.int64]
Values = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Row:
    """One way to run the encoder, and how far it is from fp32."""

    label: str
    nbytes: int
    deviation: Deviation
    headroom: float | None
    """How many times the largest activation that was measured goes into fp16; `None`: does not apply."""


def ensure_overflowing(directory: Path, shape: Shape, residual: float, inner: float) -> Path:
    """Write the checkpoint unless it is there; like `ensure_checkpoint` it leaves a stamp last."""
    stamp, wanted = directory / "benchmark-overflow.json", json.dumps([repr(shape), residual, inner])
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == wanted:
        return directory
    stamp.unlink(missing_ok=True)
    ensure_checkpoint(directory, shape)
    (directory / "benchmark-checkpoint.json").unlink()  # no longer what it says
    weights = load_file(directory / "model.safetensors")
    factors = {"shared": residual, "o": residual, "wi_1": inner, "wo": residual / inner}
    for name in weights:
        weights[name] *= np.float32(factors.get(name.split(".")[-2], 1))
        assert np.abs(weights[name]).max() <= LARGEST, name
    save_file(weights, directory / "model.safetensors", {"format": "pt"})
    stamp.write_text(wanted, encoding="utf-8")
    return directory


def inputs_of(shape: Shape, prompts: int, tokens: int) -> tuple[Ids, Ids]:
    """Random ids, and masks that leave from a quarter of them to all."""
    random = np.random.default_rng(20_25)
    ids = random.integers(2, shape.vocab, (prompts, tokens), dtype=np.int64)
    lengths = np.linspace(tokens, tokens // 4 + 1, prompts).astype(int)
    mask = (np.arange(tokens) < lengths[:, None]).astype(np.int64)
    return ids * mask, mask


class Comparison:
    """Runs encoders on the same inputs and compares each with the first; padding is left out."""

    def __init__(self, ids: Ids, mask: Ids, reference: Values) -> None:
        self._mask = mask != 0
        self._ids, self._padding, self._reference = ids, mask, reference[self._mask].astype(np.float64)

    def row(self, label: str, nbytes: int, run: Callable[[Ids, Ids], Values], headroom: float | None = None) -> Row:
        """Run one."""
        meter = DeviationMeter()
        meter.add(run(self._ids, self._padding)[self._mask].astype(np.float64), self._reference)
        return Row(label, nbytes, meter.result(), headroom)


def run_model(model: Any) -> Callable[[Ids, Ids], Values]:
    """A transformers model, on arrays."""

    def run(ids: Ids, mask: Ids) -> Values:
        with torch.inference_mode():
            output = model(input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask))
        values: Values = output.last_hidden_state.float().numpy()
        return values

    return run


def run_bundle(bundle: Bundle) -> Callable[[Ids, Ids], Values]:
    """A bundle's program, which torch runs in the precision of its weights."""
    session = open_target(bundle, "pt2")
    assert session.computes_in is bundle.manifest.dtype
    return lambda ids, mask: session.encode(ids, mask)["last_hidden_state"]


def weight_bytes(model: Any) -> int:
    """Of all parameters, each once."""
    return sum(parameter.nbytes for parameter in model.parameters())


def bundle_bytes(bundle: Bundle) -> int:
    """Of its parameters; the file's header and padding are no weights."""
    return bundle.manifest.kept_parameters * bundle.manifest.dtype.itemsize


def load(checkpoint: Path, dtype: torch.dtype) -> Any:
    """The encoder as transformers loads it."""
    from transformers import T5EncoderModel, logging

    logging.disable_progress_bar()
    return T5EncoderModel.from_pretrained(checkpoint, dtype=dtype).eval()


class Exports:
    """Bundles of a checkpoint under a plan."""

    def __init__(self, checkpoint: Path, work: Path, plan: Plan) -> None:
        self._checkpoint, self._work, self._plan = checkpoint, work, plan

    def __call__(self, dtype: str, *, rescale: bool = True) -> Bundle:
        """Export; fp16 is rescaled unless told not to."""
        options = ExportOptions(plan=self._plan, dtype=dtype, targets=("pt2",), rescale=rescale, replace=True)
        return export_checkpoint(self._checkpoint, self._work / f"{dtype}-{rescale}", options).bundle


def fp16_rows(comparison: Comparison, exports: Exports) -> list[Row]:
    """The plain cast and ours."""
    plain, ours = exports("fp16", rescale=False), exports("fp16")
    told = ours.manifest.rescaling or {}
    before = LARGEST / told["largest"]["value"]
    return [
        comparison.row(PLAIN, bundle_bytes(plain), run_bundle(plain), before),
        comparison.row(OURS, bundle_bytes(ours), run_bundle(ours), told["headroom"]),
    ]


def dense_rows(checkpoint: Path, work: Path, shape: Shape, inputs: tuple[Ids, Ids]) -> list[Row]:
    """What transformers offers, and ours, on the whole encoder."""
    reference = load(checkpoint, torch.float32)
    comparison = Comparison(*inputs, run_model(reference)(*inputs))
    rows = [comparison.row(REFERENCE, weight_bytes(reference), run_model(reference))]
    for label, model in (
        (BF16[0], load(checkpoint, torch.bfloat16)),
        ("transformers fp16: .half(), clamps", reference.half()),
        ("transformers fp16: loaded, wo in fp32", load(checkpoint, torch.float16)),
    ):
        rows.append(comparison.row(label, weight_bytes(model), run_model(model)))
    return rows + fp16_rows(comparison, Exports(checkpoint, work, Plan.identity("t5", shape.layers)))


def planned_rows(checkpoint: Path, work: Path, plan: Plan, inputs: tuple[Ids, Ids]) -> list[Row]:
    """Ours under a plan."""
    exports = Exports(checkpoint, work, plan)
    reference, half = exports("fp32"), exports("bf16")
    run = run_bundle(reference)
    comparison = Comparison(*inputs, run(*inputs))
    return [
        comparison.row("ours: fp32", bundle_bytes(reference), run),
        comparison.row(BF16[1], bundle_bytes(half), run_bundle(half)),
        *fp16_rows(comparison, exports),
    ]


def bf16_error(rows: list[Row]) -> float:
    """The error of the row in bf16."""
    error = next(row for row in rows if row.label in BF16).deviation.relative_l2
    assert error is not None
    return error


def table_row(row: Row, rows: list[Row]) -> list[str]:
    """A line of a table."""
    found = row.deviation
    half = next(row for row in rows if row.label in BF16).nbytes
    finite = found.relative_l2 is not None and not found.nonfinite
    errors = [f"{found.error_quantiles[str(q)]:.2e}" if found.error_quantiles and finite else "-" for q in QUANTILES]
    return [
        row.label,
        f"{row.nbytes:,}",
        f"{row.nbytes - half:+,}" if row.nbytes != half else "-",
        f"{found.nonfinite:,}",
        f"{found.relative_l2:.2e}" if finite else "-",
        f"{found.relative_l2 / bf16_error(rows):.3f}" if finite else "-",
        *errors,
        "-" if row.headroom is None else f"{row.headroom:.2g}",
    ]


def not_as_claimed(title: str, rows: list[Row]) -> list[str]:
    """What the rows contradict."""
    found = {row.label: row.deviation for row in rows}
    wrong = []
    if not found[PLAIN].nonfinite:
        wrong.append(f"{title}: the plain cast is finite")
    error = found[OURS].relative_l2
    if found[OURS].nonfinite or error is None:
        wrong.append(f"{title}: ours has {found[OURS].nonfinite} values that are not finite")
    elif error >= bf16_error(rows):
        wrong.append(f"{title}: ours is off by {error:.2e}, bf16 by {bf16_error(rows):.2e}")
    return wrong


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=("base", "large", "tiny"), default="base")
    parser.add_argument("--prompts", type=positive, default=4, help="to compare on (default: 4)")
    parser.add_argument("--tokens", type=positive, default=128, help="of the longest of them (default: 128)")
    add_work_argument(parser)
    arguments = parser.parse_args()
    shape, work = SHAPES[arguments.shape], arguments.work
    inputs = inputs_of(shape, arguments.prompts, arguments.tokens)
    plan = published_plan(shape, SPARSITY)
    records: list[dict[str, Any]] = []
    wrong = []
    for case, factors in CASES.items():
        folder = work / "overflow" / f"{arguments.shape}-{case.replace(' ', '-')}"
        checkpoint = ensure_overflowing(folder / "checkpoint", shape, *factors)
        tables = {
            "dense": dense_rows(checkpoint, folder, shape, inputs),
            f"planned, {plan.counts()['re-use']} re-used": planned_rows(checkpoint, folder, plan, inputs),
        }
        for name, rows in tables.items():
            title = f"fp16 where the {case} would overflow: T5 {shape.layers} layers x {shape.width}, {name}"
            print_table(title, COLUMNS, [table_row(row, rows) for row in rows])
            wrong += not_as_claimed(title, rows)
            facts = {"benchmark": "overflow", "case": case, "plan": name, "shape": arguments.shape}
            records += [
                {
                    **facts,
                    "subject": row.label,
                    "weight_bytes": row.nbytes,
                    "headroom": row.headroom,
                    "deviation": row.deviation.to_dict(),
                }
                for row in rows
            ]
    xxl = SHAPES["xxl"]
    extra = 2 * xxl.layers * xxl.width * xxl.d_ff
    print(
        f"\n{machine_line()}. {arguments.prompts} prompts of random ids, at most {arguments.tokens} tokens.\n"
        "Rows of padding do not count. |d|: quantiles of the absolute error; outputs have a standard deviation\n"
        "of about one. Head-room: how many times the largest activation, as measured by the export on other ids,\n"
        "goes into what fp16 can hold.\n"
        f"Keeping wo in fp32, as transformers does, takes {extra / 1e9:.1f} GB more on a T5-XXL: "
        f"{xxl.layers} x {xxl.width} x {xxl.d_ff} x 2 bytes."
    )
    write_records(work, "overflow", records)
    if wrong:
        raise SystemExit("not as claimed:\n" + "\n".join(wrong))


if __name__ == "__main__":
    main()
