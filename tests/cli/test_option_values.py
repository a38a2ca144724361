"""Every option of every command refuses a value that it does not understand, where it is parsed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from typer.core import TyperOption
from typer.exceptions import TyperException
from typer.main import get_command

from attnbench import cli
from attnbench.cli import app
from attnbench.errors import AttnbenchError

# What these hold is free text, or a name that only a later step can look up.
FREE = {"TEXT", "CASE", "RUN", "RUN|NAME", "REF", "MACHINE", "PYTHON", "FILE", "DIR", "PATH"}
COUNTS = {"--seq", "--seq-q", "--seq-kv", "--batch", "--tokens", "--heads", "--kv-heads", "--head-dim", "--head-dim-v"}
COUNTS |= {
    "--rounds",
    "--restarts",
    "--launches",
    "--block",
    "--rel-ci",
    "--mem-limit",
    "--shrink",
    "--timeout",
    "--random",
}


def options(command: object, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], TyperOption]]:
    for parameter in vars(command)["params"]:
        if isinstance(parameter, TyperOption) and not parameter.is_flag and parameter.metavar not in FREE:
            yield path, parameter
    for name, inner in vars(command).get("commands", {}).items():
        yield from options(inner, (*path, name))


TREE = get_command(app)
ALL = [(path, parameter.opts[0]) for path, parameter in options(TREE)]


def message(path: tuple[str, ...], option: str, value: str) -> str:
    """The error of parsing this option alone; without the cost of a whole command line."""
    command: Any = TREE
    for name in path:
        command = command.commands[name]
    with pytest.raises((AttnbenchError, TyperException)) as refused:
        command.make_context("attnbench", [option, value, *([] if path else ["doctor"])])
    wrong = refused.value
    assert (wrong.exit_code if isinstance(wrong, TyperException) else wrong.exit) == 2
    return wrong.format_message() if isinstance(wrong, TyperException) else str(wrong)


@pytest.mark.parametrize(
    ("path", "option", "text", "expected"),
    [
        (("report",), "--theme", "d", ["dark"]),
        (("plot",), "--facet", "mask,dty", ["mask,dtype"]),
        (("run",), "--format", "jso", ["jsonl"]),
        (("run",), "--probe", "layouts,valu", ["layouts,values"]),
    ],
)
def test_a_shell_completes_the_words_of_a_closed_set(
    path: tuple[str, ...], option: str, text: str, expected: list[str]
) -> None:
    parameter = next(each for at, each in options(TREE) if at == path and option in each.opts)
    offered = parameter.shell_complete(cast("Any", None), text)
    assert [item.value for item in offered] == expected


def refused(path: tuple[str, ...], option: str, value: str, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of the error."""
    code = cli.invoke([*path, option, value] if path else [option, value, "doctor"])
    error = capsys.readouterr().err
    assert code == 2, error
    assert option in error
    assert len(error.splitlines()) == 1
    return error


def test_the_walk_finds_the_options() -> None:
    assert len(ALL) > 100
    assert {((), "--color"), (("run",), "--reference"), (("verify",), "--probe"), (("export",), "--to")} <= set(ALL)


@pytest.mark.parametrize(
    ("path", "option"), ALL, ids=lambda value: " ".join(value) if isinstance(value, tuple) else value
)
def test_nonsense_is_refused_with_the_name_of_the_option(path: tuple[str, ...], option: str) -> None:
    assert option in message(path, option, "?nonsense?")


@pytest.mark.parametrize(
    ("path", "option"), [(path, option) for path, option in ALL if option in COUNTS and path != ("tune",)],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else value,
)  # fmt: skip
def test_zero_is_refused_where_it_means_nothing(path: tuple[str, ...], option: str) -> None:
    assert option in message(path, option, "0")


@pytest.mark.parametrize(
    ("command", "option", "value", "near"),
    [
        ("run", "--reference", "sdpa:flsh", "sdpa:flash"),
        ("run", "--backend", "sdpa:flsh", "sdpa:flash"),
        ("run", "--timing", "wal", "wall"),
        ("run", "--cache", "colt", "cold"),
        ("run", "--dtype", "bf61", "bf16"),
        ("run", "--suite", "quik", "quick"),
        ("run", "--only", "backend=sdpa:flsh", "sdpa:flash"),
        ("verify", "--probe", "nose", "noise"),
        ("export", "--to", "benchr", "bencher"),
        ("report", "--reference", "sdpa:flsh", "sdpa:flash"),
        ("plot", "--y", "time", "time_s"),
        ("tune", "--kernel", "forwrd", "forward"),
        ("viz", "--inputs", "nomal", "normal"),
        ("gate", "--inconclusive", "fial", "fail"),
        ("", "--color", "alway", "always"),
    ],
)
def test_the_nearest_name_is_offered(
    command: str, option: str, value: str, near: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert f"did you mean {near!r}" in refused((command,) if command else (), option, value, capsys)


def test_a_budget_of_zero_is_no_limit_and_a_timeout_of_zero_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    case = ["run", "--seq", "64", "-b", "naive", "--device", "cpu", "--dry-run"]
    assert cli.invoke([*case, "--budget", "0"]) == 0
    assert "leaves no time for a case" in refused(("run",), "--timeout", "0", capsys)


def test_values_of_configuration_files_and_the_environment_are_checked_as_well(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ATTNBENCH_RUN_TIMING", "wal")
    assert cli.invoke(["run", "--dry-run"]) == 2
    assert "--timing: no mode 'wal'; did you mean 'wall'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("--requests", "2q2k_x"),
            "--requests: requests '2q2k_x': 'x' is no segment: use [count]q<queries>[s<keys>], as",
        ),
        (("--requests", "q1s8_q4s2"), "'q4s2': 2 keys are fewer than 4 queries; s counts all"),
        (("--requests", "8q1s1k", "--set", "page_size=3"), "--set page_size: 3: must be a power of two, as 16 or 64,"),
        (("--requests", "8q1s1k", "--set", "page_size=-1"), "--set page_size: -1: must be a power of two, as 16 or 64"),
        (
            ("--requests", "8q1s1k", "--set", "shared_prefix=2k:8"),
            "attnbench: --set shared_prefix=2k:8: request q1s1k has 1024 keys, fewer than the prefix; use longer",
        ),
        (
            ("--seq", "64", "--mask", "tree:0-2-1"),
            "mask 'tree:0-2-1': token 1 has the later token 2 as parent, and the",
        ),
        (("made.toml",), "made.toml: problem[0].page_size: 3: must be a power of two"),
        (
            ("long.toml",),
            "long.toml: shared_prefix=2k:8: request q1s1k has 1024 keys, fewer than the prefix; use longer",
        ),
        (("--seq", "64", "--heads", "3", "--kv-heads", "2"), "attnbench: --heads 3 is not a multiple of kv_heads=2"),
        (("--seq", "64", "--mask", "tree:0-0-1"), "attnbench: --mask tree:0-0-1: 3 draft tokens, but seq_q is 64; use"),
        (("--requests", "q5", "--mask", "natten:9"), "attnbench: --requests q5: q5: mask 'natten:9': "),
        (
            ("--requests", "q1s8", "--seq", "1k"),
            "attnbench: --requests q1s8 beside --seq 1k: the requests give seq; leave",
        ),
    ],
)
def test_batches_that_no_server_has_are_refused_in_one_line(
    words: tuple[str, ...],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "made.toml").write_text('[[problem]]\nrequests = "8q1s1k"\npage_size = 3\n')
    (tmp_path / "long.toml").write_text('[[problem]]\nrequests = "8q1s1k"\nshared_prefix = "2k:8"\n')
    assert cli.invoke(["run", *words, "-b", "naive", "--device", "cpu", "--dry-run"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1


def test_a_plan_that_measures_nothing_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["run", "--seq", "64,128", "--mask", "none", "-b", "flash-attn:2", "--device", "cpu", "--dry-run"]
    assert cli.invoke(words) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == "nothing will be measured: 2 unavailable: runs on cuda, not on cpu"


@pytest.mark.parametrize(
    ("words", "flag"),
    [
        (("calibrate", "--floor"), "--floor"),
        (("gate", "--base-python", "python"), "--base-python python"),
        (("verify", "--random", "1m"), "--random 1m"),
        (("scaling", "--find-max-seq"), "--find-max-seq"),
    ],
)
def test_what_needs_this_machine_is_refused_for_a_cluster(
    words: tuple[str, ...], flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.invoke([*words, "--engine", "ray"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"attnbench: {flag}: ")
    assert error.endswith(": leave --engine ray out")


@pytest.mark.parametrize("command", ["run", "gate", "calibrate"])
def test_a_cluster_without_the_engine_is_refused(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = [command, *(("--noop",) if command == "gate" else ())]
    assert cli.invoke([*words, "--address", "127.0.0.9:1"]) == 2
    assert "--address 127.0.0.9:1: names a cluster; add --engine ray" in capsys.readouterr().err


def test_a_report_of_no_result_is_refused(stored_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.invoke(["report", str(stored_run), "--only", "seq=9999"]) == 2
    assert "--only, --skip: no result of" in capsys.readouterr().err
