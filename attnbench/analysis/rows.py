"""Results -> one row per (case, arm): the one table that every output is made from.

`rows_of` is plain Python, so that tables and JSON need no pandas; `frame` returns the same as a DataFrame.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from functools import cache, lru_cache
from typing import TYPE_CHECKING

import msgspec

from attnbench import backends, units
from attnbench.analysis.axis_meanings import AXIS_MEANINGS
from attnbench.analysis.metrics import METRICS, impossible, timers_disagree
from attnbench.analysis.ranking import Place as Place
from attnbench.analysis.ranking import places
from attnbench.analysis.restarts import Restarts, map_problems
from attnbench.analysis.roofline import NO_CEILINGS, Bound, CeilingsByDevice
from attnbench.attention.choices import Mode
from attnbench.attention.problem import Problem
from attnbench.attention.requests import parse
from attnbench.attention.scores import Score
from attnbench.records.arm import Arm
from attnbench.records.case import problem_label
from attnbench.records.result import Facts, Result, Status

if TYPE_CHECKING:
    import pandas as pd

Value = str | int | float | bool | None


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One (case, arm), its restarts joined. The fields are the keys of COLUMNS, in the same order and in base units."""

    case_id: str
    label: str
    problem: str
    arm: str
    arm_name: str
    backend: str
    device: str
    mode: Mode
    # The axes of the problem, as `axes` flattens them.
    seq_q: int
    seq_kv: int
    batch: int
    heads: int
    kv_heads: int
    head_dim: int
    head_dim_v: int
    dtype: str
    mask: str
    similarity: str
    scale: float | None
    softcap: float | None
    temperature: float | None
    bias: str
    function: str
    lengths: str
    returns: str
    weighting: str
    sinks: bool
    dropout: float
    positions: str
    scope: str
    kv_dtype: str
    autocast: str
    page_size: int
    requests: str
    kv: str
    shared_prefix: str
    status: Status
    reason: str
    restarts: int
    reference: str | None
    interval: str | None
    quotient_outside: bool | None
    noisy: bool | None
    place: Place | None
    impossible: str | None
    bound: Bound | None
    notes: str | None
    # METRICS; None where a value was not measured.
    time_s: float | None
    time_low_s: float | None
    time_high_s: float | None
    p95_s: float | None
    p99_s: float | None
    rounds: float | None
    speedup: float | None
    speedup_low: float | None
    speedup_high: float | None
    flops: int
    flops_half_causal: int
    flops_dense: int
    bytes: int
    intensity: float
    flop_per_s: float | None
    flop_per_s_half_causal: float | None
    bytes_per_s: float | None
    tokens_per_s: float | None
    peak_bytes: float | None
    total_bytes: float | None
    input_bytes: int
    output_bytes: float | None
    saved_bytes: float | None
    workspace_bytes: float | None
    predicted_bytes: float | None
    first_kept_bytes: float | None
    reserved_bytes: float | None
    outside_bytes: float | None
    roofline_s: float | None
    roofline_share: float | None
    sheet_share: float | None
    energy_j: float | None
    energy_above_idle_j: float | None
    flop_per_j: float | None
    time_wall_s: float | None
    time_events_s: float | None
    time_graph_s: float | None
    time_cupti_s: float | None
    host_s: float | None
    max_abs_err: float | None
    err_allowed: float | None
    rms_err: float | None
    err_vs_plain: float | None
    not_finite: float | None
    rel_err: float | None
    import_s: float | None
    first_call_s: float | None
    compile_s: float | None
    mask_build_s: float | None
    plan_s: float | None
    plan_layer_s: float | None
    transfer_s: float | None
    pack_s: float | None

    def value(self, name: str) -> Value:
        value: Value = getattr(self, name)
        return value

    def number(self, name: str) -> float | None:
        """The value of the column `name`, which holds numbers."""
        number: float | None = getattr(self, name)
        return number

    @property
    def tokens_kv(self) -> int:
        """Keys of the whole batch."""
        return sum(keys for _, keys in parse(self.requests)) if self.requests else self.batch * self.seq_kv

    @property
    def seconds(self) -> float:
        """`time_s` of a row that was measured."""
        assert self.time_s is not None, self.label
        return self.time_s

    @property
    def name(self) -> str:
        """The case with its arm and device, and in a report on several runs its run: no other row has this name."""
        return f"{self.problem} {self.arm_name}@{self.device}{f' ({self.run})' if self.run else ''}"

    @property
    def run(self) -> str:
        """The name of the run in a report on several runs, else empty."""
        return ""

    def plain(self) -> dict[str, Value]:
        """The row as a dict of plain values, by column."""
        place, bound = self.place and self.place.value, self.bound and self.bound.value
        enums = {"mode": self.mode.value, "status": self.status.value, "place": place, "bound": bound}
        return {**msgspec.structs.asdict(self), **enums}


class RowOfRun(Row, frozen=True, kw_only=True):
    """A row in a report on several runs. The name of its run is the last column."""

    run: str


@lru_cache(maxsize=4096)  # the arms of a problem share it, and so do runs of one suite
def axes(record: msgspec.Struct) -> Mapping[str, Value]:
    """Every field of a problem as a plain value; the fields of nested records are flattened, tuples are joined."""
    flat: dict[str, Value] = {}
    for name in _field_names(type(record)):
        value = getattr(record, name)
        if isinstance(value, msgspec.Struct):
            flat.update(axes(value))
        elif isinstance(value, tuple):
            flat[name] = "-".join(map(str, value))
        else:
            flat[name] = value.value if isinstance(value, Enum) else value
    return flat


def problem_of(row: Row) -> Problem:
    """The problem of a row."""
    return problem_from({name: row.value(name) for name in AXES})


def problem_from(values: Facts) -> Problem:
    """The problem of the values that `axes` flattened."""
    score = Score(**{name: values[name] for name in _field_names(Score)})
    rest = {name: values[name] for name in _field_names(Problem) if name not in ("score", "lengths")}
    lengths = tuple(map(int, values["lengths"].split("-"))) if values["lengths"] else ()
    return Problem(score=score, lengths=lengths, **rest)


@cache  # msgspec evaluates the annotations of a class at every call
def _field_names(kind: type[msgspec.Struct]) -> tuple[str, ...]:
    return tuple(field.name for field in msgspec.structs.fields(kind))


AXES = tuple(axes(Problem(seq_q=1)))

COLUMNS: dict[str, str] = {
    "case_id": "12 hex digits of problem, backend and mode",
    "label": "the case in words",
    "problem": "the case in words, without its backend",
    "arm": "backend, device and environment",
    "arm_name": "backend, with the copy number of an A/A control, and with what else distinguishes arms of one device",
    "backend": "name of the backend",
    "device": "device that it ran on",
    "mode": "fwd, bwd or fwd_bwd",
    **{axis: AXIS_MEANINGS[axis] for axis in AXES},
    "status": "ok if every restart that was tried is ok, else the worst",
    "reason": "why it is not ok",
    "restarts": "restarts that were measured and are joined in this row",
    "reference": "the arm that the speed-up is relative to",
    "interval": "what the 95 % interval is over: within one restart, or restarts",
    "quotient_outside": "whether the reference's time over this one lies outside the interval of the paired speed-up",
    "noisy": "whether the median block took over 1.25 times the least",
    "place": "fastest, tied with it, or behind, among the arms of its device; alone if no other shares its rounds",
    "impossible": "why the figures cannot be true; such a row is not ranked",
    "bound": "the measured ceiling that limits the case: compute, memory or exp",
    "notes": "notes: faster than a ceiling, disturbed ceilings, timers that disagree, why a figure is missing",
    **{metric.name: metric.summary + (f" ({metric.unit})" if metric.unit else "") for metric in METRICS.values()},
}


def rows_of(
    results: Sequence[Result], reference: str | None = None, ceilings: CeilingsByDevice = NO_CEILINGS,
    arms: Iterable[Arm] = (),
) -> list[Row]:  # fmt: skip
    """One row per (case, arm), in order of appearance.

    `reference` names the arm that speed-ups are relative to, in place of the run's. `ceilings` gives the roofline.
    `arms` are those of the whole sweep, beside which the name of an arm is distinct.
    """
    return map_problems(results, lambda restarts: map(_row, restarts, places(restarts)), reference, ceilings, arms)


def frame(
    results: Sequence[Result], reference: str | None = None, ceilings: CeilingsByDevice = NO_CEILINGS
) -> pd.DataFrame:
    """`rows_of` as a DataFrame with the columns of COLUMNS; what was not measured is missing."""
    return as_frame(rows_of(results, reference, ceilings))


def as_frame(rows: Sequence[Row], columns: Sequence[str] = tuple(COLUMNS)) -> pd.DataFrame:
    """Rows as a DataFrame: metrics as numbers, `noisy` as a nullable boolean, everything else as text."""
    import pandas as pd

    table = pd.DataFrame([row.plain() for row in rows], columns=list(columns))
    for name in METRICS:
        table[name] = pd.to_numeric(table[name])
    for name in ("quotient_outside", "noisy"):
        table[name] = table[name].astype("boolean")
    return table


def _row(restarts: Restarts, place: Place | None) -> Row:
    case, arm, worst = restarts.case, restarts.arm, restarts.worst
    notes = (
        restarts.faster_than_roofline, _disturbed_ceilings(restarts), timers_disagree(restarts), _missing(restarts),
        _changed_state(restarts),
    )  # fmt: skip
    values: Facts = {
        "case_id": case.id,
        "label": case.label,
        "problem": problem_label(case.problem, case.mode),
        "arm": arm.id,
        "arm_name": restarts.name,
        "backend": arm.backend,
        "device": arm.device,
        "mode": case.mode,
        **axes(case.problem),
        "status": worst.status,
        "reason": one_line(worst.reason),
        "restarts": restarts.count,
        "reference": restarts.reference if restarts.speedup else None,
        "interval": restarts.time.label if restarts.time else None,
        "quotient_outside": restarts.quotient_outside if restarts.speedup else None,
        "noisy": restarts.noisy if restarts.times else None,
        "place": place,
        "impossible": impossible(restarts) or None,
        "bound": restarts.roofline.bound if restarts.roofline else None,
        "notes": "; ".join(filter(None, notes)) or None,
        **{name: metric.formula(restarts) for name, metric in METRICS.items()},
    }
    return Row(**values)


def _disturbed_ceilings(restarts: Restarts) -> str:
    """What is doubtful about the roofline bound, where there is one."""
    disturbance = restarts.ceilings.disturbance if restarts.ceilings and restarts.roofline else ""
    return f"ceilings {disturbance}" if disturbance else ""


def _missing(restarts: Restarts) -> str:
    """Why figures that were requested are missing."""
    absent = [result.facts.get("absent", {}) for result in restarts.results]
    return "; ".join(dict.fromkeys(reason for reasons in absent for reason in reasons.values()))


def _changed_state(restarts: Restarts) -> str:
    """What a user's file changed for its whole process. Libraries change variables and filters as well: not noted."""
    if not backends.is_file(restarts.case.backend):
        return ""
    changes = dict.fromkeys(text for result in restarts.results for text in result.facts.get("changed_state", ()))
    return f"its code changed settings of the process: {'; '.join(changes)}" if changes else ""


def one_line(text: str) -> str:
    """Without line breaks and control characters: a terminal would interpret those of a kernel's message."""
    return "".join(c for c in " ".join(text.split()) if c.isprintable() or c == "\u200d")


def ranked(rows: Sequence[Row]) -> list[Row]:
    """The rows of one problem that were ranked against each other; the only one if there is one; else none."""
    compared = [row for row in rows if row.place and row.place is not Place.ALONE]
    return compared or (list(rows) if len(rows) == 1 else [])


def leaders(rows: Iterable[Row]) -> list[list[Row]]:
    """Of each problem the fastest row, or those that are tied, the fastest of them first."""
    return [tied for group in _by_problem(rows) if (tied := tied_first(group))]


def tied_first(rows: Sequence[Row]) -> list[Row]:
    """Of the rows of one problem the fastest, or those that are tied, the fastest of them first."""
    return [row for row, _ in relative_times(rows) if row.place is not Place.BEHIND]


def relative_times(rows: Sequence[Row]) -> list[tuple[Row, float]]:
    """The ranked rows of one problem, each with its time over that of the fastest, which comes first.

    By the speed-ups where all have one: these are paired by round, so no drift of the machine is in them.
    """
    compared = ranked(rows)
    if all(row.speedup for row in compared):
        slowness = [1 / (row.speedup or 1.0) for row in compared]
    else:
        slowness = [row.seconds for row in compared]
    least = min(slowness, default=1.0)
    return sorted(
        ((row, value / least) for row, value in zip(compared, slowness, strict=True)), key=lambda pair: pair[1]
    )


def failing(rows: Iterable[Row]) -> set[str]:
    """Names of arms that failed in some case: of several that are tied, the others are better named first."""
    return {row.arm_name for row in rows if row.status.failed}


def unranked(rows: Iterable[Row]) -> list[str]:
    """Names of arms that share no rounds with others that were measured on the same problem."""
    several = (row for group in _by_problem(rows) if len(group) > 1 for row in group)
    return list(dict.fromkeys(row.arm_name for row in several if row.place is Place.ALONE))


def phase(row: Row) -> str:
    """`prefill` for as many queries as keys, `decode` for one query, `requests`, else the number of queries."""
    if row.requests and row.seq_q > 1:
        return "requests"
    if row.seq_q == row.seq_kv:
        return "prefill"
    return "decode" if row.seq_q == 1 else f"{units.short(row.seq_q)} queries"


def _by_problem(rows: Iterable[Row]) -> list[list[Row]]:
    """The measured rows of each problem on each device."""
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        if row.place:
            groups.setdefault((row.problem, row.device, row.run), []).append(row)
    return list(groups.values())
