"""What the documents show, run as it is written."""

from __future__ import annotations

import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from attnbench import cli, suite

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def commands() -> list[list[str]]:
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    return [shlex.split(line, comments=True) for line in lines if line.startswith("attnbench")]


@pytest.fixture
def with_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder with the kernel of the README."""
    monkeypatch.chdir(tmp_path)
    Path("my_kernel.py").write_text(next(block for block in blocks("python") if "# my_kernel.py" in block))


@pytest.mark.parametrize("command", [c for c in commands() if c[1] == "run" and "--resume" not in c], ids=" ".join)
@pytest.mark.usefixtures("with_kernel")
def test_every_run_of_the_readme_can_be_planned(command, attnbench_command):
    done = attnbench_command(*command[1:], "--dry-run")
    assert done.returncode == 0, done.stderr


@pytest.mark.workers
@pytest.mark.usefixtures("with_kernel")
def test_the_kernel_of_the_readme_is_measured(attnbench_command):
    command = next(command for command in commands() if "naive,my_kernel.py:attend" in command)
    done = attnbench_command(*command[1:], "--rounds", "3")
    assert done.returncode == 0, done.stderr
    assert "my_kernel.py:attend" in done.stdout
    assert "4 cases" in done.stdout or "8 cases: 8 ok" in done.stdout


@pytest.mark.workers
def test_the_example_file_is_right(attnbench_command):
    kernel = ROOT / "examples" / "my_kernel.py"
    arguments = ("--seq", "48", "--set", "softcap=20", "-b", f"naive,{kernel}:attend_capped", "--rounds", "3")
    done = attnbench_command("run", *arguments)
    assert done.returncode == 0, done.stderr
    assert "4 cases: 4 ok" in done.stdout


@pytest.mark.workers
def test_the_python_of_the_readme_runs(tmp_path):
    program = next(block for block in blocks("python") if "attnbench.run" in block)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 4


def test_every_file_that_the_readme_links_to_is_there():
    for path in re.findall(r"\]\(([^)#]+)\)", README):
        assert path.startswith("http") or (ROOT / path).exists(), path


def test_every_suite_key_and_json_key_is_documented():
    from attnbench.report.formats import jsonl
    from attnbench.suite import AXES

    formats = (ROOT / "docs" / "formats.md").read_text()
    for key in (*AXES, *jsonl.KEYS):
        assert f"`{key}`" in formats, key


def mechanisms() -> list[str]:
    """Every sweep of docs/mechanisms.md that takes a plan."""
    text = (ROOT / "docs" / "mechanisms.md").read_text()
    return list(dict.fromkeys(re.findall(r"`attnbench (run [^`]*)`", text)))


@pytest.mark.parametrize("command", mechanisms())
def test_every_command_of_the_map_of_mechanisms_can_be_planned(command: str) -> None:
    assert cli.invoke([*shlex.split(command), "--device", "cpu:threads=1", "--dry-run"]) == 0


def test_the_map_of_mechanisms_names_every_suite_of_an_application() -> None:
    text = (ROOT / "docs" / "mechanisms.md").read_text()
    own = {"ci", "hopper", "kernels", "quick", "scaling", "verify"}
    assert not [name for name in suite.shipped() if name not in own and f"`{name}`" not in text]


def test_every_test_that_a_page_names_is_there() -> None:
    pages = "".join((ROOT / "docs" / name).read_text() for name in ("articles.md", "mechanisms.md", "gate.md"))
    defined = "".join(file.read_text() for file in (ROOT / "tests").rglob("test_*.py"))
    named = set(re.findall(r"`(test_\w+)`", pages))
    assert len(named) >= 10
    assert not [name for name in named if f"def {name}(" not in defined]


def test_every_row_of_the_map_has_a_command_a_suite_or_a_reason() -> None:
    text = (ROOT / "docs" / "mechanisms.md").read_text().partition("## Mechanisms\n")[2].partition("## Claims")[0]
    rows = re.findall(r"^\| ([MPOCHT]\d+)[^|]*\|(.*)\|$", text, flags=re.MULTILINE)
    named = {number for number, _ in rows}
    assert {"M1", "M38", "P1", "P23", "O1", "O10", "C1", "C6", "H1", "H10", "T1", "T11"} <= named
    for number, rest in rows:
        command = "`attnbench" in rest or any(f"`{name}`" in rest for name in suite.shipped())
        assert command or re.search(r"\bout\b", rest) or "`examples/" in rest or "`--" in rest, number
        assert "not yet" not in rest, number


def test_the_table_of_features_is_that_of_the_code() -> None:
    path = ROOT / "tools" / "support.py"
    spec = importlib.util.spec_from_file_location("support", path)
    assert spec
    assert spec.loader
    support = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(support)
    assert "\n".join(support.lines()) in (ROOT / "docs" / "mechanisms.md").read_text()
