"""The pages in a real browser: sorting, the theme, no error, no request, nothing wider than a phone."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from run_directories import predictions, write_run
from test_report_page import HOSTILE

from tlrecipe.artifacts.report.comparison import compare, comparison_page
from tlrecipe.artifacts.report.page import report_page
from tlrecipe.artifacts.report.record import read_record

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")

WIDTHS = (360, 390, 1280)


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A report of hostile names, one of many classes, and a comparison."""
    folder = tmp_path_factory.mktemp("pages")
    many = predictions([f"class {number}" for number in range(300)], 900)
    first = write_run(folder / "hostile", predictions(HOSTILE, 200, right=0.6), name=HOSTILE[0])
    second = write_run(folder / "many", many, name="n" * 200, lr=2e-3)
    records = [read_record(first), read_record(second)]
    html = {
        "hostile": report_page(records[0]),
        "many": report_page(records[1]),
        "comparison": comparison_page(compare(records)),
    }
    for name, content in html.items():
        (folder / f"{name}.html").write_text(content, encoding="utf-8")
    return {name: folder / f"{name}.html" for name in html}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    # A sandbox needs what containers do not give; the pages are our own.
    with playwright.sync_playwright() as started:
        running = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield running
        running.close()


class Watched:
    """A page of which every message, error and request is kept."""

    def __init__(self, browser: Browser, path: Path, *, width: int = 1280, scheme: str = "light"):
        context = browser.new_context(
            viewport={"width": width, "height": 900},
            color_scheme=scheme,  # type: ignore[arg-type]
        )
        self.page: Page = context.new_page()
        self.complaints: list[str] = []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: self.complaints.append(dialog.message))
        self.page.on("request", lambda request: self._requested(request.url, path.as_uri()))
        self.page.goto(path.as_uri())

    def _requested(self, url: str, own: str) -> None:
        if url.partition("#")[0] != own and not url.startswith("data:"):
            self.complaints.append(f"requested {url}")

    def close(self) -> None:
        self.page.context.close()
        assert self.complaints == []


@pytest.mark.parametrize("name", ["hostile", "many", "comparison"])
def test_a_page_asks_for_nothing_complains_of_nothing_and_fits_every_width(
    browser: Browser, pages: dict[str, Path], name: str
) -> None:
    for width in WIDTHS:
        watched = Watched(browser, pages[name], width=width)
        assert watched.page.evaluate("document.documentElement.scrollWidth") == width
        watched.close()


def test_a_heading_sorts_and_sorts_back(browser: Browser, pages: dict[str, Path]) -> None:
    watched = Watched(browser, pages["many"])
    table = watched.page.locator("#classes table")
    column = "[...document.querySelectorAll('#classes tbody tr')].map(row => {})"
    recall = column.format("Number(row.cells[2].dataset.value)")
    assert watched.page.evaluate(recall) == sorted(watched.page.evaluate(recall))
    head = table.get_by_role("button", name="Recall")
    head.click()
    assert head.locator("..").get_attribute("aria-sort") == "descending"
    assert watched.page.evaluate(recall) == sorted(watched.page.evaluate(recall), reverse=True)
    table.get_by_role("button", name="Class").click()
    names = watched.page.evaluate(column.format("row.cells[0].textContent.trim()"))
    assert names == [f"class {number}" for number in range(300)]
    assert table.locator("th[aria-sort]").count() == 1
    # Another table of the page is left as it is, and sorts by itself.
    counts = "[...document.querySelectorAll('#data tbody tr')].map(row => Number(row.cells[1].dataset.value))"
    assert watched.page.evaluate(counts) == [3 + 2 * number for number in range(300)]
    watched.page.locator("#data table").get_by_role("button", name="Training").click()
    assert watched.page.evaluate(counts) == [3 + 2 * number for number in reversed(range(300))]
    watched.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_theme_follows_the_system_until_it_is_chosen(
    browser: Browser, pages: dict[str, Path], scheme: str
) -> None:
    watched = Watched(browser, pages["hostile"], scheme=scheme)
    ground = "getComputedStyle(document.body).backgroundColor"
    light, dark = "rgb(255, 255, 255)", "rgb(20, 23, 27)"
    before, after = (light, dark) if scheme == "light" else (dark, light)
    assert watched.page.evaluate(ground) == before
    watched.page.get_by_role("button", name="theme").click()
    assert watched.page.evaluate(ground) == after
    watched.page.reload()
    assert watched.page.evaluate(ground) == after
    watched.page.emulate_media(media="print")
    assert watched.page.evaluate(ground) == light
    watched.close()


def test_the_page_can_be_walked_by_keyboard(browser: Browser, pages: dict[str, Path]) -> None:
    watched = Watched(browser, pages["hostile"])
    watched.page.keyboard.press("Tab")
    assert watched.page.evaluate("document.activeElement.className") == "skip"
    watched.page.keyboard.press("Tab")
    outline = "getComputedStyle(document.activeElement).outlineStyle"
    assert watched.page.evaluate("document.activeElement.className") == "theme"
    assert watched.page.evaluate(outline) == "solid"
    watched.close()


def test_names_are_shown_as_they_are(browser: Browser, pages: dict[str, Path]) -> None:
    watched = Watched(browser, pages["hostile"])
    shown = watched.page.locator("#classes tbody th").all_inner_texts()
    assert {HOSTILE[0], HOSTILE[1], HOSTILE[4]} <= set(shown)
    assert watched.page.locator("img").count() == watched.page.locator("img[src^='data:image/png']").count()
    watched.close()
