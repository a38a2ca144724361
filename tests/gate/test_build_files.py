"""What of a build file counts as a change that may touch every case."""

from __future__ import annotations

from pathlib import Path

import pytest

from attnbench.gate import build_files
from tests.gate.test_import_closure import write

PYPROJECT = """
[build-system]
requires = ["hatchling"]

[project]
name = "kernels"
description = "Kernels."
dependencies = ["torch>=2.11"]

[tool.attnbench]
flag = 1

[tool.ruff]
line-length = 99
"""
SETUP = "[metadata]\nname = kernels\n[options]\ninstall_requires =\n  torch\n[flake8]\nmax-line-length = 99\n"
REQUIREMENTS = "torch==2.11  # pinned\nnumpy\n"
MAKEFILE = """
# builds
CFLAGS := -O2
.PHONY: build lint test
build: kernel.so docs ## compiles
\tcc $(CFLAGS) -o kernel.so
lint: venv
\truff check .
docs: venv
\tzensical build
test: lint
\tpytest
"""


def differing(tmp_path: Path, base: dict[str, str], head: dict[str, str]) -> str:
    for side, files in {"base": base, "head": head}.items():
        (tmp_path / side).mkdir()
        write(tmp_path / side, files)
    return build_files.differing(tmp_path / "base", tmp_path / "head", base.keys() | head.keys())


def counts(tmp_path: Path, name: str, before: str, after: str) -> bool:
    """Whether the change of a file counts."""
    assert before != after
    name_of_difference = differing(tmp_path, {name: before}, {name: after})
    assert name_of_difference in ("", name)
    return bool(name_of_difference)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("[tool.ruff]", "# about lint\n[tool.ruff]"),
        ("line-length = 99", "line-length = 120"),
        ("[tool.ruff]\nline-length = 99", "[tool.pytest.ini_options]\naddopts = '-q'\n[tool.mypy]\nstrict = true"),
        ('description = "Kernels."', 'description = "Fast kernels."\nkeywords = ["attention"]'),
        ('name = "kernels"\ndescription = "Kernels."', 'description = "Kernels."\nname = "kernels"'),
    ],
)
def test_comments_lint_and_descriptions_in_pyproject_do_not_count(tmp_path: Path, old: str, new: str) -> None:
    assert not counts(tmp_path, "pyproject.toml", PYPROJECT, PYPROJECT.replace(old, new))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("torch>=2.11", "torch>=2.12"),
        ("hatchling", "setuptools"),
        ("flag = 1", "flag = true"),  # which are equal in Python
        ("[tool.ruff]", "[tool.unknown]"),
        ("[tool.ruff]", "[tool.attnbench.more]"),
        ("[project]", "[project]\nversion = '2'"),
        ("[project]", "[project"),  # no TOML
        (PYPROJECT, "tool = 'ruff'"),
    ],
)
def test_all_else_in_pyproject_counts(tmp_path: Path, old: str, new: str) -> None:
    assert counts(tmp_path, "pyproject.toml", PYPROJECT, PYPROJECT.replace(old, new))


@pytest.mark.parametrize(
    ("name", "text", "old", "new"),
    [
        ("setup.cfg", SETUP, "99", "120"),
        ("setup.cfg", SETUP, "[flake8]", "# lint\n[tool:pytest]\naddopts = -q\n[mypy-torch.*]"),
        ("requirements.txt", REQUIREMENTS, "  # pinned", ""),
        ("sub/requirements-dev.in", REQUIREMENTS, "numpy", "\n# for arrays\nnumpy"),
        ("constraints.txt", REQUIREMENTS, "# pinned", "# of the last release"),
        ("Makefile", MAKEFILE, "# builds", "# compiles the kernels \\\nand more"),
        ("Makefile", MAKEFILE, "## compiles", ""),
        ("Makefile", MAKEFILE, "ruff check .", "ruff check --fix ."),
        ("Makefile", MAKEFILE, "test: lint\n\tpytest", "test-fast: lint\n\tpytest -x"),
        ("rules.mk", MAKEFILE, ".PHONY: build lint test", ".PHONY: build lint test coverage"),
    ],
)
def test_comments_and_checks_in_other_files_do_not_count(
    tmp_path: Path, name: str, text: str, old: str, new: str
) -> None:
    assert old in text
    assert not counts(tmp_path, name, text, text.replace(old, new))


@pytest.mark.parametrize(
    ("name", "text", "old", "new"),
    [
        ("setup.cfg", SETUP, "torch", "torch==2.11"),
        ("setup.cfg", SETUP, "[flake8]", "[unknown]"),
        ("setup.cfg", SETUP, "[metadata]", "[metadata"),  # cannot be read
        ("requirements.txt", REQUIREMENTS, "numpy", "numpy>=2"),
        ("requirements.txt", "torch \\\n--hash=1\n", "torch \\\n", "torch \\\n# comment\n"),
        ("Makefile", MAKEFILE, "-O2", "-O3"),
        ("Makefile", MAKEFILE, "-o kernel.so", "-o kernel.so -lm"),
        ("Makefile", MAKEFILE, "zensical build", "zensical serve"),  # `build` names `docs`
        ("Makefile", MAKEFILE, "lint: venv", "ifdef CHECKED\nlint: venv"),
        ("Makefile", MAKEFILE, "# builds", "N := $(shell grep ' # a' x)"),
        ("Makefile", f"define X\n# a\nendef\n{MAKEFILE}", "# a", "# b"),
        ("kernel.cu", "int x; // a", "// a", "// b"),
    ],
)
def test_what_builds_kernels_counts(tmp_path: Path, name: str, text: str, old: str, new: str) -> None:
    assert old in text
    assert counts(tmp_path, name, text, text.replace(old, new))


def test_a_file_of_one_side_counts_and_others_do_not(tmp_path: Path) -> None:
    base = {"a.py": "x = 1", "Cargo.toml": ""}
    assert differing(tmp_path, base, {"a.py": "x = 2", "Cargo.toml": "", "setup.cfg": "[flake8]"}) == "setup.cfg"
