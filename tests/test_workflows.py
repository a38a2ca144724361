"""Workflows of this repository and of docs/ci.md: they parse, and the commands, options and targets in them exist."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from attnbench import cli
from attnbench.report.terminal import gate_verdicts

yaml = pytest.importorskip("yaml")

ROOT = Path(__file__).parent.parent
DOCUMENT = (ROOT / "docs" / "ci.md").read_text(encoding="utf-8")
HOOKS = ROOT / ".pre-commit-hooks.yaml"
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
ACTION = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))
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
    lines.append(f"attnbench gate {gate_step()['with']['arguments']}")
    texts = []
    for line in lines:
        match = re.match(r'(?:"\S*/)?attnbench"? ([a-z-].*)', line.strip().removeprefix("- ").removeprefix("run: "))
        if match:
            texts.append(match[1].partition(" > ")[0])
    return texts


def blocks(key: str) -> list[dict[str, Any]]:
    """The YAML examples of docs/ci.md that have this key."""
    examples = (yaml.safe_load(text) for text in re.findall(r"```yaml\n(.*?)```", DOCUMENT, re.DOTALL))
    return [example for example in examples if key in example]


def gate_step() -> dict[str, Any]:
    """The step of the first example, which uses the action."""
    (step,) = [step for step in steps(blocks("jobs")[0]) if "attnbench" in step.get("uses", "")]
    return step


def test_workflows_of_the_document_have_a_gate() -> None:
    assert set(gate_step()["with"]) <= set(ACTION["inputs"])
    without = blocks("jobs")[1:]
    assert len(without) == 2
    for workflow in without:
        assert any("attnbench gate" in step.get("run", "") for step in steps(workflow))
    (gitlab,) = blocks("attention")
    assert any("attnbench gate" in line for line in gitlab["attention"]["script"])


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


# -- the composite action, and the hook for pre-commit -----------------------------------------------------------------


def stub(folder: Path, name: str, script: str) -> None:
    (folder / name).write_text(f"#!/bin/bash\n{script}\n")
    (folder / name).chmod(0o755)


def run_action(tmp_path: Path, attnbench: str, variables: dict[str, str], **inputs: str) -> tuple[int, str]:
    """Run the steps of the action as GitHub does; return the last exit code and the output `verdict`."""
    (bin_folder := tmp_path / "bin").mkdir()
    stub(bin_folder, "attnbench", attnbench)
    stub(bin_folder, "python", f'printf "%s\\n" "$@" > {tmp_path}/python')
    values = {name: description["default"] for name, description in ACTION["inputs"].items()} | inputs
    output = tmp_path / "output"
    code = 0
    for step in (step for step in ACTION["runs"]["steps"] if "run" in step):
        (tmp_path / "step").write_text(step["run"])
        given = {
            name: re.sub(r"\$\{\{ inputs\.([\w-]+) \}\}", lambda match: values[match[1]], text)
            for name, text in step["env"].items()
        }
        fixed = {
            "PATH": f"{bin_folder}:{os.environ['PATH']}",
            "GITHUB_OUTPUT": str(output),
            "GITHUB_ACTION_PATH": "here",
        }
        command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", str(tmp_path / "step")]
        code = subprocess.run(command, cwd=tmp_path, env={**os.environ, **fixed, **given, **variables}).returncode
    return code, output.read_text().splitlines()[-1].removeprefix("verdict=")


@pytest.mark.parametrize(
    ("inputs", "variables", "expected"),
    [
        ({}, {}, ["gate", "--base-ref", "HEAD~1", "--github", "--inconclusive", "ok"]),
        ({"arguments": ""}, {"GITHUB_BASE_REF": "main"}, ["gate", "--base-ref", "origin/main", "--github"]),
        (
            {"suite": "ci mine.toml", "base-ref": "v1", "arguments": "--only\n*q64*;`id`\n"}, {},
            ["gate", "ci", "mine.toml", "--base-ref", "v1", "--github", "--only", "*q64*;`id`"],
        ),
        ({"arguments": "--against 2"}, {"GITHUB_BASE_REF": "main"}, ["gate", "--github", "--against", "2"]),
        ({"arguments": "--seq 1k\n--noop"}, {}, ["gate", "--github", "--seq", "1k", "--noop"]),
        ({"arguments": "--base-path=old"}, {}, ["gate", "--github", "--base-path=old"]),
        (
            {"base-ref": "v1", "arguments": "--noop"}, {},
            ["gate", "--base-ref", "v1", "--github", "--noop"],
        ),
    ],
)  # fmt: skip
def test_the_action_passes_its_inputs_to_the_gate(
    inputs: dict[str, str], variables: dict[str, str], expected: list[str], tmp_path: Path
) -> None:
    attnbench = f'printf "%s\\n" "$@" > {tmp_path}/attnbench; echo "verdict=regressed" >> "$GITHUB_OUTPUT"; exit 1'
    assert run_action(tmp_path, attnbench, variables, **inputs) == (1, "regressed")
    assert (tmp_path / "attnbench").read_text().splitlines() == expected
    assert (tmp_path / "python").read_text().split() == ["-m", "pip", "install", "here"]


def test_a_gate_that_cannot_start_is_a_verdict_of_the_action(tmp_path: Path) -> None:
    attnbench = f'exec {sys.executable} -m attnbench "$@"'
    assert run_action(tmp_path, attnbench, {}, **{"base-ref": "nowhere"}) == (2, "nothing measured")


def test_the_action_documents_its_inputs_and_its_verdicts() -> None:
    for name, description in ACTION["inputs"].items():
        assert f"| `{name}` | " + (f"`{description['default']}`" if description["default"] else "") in DOCUMENT
    words = set(gate_verdicts.WORDS.values())
    assert set(re.split(r", | or ", ACTION["outputs"]["verdict"]["description"].rstrip("."))) == words


def git(folder: Path, *commands: str) -> None:
    for command in commands:
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *command.split()], cwd=folder, check=True)


@pytest.mark.slow  # it judges no time, so it need not run alone
def test_the_hook_verifies_kernels_whose_files_change(tmp_path: Path) -> None:
    hooks, project, bin_folder = (tmp_path / name for name in ("hooks", "project", "bin"))
    for folder in (hooks, project, bin_folder):
        folder.mkdir()
    stub(bin_folder, "attnbench", f'exec {sys.executable} -m attnbench "$@"')
    (hooks / HOOKS.name).write_text(HOOKS.read_text())
    git(hooks, "init -q", "add .", "commit -qm hooks")
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=hooks, check=True, capture_output=True, text=True).stdout
    (configuration,) = blocks("repos")
    configuration["repos"][0] |= {"repo": str(hooks), "rev": commit.strip()}
    (project / ".pre-commit-config.yaml").write_text(yaml.safe_dump(configuration))
    (project / "my_kernel.py").write_text("def attend(q, k, v, causal=False, scale=None):\n    return 0.5 * v\n")
    (project / "other.py").touch()
    git(project, "init -q", "add .")
    variables = {
        **os.environ, "PATH": f"{bin_folder}:{os.environ['PATH']}", "PRE_COMMIT_HOME": str(tmp_path / "cache"),
    }  # fmt: skip

    def commit_of(file: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "pre_commit", "run", "--files", file]
        return subprocess.run(command, cwd=project, env=variables, capture_output=True, text=True)

    assert commit_of("other.py").returncode == 0
    changed = commit_of("my_kernel.py")
    assert changed.returncode == 1
    assert "incorrect" in changed.stdout
