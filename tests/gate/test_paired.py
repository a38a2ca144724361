"""A gate of a user's kernel in a scratch repository, with real workers, restarts and verdicts."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from attnbench import cli
from attnbench.analysis import noise_floor
from attnbench.gate import judgement, significance
from attnbench.gate.evidence import BASE, CONTROL, HEAD
from attnbench.records import run_directory
from attnbench.records.result import Outcome

pytestmark = [pytest.mark.slow, pytest.mark.workers]

KERNEL = """
import time
import torch
import torch.nn.functional as F

EXTRA = {extra}
WRONG = {wrong}

def honest(q, k, v, causal=False, scale=None):
    return F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scale)

def heavier(q, k, v, causal=False, scale=None):
    scratch = [torch.empty(2**19) for _ in range(1 + 8 * EXTRA)]
    time.sleep(0.04 * (1 + EXTRA))  # long calls that need no core: a busy machine changes their ratio little
    return F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scale)

def wrong(q, k, v, causal=False, scale=None):
    return F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scale) * (1.5 if WRONG else 1.0)
"""
NAMES = ("honest", "heavier", "wrong")


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A commit of correct kernels, and a working tree in which two of three are broken."""
    root = tmp_path / "repository"
    root.mkdir()
    monkeypatch.chdir(root)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("ATTNBENCH_RESULTS", str(tmp_path / "results"))
    (root / ".gitignore").write_text("__pycache__/\n")
    (root / "my_kernel.py").write_text(KERNEL.format(extra=0, wrong=False))
    for command in (
        ["init", "-q"],
        ["add", "-A"],
        ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "one"],
    ):
        subprocess.run(["git", *command], check=True)
    (root / "my_kernel.py").write_text(KERNEL.format(extra=1, wrong=True))
    return root


def test_regressed_cases_are_named_and_others_pass(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Fewer restarts than users get show changes as large as these; tests/gate/test_rule.py has the numbers.
    monkeypatch.setattr(significance, "LOOKS", {3: 0.3, 6: 0.7})
    backends = ",".join(f"my_kernel.py:{name}" for name in NAMES)
    before = subprocess.run(["git", "status", "--porcelain"], capture_output=True, check=True).stdout
    folder = tmp_path / "gate"
    options = ["--seq", "384", "-b", backends, "--base-ref", "HEAD", "--rounds", "5", "-o", str(folder), "--json"]
    code = cli.invoke(["-q", "gate", *options])
    *lines, summary = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    verdicts = {(line["backend"].partition(":")[2], line["metric"]): line for line in lines}
    assert code == summary["exit_code"] == 5  # a wrong result hides no regression, and comes first
    assert verdicts["heavier", "time_s"]["outcome"] == "regressed"
    assert 0.2 < verdicts["heavier", "time_s"]["change"] < 1.5  # twice the time, and what a busy machine adds to both
    assert verdicts["heavier", "peak_bytes"]["outcome"] == "regressed"
    assert verdicts["wrong", "status"]["outcome"] == "broken"
    assert "incorrect" in verdicts["wrong", "status"]["reason"]
    assert verdicts["honest", "time_s"]["outcome"] in ("same", "inconclusive")
    assert verdicts["honest", "peak_bytes"]["outcome"] == "same"

    run = run_directory.read(folder)
    # Again from what was stored, without a device.
    assert judgement.judge(run) == judgement.judge(run_directory.read(folder))
    restarts = {
        name: {result.restart for result in run.results if result.case.backend.endswith(name)} for name in NAMES
    }
    assert restarts["heavier"] in (set(range(3)), set(range(6)))  # until it was decided
    assert restarts["wrong"] == set(range(3))
    assert run.manifest.gate["head"]["dirty"]
    assert str(tmp_path) not in (folder / "run.json").read_text() + (folder / "results.jsonl").read_text()
    assert subprocess.run(["git", "status", "--porcelain"], capture_output=True, check=True).stdout == before
    assert {result.arm.copy for result in run.results} == {BASE, HEAD, CONTROL}


def test_head_against_itself_shows_the_resolution_of_the_machine(
    repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(significance, "LOOKS", {3: 1.0})
    code = cli.invoke(["-q", "gate", "--noop", "--seq", "256", "--mask", "none", "-b", "sdpa:flash", "--rounds", "5"])
    assert code in (0, 3)
    assert "A slowdown of 1.5 times its margin" in capsys.readouterr().out
    run = run_directory.read(run_directory.resolve("last", run_directory.results_root()))
    pairs = noise_floor.load(run.manifest.fingerprint, "cpu:threads=1")
    assert len(pairs) == 2  # the A/A control, and head: both are base again
    outcomes = [verdict.outcome for verdict in judgement.judge(run).verdicts if verdict.metric == "time_s"]
    assert outcomes in ([Outcome.SAME], [Outcome.INCONCLUSIVE])


@pytest.mark.workers
@pytest.mark.slow
def test_a_noise_floor_that_cannot_be_stored_changes_no_verdict(tmp_path, monkeypatch, attnbench_command):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(significance, "LOOKS", {2: 1.0})  # as many as an interval needs
    done = attnbench_command("gate", "--noop", "--seq", "32", "--mask", "none", "-b", "naive", "--rounds", "3")
    assert done.returncode in (0, 3)
    assert "naive" in done.stdout
    assert "the noise floor of this machine is not updated: cannot write to" in done.stderr
