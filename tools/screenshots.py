"""Pictures of a report for docs/img: `python tools/screenshots.py RUN [SECTION ...]`; needs Chromium and `dev`.

Each section in the light theme, and the first screen dark, on a phone and as printed; or only the sections named.
RUN may be several, separated by commas.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

import attnbench
from attnbench.report.formats import report_directory

FOLDER = Path(__file__).parents[1] / "docs" / "img"
DESKTOP, PHONE, PAPER = (1440, 900), (390, 844), (718, 1016)  # CSS pixels; A4 without margins of 10 mm


def shoot(runs: str, *sections: str) -> None:
    """Write a report of the runs, and pictures of it."""
    with tempfile.TemporaryDirectory() as scratch, sync_playwright() as playwright:
        loaded = [attnbench.load(run) for run in runs.split(",")]
        options = report_directory.ReportOptions(plots=())
        page = report_directory.write(loaded, Path(scratch) / "report", options) / "index.html"
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"))
        if not sections:
            _screen(browser, page, "answer", DESKTOP)
            _screen(browser, page, "dark", DESKTOP, theme="dark")
            _screen(browser, page, "phone", PHONE)
            _screen(browser, page, "print", PAPER, printed=True)
        _sections(browser, page, sections)
        browser.close()


def _screen(
    browser: Browser, page: Path, name: str, size: tuple[int, int], theme: str = "light", printed: bool = False
) -> None:
    """What the window shows first."""
    tab = browser.new_page(viewport={"width": size[0], "height": size[1]}, color_scheme=theme)  # type: ignore[arg-type]
    if printed:
        tab.emulate_media(media="print")
    tab.goto(page.as_uri())
    tab.screenshot(path=FOLDER / f"report-{name}.png")
    tab.close()


def _sections(browser: Browser, page: Path, chosen: tuple[str, ...]) -> None:
    """Sections as a whole: those chosen, or every one but the first."""
    tab = browser.new_page(viewport={"width": DESKTOP[0], "height": DESKTOP[1]}, color_scheme="light")
    tab.goto(page.as_uri())
    tab.add_style_tag(content="body > header { position: static !important; }")
    for section in tab.locator("main section[id]").all():
        name = section.get_attribute("id")
        if name in chosen if chosen else name != "answer" and section.is_visible():
            section.screenshot(path=FOLDER / f"report-{name}.png")
    tab.close()


if __name__ == "__main__":
    shoot(*sys.argv[1:] or ("last",))
