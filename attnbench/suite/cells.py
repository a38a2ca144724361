"""Expand tables of axes to cells: the product in a stable order, without exclusions and duplicates."""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import product
from types import SimpleNamespace
from typing import NamedTuple, cast

from msgspec.structs import replace

from attnbench.attention import masks, requests, shared_prefix
from attnbench.attention.choices import Dtype, Mode
from attnbench.attention.problem import Problem
from attnbench.attention.scores import NUMBERS, Score
from attnbench.attention.terms import scaled
from attnbench.errors import ProblemError, UsageError
from attnbench.records.result import Record
from attnbench.suite.filters import Filter
from attnbench.suite.keys import AXES, exclusive
from attnbench.suite.readers import AxisValue, Values, parse_score, spell, spell_score

MAX_CELLS = 1_000_000

Fields = dict[str, AxisValue | Score]  # of a Problem


class ProblemTable(Record, frozen=True, kw_only=True):
    """One `[[problem]]`: the product of its axes, less what is excluded."""

    axes: dict[str, Values] = {}  # by name of AXES; an axis that is not given is absent
    backend: tuple[str, ...] = ()  # not an axis: all of them measure every cell
    exclude: tuple[tuple[Filter, ...], ...] = ()  # a cell that fulfils all conditions of one entry is left out
    on: str = ""  # the kind of device that the table is for; empty: any
    layers: int = 0  # of the model with this attention, which share the plan of a batch; 0: not stated
    name: str = ""
    source: str = ""
    checked: tuple[str, ...] = ()  # links to the files, at a commit, that the shapes were compared with
    unchecked: str = ""  # why they were not

    def integers(self, name: str) -> tuple[int, ...]:
        """The values of an axis of integers; empty where it is not given."""
        return cast("tuple[int, ...]", self.axes.get(name, ()))


class Suite(Record, frozen=True, kw_only=True):
    """A suite that has been read and checked."""

    name: str
    title: str = ""
    source: str = ""
    budget: str = ""  # as typed; empty: the default of the command
    gate: dict[str, object] = {}  # as written; read by the gate
    gate_file: str = ""  # which holds `gate`, for messages
    tables: tuple[ProblemTable, ...]


class Cell(NamedTuple):
    """One problem in one mode, and the backends of its table; without backends the command chooses."""

    problem: Problem
    mode: Mode
    backends: tuple[str, ...] = ()
    table: int = 0  # of the suite
    layers: int = 0  # of its table


class Impossible(NamedTuple):
    """A combination of values that is not a problem, and the reason."""

    text: str
    reason: str


def expand(suite: Suite, *, kind: str, dtype: Dtype) -> Iterator[Cell | Impossible]:
    """Every cell for this kind of device, lazily and without duplicates; `dtype` is for tables without a dtype.

    A repeated problem is yielded again only with backends that are new.
    """
    seen: dict[tuple[Problem, Mode], tuple[str, ...]] = {}
    refused: set[Impossible] = set()
    for index, table in enumerate(suite.tables):
        if table.on not in ("", kind):
            continue
        for cell in _cells(table, index, dtype):
            if isinstance(cell, Impossible):
                if cell not in refused:
                    refused.add(cell)
                    yield cell
                continue
            key, named = (cell.problem, cell.mode), cell.backends or ("auto",)
            before = seen.get(key)
            if before is None:
                seen[key] = named
                yield cell
            elif new := tuple(name for name in named if name not in before):
                seen[key] = before + new
                yield cell._replace(backends=new)


def count_cases(cells: Iterable[Cell | Impossible]) -> int:
    """The number of problems times backends; 0 unless every problem names its backends."""
    counts = [len(cell.backends) for cell in cells if isinstance(cell, Cell)]
    return sum(counts) if all(counts) else 0


def parse_shrink(text: str) -> float:
    """The value of `--shrink`; 1 if empty. Raises UsageError unless it is in (0, 1]."""
    try:
        share = float(text or 1)
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise UsageError(f"--shrink {text}: not a share above 0 and at most 1 (try 0.25)")
    return share


def shrunk(cells: Iterable[Cell | Impossible], share: float) -> Iterator[Cell | Impossible]:
    """Multiply lengths, batches and token counts of masks by `share`, each at least 1; drop duplicates."""
    seen = set()
    for cell in cells:
        small = cell if isinstance(cell, Impossible) else _small(cell, share)
        key = small if isinstance(small, Impossible) else small._replace(table=0, layers=0)
        if key not in seen:
            seen.add(key)
            yield small


def _small(cell: Cell, share: float) -> Cell | Impossible:
    problem = cell.problem
    if problem.requests:
        smaller = requests.shrunk(problem.sizes, share)
        shape = _shape_of_requests(requests.spell(smaller))
        if problem.shared_prefix:
            shape["shared_prefix"] = shared_prefix.shrunk(problem.shared_prefix, problem.sizes, smaller, share)
    else:
        shape = {name: scaled(getattr(problem, name), share) for name in ("batch", "seq_q", "seq_kv")}
    change: Callable[..., Problem] = replace
    try:
        small = change(problem, **shape, mask=masks.parse(problem.mask).shrunk(share).text)
    except ProblemError as wrong:
        return Impossible(f"{problem.mask} at seq_q={problem.seq_q}, shrunk to {share:g}", str(wrong))
    return cell._replace(problem=small)


def check(table: ProblemTable, place: str) -> None:
    """Refuse a table whose keys contradict each other or give no lengths."""
    keys = set(table.axes)
    if not keys & {"seq", "seq_q", "lengths", "requests"}:
        missing = "seq_kv needs seq_q" if "seq_kv" in keys else "no seq (or seq_q, lengths, requests)"
        raise UsageError(f"{place}: {missing}")
    if pair := exclusive(keys):
        raise UsageError(f"{place}: {pair[0]} beside {pair[1]}: the {pair[0]} give {pair[1]}; leave {pair[1]} out")
    if keys >= {"seq", "seq_q", "seq_kv"}:
        raise UsageError(f"{place}: seq beside both seq_q and seq_kv: two of the three are enough")
    if keys >= {"batch", "tokens"}:
        raise UsageError(f"{place}: batch and tokens exclude each other: tokens decides the batch")
    for field in NUMBERS:
        scores = (parse_score(str(text)) for text in table.axes.get("score", ()))
        if field in keys and any(getattr(score, field) is not None for score in scores):
            raise UsageError(f"{place}: {field} is given twice, in score and by itself")
    count = math.prod(map(len, table.axes.values()))
    if count > MAX_CELLS:
        raise UsageError(f"{place}: {count:,} cells; at most {MAX_CELLS:,}")


def _cells(table: ProblemTable, index: int, dtype: Dtype) -> Iterator[Cell | Impossible]:
    modes = [Mode(str(mode)) for mode in table.axes.get("mode", ("fwd",))]
    make: Callable[..., Problem] = Problem
    for values in _products(table, dtype):
        try:
            problem = make(**_of_rank(values))
        except ProblemError as wrong:
            # Exclusions may name impossible combinations; they read attributes only.
            combination = cast("Problem", SimpleNamespace(lengths=(), **values))
            if not all(_excluded(table, combination, mode) for mode in modes):
                yield Impossible(_text(values), str(wrong))
            continue
        for mode in modes:
            if not (table.exclude and _excluded(table, problem, mode)):
                yield Cell(problem, mode, table.backend, index, table.layers)


def _excluded(table: ProblemTable, problem: Problem, mode: Mode) -> bool:
    return any(all(term.matches(problem, mode, "", "") for term in conditions) for conditions in table.exclude)


def _products(table: ProblemTable, dtype: Dtype) -> Iterator[Fields]:
    """The fields of a Problem for every combination, the lengths varying fastest; `tp` beside them."""
    fields = [axis for axis in AXES.values() if axis.usual or axis.follows]
    axes: dict[str, Sequence[AxisValue | Score]] = {
        axis.name: table.axes.get(axis.name) or ((None,) if axis.follows else axis.read(axis.usual, axis.name))
        for axis in fields
    }
    if "requests" in table.axes and "mask" not in table.axes:
        axes["mask"] = ("causal",)  # in a server, no query sees later tokens
    axes |= {"dtype": table.axes.get("dtype", (dtype,)), "score": _scores(table)}
    shapes = _shapes(table)
    for combination in product(*axes.values()):
        values: Fields = dict(zip(axes, combination, strict=True))
        if values["kv"] and values["kv_heads"] is None:
            values["kv_heads"] = 1  # all heads share a latent cache
        values |= {axis.name: values[axis.follows] for axis in fields if axis.follows and values[axis.name] is None}
        for ranks, shape in product(table.integers("tp") or (1,), shapes):
            yield values | shape | {"tp": ranks}


def _of_rank(values: Fields) -> Fields:
    """The fields of one rank; where there are fewer key heads than ranks, each rank holds a copy of one."""
    rest = dict(values)
    ranks = cast("int", rest.pop("tp"))
    heads, kv_heads = (cast("int", rest[name]) for name in ("heads", "kv_heads"))
    if heads % ranks:
        raise ProblemError(f"heads={heads} cannot be shared out among tp={ranks} ranks")
    rest["heads"], rest["kv_heads"] = heads // ranks, max(1, kv_heads // ranks)
    return rest


def _scores(table: ProblemTable) -> tuple[Score, ...]:
    names = (*NUMBERS, "bias")
    change: Callable[..., Score] = replace
    combinations = product(table.axes.get("score", ("dot",)), *(table.axes.get(name, (None,)) for name in names))
    scores = (
        change(
            parse_score(str(text)),
            **{name: value for name, value in zip(names, values, strict=True) if value is not None},
        )
        for text, *values in combinations
    )
    return tuple(dict.fromkeys(scores))


def _shape_of_requests(text: str) -> Fields:
    """The fields of a batch of requests."""
    sizes = requests.parse(text)
    seq_q, seq_kv = map(max, zip(*sizes, strict=True))
    return {"batch": len(sizes), "seq_q": seq_q, "seq_kv": seq_kv, "requests": text}


def _shapes(table: ProblemTable) -> list[Fields]:
    """batch, requests, seq_q and seq_kv of every combination."""
    batches, totals = table.integers("batch"), table.integers("tokens")
    if texts := table.axes.get("requests") or table.axes.get("lengths"):
        shapes = [_shape_of_requests(str(text)) for text in texts]
        return [shape | {"batch": batch} for shape in shapes for batch in batches or (shape["batch"],)]
    queries = table.integers("seq_q") or table.integers("seq")
    keys = table.integers("seq_kv") or table.integers("seq")
    # A single axis of lengths is for queries and keys both, not its product with itself.
    apart = "seq_kv" in table.axes or ("seq_q" in table.axes and keys)
    pairs = list(product(queries, keys)) if apart else [(length, length) for length in queries]
    return [
        {"batch": batch, "requests": "", "seq_q": seq_q, "seq_kv": seq_kv}
        for seq_q, seq_kv in pairs
        for batch in batches or (max(1, tokens // max(seq_q, seq_kv)) for tokens in totals or (1,))
    ]


def _text(values: Fields) -> str:
    """The values of a combination, without those that most problems lack."""
    score = cast("Score", values["score"])
    shown = {name: spell(value) for name, value in values.items()} | {"score": spell_score(score), "bias": score.bias}
    quiet = {axis.name: axis.usual for axis in AXES.values() if not axis.option}
    quiet |= {"score": "dot", "requests": "", "shared_prefix": "", "kv": "", "bias": "none"}
    quiet["tp"] = "1"
    return " ".join(f"{name}={text}" for name, text in shown.items() if quiet.get(name) != text)


def parse_shard(text: str) -> Callable[[int], bool]:
    """A predicate of the number of a cell: whether it belongs to shard K of N. Sizes differ by at most one."""
    if not text:
        return lambda count: True
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise UsageError(f"--shard: not K/N: {text!r} (try 1/8, 2/8 ... 8/8)")
    shard, shards = int(match[1]) - 1, int(match[2])
    # Shifted by one in each turn: otherwise, with as many shards as lengths, one shard would get all the longest.
    return lambda count: (count + count // shards) % shards == shard
