"""Results of base and head -> what the rule decides on: effects by restart, memory, errors, support."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence

import msgspec
import numpy as np

from attnbench.analysis import readings, rows, stats
from attnbench.analysis.metrics import METRICS, impossible
from attnbench.analysis.restarts import Restarts
from attnbench.analysis.roofline import NO_CEILINGS, CeilingsByDevice
from attnbench.gate import rule, steadiness
from attnbench.gate.rule import Evidence
from attnbench.records.result import Cause, Outcome, Result, Sample, Status, Verdict

CLOCKS = ("sm_clock_hz_before", "sm_clock_hz")  # facts of a block
BASE, HEAD, CONTROL = 1, 2, 3  # copy numbers of a case's arms; the A/A control runs base a second time
MEMORY = ("peak_bytes", "saved_bytes", "workspace_bytes")
MEMORY_SHARE, MEMORY_BYTES = 0.01, 2**20
ERROR_SHARE = 0.10
# What ended before a case could be measured; such results say nothing of it.
UNREACHED: dict[Cause | None, str] = {
    Cause.BUDGET: "the budget ended before it was measured",
    Cause.NODE_LOST: "its node was lost in every try",
}


class Pairing(msgspec.Struct, kw_only=True):
    """The restarts of base, head and the A/A control for one case on one device."""

    base: Restarts | None = None
    head: Restarts | None = None
    control: Restarts | None = None

    @property
    def either(self) -> Restarts:
        """Head, or base where there is no head."""
        restarts = self.head or self.base
        assert restarts
        return restarts

    @property
    def key(self) -> tuple[str, str]:
        return self.either.case.id, self.either.arm.device

    @property
    def cut(self) -> str:
        """Why base or head was never reached; empty if both were."""
        for side in (self.base, self.head):
            if side and all(result.cause in UNREACHED for result in side.results):
                return UNREACHED[side.results[0].cause]
        return ""

    @property
    def node(self) -> str:
        """The node of a cluster that measured it; empty on one machine."""
        return next(filter(None, map(_node, self.either.results)), "")

    @property
    def timed(self) -> bool:
        """Whether base and head were both measured."""
        return bool(self.base and self.head and self.base.times and self.head.times)


def pairings(results: Iterable[Result], ceilings: CeilingsByDevice = NO_CEILINGS) -> list[Pairing]:
    """Results by case and device, in order; without what was not reached, unless an arm has nothing else.

    On a cluster, those of the node that has most of the case: nodes differ, and so may the ratio of two kernels.
    """
    cases: dict[tuple[str, str], dict[int, dict[int, Result]]] = {}
    for result in results:
        copies = cases.setdefault((result.case.id, result.arm.device), {})
        copies.setdefault(result.arm.copy, {})[result.restart] = result
    names = {BASE: "base", HEAD: "head", CONTROL: "control"}
    return [
        Pairing(
            **{
                name: Restarts(_reached(copies[copy].values(), _main_node(copies)), ceilings=ceilings.get(device))
                for copy, name in names.items()
                if copy in copies
            }
        )
        for (_, device), copies in cases.items()
    ]


def _reached(results: Collection[Result], node: str) -> list[Result]:
    of_node = [result for result in results if _node(result) in (node, "")]
    return [result for result in of_node if result.cause not in UNREACHED] or of_node or list(results)


def _main_node(copies: Mapping[int, Mapping[int, Result]]) -> str:
    """The node of a cluster with the most results of a case; the first of several such, empty on one machine."""
    nodes = Counter(_node(result) for restarts in copies.values() for result in restarts.values())
    del nodes[""]
    return max(nodes, key=lambda name: nodes[name], default="")


def _node(result: Result) -> str:
    return str(result.facts.get("node", ""))


def _in_cycles(time: Sample) -> Sample | None:
    """Times multiplied by the GPU clock around each block; None where no clock was read."""
    values: list[float | None] = []
    for block, seconds in readings.by_block(time):
        clocks = [block.facts[name] for name in CLOCKS if name in block.facts]
        if not clocks:
            return None
        hertz = sum(clocks) / len(clocks)
        values += [None if value is None else value * hertz for value in seconds]
    return msgspec.structs.replace(time, unit="1", values=tuple(values))


def effects(above: Restarts, below: Restarts, *, cycles: bool = False) -> dict[int, float]:
    """log(above / below) by restart, where both took part in the same rounds: the median over rounds.

    The value of a block is its lower quartile. On A/A runs the two together were steadiest where other processes
    disturb, and as good as any other choice where none do (docs/gate.md).
    """
    others = {result.restart: result for result in below.results}
    by_restart = {}
    for result in above.results:
        other = others.get(result.restart)
        if other is None or result.group != other.group or not {"time"} <= result.samples.keys() & other.samples.keys():
            continue
        over, under = (_in_cycles(side.samples["time"]) if cycles else side.samples["time"] for side in (result, other))
        if over is None or under is None:
            continue
        logs = stats.log_ratios(over, under, within="lower_quartile")
        if len(logs):
            by_restart[result.restart] = float(np.median(logs))
    return by_restart


def controls(pairs: Iterable[Pairing]) -> dict[str, Evidence]:
    """The A/A controls against base, by label and device."""
    evidence = (of_time(pair.base, pair.control, node=pair.node) for pair in pairs)
    return {f"{control.label}@{control.device}": control for control in evidence if control}


def of_time(
    base: Restarts | None, head: Restarts | None, tolerance: float = rule.TOLERANCE, max_margin: float | None = None,
    node: str = "",
) -> Evidence | None:  # fmt: skip
    """Head against base; None unless both were measured."""
    if not (base and head and base.time and head.time and base.status is head.status is Status.OK):
        return None
    by_restart = effects(head, base)
    if not by_restart:
        return None
    return Evidence(
        case_id=head.case.id,
        label=head.case.label,
        device=head.arm.device,
        backend=head.case.backend,
        node=node,
        base_s=base.time.value,
        head_s=head.time.value,
        effects=tuple(by_restart.values()),
        cycles=tuple(effects(head, base, cycles=True).values()),
        tolerance=tolerance,
        max_margin=max_margin,
        unusable=impossible_time(base, head) or steadiness.unsteady(base, head, by_restart, tolerance),
    )


def impossible_time(base: Restarts, head: Restarts) -> str:
    """Why the time of base or of head cannot be true, else empty."""
    sides = (("base", impossible(base)), ("head", impossible(head)))
    return next((f"{side}: {reason}" for side, reason in sides if reason), "")


def support(pair: Pairing) -> Verdict | None:
    """Broken, new, missing or not reached; None where base and head are both ok, and where neither ever was."""
    if pair.cut:
        return verdict(pair, "status", Outcome.INCONCLUSIVE, pair.cut)
    base, head = (_status(restarts) for restarts in (pair.base, pair.head))
    if head and head.failed:
        too = " (base too)" if head is base else f" (base: {base.value})" if base and base.failed else ""
        return _lost(pair, Outcome.BROKEN, f"{head.value}{too}: {_reason(pair.head)}", head)
    if base is Status.OK and head is not Status.OK:
        if head is None:
            return _lost(pair, Outcome.MISSING, "in base alone")
        return _lost(pair, Outcome.BROKEN, f"was ok, now {head.value}: {_reason(pair.head)}", head)
    if head is Status.OK and base is not Status.OK:
        return _new(pair, "in head alone" if base is None else f"base: {base.value}: {_reason(pair.base)}")
    return None


def _lost(pair: Pairing, outcome: Outcome, reason: str, head: Status | None = None) -> Verdict:
    """Broken or missing, with the time of base where it was measured."""
    time = pair.base.time if pair.base else None
    without = verdict(pair, "status", outcome, reason, head)
    return msgspec.structs.replace(without, base=time.value if time else None)


def _new(pair: Pairing, reason: str) -> Verdict:
    """New, with the time of head where it was measured."""
    time = pair.head.time if pair.head else None
    if time is None:
        return verdict(pair, "status", Outcome.NEW, reason)
    return msgspec.structs.replace(verdict(pair, "time_s", Outcome.NEW, reason), head=time.value)


def base_fails(pairs: Sequence[Pairing]) -> str:
    """The reason, where head is ok in some case and base fails in every such case; else empty.

    A case whose backend base does not have is new, not failed.
    """
    ok = [pair for pair in pairs if _status(pair.head) is Status.OK]
    if any(pair.head and pair.head.status.failed for pair in pairs):
        return ""
    failed = [pair for pair in ok if pair.base and pair.base.status.failed]
    return _reason(failed[0].base) if ok and len(failed) == len(ok) else ""


def _status(restarts: Restarts | None) -> Status | None:
    return restarts.status if restarts else None


def _reason(restarts: Restarts | None) -> str:
    return rows.one_line(restarts.worst.reason) if restarts else ""


def memory(pair: Pairing) -> list[Verdict]:
    """One verdict per part of memory. A change is one of more than 1 % and a mebibyte: bytes have no noise to test."""
    verdicts = []
    for name in MEMORY:
        base, head = (METRICS[name].compute(restarts) if restarts else None for restarts in (pair.base, pair.head))
        if base is None or head is None:
            continue
        limit = max(MEMORY_SHARE * base, MEMORY_BYTES)
        outcome = Outcome.REGRESSED if head > base + limit else Outcome.SAME
        if head < base - limit:
            outcome = Outcome.IMPROVED
        verdicts.append(_with_figures(verdict(pair, name, outcome), base, head, limit))
    return verdicts


def error_grew(pair: Pairing) -> bool:
    """Whether the rms error against float64 rose by more than 10 %: then further seeds are verified."""
    base, head = rms_error(pair.base), rms_error(pair.head)
    return base is not None and head is not None and head > (1 + ERROR_SHARE) * base


def rms_error(restarts: Restarts | None) -> float | None:
    """The rms error of the worst output; None where nothing was verified."""
    return METRICS["rms_err"].compute(restarts) if restarts else None


def accuracy(pair: Pairing, more: Sequence[tuple[float, float]]) -> Verdict | None:
    """Regressed where head's error exceeds base's by 10 % on every seed; `more`: (base, head) on further seeds."""
    base, head = rms_error(pair.base), rms_error(pair.head)
    if base is None or head is None:
        return None
    grew = error_grew(pair) and bool(more) and all(after > (1 + ERROR_SHARE) * before for before, after in more)
    reason = f"on each of {1 + len(more)} seeds" if grew else ""
    without = verdict(pair, "rms_err", Outcome.REGRESSED if grew else Outcome.SAME, reason)
    return _with_figures(without, base, head, ERROR_SHARE * base)


def _with_figures(without: Verdict, base: float, head: float, limit: float) -> Verdict:
    change, margin = (head / base - 1, limit / base) if base else (None if head else 0.0, None)
    return msgspec.structs.replace(without, base=base, head=head, change=change, margin=margin)


def verdict(
    pair: Pairing, metric: str, outcome: Outcome, reason: str = "", head_status: Status | None = None
) -> Verdict:
    """A verdict on a case, without figures."""
    restarts = pair.either
    return Verdict(
        case_id=restarts.case.id, label=restarts.case.label, device=restarts.arm.device,
        backend=restarts.case.backend, metric=metric, outcome=outcome, reason=reason, restarts=restarts.count,
        head_status=head_status,
    )  # fmt: skip
