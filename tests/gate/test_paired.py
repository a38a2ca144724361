"""A gate of a user's kernel in a scratch repository, with real workers, restarts and verdicts."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from attnbench import cli
from attnbench.analysis import noise_floor
from attnbench.analysis.noise_floor import KernelKind
from attnbench.gate import judgement, significance
from attnbench.gate.evidence import BASE, CONTROL, HEAD
from attnbench.records import run_directory

pytestmark = [pytest.mark.slow, pytest.mark.workers]

KERNEL = """
import time
import torch
import torch.nn.functional as F

def attend(q, k, v, causal=False, scale=None):
    seq = q.shape[-2]
    scratch = [torch.empty(2**19) for _ in range({buffers} if seq == {heavier} else 1)]
    time.sleep({seconds} if seq == {heavier} else 0.01)
    out = F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scale)
    return out * {factor} if seq == {wrong} else out
"""
HONEST, HEAVIER, WRONG = 64, 80, 96  # lengths of the cases: one backend has one worker on each side
SUITE = f"""
[[problem]]
seq = [{HONEST}, {HEAVIER}, {WRONG}]
heads = 2
mask = "causal"
dtype = "fp32"
backend = "kernel.py:attend"

[gate]
time = "50%"
"""
DEVICE = "cpu:threads=1"


def kernel(buffers: int, seconds: float, factor: float) -> str:
    """Its file. Calls sleep, which needs no core: a busy machine changes little of their ratio."""
    return KERNEL.format(buffers=buffers, seconds=seconds, factor=factor, heavier=HEAVIER, wrong=WRONG)


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A commit of a correct kernel, and a working tree in which it is broken at two of three lengths."""
    root = tmp_path / "repository"
    root.mkdir()
    monkeypatch.chdir(root)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (root / ".gitignore").write_text("__pycache__/\n")
    (root / "kernel.toml").write_text(SUITE)
    (root / "kernel.py").write_text(kernel(buffers=1, seconds=0.01, factor=1.0))
    for command in (
        ["init", "-q"],
        ["add", "-A"],
        ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "one"],
    ):
        subprocess.run(["git", *command], check=True)
    (root / "kernel.py").write_text(kernel(buffers=9, seconds=0.08, factor=1.5))
    return root


def test_regressed_cases_are_named_and_others_pass(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Fewer restarts than users get show changes as large as these; tests/gate/test_rule.py has the numbers.
    monkeypatch.setattr(significance, "LOOKS", {2: 0.5, 4: 0.5})
    before = subprocess.run(["git", "status", "--porcelain"], capture_output=True, check=True).stdout
    folder = tmp_path / "gate"
    options = ["--base-ref", "HEAD", "--device", DEVICE, "--rounds", "3", "-o", str(folder), "--json"]
    code = cli.invoke(["-q", "gate", "kernel.toml", *options])
    *lines, summary = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    verdicts = {(length(line["label"]), line["metric"]): line for line in lines}
    assert code == summary["exit_code"] == 5  # a wrong result hides no regression, and comes first
    assert verdicts[HEAVIER, "time_s"]["outcome"] == "regressed"
    assert verdicts[HEAVIER, "time_s"]["change"] > 1  # eight times the time, less what a busy machine adds to both
    assert verdicts[HEAVIER, "peak_bytes"]["outcome"] == "regressed"
    assert verdicts[WRONG, "status"]["outcome"] == "broken"
    assert "incorrect" in verdicts[WRONG, "status"]["reason"]
    assert verdicts[HONEST, "time_s"]["outcome"] in ("same", "inconclusive")
    assert verdicts[HONEST, "peak_bytes"]["outcome"] == "same"

    run = run_directory.read(folder)
    # Again from what was stored, without a device.
    assert judgement.judge(run) == judgement.judge(run_directory.read(folder))
    restarts: dict[int, set[int]] = {}
    for result in run.results:
        restarts.setdefault(result.case.problem.seq_q, set()).add(result.restart)
    assert restarts[HEAVIER] in (set(range(2)), set(range(4)))  # until it was decided
    assert restarts[WRONG] == {0}  # its first verification decides
    assert run.manifest.gate["head"]["dirty"]
    assert str(tmp_path) not in (folder / "run.json").read_text() + (folder / "results.jsonl").read_text()
    assert subprocess.run(["git", "status", "--porcelain"], capture_output=True, check=True).stdout == before
    assert {result.arm.copy for result in run.results} == {BASE, HEAD, CONTROL}
    assert len(noise_floor.load(run.manifest.fingerprint, DEVICE, KernelKind.USER)) == 1  # of the A/A control


def length(label: str) -> int:
    """Of a case, by its label."""
    return int(label.split()[2].removeprefix("q"))
