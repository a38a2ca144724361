"""docs/your-kernel.md: every kernel on the page is right, every field and word on it exists, every command runs."""

from __future__ import annotations

import inspect
import re
import shlex
from pathlib import Path

import pytest
import torch

from attnbench import backends, cli
from attnbench.attention.choices import Mode
from attnbench.attention.problem import FEATURES, Problem
from attnbench.backends import Layout, plugin
from attnbench.records.case import Case
from tests import oracle

TEXT = (Path(__file__).parent.parent / "docs" / "your-kernel.md").read_text()
FILES = {
    name: block
    for block in re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    for name in re.findall(r"^# (\w+\.py)$", block, re.MULTILINE)
}
COMMANDS = [
    shlex.split(line, comments=True)[1:]
    for block in re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL)
    for line in block.splitlines()
    if line.strip().startswith("attnbench")
]
PROBLEMS: tuple[dict[str, object], ...] = (
    {},
    {"mask": "causal", "seq_kv": 20},
    {"mask": "causal+window:4"},
    {"mask": "window:3:5"},
    {"mask": "padding:0.3"},
    {"kv_heads": 2},
    {"seq_q": 1, "seq_kv": 40, "kv_heads": 2, "page_size": 16},
    {"returns": "lse"},
    {"head_dim_v": 16},
    {"batch": 3, "seq_q": 5, "seq_kv": 9, "requests": "q5s7_q1s9_q2", "kv_heads": 2, "mask": "causal"},
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with every file of the page."""
    monkeypatch.chdir(tmp_path)
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    return tmp_path


def supported(file: str) -> list[tuple[backends.Backend, Case]]:
    """The kernel of a file, with each case that it runs."""
    backend = backends.load(f"{file}:attend")
    cases = [
        Case(problem=Problem(**{"seq_q": 12, "batch": 2, "heads": 4, **values}), backend=backend.name, mode=mode)
        for values in PROBLEMS
        for mode in (Mode.FWD, Mode.FWD_BWD)
    ]
    return [(backend, case) for case in cases if not backend.objections(case, "cpu")]


def check(backend: backends.Backend, case: Case) -> None:
    """Compare outputs and gradients with float64."""
    problem, swap = case.problem, backend.layout is Layout.BSHD
    values, dout = oracle.drawn(problem)
    exact = [tensor.double().requires_grad_() for tensor in values]
    expected = oracle.attend(problem, *exact)
    prepared = backend.prepare(case, "cpu")
    inputs = [tensor.transpose(1, 2).contiguous() if swap else tensor for tensor in values]
    if prepared.stored:
        inputs[1:] = [prepared.stored(tensor) for tensor in values[1:]]
    if case.mode.needs_grad:
        inputs = [tensor.requires_grad_() for tensor in inputs]
    results = prepared.call(*inputs)
    out, *rest = results if isinstance(results, tuple) else (results,)
    out = out.transpose(1, 2) if swap else out
    torch.testing.assert_close(out.double(), expected[0], rtol=0, atol=2e-5)
    assert bool(rest) == (problem.returns == "lse")
    for lse in rest:
        torch.testing.assert_close(lse.double(), expected[1], rtol=0, atol=2e-5)
    if case.mode.needs_grad:
        gradients = torch.autograd.grad(out, inputs, dout)
        for gradient, true in zip(gradients, torch.autograd.grad(expected[0], exact, dout.double()), strict=True):
            shaped = gradient.transpose(1, 2) if swap else gradient
            torch.testing.assert_close(shaped.double(), true, rtol=0, atol=5e-5)


@pytest.mark.parametrize("file", FILES)
@pytest.mark.usefixtures("folder")
def test_every_kernel_of_the_page_is_right_wherever_it_runs(file: str) -> None:
    cases = supported(file)
    assert len(cases) >= 2
    for backend, case in cases:
        check(backend, case)


def test_every_declared_feature_of_the_page_is_tried(folder: Path) -> None:
    assert folder
    for file in FILES:
        declared = backends.load(f"{file}:attend").limits["cpu"].features
        tried = {feature for _, case in supported(file) for feature in case.problem.features}
        assert declared - tried <= {"scale", "prefix", "document", "cross"}, file


@pytest.mark.usefixtures("folder")
def test_template_is_right_wherever_it_runs() -> None:
    assert cli.invoke(["new-backend", "my_kernel"]) == 0
    cases = supported("my_kernel.py")
    assert len(cases) >= 10
    for backend, case in cases:
        check(backend, case)


def test_fields_features_and_arguments_of_the_page_exist() -> None:
    problem = Problem(seq_q=4)
    fields = set(re.findall(r"`problem\.(\w+)(?:\(\))?`", TEXT))
    assert len(fields) >= 14
    assert not [name for name in fields if not hasattr(problem, name)]
    table = TEXT.partition("| feature | the kernel supports |")[2].partition("\n\n")[0]
    words = [word for row in table.splitlines()[2:] for word in re.findall(r"`(\w+)`", row.split("|")[1])]
    assert len(words) >= 14
    assert not [word for word in words if word not in FEATURES]
    table = TEXT.partition("| argument | default | meaning |")[2].partition("\n\n")[0]
    assert set(re.findall(r"^\| `(\w+)`", table, re.MULTILINE)) == set(inspect.signature(plugin.backend).parameters)


@pytest.mark.slow  # it judges no time, so it need not run alone
@pytest.mark.usefixtures("folder")
def test_every_command_of_the_page_ends_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATTNBENCH_RUN_ROUNDS", "2")
    assert len(COMMANDS) >= 9
    for command in COMMANDS:
        assert cli.invoke(command) == 0, command
