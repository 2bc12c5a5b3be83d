# ruff: noqa: RUF001 - fragments are to look like others
"""Cleaning against diffusers' own code, on prompts as nasty as we can think of."""

from __future__ import annotations

import inspect
from types import SimpleNamespace
from typing import Any

import pytest
from diffusers import AllegroPipeline, IFPipeline, PixArtAlphaPipeline, PixArtSigmaPipeline
from diffusers.pipelines.deepfloyd_if import pipeline_if
from diffusers.pipelines.pixart_alpha import pipeline_pixart_alpha
from diffusers.pipelines.wan import pipeline_wan
from hypothesis import example, given, settings
from hypothesis import strategies as st

from skrr_export.errors import InputError
from skrr_export.pipelines import PRESETS, cleaning
from skrr_export.pipelines.cleaning import clean_caption, clean_text

FRAGMENTS = (
    "a cat", "Dog", " ", "\n", "\\n", "\t", "<person>", "<b>bold</b>", "<br/>", "<a href='x'>", "<", ">", "&", "&amp;",
    "&quot;", "&lt;b&gt;", "&#65;", "&Eacute;", "&amp;amp;lt;", "%41", "%3Cb%3E", "+", "https://a.org/x?y=z", "http:x",
    "www:/a", "www.Shop.com/x", "shop.co.uk", "a@b.com", "@nick_name", "漢字", "㇀", "ㇰ", "㈠", "㌀", "㐀", "䷀",
    "カタカナ", "—", "–", "‐", "−", "-", "_", "a-b-c-d-e", "a_b_c_d", "`", "´", "«x»", "“x”", "‘x’", "¨", '"', '""',
    "'", "'x'", "10.0.0.1", "1:23 ", "#1", "#1234", "#12345", "123456", "cat.jpg", "x.mp4", "...", ".", " . ", "*x*",
    "(x)", "[x]", "{x}", "|", "\\", "/", "®©™•·º½¾¿¡§~", "jc6640", "jc6640vc", "6640vc231", "worldwide free shipping",
    "free download free", "click for more", "png images", "page 12", "j2d1a2a", "640x480", "1.5×2", "2х3", "a : b",
    "x,y", "x.y", "Ã©", "ï¬", "\u00a0", "\u200b", "\ufeff", "🦊", "ΑΣ", "İ", "ß", "<!-- c -->", "<script>x</script>",
)  # fmt: skip
"""What some rule takes out or changes, and what only looks like it."""

nasty = st.lists(st.one_of(st.sampled_from(FRAGMENTS), st.text(max_size=6)), max_size=12).map("".join)


def theirs(text: str) -> str:
    pipe = SimpleNamespace(bad_punct_regex=PixArtAlphaPipeline.bad_punct_regex)
    cleaned: str = PixArtAlphaPipeline._clean_caption(pipe, text)
    return cleaned


def outcome(clean: Any, text: str) -> str | None:
    """The cleaned text; `None` for what Python's HTML parser rejects."""
    from bs4.exceptions import ParserRejectedMarkup

    try:
        cleaned: str = clean(text)
    except (InputError, ParserRejectedMarkup):
        return None
    return cleaned


def test_all_pipelines_clean_captions_alike() -> None:
    classes = (PixArtAlphaPipeline, PixArtSigmaPipeline, IFPipeline, AllegroPipeline)
    assert len({inspect.getsource(each._clean_caption) for each in classes}) == 1
    assert len({inspect.getsource(each._text_preprocessing) for each in classes}) == 1
    assert len({each.bad_punct_regex.pattern for each in classes}) == 1


@pytest.mark.filterwarnings("ignore:The input passed in")
@settings(max_examples=400)
@given(nasty)
@example("<![n x")
@example("cat.jpg")
@example("https://a.org")
def test_captions_come_out_as_diffusers_cleans_them(text: str) -> None:
    assert outcome(clean_caption, text) == outcome(theirs, text)


@pytest.mark.filterwarnings("ignore:The input passed in")
@pytest.mark.parametrize("fragment", FRAGMENTS)
def test_every_rule_by_itself(fragment: str) -> None:
    for text in (fragment, f"a {fragment} b", f"{fragment}{fragment}"):
        assert clean_caption(text) == theirs(text)


@settings(max_examples=300)
@given(nasty)
def test_texts_come_out_as_wan_cleans_them(text: str) -> None:
    assert clean_text(text) == pipeline_wan.prompt_clean(text)


@pytest.mark.parametrize("name", ["pixart-alpha", "pixart-sigma", "deepfloyd-if", "allegro"])
def test_captions_are_cleaned_twice(name: str) -> None:
    text = "Loud%2520cats #12 photo.jpg"
    assert PRESETS[name].prepare(text) == theirs(theirs(text)) != theirs(text)


@pytest.mark.parametrize("missing", ["ftfy", "bs4"])
def test_captions_are_lower_cased_where_a_library_is_missing(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (pipeline_pixart_alpha, pipeline_if):
        monkeypatch.setattr(module, f"is_{missing}_available", lambda: False)
    monkeypatch.setattr(cleaning, {"ftfy": "has_ftfy", "bs4": "has_beautiful_soup"}[missing], lambda: False)
    text = "  LOUD &amp; <b>Bold</b> #12 "
    for name, pipe in (("pixart-alpha", PixArtAlphaPipeline), ("deepfloyd-if", IFPipeline)):
        assert [PRESETS[name].prepare(text)] == pipe._text_preprocessing(None, [text], clean_caption=True)
    assert PRESETS["pixart-alpha"].prepare(text) == "loud &amp; <b>bold</b> #12"


def test_texts_are_cleaned_as_far_as_can_be_without_ftfy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline_wan, "is_ftfy_available", lambda: False)
    monkeypatch.setattr(cleaning, "has_ftfy", lambda: False)
    assert PRESETS["wan"].prepare(" Ã©  &amp;lt; ") == pipeline_wan.prompt_clean(" Ã©  &amp;lt; ") == "Ã© <"


def test_what_is_missing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [cleaning.note(clean) for clean in (None, "caption", "text")] == [None, None, None]
    monkeypatch.setattr(cleaning, "has_beautiful_soup", lambda: False)
    assert cleaning.note("text") is None
    assert "lower-cased and stripped, not cleaned; pip install 'skrr-export[captions]'" in (
        cleaning.note("caption") or ""
    )
    monkeypatch.setattr(cleaning, "has_ftfy", lambda: False)
    assert "without ftfy" in (cleaning.note("text") or "")
    assert cleaning.note(None) is None


def test_markup_that_python_rejects_is_no_traceback() -> None:
    with pytest.raises(InputError, match=r"the prompt .<!\[n x. cannot be cleaned"):
        clean_caption("<![n x")


@pytest.mark.parametrize("text", ["cat.jpg", "https://x", "a/b"])
def test_nothing_is_printed_about_prompts_that_look_like_files(text: str, recwarn: pytest.WarningsRecorder) -> None:
    clean_caption(text)
    assert not recwarn.list
