"""`attnbench replay`: the attention batches of a server that answers a trace of requests."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from attnbench.cli import checks, options
from attnbench.cli.options import OptionGroup, option

if TYPE_CHECKING:
    from attnbench.engine.sweep import FinishedSweep, Request
    from attnbench.records.run_directory import Run
    from attnbench.studies.replay import Replay, ReplaySettings
    from attnbench.studies.replayed_steps import ReplayPlan
    from attnbench.studies.traffic_answer import TrafficAnswer

MAX_BLOCKS = 1 << 24  # above any cache; a simulation holds about 30 bytes for each


def _formats() -> Sequence[str]:
    from attnbench.suite.serving.trace import TraceFormat

    return tuple(TraceFormat)


def _gpus() -> Sequence[str]:
    from attnbench.studies.replay import gpus

    return gpus()


def _positive(text: str, flag: str) -> None:
    import math

    from attnbench.errors import UsageError

    if not 0 < float(text) < math.inf:
        raise UsageError(f"{flag}: {text}: a number above 0 (try 0.5 or 2)")


class Arrivals(OptionGroup, frozen=True, kw_only=True):
    """How the requests of the trace arrive."""

    trace_format: Annotated[
        str,
        option(
            "--trace-format", help="Format: mooncake, azure, burstgpt or attnbench; detected by default.",
            metavar="FORMAT", names=_formats, check=checks.one_of("format", _formats),
        ),
    ] = ""  # fmt: skip
    speed: Annotated[float, option(help="Divide the times of arrival.", metavar="X", check=_positive)] = 1.0
    jitter: Annotated[
        str,
        option(
            help="Delay each arrival by a random time below this one: 3s spreads the batches of Mooncake.",
            metavar="TIME", check=checks.duration,
        ),
    ] = "0"  # fmt: skip
    tokens_scale: Annotated[
        float,
        option(
            "--tokens-scale", help="Multiply lengths: 1.1 where the model needs 10 % more tokens for a text.",
            metavar="X", check=_positive,
        ),
    ] = 1.0  # fmt: skip
    trace_model: Annotated[
        str, option("--trace-model", help="Only requests to this model, as GPT-4 in BurstGPT.", metavar="TEXT")
    ] = ""
    replicas: Annotated[
        int, option(help="Servers, which take requests in turn.", metavar="N", check=checks.at_least(1))
    ] = 1


class Server(OptionGroup, frozen=True, kw_only=True):
    """The simulated server, in vLLM's words."""

    gpu: Annotated[
        str,
        option(
            help="GPU whose data sheet gives the times and the memory.", metavar="NAME", names=_gpus,
            check=checks.one_of("GPU", _gpus),
        ),
    ] = "H100 SXM"  # fmt: skip
    slowdown: Annotated[
        float, option(help="Times that a step takes longer than by the data sheet.", metavar="X", check=_positive)
    ] = 1.0
    tp: Annotated[int, option(help="GPUs that share the heads.", metavar="N", check=checks.at_least(1))] = 1
    kv_blocks: Annotated[
        int | None,
        option(
            "--kv-blocks", help="Blocks of the KV cache; by default those beside the weights in 90 % of the memory.",
            metavar="N", check=checks.at_least(1, MAX_BLOCKS),
        ),
    ] = None  # fmt: skip
    block_size: Annotated[
        int,
        option(
            "--block-size",
            help="Tokens of a block; a power of two, unless --simulate-only is given.",
            metavar="N",
            check=checks.at_least(1),
        ),
    ] = 16
    max_num_batched_tokens: Annotated[
        int | None,
        option(
            "--max-num-batched-tokens", help="Tokens of a step; by default 8192, or 2048 on a GPU below 70 GiB.",
            metavar="N", check=checks.at_least(1),
        ),
    ] = None  # fmt: skip
    max_num_seqs: Annotated[
        int | None,
        option(
            "--max-num-seqs", help="Requests of a step; by default 1024, or 256 on a GPU below 70 GiB.",
            metavar="N", check=checks.at_least(1),
        ),
    ] = None  # fmt: skip
    no_prefix_cache: Annotated[bool, option("--no-prefix-cache", help="Compute equal prefixes again.")] = False


class Sampling(OptionGroup, frozen=True, kw_only=True):
    """What is measured, and where it is stored."""

    steps: Annotated[
        int,
        option(
            help="Steps to draw, of which as many are measured as the budget leaves time for.", metavar="N",
            check=checks.at_least(1),
        ),
    ] = 64  # fmt: skip
    out: Annotated[
        Path | None,
        option(
            "--out", "-o", help="Run directory; an existing run of the same replay in it is continued.", metavar="DIR"
        ),
    ] = None
    simulate_only: Annotated[
        bool, option("--simulate-only", help="Print the mix of steps by predicted time; measure nothing.")
    ] = False


@options.with_options(
    options.backend_option("auto on a GPU, and on a CPU those that compile nothing for each batch"),
    options.DEVICE, options.BACKEND_PYTHON,
    options.DTYPE.but(help="Dtype: fp32, tf32, fp16, bf16 or fp8_e4m3; by default fp32 on a CPU, else the model's."),
    options.BUDGET.but(default="4m", help="Time limit of the measurement: 45s or 5m, 0 for no limit."),
    options.ROUNDS.but(default="5..10"), options.TIMEOUT, options.MEM_LIMIT, options.SHARD,
    options.SEED.but(help="Random seed of arrivals, of the steps that are drawn, and of inputs."),
)  # fmt: skip
def replay(
    context: typer.Context,
    request: Request,
    trace: Annotated[
        str,
        typer.Argument(
            help="Trace: a file of Mooncake, Azure, BurstGPT or attnbench, a shipped trace, or generated:requests=5k.",
            metavar="TRACE",
        ),
    ],
    model: Annotated[
        Path,
        option("--model", help="config.json of the served model: --model Llama-3.1-8B/config.json.", metavar="FILE"),
    ],
    arrivals: Arrivals,
    server: Server,
    sampling: Sampling,
    progress: options.Progress = "auto",
    json: options.Json = False,
) -> int:
    """Find the fastest attention backend for the traffic of a trace.

    Simulates the server that answers it, measures steps that are drawn by their predicted time, and prints the
    attention time of the traffic by backend, and by the best backend of each phase and of each step.
    """
    from attnbench.cli import output
    from attnbench.cli.progress import steps
    from attnbench.errors import Exit
    from attnbench.report.terminal import replay as report
    from attnbench.report.terminal.text_layout import terminal_width
    from attnbench.studies import replay as study
    from attnbench.studies import replay_budget, replayed_steps
    from attnbench.suite.serving.simulation import simulate

    settings = study.ReplaySettings(trace=trace, model=model, seed=request.seed, **_values(arrivals, server))
    serving = study.serving_of(settings)
    if not sampling.simulate_only:
        serving = replayed_steps.measured_with(serving, request, sampling.out)
    for note in serving.cost.decoder.notes:
        print(f"attnbench: note: {note}", file=sys.stderr)
    with steps("simulating") as step:
        step("simulating the server")
        simulation = simulate(serving)
    for note in study.trace_notes(serving):
        print(f"attnbench: note: {note}", file=sys.stderr)
    result = study.summary(simulation, serving, settings)
    if sampling.simulate_only:
        output.lines(report.records(result), report.lines(result, terminal_width()), json)
        return Exit.OK
    with steps("planning") as step:
        step("planning")
        planned = replayed_steps.plan_replay(
            serving, study.traffic_steps(simulation.steps), request, count=sampling.steps, settings=settings,
            out=sampling.out,
        )  # fmt: skip
        replay_budget.check(planned, sampling.out)
    shared = options.global_options(context)
    if not shared.quiet:
        _say_what_is_measured(planned, sampling, result)
    return _measure(planned, result, settings, sampling.out, shared.progress(progress), json)


def _measure(
    planned: ReplayPlan, result: Replay, settings: ReplaySettings, out: Path | None, style: str, as_json: bool
) -> int:
    """Measure the planned cases, store the answer in their run directory, and print it."""
    import msgspec

    from attnbench.cli import output, running
    from attnbench.errors import Exit
    from attnbench.report.terminal import traffic as report
    from attnbench.report.terminal.text_layout import terminal_width
    from attnbench.studies import replayed_steps, traffic_answer

    outcome = running.measure_into(planned.sweep, out, style)
    answer = planned.answer(outcome.run.results, result, settings)
    traffic_answer.write(answer, outcome.run.path)
    missing = replayed_steps.lacking(planned.steps, outcome.run.results, planned.sweep.plan.groups)
    empty = bool(outcome.unmeasured) and bool(missing.all())
    text = ["Stopped before the first step"] if empty else report.lines(answer, terminal_width())
    output.lines([msgspec.to_builtins(answer)], text, as_json)
    is_shard = bool(planned.sweep.request.shard)
    if is_shard:
        print("a shard has no answer for all steps: merge the runs of all with attnbench merge", file=sys.stderr)
    if advice := _advice(planned, outcome, answer):
        print(advice, file=sys.stderr)
    following = "" if empty else f"\nnext: attnbench report {outcome.run.path}"
    print(f"run: {outcome.run.path}{following}", file=sys.stderr)
    code = running.exit_code(outcome.run.results, outcome.ending)
    if code == Exit.OK and not (answer.policy or is_shard):
        return Exit.NOTHING_MEASURED
    return code


def _advice(planned: ReplayPlan, outcome: FinishedSweep, answer: TrafficAnswer) -> str:
    """The one command that helps: it measures what intervals need, or else the rest; empty where none does."""
    from attnbench.cli import running

    more = ""
    if not (planned.sweep.request.shard or answer.hopeless):
        more = _for_intervals(planned, outcome.run, len(planned.steps) - answer.unmeasured)
    if not outcome.unmeasured or (more and len(planned.steps) >= _needed(planned)):
        return more
    return f"{outcome.unmeasured} cases are not measured; continue with: {running.continuing(outcome.run.path)}"


def _needed(planned: ReplayPlan) -> int:
    """How many drawn steps intervals need."""
    from attnbench.analysis.traffic_interval import MIN_STEPS

    return min(MIN_STEPS, len(planned.table.kinds))


def _for_intervals(planned: ReplayPlan, run: Run, measured: int) -> str:
    """The command that measures as many steps as intervals need; empty where as many are measured."""
    import shlex

    from attnbench.cli import running
    from attnbench.studies import replay_budget
    from attnbench.units import about

    drawn, needed = len(planned.steps), _needed(planned)
    if measured >= needed:
        return ""
    words = shlex.split(running.continuing(run.path))
    left_s = replay_budget.left_s(planned, run, needed)
    if drawn < needed:  # other steps, in a run of their own
        words = running.with_value(running.with_value(words, ("--out", "-o")), ("--steps",), str(needed))
    if planned.sweep.settings.budget_s is not None:
        words = running.with_value(words, ("--budget",), replay_budget.with_margin(left_s))
    return (
        f"{measured} of {drawn} drawn steps are measured, and intervals need {needed}; that takes about "
        f"{about(left_s)}{' more' if drawn >= needed else ''}: {shlex.join(words)}"
    )


def _say_what_is_measured(planned: ReplayPlan, sampling: Sampling, result: Replay) -> None:
    """What was drawn, and what differs from the model, from the simulated server, or from what was asked for."""
    from attnbench.cli.output import case_counts, predicted
    from attnbench.engine import sweep
    from attnbench.studies import replay_budget
    from attnbench.studies.replayed_steps import shares
    from attnbench.units import counted, whole_percent

    dtype, model = planned.steps[0].layers[0][0].dtype, result.decoder.dtype
    if dtype != model:
        print(f"attnbench: note: measured in {dtype}; the model has {model} (--dtype {model})", file=sys.stderr)
    if any(device.kind == "cpu" for device in planned.sweep.devices):
        print(
            f"attnbench: note: the server is simulated on {result.gpu}, and attention is measured on a CPU: compare "
            "the backends, not their seconds with the hour",
            file=sys.stderr,
        )
    sharing = planned.sharing
    if sharing.measured < sharing.keys:
        print(
            f"attnbench: note: {whole_percent(sharing.measured / sharing.keys)} of the keys that requests share are "
            "measured as shared: where prefixes are nested in each other, a request has one of them",
            file=sys.stderr,
        )
    drawn, all_steps = len(planned.steps), len(planned.table.kinds)
    of_shared = sum(map(shares, planned.steps))
    shared = f", {of_shared} of them with shared prefixes" if of_shared else ""
    rest = sweep.rest(planned.sweep, sampling.out)
    within, needed = replay_budget.within(planned, sampling.out), _needed(planned)
    limits = [f"the budget suffices for about {within}"] if within < drawn else []
    limits += [f"intervals need {needed}"] if within < needed else []
    print(
        f"{counted(drawn, 'step')} of {all_steps:,} drawn{shared} · {case_counts(planned.sweep, rest)} · "
        f"{predicted(planned.sweep, rest.seconds)}{''.join(f'; {text}' for text in limits)}",
        file=sys.stderr,
    )


def _values(arrivals: Arrivals, server: Server) -> dict[str, Any]:
    """The fields of ReplaySettings that the options give."""
    import msgspec

    from attnbench.units import parse_seconds

    values = {**msgspec.structs.asdict(arrivals), **msgspec.structs.asdict(server)}
    values["jitter_s"] = parse_seconds(values.pop("jitter"), "--jitter")
    values["prefix_cache"] = not values.pop("no_prefix_cache")
    return values
