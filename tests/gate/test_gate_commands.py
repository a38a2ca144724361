"""The commands that a gate prints for a red case: they work in the folder of the gate, and none searches in vain."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from attnbench.gate import judgement, trees
from attnbench.records.result import Result, Status
from attnbench.records.run_directory import Run
from attnbench.report.terminal import gate_verdicts
from tests.gate.test_trees import git
from tests.gate.test_trees import repository as repository
from tests.gate.test_verdicts import gated, lines, looked_at

WRONG = {"status": Status.INCORRECT, "reason": "out: error 0.3"}
# Prints what a command finds: its arguments, and the kernel and a module of the root through the import path.
ATTNBENCH = """#!/bin/sh
echo "$@"
cat kernel.py
echo "$PYTHONPATH" | tr : "\\n" | while read folder; do cat "$folder/shared.py" 2>/dev/null; done
exit 0
"""


def commands(run: Run, width: int = 80) -> dict[str, str]:
    """The lines of the only red case by what they begin with."""
    details = gate_verdicts.details(run, judgement.judge(run).verdicts, width)
    pairs = (line.strip().partition(": ") for line in details)
    return {name: text for name, colon, text in pairs if colon}


def of(*results: Result, base: trees.Revision, head: trees.Revision, **request: Any) -> Run:
    sides = {"base": msgspec.to_builtins(base), "head": msgspec.to_builtins(head)}
    run = gated(*results, **sides)
    return replace(run, manifest=replace(run.manifest, request=request))


def commit(root: Path, text: str) -> None:
    (root / "kernels" / "kernel.py").write_text(text)
    git("add", "-A", cwd=root)
    git("-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", text, cwd=root)


@pytest.mark.parametrize("folder", ["kernels", "new folder"])
def test_the_profile_of_base_finds_all_files_of_its_commit_from_any_folder(
    repository: Path, tmp_path: Path, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (repository / "shared.py").write_text("shared\n")
    commit(repository, "old\n")
    base = trees.Revision(name="main", commit=git("rev-parse", "HEAD").strip())
    commit(repository, "new\n")
    (repository / folder).mkdir(exist_ok=True)  # base may lack the folder, and even then has what its kernel imports
    monkeypatch.chdir(repository / folder)
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "attnbench"
    program.write_text(ATTNBENCH)
    program.chmod(0o755)
    command = commands(of(*lines(head=1.5), base=base, head=trees.head()))["profile base"]
    variables = {**os.environ, "PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True, env=variables)
    told, *found = done.stdout.splitlines()
    assert told.startswith("profile --seq-q 64 ")
    assert found == (["old", "shared"] if folder == "kernels" else ["shared"])


def test_a_fault_in_a_commit_is_searched_for_from_a_subfolder(repository: Path) -> None:
    first, last = (git("rev-parse", ref).strip() for ref in ("HEAD~1", "HEAD"))
    git("checkout", "-q", "--", ".", cwd=repository)
    (repository / "kernels" / "results.json").write_text("{}")  # what git does not track is no uncommitted change
    run = of(*lines(head=1.5), base=trees.Revision(name="HEAD~1", commit=first), head=trees.head(), suites=["ci"])
    bisect = shlex.split(commands(run)["bisect"])
    assert bisect[:4] == ["attnbench", "bisect", "--suite", "ci"]
    assert bisect[-2:] == [first, last]


@pytest.mark.parametrize("kind", [{"head": 1.5}, {"head_fields": WRONG}])
def test_uncommitted_changes_are_gated_alone_before_commits_are_searched(repository: Path, kind: Any) -> None:
    base, head = trees.Revision(name="HEAD~1", commit=git("rev-parse", "HEAD~1").strip()), trees.head()
    told = commands(of(*lines(**kind), base=base, head=head, backend="kernel.py:f"), width=200)
    assert "bisect" not in told
    assert told["no bisect"] == "it compares commits, and the working tree has uncommitted changes"
    broken = "head_fields" in kind
    assert {name for name in told if name.endswith((" head", " base"))} == (
        {"verify head"} if broken else {"profile head", "profile base"}
    )
    assert not broken or told["verify head"].startswith("attnbench verify --seq-q 64 ")
    alone = told["uncommitted changes alone"]
    assert alone.startswith(f"attnbench gate -b kernel.py:f --base-ref {head.commit} --case 'b1 ")
    told = commands(of(*lines(**kind), base=replace(base, commit=head.commit), head=head), width=200)
    assert told["no bisect"] == "only the uncommitted changes of the working tree differ"
    assert not {"bisect", "uncommitted changes alone"} & told.keys()


def test_a_fault_that_base_has_too_is_said_and_not_searched_for() -> None:
    base, head = trees.Revision(name="main", commit="aaa"), trees.Revision(name="the working tree", commit="bbb")
    run = of(*lines(base_fields=WRONG, head_fields=WRONG), base=base, head=head)
    (verdict,) = judgement.judge(run).verdicts
    assert verdict.reason == "incorrect (base too): out: error 0.3"
    told = commands(run, width=200)
    assert told["no bisect"] == "base fails in this case too (incorrect): the fault is older"
    assert "bisect" not in told
    crashed = {"status": Status.CRASHED, "reason": "exited with code 3"}
    (verdict,) = judgement.judge(of(*lines(base_fields=crashed, head_fields=WRONG), base=base, head=head)).verdicts
    assert verdict.reason == "incorrect (base: crashed): out: error 0.3"
    refused = {"status": Status.UNSUPPORTED, "reason": "no such mask"}
    assert "bisect" in commands(of(*lines(base_fields=refused, head_fields=WRONG), base=base, head=head))


def test_a_base_in_the_home_directory_is_named_so_that_a_shell_finds_it() -> None:
    """A quoted `~` is no home directory; the record has it in place of the folder of the user."""
    head = trees.Revision(name="the working tree")
    told = commands(of(*lines(head=1.5), base=trees.Revision(name="~/old"), head=head))
    assert told["profile base"].startswith("(cd ~/old && PYTHONPATH=$PWD attnbench profile ")
    assert " --base-path ~/old --case " in told["repeat"]
    told = commands(of(*lines(head=1.5), base=trees.Revision(name="x", python="~/old/bin/python"), head=head))
    assert told["profile base"].startswith("~/old/bin/python -m attnbench profile ")
    assert " --base-python ~/old/bin/python --case " in told["repeat"]


@pytest.mark.parametrize(
    ("base", "head", "expected"),
    [
        (
            {"name": "main (aaa)", "commit": "aaa"}, {"name": "the working tree", "commit": "bbb"},
            ["archive aaa |", "gate ci --set seq=64 -b kernel.py:f --device cpu:threads=1 --base-ref aaa --case",
             "attnbench bisect --suite ci --set seq=64 -b kernel.py:f --device cpu:threads=1 --case"],
        ),
        (
            {"name": "HEAD (aaa)", "commit": "aaa"}, {"name": "the working tree", "commit": "aaa", "dirty": True},
            ["archive aaa |", "--base-ref aaa --case", "no bisect: only the uncommitted changes"],
        ),
        (
            {"name": "py", "commit": "aaa", "python": "old/bin/python"}, {"name": "the working tree", "commit": "aaa"},
            ["profile base: old/bin/python -m attnbench profile", "--base-python old/bin/python --case"],
        ),
        (
            {"name": "../old"}, {"name": "the working tree"},
            ["(cd ../old && PYTHONPATH=$PWD attnbench profile", "--base-path ../old"],
        ),
        ({"name": "the working tree"}, {"name": "the working tree"}, []),
    ],
)  # fmt: skip
def test_what_to_do_next_knows_where_base_came_from(base: Any, head: Any, expected: list[str]) -> None:
    text = looked_at(base=base, head=head)
    for piece in expected:
        assert any(piece in line for line in text), text
    assert any("bisect" in line for line in text) is any("bisect" in piece for piece in expected)
    gates = [line.partition("attnbench gate ")[2] for line in text if "attnbench gate" in line]
    assert bool(gates) is bool(expected)


@pytest.mark.parametrize(
    ("device", "command", "expected"),
    [
        ("cpu:threads=1:hardware=A", "attnbench gate --engine ray --address h:1", "--address h:1 --hardware A"),
        ("cpu:threads=1:hardware=B", "attnbench gate --engine=ray --address=h:2", "--address h:2 --hardware B"),
        ("cpu:threads=1", "attnbench gate --engine ray", ""),
    ],
)
def test_a_case_of_a_cluster_is_repeated_there(device: str, command: str, expected: str) -> None:
    sides = {"base": {"name": "main", "commit": "aaa"}, "head": {"name": "the working tree", "commit": "bbb"}}
    replace = msgspec.structs.replace
    results = [replace(line, arm=replace(line.arm, device=device)) for line in lines(head=1.5)]
    run = gated(*results, **sides)
    run = replace(
        run, manifest=replace(run.manifest, command=command, nodes={"h": {"hardware": "A"}}, request={"suites": ["ci"]})
    )
    text = list(gate_verdicts.details(run, judgement.judge(run).verdicts))
    (repeat,) = [line.strip() for line in text if "repeat: " in line]
    words = " ".join(filter(None, ("repeat: attnbench gate ci --engine ray", expected, "--base-ref aaa --case")))
    assert repeat.startswith(words)
    assert not any("bisect" in line for line in text)
