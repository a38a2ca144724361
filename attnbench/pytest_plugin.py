"""pytest runs suites and marked tests: one test a case, verified and measured in workers, told to pytest-benchmark.

`pytest suites/ci.toml` collects a suite's cases; `@pytest.mark.attnbench(my_kernel, seq="256,512")` makes a test of
one's own run for each case. The cases of one suite or one mark are measured together, in common rounds, when the first
of their tests runs. pytest loads this module at every start, so it imports nothing of ours before it is needed.
"""

from __future__ import annotations

import os
import types
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from datetime import UTC, datetime
from inspect import getsourcefile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

    from attnbench.arm import Arm
    from attnbench.case import Case
    from attnbench.gate.judgement import Judged
    from attnbench.joined import Joined
    from attnbench.result import Result
    from attnbench.store import Run
    from attnbench.suite import Cell
    from attnbench.sweep import Sweep

MARK = """attnbench(*kernels, suite=None, **axes): run the test once for each attention case. Kernels are functions or
names of backends; axes are the options of `attnbench run` (seq="256,512", mask="causal", dtype="fp32"). The test takes
the fixture `attnbench_case` and calls its check()."""
SESSION = pytest.StashKey["Session"]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options that begin with --attnbench."""
    group = parser.getgroup("attnbench", "attention cases (attnbench)")
    group.addoption(
        "--attnbench-gate", metavar="RUN|NAME",
        help="Judge each case against a stored run or a named baseline, by the rule of `attnbench gate`.",
    )  # fmt: skip
    group.addoption(
        "--attnbench-base-ref", metavar="REF",
        help="Judge each case against a commit, measured side by side, by the rule of `attnbench gate`.",
    )  # fmt: skip
    group.addoption("--attnbench-device", metavar="LIST", default="", help="cpu:threads=1 or cuda:0 by default.")
    group.addoption("--attnbench-out", metavar="DIR", help="Keep the run directories there.")


def pytest_configure(config: pytest.Config) -> None:
    """The mark is known, and what this session measures has a place."""
    config.addinivalue_line("markers", " ".join(MARK.split()))
    if config.option.attnbench_gate and config.option.attnbench_base_ref:
        raise pytest.UsageError("--attnbench-gate and --attnbench-base-ref name the base twice: give one")
    config.stash[SESSION] = Session(config)


# -- collecting --------------------------------------------------------------------------------------------------------


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> SuiteFile | None:
    """A suite that was named on the command line; others are data."""
    if file_path.suffix == ".toml" and parent.session.isinitpath(file_path):
        return SuiteFile.from_parent(parent, path=file_path)
    return None


class SuiteFile(pytest.Module):
    """A suite as a module of one test, which runs once for each case."""

    def _getobj(self) -> types.ModuleType:
        module = types.ModuleType(self.path.stem)
        module.__file__ = str(self.path)

        @pytest.mark.attnbench(suite=os.path.relpath(self.path))
        def test_attention(attnbench_case: AttentionCase) -> None:
            attnbench_case.check()

        module.test_attention = test_attention  # type: ignore[attr-defined]
        return module


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test for each case of the mark."""
    mark = metafunc.definition.get_closest_marker("attnbench")
    if mark is None:
        return
    if "attnbench_case" not in metafunc.fixturenames:
        raise pytest.Collector.CollectError(f"{metafunc.function.__name__}: takes no fixture attnbench_case")
    if not metafunc.config.pluginmanager.hasplugin("benchmark"):
        raise pytest.Collector.CollectError("cases need pytest-benchmark: pip install 'attnbench[pytest]'")
    source = _source(metafunc.config, mark, metafunc.function.__name__)
    params = []
    for name, target in source.targets.items():
        timed = pytest.mark.benchmark(timer=target.clock, group=target.problem)
        params.append(pytest.param(target, id=name, marks=timed))
    metafunc.parametrize("attnbench_case", params, indirect=True)


def _source(config: pytest.Config, mark: pytest.Mark, place: str) -> Source:
    from attnbench.errors import AttnbenchError

    options = dict(mark.kwargs)
    suite = options.pop("suite", None)
    try:
        if mark.args:
            options["backend"] = ",".join([*map(_named, mark.args), *filter(None, [options.get("backend")])])
        options.setdefault("device", config.option.attnbench_device)
        return Source(config.stash[SESSION], [suite] if suite else [], options)
    except AttnbenchError as wrong:
        raise pytest.Collector.CollectError(f"{place}: {wrong}") from None


def _named(kernel: str | Callable[..., Any]) -> str:
    """`file.py:name` of a function that a worker can import."""
    from attnbench.errors import UsageError

    if isinstance(kernel, str):
        return kernel
    name, file = getattr(kernel, "__qualname__", ""), getsourcefile(kernel) if callable(kernel) else None
    if not file or not name.isidentifier():
        raise UsageError(f"{kernel!r}: a worker imports it by its name: give a function at the top of a file")
    return f"{os.path.relpath(file)}:{name}"


# -- measuring ---------------------------------------------------------------------------------------------------------


class Target:
    """One case of a source, and the clock that tells pytest-benchmark what a worker measured."""

    def __init__(self, source: Source, case: Case, device: str) -> None:
        self.source, self.case, self.device = source, case, device
        self.now = 0.0

    @property
    def key(self) -> tuple[str, str]:
        """Case id and device."""
        return self.case.id, self.device

    @property
    def problem(self) -> str:
        """The label without the backend: what pytest-benchmark groups by."""
        return self.case.label.removesuffix(f" {self.case.backend}")

    def clock(self) -> float:
        """Seconds that this case was timed for."""
        return self.now


class Source:
    """The cases of one suite or one mark. Those that are not deselected are measured together, once."""

    def __init__(self, session: Session, suites: Sequence[str], options: dict[str, Any]) -> None:
        from attnbench import api, sweep
        from attnbench.gate import paired

        request = paired.on_device(api.request(*suites, **options))
        self.session = session
        self.ready: Sweep = sweep.ready(paired.request(request) if session.gates else request)
        found = [Target(self, group.case(arm), arm.device) for group in self.ready.plan.groups for arm in group.arms]
        found += [Target(self, one.case, one.arm.device) for one in self.ready.plan.refusals]
        several = len(self.ready.devices) > 1
        self.targets = {f"{one.case.label}@{one.device}" if several else one.case.label: one for one in found}
        self.wanted: set[tuple[str, str]] = set()
        self._ended: tuple[Run, Judged | None] | None = None

    def measured(self, verify_only: bool, temporary: pytest.TempPathFactory) -> tuple[Run, Judged | None]:
        """The stored run of the wanted cases, and what was judged, where a base was given."""
        if self._ended is None:
            self._ended = self.session.measure(self, verify_only, temporary)
        return self._ended

    def keep(self, cell: Cell, arms: Sequence[Arm]) -> list[Arm]:
        """The arms whose case is wanted there."""
        from attnbench.case import Case

        cases = [(Case(problem=cell.problem, backend=arm.backend, mode=cell.mode).id, arm.device) for arm in arms]
        return [arm for arm, key in zip(arms, cases, strict=True) if key in self.wanted]

    def deselected(self, result: Result) -> bool:
        """Whether pytest was told to leave this case out: its absence is no news."""
        left_out = {one.key for one in self.targets.values()} - self.wanted
        return (result.case.id, result.arm.device) in left_out


class Session:
    """What the command line says, and what was judged so far."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.baseline: str = config.option.attnbench_gate or ""
        self.base_ref: str = config.option.attnbench_base_ref or ""
        self.judged: list[tuple[Run, Judged]] = []

    @property
    def gates(self) -> bool:
        """Whether cases are judged against a base."""
        return bool(self.baseline or self.base_ref)

    def measure(
        self, source: Source, verify_only: bool, temporary: pytest.TempPathFactory
    ) -> tuple[Run, Judged | None]:
        """All wanted cases of a source. AttnbenchError for a base that is none, or is not comparable."""
        import msgspec

        from attnbench import host, lines, plan, sweep
        from attnbench.errors import UsageError
        from attnbench.gate import paired, stored, trees

        if self.gates and hasattr(self.config, "workerinput"):
            raise UsageError("pytest -n: processes side by side disturb each other's times: gate without it")
        ready = source.ready
        ready.asked = [(cell, wanted) for cell, arms in ready.asked if (wanted := source.keep(cell, arms))]
        ready.plan = plan.make(ready.asked, sweep.plan_terms(ready.terms))
        ready.terms = msgspec.structs.replace(ready.terms, verify_only=verify_only and not self.gates)
        judged = None
        base_run = stored.base_of(self.baseline, host.fingerprint()[0]) if self.baseline else None
        with trees.of_ref(self.base_ref) if self.base_ref else nullcontext() as base:
            where, watcher = self._directory(ready, temporary), Watcher(self.config, ready)
            if base:
                ended = paired.measure(ready, base, trees.head(), directory=where, observer=watcher)
                run, judged = ended.run, ended.judged
            else:
                run = sweep.run(ready.request, watcher, directory=where, sweep=ready).run
        if base_run:
            kept = lines.chosen(base_run.results, lambda one: not source.deselected(one))
            judged = stored.against(run, msgspec.structs.replace(base_run, results=kept))
        self.judged += [(run, judged)] if judged else []
        return run, judged

    def _directory(self, ready: Sweep, temporary: pytest.TempPathFactory) -> Path:
        """A new run directory: where it was asked for, else among pytest's temporary ones."""
        from attnbench import store

        out = self.config.option.attnbench_out
        root = Path(out) if out else temporary.mktemp("attnbench")
        return store.new_directory(root, f"pytest-{ready.name}", ready.devices[0].text, datetime.now(UTC))


class Watcher:
    """Says on pytest's terminal what is measured, since the first test of a source takes the time of all."""

    def __init__(self, config: pytest.Config, ready: Sweep) -> None:
        self._terminal = config.pluginmanager.get_plugin("terminalreporter")
        capture = config.pluginmanager.get_plugin("capturemanager")
        self._shown = capture.global_and_fixture_disabled if capture else nullcontext
        self._verbose = config.get_verbosity() > 0
        self._write(f"attnbench measures {ready.plan.cases} cases of {ready.name}, {ready.terms.launches} launches")

    def phase(self, text: str) -> None:
        """Nothing: it changes too often for a log."""

    def result(self, result: Result, remaining_s: float) -> None:
        """A line for each, where pytest is verbose."""
        if self._verbose:
            self._write(f"  {result.status.value}  {result.case.label}")

    def _write(self, line: str) -> None:
        if self._terminal:
            with self._shown():
                self._terminal.ensure_newline()
                self._terminal.write_line(line)


# -- one test ----------------------------------------------------------------------------------------------------------


class AttentionCase:
    """What a test is given: one case of its mark."""

    def __init__(self, target: Target, benchmark: BenchmarkFixture, temporary: pytest.TempPathFactory) -> None:
        self._target, self._benchmark, self._temporary = target, benchmark, temporary

    @property
    def label(self) -> str:
        """`b1 h8 q256 kv256 d64 causal fp32 fwd sdpa:flash`."""
        return self._target.case.label

    @property
    def row(self) -> dict[str, Any]:
        """The columns of `attnbench.frame.COLUMNS`, in base units: `row["time_s"]`, `row["peak_bytes"]`."""
        from attnbench import frame

        return frame.rows(self._joined().results)[0]

    def check(self) -> None:
        """Fails where the output is wrong, where the kernel fails, or where the gate says regressed; tells
        pytest-benchmark the times. Skips a case that is refused, and one that the gate leaves open."""
        joined = self._joined()
        why = f"{joined.status.value}: {joined.worst.reason}"
        if joined.status.failed:
            with suppress(RuntimeError):  # pytest-benchmark wants to see the call that failed
                self._benchmark.pedantic(_raise, args=(why,))
            pytest.fail(why, pytrace=False)
        if joined.status is not joined.status.OK:
            pytest.skip(why)
        self._tell(joined)
        self._gate()

    def _joined(self) -> Joined:
        from attnbench.gate import evidence

        run, _ = self._measured()
        found = {pair.key: pair.head or pair.base for pair in evidence.pairings(run.results)}
        joined = found.get(self._target.key)
        if joined is None:
            pytest.skip("not measured: the run was stopped before")
        return joined

    def _measured(self) -> tuple[Run, Judged | None]:
        from attnbench.errors import AttnbenchError

        try:
            return self._target.source.measured(self._benchmark.disabled, self._temporary)
        except AttnbenchError as wrong:
            pytest.exit(f"attnbench: {wrong}", returncode=int(wrong.exit))

    def _tell(self, joined: Joined) -> None:
        """One round of pytest-benchmark for each block: the call that it times moves the clock by what was measured."""
        from attnbench import stats
        from attnbench.metrics import METRICS

        times = [seconds for sample in joined.times for seconds in stats.finite(stats.block_medians(sample))]
        left = iter(times)

        def advance() -> None:
            self._target.now += next(left, 0.0)

        self._benchmark.extra_info |= {
            "case_id": joined.case.id, "backend": joined.case.backend, "device": joined.arm.device,
            "launches": joined.launches,
            **{name: METRICS[name].compute(joined) for name in ("peak_bytes", "rms_err")},
        }  # fmt: skip
        self._benchmark.pedantic(advance, rounds=max(1, len(times)))

    def _gate(self) -> None:
        from attnbench.report import gate
        from attnbench.result import Outcome

        _, judged = self._measured()
        own = [one for one in (judged.verdicts if judged else ()) if (one.case_id, one.device) == self._target.key]
        red = [one for one in own if one.outcome in gate.RED]
        if red:
            pytest.fail("\n".join(map(gate.said, red)), pytrace=False)
        undecided = [one for one in own if one.outcome is Outcome.INCONCLUSIVE]
        if undecided:
            pytest.skip("\n".join(map(gate.said, undecided)))


def _raise(why: str) -> None:
    raise RuntimeError(why)


@pytest.fixture
def attnbench_case(
    request: pytest.FixtureRequest, benchmark: BenchmarkFixture, tmp_path_factory: pytest.TempPathFactory
) -> AttentionCase:
    """One case of the mark `attnbench`; its `check()` verifies, measures and judges it."""
    if not isinstance(getattr(request, "param", None), Target):
        pytest.fail("attnbench_case is for tests marked attnbench", pytrace=False)
    return AttentionCase(request.param, benchmark, tmp_path_factory)


def pytest_collection_finish(session: pytest.Session) -> None:
    """What is left after -k and its kind is wanted."""
    for item in session.items:
        target = item.callspec.params.get("attnbench_case") if hasattr(item, "callspec") else None
        if isinstance(target, Target):
            target.source.wanted.add(target.key)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """The gate's own table."""
    for run, judged in config.stash[SESSION].judged:
        from attnbench.report import gate
        from attnbench.report.table import columns

        terminalreporter.section("attnbench gate")
        for line in gate.text(run, judged, columns()):
            terminalreporter.write_line(line)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A case that base alone has is no test that could fail; the session does."""
    for _, judged in session.config.stash[SESSION].judged:
        from attnbench.result import Outcome

        if any(one.outcome is Outcome.MISSING for one in judged.verdicts) and not session.exitstatus:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
