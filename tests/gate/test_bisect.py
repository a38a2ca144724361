"""The search for the first bad commit, against counting; and once for real."""

from __future__ import annotations

import math
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attnbench import cli
from attnbench.errors import UsageError
from attnbench.gate import bisect, paired
from attnbench.gate.bisect import StepOutcome
from attnbench.gate.judgement import GateVerdicts
from attnbench.records.result import Outcome, Status, Verdict


@given(st.integers(1, 60), st.data())
def test_the_first_bad_is_found_in_as_many_steps_as_halving_takes(count, data):
    commits = [str(n) for n in range(count)]
    first = data.draw(st.integers(0, count - 1))
    result = bisect.search(commits, lambda commit: StepOutcome.BAD if int(commit) >= first else StepOutcome.GOOD)
    assert result.first_bad == str(first)
    assert result.steps <= math.ceil(math.log2(count)) if count > 1 else result.steps == 0


@given(st.integers(2, 40), st.data())
def test_skipped_commits_leave_exactly_those_that_cannot_be_told_apart(count, data):
    commits = [str(n) for n in range(count)]
    first = data.draw(st.integers(0, count - 1))
    skipped = data.draw(st.sets(st.integers(0, count - 2)))
    tested = []

    def ask(commit):
        tested.append(commit)
        return (
            StepOutcome.SKIP
            if int(commit) in skipped
            else StepOutcome.BAD
            if int(commit) >= first
            else StepOutcome.GOOD
        )

    result = bisect.search(commits, ask)
    good = max((n for n in range(first) if n not in skipped), default=-1)
    bad = min(n for n in range(first, count) if n not in skipped)
    assert result.suspects == tuple(commits[good + 1 : bad + 1])
    assert len(tested) == len(set(tested))


def test_a_skipped_commit_before_the_bad_one_leaves_both():
    result = bisect.search(["a", "b", "c"], lambda commit: StepOutcome.SKIP if commit == "b" else StepOutcome.GOOD)
    assert (result.suspects, result.first_bad) == (("b", "c"), None)


KERNEL = """
import torch.nn.functional as F

def attend(q, k, v, causal=False, scale=None):
    out = F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scale)
    for _ in range({extra}):
        out = F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scale)
    return out
"""


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Four commits; the third makes the kernel do its work four times."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "-q"], check=True)
    hashes = []
    for number, extra in enumerate((0, 0, 3, 3)):
        (tmp_path / "my_kernel.py").write_text(f"# {number}{KERNEL.format(extra=extra)}")
        subprocess.run([*git, "add", "my_kernel.py"], check=True)
        subprocess.run([*git, "commit", "-qm", f"number {number}"], check=True)
        hashes.append(
            subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        )
    return hashes


def test_what_is_between_and_what_is_not(repository: list[str]) -> None:
    assert bisect.commits(repository[0], "HEAD") == repository[1:]
    with pytest.raises(UsageError, match="is no earlier commit than"):
        bisect.commits("HEAD", repository[0])
    with pytest.raises(UsageError, match="GOOD nowhere: no such commit"):
        bisect.commits("nowhere", "HEAD")


def test_the_commit_that_made_it_slow_is_named(
    repository: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Everything but the measuring, which tests/gate/test_paired.py does: the verdict follows from head's own file."""

    def judged(ready: Any, base: Any, head: Any, **options: Any) -> SimpleNamespace:
        text, good = ((Path(side.path[0]) / "my_kernel.py").read_text() for side in (head, base))
        assert "range(0)" in good
        case = {"case_id": "a", "label": "a", "device": "cpu", "backend": "b", "metric": "time_s"}
        outcome = Outcome.REGRESSED if "range(3)" in text else Outcome.SAME
        verdicts = (Verdict(**case, outcome=outcome),)
        return SimpleNamespace(
            judgement=GateVerdicts(base="", head="", verdicts=verdicts, geomeans={}, margin_source="")
        )

    monkeypatch.setattr(paired, "measure", judged)
    options = ["--seq", "256", "--mask", "none", "-b", "my_kernel.py:attend"]
    assert cli.invoke(["bisect", repository[0], "HEAD", *options]) == 0
    captured = capsys.readouterr()
    assert "first bad: " in captured.out
    assert "number 2" in captured.out
    machine, headline, first, *_ = captured.err.splitlines()
    assert machine.startswith("attnbench ")
    compared = f"bisect custom · HEAD against {repository[0]} · 3 commits in about 3 steps, each within 5 min"
    assert headline.startswith(f"{compared} · 1 case · ")
    assert first.startswith("bad ")
    assert "good " in captured.err
    assert cli.invoke(["-q", "bisect", repository[0], "HEAD", *options]) == 0
    assert capsys.readouterr().err == ""
    assert cli.invoke(["bisect", repository[0], repository[1], *options]) == 0
    assert capsys.readouterr().out == f"{repository[1]} is not slower than {repository[0]}: nothing to look for\n"
    assert cli.invoke(["bisect", repository[0], "HEAD", *options, "--case", "nothing"]) == 2
    assert "no such case; there are b1 h8 q256" in capsys.readouterr().err


def test_a_bad_commit_that_cannot_be_judged_is_not_called_as_fast(
    repository: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    case = {"device": "cpu", "backend": "b", "metric": "time_s"}
    verdicts = (
        Verdict(**case, case_id="a", label="a", outcome=Outcome.INCONCLUSIVE, reason="too noisy"),
        Verdict(**case, case_id="b", label="b", outcome=Outcome.SAME),
    )
    judged = GateVerdicts(base="", head="", verdicts=verdicts, geomeans={}, margin_source="")
    monkeypatch.setattr(paired, "measure", lambda *_, **__: SimpleNamespace(judgement=judged))
    options = ["--seq", "256", "--mask", "none", "-b", "my_kernel.py:attend"]
    assert cli.invoke(["bisect", repository[0], "HEAD", *options]) == 3
    out, err = capsys.readouterr()
    why = "undecided in 1 of 2 cases: a: too noisy"
    assert out == f"HEAD cannot be judged against {repository[0]}, so no commit is searched for: {why}\n"
    assert err.splitlines()[2].startswith("skip ")
    assert err.endswith(f" number 3: {why}\n")
    nothing = GateVerdicts(base="", head="", verdicts=(), geomeans={}, margin_source="")
    assert bisect.why_skipped(nothing) == "nothing was measured"


@pytest.mark.parametrize(
    ("outcomes", "word"),
    [
        ([Outcome.SAME], StepOutcome.GOOD),
        ([Outcome.IMPROVED, Outcome.SAME], StepOutcome.GOOD),
        ([Outcome.SAME, Outcome.REGRESSED], StepOutcome.BAD),
        ([Outcome.INCONCLUSIVE], StepOutcome.SKIP),
        ([], StepOutcome.SKIP),
    ],
)
def test_the_outcome_of_a_step(outcomes: list[Outcome], word: StepOutcome) -> None:
    case = {"case_id": "a", "label": "a", "device": "cpu", "backend": "b", "metric": "time_s"}
    verdicts = tuple(Verdict(**case, outcome=outcome) for outcome in outcomes)
    judgement = GateVerdicts(base="", head="", verdicts=verdicts, geomeans={}, margin_source="")
    assert bisect.step_outcome(judgement) is word
    assert bool(bisect.why_skipped(judgement)) == (word is StepOutcome.SKIP)


def test_a_commit_without_the_backend_is_skipped() -> None:
    case = {"case_id": "a", "label": "a", "device": "cpu", "backend": "b", "metric": "status"}
    broken = Verdict(**case, outcome=Outcome.BROKEN, head_status=Status.UNAVAILABLE, reason="no module 'x'")
    judgement = GateVerdicts(base="", head="", verdicts=(broken,), geomeans={}, margin_source="")
    assert bisect.step_outcome(judgement) is StepOutcome.SKIP
    assert bisect.why_skipped(judgement) == "it does not run: no module 'x'"
    broken = Verdict(**case, outcome=Outcome.BROKEN, head_status=Status.ERROR, reason="unavailable in the text")
    assert (
        bisect.step_outcome(GateVerdicts(base="", head="", verdicts=(broken,), geomeans={}, margin_source=""))
        is StepOutcome.BAD
    )
