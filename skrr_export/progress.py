"""How long jobs tell how far they are."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Called with what is being done, and how much of how much is done."""


def silent(what: str, done: int, total: int) -> None:
    """The progress of a job that nobody watches."""


def part(progress: Progress, number: int, parts: int) -> Progress:
    """The progress of one part of a job, of those that count alike."""
    return lambda what, done, total: progress(what, number * total + done, parts * total)
