"""Lists fit the terminal; `--long` and JSON have every field."""

from __future__ import annotations

import json

import pytest

from tests.conftest import Command


@pytest.mark.parametrize("width", [40, 80])
@pytest.mark.parametrize(
    "arguments", ["backends", "suites", "masks", "biases", "weightings", "devices", "backends --long", "suites --long"]
)
def test_a_list_fits_the_terminal(
    arguments: str, width: int, monkeypatch: pytest.MonkeyPatch, attnbench_command: Command
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    lines = attnbench_command("list", *arguments.split()).stdout.splitlines()
    assert max(map(len, lines)) <= width
    assert lines[1].strip()


def test_sources_are_in_the_long_list_and_in_json(attnbench_command: Command) -> None:
    source = "https://github.com/google-research/bert"
    assert source not in attnbench_command("list", "suites").stdout
    assert f"    source: {source}\n" in attnbench_command("list", "suites", "--long").stdout
    records = [json.loads(line) for line in attnbench_command("list", "suites", "--json").stdout.splitlines()]
    assert {record["source"] for record in records if record["suite"] == "bert-base"} == {source}


def test_a_word_names_its_backends_by_library_and_its_meaning(attnbench_command: Command) -> None:
    lines = attnbench_command("list", "masks").stdout.splitlines()
    assert any(line.split() == ["causal", "all"] for line in lines)
    assert any("triton (3 of 5)" in line for line in lines)
    assert "none: every key" in lines
