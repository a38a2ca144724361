"""What the documents show, run as it is written."""

from __future__ import annotations

import importlib.util
import json
import math
import re
import shlex
from pathlib import Path

import msgspec
import pytest

from attnbench import cli, suite
from attnbench.analysis.rows import as_frame, rows_of
from attnbench.attention.problem import Problem
from attnbench.records import speeds
from tests.samples import result
from tools import readme

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


COMMANDS = [command for command in readme.commands() if command.text.startswith("attnbench")]
RUNS = [
    command.text for command in COMMANDS if command.text.startswith("attnbench run") and "--resume" not in command.text
]
SHORT_S = 60


@pytest.mark.parametrize("name", [name.replace("_", "-") for names in cli.COMMANDS.values() for name in names])
def test_every_command_is_in_the_table_of_the_readme(name: str) -> None:
    table = "".join(line for line in README.splitlines() if line.startswith("| `attnbench "))
    assert re.search(rf"`(attnbench )?{name}[ `]", table)


@pytest.fixture
def with_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder with the kernel of the README."""
    monkeypatch.chdir(tmp_path)
    Path(readme.KERNEL).write_text(readme.kernel())


@pytest.mark.parametrize("command", RUNS)
@pytest.mark.usefixtures("with_kernel")
def test_every_run_of_the_readme_can_be_planned_within_its_time(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By estimated speeds, not by those that other tests measured."""
    monkeypatch.setattr(speeds, "load", lambda _: speeds.Speeds())
    assert cli.invoke([*shlex.split(command)[1:], "--dry-run", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out.splitlines()[-1])
    limit_s = next(entry.limit_s for entry in COMMANDS if entry.text == command)
    assert min(plan["least_s"], plan["budget_s"] or math.inf) <= limit_s


@pytest.mark.slow
@pytest.mark.workers
def test_short_commands_and_the_program_of_the_readme_run_as_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their times are those of the stored result, which the next test looks at."""
    monkeypatch.setenv("ATTNBENCH_RUN_ROUNDS", "3")
    short = [command for command in readme.commands() if command.limit_s <= SHORT_S and "--resume" not in command.text]
    kernel = next(command for command in short if readme.KERNEL in command.text)
    others = [command for command in short if command is not kernel]
    assert len(others) >= 4
    for outcome in readme.run([kernel, *others], tmp_path):  # a run first, for `last`
        assert outcome.code == 0, outcome.text
    assert {"latency.svg", "memory.svg"} <= {file.name for file in tmp_path.iterdir()}


def test_stored_result_of_the_readme_has_its_commands_within_their_times() -> None:
    record = msgspec.json.decode(readme.STORED.read_bytes(), type=readme.Record)
    chosen = list(readme.commands())
    assert [outcome.text for outcome in record.outcomes] == [command.text for command in chosen]
    for outcome, command in zip(record.outcomes, chosen, strict=True):
        assert outcome.verdict(command.limit_s) == "ok", command.text


def test_command_without_a_time_is_refused() -> None:
    with pytest.raises(SystemExit, match="no time is stated: attnbench run --seq 64"):
        list(readme.commands("```sh\nattnbench run --seq 64  # a table\n```"))


def test_every_file_that_the_readme_links_to_is_there():
    for path in re.findall(r"\]\(([^)#]+)\)", README):
        assert path.startswith("http") or (ROOT / path).exists(), path


def test_every_page_is_in_the_navigation_of_the_site() -> None:
    docs = ROOT / "docs"
    listed = re.findall(r"- (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(page.relative_to(docs).as_posix() for page in docs.rglob("*.md"))


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
    special = {"ci", "cpu", "dispatch-check", "hopper", "kernels", "quick", "scaling", "verify"}
    assert not [name for name in suite.shipped() if name not in special and f"`{name}`" not in text]


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
    assert printed("support") in (ROOT / "docs" / "mechanisms.md").read_text()


def test_the_libraries_for_cpus_are_those_of_the_code() -> None:
    page = (ROOT / "docs" / "backends.md").read_text()
    assert page.endswith(printed("backends").rstrip("\n") + "\n")


def printed(tool: str) -> str:
    """What a file of tools/ prints."""
    spec = importlib.util.spec_from_file_location(tool, ROOT / "tools" / f"{tool}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return "\n".join(module.lines())


def test_the_table_that_the_readme_prints_from_python_is_shown_whole() -> None:
    pytest.importorskip("pandas")
    (columns,) = re.findall(r"run\.frame\(\)\[(\[.*?\])\]", README)
    results = [result([1e-3] * 5, name, problem=Problem(seq_q=128)) for name in ("naive", "sdpa:flash")]
    printed = str(as_frame(rows_of(results))[json.loads(columns)])
    assert "..." not in printed
    assert "arm_name" in printed
