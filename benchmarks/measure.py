"""The report of a bundle: memory, latency and fidelity of a T5 v1.1 large encoder under a plan of 40% sparsity.

    python benchmarks/measure.py [--runs N] [--layers N] [--width N] [--work DIR]

Exports to onnx, pt2 and aoti, then runs `skrr-export measure`, and exits as it does. About 10 minutes on 2 cores.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time

from checkpoints import add_shape_arguments, chosen_checkpoint
from engines import SPARSITY, published_plan
from exporters import export_bundle, positive
from process import CommandError
from report import PROMPTS, add_work_argument
from search_models import write_tokenizer


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=positive, default=5, help="timed runs per subject and length (default: 5)")
    add_shape_arguments(parser)
    add_work_argument(parser)
    arguments = parser.parse_args()
    begin, work = time.monotonic(), arguments.work
    checkpoint, shape = chosen_checkpoint("large", arguments)
    bundle, report = work / "measure.bundle", work / "measure.html"
    words = ("--to", "onnx,pt2,aoti", "--tokenizer", str(write_tokenizer(work / "tokenizer")))
    try:
        export_bundle(checkpoint, bundle, *words, plan=published_plan(shape, SPARSITY))
    except CommandError as error:
        raise SystemExit(str(error)) from error
    command = [
        sys.executable, "-m", "skrr_export", "measure", str(bundle), "--reference", str(checkpoint),
        "--runs", str(arguments.runs), "--max-prompts", str(PROMPTS),
        "--html", str(report), "--json", str(work / "measure.json"),
    ]  # fmt: skip
    code = subprocess.run(command, check=False).returncode
    print(f"report: {report}, after {time.monotonic() - begin:.0f} s with the export")
    raise SystemExit(code)


if __name__ == "__main__":
    main()
