"""`skrr-export measure`."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from skrr_export.cli.output import Output

_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30}


def _numbers(text: str) -> tuple[int, ...]:
    """Comma-separated whole numbers."""
    try:
        return tuple(int(number) for number in text.split(","))
    except ValueError:
        raise click.BadParameter(f"'{text}' is not a list of whole numbers such as 77,256") from None


def _bytes(text: str) -> int:
    """A size such as 600MiB."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", text.strip().lower())
    if match is None or match[2] not in _UNITS:
        raise click.BadParameter(f"'{text}' is not a size such as 600MiB or 1.5GB")
    return int(float(match[1]) * _UNITS[match[2]])


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--reference", help="The original checkpoint: adds the dense encoder, the loss, and baking to the test.")
@click.option("--subfolder", help="Folder of the reference that holds the encoder.")
@click.option("--to", "targets", default="all", show_default=True, help="Targets, comma-separated; onnx:prepacked too.")
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda, or cuda:N.")
@click.option("--batch", "batches", type=_numbers, metavar="N,...", help="Batch sizes to time.  [default: 1]")
@click.option(
    "--sequence",
    "sequences",
    type=_numbers,
    metavar="N,...",
    help="Lengths to time.  [default: the pipeline's, or 77,256,512]",
)
@click.option("--prompts", "prompts_file", type=click.Path(path_type=Path), help="Prompts, one a line; default: ours.")
@click.option("--max-prompts", type=click.IntRange(1), help="Take so many of them, evenly spread.")
@click.option("--denoiser", help="Compare embeddings also after this denoiser's text projection.")
@click.option("--threads", type=click.IntRange(1), help="For one call.  [default: the cores]")
@click.option("--runs", default=9, show_default=True, type=click.IntRange(1), help="Timed runs of each size.")
@click.option("--processes", default=2, show_default=True, type=click.IntRange(1), help="To sum up the memory of.")
@click.option(
    "--time-limit",
    default=600.0,
    show_default=True,
    type=click.FloatRange(0, min_open=True),
    help="Seconds after which a subject counts as hung.",
)
@click.option("--max-drift", type=click.FloatRange(0), help="Fail if a target's drift, relative L2, is larger.")
@click.option("--max-loss", type=click.FloatRange(0), help="Fail if a target's loss, relative L2, is larger.")
@click.option(
    "--max-memory", type=_bytes, metavar="SIZE", help="Fail if a target's peak RSS, or memory on the GPU, is larger."
)
@click.option(
    "--max-latency-ratio", type=click.FloatRange(0), help="Fail if a target takes more times as long as PyTorch."
)
@click.option("--html", "html_file", type=click.Path(path_type=Path), help="Write a report for a browser.")
@click.option("--json", "json_file", is_flag=False, flag_value="-", metavar="[FILE]", help="Write or print as JSON.")
@click.option("--quiet", is_flag=True, help="Print errors and warnings only.")
def command(
    bundle: Path,
    reference: str | None,
    subfolder: str | None,
    targets: str,
    prompts_file: Path | None,
    time_limit: float,
    max_drift: float | None,
    max_loss: float | None,
    max_memory: int | None,
    max_latency_ratio: float | None,
    html_file: Path | None,
    json_file: str | None,
    quiet: bool,
    **options: Any,
) -> None:
    """Measure memory, latency and fidelity of a bundle's targets beside PyTorch; exit 1 when a check fails.

    Each subject runs in processes of its own. Memory is what the kernel counts, times are of runs in turn, and fidelity
    is against transformers in fp32. What cannot be measured is said to be so, with the reason, and the rest goes on.

    \b
    Examples:
      skrr-export measure t5.bundle --reference t5-v1_1-xxl --html report.html --json report.json
      skrr-export measure t5.bundle --to onnx --batch 1,8 --sequence 77,512
      skrr-export measure t5.bundle --max-memory 6GiB --max-drift 1e-4 --max-latency-ratio 1.1
    """
    from skrr_export.bundle import open_bundle
    from skrr_export.cli.measure_tables import tables
    from skrr_export.measure.record import Measurement
    from skrr_export.measure.verdicts import Thresholds
    from skrr_export.measuring import MeasureOptions, measure_bundle
    from skrr_export.page.measurement import page
    from skrr_export.prompts import read_prompts
    from skrr_export.staging import check_writable, write_file

    output = Output(json_file == "-", quiet)
    files: dict[Path, Callable[[Measurement], str]] = {}
    if html_file is not None:
        files[html_file] = page
    if json_file is not None and json_file != "-":
        files[Path(json_file)] = Measurement.to_json
    for file in files:
        check_writable(file)
    thresholds = Thresholds(
        max_drift=max_drift, max_loss=max_loss, max_memory=max_memory, max_latency_ratio=max_latency_ratio
    )
    request = MeasureOptions(
        reference=reference,
        subfolder=subfolder,
        targets=tuple(name.strip() for name in targets.split(",")),
        prompts=None if prompts_file is None else read_prompts(prompts_file),
        time_limit=time_limit,
        thresholds=thresholds,
        command=shlex.join(["skrr-export", *sys.argv[1:]]),
        **options,
    )
    opened = open_bundle(bundle)
    with output.progress(lines=True) as progress:
        measurement = measure_bundle(opened, request, progress)
    for file, make in files.items():
        write_file(file, make(measurement).encode())
    output.result(measurement.to_dict(), *tables(measurement), *(f"written to {file}" for file in files))
    if not measurement.passed:
        raise SystemExit(1)
