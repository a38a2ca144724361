"""Results -> one row a (case, arm), launches joined: the one table that every output draws from.

`rows` is plain Python, so that tables and JSON need no pandas; `frame` is the same as a DataFrame.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from enum import Enum, StrEnum
from functools import cache
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

import msgspec

from attnbench import ceilings, crew, stats
from attnbench.attention.problem import Mode, Problem
from attnbench.case import problem_label
from attnbench.ceilings import Ceilings
from attnbench.joined import Joined
from attnbench.lines import Lines
from attnbench.metrics import METRICS, impossible, timers_disagree
from attnbench.result import Result, Status
from attnbench.store import Manifest

if TYPE_CHECKING:
    import pandas as pd

Row = dict[str, Any]
Roofs = Mapping[str, Ceilings]  # by device
T = TypeVar("T")
Follow = Callable[[list[Joined]], Iterable[T]]
Group = dict[int, list[int]]  # of one problem on one device: the place of each arm's row, and its results' indices
NONE: Roofs = {}

# Within one launch an interval cannot see what differs between launches (sd 0.3 to 5 %, docs/method.md): two arms of
# one launch that are closer than this are never ranked.
TIE_FLOOR = 0.02


class Place(StrEnum):
    """How an arm did among those of its device on one problem."""

    FASTEST = "fastest"
    TIED = "tied"  # with the fastest: closer than the intervals tell apart
    BEHIND = "behind"
    ALONE = "alone"  # no other was measured


def axes(problem: Problem) -> dict[str, Any]:
    """Every field of a problem, records flattened, as plain values."""
    return _flat(problem)


def _flat(record: msgspec.Struct) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name in _names(type(record)):
        value = getattr(record, name)
        if isinstance(value, msgspec.Struct):
            flat.update(_flat(value))
        elif isinstance(value, tuple):
            flat[name] = "-".join(map(str, value))
        else:
            flat[name] = value.value if isinstance(value, Enum) else value
    return flat


@cache
def _names(kind: type[msgspec.Struct]) -> tuple[str, ...]:
    """The fields of a record. Kept, since msgspec evaluates the annotations of a class at every call."""
    return tuple(field.name for field in msgspec.structs.fields(kind))


AXES = tuple(axes(Problem(seq_q=1)))

COLUMNS: dict[str, str] = {
    "case_id": "12 hex digits of problem, backend and mode",
    "label": "the case in words",
    "problem": "the case in words, without its backend",
    "arm": "backend, device and environment",
    "arm_name": "backend and twin number",
    "backend": "who computes it",
    "device": "where",
    "mode": "fwd, bwd or fwd_bwd",
    **{axis: f"of the problem: {axis.replace('_', ' ')}" for axis in AXES},
    "status": "ok if every launch that was tried is, else the worst",
    "reason": "why it is not ok",
    "launches": "launches that were measured and are joined in this row",
    "reference": "the arm that the speed-up is against",
    "interval": "what the 95 % interval is over: within one launch, or launches",
    "noisy": "whether the median block took over 1.25 times the least",
    "place": "fastest, tied with it, or behind, among the arms of its device; alone if no other was measured",
    "impossible": "why the figures cannot be true; such a row is not ranked",
    "bound": "what binds by the measured ceilings: compute, memory or exp",
    "notes": "what a reader must know: a ceiling beaten, timers that disagree, why a figure is missing",
    **{metric.name: metric.summary + (f" ({metric.unit})" if metric.unit else "") for metric in METRICS.values()},
}


def rows(results: Sequence[Result], reference: str | None = None, roofs: Roofs = NONE) -> list[Row]:
    """One row a (case, arm), in order of appearance; `reference` names another arm for the speed-ups than the run's.

    `roofs`: ceilings of devices, for the roofline.
    """
    return each(results, _rows_of, reference, roofs)


def frame(results: Sequence[Result], reference: str | None = None, roofs: Roofs = NONE) -> pd.DataFrame:
    """`rows` as a DataFrame with the columns of COLUMNS; not measured is missing."""
    return table(rows(results, reference, roofs))


def table(made: Sequence[Row], columns: Sequence[str] = tuple(COLUMNS)) -> pd.DataFrame:
    """Rows as a DataFrame: numbers as numbers, `noisy` as a nullable boolean, all else as text."""
    import pandas as pd

    held = pd.DataFrame(made, columns=list(columns))
    for name in METRICS:
        held[name] = pd.to_numeric(held[name])
    held["noisy"] = held["noisy"].astype("boolean")
    return held


def roofs_of(manifest: Manifest) -> Roofs:
    """The ceilings of a run's devices: those that its manifest holds, else what was calibrated there since."""
    found: dict[str, Ceilings] = dict(manifest.ceilings)
    for arm in manifest.arms:
        environment = manifest.environments.get(arm.id)
        if arm.device not in found and environment:
            torch = environment.packages.get("torch", "")
            if one := ceilings.load(manifest.fingerprint, arm.device, torch):
                found[arm.device] = one
    return found


def join(results: Sequence[Result], reference: str | None = None, roofs: Roofs = NONE) -> list[Joined]:
    """The launches of each (case, arm) beside its reference arm's. Of several lines with one key the last counts."""
    return each(results, lambda arms: arms, reference, roofs)


def each(results: Sequence[Result], follow: Follow[T], reference: str | None = None, roofs: Roofs = NONE) -> list[T]:
    """What `follow` makes of the arms that one device has on one problem, one thing of each; in order of appearance.

    Of results that are not held in memory, those of one problem on one device are there at a time,
    and all cores share the work.
    """
    heads = results.heads if isinstance(results, Lines) else results
    problems: dict[tuple[Problem, Mode, str], Group] = {}
    order: dict[tuple[Problem, Mode, str], int] = {}
    for index in {(head.case, head.arm.id, head.launch): index for index, head in enumerate(heads)}.values():
        case, arm = heads[index].case, heads[index].arm
        group = problems.setdefault((case.problem, case.mode, arm.device), {})
        place = order.setdefault((case.problem, case.mode, arm.id), len(order))
        group.setdefault(place, []).append(index)
    known = {head.arm.device: str(head.facts["reference"]) for head in heads if "reference" in head.facts}
    work = _Work(results, follow, reference, known, roofs)
    found = crew.share(work.of, list(problems.values()), pooled=isinstance(results, Lines))
    made: list[Any] = [None] * len(order)
    for group, values in zip(problems.values(), found, strict=True):
        for place, value in zip(group, values, strict=True):
            made[place] = value
    return made


class _Work(NamedTuple, Generic[T]):
    """What one problem needs to be followed."""

    results: Sequence[Result]
    follow: Follow[T]
    reference: str | None
    known: Mapping[str, str]  # the reference arm's id of each device, as the results themselves name it
    roofs: Roofs

    def of(self, group: Group) -> list[T]:
        """For each arm of one problem on one device."""
        launches = [[self.results[index] for index in indices] for indices in group.values()]
        device = launches[0][0].arm.device
        partner: Sequence[Result] = ()
        for own in launches:
            arm = own[0].arm
            if arm.name == self.reference if self.reference else arm.id == self.known.get(device):
                partner = own
        return list(self.follow([Joined(own, partner, self.roofs.get(device)) for own in launches]))


def _rows_of(arms: Sequence[Joined]) -> Iterator[Row]:
    return (_row(one, place) for one, place in zip(arms, _places(arms), strict=True))


def _row(joined: Joined, place: Place | None) -> Row:
    case, arm, worst = joined.case, joined.arm, joined.worst
    return {
        "case_id": case.id,
        "label": case.label,
        "problem": problem_label(case.problem, case.mode),
        "arm": arm.id,
        "arm_name": arm.name,
        "backend": arm.backend,
        "device": arm.device,
        "mode": case.mode.value,
        **axes(case.problem),
        "status": worst.status.value,
        "reason": one_line(worst.reason),
        "launches": joined.launches,
        "reference": joined.reference if joined.speedup else None,
        "interval": joined.time.label if joined.time else None,
        "noisy": joined.noisy if joined.times else None,
        "place": place.value if place else None,
        "impossible": impossible(joined) or None,
        "bound": joined.roof.bound.value if joined.roof else None,
        "notes": "; ".join(filter(None, (joined.beyond_roof, timers_disagree(joined), _absent(joined)))) or None,
        **{name: metric.compute(joined) for name, metric in METRICS.items()},
    }


def _absent(joined: Joined) -> str:
    """Why figures that were asked for are missing."""
    return "; ".join(
        dict.fromkeys(text for result in joined.results for text in result.facts.get("absent", {}).values())
    )


def one_line(text: str) -> str:
    """Without line breaks and control characters, which a kernel's message may hold and a terminal would obey."""
    return "".join(c for c in " ".join(text.split()) if c.isprintable() or c == "\u200d")


def _places(arms: Sequence[Joined]) -> list[Place | None]:
    """Of the arms of one device on one problem."""
    rivals = [one for one in arms if one.status is Status.OK and one.time and not impossible(one)]
    places = dict(zip(map(id, rivals), _rank(rivals), strict=True))
    return [places.get(id(one)) for one in arms]


def _rank(rivals: Sequence[Joined]) -> list[Place]:
    if len(rivals) < 2:
        return [Place.ALONE] * len(rivals)
    best = min(rivals, key=_time)
    level = [one is not best and not _separated(best, one) for one in rivals]
    first = Place.TIED if any(level) else Place.FASTEST
    return [
        first if one is best else Place.TIED if tied else Place.BEHIND for one, tied in zip(rivals, level, strict=True)
    ]


def _time(joined: Joined) -> float:
    assert joined.time
    return joined.time.value


def _separated(best: Joined, other: Joined) -> bool:
    """Whether `best` is faster beyond doubt; in another pass, also in relation to the reference arm."""
    floor = 1 + (TIE_FLOOR if min(best.launches, other.launches) == 1 else 0.0)
    ratios = [best.ratio_to(other)]
    if ratios[0] and ratios[0].method is stats.Method.BOUNDS and best.speedup and other.speedup:
        ratios.append(stats.unpaired_ratio(best.speedup, other.speedup))
    return all(ratio is not None and ratio.low is not None and ratio.low > floor for ratio in ratios)
