"""What a preset and a plan save: the bytes of every pipeline's text encoders, from configurations alone.

    python benchmarks/savings.py [--sparsity 0.4] [--work DIR]

Every tensor's shape follows from the published configuration, and an encoder is laid out on the meta device, so that
this takes seconds and no weights. Dense: all of the encoder. Read: without the layers that no output of the pipeline
needs, which a bundle leaves out without any loss. Planned: under a plan that leaves out the given share of all
parameters, unread ones among them, its dropped sub-blocks evenly spread.
"""

from __future__ import annotations

import argparse
import bisect
import math
from collections.abc import Iterator, Mapping
from typing import Any

from published import ENCODERS
from report import add_work_argument, print_table, write_records

from skrr_export.encoders import encoder_of, parameter_shapes
from skrr_export.encoders.base import Encoder
from skrr_export.outputs import Output
from skrr_export.pipelines import PRESETS, find_preset
from skrr_export.plan import Plan
from skrr_export.search.baselines import uniform_order

BYTES = 2
"""Of a parameter in bf16."""
GB = 1e9


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sparsity", type=float, default=0.4, help="of the plan (default: %(default)s)")
    add_work_argument(parser)
    arguments = parser.parse_args()
    if not 0 < arguments.sparsity < 1:
        parser.error(f"a sparsity is a share above 0 and below 1, not {arguments.sparsity}")
    records = list(measure(arguments.sparsity))
    rows = [
        [
            f"{record['pipeline']}/{record['slot']}",
            record["encoder"],
            ", ".join(record["reads"]),
            *(f"{record[name] / GB:.2f} GB" for name in ("dense", "read", "planned")),
            f"{1 - record['read'] / record['dense']:.1%}",
            f"{1 - record['planned'] / record['dense']:.1%}",
        ]
        for record in records
    ]
    header = ("preset", "encoder", "reads", "dense", "read", "planned", "unread", "saved")
    print_table(f"bytes in bf16, plans of {arguments.sparsity:.0%}", header, rows)
    arguments.work.mkdir(parents=True, exist_ok=True)
    write_records(arguments.work, "savings", records)


def measure(sparsity: float) -> Iterator[Mapping[str, Any]]:
    """One record an encoder."""
    for preset in PRESETS.values():
        if preset.encoder is None:
            continue  # the plain preset is nobody's pipeline
        checkpoint = ENCODERS[f"{preset.name}/{preset.encoder}"]
        encoder = encoder_of(checkpoint.config, checkpoint.tensors)
        outputs = find_preset(f"{preset.name}/{preset.encoder}", encoder).outputs
        identity = Plan.identity(encoder.family, encoder.num_layers)
        yield {
            "pipeline": preset.name,
            "slot": preset.encoder,
            "encoder": checkpoint.name,
            "reads": [described(output) for output in preset.outputs],
            "tokens": preset.max_length,
            "padding": preset.padding,
            "masked": preset.masked,
            "layers": encoder.num_layers,
            "depth": encoder.depth(outputs),
            "dense": nbytes(encoder, identity),
            "read": nbytes(encoder, identity, outputs),
            "planned": nbytes(encoder, planned(encoder, outputs, sparsity), outputs),
            "sparsity": sparsity,
        }


def described(output: Output) -> str:
    """An output as a pipeline's code reads it."""
    if output.kind != "hidden_states":
        return output.kind
    return f"hidden_states[{', '.join(map(str, output.layers)) or '1:'}]"


def nbytes(encoder: Encoder, plan: Plan, outputs: tuple[Output, ...] | None = None) -> int:
    """Of the tensors that outputs need under a plan."""
    return BYTES * sum(math.prod(shape) for shape in parameter_shapes(encoder, plan, outputs).values())


def planned(encoder: Encoder, outputs: tuple[Output, ...], sparsity: float) -> Plan:
    """The first evenly spread plan that leaves out at least such a share of the encoder."""
    target = (1 - sparsity) * nbytes(encoder, Plan.identity(encoder.family, encoder.num_layers))
    order = [unit for (unit,) in uniform_order([(unit,) for unit in range(2 * encoder.depth(outputs))])]

    def plan(count: int) -> Plan:
        return Plan.from_order(encoder.family, encoder.num_layers, order, drop=count)

    counts = range(len(order) + 1)
    count = bisect.bisect_left(counts, -target, key=lambda count: -nbytes(encoder, plan(count), outputs))
    if count == len(counts):
        raise SystemExit(f"no plan leaves out {sparsity:.0%} of this {encoder.family} encoder")
    return plan(count)


if __name__ == "__main__":
    main()
