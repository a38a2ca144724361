"""Interpreters of `--backend-python`: what is refused before a run, what is installed where, a run in another one."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from attnbench import backends
from attnbench._version import __version__
from attnbench.cli import output
from attnbench.engine import interpreters, plan, sweep
from attnbench.engine.sweep import Request
from attnbench.errors import UnknownNameError, UsageError
from attnbench.records.arm import Arm
from attnbench.records.result import Environment, Status
from attnbench.report.pages import machine
from attnbench.report.pages.page import report_data
from attnbench.worker import protocol
from tests.conftest import Command
from tests.samples import result, run

ROOT = Path(__file__).parents[2]
GOOD: dict[str, Any] = {
    "python": [3, 12], "attnbench": __version__, "protocol": protocol.VERSION,
    "modules": ["torch", "jax", "onnxruntime", "onnx"],
    "packages": {"torch": "2.12.1", "jax": "0.11.0", "onnxruntime": "1.20.0", "numpy": "2.0"},
}  # fmt: skip
Script = Callable[..., str]


@pytest.fixture
def script(tmp_path: Path) -> Script:
    """Makes a program that stands for an interpreter; its path."""

    def make(text: str = "", name: str = "python", **answer: Any) -> str:
        path = tmp_path / name
        report = json.dumps({**GOOD, **answer})
        path.write_text(text or f"#!/bin/sh\necho 'a line of sitecustomize'\ncat <<'END'\n{report}\nEND\n")
        path.chmod(0o755)
        return str(path)

    return make


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ({"python": [3, 9]}, "Python 3.9 is not supported: make an environment of Python 3.11 to 3.13: python3.13 -m"),
        ({"python": [3, 14]}, "Python 3.14 is not supported: make an environment of Python 3.11 to 3.13"),
        (
            {"attnbench": "", "error": "ModuleNotFoundError: No module named 'attnbench'"},
            rf"attnbench is not installed there: .*/python -m pip install {ROOT}$",
        ),
        ({"attnbench": "0.0.7"}, rf"its attnbench is 0.0.7, this one {__version__}: .*/python -m pip install {ROOT}$"),
        ({"error": "ImportError: no msgspec"}, r"its attnbench cannot be imported \(ImportError: no msgspec\): .* pip"),
        ({"protocol": 1}, f"its attnbench speaks protocol 1, this one {protocol.VERSION}: .*/python -m pip install"),
    ],
)  # fmt: skip
def test_an_interpreter_that_cannot_run_this_attnbench_is_refused_with_what_mends_it(
    script: Script, answer: dict[str, Any], message: str
) -> None:
    python = script(**answer)
    with pytest.raises(UsageError, match=f"^--backend-python jax={re.escape(python)}: {message}"):
        interpreters.checked([f"jax={python}"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("jax", "not NAME=PYTHON: 'jax' (try jax=/path/to/venv/bin/python)"),
        ("=/bin/sh", "not NAME=PYTHON: '=/bin/sh' (try jax=/path/to/venv/bin/python)"),
        ("jaxx=/bin/sh", "no backend 'jaxx'; did you mean 'jax'?"),
        ("jax=/none/such", "jax=/none/such: no such file: name the bin/python of a virtual environment"),
        (
            "jax=/a/python,ort:*=/b/python",
            "jax=/a/python,ort:*=/b/python: not a list: give the option once for each: --backend-python jax=/a/python "
            "--backend-python ort:*=/b/python",
        ),
        ("jax=/bin", "jax=/bin: a folder: it has no bin/python: name the bin/python of a virtual environment"),
        ("jax=/etc/passwd", "jax=/etc/passwd: not executable: name the bin/python of a virtual environment"),
    ],
)  # fmt: skip
def test_a_name_or_a_path_that_is_wrong_is_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=f"^--backend-python:? {re.escape(message)}$"):
        interpreters.parse([text])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("#!/bin/sh\necho \"Try 'ls --help' for more information.\" >&2\nexit 2\n", "exit code 2"),
        ("#!/bin/sh\necho \"ImportError: no module named 'x'\" >&2\nexit 1\n", "ImportError: no module named 'x'"),
        (f"#!/bin/sh\necho 'ImportError: {'no such module ' * 20}' >&2\nexit 3\n", "exit code 3"),
        ("#!/bin/sh\nexit 3\n", "exit code 3"),
        ("\x7fELF", "Exec format error"),
    ],
)
def test_a_program_that_is_no_interpreter_is_refused(script: Script, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(f"not a Python interpreter ({message}): name the bin/python")):
        interpreters.checked([f"jax={script(text)}"])


def test_an_interpreter_that_gives_no_answer_is_refused(monkeypatch: pytest.MonkeyPatch, script: Script) -> None:
    monkeypatch.setattr(interpreters, "PROBE_LIMIT_S", 0.1)
    python = script("#!/bin/sh\nexec sleep 60\n")
    with pytest.raises(UsageError, match=r"jax=.*: not a Python interpreter \(no answer within 0.1 s\): name the"):
        interpreters.checked([f"jax={python}"])


def test_a_folder_that_is_an_environment_names_its_interpreter(script: Script, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    python = script(name="bin/python")
    with pytest.raises(UsageError, match=f"jax={tmp_path}: a folder: name its interpreter, {python}$"):
        interpreters.parse([f"jax={tmp_path}"])


def test_a_backend_has_the_interpreter_of_its_own_name_before_that_of_its_library() -> None:
    pythons = {"ort:*": "a", "ort:gqa": "b", "openvino": "c", "jax": "d"}
    names = ("ort:gqa", "ort:mha", "openvino", "openvino:paged", "jax", "naive")
    assert [interpreters.of(name, pythons) for name in names] == ["b", "a", "c", "", "d", ""]
    assert [interpreters.of(name, {"ort": "a", "openvino:*": "b"}) for name in names[:4]] == ["a", "a", "b", "b"]


def test_an_unknown_name_lists_each_known_one_once() -> None:
    with pytest.raises(UnknownNameError) as raised:
        interpreters.parse(["quadrature=/bin/sh"])
    named = str(raised.value).partition("there are ")[2].split(", ")
    assert {"jax", "ort", "ort:gqa"} <= set(named)
    assert len(named) == len(set(named))


def test_one_name_has_one_interpreter() -> None:
    with pytest.raises(UsageError, match="--backend-python: jax twice, /bin/sh and /bin/cat: give one of them"):
        interpreters.parse(["jax=/bin/sh", "jax=/bin/cat"])


def test_the_home_directory_is_not_stored(monkeypatch: pytest.MonkeyPatch, script: Script, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    script()
    assert interpreters.checked(["jax=~/python"]) == {"jax": "~/python"}


def test_libraries_are_looked_up_where_their_arms_start(monkeypatch: pytest.MonkeyPatch, script: Script) -> None:
    monkeypatch.setattr(interpreters, "_installed", lambda module: module in ("torch", "openvino"))
    python = script()
    pythons = {"jax": python, "ort:*": python}
    assert plan.libraries("cpu", pythons) == ("openvino", "openvino:paged", "jax")
    arm = Arm(backend="zentorch", device="cpu", python=python)
    assert interpreters.missing(backends.load("zentorch"), arm) == ["zentorch"]


def test_what_another_interpreter_lacks_is_a_refusal_that_names_it(script: Script) -> None:
    """ONNX Runtime is too old there, and zentorch is not there."""
    python = script()
    request = Request(
        axes={"seq": "64", "mask": "none"}, backend="naive,ort:gqa,zentorch,jax", device="cpu:threads=1",
        backend_python=(f"ort={python}", f"zentorch={python}", f"jax={python}"),
    )  # fmt: skip
    steps: list[str] = []
    ready = sweep.prepare(request, step=steps.append)
    assert steps[0] == "waiting for the interpreters of --backend-python"
    old, absent = ready.plan.refusals
    assert (old.status, absent.status) == (Status.UNAVAILABLE,) * 2
    assert old.reason == (
        f"onnxruntime 1.20.0 in {python} is too old (needed: 1.32 or later, below 2); "
        f"install: {python} -m pip install onnxruntime==1.32.0 onnx==1.23.2"
    )
    assert absent.reason == (
        f"not installed in {python}: zentorch; install: {python} -m pip install zentorch==2.13.0.2"
    )
    arms = {arm.backend: arm.python for arm in ready.plan.arms}
    assert arms == {"naive": "", "ort:gqa": python, "zentorch": python, "jax": python}


def test_an_interpreter_of_a_backend_that_is_not_measured_is_refused(script: Script) -> None:
    request = Request(axes={"seq": "64"}, backend="naive", device="cpu", backend_python=(f"jax={script()}",))
    message = "--backend-python jax: not among the backends of this run, naive: add it to --backend"
    with pytest.raises(UsageError, match=message):
        sweep.prepare(request)


def test_an_interpreter_of_a_backend_whose_library_has_others_says_how_to_name_them(script: Script) -> None:
    request = Request(
        axes={"seq": "64"}, backend="naive,sdpa:flash,sdpa:math", device="cpu", backend_python=(f"sdpa={script()}",)
    )
    with pytest.raises(UsageError, match=r"sdpa: names one backend; sdpa:\* names sdpa:flash, sdpa:math too"):
        sweep.prepare(request)


def test_the_headline_names_the_packages_that_a_backend_has_in_another_interpreter(
    script: Script, capsys: pytest.CaptureFixture[str]
) -> None:
    python = script()
    request = Request(axes={"seq": "64"}, backend="naive,jax", device="cpu", backend_python=(f"jax={python}",))
    ready = sweep.prepare(request)
    output.headline(ready, sweep.rest(ready))
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == f"jax in {python}: torch 2.12.1, jax 0.11.0"


def test_the_report_shows_the_packages_of_each_interpreter() -> None:
    arms = (Arm(backend="jax", device="cpu", python="~/other/bin/python"), Arm(backend="naive", device="cpu"))
    environments = {
        arm.id: Environment(packages={"torch": version}) for arm, version in zip(arms, ("2.12", "2.13"), strict=True)
    }
    made = run(result([1.0] * 6), arms=arms, environments=environments)
    facts = dict(machine.page(report_data([made])).tables[0].rows)
    assert facts["software"] == "torch 2.13"
    assert facts["software of jax"] == "~/other/bin/python: torch 2.12"


def test_a_wrong_interpreter_is_one_line_of_the_command(attnbench_command: Command) -> None:
    for command in (("run", "--seq", "64"), ("verify",), ("gate", "--noop")):
        done = attnbench_command(*command, "--backend-python", "jax=/none/such")
        assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
        assert "--backend-python jax=/none/such: no such file" in done.stderr
