"""Workflows of this repository and of docs/ci.md: they parse, and the commands, options and targets in them exist."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from attnbench import cli

yaml = pytest.importorskip("yaml")

ROOT = Path(__file__).parent.parent
DOCUMENT = (ROOT / "docs" / "ci.md").read_text(encoding="utf-8")
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


def steps(workflow: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for job in workflow["jobs"].values():
        yield from job["steps"]


def commands() -> list[str]:
    """Every `attnbench` command line of docs/ci.md and of the workflows, without redirections."""
    lines = DOCUMENT.splitlines()
    for path in WORKFLOWS:
        workflow = yaml.safe_load(path.read_text(encoding="utf-8"))
        lines += [line for step in steps(workflow) for line in step.get("run", "").splitlines()]
    texts = []
    for line in lines:
        match = re.match(r'(?:"\S*/)?attnbench"? ([a-z-].*)', line.strip().removeprefix("- ").removeprefix("run: "))
        if match:
            texts.append(match[1].partition(" > ")[0])
    return texts


def test_workflows_of_the_document_have_a_gate() -> None:
    blocks = [yaml.safe_load(text) for text in re.findall(r"```yaml\n(.*?)```", DOCUMENT, re.DOTALL)]
    assert len(blocks) == 3
    for block in blocks[:2]:
        assert any("attnbench gate" in step.get("run", "") for step in steps(block))
    assert any("attnbench gate" in line for line in blocks[2]["attention"]["script"])


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflow_parses_and_its_jobs_are_bounded(path: Path) -> None:
    workflow = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert workflow["permissions"] == {"contents": "read"}
    for name, job in workflow["jobs"].items():
        assert job["timeout-minutes"] <= 60, name
    for step in steps(workflow):
        assert ("run" in step) != ("uses" in step), step


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_targets_and_modules_of_a_workflow_exist(path: Path) -> None:
    for step in steps(yaml.safe_load(path.read_text(encoding="utf-8"))):
        for target in re.findall(r"\bmake ([a-z-]+)", step.get("run", "")):
            assert target in TARGETS, target
        for module in re.findall(r"python -m ([\w.]+)", step.get("run", "")):
            assert module in ("pip", "venv", "build") or find_spec(module), module


@pytest.mark.parametrize("command", commands())
def test_command_and_options_are_known(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    name, *words = shlex.split(command)
    if name.startswith("--"):
        name, words = "", [name]
    assert cli.invoke([*filter(None, [name]), "--help"]) == 0
    text = capsys.readouterr().out
    for option in (word for word in words if word.startswith("--")):
        assert re.search(rf"{option}\b", text), option


def test_there_are_commands_to_check() -> None:
    assert len(commands()) >= 9
