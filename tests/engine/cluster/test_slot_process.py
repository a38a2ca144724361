"""What a process on a node says of its noise, and the files that travel to it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from attnbench.analysis.stats import Estimate
from attnbench.engine.cluster import job_files
from attnbench.engine.cluster.slot_process import SlotProcess, control_ratio, noise_objection, shifted
from attnbench.engine.request import Request
from attnbench.errors import UsageError
from attnbench.records.result import Status
from tests.samples import result


@pytest.mark.parametrize(("low", "high", "passes"), [
    (0.99, 1.01, True), (0.5, 1.6, True), (1.05, 1.2, True), (1.11, 1.2, False), (0.8, 0.9, False),
])  # fmt: skip
def test_a_node_is_too_noisy_where_equal_arms_surely_differ(low: float, high: float, passes: bool) -> None:
    assert (noise_objection(Estimate(value=(low + high) / 2, low=low, high=high)) == "") is passes


def test_a_control_that_fails_is_an_objection_with_its_reason() -> None:
    ratio = control_ratio([result(status=Status.CRASHED, reason="died of SIGILL")])
    assert noise_objection(ratio) == "the A/A control could not be measured: crashed: died of SIGILL"


def test_a_start_is_moved_to_the_clock_of_the_driver() -> None:
    measured = result(started_at="2026-11-21T12:00:00.000+00:00")
    assert shifted(measured, 3600.0).started_at == "2026-11-21T11:00:00.000+00:00"


def test_a_wrong_request_is_answered_by_its_error() -> None:
    request = Request(axes={"seq": "64"}, backend="sdpa:flsh", device="cpu:threads=1")
    assert "did you mean 'sdpa:flash'" in str(SlotProcess().plan(request, interpreted=False, default_suite="quick"))


def test_files_of_the_request_travel_with_the_python_files_beside_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("kernels/mine.py", "kernels/helper.py", "kernels/notes.txt", "mask.py", "suite.toml", "other.py"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).touch()
    Path("suite.toml").write_text('[[problem]]\nbackend = "other.py:attend"\n')
    Path("sent").mkdir()
    request = Request(suites=("suite.toml",), axes={"mask": "mask.py:visible"}, backend="naive,kernels/mine.py:attend")
    job_files.collect(request, Path("sent"))
    sent = {str(path.relative_to("sent")) for path in Path("sent").rglob("*") if path.is_file()}
    assert sent == {"kernels/mine.py", "kernels/helper.py", "mask.py", "suite.toml", "other.py"}


def sent_with(kernel: str, files: dict[str, str]) -> set[str]:
    """The files that travel with a kernel in the working directory, which then holds these files."""
    for name, text in files.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(text)
    job_files.collect(Request(backend=f"{kernel}:attend"), Path("sent"))
    return {path.relative_to("sent").as_posix() for path in Path("sent").rglob("*") if path.is_file()}


@pytest.mark.parametrize("line", ["from lib.scale import FACTOR", "import lib.scale", "import helper"])
def test_packages_that_a_kernel_imports_travel(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    travel = {
        "kern.py": line, "helper.py": "from lib import scale", "lib/scale.py": "from deep import more",
        "lib/table.json": "{}", "deep/more.py": "",
    }  # fmt: skip
    stay = {"lib/__pycache__/scale.pyc": "", "lib/.hidden/a.py": "", "other/b.py": "", "attnbench/c.py": ""}
    assert sent_with("kern.py", travel | stay) == set(travel)


def test_the_package_of_a_kernel_travels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    travel = {
        "mine/kern.py": "from ..common import x\nfrom .lib.scale import y\nimport attnbench, broken, torch",
        "mine/lib/scale.py": "", "common.py": "", "mine/broken.py": "not python",
    }  # fmt: skip
    assert sent_with("mine/kern.py", travel | {"torch/weights.bin": "", "attnbench/c.py": ""}) == set(travel)


def test_packages_that_are_too_large_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(job_files, "MAX_SENT_BYTES", 9)
    with pytest.raises(UsageError, match=r"the packages that kern.py imports hold more than"):
        sent_with("kern.py", {"kern.py": "import lib.scale", "lib/scale.py": "FACTOR = 2.0"})


def test_a_file_outside_the_working_directory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").touch()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for name in ("../mine.py", str(tmp_path / "mine.py")):
        with pytest.raises(UsageError, match="is named from outside the working directory"):
            job_files.collect(Request(backend=f"{name}:attend"), tmp_path / "here")


def test_files_that_travel_are_the_working_directory_of_the_process_and_of_its_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sent" / "kernels").mkdir(parents=True)
    (tmp_path / "sent" / "kernels" / "mine.py").write_text("NAME = 'mine'")
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("PYTHONPATH", "elsewhere")
    job_files.unpack(job_files.packed(tmp_path / "sent"), tmp_path / "there")
    assert Path("kernels/mine.py").read_text() == "NAME = 'mine'"
    assert Path.cwd() == tmp_path / "there"
    assert sys.path[0] == str(tmp_path / "there")
    assert os.environ["PYTHONPATH"].split(os.pathsep) == [str(tmp_path / "there"), "elsewhere"]
