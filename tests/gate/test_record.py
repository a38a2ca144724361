"""The `[gate]` table of a suite: what is refused, and which tolerance counts."""

from __future__ import annotations

import re
import tomllib
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from attnbench import cli
from attnbench.errors import SuiteError, UsageError
from attnbench.gate.record import Settings, read_settings, suite_schema

ENTRY = {"match": "*", "time": "9%", "reason": "a"}


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"tim": "2%"}, r"mine: \[gate\] tim: no key 'tim'; did you mean 'time'"),
        ({"device": "cpu"}, r"mine: \[gate\] device: no key 'device'"),
        ({"time": "fast"}, r"mine: \[gate\] time: not a share: 'fast'"),
        (
            {"tolerance": [ENTRY, {"match": "*", "time": "2%"}]},
            r"\[gate\] tolerance\[1\]: no key 'reason', which is req",
        ),
        ({"tolerance": [ENTRY | {"reasn": "a"}]}, r"tolerance\[0\]\.reasn: no key 'reasn'; did you mean 'reason'"),
        ({"tolerance": [ENTRY | {"time": "9"}]}, r"mine: \[gate\] tolerance\[0\]\.time: not a share: '9'"),
        ({"tolerance": ENTRY}, r"mine: \[gate\] tolerance: write \[\[gate\.tolerance\]\], once for each"),
        ({"alias": "a"}, r"mine: \[gate\] alias: expected `object`, got `str`"),
        ({"max_margin": "wide"}, r"mine: \[gate\] max_margin: not a share: 'wide'"),
        ({"max_margin": "1%"}, r"mine: \[gate\] max_margin: '1%' must be above the tolerance 2%, as 4%"),
        ({"max_margin": "3%", "time": "3%"}, "max_margin: '3%' must be above the tolerance 3%, as 6%"),
    ],
)
def test_an_invalid_table_is_refused_by_key(table: dict[str, Any], message: str) -> None:
    with pytest.raises((SuiteError, UsageError), match=message):
        read_settings(table, "mine")


def test_the_last_tolerance_that_matches_counts() -> None:
    settings = read_settings(
        {"tolerance": [{"match": "*", "time": "5%", "reason": "a"}, {"match": "*flex", "time": "9%", "reason": "b"}]},
        "x",
    )
    assert (settings.tolerance_of("b1 naive", date.today()), settings.tolerance_of("b1 flex", date.today())) == (
        0.05,
        0.09,
    )


def test_the_schema_of_a_suite_describes_its_gate_table() -> None:
    definitions = suite_schema()["$defs"]
    name = definitions["SuiteFile"]["properties"]["gate"]["$ref"].removeprefix("#/$defs/")
    assert tuple(definitions[name]["properties"]) == Settings.__struct_fields__
    assert set(definitions["CaseTolerance"]["required"]) == {"match", "time", "reason"}


def test_validating_a_suite_reads_its_gate_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('[gate]\nmax_margin = "1%"\n[[problem]]\nseq = 64\n')
    assert cli.invoke(["suite", "validate", str(file)]) == 2
    assert "mine.toml: [gate] max_margin: '1%' must be above the tolerance 2%" in capsys.readouterr().err


def test_a_wrong_table_is_named_with_its_file_before_a_run_folder_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ATTNBENCH_RESULTS", str(tmp_path / "results"))
    (tmp_path / "parent.toml").write_text('[gate]\ntime = "fast"\n[[problem]]\nseq = 64\n')
    (tmp_path / "mine.toml").write_text('extends = "parent.toml"\n')
    assert cli.invoke(["gate", "mine.toml", "-b", "naive", "--noop"]) == 2
    assert "parent.toml: [gate] time: not a share: 'fast'" in capsys.readouterr().err
    assert not (tmp_path / "results").exists()


def test_the_documented_table_is_accepted_and_a_tolerance_of_its_own_widens_the_largest_margin() -> None:
    page = (Path(__file__).parents[2] / "docs" / "gate.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```toml\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    settings = read_settings(tomllib.loads(block)["gate"], "gate.md")
    before, after = date(2027, 1, 1), date(2027, 3, 1)
    assert settings.largest_margin("naive causal", before) == 0.06
    assert settings.largest_margin("naive document:4", before) == pytest.approx(0.24)
    assert settings.largest_margin("naive document:4", after) == 0.06
    assert Settings().largest_margin("naive", before) is None
