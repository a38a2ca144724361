"""What holds for the repository as a whole and no linter sees."""

from __future__ import annotations

import ast
import re
import subprocess
import tomllib
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
VAGUE = {"utils", "util", "helpers", "common", "misc", "base", "manager"}
LONGEST = 450
# A longer file, and why it is not cut.
LONG: dict[str, str] = {}


@cache
def files(suffix: str = "") -> tuple[Path, ...]:
    """Every file that git has or would take."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("no git checkout here")
    paths = (ROOT / line for line in listed.stdout.splitlines())
    return tuple(path for path in paths if path.name.endswith(suffix) and path.is_file())


def names(paths: list[Path]) -> list[str]:
    return [path.relative_to(ROOT).as_posix() for path in paths]


def test_no_module_has_a_name_that_says_nothing() -> None:
    assert names([path for path in files(".py") if path.stem in VAGUE]) == []


def test_no_file_is_too_long_to_read_in_one_sitting() -> None:
    long = [path for path in files(".py") if len(path.read_text().splitlines()) > LONGEST]
    assert names(long) == sorted(LONG)


def test_every_module_opens_with_a_sentence() -> None:
    def opening(path: Path) -> str:
        text = re.match(r'(?:#.*\n|\s)*"""(.*?)"""', path.read_text(), re.DOTALL)
        return text[1].strip().partition("\n\n")[0] if text else ""

    package = [path for path in files(".py") if path.is_relative_to(ROOT / "attnbench")]
    assert names([path for path in package if not opening(path).endswith((".", ":", "`"))]) == []


def test_no_file_names_a_place_of_one_machine() -> None:
    # Put together here, so that this file does not hold what it looks for.
    place = re.compile(rb"(?<![\w.~$}])/(" + rb"|".join([b"root", b"home", b"work", b"Users"]) + rb")/")
    assert names([path for path in files() if place.search(path.read_bytes())]) == []


def test_layers_of_the_design_are_those_that_are_checked() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    checked = [layer.replace("(", "").replace(")", "") for layer in contracts[0]["layers"]]
    section = (ROOT / "docs" / "design.md").read_text().partition("## Packages")[2]
    drawn = section.split("```")[1].split("\n", 1)[1].strip().splitlines()
    assert drawn == checked


def test_new_tensors_do_not_depend_on_defaults_that_a_user_sets() -> None:
    """In the definition of attention and in the kernels, which user code calls in a process of its own."""
    of_integers, of_floats = (
        {"arange", "full", "tensor"},
        {"empty", "eye", "linspace", "ones", "rand", "randn", "zeros"},
    )
    lacking = []
    for path in [*(ROOT / "attnbench/attention").rglob("*.py"), *(ROOT / "attnbench/kernels").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            name = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            function = name.removeprefix("torch.")
            if isinstance(node, ast.Call) and function != name and function in of_integers | of_floats:
                needed = {"device"} | ({"dtype"} if function in of_floats else set())
                if needed - {keyword.arg for keyword in node.keywords}:
                    lacking.append(f"{path.relative_to(ROOT)}:{node.lineno} {ast.unparse(node)}")
    assert lacking == []


def test_files_are_locked_by_one_library() -> None:
    """`filelock`, which knows file systems without flock."""
    package = [path for path in files(".py") if path.is_relative_to(ROOT / "attnbench")]
    assert names([path for path in package if re.search(r"\b(fcntl|flock|lockf)\b", path.read_text())]) == []


def test_every_built_in_backend_is_a_leaf_of_its_own() -> None:
    from attnbench.backends import BUILTIN

    leaves = {path.stem for path in (ROOT / "attnbench" / "backends").glob("*.py")}
    shared = {"__init__", "scope", "plugin", "kernels_hub", "installation", "torch_sdpa", "triton_call"}
    assert leaves - shared == set(BUILTIN.values())


def test_modules_and_functions_that_the_design_names_exist() -> None:
    packages = {path.name for path in (ROOT / "attnbench").iterdir() if (path / "__init__.py").is_file()}
    section = (ROOT / "docs" / "design.md").read_text().partition("## A case")[2].partition("## Where")[0]
    missing = []
    for name in re.findall(r"`([a-z_]+(?:\.\w+)+)`", section):
        parts = name.split(".")
        if parts[0] not in packages:
            continue
        path = ROOT / "attnbench"
        while parts and (path / parts[0]).is_dir():
            path /= parts.pop(0)
        module = path / f"{parts[0]}.py" if parts and (path / f"{parts[0]}.py").is_file() else path / "__init__.py"
        attribute = next((part for part in parts if part != module.stem), "")
        if parts and not re.search(rf"^\s*(?:class |def )?{attribute}\b", module.read_text(), re.MULTILINE):
            missing.append(name)
    assert missing == []
