"""Pages in a real browser: nothing to complain about, and nothing that sticks out to the side."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from skrr_export.demo.report import page as demo_report
from skrr_export.page import measurement as report
from skrr_export.page import plan as plan_page
from tests.demo.reports import demo, images
from tests.page.browser import NAMES, Page, browser, find_browser
from tests.page.measurements import EXAMPLES
from tests.page.provenances import provenance
from tests.page.test_plan import plan

WIDTHS = (420, 1280)
PROGRAM = find_browser()
pytestmark = pytest.mark.skipif(PROGRAM is None, reason=f"no browser is installed: {', '.join(NAMES)}")

PAGES = {
    "demo": lambda: demo_report.page(demo(), images()),
    "plan": lambda: plan_page.page(plan(), {"other.json": plan(provenance("laco"))}),
    **{name: (lambda make=make: report.page(make())) for name, make in EXAMPLES.items()},
}


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """A browser's tab."""
    assert PROGRAM is not None
    with browser(PROGRAM, tmp_path_factory.mktemp("profile")) as opened:
        yield opened


def overhang(tab: Page) -> int:
    """Pixels that a page is wider than its window."""
    return int(tab.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth"))


@pytest.mark.parametrize("name", PAGES)
def test_a_page_fits_and_a_browser_has_no_complaint(tab: Page, tmp_path: Path, name: str) -> None:
    file = tmp_path / "page.html"
    file.write_text(PAGES[name]())
    for width in WIDTHS:
        for dark in (False, True):
            assert tab.show(file, width, dark=dark) == []
            tab.evaluate("document.querySelectorAll('details').forEach(details => details.open = true)")
            assert overhang(tab) <= 0


def test_the_two_modes_differ(tab: Page, tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    file.write_text(PAGES["full"]())
    grounds = set()
    for dark in (False, True):
        tab.show(file, 1280, dark=dark)
        grounds.add(tab.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert len(grounds) == 2


def test_bars_are_as_long_as_their_numbers(tab: Page, tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    file.write_text(PAGES["full"]())
    tab.show(file, 1280)
    rows = "document.querySelector('.memory .bars').querySelectorAll('.bar-row')"
    lengths = tab.evaluate(
        f"[...{rows}].slice(0, 2).map(row => [...row.querySelectorAll('rect')]"
        ".reduce((sum, part) => sum + part.getBBox().width, 0))"
    )
    assert lengths[0] / lengths[1] == pytest.approx(9610 / 5990, rel=1e-3)


# That the tests above can fail


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ("<script>document.title = 'run'</script>", "Content Security Policy"),
        ('<img src="data:image/gif;base64,R0lGODlhAQABAAAAACw=" alt="">', "Content Security Policy"),
        ('<link rel="stylesheet" href="other.css">', "Content Security Policy"),
    ],
)
def test_what_the_policy_blocks_is_noticed(tab: Page, tmp_path: Path, change: str, complaint: str) -> None:
    file = tmp_path / "page.html"
    file.write_text(PAGES["nothing"]().replace("</main>", f"</main>{change}"))
    assert any(complaint in text for text in tab.show(file, 1280))
    assert tab.evaluate("document.title") != "run"


def test_errors_of_a_script_are_noticed(tab: Page, tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    for script in ("console.error('lost')", "throw new Error('lost')"):
        file.write_text(f"<!doctype html><title>-</title><script>{script}</script>")
        assert any("lost" in text for text in tab.show(file, 1280))


def test_what_sticks_out_is_noticed(tab: Page, tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    file.write_text(PAGES["nothing"]().replace("</main>", '</main><p style="width:500px">wide</p>'))
    assert tab.show(file, 420) == []
    assert overhang(tab) > 0
    tab.show(file, 1280)
    assert overhang(tab) <= 0
