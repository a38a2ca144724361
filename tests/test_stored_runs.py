"""Runs that version 0.1.0 stored, before `launch` became `restart`: read, shown, compared and gated."""

from __future__ import annotations

from pathlib import Path

import pytest

from attnbench.cli import invoke
from attnbench.records import run_directory

STORED = Path(__file__).parent / "stored" / "0.1.0"


@pytest.mark.parametrize(
    ("arguments", "expected", "code"),
    [
        (("show", "run-a"), "show.txt", 0),
        (("show", "run-a", "--json"), "show.jsonl", 0),
        (("compare", "run-a", "run-b"), "compare.txt", 0),
        (("gate", "run-b", "--baseline", "run-a"), "gate-stored.txt", 3),
        (("gate", "gate"), "gate-replayed.txt", 3),
    ],
    ids=["show", "show-json", "compare", "gate-stored", "gate-replayed"],
)
def test_a_run_of_an_earlier_format_gives_the_golden_output(
    arguments: tuple[str, ...],
    expected: str,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(STORED)
    assert invoke(list(arguments)) == code
    assert capsys.readouterr().out == (STORED / expected).read_text(encoding="utf-8")


def test_old_keys_are_read_into_new_fields() -> None:
    run = run_directory.read(STORED / "run-a")
    assert {result.restart for result in run.results} == {0, 1}
    assert run.manifest.procedures["cpu"].restarts == 2
    assert run.manifest.procedures["cpu"].max_rounds == 3
