"""The workflows of docs/ci.md: they parse, and every command in them is one of ours with options that there are."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from attnbench import cli

TEXT = (Path(__file__).parents[1] / "docs" / "ci.md").read_text()
COMMANDS = [line.strip().removeprefix("- ").removeprefix("run: ") for line in TEXT.splitlines() if "attnbench " in line]
COMMANDS = [line.partition(" > ")[0] for line in COMMANDS if line.startswith("attnbench ")]


def test_workflows_are_yaml_with_jobs() -> None:
    yaml = pytest.importorskip("yaml")
    blocks = [yaml.safe_load(text) for text in re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)]
    assert len(blocks) == 3
    for block in blocks[:2]:
        steps = block["jobs"]["gate"]["steps"]
        assert any("attnbench gate" in step.get("run", "") for step in steps)
    assert any("attnbench gate" in line for line in blocks[2]["attention"]["script"])


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_is_known(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    _, name, *words = shlex.split(command)
    assert cli.invoke([name, "--help"]) == 0
    said = capsys.readouterr().out
    for option in (word for word in words if word.startswith("--")):
        assert re.search(rf"{option}\b", said), option


def test_there_are_commands_to_check() -> None:
    assert len(COMMANDS) >= 5
