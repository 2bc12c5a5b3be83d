"""Serving: the C++ tool beside the Python session, and a Triton server under load.

    python benchmarks/serve.py --skrr PREFIX [--part cpp|triton] [--runs N] [--seconds S] [--layers N] [--width N]

Both serve the dense fp32 T5 v1.1 large encoder, prompts padded to 77 tokens, on this machine's CPU. The command fails
if an answer is wrong or missing, if C++ takes longer than Python by more than 2%, or if the server's memory grows.
PREFIX is where `make cpp` installed the C++ runtime.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from checkpoints import add_shape_arguments, chosen_checkpoint
from exporters import REPOSITORY, export_bundle, positive
from process import CommandError
from report import add_work_argument
from serve_cpp import measure_cpp
from serve_triton import measure_triton

from skrr_export.prompts import calibration_prompts

SEQUENCE = 77
INSTALLED = REPOSITORY / "build" / "cpp" / "prefix"


def write_sentencepiece(directory: Path) -> Path:
    """A SentencePiece model trained on the shipped captions, so that C++ tokenises too; returns the directory."""
    import sentencepiece

    directory.mkdir(parents=True, exist_ok=True)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(calibration_prompts()),
        model_prefix=str(directory / "spiece"),
        vocab_size=1000,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    return directory


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("cpp", "triton"), help="only this (default: both)")
    parser.add_argument("--skrr", type=Path, default=INSTALLED, metavar="PREFIX", help="default: %(default)s")
    parser.add_argument("--runs", type=positive, default=9, help="timed runs (default: 9)")
    parser.add_argument("--seconds", type=positive, default=60, help="of each load (default: 60)")
    add_shape_arguments(parser)
    add_work_argument(parser)
    arguments = parser.parse_args()
    work = arguments.work
    checkpoint, _ = chosen_checkpoint("large", arguments)
    bundles = work / "serve" / checkpoint.name
    tokenizer = str(write_sentencepiece(work / "sentencepiece"))
    passed = True
    try:
        if arguments.part != "triton":
            bundle = bundles / "free.bundle"
            export_bundle(checkpoint, bundle, "--tokenizer", tokenizer)
            passed &= measure_cpp(arguments.skrr, bundle, checkpoint, work, arguments.runs)
        if arguments.part != "cpp":
            bundle = bundles / "served.bundle"
            export_bundle(checkpoint, bundle, "--tokenizer", tokenizer, "--sequence", str(SEQUENCE))
            passed &= measure_triton(bundle, work, arguments.seconds)
    except CommandError as error:
        raise SystemExit(str(error)) from error
    if not passed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
