# ruff: noqa: RUF001 - prompts hold quotes and letters that look like others
"""How pipelines clean prompts: as diffusers' `_clean_caption` does, and as Wan's `prompt_clean`.

The expressions are those of diffusers (Apache-2.0), which has them from the training of DeepFloyd IF. Like diffusers,
captions are cleaned only where ftfy and Beautiful Soup are installed.
"""

from __future__ import annotations

import html
import importlib.util
import re
import urllib.parse
import warnings
from collections.abc import Iterable
from functools import cache

from skrr_export.errors import InputError

_Rules = tuple[tuple[re.Pattern[str], str], ...]


def _rules(*rules: tuple[str, str]) -> _Rules:
    return tuple((re.compile(pattern), replacement) for pattern, replacement in rules)


_SITE = r"[a-zA-Z0-9.\-]+[.](?:com|co|ru|net|org|edu|gov|it)[\w/-]*\b\/?(?!@)"
_FILE = "png|jpg|jpeg|bmp|webp|eps|pdf|apk|mp4"

_LINKS = _rules(
    ("<person>", "person"),
    (rf"\b((?:https?:(?:\/{{1,3}}|[a-zA-Z0-9%])|{_SITE}))", ""),
    (rf"\b((?:www:(?:\/{{1,3}}|[a-zA-Z0-9%])|{_SITE}))", ""),
)

_MARKS = _rules(
    (r"@[\w\d]+\b", ""),  # nicknames
    (r"[\u31c0-\u31ef]+", ""),  # CJK strokes
    (r"[\u31f0-\u31ff]+", ""),  # Katakana phonetic extensions
    (r"[\u3200-\u32ff]+", ""),  # enclosed CJK letters and months
    (r"[\u3300-\u33ff]+", ""),  # CJK compatibility
    (r"[\u3400-\u4dbf]+", ""),  # CJK unified ideographs extension A
    (r"[\u4dc0-\u4dff]+", ""),  # Yijing hexagrams
    (r"[\u4e00-\u9fff]+", ""),  # CJK unified ideographs
    (
        r"[\u002D\u058A\u05BE\u1400\u1806\u2010-\u2015\u2E17\u2E1A\u2E3A\u2E3B\u2E40\u301C\u3030\u30A0\uFE31\uFE32\uFE58\uFE63\uFF0D]+",
        "-",
    ),
    ("[`´«»“”¨]", '"'),
    ("[‘’]", "'"),
    (r"&quot;?", ""),
    (r"&amp", ""),
    (r"\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}", " "),  # IP addresses
    (r"\d:\d\d\s+$", ""),  # article numbers
    (r"\\n", " "),
    (r"#\d{1,3}\b", ""),
    (r"#\d{5,}\b", ""),
    (r"\b\d{6,}\b", ""),
    (rf"[\S]+\.(?:{_FILE})", ""),  # file names
    (r"[\"\']{2,}", '"'),
    (r"[\.]{2,}", " "),
    (r"[#®•©™&@·º½¾¿¡§~\)\(\]\[\}\{\|\\/\*]{1,}", " "),
    (r"\s+\.\s+", " "),
)

_JOINTS = re.compile(r"(?:\-|\_)")
"""Between words-like-these, which become spaces where there are more than three."""

_NOISE = _rules(
    (r"\b[a-zA-Z]{1,3}\d{3,15}\b", ""),  # jc6640
    (r"\b[a-zA-Z]+\d+[a-zA-Z]+\b", ""),  # jc6640vc
    (r"\b\d+[a-zA-Z]+\d+\b", ""),  # 6640vc231
    (r"(worldwide\s+)?(free\s+)?shipping", ""),
    (r"(free\s)?download(\sfree)?", ""),
    (r"\bclick\b\s(?:for|on)\s\w+", ""),
    (rf"\b(?:{_FILE})(\simage[s]?)?", ""),
    (r"\bpage\s+\d+\b", ""),
    (r"\b\d*[a-zA-Z]+\d+[a-zA-Z]+\d+[a-zA-Z\d]*\b", " "),  # j2d1a2a
    (r"\b\d+\.?\d*[xх×]\d+\.?\d*\b", ""),  # 640x480; the second x is Cyrillic
    (r"\b\s+\:\s+", ": "),
    (r"(\D[,\./])\b", r"\1 "),
    (r"\s+", " "),
    (r"^[\"\']([\w\W]+)[\"\']$", r"\1"),
    (r"^[\'\_,\-\:;]", ""),
    (r"[\'\_,\-\:\-\+]$", ""),
    (r"^\.\S+$", ""),
)


@cache
def has_ftfy() -> bool:
    """Whether ftfy is installed."""
    return importlib.util.find_spec("ftfy") is not None


@cache
def has_beautiful_soup() -> bool:
    """Whether Beautiful Soup is installed."""
    return importlib.util.find_spec("bs4") is not None


def cleans_captions() -> bool:
    """Whether captions can be cleaned; else diffusers lower-cases and strips them, and so do we."""
    return has_ftfy() and has_beautiful_soup()


def note(clean: str | None) -> str | None:
    """What a user should know about how prompts are cleaned here; `None`: they are as they should be."""
    if clean == "caption" and not cleans_captions():
        found = "without ftfy and beautifulsoup4, prompts are lower-cased and stripped, not cleaned"
    elif clean == "text" and not has_ftfy():
        found = "without ftfy, prompts keep characters that it would mend"
    else:
        return None
    return f"{found}; pip install 'skrr-export[captions]'"


def clean_caption(caption: str) -> str:
    """Clean a caption once, as diffusers' `_clean_caption` does; pipelines do it twice.

    Raises:
        InputError: it holds a declaration that Python's HTML parser rejects.
    """
    import ftfy

    text = _apply(_LINKS, urllib.parse.unquote_plus(caption).strip().lower())
    text = _apply(_MARKS, _without_markup(text))
    if len(_JOINTS.findall(text)) > 3:
        text = _JOINTS.sub(" ", text)
    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return _apply(_NOISE, text).strip()


def clean_text(text: str) -> str:
    """Mend a text and its white space, as Wan's `prompt_clean` does."""
    if has_ftfy():
        import ftfy

        text = ftfy.fix_text(text)
    text = html.unescape(html.unescape(text)).strip()
    return re.sub(r"\s+", " ", text).strip()


def _apply(rules: Iterable[tuple[re.Pattern[str], str]], text: str) -> str:
    for pattern, replacement in rules:
        text = pattern.sub(replacement, text)
    return text


def _without_markup(text: str) -> str:
    import bs4
    from bs4.exceptions import ParserRejectedMarkup

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", bs4.MarkupResemblesLocatorWarning)  # a prompt is no file and no address
        try:
            return bs4.BeautifulSoup(text, features="html.parser").text
        except ParserRejectedMarkup as error:
            raise InputError(f"the prompt {text[:40]!r} cannot be cleaned: {error}") from error
