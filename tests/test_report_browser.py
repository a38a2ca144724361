"""The report's page in a real browser: Chromium without a head, from disk. Skipped where there is none."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from attnbench.attention.problem import Problem
from attnbench.report import Choice, write
from attnbench.store import Manifest, Run
from tests.samples import result

pytest.importorskip("altair")
pytest.importorskip("vl_convert")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")]

PROBE = """
<script>
(async () => {
  const seen = { errors: [], requests: 0 };
  window.addEventListener("error", (event) => seen.errors.push(String(event.message)));
  window.addEventListener("securitypolicyviolation", (event) => seen.requests += 1);
  await window.drawn;
  const count = (one) => one.querySelectorAll("path, rect, line").length;
  const marks = () => [...document.querySelectorAll(".live")].map(count);
  const page = () => document.documentElement;
  seen.live = [...document.querySelectorAll(".live")].map((one) => !one.hidden);
  seen.marks = marks();
  const box = document.querySelector("#arms input");
  box.click(); await new Promise((done) => setTimeout(done, 1500)); seen.filtered = marks();
  box.click(); await new Promise((done) => setTimeout(done, 1500));
  const wide = page().scrollWidth > page().clientWidth + 1;
  seen.sideways = wide;
  const before = getComputedStyle(document.body).backgroundColor;
  document.getElementById("theme").click(); seen.themed = getComputedStyle(document.body).backgroundColor !== before;
  const find = document.getElementById("find");
  find.value = "q1024"; find.dispatchEvent(new Event("input"));
  seen.found = [...document.querySelectorAll("#raw tbody tr")].filter((row) => !row.hidden).length;
  find.value = ""; find.dispatchEvent(new Event("input"));
  const head = [...document.querySelectorAll("#latency thead button")].find((one) => one.textContent === "time_s");
  const column = () => [...document.querySelectorAll("#latency tbody tr")].map((row) => row.cells[1].textContent);
  head.click(); seen.rising = column(); head.click(); seen.falling = column();
  const choice = document.getElementById("reference");
  const was = document.querySelector('[data-chart="speedup/speedup"] .live').innerHTML;
  choice.value = "sdpa:flash"; choice.dispatchEvent(new Event("change"));
  await new Promise((done) => setTimeout(done, 1500));
  seen.switched = document.querySelector('[data-chart="speedup/speedup"] .live').innerHTML !== was;
  const named = (one) => one.textContent.trim() || one.labels?.length;
  seen.unnamed = [...document.querySelectorAll("button, input, select")].filter((one) => !named(one)).length;
  const shown = document.createElement("pre"); shown.id = "probe"; shown.textContent = JSON.stringify(seen);
  document.body.append(shown);
})();
</script>
"""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a report on two backends and five lengths."""
    folder = tmp_path_factory.mktemp("report")
    results = []
    for n in (256, 512, 1024, 2048, 4096):
        problem = Problem(seq_q=n)
        facts = {"reference": "naive@cpu:threads=1"}
        for backend, share in (("naive", 1.0), ("sdpa:flash", 0.5)):
            values = [share * 1e-9 * n * n * (1 + 0.01 * k) for k in range(6)]
            results.append(result(values, backend, problem=problem, facts=facts))
    manifest = Manifest(schema_version=1, attnbench="0", created_at="", suite="made", fingerprint="f")
    return write([Run(path=folder / "run", manifest=manifest, results=results)], folder / "out", Choice(plots=()))


def browse(page: Path, *options: str, said: str = "") -> str:
    """The page as it stands after its scripts; fails on any message of the console but those that hold `said`."""
    command = [str(CHROMIUM), "--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", *options]
    command += ["--virtual-time-budget=30000", "--dump-dom", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    messages = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert not [line for line in messages if not said or said not in line]
    return done.stdout


def probed(report: Path, tmp_path: Path, *options: str) -> dict[str, Any]:
    """What a user who clicks on everything sees."""
    page = tmp_path / "probed.html"
    before, end, after = (report / "index.html").read_text().rpartition("</body>")
    page.write_text(before + PROBE + end + after)
    text = browse(page, *options)
    found: dict[str, Any] = json.loads(unescape(re.findall(r'<pre id="probe">(.*?)</pre>', text, re.DOTALL)[0]))
    return found


def test_a_user_with_a_mouse(report: Path, tmp_path: Path) -> None:
    seen = probed(report, tmp_path, "--window-size=1200,900")
    assert (seen["errors"], seen["requests"]) == ([], 0)
    assert all(seen["live"])
    assert all(count > 10 for count in seen["marks"])
    assert all(after < before for before, after in zip(seen["marks"], seen["filtered"], strict=True))
    assert seen["themed"]
    assert seen["switched"]
    assert seen["found"] == 2
    assert seen["rising"] == seen["falling"][::-1] != seen["falling"]
    assert seen["unnamed"] == 0


def test_a_phone_scrolls_down_alone(report: Path, tmp_path: Path) -> None:
    assert not probed(report, tmp_path, "--window-size=500,900")["sideways"]


def test_under_a_policy_that_forbids_scripts_all_drawings_and_tables_are_there(report: Path, tmp_path: Path) -> None:
    page = tmp_path / "strict.html"
    text = (report / "index.html").read_text()
    page.write_text(text.replace("script-src 'unsafe-inline' 'unsafe-eval'", "script-src 'none'"))
    text = browse(page, said="script-src 'none'")
    assert 'class="scripted"' not in text
    assert text.count('<div class="live" hidden="">') == text.count("<figure") > 3
    assert "sdpa:flash is fastest" in text
    assert text.count("<table>") > 5
