"""What every command says the same way: results for people or as JSON, progress, warnings."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import Any, TypeVar

import click

from skrr_export.progress import Progress, silent

NOT_MEASURED = "not measured"
"""What tables say where there is no number."""

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Output:
    """Where a command's words go."""

    json: bool
    quiet: bool

    def result(self, document: Mapping[str, Any], *lines: object) -> None:
        """Print the result: the document as JSON, or the lines, which may be rich tables; text is printed as it is."""
        if self.json:
            click.echo(json.dumps(document, indent=1, allow_nan=False))
        elif not self.quiet:
            from rich.console import Console
            from rich.text import Text

            console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
            for line in lines:
                console.print(Text(_printable(line)) if isinstance(line, str) else line, soft_wrap=True)

    def warn(self, message: str) -> None:
        """Print a warning on stderr."""
        click.echo(f"warning: {message}", err=True)

    def warn_all(self, messages: Iterable[str]) -> None:
        """Print warnings on stderr."""
        for message in messages:
            self.warn(message)

    @contextmanager
    def progress(self, *, lines: bool = False) -> Iterator[Progress]:
        """A progress bar on stderr while the block runs.

        Args:
            lines: where stderr is no terminal, a line each time something else is being done, for the log of a job of
                hours; else nothing is shown there.
        """
        if self.quiet or not (lines or sys.stderr.isatty()):
            yield silent
            return
        if not sys.stderr.isatty():
            yield _LineProgress()
            return
        from rich.console import Console
        from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
        with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task("starting", total=None)
            yield lambda what, done, total: bar.update(task, description=what, completed=done, total=total)


class _LineProgress:
    """Prints what is being done, when it changes."""

    def __init__(self) -> None:
        self._last = ""

    def __call__(self, what: str, done: int, total: int) -> None:
        if what != self._last:
            click.echo(what, err=True)
            self._last = what


def output_options(function: F) -> F:
    """Add `--json` and `--quiet` to a command, which gets them as the argument `output`."""

    @click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
    @click.option("--quiet", is_flag=True, help="Print errors and warnings only.")
    @wraps(function)
    def command(*args: Any, as_json: bool, quiet: bool, **options: Any) -> Any:
        return function(*args, output=Output(as_json, quiet), **options)

    return command  # type: ignore[return-value]


def _printable(line: str) -> str:
    """A line that the terminal can show; a path in it may hold bytes that are no text."""
    text = line.encode(errors="surrogateescape").decode(errors="replace")
    encoding = sys.stdout.encoding or "utf-8"
    return text.encode(encoding, errors="replace").decode(encoding)


def size(nbytes: int) -> str:
    """A number of bytes for people."""
    value, unit = float(nbytes), "B"
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024 or unit == "GiB":
            break
        value /= 1024
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.4g} {unit}"
