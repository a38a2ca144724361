"""The report's page in a real browser: Chromium without a head, driven by Playwright, from disk."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from attnbench.attention.problem import Problem
from attnbench.records.run_directory import Manifest, Run
from attnbench.report.formats.report_directory import ReportOptions, write
from tests.samples import result

pytest.importorskip("altair")
pytest.importorskip("vl_convert")
sync_api = pytest.importorskip("playwright.sync_api")
axe = pytest.importorskip("axe_playwright_python.sync_playwright")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")]

LENGTHS = (256, 512, 1024, 2048, 4096)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a report on two backends, five lengths and two masks."""
    folder = tmp_path_factory.mktemp("report")
    results = []
    for mask in ("none", "causal"):
        for n in LENGTHS:
            problem = Problem(seq_q=n, mask=mask)
            facts = {"reference": "naive@cpu:threads=1"}
            for backend, share in (("naive", 1.0), ("sdpa:flash", 0.5)):
                values = [share * 1e-9 * n * n * (1 + 0.01 * k) for k in range(6)]
                results.append(result(values, backend, problem=problem, facts=facts))
    manifest = Manifest(schema_version=1, attnbench="0", created_at="", suite="made", fingerprint="f")
    run = Run(path=folder / "run", manifest=manifest, results=results)
    return write([run], folder / "out", ReportOptions(plots=())) / "index.html"


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """The browser."""
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(chromium: Any, report: Path) -> Iterator[Any]:
    """The drawn page; afterwards it must have logged no message or error and requested nothing from the network."""
    context = chromium.new_context(viewport={"width": 1200, "height": 900})
    yield from opened(context, report)


def opened(context: Any, path: Path) -> Iterator[Any]:
    page = context.new_page()
    messages: list[str] = []
    requests: list[str] = []
    page.on("console", lambda message: messages.append(message.text))
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(path.as_uri())
    page.wait_for_function("() => window.drawn.then(() => true)")
    yield page
    assert messages == []
    assert {url for url in requests if not url.startswith(("data:", "blob:"))} == {path.as_uri()}
    context.close()


def marks(page: Any) -> list[int]:
    """How many shapes each chart has."""
    return list(
        page.eval_on_selector_all(".live", "all => all.map(chart => chart.querySelectorAll('path, rect').length)")
    )


def column(page: Any, table: str, place: int) -> list[str]:
    return list(
        page.eval_on_selector_all(
            f"{table} tbody tr", f"all => all.filter(row => !row.hidden).map(row => row.cells[{place}].textContent)"
        )
    )


def test_every_chart_is_drawn_and_has_its_marks(page: Any) -> None:
    assert page.locator("figure").count() == page.locator(".live:not([hidden])").count() > 4
    assert all(count > 10 for count in marks(page))
    assert page.locator(".still:not([hidden])").count() == 0


def test_hovering_shows_a_tooltip(page: Any) -> None:
    point = page.locator("#latency .live .mark-symbol path").first
    point.scroll_into_view_if_needed()
    point.hover(force=True)
    tip = page.locator("#vg-tooltip-element.visible")
    tip.wait_for(timeout=5000)
    assert "b1 h8 q" in tip.inner_text()


def test_a_backend_can_be_hidden_and_shown_again(page: Any) -> None:
    before = marks(page)
    box = page.get_by_label("sdpa:flash", exact=True)
    box.uncheck()
    page.wait_for_timeout(1500)
    fewer = marks(page)
    assert all(after <= was for after, was in zip(fewer, before, strict=True))
    assert sum(fewer) < sum(before)
    box.check()
    page.wait_for_timeout(1500)
    assert marks(page) == before


def test_speed_ups_follow_another_reference(page: Any) -> None:
    drawn = page.locator('[data-chart="speedup/speedup"] .live')
    before = drawn.inner_html()
    page.locator("#reference").select_option("sdpa:flash")
    page.wait_for_timeout(1500)
    assert drawn.inner_html() != before


def test_a_search_hides_rows_and_is_kept_in_the_address(page: Any, report: Path) -> None:
    page.get_by_label("Find a case").fill("causal q1024")
    assert len(column(page, "#raw", 0)) == 2
    assert page.url == report.as_uri() + "#raw&find=causal%20q1024"
    page.reload()
    page.wait_for_function("() => window.drawn.then(() => true)")
    assert len(column(page, "#raw", 0)) == 2


def test_columns_are_sorted_by_what_their_units_mean(page: Any) -> None:
    head = page.locator("#latency thead").get_by_role("button", name="time_s", exact=True)
    head.click()
    rising = column(page, "#latency", 1)
    head.click()
    assert rising == column(page, "#latency", 1)[::-1]
    assert (rising[0], rising[-1]) == ("33.6 us", "17.2 ms")


def test_a_table_is_copied_as_csv_or_markdown(page: Any) -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.get_by_label("Find a case").fill("causal q256 ")
    page.get_by_role("button", name="Copy Times as CSV").click()
    page.get_by_text("Copied").wait_for()
    lines = page.evaluate("navigator.clipboard.readText()").splitlines()
    assert lines[0].startswith('"case","time_s"')
    assert len(lines) == 3
    page.get_by_role("button", name="Copy Times as Markdown").click()
    page.wait_for_timeout(200)
    assert page.evaluate("navigator.clipboard.readText()").splitlines()[1].startswith("|---|---|")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_serious_fault_of_accessibility_in_either_theme(chromium: Any, report: Path, scheme: str) -> None:
    context = chromium.new_context(viewport={"width": 1200, "height": 900}, color_scheme=scheme)
    for page in opened(context, report):
        dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(22, 24, 29)"
        assert dark == (scheme == "dark")
        # The debugger injects Axe's script, so that the page's content security policy does not apply to it.
        faults = axe.Axe().run(page).response["violations"]
        assert [fault["id"] for fault in faults if fault["impact"] in ("serious", "critical")] == []


def test_the_button_changes_the_theme_of_page_and_charts(page: Any) -> None:
    background = "getComputedStyle(document.body).backgroundColor"
    before, ink = page.evaluate(background), page.locator("#latency .live svg text").first.get_attribute("fill")
    page.get_by_role("button", name="Light or dark").click()
    page.wait_for_timeout(1500)
    assert page.evaluate(background) != before
    assert page.locator("#latency .live svg text").first.get_attribute("fill") != ink


def test_a_phone_does_not_scroll_sideways(chromium: Any, report: Path) -> None:
    context = chromium.new_context(viewport={"width": 360, "height": 740})
    for page in opened(context, report):
        assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_every_control_is_reached_by_keyboard(page: Any) -> None:
    wanted = page.evaluate("document.querySelectorAll('a[href], button, input, select, [tabindex=\"0\"]').length")
    reached = set()
    for _ in range(wanted):
        page.keyboard.press("Tab")
        reached.add(page.evaluate(
            "[...document.querySelectorAll('a[href], button, input, select, [tabindex=\"0\"]')]"
            ".indexOf(document.activeElement)"
        ))  # fmt: skip
    assert reached - {-1} == set(range(wanted))
    page.get_by_role("button", name="Light or dark").focus()
    before = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.keyboard.press("Enter")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != before


def test_with_scripts_off_all_drawings_and_tables_are_there(chromium: Any, report: Path) -> None:
    context = chromium.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(report.as_uri())
    assert page.locator(".still svg").count() == page.locator("figure").count() > 4
    assert page.locator(".still svg").first.is_visible()
    assert page.locator("table").count() > 5
    assert page.get_by_text("sdpa:flash is fastest in 10 of 10 problems").first.is_visible()
    assert not page.locator(".tools").is_visible()  # its controls need scripts
    context.close()


def test_under_a_policy_that_forbids_scripts_the_drawings_stay(chromium: Any, report: Path, tmp_path: Path) -> None:
    strict = tmp_path / "strict.html"
    strict.write_text(report.read_text().replace("script-src 'unsafe-inline' 'unsafe-eval'", "script-src 'none'"))
    context = chromium.new_context()
    page = context.new_page()
    page.goto(strict.as_uri())
    assert page.locator(".still svg").first.is_visible()
    assert page.locator(".live:not([hidden])").count() == 0
    context.close()
