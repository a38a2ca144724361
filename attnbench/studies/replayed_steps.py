"""Measure the drawn steps of a simulated trace as cases of a sweep, and read their times from its results."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np

from attnbench import suite
from attnbench.analysis import readings, traffic, traffic_part
from attnbench.analysis.readings import Floats
from attnbench.analysis.restarts import Restarts, join
from attnbench.analysis.traffic import Draw, TrafficSteps
from attnbench.analysis.traffic_part import Booleans
from attnbench.analysis.traffic_totals import Measured
from attnbench.attention import requests, shared_prefix
from attnbench.attention.choices import Dtype
from attnbench.attention.problem import Problem
from attnbench.engine import sweep
from attnbench.engine.forecast import estimated_rates
from attnbench.engine.group import Group
from attnbench.engine.plan import named_backends
from attnbench.engine.sweep import Sweep
from attnbench.errors import UsageError
from attnbench.machine import identity
from attnbench.records import run_directory
from attnbench.records.result import Cause, Key, Result, Status
from attnbench.records.run_directory import Run
from attnbench.studies import traffic_answer
from attnbench.studies.replay import Replay, ReplaySettings
from attnbench.studies.traffic_answer import TrafficAnswer
from attnbench.suite.models.decoder import Decoder, DecoderLayer
from attnbench.suite.readers import spell
from attnbench.suite.serving import step_requests
from attnbench.suite.serving.simulation import Serving, requests_in
from attnbench.suite.serving.step_cost import Rates
from attnbench.suite.serving.step_requests import Grouped, Sharing, StepRequest

NAME = "replay"  # of the suite: run directories are named after it
RATES_TAG = "replay rates"  # of the run: by which its steps were drawn
DRAW_VERSION = 2  # of what is drawn and of its order: shards and parts of a run have the same
FASTEST_ON_CPU = "sdpa:flash"
CPU_BACKENDS = "naive,sdpa:math,sdpa:flash"  # that compile nothing for each batch
LATENT_BACKENDS = "naive,mla:absorbed,mla:expanded"
# What computes a batch in which these find no prefix, or layers of a kind that they refuse, as in a server.
WITHOUT_PREFIX = {"sdpa:cascade": "sdpa:flash", "flashinfer:cascade": "flashinfer", "triton:cascade": "triton"}
LATENT_CASCADE = "triton:cascade"  # the one that reads a latent cache too
FIELDS = (
    "requests",
    "shared_prefix",
    "mask",
    "heads",
    "kv_heads",
    "head_dim",
    "head_dim_v",
    "kv",
    "dtype",
    "page_size",
)


def measured_with(serving: Serving, request: sweep.Request, out: Path | None = None) -> Serving:
    """The same servers, with steps weighed by their time on the device and with the backends of the request.

    A run in `out` keeps its rates: a calibration in the meantime would draw other steps.
    """
    manifest = run_directory.read_manifest(out) if out and (out / run_directory.MANIFEST).exists() else None
    stored = manifest.tags.get(RATES_TAG) if manifest else None
    rates = msgspec.json.decode(stored, type=Rates | None) if stored else measuring_rates(request)
    once = reads_prefix_once(request, serving.cost.decoder)
    cost = msgspec.structs.replace(serving.cost, measuring=rates, prefix_once=once)
    return msgspec.structs.replace(serving, cost=cost)


def measuring_rates(request: sweep.Request) -> Rates | None:
    """What the device of the request does in a second, as calibrated, or estimated for a CPU; None: as the server."""
    device = sweep.devices_of(request.device)[0]
    dtype = request.axes.get("dtype") or ("fp32" if device.kind == "cpu" else "bf16")
    ceilings = sweep.calibrated([device.text], identity.fingerprint()[0]).get(device.text)
    if ceilings and ceilings.memory and dtype in ceilings.matmul:
        return Rates(flop_per_s=ceilings.matmul[dtype].sustained, bytes_per_s=ceilings.memory)
    if device.kind != "cpu":
        return None
    return estimated_rates(device, Dtype(dtype), FASTEST_ON_CPU)


def reads_prefix_once(request: sweep.Request, decoder: Decoder) -> bool:
    """Whether a backend of the request reads the keys that requests share once."""
    latent = any(layer.latent for layer in decoder.layers)
    names = set(named_backends(request.backend)) or {"auto"}
    if names & ({LATENT_CASCADE} if latent else set(WITHOUT_PREFIX)):
        return True
    kind = sweep.devices_of(request.device)[0].kind
    return bool(names & {"auto", "all"}) and not (latent and kind == "cpu")


class StepProblems(msgspec.Struct, frozen=True, kw_only=True):
    """One drawn step: the attention of each kind of layer, and how many layers have it."""

    layers: tuple[tuple[Problem, int], ...]
    sharing: tuple[Sharing, ...] = ()  # of each kind of layer


def problems_of(batch: Sequence[StepRequest], decoder: Decoder, *, dtype: Dtype, page_size: int) -> StepProblems:
    """The problems of one step. A layer with chunks has each part of a request in a chunk as a request of its own."""
    layers, sharing = [], []
    for layer in decoder.layers:
        parts = step_requests.chunked(batch, layer.chunk, page_size) if layer.chunk else batch
        together = step_requests.grouped(tuple(parts), page_size)
        layers.append((_problem(together, layer, dtype, page_size), layer.count))
        sharing.append(together.sharing)
    return StepProblems(layers=tuple(layers), sharing=tuple(sharing))


def _problem(batch: Grouped, layer: DecoderLayer, dtype: Dtype, page_size: int) -> Problem:
    seq_q, seq_kv = map(max, zip(*batch.sizes, strict=True))
    kv = ""
    if layer.latent:
        width, rank = layer.latent
        kv = f"latent:{rank}+{width - rank}"
    return Problem(
        batch=len(batch.sizes),
        requests=requests.spell(batch.sizes),
        shared_prefix=shared_prefix.spell(batch.prefixes) if batch.prefixes else "",
        seq_q=seq_q,
        seq_kv=seq_kv,
        heads=layer.heads,
        kv_heads=1 if layer.latent else layer.kv_heads,
        head_dim=layer.head_dim,
        head_dim_v=layer.head_dim_v,
        kv=kv,
        mask=f"causal+window:{layer.window - 1}" if layer.window else "causal",
        dtype=dtype,
        page_size=page_size,
    )


class ReplayPlan(msgspec.Struct, frozen=True, kw_only=True):
    """The steps that were drawn, and the sweep that measures them."""

    table: TrafficSteps  # every step
    drawn: Draw
    order: tuple[int, ...]  # places in the draw, in the order of measurement
    steps: tuple[StepProblems, ...]
    sweep: Sweep

    @property
    def sharing(self) -> Sharing:
        """The keys that requests share, over all layers of the drawn steps."""
        each = [
            (count * sharing.keys, count * sharing.measured)
            for step in self.steps
            for (_, count), sharing in zip(step.layers, step.sharing, strict=True)
        ]
        return Sharing(*map(sum, zip(*each, strict=True)))

    def answer(self, results: Sequence[Result], replay: Replay, settings: ReplaySettings) -> TrafficAnswer:
        """What the traffic costs, from the results of the sweep."""
        options = {
            "servers": f"{replay.replicas} of {replay.tp} x {replay.gpu}",
            "speed": f"{settings.speed:g}",
            "time of a step": f"{settings.slowdown:g} x the data sheet",
            "blocks": f"{replay.options.kv_blocks} of {replay.options.block_size} tokens",
            "tokens of a step": str(replay.options.max_num_batched_tokens),
            "requests of a step": str(replay.options.max_num_seqs),
            "prefix cache": "on" if replay.options.prefix_cache else "off",
            "steps with shared prefixes": f"{sum(map(shares, self.steps))} of {len(self.steps)}",
            "measured": f"{self.steps[0].layers[0][0].dtype} on {', '.join(each.text for each in self.sweep.devices)}",
        }
        return traffic_answer.make(
            trace=settings.trace,
            model=replay.decoder.name,
            options=options,
            seed=settings.seed,
            steps=self.table,
            drawn=self.drawn,
            measured=times_of(self.steps, results, self.drawn, self.table),
            hours=replay.simulated_s / 3600,
            layers=[step.layers for step in self.steps],
            lacking=lacking(self.steps, results, self.sweep.plan.groups),
        )


def merged(runs: Sequence[Run]) -> TrafficAnswer | None:
    """The answer of shards of one replay, from the results of all; None unless they are, with the same draws."""
    tags = (run.manifest.tags for run in runs)
    replays = {(each.get(run_directory.REPLAY_TAG), each.get(RATES_TAG)) for each in tags}
    answer = traffic_answer.read(runs[0].path)
    if answer is None or answer.drawn is None or not answer.drawn.predicted_s or len(replays) > 1:
        return None
    results: dict[Key, Result] = {}
    for result in (result for run in runs for result in run.results):
        results.setdefault(result.key, result)
    steps = [StepProblems(layers=layers) for layers in answer.drawn.layers]
    every = list(results.values())
    measured = times_of(steps, every, answer.drawn.draw, answer.drawn.table)
    return traffic_answer.remade(answer, answer.drawn, measured, lacking(steps, every))


def lacking(steps: Sequence[StepProblems], results: Iterable[Result], groups: Iterable[Group] = ()) -> Booleans:
    """Whether each drawn step has a case without a result, of these groups or of any, or one that the budget cut."""
    last = {(result.case.problem, result.arm.id): result.cause is not Cause.BUDGET for result in results}
    planned = [(group.problem, arm.id) for group in groups for arm in group.arms]
    incomplete = {problem for problem, arm in (*planned, *last) if not last.get((problem, arm))}
    reached = {problem for problem, _ in last}
    return np.array([any(each in incomplete or each not in reached for each, _ in step.layers) for step in steps])


def in_order(planned: Sweep, steps: Sequence[StepProblems], places: Iterable[int]) -> Sweep:
    """The sweep that measures the drawn steps in the order of these places, so that a part of them is a sample."""
    each = enumerate(problem for place in places for problem, _ in steps[place].layers)
    first = {problem: number for number, problem in reversed(list(each))}
    groups = sorted(planned.plan.groups, key=lambda group: (first[group.problem], group.late))
    return msgspec.structs.replace(
        planned,
        plan=msgspec.structs.replace(planned.plan, groups=tuple(groups)),
        settings=msgspec.structs.replace(planned.settings, in_order=True),
    )


def plan_replay(
    serving: Serving, table: TrafficSteps, request: sweep.Request, *, count: int, settings: ReplaySettings,
    out: Path | None = None,
) -> ReplayPlan:  # fmt: skip
    """Draw steps, and plan their cases in an order of which any part that the budget leaves time for gives an answer.

    A run of the same replay in `out` is continued. Raises UsageError for a run of another replay there, for layers or
    blocks that cannot be measured.
    """
    size = serving.options.block_size
    if size & (size - 1):
        raise UsageError(f"--block-size {size}: only powers of two can be measured, as 16; or use --simulate-only")
    dtype = Dtype(request.axes.get("dtype") or _dtype(request, serving.cost.decoder))
    tag = _tag(settings, request, dtype, count)
    _check_run(out, tag)
    drawn = traffic.draw(table, count, settings.seed)
    batches = requests_in(serving, {int(step) for step in drawn.steps})
    steps = tuple(
        problems_of(batches[int(step)], serving.cost.decoder, dtype=dtype, page_size=size) for step in drawn.steps
    )
    names = _backends(request, serving.cost.decoder, steps)
    tags = {run_directory.REPLAY_TAG: tag, RATES_TAG: msgspec.json.encode(serving.cost.measuring).decode()}
    tagged = msgspec.structs.replace(request, backend=names, tags=request.tags | tags)
    order = tuple(traffic_part.nested(drawn, table.at(drawn.steps), settings.seed).order.tolist())
    planned = in_order(plan(tagged, steps), steps, order)
    return ReplayPlan(table=table, drawn=drawn, order=order, steps=steps, sweep=planned)


def _tag(settings: ReplaySettings, request: sweep.Request, dtype: Dtype, count: int) -> str:
    """What two runs of one replay share: the trace, the model, and a hash of everything that decides the steps."""
    decides = [
        DRAW_VERSION, msgspec.to_builtins(settings, enc_hook=str), request.backend, request.device, dtype.value, count
    ]  # fmt: skip
    digest = hashlib.sha256(msgspec.json.encode(decides)).hexdigest()[:8]
    return f"{settings.trace}, {settings.model.name}, {digest}"


def _check_run(out: Path | None, tag: str) -> None:
    """Raise UsageError where the directory has a run, but not of this replay."""
    if out is None or not (out / run_directory.MANIFEST).exists():
        return
    tags = run_directory.read_manifest(out).tags
    if tags.get(run_directory.REPLAY_TAG) != tag:
        held = (
            f"the replay of {tags[run_directory.REPLAY_TAG]}"
            if run_directory.REPLAY_TAG in tags
            else "a run that is no replay"
        )
        raise UsageError(f"--out {out}: it holds {held}, and this one is {tag}: use another --out, or the same options")


def _backends(request: sweep.Request, decoder: Decoder, steps: Sequence[StepProblems]) -> str:
    """Those of the request; on a CPU those that compile nothing for each batch, and cascade where steps can use it."""
    if request.backend or any(device.kind != "cpu" for device in sweep.devices_of(request.device)):
        return request.backend
    if any(layer.latent for layer in decoder.layers):
        return LATENT_BACKENDS
    return CPU_BACKENDS + (",sdpa:cascade" if any(map(shares, steps)) else "")


def shares(step: StepProblems) -> bool:
    """Whether requests of the step share a prefix."""
    return any(problem.shared_prefix for problem, _ in step.layers)


def _dtype(request: sweep.Request, decoder: Decoder) -> str:
    """The dtype of the model, or fp32 on a CPU, where few kernels have another."""
    kinds = {device.kind for device in sweep.devices_of(request.device)}
    return "fp32" if kinds == {"cpu"} else decoder.dtype


def plan(request: sweep.Request, steps: Iterable[StepProblems]) -> Sweep:
    """The sweep that measures these steps: each problem once, with the backends and limits of the request."""
    problems = dict.fromkeys(problem for step in steps for problem, _ in step.layers)
    values = ({name: spell(_value(problem, name)) for name in FIELDS} for problem in problems)
    each = [suite.from_flags({name: text for name, text in of_problem.items() if text}) for of_problem in values]
    tables = tuple(table for of_problem in each for table in of_problem.tables)
    return sweep.prepare(request, suites=[msgspec.structs.replace(each[0], name=NAME, tables=tables)])


def _value(problem: Problem, name: str) -> object:
    value = getattr(problem, name)
    return value.value if isinstance(value, Dtype) else value


def times_of(steps: Sequence[StepProblems], results: Sequence[Result], drawn: Draw, table: TrafficSteps) -> Measured:
    """Seconds of each drawn step by backend and round: every kind of layer by its number, and planning once.

    Rounds pair the backends of a problem. A backend that was timed in a later pass is scaled by the reference, which
    was timed in both.
    """
    arms = {(arm.case.problem, arm.name): arm for arm in join(results)}
    names = tuple(dict.fromkeys(name for _, name in arms))
    rounds: dict[tuple[int, str], Floats] = {}
    plan_s = np.zeros((len(steps), len(names)))
    refusals: dict[tuple[int, str], str] = {}
    for place, step in enumerate(steps):
        for name in names:
            of_layers = [(_arm(arms, problem, name), count) for problem, count in step.layers]
            timed = [(arm, count) for arm, count in of_layers if arm and arm.times]
            if len(timed) == len(of_layers):
                plan_s[place, names.index(name)] = planned_s = sum(_plan_seconds(arm) for arm, _ in timed)
                rounds[place, name] = _step_seconds(timed) + planned_s
            else:
                refusals[place, name] = next(_reason(arm) for arm, _ in of_layers if not (arm and arm.times))
    times = np.full((len(steps), len(names), max(map(len, rounds.values()), default=1)), np.nan)
    for (place, name), values in rounds.items():
        times[place, names.index(name), : len(values)] = values
    return Measured(
        backends=names, kinds=table.kinds[drawn.steps], times_s=times, refusals=refusals, plan_s=plan_s,
        layers=sum(count for _, count in steps[0].layers),
    )  # fmt: skip


def _arm(arms: Mapping[tuple[Problem, str], Restarts], problem: Problem, name: str) -> Restarts | None:
    """The measured arm of a backend; where it refuses a batch without a prefix for it, that of its library."""
    arm = arms.get((problem, name))
    cascade = next((each for each in WITHOUT_PREFIX if each in name), "")
    if cascade and (arm is None or arm.status is Status.UNSUPPORTED):
        return arms.get((problem, name.replace(cascade, WITHOUT_PREFIX[cascade])), arm)
    return arm


def _reason(arm: Restarts | None) -> str:
    if arm is None:
        return "not measured"
    return f"{arm.status}: {arm.worst.reason}" if arm.worst.reason else str(arm.status)


def _step_seconds(layers: Iterable[tuple[Restarts, int]]) -> Floats:
    """Seconds of the calls of all layers by round, as many rounds as each kind of layer has."""
    series = [count * _rounds(arm) for arm, count in layers]
    shortest = min(map(len, series))
    seconds: Floats = np.sum([each[:shortest] for each in series], axis=0)
    return seconds


def _plan_seconds(arm: Restarts) -> float:
    """Seconds of planning a batch, which is done once for all layers of a kind."""
    planned = arm.results[0].samples.get("plan")
    return (planned and readings.location(planned.values)) or 0.0


def _rounds(arm: Restarts) -> Floats:
    """Seconds of a call by round, as if timed in the rounds of the reference."""
    timed = readings.by_round(arm.times[0])
    borrowed = arm.results[0].samples.get("reference_time")
    main = arm.reference_results[0].samples.get("time") if arm.reference_results else None
    scale = dict.fromkeys(timed, 1.0)
    if borrowed is not None and main is not None:
        beside, usual = readings.by_round(borrowed), readings.location(readings.by_round(main).values())
        scale = {number: usual / beside[number] for number in timed if number in beside and usual}
    return np.array([timed[number] * scale[number] for number in sorted(scale)])
