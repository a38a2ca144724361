"""The package as it is built and installed, and the rules of the Makefile."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

import attnbench
from attnbench.suite.serving.sources import shipped as shipped_traces

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
REQUIREMENTS = [
    Requirement(line)
    for line in [
        *PROJECT["dependencies"],
        *PROJECT["optional-dependencies"]["triton"],
        *PROJECT["optional-dependencies"]["dev"],
    ]
]
PINS = {
    canonicalize_name(name): version
    for name, version in (
        line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")
    )
}


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel and a source archive of this tree."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def wheel(dist: Path) -> zipfile.ZipFile:
    return zipfile.ZipFile(next(dist.glob("*.whl")))


@pytest.fixture(scope="module")
def metadata(wheel: zipfile.ZipFile) -> Message:
    name = next(name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    return Parser().parsestr(wheel.read(name).decode())


@pytest.fixture(scope="module")
def sources(dist: Path) -> set[str]:
    with tarfile.open(next(dist.glob("*.tar.gz"))) as archive:
        return {name.partition("/")[2] for name in archive.getnames()}


def suites() -> list[str]:
    return sorted(path.name for path in (ROOT / "suites").glob("*.toml"))


def test_wheel_holds_every_suite(wheel: zipfile.ZipFile) -> None:
    shipped = sorted(Path(name).name for name in wheel.namelist() if name.startswith("attnbench/shipped_suites/"))
    assert shipped == suites() != []


def test_wheel_holds_every_shipped_trace(wheel: zipfile.ZipFile) -> None:
    traces = {path.relative_to(ROOT).as_posix() for path in shipped_traces().values()}
    assert traces <= set(wheel.namelist())
    assert "attnbench/suite/serving/traces/azure-conversation.LICENSE.txt" in wheel.namelist()
    assert traces


def test_wheel_holds_every_module(wheel: zipfile.ZipFile) -> None:
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "attnbench").rglob("*.py")}
    assert modules <= set(wheel.namelist())


def test_wheel_is_marked_as_typed(wheel: zipfile.ZipFile) -> None:
    assert "attnbench/py.typed" in wheel.namelist()


def test_wheel_holds_nothing_beside_the_package(wheel: zipfile.ZipFile) -> None:
    assert {Path(name).parts[0].partition("-")[0] for name in wheel.namelist()} == {"attnbench"}


def test_source_archive_holds_what_a_packager_needs(sources: set[str]) -> None:
    wanted = {"LICENSE", "README.md", "pyproject.toml", "constraints.txt", "Makefile", "tests/conftest.py"}
    assert wanted | {f"suites/{name}" for name in suites()} <= sources


def test_version_of_the_package_is_that_of_the_module(metadata: Message) -> None:
    assert metadata["Version"] == attnbench.__version__


def test_command_is_installed(wheel: zipfile.ZipFile) -> None:
    name = next(name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    assert "attnbench = attnbench.__main__:main" in wheel.read(name).decode()


@pytest.mark.parametrize("version", ["2.11.0", "2.11.0+cu130", "2.12.1", "2.13.0", "2.13.0+cpu"])
def test_range_admits_torch(version: str) -> None:
    torch = next(requirement for requirement in REQUIREMENTS if requirement.name == "torch")
    assert torch.specifier.contains(version)


@pytest.mark.parametrize("version", ["3.6.0", "3.7.1"])
def test_range_admits_the_triton_of_each_torch(version: str) -> None:
    triton = next(requirement for requirement in REQUIREMENTS if requirement.name == "triton")
    assert triton.specifier.contains(version)


@pytest.mark.parametrize(
    ("version", "admitted"), [("3.10.12", False), ("3.11.0", True), ("3.12.3", True), ("3.13.0", True)]
)
def test_range_of_python(version: str, admitted: bool) -> None:
    assert SpecifierSet(PROJECT["requires-python"]).contains(version) is admitted


@pytest.mark.parametrize(
    "requirement",
    [requirement for requirement in REQUIREMENTS if requirement.name != "attnbench"],
    ids=lambda requirement: requirement.name,
)
def test_requirement_is_pinned_within_its_range(requirement: Requirement) -> None:
    assert requirement.specifier.contains(PINS[canonicalize_name(requirement.name)])


def make(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Make in the root of the repository, away from the flags of a make that may have started this test."""
    surroundings = {
        name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")
    }
    command = ["make", "--no-print-directory", *arguments]
    return subprocess.run(command, cwd=ROOT, env=surroundings | variables, capture_output=True, text=True, check=False)


def interpreter(path: Path, body: str) -> str:
    """A stand-in for Python, as a shell script."""
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return str(path)


def test_help_lists_every_target() -> None:
    targets = {line.split()[1] for line in make("help").stdout.splitlines()}
    assert targets >= {"venv", "bench", "test", "test-slow", "lint", "format", "gpu", "clean"}


def test_environment_newer_than_its_sources_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "installed-pinned").touch()
    assert make("--question", "venv", f"VENV={tmp_path}").returncode == 0


def test_environment_without_stamp_is_built(tmp_path: Path) -> None:
    assert make("--question", "venv", f"VENV={tmp_path}").returncode == 1


def test_environment_keeps_its_own_torch_without_being_told_again(tmp_path: Path) -> None:
    (tmp_path / "installed-system").touch()
    assert make("--question", "venv", f"VENV={tmp_path}").returncode == 0


def test_half_finished_install_leaves_no_stamp(tmp_path: Path) -> None:
    venv = tmp_path / "venv"
    (venv / "bin").mkdir(parents=True)
    (venv / "installed-pinned").touch()
    os.utime(venv / "installed-pinned", (0, 0))
    interpreter(venv / "bin" / "python", "exit 1")  # pip fails
    done = make("venv", f"VENV={venv}", f"PYTHON={interpreter(tmp_path / 'python', 'exit 0')}")
    assert (done.returncode, list(venv.glob("installed-*"))) == (2, [])


def test_own_torch_that_is_not_there_is_named(tmp_path: Path) -> None:
    python = interpreter(tmp_path / "python", 'case "$2" in *torch*) exit 1;; esac')
    done = make("venv", f"VENV={tmp_path / 'venv'}", f"PYTHON={python}", "TORCH=system")
    assert "has no torch" in done.stderr


def test_gpu_check_without_a_gpu_says_so_and_fails(tmp_path: Path) -> None:
    done = make("gpu", "PYTHON=false", f"OUT={tmp_path}")
    assert (done.returncode, "no GPU" in done.stdout) == (2, True)


def test_gpu_check_goes_on_after_a_failing_step(tmp_path: Path) -> None:
    gpu_check(tmp_path)
    summary = (tmp_path / "summary.txt").read_text()
    assert [line.partition(" after ")[0] for line in summary.splitlines() if "exit code" in line] == [
        "pytest -m gpu: exit code 1",
        "pytest -m gpu tests/gpu/test_kernels_on_gpu.py: exit code 1",
        *(f"{study}: exit code 0" for study in ("calibrate", "verify", "energy", "profile")),
        "suite one: exit code 5",
        "suite two: exit code 0",
    ]


def test_gpu_check_ends_with_the_worst_exit_code(tmp_path: Path) -> None:
    assert gpu_check(tmp_path).returncode == 5


def test_gpu_check_packs_every_run(tmp_path: Path) -> None:
    gpu_check(tmp_path)
    with tarfile.open(tmp_path / "runs.tar.gz") as archive:
        assert {"./one/run.json", "./two/run.json"} <= set(archive.getnames())


def test_the_kernels_for_hopper_have_a_check_of_their_own(tmp_path: Path) -> None:
    assert gpu_check(tmp_path, "hopper").returncode == 127  # no compute-sanitizer here
    summary = (tmp_path / "summary.txt").read_text()
    steps = [line.partition(": exit code")[0] for line in summary.splitlines() if "exit code" in line]
    assert steps == [
        "pytest -m gpu tests/gpu/test_hopper_on_gpu.py",
        *(f"compute-sanitizer {tool}" for tool in ("memcheck", "racecheck", "synccheck")),
        *("verify --random", "tune", "suite one", "suite two"),
    ]
    assert gpu_check(tmp_path, "fast").returncode == 2


def gpu_check(out: Path, *plan: str) -> subprocess.CompletedProcess[str]:
    """The script with an interpreter that claims a GPU, fails its tests and one of two suites."""
    python = interpreter(
        out / "python",
        """case "$1 $2" in
          "-m pytest") exit 1 ;;
          "-m attnbench") [ "$4" = --suite ] || exit 0
            for last; do :; done; mkdir "$last"; touch "$last/run.json"; [ "$5" = two ] || exit 5 ;;
        esac""",
    )
    command = [str(ROOT / "tools" / "gpu_check.sh"), *plan]
    surroundings = os.environ | {"PYTHON": python, "OUT": str(out), "SUITES": "one two"}
    return subprocess.run(command, env=surroundings, capture_output=True, text=True, check=False)


def test_the_files_of_the_fast_tests_exist() -> None:
    text = (ROOT / "Makefile").read_text()
    listed = re.search(r"^FAST\s*:=.*?tests/,(.*?)\)$", text, re.MULTILINE | re.DOTALL)
    assert listed
    names = listed[1].replace("\\\n", " ").split()
    assert [name for name in names if not (ROOT / "tests" / name).exists()] == []


TEXTS = sorted(
    path
    for pattern in (
        "*.md", "docs/**/*.md", "attnbench/**/*.py", "examples/*", "tools/*", "Makefile", ".github/**/*.yml",
        ".github/*.md", ".ci/*",
    )
    for path in ROOT.glob(pattern)
    if path.is_file()
)  # fmt: skip
# The package by its name alone, as an index would have it: not `.[extra]`, a path, or `attnbench @ git+...`.
FROM_AN_INDEX = re.compile(r"pip install\b[^\n|]*?(?<![\w./@-])attnbench\b(?![\w./-]|(?:\[[\w,]*\])? @ git\+)")


def test_install_lines_name_a_source_since_no_index_has_the_package() -> None:
    assert len(TEXTS) > 250
    for path in TEXTS:
        text = path.read_text(encoding="utf-8", errors="replace")
        assert not FROM_AN_INDEX.search(text), path
        for requirement in re.findall(r'pip install "(attnbench @ [^"]+)"', text):
            assert Requirement(requirement).url
        for extras in re.findall(r"pip install[^\n]*'\.\[([\w,-]+)\]'", text):
            assert set(extras.split(",")) <= set(PROJECT["optional-dependencies"])


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("pip install attnbench", True),
        ("pip install 'attnbench[parquet]'", True),
        ("pip install -U attnbench --extra-index-url URL", True),
        ("pip install attnbench==0.1", True),
        ('pip install "attnbench @ git+https://github.com/OWNER/attnbench"', False),
        ("pip install '.[parquet]'", False),
        ("pip install ./attnbench", False),
        ("pip install .", False),
    ],
)
def test_rule_of_install_lines(line: str, wrong: bool) -> None:
    assert bool(FROM_AN_INDEX.search(line)) is wrong
