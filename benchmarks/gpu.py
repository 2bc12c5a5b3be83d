"""Memory, latency and fidelity on an NVIDIA GPU: PyTorch, torch.compile and ours, beside what the GPU could reach.

    python benchmarks/gpu.py [--batch 1,8] [--sequence 512] [--runs N] [--work DIR]
    python benchmarks/gpu.py --device cpu --layers 2 --width 64 --sequence 16 --batch 1      to try it without a GPU

A T5-XXL encoder of random bf16 weights, dense and with FLUX.1-dev's order dropped to 41.9%, fed as FLUX.1 feeds it: all
tokens, no mask; measured as `skrr-export measure --device cuda` does it. It needs the package, torch and transformers;
onnxruntime-gpu and nvidia-ml-py; a C++ compiler; and 40 GB of disk. The command fails if a subject cannot run, or if
one of ours is further from fp32 than bf16 explains; leave out with --subjects what is not installed.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from checkpoints import add_shape_arguments, chosen_checkpoint
from engines import published_plan
from exporters import export_bundle, positive
from openers import open_compiled
from process import CommandError
from report import add_work_argument, measure

from skrr_export.measure.machine import cores
from skrr_export.measure.subjects import Subject
from skrr_export.measure.worker import Opener
from skrr_export.measuring import MeasureOptions
from skrr_export.plan import Plan

SPARSITY = 0.419
COMPILE = "compile"
SUBJECTS = ("onnx", "pt2", "aoti", COMPILE)
PLANS = ("dense", "planned")


def torch_compile(bundle: Path, checkpoint: Path, device: str, sizes: int) -> Subject:
    """`torch.compile` under the plan, as a peer."""
    opener = Opener.of(open_compiled, bundle=bundle, checkpoint=checkpoint, device=device, threads=cores(), sizes=sizes)
    return Subject(name=COMPILE, title="torch.compile", role="peer", planned=True, opener=opener)


def parse_arguments() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--sequence", type=positive, default=512, help="tokens (default: 512)")
    parser.add_argument("--batch", type=_numbers, default=(1, 8), metavar="N,...", help="(default: 1,8)")
    parser.add_argument("--runs", type=positive, default=30, help="timed runs of each (default: 30)")
    for name, known in (("--subjects", SUBJECTS), ("--plans", PLANS)):
        parser.add_argument(name, type=_words, default=known, help=f"of {','.join(known)} (default: all)")
    parser.add_argument("--no-dense", action="store_true", help="leave out dense PyTorch, and so the loss of the plan")
    add_shape_arguments(parser)
    add_work_argument(parser)
    arguments = parser.parse_args()
    if not set(arguments.subjects) <= set(SUBJECTS) or not set(arguments.plans) <= set(PLANS):
        parser.error("no such subject or plan")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no GPU; --device cpu is to try it")
    return arguments


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(map(positive, text.split(",")))


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def main() -> None:
    """Command line."""
    arguments = parse_arguments()
    checkpoint, shape = chosen_checkpoint("xxl", arguments)
    plans = {"dense": Plan.identity("t5", shape.layers), "planned": published_plan(shape, SPARSITY)}
    targets = tuple(name for name in arguments.subjects if name != COMPILE)
    passed = True
    for name in arguments.plans:
        bundle = arguments.work / "gpu" / f"{name}.bundle"
        words = ("--pipeline", "flux.1", "--dtype", "bf16", "--to", ",".join(targets))
        try:
            export_bundle(checkpoint, bundle, *words, plan=plans[name])
        except CommandError as error:
            raise SystemExit(str(error)) from error
        compiled = torch_compile(bundle, checkpoint, arguments.device, len(arguments.batch))
        options = MeasureOptions(
            reference=None if arguments.no_dense else checkpoint,
            targets=targets,
            peers=(compiled,) if COMPILE in arguments.subjects else (),
            device=arguments.device,
            batches=arguments.batch,
            sequences=(arguments.sequence,),
            runs=arguments.runs,
            processes=1,
        )
        passed &= measure(f"gpu-{name}", bundle, options, arguments.work)
    if not passed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
