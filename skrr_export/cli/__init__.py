"""The command line."""

from __future__ import annotations

import signal
import sys
from types import FrameType
from typing import NoReturn

import click

from skrr_export.cli.lazy import LazyGroup
from skrr_export.errors import SkrrError

COMMANDS = {
    "export": "Export a text encoder under a plan to a bundle.",
    "verify": "Prove a bundle against transformers; exit 1 when a limit is exceeded.",
    "self-test": "Run a bundle on the test vectors it carries; exit 1 when a result is off.",
    "measure": "Measure memory, latency and fidelity of a bundle beside PyTorch.",
    "compare": "Compare two measurements; exit 1 when something got worse.",
    "inspect": "Show what a bundle holds.",
    "encode": "Encode prompts with a bundle.",
    "triton": "Write a bundle as a model repository of Triton Inference Server.",
    "plan": "Search, make, check and draw plans.",
    "demo": "Show on a small trained text-to-image model what a plan does to the images; offline.",
}
"""Commands by name, with the line `--help` shows; each lives in the module of its name."""


@click.group(
    cls=LazyGroup,
    lazy={name: (f"skrr_export.cli.{name.replace('-', '_')}", line) for name, line in COMMANDS.items()},
    no_args_is_help=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(package_name="skrr-export")
def cli() -> None:
    """Compile the text encoder of a text-to-image model ahead of time: skip and re-use its layers, share their weights.

    \b
    Examples:
      skrr-export plan search FLUX.1-dev --subfolder text_encoder_2 --pipeline flux.1 --sparsity 0.42 -o plan.json
      skrr-export export FLUX.1-dev --subfolder text_encoder_2 --pipeline flux.1 --plan plan.json -o t5.bundle
      skrr-export verify t5.bundle --reference FLUX.1-dev/text_encoder_2
      skrr-export measure t5.bundle --reference FLUX.1-dev/text_encoder_2 --html report.html
      skrr-export encode t5.bundle "a cat" -o cat.npz

    Exit codes: 0 done, 1 a check failed, 2 bad input, 130 interrupted.
    """


def main() -> NoReturn:
    """Run the command line: an error the user can mend is one line on stderr and exit code 2."""
    signal.signal(signal.SIGTERM, _terminate)
    try:
        sys.exit(cli.main(prog_name="skrr-export", standalone_mode=False) or 0)
    except SkrrError as error:
        _fail(str(error))
    except click.UsageError as error:
        hint = f" (see '{error.ctx.command_path} --help')" if error.ctx else ""
        _fail(error.format_message() + hint)
    except click.ClickException as error:
        _fail(error.format_message())
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted", err=True)
        sys.exit(130)


def _fail(message: str) -> NoReturn:
    click.echo("error: " + " ".join(message.split()), err=True)
    sys.exit(2)


def _terminate(_signum: int, _frame: FrameType | None) -> NoReturn:
    """Leave as if interrupted, so that what is half written is removed."""
    raise KeyboardInterrupt
