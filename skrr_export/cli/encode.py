"""`skrr-export encode`."""

from __future__ import annotations

import io
from pathlib import Path

import click

from skrr_export.cli.output import Output, output_options
from skrr_export.cli.runtime import runtime_option


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("prompts", nargs=-1, metavar="PROMPT...")
@click.option(
    "--prompts", "prompts_file", type=click.Path(path_type=Path), help="Read prompts from a file, one a line."
)
@click.option("--negative", is_flag=True, help="They are negative prompts; some pipelines put no text around those.")
@click.option("-o", "--output", "archive", type=click.Path(path_type=Path), help="Write an .npz archive.")
@click.option("--to", "target", default="onnx", show_default=True, help="Target to run.")
@click.option("--device", default="cpu", show_default=True, type=click.Choice(["cpu", "cuda"]), help="Where to run.")
@click.option(
    "--mode",
    default="mapped",
    show_default=True,
    type=click.Choice(["mapped", "prepacked"]),
    help="mapped: least memory; prepacked: fastest.",
)
@runtime_option
@output_options
def command(
    bundle: Path,
    prompts: tuple[str, ...],
    prompts_file: Path | None,
    negative: bool,
    archive: Path | None,
    target: str,
    device: str,
    mode: str,
    runtime: str,
    output: Output,
) -> None:
    """Encode prompts with a bundle, as its pipeline would.

    The archive holds input_ids, attention_mask, and what the pipeline takes of the encoder, such as last_hidden_state,
    hidden_states.30 or text_embeds.

    \b
    Examples:
      skrr-export encode t5.bundle "a cat" "two dogs" -o embeddings.npz
      skrr-export encode t5.bundle --prompts prompts.txt -o embeddings.npz
    """
    import numpy as np

    from skrr_export.bundle import open_bundle
    from skrr_export.pipelines.cleaning import note
    from skrr_export.prompts import read_prompts
    from skrr_export.staging import write_file
    from skrr_export.targets import open_target
    from skrr_export.tokenization import encode_prompts

    every = [*prompts, *(read_prompts(prompts_file) if prompts_file else [])]
    opened = open_bundle(bundle)
    with output.progress() as progress:
        opened.check_hashes(progress)
        session = open_target(opened, target, device=device, mode=mode, runtime=runtime)
        arrays = encode_prompts(session, every, negative=negative, progress=progress)
    output.warn_all(filter(None, (note(opened.manifest.pipeline.clean), *session.notes)))
    if archive is not None:
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)  # type: ignore[arg-type]
        write_file(archive, buffer.getvalue())
    shapes = {name: list(array.shape) for name, array in arrays.items()}
    dtypes = {name: str(array.dtype) for name, array in arrays.items()}
    output.result(
        {"output": archive and str(archive), "shapes": shapes, "dtypes": dtypes},
        *(f"{name}: {dtypes[name]} {shape}" for name, shape in shapes.items()),
        *([f"written to {archive}"] if archive else []),
    )
