"""`skrr-export plan`."""

from __future__ import annotations

from pathlib import Path

import click

from skrr_export.cli.lazy import LazyGroup
from skrr_export.cli.output import Output, output_options
from skrr_export.page.record import read_record
from skrr_export.plan import Plan, parse_reuse, parse_units
from skrr_export.plan_view import summary, svg, table
from skrr_export.staging import write_file


@click.group(
    cls=LazyGroup,
    lazy={
        "search": ("skrr_export.cli.plan_search", "Search the plan that changes the embeddings least."),
        "published": ("skrr_export.cli.plan_published", "Make a plan from a published order, without a search."),
    },
    no_args_is_help=False,
)
def command() -> None:
    """Search, make, check and draw plans."""


@command.command("from-order")
@click.argument("order")
@click.option("--num-layers", type=int, required=True, help="Layers of the encoder.")
@click.option("--drop", type=int, required=True, help="How many units of the order are dropped.")
@click.option("--reuse", help="DROPPED:SOURCE units, comma-separated: the source runs in the dropped one's place.")
@click.option("--family", default="t5", show_default=True, help="Encoder family.")
@click.option("-o", "--output", "plan_file", required=True, type=click.Path(path_type=Path), help="Plan file to write.")
@output_options
def from_order(
    order: str, num_layers: int, drop: int, reuse: str | None, family: str, plan_file: Path, output: Output
) -> None:
    """Make a plan from the paper's notation.

    ORDER is a comma-separated list of units, first dropped first: 2 * layer is a layer's attention, 2 * layer + 1 its
    feed-forward.

    \b
    Example: 21 units of the paper's order for FLUX.1-dev (43.2% of T5-XXL), two of them replaced by re-use
      skrr-export plan from-order "46,45,5,6,11,20,19,22,23,30,29,47,2,44,32,31,18,17,37,36,43" \\
          --num-layers 24 --drop 21 --reuse 5:7,6:4 -o plan.json
    """
    plan = Plan.from_order(
        family,
        num_layers,
        parse_units(order),
        drop=drop,
        reuse=parse_reuse(reuse) if reuse else None,
        provenance={"method": "order", "order": order, "drop": drop, "reuse": reuse or ""},
    )
    write_file(plan_file, plan.to_json().encode())
    output.result(plan.to_dict(), f"{plan_file}: {summary(plan)}")


@command.command()
@click.argument("plan_file", metavar="PLAN", type=click.Path(path_type=Path))
@click.option("--svg", "picture", type=click.Path(path_type=Path), help="Also draw the plan into this file.")
@click.option("--html", "web_page", type=click.Path(path_type=Path), help="Also write a page with all about the plan.")
@click.option(
    "--with", "others", multiple=True, type=click.Path(path_type=Path), help="Plan to compare with; of --html."
)
@output_options
def show(
    plan_file: Path, picture: Path | None, web_page: Path | None, others: tuple[Path, ...], output: Output
) -> None:
    """Show a plan as a table, and draw it.

    The page shows the picture, how the plan was found, what every re-use gained, and how the discrepancy grows with
    the sparsity, also for the plans given by --with.

    \b
    Examples:
      skrr-export plan show plan.json --svg plan.svg
      skrr-export plan show plan.json --html plan.html --with finercut.json --with shortgpt.json
    """
    if others and web_page is None:
        raise click.UsageError("--with adds plans to a page; name its file with --html", click.get_current_context())
    plan = Plan.load(plan_file)
    files = [] if picture is None else [(picture, svg(plan))]
    if web_page is not None:
        from skrr_export.page.plan import page

        files.append((web_page, page(plan, {str(other): Plan.load(other) for other in others})))
    for path, text in files:
        write_file(path, text.encode())
    headline = read_record(plan).headline()
    output.result({**plan.to_dict(), "counts": plan.counts()}, table(plan), *([headline] if headline else []))


@command.command()
@click.argument("plan_file", metavar="PLAN", type=click.Path(path_type=Path))
@click.argument("checkpoint")
@click.option("--subfolder", help="The encoder's folder in a pipeline directory, e.g. text_encoder_2.")
@click.option("--pipeline", help="What reads the encoder: a preset's name; layers that it does not read are gone too.")
@output_options
def check(plan_file: Path, checkpoint: str, subfolder: str | None, pipeline: str | None, output: Output) -> None:
    """Check that a plan fits a checkpoint, and say how sparse it makes it.

    Reads no weights.

    \b
    Examples:
      skrr-export plan check plan.json FLUX.1-dev --subfolder text_encoder_2
      skrr-export plan check plan.json FLUX.2-dev --subfolder text_encoder --pipeline flux.2
    """
    plan = Plan.load(plan_file)
    from skrr_export.checkpoint import open_checkpoint
    from skrr_export.encoders import recognise, select, wrong_weights
    from skrr_export.pipelines import find_preset

    opened = open_checkpoint(checkpoint, subfolder)
    encoder = recognise(opened)
    outputs = None if pipeline is None else find_preset(pipeline, encoder, subfolder).outputs
    selection = select(opened, encoder, plan, outputs)
    if (warning := wrong_weights(plan, opened)) is not None:
        output.warn(warning)
    unread = {} if pipeline is None else {"unread_parameters": selection.unread_parameters}
    output.result(
        {
            "sparsity": selection.sparsity,
            "total_parameters": selection.total_parameters,
            "kept_parameters": selection.kept_parameters,
            **unread,
            "counts": plan.counts(),
        },
        summary(plan),
        f"fits {opened.directory}: {selection.kept_parameters:,} of {selection.total_parameters:,} parameters are "
        f"used, sparsity {selection.sparsity:.1%}",
        *(f"pipeline {pipeline} does not read {count:,} of the parameters" for count in unread.values() if count),
    )
