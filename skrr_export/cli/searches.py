"""What `plan search` and `plan published` share: the options of a calibration, and the run of a long job."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from skrr_export.cli.output import Output
from skrr_export.plan_view import summary
from skrr_export.progress import Progress
from skrr_export.searching import DTYPES
from skrr_export.staging import check_writable, write_file

if TYPE_CHECKING:
    from skrr_export.plan import Plan

F = TypeVar("F", bound=Callable[..., Any])

_OPTIONS = (
    click.option("--denoiser", help="The denoiser whose text projection D is taken after: directory or safetensors."),
    click.option("--prompts", type=click.Path(path_type=Path), help=".txt, .csv or .jsonl; default: the shipped ones."),
    click.option("--max-prompts", type=int, help="Use this many of the prompts, evenly spread; default: all."),
    click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N."),
    click.option("--dtype", type=click.Choice(DTYPES), help="To compute in; default: fp32, on a GPU the checkpoint's."),
    click.option("--cache-gb", type=float, help="For hidden states candidates share; default: a fifth of the memory."),
    click.option("--subfolder", help="The encoder's folder in a pipeline directory, e.g. text_encoder_2."),
    click.option("--tokenizer", type=click.Path(path_type=Path), help="Tokenizer's directory; default: found beside."),
    click.option("--resume", is_flag=True, help="Go on with an unfinished search of the same plan file."),
)


def calibration_options(function: F) -> F:
    """Add what decides a calibration; the command gets it as `calibration`, keywords of `SearchOptions`."""

    @wraps(function)
    def command(
        *args: Any,
        denoiser: str | None,
        prompts: Path | None,
        max_prompts: int | None,
        device: str,
        dtype: str | None,
        cache_gb: float | None,
        subfolder: str | None,
        tokenizer: Path | None,
        **options: Any,
    ) -> Any:
        from skrr_export.prompts import read_prompts

        calibration = {
            "denoiser": denoiser,
            "prompts": None if prompts is None else read_prompts(prompts),
            "max_prompts": max_prompts,
            "device": device,
            "dtype": dtype,
            "cache_gb": cache_gb,
            "subfolder": subfolder,
            "tokenizer": tokenizer,
        }
        return function(*args, calibration=calibration, **options)

    for option in reversed(_OPTIONS):
        command = option(command)
    return command  # type: ignore[return-value]


def run_search(
    find: Callable[[Path, Progress], list[Plan]], plan_file: Path, sparsities: Sequence[float], output: Output
) -> None:
    """Run a search, write its plans, say what was found, and remove the journal.

    Args:
        find: searches, given the journal's path.
        plan_file: where the plan goes; several go beside it, under names that tell their sparsity.
        sparsities: that were asked for.
        output: for the words.
    """
    first = os.environ.get("RANK", "0") == "0"  # of the processes that torchrun started, the one that speaks
    writes = os.environ.get("GROUP_RANK", "0") == "0"  # of the machines that torchrun uses, the one that writes
    if writes:
        check_writable(plan_file)
    files = [plan_file] if len(sparsities) == 1 else [_numbered(plan_file, sparsity) for sparsity in sparsities]
    for file in files if writes else []:
        check_writable(file)
    journal = plan_file.with_name(f"{plan_file.name}.journal")
    output = output if first else Output(json=False, quiet=True)
    try:
        with output.progress(lines=True) as progress:
            plans = find(journal, progress)
    except KeyboardInterrupt:
        if first and journal.exists():
            click.echo(f"{journal} keeps what was decided; the same command with --resume goes on", err=True)
        raise
    if not first:
        return
    for plan, file in zip(plans, files, strict=True):
        write_file(file, plan.to_json().encode())
    journal.unlink(missing_ok=True)
    truncated = plans[0].provenance["calibration"]["truncated"]
    if truncated:
        output.warn(f"{truncated} prompts are longer than the pipeline takes; they were cut, as it would do")
    documents = [{"file": str(file), **plan.to_dict()} for plan, file in zip(plans, files, strict=True)]
    lines = [line for plan, file in zip(plans, files, strict=True) for line in _lines(plan, file)]
    output.result(documents[0] if len(documents) == 1 else {"plans": documents}, *lines)


def _numbered(plan_file: Path, sparsity: float) -> Path:
    return plan_file.with_name(f"{plan_file.stem}-{sparsity}{plan_file.suffix}")


def _lines(plan: Plan, file: Path) -> list[str]:
    sparsity: dict[str, Any] = plan.provenance["sparsity"]
    discrepancy: dict[str, Any] = plan.provenance["discrepancy"]
    merged, null = plan.provenance.get("merged"), discrepancy["null"]
    terms = "" if null is None else f" ({discrepancy['prompts']:.4g} on the prompts, {null:.4g} on the empty one)"
    return [
        f"{file}: {summary(plan)}",
        f"sparsity {sparsity['reached']:.1%}, D {discrepancy['value']:.4g}{terms}, on {discrepancy['space']}",
        *([f"{len(plan.provenance['merges'])} merges: export {merged['name']} under this plan"] if merged else []),
    ]
