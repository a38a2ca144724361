"""Cases that a change cannot touch are left out, in repositories of git and between folders; no worker starts."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from attnbench import cli
from attnbench.attention.problem import Problem
from attnbench.attention.scores import Score
from attnbench.engine import sweep
from attnbench.engine.sweep import Request, Sweep
from attnbench.gate import changed, paired, trees
from attnbench.gate.changed import TreeComparison
from attnbench.gate.record import ChangedCases
from attnbench.records.arm import Arm
from attnbench.records.case import Case
from tests.gate.test_import_closure import write
from tests.gate.test_trees import git

KERNEL = "from lib import scale\n\ndef attend(q, k, v):\n    return v\n"
OTHER = "def attend(q, k, v):\n    return v\n"
FILES = {
    "kernel.py": KERNEL, "lib.py": "scale = 1", "other.py": OTHER, "README.md": "", "tests/test_it.py": "",
    "pkg/__init__.py": "", "pkg/mod.py": OTHER, "dynamic.py": f"import importlib\n{OTHER}",
    "score.py": "def f(q, k): ...", "setup.cfg": "",
}  # fmt: skip


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with one commit of FILES, which is the working directory."""
    root = tmp_path / "repository"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write(root, FILES)
    monkeypatch.chdir(root)
    git("init", "-q", "-b", "main")
    git("add", "-A")
    git("-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "first")
    return root


def reasons(*backends: str, score: str = "", python: str = "") -> dict[str, str]:
    """Why cases of these backends are measured against HEAD."""
    problem = Problem(seq_q=64, seq_kv=64, score=Score(similarity="file", function=score) if score else Score())
    with trees.of_ref("HEAD") as base:
        compared = TreeComparison(base, trees.head())
        return {
            name: compared.reason(Case(problem=problem, backend=name), Arm(backend=name, device="cpu", python=python))
            for name in backends
        }


def touched_of(*backends: str) -> set[str]:
    return {name for name, text in reasons(*backends).items() if text}


def reason(backend: str, score: str = "", python: str = "") -> str:
    return reasons(backend, score=score, python=python)[backend]


BACKENDS = ("kernel.py:attend", "other.py:attend", "pkg.mod:attend", "naive")
EVERY = set(BACKENDS)
RUN = "results/20261130T080000Z-gate-ci-cpu"


@pytest.mark.parametrize(
    ("change", "touched"),
    [
        ({}, set()),
        ({"README.md": "more", "tests/test_it.py": "assert True"}, set()),
        ({"kernel.py": f"{KERNEL}\n"}, {"kernel.py:attend"}),
        ({"lib.py": "scale = 2"}, {"kernel.py:attend"}),
        ({"pkg/__init__.py": "x = 1"}, {"pkg.mod:attend"}),
        ({"new.py": "unused"}, set()),
        ({"lib/__init__.py": "scale = 3"}, {"kernel.py:attend"}),  # hides lib.py
        ({"numpy.py": "x = 1"}, EVERY),  # hides the library of every worker
        ({"pyproject.toml": "[project]"}, EVERY),
        ({"requirements-dev.txt": "torch"}, EVERY),
        ({"uv.lock": ""}, EVERY),
        ({"sub/Cargo.lock": ""}, EVERY),
        ({"results/.lock": "", "index.lock": ""}, set()),
        ({f"{RUN}/{name}": "" for name in ("run.json", "results.jsonl", "setup.py", "dump/kernel.c")}, set()),
        ({"run.json": "", "results.jsonl": "", "csrc/run.json": "", "csrc/kernel.cu": ""}, EVERY),
        ({"csrc/kernel.cu": "__global__"}, EVERY),
        ({"csrc/kernel.h": "int x;"}, EVERY),
        ({".gitmodules": ""}, EVERY),
    ],
)
def test_a_change_touches_the_kernels_that_run_its_files(
    repository: Path, change: dict[str, str], touched: set[str]
) -> None:
    write(repository, change)
    assert touched_of(*BACKENDS) == touched


def test_a_file_that_is_removed_touches_what_imported_it(repository: Path) -> None:
    (repository / "lib.py").unlink()
    assert reasons(*BACKENDS[:2]) == {"kernel.py:attend": "lib.py differs", "other.py:attend": ""}


def test_files_that_git_ignores_are_compared_where_a_kernel_imports_them(repository: Path) -> None:
    write(
        repository, {".gitignore": "built.py\n*.cu", "x.cu": "", "built.py": "", "kernel.py": f"import built\n{KERNEL}"}
    )
    git("add", "-A")
    git("-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "ignores")
    assert reasons(*BACKENDS[:2]) == {"kernel.py:attend": "built.py differs", "other.py:attend": ""}


@pytest.mark.parametrize(
    ("backend", "expected"),
    [
        ("dynamic.py:attend", "not followed: dynamic.py, line 1: importlib"),
        ("absent", "not followed: absent, which is outside the tree"),
        ("kernels:folder", "not followed: kernels:folder, which is outside the tree"),
        ("json.tool:main", "not followed: json.tool:main, which is outside the tree"),
    ],
)
def test_a_kernel_that_cannot_be_followed_is_measured(repository: Path, backend: str, expected: str) -> None:
    assert reason(backend) == expected


def test_another_interpreter_is_measured(repository: Path) -> None:
    assert reason("naive", python="/other/python") == "not followed: the interpreter of naive"


def test_a_score_function_is_code_of_its_cases(repository: Path) -> None:
    write(repository, {"score.py": "def f(q, k): return q"})
    assert reason("naive", score="score.py:f") == "score.py differs"
    assert reason("naive") == ""


def test_where_the_tree_holds_this_package_its_workers_run_it(repository: Path) -> None:
    modules = (
        "__init__", "worker/__init__", "lib", "cli", "backends/__init__", "backends/naive", "backends/flex",
        "backends/plugin",
    )  # fmt: skip
    own = {f"attnbench/{name}.py": "" for name in modules} | {"attnbench/worker/__main__.py": "import attnbench.lib"}
    write(repository, own)
    git("add", "-A")
    git("-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "own")
    for file, touched in {
        "cli.py": set[str](), "lib.py": {"naive", "flex", "other.py:attend"}, "backends/naive.py": {"naive"},
        "backends/plugin.py": {"other.py:attend"},
    }.items():  # fmt: skip
        write(repository, {f"attnbench/{file}": "x = 1"})
        assert touched_of("naive", "flex", "other.py:attend") == touched
        git("checkout", "-q", "--", ".")


def test_two_folders_without_git_are_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    for side in ("old", "new"):
        write(tmp_path / side, FILES | {".venv/setup.py": side, "__pycache__/x.c": side})
    monkeypatch.chdir(tmp_path / "new")
    naive = Case(problem=Problem(seq_q=64, seq_kv=64), backend="naive"), Arm(backend="naive", device="cpu")

    def compared() -> str:
        return TreeComparison(trees.of_path(tmp_path / "old"), trees.head()).reason(*naive)

    assert compared() == ""
    write(tmp_path / "old", {"setup.py": ""})
    assert compared() == "setup.py differs"
    monkeypatch.setenv("PATH", "")
    assert compared() == "setup.py differs"


def ready(**options: str) -> Sweep:
    axes = {"seq": "64,128", "mask": "none"}
    request = Request(
        axes=axes, backend="kernel.py:attend,other.py:attend", device="cpu:threads=1", rounds="5", **options
    )
    return sweep.prepare(paired.request(request))


def test_only_touched_cases_are_left_and_the_others_are_named(repository: Path) -> None:
    write(repository, {"lib.py": "scale = 2"})
    with trees.of_ref("HEAD") as base:
        left, cases = paired.touched(ready(), base, trees.head())
    assert {arm.backend for _, arms in left.cells for arm in arms} == {"kernel.py:attend"}
    assert [name.split()[2] for name in cases.unchanged] == ["q64", "q128"]
    assert all(name.endswith(" other.py:attend@cpu:threads=1") for name in cases.unchanged)
    assert cases.measured == "--changed measured 2 cases: lib.py differs"


def test_inputs_from_a_file_cannot_be_compared(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    request = msgspec.structs.replace(ready().request, inputs="file:x.safetensors")
    swept = msgspec.structs.replace(ready(), request=request)
    _, cases = paired.touched(swept, trees.head(), trees.head())
    assert cases == ChangedCases(measured="--changed measured 4 cases: not followed: --inputs file:x.safetensors")


def test_many_reasons_are_counted() -> None:
    reasons = ["a differs"] * 3 + ["b differs"] * 2 + ["c differs", "d differs", "e differs"]
    assert changed.described(reasons) == (
        "--changed measured 3 cases: a differs; 2 cases: b differs; 1 case: c differs; 2 for other reasons"
    )
    assert changed.described([]) == ""


def test_a_gate_that_has_nothing_to_measure_says_so_everywhere(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(repository, {"README.md": "changed"})
    command = [
        "gate",
        "-b",
        "kernel.py:attend,naive",
        "--seq",
        "64",
        "--mask",
        "none",
        "--base-ref",
        "HEAD",
        "--changed",
    ]
    assert cli.invoke([*command, "-o", "out", "--markdown", "comment.md", "--junit", "gate.xml"]) == 0
    sentence = "0 cases: nothing to measure; 2 skipped: unchanged."
    assert sentence in capsys.readouterr().out
    assert sentence in (repository / "comment.md").read_text()
    assert cli.invoke(["gate", "out", "--json"]) == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (summary["skipped"], summary["verdicts"]) == ({"unchanged": 2}, {})


@pytest.mark.parametrize("base", [["--noop"], ["--base-python", "python"]])
def test_a_base_without_other_files_is_refused(base: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.invoke(["gate", "ci", "--changed", *base]) == 2
    assert f"--changed: {base[0]} compares no files" in capsys.readouterr().err


def test_a_stored_gate_cannot_be_limited(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(repository, {"stored/run.json": "{}"})
    assert cli.invoke(["gate", "stored", "--changed"]) == 2
    assert "--changed: stored is a stored run" in capsys.readouterr().err
