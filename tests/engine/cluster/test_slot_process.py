"""What a process on a node says of its noise, and the files that travel to it."""

from __future__ import annotations

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


def test_a_file_outside_the_working_directory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").touch()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for name in ("../mine.py", str(tmp_path / "mine.py")):
        with pytest.raises(UsageError, match="is named from outside the working directory"):
            job_files.collect(Request(backend=f"{name}:attend"), tmp_path / "here")
