"""Configuration files: which one wins, and what a mistake in one is met with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from attnbench.cli import config
from attnbench.errors import SuiteError

KNOWN = {
    "run": {"seq": False, "budget": False, "restarts": False, "strict": False, "only": True},
    "report": {"title": False},
}


@pytest.fixture
def cwd(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    return folder


def local(cwd: Path, text: str) -> None:
    (cwd / "attnbench.toml").write_text(text)


def project(cwd: Path, text: str) -> None:
    (cwd / "pyproject.toml").write_text(text)


def user(text: str) -> None:
    config.user_file().parent.mkdir(parents=True)
    config.user_file().write_text(text)


def values(cwd: Path) -> dict[str, dict[str, Any]]:
    return config.defaults(cwd, KNOWN)[0]


def test_without_files_there_are_no_values(cwd: Path) -> None:
    assert config.defaults(cwd, KNOWN) == ({}, {})


def test_nearer_file_wins_key_by_key(cwd: Path) -> None:
    local(cwd, '[run]\nseq = "1k"\n')
    project(cwd, '[tool.attnbench.run]\nseq = "2k"\nbudget = "1m"\n')
    user('[run]\nseq = "4k"\nbudget = "2m"\nrestarts = 3\n')
    assert values(cwd) == {"run": {"seq": "1k", "budget": "1m", "restarts": 3}}


def test_each_value_has_the_file_that_it_is_from(cwd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    local(cwd, '[run]\nseq = "1k"\n')
    project(cwd, '[tool.attnbench.run]\nbudget = "1m"\n')
    user('[report]\ntitle = "T"\n')
    assert config.defaults(cwd, KNOWN)[1] == {
        "run": {"seq": "attnbench.toml", "budget": "pyproject.toml [tool.attnbench]"},
        "report": {"title": "~/config/attnbench/config.toml"},
    }


def test_project_file_of_another_tool_is_passed_over(cwd: Path) -> None:
    project(cwd, '[project]\nname = "other"\n[tool.ruff]\nline-length = 120\n')
    assert values(cwd) == {}


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("seq = [512, 1024]", {"seq": "512,1024"}),
        ('seq = ["1k..4k", 777]', {"seq": "1k..4k,777"}),
        ("restarts = 6", {"restarts": 6}),
        ("strict = true", {"strict": True}),
        ('only = "seq=..4k"', {"only": ["seq=..4k"]}),
        ('only = ["seq=..4k", "mask=none"]', {"only": ["seq=..4k", "mask=none"]}),
    ],
)
def test_list_is_a_comma_list_or_where_an_option_repeats_one_value_each(
    cwd: Path, line: str, value: dict[str, Any]
) -> None:
    local(cwd, f"[run]\n{line}\n")
    assert values(cwd) == {"run": value}


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[run]\nsek = 8", "attnbench.toml: run.sek: no key 'sek'; did you mean 'seq'?"),
        ("[rum]\nseq = 8", "attnbench.toml: no section 'rum'; did you mean 'run'?"),
        ('run = "fast"', "attnbench.toml: run: must be a table: [run]"),
        ("[run]\nseq = {a = 1}", "attnbench.toml: run.seq: a word, a number, true, false, or a list"),
        ("[run]\nseq = 2026-11-21", "attnbench.toml: run.seq: a word, a number, true, false, or a list"),
        ("[run]\nseq =\n", "attnbench.toml: not TOML: Invalid value (at line 2, column 6)"),
    ],
)
def test_mistake_is_named_with_file_and_key(cwd: Path, text: str, complaint: str) -> None:
    local(cwd, text)
    with pytest.raises(SuiteError) as caught:
        values(cwd)
    assert str(caught.value).startswith(complaint)


def test_mistake_in_the_project_file_is_named_with_its_table(cwd: Path) -> None:
    project(cwd, "[tool.attnbench.run]\nsek = 8\n")
    with pytest.raises(SuiteError, match=r"^pyproject\.toml \[tool\.attnbench\]: run\.sek: no key 'sek'"):
        values(cwd)


def test_section_of_the_project_that_is_no_table_is_refused(cwd: Path) -> None:
    project(cwd, "[tool]\nattnbench = 3\n")
    with pytest.raises(SuiteError, match=r"^pyproject\.toml \[tool\.attnbench\]: must be a table$"):
        values(cwd)


def test_file_that_is_no_text_is_refused(cwd: Path) -> None:
    (cwd / "attnbench.toml").write_bytes(b"\xff")
    with pytest.raises(SuiteError, match=r"^attnbench\.toml: not a text in UTF-8$"):
        values(cwd)


def test_folder_in_the_place_of_the_file_is_refused(cwd: Path) -> None:
    (cwd / "attnbench.toml").mkdir()
    with pytest.raises(SuiteError, match=r"^attnbench\.toml: Is a directory$"):
        values(cwd)
