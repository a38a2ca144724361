"""The command line as a user meets it: outputs, streams, errors in one line, exit codes."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parents[1]
SMALL = ("--heads", "2", "--mask", "none", "--rounds", "3", "--budget", "0")


def attnbench(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "attnbench", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


WRONG = {
    ("run", "--sek", "512"): "--seq",
    ("run", "--seq", "16384..512"): "empty range '16384..512': the low end comes first",
    ("run", "--seq", "abc"): "not an integer: 'abc'",
    ("run", "--seq", "64", "--backend", "sdpa:flsh"): "'sdpa:flash'",
    ("run", "--seq", "64", "--mask", "cuasal"): "'causal'",
    ("run", "--seq", "64", "--mask", "window:-3"): "negative",
    ("run", "--seq", "64", "--dtype", "fp31"): "'fp32'",
    ("run", "--seq", "64", "--heads", "12", "--kv-heads", "8"): "--heads 12 is not a multiple of kv_heads=8",
    ("run", "--seq", "64", "--set", "softcapp=3"): "'softcap'",
    ("run", "--seq", "64", "--device", "cpu:threads=999"): "999 threads",
    ("run", "--seq", "64", "--device", "tpu"): "no device 'tpu'",
    ("run", "--seq", "64", "--backend", "missing.py:attend"): "no file 'missing.py'",
    ("run", "--seq", "64", "--budget", "soon"): "--budget",
    ("run", "--seq", "64", "--only", "seq=4k.."): "nothing is left to run",
    ("run", "--seq", "64", "--timing", "events"): "a CPU has only wall",
    ("run", "no-such-suite"): "quick",
    ("run", "no/such/file.toml"): "file.toml",
    ("run", "--resume", "last"): "no run in",
    ("show", "nothing"): "no run 'nothing'",
    ("show", "--failed", "--format", "csv"): "takes no --format",
    (
        "show",
        "--skipped",
        "--metrics",
        "memory",
    ): "show --skipped lists cases as text, or as JSON Lines with --json, and takes no --metrics",
    ("show", "--failed", "--skipped"): "takes no --skipped",
    (
        "scaling",
        "--run",
        "last",
        "--find-max-seq",
    ): "scaling --run last reads a stored run, and takes no --find-max-seq",
    ("scaling", "--run", "last", "-b", "naive"): "takes no --backend: leave it out",
    ("claims", "--run", "last", "--budget", "1m"): "claims --run last reads a stored run, and takes no --budget",
    ("explain", "abc"): "no run",
    ("report", "last"): "no run in",
    ("rnu",): "did you mean 'run'",
}


@pytest.mark.parametrize(("arguments", "words"), WRONG.items(), ids=[" ".join(key) for key in WRONG])
def test_a_mistake_is_one_line_that_names_it_and_exit_2(arguments, words, attnbench_command):
    assert_mistake(attnbench_command(*arguments), words)


def test_the_process_ends_with_that_code_and_line():
    assert_mistake(attnbench("run", "--sek", "512"), "--seq")


def assert_mistake(done, words):
    assert done.returncode == 2, done.stderr
    assert words in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert "Traceback" not in done.stderr
    assert not done.stdout


def test_a_suite_with_an_unknown_key_names_file_key_and_nearest(tmp_path, monkeypatch, attnbench_command):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.toml").write_text('sourc = "x"\n[[problem]]\nseq = 64\n')
    done = attnbench_command("run", "mine.toml")
    assert done.returncode == 2
    assert "mine.toml" in done.stderr
    assert "'source'" in done.stderr


def test_a_configuration_file_gives_defaults_and_its_slips_are_named(tmp_path, monkeypatch, attnbench_command):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "attnbench.toml").write_text('[run]\nseq = "96"\nbackend = "naive"\n')
    done = attnbench_command("-v", "run", "--dry-run")
    assert "q96 kv96" in done.stdout
    assert "seq: '96' from attnbench.toml" in done.stderr
    (tmp_path / "attnbench.toml").write_text("[run]\nsek = 3\n")
    done = attnbench_command("run", "--dry-run")
    assert done.returncode == 2
    assert "run.sek" in done.stderr
    assert "'seq'" in done.stderr


def test_the_environment_gives_any_option(monkeypatch, attnbench_command):
    monkeypatch.setenv("ATTNBENCH_RUN_SEQ", "80")
    monkeypatch.setenv("ATTNBENCH_RUN_BACKEND", "naive")
    done = attnbench_command("run", "--dry-run")
    assert "q80 kv80" in done.stdout


@pytest.mark.parametrize(("name", "code"), [("win32", 2), ("linux", 0), ("darwin", 0)])
def test_windows_is_refused_before_anything_is_imported_that_it_lacks(name, code, monkeypatch, capsys):
    from attnbench.cli import invoke

    monkeypatch.setattr(sys, "platform", name)
    assert invoke(["list", "masks"]) == code
    assert ("WSL" in capsys.readouterr().err) is bool(code)


@pytest.mark.workers
def test_json_is_one_object_a_case_and_a_summary(attnbench_command):
    """An impossible problem has its line too."""
    axes = "--seq", "32,64", "--kv-heads", "2,3"
    done = attnbench_command("run", "--json", *axes, "-b", "naive,sdpa:flash,triton", *SMALL)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, done.stderr
    assert [line["type"] for line in lines] == ["case"] * 8 + ["summary"]
    assert "\x1b" not in done.stdout
    flash = next(line for line in lines if line.get("backend") == "sdpa:flash")
    assert flash["status"] == "ok"
    assert flash["speedup"] is not None
    assert flash["time_low_s"] <= flash["time_s"] <= flash["time_high_s"]
    assert flash["flops"] == 4 * 2 * flash_pairs(flash["label"]) * 64
    assert flash["flop_per_s"] == pytest.approx(flash["flops"] / flash["time_s"])
    refused = next(line for line in lines if line.get("backend") == "triton")
    assert (refused["status"], refused["time_s"]) == ("unavailable", None)
    assert "interpreted" in refused["reason"]
    skipped = [line["reason"] for line in lines if line["status"] == "skipped"]
    assert len(skipped) == 2
    assert all("not a multiple of kv_heads=3" in reason for reason in skipped)
    assert lines[-1]["status"] == {"ok": 4, "unavailable": 2}
    assert lines[-1]["planned"] == 8


def flash_pairs(label: str) -> int:
    lengths = re.search(r"q(\d+) kv(\d+)", label)
    assert lengths
    return int(lengths[1]) * int(lengths[2])


def test_the_table_fits_eighty_columns_and_shortens_no_number(stored_run, attnbench_command):
    done = attnbench_command("show", str(stored_run))
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert "…" not in done.stdout
    assert "..." not in done.stdout


def test_a_closed_pipe_ends_quietly(stored_run):
    command = f"{sys.executable} -m attnbench show {stored_run} --json | head -n 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=300, check=False)
    assert len(done.stdout.splitlines()) == 1
    assert not done.stderr


def test_explain_says_why_and_what_ran(stored_run, attnbench_command):
    done = attnbench_command("explain", "q32 kv32 d64 none fp32 fwd sdpa:flash", "--run", str(stored_run))
    assert done.returncode == 0, done.stderr
    assert "resolved: flash" in done.stdout


@pytest.mark.workers
def test_explain_asks_a_worker_which_kernel_sdpa_takes(attnbench_command):
    done = attnbench_command("explain", "--seq", "32", "--mask", "causal", "-b", "sdpa,sdpa:cudnn,flash-attn:2")
    assert "sdpa: runs: resolved flash" in done.stdout
    assert "sdpa:cudnn: unavailable: runs on cuda, not on cpu" in done.stdout
    assert "flash-attn:2: unavailable" in done.stdout


@pytest.mark.workers
def test_a_wrong_kernel_ends_the_run_with_5_and_a_run_of_refusals_with_6(stored_run, tmp_path, attnbench_command):
    wrong = f"{HERE}/misbehaving.py:zeros"
    assert attnbench_command("run", "--seq", "32", "-b", wrong, *SMALL).returncode == 5
    assert attnbench_command("run", "--seq", "32", "-b", "triton", *SMALL).returncode == 6
    some_refused = shutil.copytree(stored_run, tmp_path / "run")
    assert attnbench_command("run", "--resume", str(some_refused)).returncode == 0
    assert attnbench_command("run", "--resume", str(some_refused), "--strict").returncode == 5
