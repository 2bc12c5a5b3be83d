"""Half precision on a CPU: what compiling gives, and what half-precision weights cost on ONNX Runtime.

    python benchmarks/compiled.py [--runs N] [--layers N] [--width N] [--work DIR]

The dense T5 v1.1 large encoder in bf16: PyTorch and our targets, and ONNX Runtime with fp16 and fp32 weights, measured
as `skrr-export measure` does it. Before, each target is exported in a fresh process, and that is measured too. The
command fails if one of ours is further from fp32 than its precision explains.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from checkpoints import BYTES_PER_ELEMENT, add_shape_arguments, chosen_checkpoint, parameter_count
from exporters import export_bundle, positive
from process import MIB, CommandError
from report import PROMPTS, add_work_argument, machine_line, measure, print_table, write_records
from search_models import write_tokenizer

from skrr_export.measure import openers
from skrr_export.measure.machine import cores
from skrr_export.measure.subjects import Subject
from skrr_export.measure.worker import Opener
from skrr_export.measuring import MeasureOptions

if TYPE_CHECKING:
    from collections.abc import Mapping

KINDS = (("onnx", "fp32"), ("onnx", "fp16"), ("onnx", "bf16"), ("pt2", "bf16"), ("aoti", "bf16"))
COLUMNS = ("target", "weights", "export s", "cpu s", "peak RSS MiB", "peak anonymous MiB", "target's bytes")


def export(checkpoint: Path, target: str, dtype: str, bundle: Path) -> dict[str, Any]:
    """Export to one target; returns what it took, and the bytes of the target's files, weights aside."""
    result = export_bundle(checkpoint, bundle, "--to", target, "--dtype", dtype)
    entry = json.loads(result.stdout)["targets"][target]
    return {"target": target, "dtype": dtype, "target_bytes": target_bytes(bundle, entry), **result.facts()}


def target_bytes(bundle: Path, entry: Mapping[str, Any]) -> int:
    """Bytes of a target's files: its packages, or its graph and the one for CPUs."""
    names = [*entry.get("packages", {"": entry["file"]}).values()]
    if isinstance(entry.get("cpu"), dict):
        names.append(entry["cpu"]["file"])
    return sum((bundle / name).stat().st_size for name in names)


def print_exports(exports: list[dict[str, Any]], parameters: int) -> None:
    """Print the table of exports."""
    rows = []
    for one in exports:
        times = [f"{one[name]:.1f}" for name in ("wall_seconds", "cpu_seconds")]
        sizes = [f"{one[name] / MIB:,.0f}" for name in ("peak_rss_bytes", "peak_anonymous_bytes")]
        rows.append([one["target"], one["dtype"], *times, *sizes, f"{one['target_bytes']:,}"])
    weights = ", ".join(f"{parameters * BYTES_PER_ELEMENT[dtype]:,} in {dtype}" for dtype in ("fp32", "bf16"))
    print_table(
        "Export",
        COLUMNS,
        rows,
        f"{machine_line()}; a fresh process each, once; the whole command, baking included. Peak RSS is of the\n"
        f"largest process, compilers included. Bytes of weights, in a file that targets share: {weights}.",
    )


def peer(dtype: str, bundle: Path) -> Subject:
    """ONNX Runtime with weights of another precision."""
    opener = Opener.of(openers.open_session, bundle=bundle, target="onnx", mode="mapped", device="cpu", threads=cores())
    title = f"ONNX Runtime, {dtype} weights"
    return Subject(name=f"onnx-{dtype}", title=title, role="peer", planned=False, opener=opener)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=positive, default=9, help="timed runs per subject and length (default: 9)")
    add_shape_arguments(parser)
    add_work_argument(parser)
    arguments = parser.parse_args()
    work, bundles = arguments.work, arguments.work / "compiled"
    checkpoint, shape = chosen_checkpoint("large", arguments)
    try:
        exports = [export(checkpoint, *kind, bundles / "-".join(kind)) for kind in KINDS]
        tokenizer = write_tokenizer(work / "tokenizer")
        export_bundle(
            checkpoint, bundles / "bf16", "--to", "onnx,pt2,aoti", "--dtype", "bf16", "--tokenizer", str(tokenizer)
        )
    except CommandError as error:
        raise SystemExit(str(error)) from error
    print_exports(exports, parameter_count(shape))
    write_records(work, "compiled-export", exports)
    options = MeasureOptions(
        reference=checkpoint,
        targets=("onnx", "pt2", "aoti"),
        peers=tuple(peer(dtype, bundles / f"onnx-{dtype}") for dtype in ("fp16", "fp32")),
        runs=arguments.runs,
        max_prompts=PROMPTS,
    )
    if not measure("compiled", bundles / "bf16", options, work):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
