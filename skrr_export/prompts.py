"""Prompts to compare encoders on: the ones shipped with the package, or a file of the user's, one a line."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from skrr_export.errors import InputError


def default_prompts() -> list[str]:
    """The shipped prompts: short, long, counting, attributes, relations, quoted text, styles, scripts, emoji, empty."""
    text = resources.files("skrr_export").joinpath("data", "prompts.txt").read_text(encoding="utf-8")
    return text.removesuffix("\n").split("\n")


def read_prompts(path: Path) -> list[str]:
    """Read a file of prompts, one a line; an empty line is the null prompt.

    Raises:
        InputError: it cannot be read, or is empty.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")  # without the mark that Windows editors put first
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise InputError(f"cannot read the prompts in {path}: {reason}") from error
    if not text:
        raise InputError(f"{path} holds no prompts")
    return text.removesuffix("\n").split("\n")
