"""Run suites and marked tests with pytest: one test per case, measured in workers and reported to pytest-benchmark.

`pytest suites/ci.toml` collects the cases of a suite; `@pytest.mark.attnbench(my_kernel, seq="256,512")` runs a user's
test once for each case. The cases of one suite or one mark are measured together, in common rounds, when the first of
their tests runs. pytest loads this module at every start, so it imports attnbench only when needed.
"""

from __future__ import annotations

import os
import time
import types
from collections.abc import Sequence
from contextlib import chdir, nullcontext, suppress
from datetime import UTC, datetime
from itertools import starmap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

    from attnbench.analysis.restarts import Restarts
    from attnbench.engine.sweep import Sweep
    from attnbench.gate.judgement import GateVerdicts
    from attnbench.records.case import Case
    from attnbench.records.result import Result
    from attnbench.records.run_directory import Run

    Measured = tuple[Run, GateVerdicts | None]  # the verdicts if there is a base

MARK = """attnbench(*kernels, suite=None, **axes): run the test once for each attention case. Kernels are functions or
names of backends; axes are the options of `attnbench run` (seq="256,512", mask="causal", dtype="fp32"). The test takes
the fixture `attnbench_case` and calls its check()."""
QUIET_S = 20.0  # at most this long without a line while a source measures
SESSION = pytest.StashKey["Session"]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options that begin with --attnbench."""
    group = parser.getgroup("attnbench", "attention cases (attnbench)")
    group.addoption(
        "--attnbench-gate", metavar="RUN|NAME",
        help="Judge each case against a stored run or a named baseline, as `attnbench gate` does.",
    )  # fmt: skip
    group.addoption(
        "--attnbench-base-ref", metavar="REF",
        help="Judge each case against a commit that is measured side by side, as `attnbench gate` does.",
    )  # fmt: skip
    group.addoption(
        "--attnbench-device", metavar="LIST", default="", help="Devices; cpu:threads=1 or cuda:0 by default."
    )
    group.addoption("--attnbench-out", metavar="DIR", help="Folder for the run directories.")


def pytest_configure(config: pytest.Config) -> None:
    """Register the mark, and store the state of this session."""
    config.addinivalue_line("markers", " ".join(MARK.split()))
    config.stash[SESSION] = session = Session(config)
    if session.baseline and session.base_ref:
        raise pytest.UsageError("--attnbench-gate and --attnbench-base-ref name the base twice: give one")
    if session.gates and config.getoption("dist", "no") != "no":  # of pytest-xdist
        raise pytest.UsageError("pytest -n: a gate needs one process, for parallel ones disturb its times: add -n 0")


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> SuiteFile | None:
    """Collect a suite that is named on the command line; other TOML files are data."""
    suite = file_path.suffix == ".toml" and parent.session.isinitpath(file_path)
    return SuiteFile.from_parent(parent, path=file_path) if suite else None


class SuiteFile(pytest.Module):
    """A suite as a module with one test, which runs once for each case."""

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
    if (mark := metafunc.definition.get_closest_marker("attnbench")) is None:
        return
    if "attnbench_case" not in metafunc.fixturenames:
        raise pytest.Collector.CollectError(f"{metafunc.function.__name__}: takes no fixture attnbench_case")
    if not metafunc.config.pluginmanager.hasplugin("benchmark"):
        raise pytest.Collector.CollectError("cases need pytest-benchmark: pip install pytest-benchmark")
    source = _source(metafunc.config, mark, metafunc.function.__name__)
    params = []
    for name, target in source.targets.items():
        timed = pytest.mark.benchmark(timer=target.clock, group=target.problem)
        params.append(pytest.param(target, id=name, marks=timed))
    metafunc.parametrize("attnbench_case", params, indirect=True)


def _source(config: pytest.Config, mark: pytest.Mark, place: str) -> CaseSource:
    from attnbench.errors import AttnbenchError

    options = dict(mark.kwargs)
    suite = options.pop("suite", None)
    try:
        if mark.args:
            options["backend"] = ",".join(
                [*starmap(_backend_name, enumerate(mark.args, 1)), *filter(None, [options.get("backend")])]
            )
        options.setdefault("device", config.option.attnbench_device)
        return CaseSource(config.stash[SESSION], [suite] if suite else [], options)
    except AttnbenchError as wrong:
        raise pytest.Collector.CollectError(f"{place}: {wrong}") from None


def _backend_name(position: int, kernel: object) -> str:
    """The backend of an argument of the mark; `position` counts from 1."""
    from attnbench.backends import plugin

    return kernel if isinstance(kernel, str) else plugin.name_of(kernel, f"argument {position} of the mark attnbench")


class CollectedCase:
    """One case of a source, and the clock that passes its measured time to pytest-benchmark."""

    def __init__(self, source: CaseSource, case: Case, device: str) -> None:
        self.source, self.case, self.device = source, case, device
        self.now = 0.0

    @property
    def key(self) -> tuple[str, str]:
        return self.case.id, self.device

    @property
    def problem(self) -> str:
        """The label without the backend: the group in pytest-benchmark."""
        return self.case.label.removesuffix(f" {self.case.backend}")

    def clock(self) -> float:
        """The sum of the measured times so far, in s."""
        return self.now


class CaseSource:
    """The cases of one suite or one mark. The selected ones are measured together, once."""

    def __init__(self, session: Session, suites: Sequence[str], options: dict[str, object]) -> None:
        from attnbench import api
        from attnbench.engine import sweep
        from attnbench.gate import paired

        if session.gates:
            options = {"rounds": paired.ROUNDS, **options}
        request = paired.on_device(api.request(*suites, **options))
        self.session = session
        self.ready: Sweep = sweep.prepare(
            paired.request(request, stored=bool(session.baseline)) if session.gates else request
        )
        plan = self.ready.plan
        pairs = [(group.case(arm), arm) for group in plan.groups for arm in group.arms]
        pairs += [(refusal.case, refusal.arm) for refusal in plan.refusals]
        cases = [CollectedCase(self, case, arm.device) for case, arm in pairs]
        several = len(self.ready.devices) > 1
        self.targets = {f"{of.case.label}@{of.device}" if several else of.case.label: of for of in cases}
        self.selected: set[tuple[str, str]] = set()
        self._ended: Measured | None = None

    def measured(self, verify_only: bool, temporary: pytest.TempPathFactory) -> Measured:
        """The stored run of the selected cases, and the verdicts if there is a base."""
        if self._ended is None:
            # A fixture may have changed the directory, and kernels are named relative to that of the collection.
            with chdir(self.session.config.invocation_params.dir):
                self._ended = self.session.measure(self, verify_only, temporary)
        return self._ended

    def deselected(self, result: Result) -> bool:
        """Whether this case was deselected, so that it is not reported as missing."""
        return (result.case.id, result.arm.device) in {case.key for case in self.targets.values()} - self.selected


class Session:
    """The options of the command line, and the verdicts so far."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.baseline: str = config.option.attnbench_gate or ""
        self.base_ref: str = config.option.attnbench_base_ref or ""
        self.judged: list[tuple[Run, GateVerdicts]] = []

    @property
    def gates(self) -> bool:
        """Whether cases are judged against a base."""
        return bool(self.baseline or self.base_ref)

    def measure(self, source: CaseSource, verify_only: bool, temporary: pytest.TempPathFactory) -> Measured:
        """Measure the selected cases of a source. Raises AttnbenchError for an unknown or incomparable base."""
        import msgspec

        from attnbench.engine import sweep
        from attnbench.gate import paired, stored, trees
        from attnbench.machine import identity
        from attnbench.records import results_file, run_directory

        ready = paired.chosen(source.ready, lambda case, arm: (case.id, arm.device) in source.selected)
        settings = msgspec.structs.replace(ready.settings, verify_only=verify_only and not self.gates)
        source.ready = ready = msgspec.structs.replace(ready, settings=settings)
        judged = None
        base_run = stored.base_of(self.baseline, identity.fingerprint()[0]) if self.baseline else None
        root = Path(self.config.option.attnbench_out or temporary.mktemp("attnbench"))
        where = run_directory.new_directory(root, f"pytest-{ready.name}", ready.devices[0].text, datetime.now(UTC))
        with trees.of_ref(self.base_ref, "--attnbench-base-ref") if self.base_ref else nullcontext() as base:
            watcher = Watcher(self.config, ready, side_by_side=base is not None)
            if base:
                ended = paired.measure(ready, base, trees.head(), directory=where, observer=watcher)
                run, judged = ended.run, ended.judgement
            else:
                run = sweep.run(ready, watcher, directory=where).run
        if base_run:
            results = results_file.chosen(base_run.results, lambda result: not source.deselected(result))
            judged = stored.against(run, msgspec.structs.replace(base_run, results=results))
        self.judged += [(run, judged)] if judged else []
        return run, judged


class Watcher:
    """Print progress on pytest's terminal, because the first test of a source takes the time of all."""

    def __init__(self, config: pytest.Config, ready: Sweep, side_by_side: bool) -> None:
        from attnbench.engine import sweep

        self._terminal = config.pluginmanager.get_plugin("terminalreporter")
        capture = config.pluginmanager.get_plugin("capturemanager")
        self._shown = capture.global_and_fixture_disabled if capture else nullcontext
        self._verbose = config.get_verbosity() > 0
        self._count, self._total = 0, 0 if side_by_side else sweep.rest(ready).results  # a gate adds its results
        self._write(f"attnbench measures {ready.plan.cases} cases of {ready.name}, {ready.settings.restarts} restarts")

    def phase(self, text: str) -> None:
        """Print nothing: phases change too often for a log."""

    def more(self, count: int, why: str = "") -> None:
        self._total += count
        if why and self._verbose:
            self._write(f"  {count:+} results: {why}")

    def note(self, text: str) -> None:
        self._write(text)

    def result(self, result: Result, remaining_s: float) -> None:
        """Print one line per result if pytest is verbose, else one in QUIET_S seconds."""
        self._count += 1
        if self._verbose:
            self._write(f"  {result.status.value}  {result.case.label}")
        elif time.monotonic() > self._written + QUIET_S:
            from attnbench.units import about

            left = f", about {about(remaining_s)} left" if remaining_s >= 1 else ""
            self._write(f"  {self._count} of {self._total} results{left}")

    def _write(self, line: str) -> None:
        self._written = time.monotonic()
        if self._terminal:
            with self._shown():
                self._terminal.ensure_newline()
                self._terminal.write_line(line)


class AttentionCase:
    """The value of the fixture `attnbench_case`: one case of the mark."""

    def __init__(self, target: CollectedCase, benchmark: BenchmarkFixture, temporary: pytest.TempPathFactory) -> None:
        self._target, self._benchmark, self._temporary = target, benchmark, temporary

    @property
    def label(self) -> str:
        """`b1 h8 q256 kv256 d64 causal fp32 fwd sdpa:flash`."""
        return self._target.case.label

    @property
    def row(self) -> dict[str, Any]:
        """The columns of `attnbench.frame.COLUMNS`, in base units: `row["time_s"]`, `row["peak_bytes"]`."""
        from attnbench.analysis import rows

        return rows.rows_of(self._joined().results)[0].plain()

    def check(self) -> None:
        """Fail if the output is wrong, the kernel fails, or the gate reports a regression; report times to
        pytest-benchmark. Skip a refused case, and one that the gate cannot decide."""
        joined = self._joined()
        why = f"{joined.status.value}: {joined.worst.reason}"
        if joined.status.failed:
            from attnbench.report.terminal import failures

            with suppress(RuntimeError):  # pytest-benchmark needs a call that fails
                self._benchmark.pedantic(_raise, args=(why,))
            pytest.fail("\n".join([why, *failures.details(joined.results)]), pytrace=False)
        if joined.status is not joined.status.OK:
            pytest.skip(why)
        self._report(joined)
        self._gate()

    def _joined(self) -> Restarts:
        from attnbench.gate import evidence

        run, _ = self._measured()
        by_key = {pair.key: pair.head or pair.base for pair in evidence.pairings(run.results)}
        joined = by_key.get(self._target.key)
        if joined is None:
            pytest.skip("not measured: the run was interrupted")
        return joined

    def _measured(self) -> Measured:
        from attnbench.errors import AttnbenchError

        try:
            return self._target.source.measured(self._benchmark.disabled, self._temporary)
        except AttnbenchError as wrong:
            if hasattr(self._target.source.session.config, "workerinput"):  # the reason of an exit is lost there
                pytest.fail(f"attnbench: {wrong}", pytrace=False)
            pytest.exit(f"attnbench: {wrong}", returncode=int(wrong.exit))

    def _report(self, joined: Restarts) -> None:
        """Report one round per block: the call that pytest-benchmark times advances the clock by the measured time."""
        from attnbench.analysis import readings
        from attnbench.analysis.metrics import METRICS

        times = [seconds for sample in joined.times for seconds in readings.finite(readings.block_medians(sample))]
        left = iter(times)

        def advance() -> None:
            self._target.now += next(left, 0.0)

        self._benchmark.extra_info |= {
            "case_id": joined.case.id, "backend": joined.case.backend, "device": joined.arm.device,
            "restarts": joined.count,
            **{name: METRICS[name].compute(joined) for name in ("peak_bytes", "rms_err")},
        }  # fmt: skip
        self._benchmark.pedantic(advance, rounds=max(1, len(times)))

    def _gate(self) -> None:
        from attnbench.gate import judgement
        from attnbench.records.result import Outcome
        from attnbench.report.terminal import gate_verdicts

        _, judged = self._measured()
        every = judged.verdicts if judged else ()
        verdicts = [verdict for verdict in every if (verdict.case_id, verdict.device) == self._target.key]
        red = [verdict for verdict in verdicts if verdict.outcome in judgement.RED]
        if red:
            pytest.fail("\n".join(map(gate_verdicts.describe, red)), pytrace=False)
        undecided = [verdict for verdict in verdicts if verdict.outcome is Outcome.INCONCLUSIVE]
        if undecided:
            pytest.skip("\n".join(map(gate_verdicts.describe, undecided)))


def _raise(why: str) -> None:
    raise RuntimeError(why)


@pytest.fixture
def attnbench_case(
    request: pytest.FixtureRequest, benchmark: BenchmarkFixture, tmp_path_factory: pytest.TempPathFactory
) -> AttentionCase:
    """One case of the mark `attnbench`; its `check()` verifies, measures and judges it."""
    if not isinstance(getattr(request, "param", None), CollectedCase):
        pytest.fail("attnbench_case is for tests marked attnbench", pytrace=False)
    return AttentionCase(request.param, benchmark, tmp_path_factory)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Mark the cases that are left after -k and similar options as selected."""
    for item in session.items:
        target = item.callspec.params.get("attnbench_case") if hasattr(item, "callspec") else None
        if isinstance(target, CollectedCase):
            target.source.selected.add(target.key)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the table of the gate."""
    for run, judged in config.stash[SESSION].judged:
        from attnbench.report.terminal import gate_verdicts
        from attnbench.report.terminal.text_layout import terminal_width

        terminalreporter.section("attnbench gate")
        for line in gate_verdicts.text(run, judged, terminal_width()):
            terminalreporter.write_line(line)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail the session for cases that only base has: they have no test that could fail."""
    for _, judged in session.config.stash[SESSION].judged:
        from attnbench.records.result import Outcome

        if any(verdict.outcome is Outcome.MISSING for verdict in judged.verdicts) and not session.exitstatus:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
