"""TensorRT-RTX engines built without a GPU: how long it takes, how much memory, and how large they are.

    python benchmarks/engines.py [--shape large|tiny] [--dtype fp16|bf16] [--sm 89,120] [--work DIR]

A T5 encoder of 24 layers, dense and with FLUX.1-dev's order dropped to a sparsity of 40%, the first units re-used. Each
build is a fresh process. The command fails if an engine is larger than the weights it holds, each counted once, or does
not shrink as they do. The tiny shape is to try it: there the engine's code outweighs its weights, and goes unchecked.
"""

from __future__ import annotations

import argparse
import json
import shutil
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from checkpoints import BYTES_PER_ELEMENT, SHAPES, Shape, ensure_checkpoint, parameter_count, unit_parameters
from export import REUSED, nearest_kept, read_through
from exporters import export_bundle, positive
from process import MIB, CommandError, Result
from report import add_work_argument, machine_line, print_table, write_records

from skrr_export.plan import Plan
from skrr_export.published import find_published
from skrr_export.search.goal import units_needed

ORDER, SPARSITY = "flux.1-dev", 0.4
LARGER, SLACK = 1.03, 3 * MIB
"""How many times its weights an engine may take, and what it may take besides."""
COLUMNS = (
    "plan", "sparsity", "re-used", "build s", "command s", "cpu s", "peak RSS MiB", "peak anonymous MiB",
    "unique weights bytes", "engine bytes", "ratio", "to dense",
)  # fmt: skip


def published_plan(shape: Shape, sparsity: float, reused: int = REUSED) -> Plan:
    """The least of the order's units dropped that reach a sparsity, the first of them re-used.

    A smaller encoder lacks some of the units. Where the order does not reach so far, all of it is dropped.
    """
    order = [unit for unit in find_published(ORDER).units if unit < 2 * shape.layers]
    total = parameter_count(shape)
    reached = [dropped / total for dropped in accumulate(unit_parameters(shape, unit) for unit in order)]
    drop = units_needed(reached, min(sparsity, reached[-1]))
    dropped = frozenset(order[:drop])
    reuse = {unit: nearest_kept(unit, dropped, 2 * shape.layers) for unit in order[: min(reused, drop)]}
    return Plan.from_order("t5", shape.layers, order, drop=drop, reuse=reuse)


@dataclass(frozen=True, slots=True)
class Build:
    """One engine, and what it took."""

    label: str
    plan: Plan
    result: Result
    document: dict[str, Any]
    """What `export --json` said."""

    @property
    def seconds(self) -> float:
        """Of the build alone, once weights are baked and the graph is traced."""
        seconds: float = self.document["reports"]["tensorrt-rtx"]["seconds"]
        return seconds

    @property
    def sizes(self) -> tuple[int, int]:
        """Bytes of the engine and of the weights it was built from, each counted once."""
        build = self.document["targets"]["tensorrt-rtx"]["build"]
        return build["engine_bytes"], build["weights_bytes"]


def build_engine(label: str, plan: Plan, checkpoint: Path, work: Path, options: list[str]) -> Build:
    """Build in a fresh process; the bundle is not kept."""
    bundle = work / f"{label}.bundle"
    result = export_bundle(checkpoint, bundle, "--to", "tensorrt-rtx", *options, plan=plan)
    shutil.rmtree(bundle)
    return Build(label, plan, result, json.loads(result.stdout))


def table_row(build: Build, dense: Build) -> list[str]:
    """A line of the table."""
    engine, weights = build.sizes
    return [
        build.label,
        f"{build.document['sparsity']:.1%}",
        str(build.plan.counts()["re-use"]),
        f"{build.seconds:.1f}",
        f"{build.result.wall_seconds:.1f}",
        f"{build.result.cpu_seconds:.1f}",
        f"{build.result.peak_rss_bytes / MIB:,.0f}",
        f"{build.result.peak_anonymous_bytes / MIB:,.0f}",
        f"{weights:,}",
        f"{engine:,}",
        f"{engine / weights:.3f}",
        f"{engine / dense.sizes[0]:.3f}",
    ]


def not_as_claimed(builds: list[Build], dtype: str, *, sizes: bool) -> list[str]:
    """What the engines contradict; `sizes`: theirs, too."""
    wrong = []
    for build in builds:
        engine, weights = build.sizes
        if weights != build.document["kept_parameters"] * BYTES_PER_ELEMENT[dtype]:
            wrong.append(f"{build.label}: built from {weights:,} bytes of weights, which are not those the plan keeps")
        if sizes and engine > LARGER * weights + SLACK:
            wrong.append(f"{build.label}: {engine:,} bytes for {weights:,} of weights")
    (dense, dense_weights), (planned, planned_weights) = (build.sizes for build in builds)
    if sizes and dense - planned < (dense_weights - planned_weights) / LARGER - SLACK:
        saved = dense_weights - planned_weights
        wrong.append(f"the plan saves {saved:,} bytes of weights, but {dense - planned:,} of the engine")
    return wrong


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=("large", "tiny"), default="large")
    parser.add_argument("--dtype", choices=("fp16", "bf16"), default="fp16")
    parser.add_argument("--sm", help="compute capabilities, separated by commas (default: the command's own)")
    parser.add_argument("--runs", type=positive, default=1, help="builds of each; the last is shown (default: 1)")
    add_work_argument(parser)
    arguments = parser.parse_args()
    shape, work = SHAPES[arguments.shape], arguments.work
    options = ["--dtype", arguments.dtype, *([] if arguments.sm is None else ["--sm", arguments.sm])]
    plans = {"dense": Plan.identity("t5", shape.layers), "planned": published_plan(shape, SPARSITY)}
    try:
        checkpoint = ensure_checkpoint(work / "checkpoints" / arguments.shape, shape)
        read_through(checkpoint)
        runs = [
            [build_engine(label, plan, checkpoint, work / "engines", options) for label, plan in plans.items()]
            for _ in range(arguments.runs)
        ]
    except CommandError as error:
        raise SystemExit(str(error)) from error
    builds = runs[-1]
    entry = builds[0].document["targets"]["tensorrt-rtx"]
    print_table(
        f"TensorRT-RTX {entry['library']} engines, T5 {shape.layers} layers x {shape.width}, {arguments.dtype}, "
        f"SM {', '.join(entry['compute_capabilities'])}",
        COLUMNS,
        [table_row(build, builds[0]) for build in builds],
        f"{machine_line()}, no GPU used; a fresh process each. The profile is {entry['profile']}.\n"
        f"Planned: {ORDER}'s order. Build: TensorRT's part; command: all of `export`, baking, and in fp16 measuring\n"
        "activations, included. Weights are counted once, re-used or not. Peak RSS counts mapped files.",
    )
    records = []
    for repetition, run in enumerate(runs):
        for build in run:
            facts = {"benchmark": "engines", "subject": build.label, "repetition": repetition}
            records.append({**facts, **build.result.facts(), "reused": build.plan.counts()["re-use"],
                            "export": build.document})  # fmt: skip
    write_records(work, "engines", records)
    if wrong := not_as_claimed(builds, arguments.dtype, sizes=arguments.shape == "large"):
        raise SystemExit("not as claimed:\n" + "\n".join(wrong))


if __name__ == "__main__":
    main()
