"""`attnbench verify`, on real workers."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from random import Random

import pytest

from attnbench import api
from attnbench.cli import invoke
from attnbench.engine import verify_only

pytestmark = pytest.mark.workers

HERE = Path(__file__).parents[1]
SMALL = ["verify", "--seq", "32", "--heads", "2", "--mask", "causal", "--timeout", "10m", "--progress", "none"]


@pytest.fixture(autouse=True)
def few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """A short first round, with time on a busy machine too: its pace decides on the next one all the same."""
    monkeypatch.setattr(verify_only, "FIRST_DRAWS", 4)
    monkeypatch.setattr(verify_only, "FIRST_ROUND_S", 300.0)


def lines(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.splitlines()]


def test_what_is_right_is_shown_with_its_errors_and_not_stored(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert invoke([*SMALL, "-b", "naive,sdpa:flash", "--mode", "fwd,bwd"]) == 0
    assert not (tmp_path / "results").exists()
    shown = capsys.readouterr().out
    assert "all 4 verified cases are right" in shown
    assert "naive on cpu" in shown
    row = next(line for line in shown.splitlines() if line.endswith("ok") and " bwd " in line)
    assert row.count("%") == 4  # out, dq, dk, dv
    assert max(map(len, shown.splitlines())) <= 80


def test_the_interpreter_runs_what_a_cpu_cannot_time(capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke([*SMALL, "-b", "triton", "--mode", "bwd", "--json"]) == 0
    case, summary = lines(capsys.readouterr().out)
    assert (case["status"], case["verified_share"]) == ("ok", 1.0)
    assert set(case["errors"]) == {"out", "dq", "dk", "dv"}  # type: ignore[call-overload]
    assert summary == {"type": "summary", "cases": 1, "status": {"ok": 1}, "exit_code": 0}


FAILING = {
    "zeros": ("incorrect", "max |error|"),
    "raises": ("error", "ValueError: the tile size 48 is not a power of two (tests/misbehaving.py:"),
    "segfault": ("crashed", "died of SIGSEGV (tests/misbehaving.py:"),
}


def test_what_is_wrong_leaves_the_others_theirs(capsys: pytest.CaptureFixture[str]) -> None:
    bad = ",".join(f"{HERE / 'misbehaving.py'}:{function}" for function in FAILING)
    assert invoke(["-v", *SMALL, "-b", f"{bad},naive", "--json"]) == 5
    shown = capsys.readouterr()
    *wrong, right, summary = lines(shown.out)
    assert [case["status"] for case in wrong] == [status for status, _ in FAILING.values()]
    for case, (_, words) in zip(wrong, FAILING.values(), strict=True):
        assert words in str(case["reason"])
    assert right["status"] == "ok"
    assert summary["exit_code"] == 5
    assert "Traceback (most recent call last):" in shown.err  # of `raises`
    assert "Fatal Python error: Segmentation fault" in shown.err


def test_what_a_backend_cannot_do_is_told_and_nothing_verified_is_6(capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke([*SMALL, "-b", "naive", "--dtype", "tf32"]) == 6
    out = capsys.readouterr().out
    assert "no case was verified\nnot verified: 1 unsupported\n  1 tf32 unsupported (supported: fp32" in out


def test_a_bad_option_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke([*SMALL, "-b", "trition"]) == 2
    assert "triton" in capsys.readouterr().err


@pytest.mark.slow
def test_problems_are_drawn_for_as_long_as_is_asked(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["-b", "naive", "--dtype", "fp32", "--seq", "24", "--progress", "none"]
    assert invoke(["verify", "--random", "2s", *options, "--json"]) == 0
    first = lines(capsys.readouterr().out)[:-1]
    assert len({case["label"] for case in first}) >= 2  # how many depends on the machine, above the first draws
    assert {case["status"] for case in first} <= {"ok", "unsupported"}
    assert all("fp32" in str(case["label"]) for case in first)


def test_another_seed_draws_other_problems() -> None:
    request = api.request(backend="naive", device="cpu:threads=1", dtype="fp32", seq="24")
    first, again, other = (set(verify_only._draw(request, Random(seed), 16, 60.0)[1]) for seed in (0, 0, 1))
    assert first == again != other


@pytest.mark.slow
def test_what_was_drawn_and_is_wrong_can_be_asked_for_again(capsys: pytest.CaptureFixture[str]) -> None:
    """With --set for an axis that has no option, and with the same inputs."""
    bad = f"{HERE / 'misbehaving.py'}:zeros"
    command = ["verify", "--random", "2s", "-b", f"{bad},naive", "--mode", "fwd", "--mask", "none", "--seq", "24"]
    assert invoke([*command, "--set", "returns=out", "--inputs", "uniform", "--progress", "none"]) == 5
    shown = capsys.readouterr()
    assert "nearest to its bound, at" in shown.out  # of naive
    again = next(line for line in shown.err.splitlines() if line.startswith("again: "))
    assert "--set returns=out" in again
    assert again.endswith("--inputs uniform")
    assert invoke([*shlex.split(again)[2:], "--progress", "none"]) == 5
    assert "1 of 1 case failed: 1 incorrect" in capsys.readouterr().out


def test_a_random_time_stands_alone(capsys: pytest.CaptureFixture[str]) -> None:
    for more in (["--suite", "verify"], ["--budget", "3s"]):
        assert invoke(["verify", "--random", "2s", *more]) == 2
        assert "--random 2s" in capsys.readouterr().err
    assert invoke(["verify", "--random", "soon"]) == 2
    assert "--random" in capsys.readouterr().err


@pytest.mark.parametrize("axes", [{"tokens": "256"}, {"heads": "6", "lengths": "40-7"}], ids=str)
def test_what_is_drawn_gives_way_to_what_is_given(axes: dict[str, str]) -> None:
    request = api.request(backend="naive", device="cpu:threads=1", mask="none", **axes)
    planned, options = verify_only._draw(request, Random(0), 16, 60.0)
    assert len(options) >= 12  # of 16: some are drawn twice, others cannot be
    assert len(planned.plan.groups) == len(planned.cells) >= len(options)
    assert not planned.plan.refusals
    for cell, _ in planned.cells:
        problem = cell.problem
        if "tokens" in axes:
            assert problem.batch == 256 // max(problem.seq_q, problem.seq_kv)
        else:
            assert (problem.heads, problem.requests) == (6, "q40_q7")


def test_a_draw_that_can_be_no_problem_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["verify", "--random", "2s", "-b", "naive", "--heads", "4", "--kv-heads", "3"]) == 2
    assert "kv_heads" in capsys.readouterr().err


def test_nothing_is_drawn_on_and_on_where_nothing_can_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["verify", "--random", "10m", "-b", "triton:hopper", "--progress", "none", "--json"]) == 6
    assert len(lines(capsys.readouterr().out)) <= verify_only.FIRST_DRAWS + 1
