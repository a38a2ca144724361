"""Runs that version 0.1.0 stored, before `launch` became `restart`: read, shown, compared and gated as then."""

from __future__ import annotations

from pathlib import Path

import pytest

from attnbench.cli import invoke
from attnbench.records import run_directory

STORED = Path(__file__).parent / "stored" / "0.1.0"
# The files hold what version 0.1.0 printed. Words that changed since then, and nothing else, are replaced here.
WORDS = {
    "launches": "restarts",
    "report last": "report run-a",
    "tell the noise between": "show the noise between",
    "as chance has it (0 A/A runs, 20 are\n  needed)": "as for normal noise (0 A/A runs of\n"
    "  this machine, 20 are needed)",
    '","path":"run-a","exit_code"': '","notes":[],"path":"run-a","exit_code"',
    "closer than their intervals tell apart": "the 95 % intervals do not distinguish them",
}


@pytest.mark.parametrize(
    ("arguments", "expected", "code"),
    [
        (("show", "run-a"), "show.txt", 0),
        (("show", "run-a", "--json"), "show.jsonl", 0),
        (("compare", "run-a", "run-b"), "compare.txt", 0),
        (("gate", "run-b", "--baseline", "run-a"), "gate-stored.txt", 3),
        (("gate", "gate"), "gate-replayed.txt", 0),
    ],
    ids=["show", "show-json", "compare", "gate-stored", "gate-replayed"],
)
def test_output_is_that_of_the_version_that_stored_the_run(
    arguments: tuple[str, ...],
    expected: str,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(STORED)
    assert invoke(list(arguments)) == code
    text = (STORED / expected).read_text(encoding="utf-8")
    for old, new in WORDS.items():
        text = text.replace(old, new)
    assert capsys.readouterr().out == text


def test_old_keys_are_read_into_new_fields() -> None:
    run = run_directory.read(STORED / "run-a")
    assert {result.restart for result in run.results} == {0, 1}
    assert run.manifest.procedures["cpu"].restarts == 2
    assert run.manifest.procedures["cpu"].max_rounds == 3
