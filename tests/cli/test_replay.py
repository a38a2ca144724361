"""`attnbench replay`: from a trace to the answer, and what it refuses."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from attnbench import api, cli
from attnbench.analysis.traffic import TrafficSteps
from attnbench.analysis.traffic_totals import PolicyName
from attnbench.cli import running
from attnbench.engine.runner import Ending
from attnbench.engine.sweep import FinishedSweep, Request, Sweep
from attnbench.errors import UsageError
from attnbench.records import run_directory, speeds
from attnbench.records.result import Result, Status
from attnbench.studies import replay, replay_budget, replayed_steps, traffic_answer
from attnbench.suite.serving.simulation import Serving, simulate
from attnbench.suite.serving.step_cost import Rates
from tests import samples
from tests.report.canned import store
from tests.suite.test_decoder_models import GPT_OSS_20B

MODEL = {"model_type": "gpt2", "n_embd": 64, "n_head": 4, "n_layer": 3, "n_positions": 256, "vocab_size": 100}
MEASURED = ("--steps", "3", "-b", "naive,sdpa", "--rounds", "3..3", "--device", "cpu:threads=1", "--budget", "0")

TRAFFIC = "generated:requests=30:output_tokens=20:input_tokens=200"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a config and a trace of three requests."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(MODEL))
    lines = [{"arrival_s": 0.01 * n, "input_tokens": 20 + n, "output_tokens": 3} for n in range(3)]
    (tmp_path / "trace.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return tmp_path


@pytest.mark.workers
def test_a_trace_is_simulated_measured_and_answered(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["replay", "trace.jsonl", "--model", "config.json", *MEASURED, "-o", "run"]
    assert cli.invoke(command) == 0
    out, err = capsys.readouterr()
    answer = traffic_answer.read(folder / "run")
    assert answer
    assert answer.headline.split()[0] in ("naive", "sdpa")
    assert " ".join(out.split()).startswith(answer.headline)
    assert "measured in fp32; the model has bf16 (--dtype bf16)" in err
    run = api.load("run")
    assert {result.status.value for result in run.results} == {"ok"}
    assert {result.case.problem.page_size for result in run.results} == {16}
    # All layers count, and the drawn steps stand for all.
    totals = {each.backend: each.seconds.value for each in answer.totals.totals}
    fastest = min(row["time_s"] for row in run.rows() if row["backend"] == "naive")
    assert totals["naive"] > 3 * fastest * answer.steps * 0.5
    assert answer.totals.policy(PolicyName.STEP).seconds
    # The same command continues the run: nothing is measured again.
    assert cli.invoke(command) == 0
    assert len(api.load("run").results) == len(run.results)
    # Another replay is refused there.
    assert cli.invoke([*command, "--speed", "2"]) == 2
    assert "--out run: it holds the replay of trace.jsonl, config.json, " in capsys.readouterr().err
    # The report has the section.
    assert cli.invoke(["report", "run", "--pages", "traffic"]) == 0
    assert answer.headline in (folder / "run" / "report" / "report.md").read_text()


def plan_of(serving: Serving, *, count: int, **request: Any) -> replayed_steps.ReplayPlan:
    settings = replay.ReplaySettings(trace=TRAFFIC, model=Path("config.json"))
    table = replay.traffic_steps(simulate(serving).steps)
    asked = Request(device="cpu:threads=1", budget="0", **request)
    return replayed_steps.plan_replay(serving, table, asked, count=count, settings=settings)


@pytest.mark.usefixtures("folder")
def test_steps_share_the_prefixes_that_the_cache_holds_and_cascade_is_among_the_backends() -> None:
    backends = {}
    for prefix_cache in (True, False):
        settings = replay.ReplaySettings(
            trace="generated:requests=30:prefixes=2:prefix_tokens=512:input_tokens=60:output_tokens=40"
            ":requests_per_s=5000",
            model=Path("config.json"), prefix_cache=prefix_cache,
        )  # fmt: skip
        planned = plan_of(replay.serving_of(settings), count=4)
        shared = {problem.shared_prefix for step in planned.steps for problem, _ in step.layers}
        assert any(text.startswith("512:") for text in shared) is prefix_cache
        assert (planned.sharing.keys > 0) is prefix_cache
        assert planned.sharing.measured == planned.sharing.keys  # prefixes are not nested here
        backends[prefix_cache] = {arm.backend for _, arms in planned.sweep.cells for arm in arms}
    assert backends[True] - backends[False] == {"sdpa:cascade"}


def test_a_replay_is_not_resumed_as_a_suite(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tags, command = {run_directory.REPLAY_TAG: "r"}, "attnbench replay trace.jsonl --model config.json"
    store(samples.run(tags=tags, command=f"{command}\n{command} --out run"), folder)  # continued once
    assert cli.invoke(["run", "--resume", "run"]) == 2
    assert f"--resume run: it replays a trace; continue it with: {command} --out run\n" in capsys.readouterr().err


def test_a_replay_that_was_stopped_names_its_own_command(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = "attnbench replay trace.jsonl --model config.json"
    store(
        samples.run(
            samples.result([1.0] * 4, "naive"), planned=5, tags={run_directory.REPLAY_TAG: "r"}, command=command
        ),
        folder,
    )
    assert cli.invoke(["show", "run"]) == 0
    assert f"next: {command} --out run\n" in capsys.readouterr().out
    assert cli.invoke(["report", "run"]) == 0
    report = (folder / "run" / "report" / "report.md").read_text()
    assert f"{command} --out run" in report
    assert "--resume" not in report


def test_a_run_that_is_continued_draws_its_steps_by_the_rates_that_it_began_with(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, calibrated = (Rates(flop_per_s=1e11 / n, bytes_per_s=1e10 / 3) for n in (1, 7))
    serving = replay.serving_of(replay.ReplaySettings(trace=TRAFFIC, model=Path("config.json")))
    monkeypatch.setattr(replayed_steps, "measuring_rates", lambda _: begun)
    first = replayed_steps.measured_with(serving, Request())
    tags = plan_of(first, count=4).sweep.request.tags
    store(samples.run(tags=tags), folder)
    monkeypatch.setattr(replayed_steps, "measuring_rates", lambda _: calibrated)
    assert replayed_steps.measured_with(serving, Request(), Path("run")).cost.measuring == begun
    assert replayed_steps.measured_with(serving, Request(), Path("new")).cost.measuring == calibrated


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--block-size", "24"), "--block-size 24: only powers of two can be measured, as 16; or use --simulate-only"),
        (("--block-size", "0"), "--block-size: 0"),
        (("--steps", "0"), "--steps: 0"),
        (("-b", "sdpa:flsh"), "sdpa:flsh"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    options: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.invoke(["replay", "trace.jsonl", "--model", "config.json", *options]) == 2
    assert message in capsys.readouterr().err


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> tuple[replay.ReplaySettings, Serving, TrafficSteps]:
    """A replay of a published model, simulated once; each plan simulates again, up to its last step."""
    model = tmp_path_factory.mktemp("model") / "oss.json"
    model.write_text(json.dumps(GPT_OSS_20B))
    settings = replay.ReplaySettings(trace="generated:requests=60:input_tokens=1000:output_tokens=60", model=model)
    serving = replay.serving_of(settings)
    return settings, serving, replay.traffic_steps(simulate(serving).steps)


@pytest.fixture
def with_budget(
    simulated: tuple[replay.ReplaySettings, Serving, TrafficSteps], monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], replayed_steps.ReplayPlan]:
    """Plans of one replay by budget, by estimated speeds, not by those that other tests measured."""
    monkeypatch.setattr(speeds, "load", lambda _: speeds.Speeds())
    settings, serving, table = simulated

    def planned(budget: str) -> replayed_steps.ReplayPlan:
        request = Request(backend="naive", device="cpu:threads=1", budget=budget)
        return replayed_steps.plan_replay(serving, table, request, count=16, settings=settings)

    return planned


def test_the_budget_decides_how_many_of_the_drawn_steps_are_measured_and_not_which_are_drawn(
    with_budget: Callable[[str], replayed_steps.ReplayPlan],
) -> None:
    whole = with_budget("0")
    assert replay_budget.within(whole) == len(whole.steps) == 16
    seconds = [replay_budget.predicted_s(whole, count, (), speeds.Speeds()) for count in range(1, 17)]
    assert seconds == sorted(seconds)
    assert seconds[-1] == pytest.approx(whole.sweep.plan.seconds)
    part = with_budget(f"{seconds[7] + 0.01:.2f}s")
    assert replay_budget.within(part) == sum(each <= seconds[7] + 0.01 for each in seconds) >= 8
    assert part.drawn.steps.tolist() == whole.drawn.steps.tolist()
    assert (part.order, part.steps) == (whole.order, whole.steps)
    replay_budget.check(part)


def test_a_budget_that_is_too_short_for_an_answer_names_one_that_suffices(
    with_budget: Callable[[str], replayed_steps.ReplayPlan], tmp_path: Path
) -> None:
    short = with_budget("1s")
    with pytest.raises(UsageError, match=r"--budget 1.00 s: 4 drawn steps take about .*, or a smaller model") as caught:
        replay_budget.check(short)
    suggested = str(caught.value).partition("use --budget ")[2].partition(",")[0]
    replay_budget.check(with_budget(suggested))
    needed_s = replay_budget.predicted_s(short, 4, (), speeds.Speeds())
    replay_budget.check(with_budget(f"{0.51 * needed_s:.2f}s"))  # a prediction may be too high
    with pytest.raises(UsageError, match="fewer are no answer"):
        replay_budget.check(with_budget(f"{0.49 * needed_s:.2f}s"))
    # A run that is continued has measured some already.
    replay_budget.check(short, store(samples.run(), tmp_path))


def stubbed(monkeypatch: pytest.MonkeyPatch, command: Sequence[str], groups: int) -> int:
    """Invoke a replay whose run has the results of the first groups."""

    def measured(planned: Sweep, directory: Path | None, style: str) -> FinishedSweep:
        results = scripted(planned, groups)
        path = directory or Path("new")
        path.mkdir()
        unmeasured = 2 * len(planned.plan.groups) - len(results)
        run = msgspec.structs.replace(samples.run(*results), path=path)
        return FinishedSweep(run=run, ending=Ending(), unmeasured=unmeasured)

    monkeypatch.setattr(running, "measure_into", measured)
    monkeypatch.setattr(sys, "argv", ["attnbench", *command])
    monkeypatch.setattr(speeds, "load", lambda _: speeds.Speeds())
    return cli.invoke(command)


@pytest.mark.usefixtures("folder")
def test_the_command_that_measures_as_many_steps_as_intervals_need_is_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--steps", "48", "-b", "naive,sdpa", "--device", "cpu:threads=1", "--budget=2m", "--out", "run"]
    stubbed(monkeypatch, ["replay", TRAFFIC, "--model", "config.json", *options], groups=20)
    err = capsys.readouterr().err
    (line,) = (line for line in err.splitlines() if line.startswith("20 of 48 drawn steps are measured"))
    assert line.startswith("20 of 48 drawn steps are measured, and intervals need 40; that takes about ")
    assert "continue with" not in err  # one command, which suffices
    text, _, command = line.partition(": attnbench ")
    assert text.endswith(" more")
    words = shlex.split(command)
    assert words[:-2] == ["replay", TRAFFIC, "--model", "config.json", *options[:6], "--out", "run"]
    assert words[-2] == "--budget"
    assert 1 < float(words[-1].removesuffix("s")) < 300


@pytest.mark.usefixtures("folder")
def test_a_draw_that_is_too_small_for_intervals_is_repeated_with_more_steps(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["-b", "naive,sdpa", "--device", "cpu:threads=1", "--budget", "0"]
    command = ["replay", TRAFFIC, "--model", "config.json", *options]
    stubbed(monkeypatch, [*command, "--steps=16", "-o", "run"], groups=16)
    err = capsys.readouterr().err
    (line,) = (line for line in err.splitlines() if line.startswith("16 of 16 drawn steps are measured"))
    assert line.endswith(f": {shlex.join(['attnbench', *command, '--steps', '40'])}")


@pytest.mark.usefixtures("folder")
def test_nothing_is_suggested_where_no_backend_runs_any_step(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = scripted

    def wrong(sweep: Sweep, groups: int) -> list[Result]:
        failed = {"status": Status.INCORRECT, "reason": "error 1", "samples": {}}
        return [msgspec.structs.replace(result, **failed) for result in right(sweep, groups)]

    monkeypatch.setattr(sys.modules[__name__], "scripted", wrong)
    options = ["-b", "naive,sdpa", "--device", "cpu:threads=1", "--budget", "1m", "--steps", "4", "-o", "run"]
    assert stubbed(monkeypatch, ["replay", TRAFFIC, "--model", "config.json", *options], groups=4)
    out, err = capsys.readouterr()
    assert "intervals need" not in out
    assert "drawn steps are measured" not in err
    assert "--steps 40" not in err
    (reason,) = (line for line in out.splitlines() if "error 1" in line)
    assert "have no time for 4 of 4 drawn steps: incorrect: error 1" in reason


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(("options", "code"), [([], 6), (["--shard", "1/2"], 0)])
def test_a_replay_without_an_answer_does_not_exit_with_0_unless_it_is_a_shard(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], options: list[str], code: int
) -> None:
    command = ["replay", TRAFFIC, "--model", "config.json", "-b", "naive,sdpa", "--device", "cpu:threads=1"]
    assert stubbed(monkeypatch, [*command, "--steps", "48", "--budget", "0", "-o", "run", *options], groups=1) == code
    assert capsys.readouterr().out.startswith("Too few drawn steps are measured")
    assert stubbed(monkeypatch, [*command, "--steps", "48", "--budget", "0", "-o", "run2", *options], groups=20) == 0


@pytest.mark.usefixtures("folder")
def test_nothing_more_is_suggested_where_intervals_have_enough_steps(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--steps", "48", "-b", "naive,sdpa", "--device", "cpu:threads=1", "--budget", "2m", "--out", "run"]
    stubbed(monkeypatch, ["replay", TRAFFIC, "--model", "config.json", *options], groups=40)
    err = capsys.readouterr().err
    assert "drawn steps are measured, and intervals need" not in err
    assert "16 cases are not measured; continue with: attnbench replay" in err


@pytest.mark.parametrize("measured", [0, 1])
def test_a_replay_that_is_stopped_before_its_first_step_has_no_tables(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], measured: int
) -> None:
    def stopped(planned: Sweep, directory: Path, style: str) -> FinishedSweep:
        directory.mkdir()
        results = scripted(planned, measured)
        run = msgspec.structs.replace(samples.run(*results), path=directory)
        return FinishedSweep(run=run, ending=Ending(interrupted=True), unmeasured=6 - len(results))

    monkeypatch.setattr(running, "measure_into", stopped)
    assert cli.invoke(["replay", "trace.jsonl", "--model", "config.json", *MEASURED, "-o", "run"]) == 130
    out, err = capsys.readouterr()
    assert (out == "Stopped before the first step\n") is not bool(measured)
    assert ("next: attnbench report run" in err) is bool(measured)
    assert f"{6 - 2 * measured} cases are not measured; continue with: " in err
    assert (folder / "run" / traffic_answer.FILE).exists()


def scripted(sweep: Sweep, groups: int) -> list[Result]:
    """Results of the first groups in the order of measurement: sdpa takes half as long as naive."""
    return [
        msgspec.structs.replace(
            samples.result(
                [cost * group.problem.seq_kv * 1e-6] * 4, arm.backend, problem=group.problem, group=group.id
            ),
            arm=arm,
        )
        for group in sweep.plan.groups[:groups]
        for arm in group.arms
        for cost in (2.0 - (arm.backend == "sdpa"),)
    ]


@pytest.mark.usefixtures("folder")
def test_a_replay_whose_budget_ended_early_answers_from_the_steps_it_measured() -> None:
    settings = replay.ReplaySettings(
        trace="generated:requests=30:output_tokens=20:input_tokens=200", model=Path("config.json")
    )
    serving = replay.serving_of(settings)
    simulation = simulate(serving)
    planned = plan_of(serving, count=48, backend="naive,sdpa")
    answers = [
        planned.answer(scripted(planned.sweep, groups), replay.summary(simulation, serving, settings), settings)
        for groups in (48, 45, 20, 0)
    ]
    whole, part, few, none = answers
    assert none.headline == "Too few drawn steps are measured"
    assert none.cautions[0].startswith("48 drawn steps not measured yet, and the others cannot stand for them")
    assert "steps" not in whole.headline
    assert ", from 45 of 48 steps" in part.headline
    assert ", from 20 of 48 steps" in few.headline
    wide = [each.totals.totals[0].seconds for each in answers[:3]]
    assert wide[1].high / wide[1].low > wide[0].high / wide[0].low
    assert wide[2].low is None
    for each in wide[1:]:
        assert each.value == pytest.approx(wide[0].value, rel=0.3)
    # The steps that were measured since give the answer of the whole.
    results, drawn = scripted(planned.sweep, 48), part.drawn
    measured = replayed_steps.times_of(planned.steps, results, drawn.draw, drawn.table)
    remade = traffic_answer.remade(part, drawn, measured, replayed_steps.lacking(planned.steps, results))
    assert (remade.totals, remade.unmeasured) == (whole.totals, 0)
