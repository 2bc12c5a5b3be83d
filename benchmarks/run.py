"""Memory, latency and fidelity on a CPU: PyTorch, ours, and the peers' ONNX files.

    python benchmarks/run.py [--runs N] [--subjects NAMES] [--layers N] [--width N] [--work DIR]

All run the same dense fp32 T5 v1.1 large encoder, measured as `skrr-export measure` does it: each in processes of its
own, timed in turn, files in the page cache. The command fails if one of ours is something else than PyTorch. A peer
whose graph ignores the mask is not: its drift says so, for prompts are padded.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from checkpoints import add_shape_arguments, chosen_checkpoint
from exporters import OURS, add_common_arguments, ensure_export, export_bundle, exporter, positive
from openers import open_onnx
from process import CommandError
from report import PROMPTS, measure
from search_models import write_tokenizer

from skrr_export.measure.machine import cores
from skrr_export.measure.subjects import Subject
from skrr_export.measure.worker import Opener
from skrr_export.measuring import MeasureOptions


def peer(name: str, checkpoint: Path, exports: Path) -> Subject:
    """A peer's export of the checkpoint."""
    opener = Opener.of(open_onnx, directory=ensure_export(name, checkpoint, exports / name), threads=cores())
    return Subject(name=name, title=exporter(name).title(), role="peer", planned=False, opener=opener)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=positive, default=9, help="timed runs per subject and length (default: 9)")
    add_shape_arguments(parser)
    add_common_arguments(parser)
    arguments = parser.parse_args()
    work = arguments.work
    checkpoint, _ = chosen_checkpoint("large", arguments)
    exports = work / "exports" / checkpoint.name
    try:
        export_bundle(checkpoint, exports / OURS, "--tokenizer", str(write_tokenizer(work / "tokenizer")))
        peers = tuple(peer(name, checkpoint, exports) for name in arguments.subjects if name != OURS)
    except CommandError as error:
        raise SystemExit(str(error)) from error
    options = MeasureOptions(reference=checkpoint, peers=peers, runs=arguments.runs, max_prompts=PROMPTS)
    if not measure("run", exports / OURS, options, work):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
