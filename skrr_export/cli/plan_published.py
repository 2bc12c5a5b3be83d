"""`skrr-export plan published`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from skrr_export.cli.output import Output, output_options
from skrr_export.cli.searches import calibration_options, run_search
from skrr_export.errors import InputError
from skrr_export.plan import Plan
from skrr_export.plan_view import summary
from skrr_export.published import PUBLISHED, SOURCE, PublishedOrder, find_published, prefix_for, published_sparsities
from skrr_export.search.goal import parse_sparsities
from skrr_export.searching import SearchOptions, reuse_published
from skrr_export.staging import write_file

if TYPE_CHECKING:
    from rich.table import Table

_WITHOUT_CHECKPOINT = ("name", "sparsity", "plan_file", "listing", "as_json", "quiet")
"""Parameters that matter where nothing is re-used."""


@click.command()
@click.argument("name", required=False)
@click.option("--list", "listing", is_flag=True, help="Show the published orders.")
@click.option("--sparsity", help="Share of the parameters to do without, e.g. 0.419.")
@click.option("-o", "--output", "plan_file", type=click.Path(path_type=Path), help="Plan file to write.")
@click.option("--checkpoint", help="The T5-XXL: choose on its weights what runs in the dropped units' places.")
@click.option("--method", default="skrr", show_default=True, type=click.Choice(["skrr", "skrr+"]), help="Of re-use.")
@click.option("--pipeline", help="What feeds the encoder: a preset's name; default: the order's own.")
@calibration_options
@output_options
def command(
    name: str | None,
    listing: bool,
    sparsity: str | None,
    plan_file: Path | None,
    checkpoint: str | None,
    method: str,
    pipeline: str | None,
    calibration: dict[str, Any],
    resume: bool,
    output: Output,
) -> None:
    """Make a plan from an order in which the paper drops the sub-blocks of T5-XXL, without a search.

    Without --checkpoint the plan only skips. With it, re-use is decided on that checkpoint's weights: by the paper's
    Algorithm 2 (two evaluations for each dropped unit), or with --method skrr+ from every kept unit until nothing
    improves. The orders are for T5-XXL; for any other encoder use `plan search`.

    \b
    Examples:
      skrr-export plan published --list
      skrr-export plan published flux.1-dev --sparsity 0.419 -o plan.json
      skrr-export plan published flux.1-dev --sparsity 0.419 --checkpoint FLUX.1-dev --subfolder text_encoder_2 \\
          --denoiser FLUX.1-dev/transformer --max-prompts 64 -o plan.json
    """
    if listing:
        _show(output)
        return
    if name is None or sparsity is None or plan_file is None:
        raise click.UsageError("NAME, --sparsity and -o are needed, or --list", click.get_current_context())
    order = find_published(name)
    sparsities = parse_sparsities(sparsity)
    if checkpoint is None:
        _refuse_unused(click.get_current_context())
        _from_order(order, sparsities, plan_file, output)
        return
    options = SearchOptions(sparsities=sparsities, method=method, pipeline=pipeline or order.pipeline, **calibration)
    run_search(
        lambda journal, progress: reuse_published(
            checkpoint, order, options, journal=journal, resume=resume, progress=progress
        ),
        plan_file,
        sparsities,
        output,
    )


def _refuse_unused(ctx: click.Context) -> None:
    for name in ctx.params:
        given = ctx.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE
        if given and name not in _WITHOUT_CHECKPOINT:
            option = f"--{name.replace('_', '-')}"
            raise click.UsageError(f"{option} is about re-use, which is decided on weights: give --checkpoint too", ctx)


def _from_order(order: PublishedOrder, sparsities: tuple[float, ...], plan_file: Path, output: Output) -> None:
    if len(sparsities) > 1:
        raise InputError("without --checkpoint one --sparsity makes one plan; give one at a time")
    count = prefix_for(order, sparsities[0])
    reached = published_sparsities(order)[count - 1]
    plan = Plan.from_order(
        "t5",
        24,
        order.units,
        drop=count,
        provenance={
            "method": "published",
            "source": f"{SOURCE}: {order.denoiser}",
            "order": list(order.units[:count]),
            "sparsity": {"wanted": sparsities[0], "reached": reached},
        },
    )
    write_file(plan_file, plan.to_json().encode())
    output.result({"file": str(plan_file), **plan.to_dict()}, f"{plan_file}: {summary(plan)}, sparsity {reached:.1%}")


def _show(output: Output) -> None:
    document = {
        name: {
            "denoiser": order.denoiser,
            "pipeline": order.pipeline,
            "units": list(order.units),
            "sparsities": published_sparsities(order),
        }
        for name, order in PUBLISHED.items()
    }
    output.result({"source": SOURCE, "orders": document}, _table(), SOURCE)


def _table() -> Table:
    from rich.table import Table

    view = Table("name", "pipeline", "units", "up to", "order", title="Published skip orders", title_justify="left")
    for name, order in PUBLISHED.items():
        last = published_sparsities(order)[-1]
        view.add_row(name, order.pipeline, str(len(order.units)), f"{last:.1%}", ", ".join(map(str, order.units)))
    return view
