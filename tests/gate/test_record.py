"""The `[gate]` table of a suite: what is refused, and which tolerance counts."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Any

import pytest

from attnbench import cli
from attnbench.errors import SuiteError, UsageError
from attnbench.gate.record import Settings, read_settings, suite_schema


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"tim": "2%"}, "unknown field `tim`"),
        ({"time": "fast"}, "not a share: 'fast'"),
        ({"tolerance": [{"match": "*", "time": "2%"}]}, "missing required field `reason`"),
        ({"max_margin": "wide"}, r"mine: \[gate\] max_margin: not a share: 'wide'"),
        ({"max_margin": "1%"}, "max_margin: '1%' is below the tolerance '2%', so no case .* use at least 2%"),
        (
            {"max_margin": "5%", "tolerance": [{"match": "*", "time": "9%", "reason": "a"}]},
            "max_margin: '5%' is below the tolerance '9%'",
        ),
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
    assert "mine.toml: [gate] max_margin: '1%' is below the tolerance '2%'" in capsys.readouterr().err
