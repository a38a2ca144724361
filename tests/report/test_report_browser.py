"""The report's page in a real browser: Chromium without a head, driven by Playwright, from disk."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from attnbench.attention.problem import Problem
from attnbench.records.result import Cause, Result, Status
from attnbench.records.run_directory import Manifest, Run
from attnbench.report.formats import html
from attnbench.report.formats.report_directory import ReportOptions, write
from tests.golden.made import measured, refused
from tests.report import made_pages

sync_api = pytest.importorskip("playwright.sync_api")
axe = pytest.importorskip("axe_playwright_python.sync_playwright")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")]

WIDTHS = (390, 1024, 1440)
MIN_TEXT = 11  # pixels
BACKGROUND = "getComputedStyle(document.body).backgroundColor"
# Every visible text with its size in pixels; that of a chart is scaled with the chart.
SIZES = """() => {
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), sizes = {};
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const parent = node.parentElement, text = node.textContent.trim();
    if (!text || parent.closest("script, style, .hidden-text") || !parent.getClientRects().length) continue;
    const picture = parent.closest("svg");
    const scale = picture ? picture.getBoundingClientRect().width / picture.viewBox.baseVal.width : 1;
    sizes[text] = parseFloat(getComputedStyle(parent).fontSize) * scale;
  }
  return sizes;
}"""
CONTROLS = "a[href], button, input, summary, [tabindex='0']"


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a run like `quick`: three backends, four lengths, two masks, the last length not measured."""
    folder = tmp_path_factory.mktemp("report")
    results: list[Result] = []
    for mask, n in [(mask, n) for mask in ("none", "causal") for n in (128, 256, 512, 1024)]:
        problem = Problem(seq_q=n, mask=mask)
        for backend, share in (("naive", 2.0), ("sdpa:math", 2.4), ("sdpa:flash", 1.0)):
            if (mask, n) == ("causal", 1024):
                results.append(refused(problem, backend, Status.SKIPPED, "budget spent", cause=Cause.BUDGET))
            else:
                results.append(measured(problem, backend, share * 1e-9 * n * n, group=f"{mask}{n}"))
    manifest = Manifest(schema_version=1, attnbench="0", created_at="", suite="quick", fingerprint="f")
    run = Run(path=folder / "run", manifest=manifest, results=results)
    return write([run], folder / "out", ReportOptions(plots=())) / "index.html"


@pytest.fixture(scope="module")
def crowded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with long names, long reasons, many backends, and all kinds of blocks."""
    path = tmp_path_factory.mktemp("crowded") / "index.html"
    path.write_text(html.page(made_pages.crowded_answer(), made_pages.crowded_pages(), title="T" * 300))
    return path


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """The browser."""
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def opened(chromium: Any, path: Path, **options: Any) -> Iterator[Any]:
    """The page; it must log no message or error and request nothing from elsewhere."""
    context = chromium.new_context(**{"viewport": {"width": 1440, "height": 900}, **options})
    context.set_default_timeout(5000)
    page = context.new_page()
    messages: list[str] = []
    requests: list[str] = []
    page.on("console", lambda message: messages.append(message.text))
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(path.as_uri())
    yield page
    assert messages == []
    assert set(requests) == {path.as_uri()}
    context.close()


@pytest.fixture
def page(chromium: Any, report: Path) -> Iterator[Any]:
    """The page at 1440 pixels."""
    with opened(chromium, report) as page:
        yield page


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", ["report", "crowded"])
def test_it_fits_its_width_and_its_text_is_large_enough(
    chromium: Any, name: str, width: int, request: pytest.FixtureRequest
) -> None:
    path = request.getfixturevalue(name)
    with opened(chromium, path, viewport={"width": width, "height": 900}) as page:
        page.evaluate("document.querySelectorAll('details').forEach(each => { each.open = true; })")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        sizes = page.evaluate(SIZES)
        assert len(sizes) > 100
        assert {text: size for text, size in sizes.items() if size < MIN_TEXT} == {}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["report", "crowded"])
def test_no_serious_fault_of_accessibility_in_either_theme(
    chromium: Any, name: str, scheme: str, request: pytest.FixtureRequest
) -> None:
    with opened(chromium, request.getfixturevalue(name), color_scheme=scheme) as page:
        assert (page.evaluate(BACKGROUND) == "rgb(21, 23, 27)") == (scheme == "dark")
        # The debugger injects Axe's script, so that the page's content security policy does not apply to it.
        faults = axe.Axe().run(page).response["violations"]
        assert [
            (fault["id"], fault["nodes"][0]["html"]) for fault in faults if fault["impact"] in ("serious", "critical")
        ] == []


def test_the_bar_stays_and_marks_the_section_in_view(page: Any) -> None:
    assert page.locator("body > header").bounding_box()["height"] == pytest.approx(45, abs=1)  # with its border
    page.locator("#accuracy").evaluate("section => section.scrollIntoView()")
    page.locator('.bar a[href="#accuracy"][aria-current]').wait_for()
    assert page.locator(".bar a[aria-current]").count() == 1
    assert page.locator("body > header").bounding_box()["y"] == 0
    assert page.evaluate("scrollY") > 500


def test_the_first_screen_answers(page: Any) -> None:
    for part in ("h1", ".lead", ".grid", ".fixed"):
        box = page.locator(part).first.bounding_box()
        assert box["y"] + box["height"] <= 900, part
    assert "sdpa:flash" in page.locator("h1").inner_text()


def test_with_scripts_off_all_drawings_and_tables_are_there(chromium: Any, report: Path, page: Any) -> None:
    with opened(chromium, report, java_script_enabled=False) as still:
        assert still.locator("figure svg").count() == page.locator("figure svg").count() > 4
        assert still.locator("figure svg").first.is_visible()
        assert still.locator(".data tbody tr").count() == page.locator(".data tbody tr").count() > 24
        assert still.locator("h1").inner_text() == page.locator("h1").inner_text()
        assert still.locator("button, input, .hint").count() == 0  # they need scripts


def test_under_a_policy_that_forbids_scripts_the_drawings_stay(chromium: Any, report: Path, tmp_path: Path) -> None:
    strict = tmp_path / "strict.html"
    strict.write_text(report.read_text().replace("script-src 'unsafe-inline'", "script-src 'none'"))
    context = chromium.new_context()
    page = context.new_page()
    page.goto(strict.as_uri())
    assert page.locator("figure svg").first.is_visible()
    assert page.locator("button").count() == 0
    context.close()


def test_print_takes_two_to_four_sheets_without_controls(page: Any) -> None:
    page.evaluate("document.documentElement.dataset.theme = 'dark'")
    sheets = re.findall(rb"/Type\s*/Page\b", page.pdf(format="A4"))
    assert 2 <= len(sheets) <= 4
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.documentElement).colorScheme") == "light"
    for hidden in ("header", ".head button", "#cases", "aside"):
        assert not page.locator(hidden).first.is_visible()
    for shown in ("h1", ".grid", "#speed figure", "#speed .data thead"):
        assert page.locator(shown).first.is_visible()


def test_a_mark_says_its_numbers_to_pointer_keyboard_and_finger(chromium: Any, report: Path, page: Any) -> None:
    tip, picture = page.locator("#tip"), page.locator("#speed figure svg").first
    mark = picture.locator("[data-tip]").first
    text_of_mark = mark.get_attribute("data-tip")
    mark.scroll_into_view_if_needed()
    mark.hover(force=True)
    assert tip.inner_text() == text_of_mark
    page.mouse.move(2, 2)
    assert not tip.is_visible()
    picture.focus()
    page.keyboard.press("ArrowRight")
    assert tip.inner_text() == text_of_mark
    page.keyboard.press("Escape")
    assert not tip.is_visible()
    with opened(chromium, report, has_touch=True, is_mobile=True, viewport={"width": 390, "height": 844}) as phone:
        mark = phone.locator("#speed figure svg [data-tip]").first
        mark.scroll_into_view_if_needed()
        box = mark.bounding_box()
        phone.touchscreen.tap(box["x"] + box["width"] / 2 + 10, box["y"] + box["height"] / 2)  # beside it
        assert phone.locator("#tip").inner_text() == text_of_mark


def test_pointing_at_a_name_dims_the_other_backends(page: Any) -> None:
    marks = page.locator("#speed figure").first.locator("svg").first
    flash, naive = (marks.locator(f'.arm[data-arm="{arm}"]') for arm in ("sdpa:flash", "naive"))
    opacity = "element => getComputedStyle(element).opacity"
    page.locator('.fixed [data-arm="sdpa:flash"]').hover()
    assert (flash.evaluate(opacity), naive.evaluate(opacity)) == ("1", "0.18")
    naive.locator("text").hover(force=True)
    assert (flash.evaluate(opacity), naive.evaluate(opacity)) == ("0.18", "1")
    page.mouse.move(2, 2)
    assert flash.evaluate(opacity) == "1"


def test_a_search_counts_the_rows_of_its_own_table(page: Any) -> None:
    page.locator("#cases summary").first.click()
    others = page.locator("#speed .data tbody tr:visible").count()
    block = page.locator("#cases .table:has(input)").first
    find = block.locator("input")
    find.fill("causal 512 flash")
    assert block.locator("[role=status]").inner_text() == "1 of 24 rows"
    assert block.locator("tbody tr:visible").count() == 1
    assert page.locator("#speed .data tbody tr:visible").count() == others
    find.fill("")
    assert block.locator("tbody tr:visible").count() == 24


def test_columns_are_sorted_by_number(page: Any) -> None:
    head = page.locator("#speed .data").first.locator("[data-name='sdpa:flash µs']")
    place = int(head.get_attribute("data-place"))
    head.get_by_role("button").click()
    assert head.get_attribute("aria-sort") == "ascending"
    rows = f"#{page.locator('#speed .data').first.get_attribute('id')} tbody tr:not(:has(.rest))"
    values = f"all => all.map(row => parseFloat(row.cells[{place}].textContent))"
    rising = page.eval_on_selector_all(rows, values)[:7]
    head.get_by_role("button").click()
    falling = page.eval_on_selector_all(rows, values)[:7]
    assert rising == sorted(rising) == falling[::-1]
    assert len(set(rising)) > 3
    assert page.locator("#speed .data tbody").first.locator("tr").last.locator(".rest").count() == 1  # without a value


def test_a_table_is_copied_as_csv_or_markdown(page: Any) -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    block = page.locator("#speed .table").first
    for name in ("CSV", "Markdown"):
        button = block.get_by_role("button", name=re.compile(f"as {name}$"))
        button.click()
        page.wait_for_function("button => button.textContent === 'Copied'", arg=button.element_handle())
        lines = page.evaluate("navigator.clipboard.readText()").splitlines()
        assert len(lines) == (9 if name == "CSV" else 10)
        assert "sdpa:flash µs" in lines[0]
        assert "±" in lines[3]
    assert set(lines[1]) == {"|", "-"}


def test_the_button_changes_the_theme(page: Any) -> None:
    colors = f"[{BACKGROUND}, getComputedStyle(document.querySelector('figure .arm')).color]"
    before = page.evaluate(colors)
    page.get_by_role("button", name="Dark / light").focus()
    page.keyboard.press("Enter")
    assert not set(page.evaluate(colors)) & set(before)


def test_every_control_is_reached_by_keyboard(page: Any) -> None:
    page.evaluate("document.querySelectorAll('details').forEach(each => { each.open = true; })")
    order = f'[...document.querySelectorAll("{CONTROLS}")].filter(each => each.getClientRects().length)'
    wanted = page.evaluate(f"{order}.length")
    reached = set()
    for _ in range(wanted):
        page.keyboard.press("Tab")
        reached.add(page.evaluate(f"{order}.indexOf(document.activeElement)"))
    assert reached - {-1} == set(range(wanted))


def test_the_narrow_drawing_replaces_the_wide_one_where_there_is_no_room(chromium: Any, report: Path) -> None:
    for width, wide in ((1440, True), (390, False)):
        with opened(chromium, report, viewport={"width": width, "height": 900}) as page:
            figure = page.locator("#speed figure:has(.narrow)").first
            assert figure.locator(".wide").is_visible() == wide
            assert figure.locator(".narrow").is_visible() == (not wide)
