"""pytest runs suites and marked tests of one's own; pytest-benchmark is told what workers measured."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import scipy.special  # noqa: F401  pytester drops the modules that a test imports; these two cannot be imported again
import torch  # noqa: F401

from attnbench import api, pytest_plugin
from attnbench.analysis import readings
from attnbench.engine import side_by_side, sweep
from attnbench.errors import StoreError
from attnbench.gate import paired
from attnbench.pytest_plugin import CaseSource
from attnbench.records import run_directory
from attnbench.records.arm import Arm
from attnbench.records.case import Case
from tests import samples
from tests.simulated_runner import SimulatedRunner

pytest_plugins = ["pytester"]

SUITE = """
[[problem]]
seq = [32, 64]
heads = 2
dtype = "fp32"
mask = "causal"
backend = ["naive", "sdpa:flash"]
"""
KERNEL = """
import torch.nn.functional as F

def attend(q, k, v, causal=False, scale=None):
    return F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scale)

def wrong(q, k, v, causal=False, scale=None):
    return 0.5 * v

def dead(q, k, v, causal=False, scale=None):
    import os
    print("giving up", flush=True)
    os._exit(3)
"""

GATED_SUITE = """
[[problem]]
seq = 32
heads = 2
dtype = "fp32"
mask = "causal"
backend = ["kernel.py:changed", "kernel.py:unchanged"]

[gate]
time = "50%"
"""
TIMED_KERNELS = """
import torch.nn.functional as F

SECONDS = {{"changed": {changed_s}, "unchanged": 0.02}}

def changed(q, k, v, causal=False, scale=None):
    return F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scale)

unchanged = changed
"""
DEVICE = "cpu:threads=1"
HOME = os.environ.get("HOME", "")


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, pytester: pytest.Pytester) -> None:
    """The tests that are started here run in no worker of pytest-xdist, wherever they are started from."""
    for name in (
        "PYTEST_XDIST_WORKER",
        "PYTEST_XDIST_WORKER_COUNT",
        "PYTEST_XDIST_TESTRUNUID",
        "USERPROFILE",
        "PY_COLORS",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", HOME)  # workers with the variables of other tests are forks of the same process


def case(backend: str, seq: int = 32) -> str:
    return f"b1 h2 q{seq} kv{seq} d64 causal fp32 fwd {backend}"


def run_here(pytester: pytest.Pytester, *arguments: str) -> pytest.RunResult:
    """In this process, which takes a fifth of the time, and whose workers are forks of one process."""
    return pytester.runpytest_inprocess("-p", "no:xdist", *arguments)


def the_run(folder: Path) -> run_directory.Run:
    (directory,) = folder.iterdir()
    return run_directory.read(directory)


@pytest.mark.workers
def test_a_suite_is_measured_and_told_to_pytest_benchmark(pytester: pytest.Pytester) -> None:
    pytester.makefile(".toml", small=SUITE)
    done = run_here(
        pytester, "small.toml", "-k", "q64", "--attnbench-out", "kept", "--benchmark-json", "told.json", "-v"
    )
    done.assert_outcomes(passed=2, deselected=2)
    done.stdout.fnmatch_lines(["*attnbench measures 2 cases of small, 1 restarts*", f"*{case('naive', 64)}*PASSED*"])
    measured = {result.case.backend: result for result in the_run(pytester.path / "kept").results}
    assert {result.case.label for result in measured.values()} == {case("naive", 64), case("sdpa:flash", 64)}
    told = json.loads((pytester.path / "told.json").read_text())["benchmarks"]
    assert {entry["group"] for entry in told} == {"b1 h2 q64 kv64 d64 causal fp32 fwd"}
    for entry in told:
        result = measured[entry["extra_info"]["backend"]]
        assert entry["name"] == f"test_attention[{result.case.label}]"
        assert entry["extra_info"]["case_id"] == result.case_id
        assert entry["extra_info"]["peak_bytes"] == result.samples["peak_memory"].values[0]
        # The clock adds up, so a difference may lose the last bits.
        assert entry["stats"]["data"] == pytest.approx(readings.block_medians(result.samples["time"]), rel=1e-9)


@pytest.mark.workers
def test_a_marked_test_runs_for_each_case_of_ones_own_kernels(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        my_kernel=KERNEL,
        test_mine="""
        import pytest
        from my_kernel import attend, dead, wrong

        @pytest.mark.attnbench(attend, wrong, dead, "triton", seq=32, heads=2, mask="causal", dtype="fp32")
        def test_kernels(attnbench_case, monkeypatch, tmp_path):
            monkeypatch.chdir(tmp_path)
            attnbench_case.check()
            assert attnbench_case.row["rms_err"] < 1e-6
            assert "my_kernel.py:attend" in attnbench_case.label
        """,
    )
    done = run_here(pytester, "test_mine.py", "--benchmark-disable")
    done.assert_outcomes(passed=1, failed=2, skipped=1)
    done.stdout.fnmatch_lines(["*incorrect: *max |error|*", "*crashed: *exited with code 3: giving up*"])
    done.stdout.fnmatch_lines(["the worker's last lines:", "  giving up"])
    done.stdout.no_fnmatch_line("*fixture was not used*")


def test_a_function_of_a_package_is_named_by_its_file(pytester: pytest.Pytester) -> None:
    pytester.mkpydir("marked_package").joinpath("attn.py").write_text(f"from . import __name__ as package\n{KERNEL}")
    pytester.makepyfile(
        test_it="""
        import pytest
        from marked_package.attn import attend

        @pytest.mark.attnbench(attend, seq=32, heads=2, dtype="fp32")
        def test_it(attnbench_case): ...
        """
    )
    done = run_here(pytester, "--collect-only", "-q", "test_it.py")
    done.stdout.fnmatch_lines(["*marked_package/attn.py:attend*"])


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("@pytest.mark.attnbench(lambda q: q, seq=32)\ndef test_it(attnbench_case): ...", "*1 of*function <lambda>*"),
        ("@pytest.mark.attnbench('naive', os, seq=32)\ndef test_it(attnbench_case): ...", "*2 of the*module os: pass*"),
        ("@pytest.mark.attnbench(partial(max, 1), seq=32)\ndef test_it(attnbench_case): ...", "*partial of max: pass*"),
        ("@pytest.mark.attnbench(max, seq=32)\ndef test_it(attnbench_case): ...", "*max: pass*'file.py:name'*"),
        ("@pytest.mark.attnbench(int, seq=32)\ndef test_it(attnbench_case): ...", "*the type int: pass a function*"),
        ("@pytest.mark.attnbench(7, seq=32)\ndef test_it(attnbench_case): ...", "*a int: pass a function*"),
        ("@pytest.mark.attnbench('naive', seq=32)\ndef test_it(): ...", "*test_it: takes no fixture attnbench_case"),
        ("@pytest.mark.attnbench('naive', sek=32)\ndef test_it(attnbench_case): ...", "*'sek'; did you mean 'seq'*"),
        ("@pytest.mark.attnbench('nave', seq=32)\ndef test_it(attnbench_case): ...", "*'nave'; did you mean 'naive'*"),
    ],
)  # fmt: skip
def test_a_mark_that_cannot_be_is_an_error_of_one_line(pytester: pytest.Pytester, source: str, message: str) -> None:
    pytester.makepyfile(test_it=f"import os\nfrom functools import partial\n\nimport pytest\n\n{source}\n")
    done = run_here(pytester, "test_it.py")
    done.assert_outcomes(errors=1)
    done.stdout.fnmatch_lines([f"{message}*"])
    done.stdout.no_fnmatch_line("*_hookexec*")


def test_a_suite_with_a_wrong_key_is_an_error_of_one_line(pytester: pytest.Pytester) -> None:
    pytester.makefile(".toml", small=SUITE.replace("heads", "heds"))
    done = run_here(pytester, "small.toml")
    done.assert_outcomes(errors=1)
    done.stdout.fnmatch_lines(["*small.toml: problem?0?.heds: no key 'heds'; did you mean 'heads'?"])


def test_a_folder_with_a_suite_in_it_is_nothing_to_collect(pytester: pytest.Pytester) -> None:
    pytester.makefile(".toml", small=SUITE)
    assert run_here(pytester, ".").ret == pytest.ExitCode.NO_TESTS_COLLECTED


def test_two_bases_are_one_too_many(pytester: pytest.Pytester) -> None:
    pytester.makefile(".toml", small=SUITE)
    done = run_here(pytester, "small.toml", "--attnbench-gate", "main", "--attnbench-base-ref", "HEAD")
    assert done.ret == pytest.ExitCode.USAGE_ERROR
    done.stderr.fnmatch_lines(["*name the base twice*"])


@pytest.mark.parametrize("parallel", [("-n", "2"), ("--dist", "load", "--tx", "2*popen")])
@pytest.mark.parametrize("option", ["--attnbench-gate", "--attnbench-base-ref"])
def test_a_gate_in_several_processes_is_refused_before_they_start(
    pytester: pytest.Pytester, option: str, parallel: tuple[str, ...]
) -> None:
    done = pytester.runpytest_inprocess(*parallel, option, "HEAD")
    assert done.ret == pytest.ExitCode.USAGE_ERROR
    assert [line for line in done.errlines if line] == [
        "ERROR: pytest -n: a gate needs one process, for parallel ones disturb its times: add -n 0"
    ]
    assert pytester.runpytest_inprocess(*parallel, "-n", "0", option, "HEAD").ret == pytest.ExitCode.NO_TESTS_COLLECTED


def test_an_error_in_a_worker_of_xdist_fails_its_tests_with_the_reason() -> None:
    """An exit would end the worker, and pytest-xdist would report a crash without a reason."""

    def measured(*_: object) -> None:
        raise StoreError("cannot write to out: No space left on device")

    session = SimpleNamespace(config=SimpleNamespace(workerinput={}))
    target = SimpleNamespace(source=SimpleNamespace(session=session, measured=measured))
    case = pytest_plugin.AttentionCase(target, SimpleNamespace(disabled=True), None)
    with pytest.raises(pytest.fail.Exception, match=r"^attnbench: cannot write to out: No space left on device$"):
        case._measured()


@pytest.mark.parametrize(
    ("option", "value", "code", "message"),
    [("--attnbench-gate", "mane", 4, "no baseline 'mane'"), ("--attnbench-base-ref", "mane", 2, "is in no git")],
)
def test_a_base_that_is_none_ends_the_session_before_anything_is_measured(
    pytester: pytest.Pytester, option: str, value: str, code: int, message: str
) -> None:
    pytester.makefile(".toml", small=SUITE)
    done = run_here(pytester, "small.toml", option, value)
    assert done.ret == code
    done.stdout.fnmatch_lines([f"*attnbench: *{message}*"])
    done.stdout.no_fnmatch_line("*passed*")


def test_pytest_loads_nothing_of_ours_at_its_start() -> None:
    heavy = {"numpy", "msgspec", "torch", "attnbench.engine"}
    script = f"import sys, attnbench.pytest_plugin; print(*{heavy} & {{*sys.modules}})"
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert not done.stdout.split()


def simulate(monkeypatch: pytest.MonkeyPatch, folder: Path, time_s: Callable[[Case, Arm], float]) -> None:
    """No worker starts; each call takes the seconds of its case and arm."""

    class Simulated(SimulatedRunner):
        def time_s(self, case: Case, arm: Arm) -> float:
            return time_s(case, arm)

    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    for module in (side_by_side, paired):
        monkeypatch.setattr(module, "Runner", Simulated)


def test_a_stored_baseline_judges_each_case(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """In base one case was four times as fast, and a backend ran that the suite has no more."""
    pytester.makefile(".toml", small=SUITE)
    changed = case("naive", 64)
    simulate(monkeypatch, tmp_path, lambda timed, _: 1e-3 if timed.label == changed else 2e-3)
    api.run("small.toml", backend="naive,sdpa:flash,sdpa:math", device=DEVICE, restarts=6, out="base")
    simulate(monkeypatch, tmp_path, lambda timed, _: 4e-3 if timed.label == changed else 2e-3)
    gate = ("small.toml", "--attnbench-gate", "base", "--attnbench-device", DEVICE)
    done = run_here(pytester, *gate, "-rA")
    done.assert_outcomes(passed=3, failed=1)
    done.stdout.fnmatch_lines([f"*FAILED*{changed}*"])
    done.stdout.fnmatch_lines(["*time_s regressed: *, was *margin 12.5 %*"])
    done.stdout.fnmatch_lines(["*attnbench gate*", "*in base alone*", "*cases: 2 missing, 1 regressed*"])
    # What was deselected is not missing; what only base has still is, and fails the session without a test.
    less = run_here(pytester, *gate, "-k", "flash")
    assert less.ret == pytest.ExitCode.TESTS_FAILED
    less.assert_outcomes(passed=2, deselected=2)
    less.stdout.fnmatch_lines(["*2 missing*"])


def test_a_commit_judges_each_case_side_by_side(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Each arm takes the time that the file of its side states: in head, one kernel takes more than twice that of base.

    tests/gate/test_paired.py has such a gate with real workers.
    """
    pytester.makefile(".toml", small=GATED_SUITE)
    kernel = pytester.path / "kernel.py"
    kernel.write_text(TIMED_KERNELS.format(changed_s=0.02))
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@example.org"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        subprocess.run([*git, *command], check=True)
    kernel.write_text(TIMED_KERNELS.format(changed_s=0.05))

    def stated_s(timed: Case, arm: Arm) -> float:
        seconds = runpy.run_path(str(Path(arm.path[0], "kernel.py")))["SECONDS"]
        return float(seconds[timed.backend.partition(":")[2]])

    simulate(monkeypatch, tmp_path, stated_s)
    done = run_here(pytester, "small.toml", "--attnbench-base-ref", "HEAD", "--attnbench-device", DEVICE, "-v")
    done.assert_outcomes(passed=1, failed=1)
    done.stdout.fnmatch_lines([f"*{case('kernel.py:unchanged')}*PASSED*"])
    done.stdout.fnmatch_lines(["*time_s regressed: *", "*2 cases: 1 regressed, 1 same.*"])


@pytest.mark.parametrize(
    ("options", "rounds"), [({}, (10, 10)), ({"rounds": "7"}, (7, 7)), ({"rounds": "5..9"}, (5, 9))]
)
def test_a_gate_in_pytest_has_a_fixed_number_of_rounds_by_default(
    options: dict[str, str], rounds: tuple[int, int]
) -> None:
    session = SimpleNamespace(gates=True, baseline="")
    source = CaseSource(session, [], {"seq": "32", "backend": "naive", "device": "cpu", **options})  # type: ignore[arg-type]
    procedures = source.ready.settings.procedures.values()
    assert {(procedure.min_rounds, procedure.max_rounds) for procedure in procedures} == {rounds}
    assert source.ready.settings.restarts == 4


@pytest.mark.parametrize("side_by_side", [False, True])
def test_a_long_measurement_prints_a_line_from_time_to_time(
    side_by_side: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    printed: list[str] = []
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    terminal = SimpleNamespace(ensure_newline=lambda: None, write_line=printed.append)
    plugins = SimpleNamespace(get_plugin={"terminalreporter": terminal}.get)
    config = SimpleNamespace(pluginmanager=plugins, get_verbosity=lambda: 0)
    ready = sweep.prepare(sweep.Request(axes={"seq": "32", "mask": "none"}, backend="naive", device="cpu", restarts=3))
    watcher = pytest_plugin.Watcher(config, ready, side_by_side)  # type: ignore[arg-type]
    if side_by_side:
        watcher.more(3)
    for seconds, remaining_s in ((0.0, 90.0), (pytest_plugin.QUIET_S + 1, 90.0), (pytest_plugin.QUIET_S + 1, 0.0)):
        now[0] += seconds
        watcher.result(samples.result([1e-3]), remaining_s)
    first, *lines = printed
    assert first == "attnbench measures 1 cases of custom, 3 restarts"
    assert lines == ["  2 of 3 results, about 90 s left", "  3 of 3 results"]
