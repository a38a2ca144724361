"""Tables of axes -> cells: the product in a stable order, less exclusions and doubles; what is no problem is said."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import product
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

from msgspec.structs import replace

from attnbench.attention.problem import Autocast, Dtype, KvDtype, Mode, Positions, Problem, Returns
from attnbench.attention.scores import NUMBERS, Score
from attnbench.errors import ProblemError, UsageError
from attnbench.result import Record
from attnbench.suite.filters import Filter
from attnbench.suite.keys import parse_score, spell, spell_score

MOST_CELLS = 1_000_000
DEFAULT_MASKS = ("none", "causal")


class Table(Record, frozen=True, kw_only=True):
    """One `[[problem]]`: the product of its axes, less what is excluded. An empty axis is one that was not given."""

    seq: tuple[int, ...] = ()  # seq_q and seq_kv; where one of them is given beside it, the other
    seq_q: tuple[int, ...] = ()
    seq_kv: tuple[int, ...] = ()
    batch: tuple[int, ...] = ()
    tokens: tuple[int, ...] = ()  # batch x the longer of seq_q and seq_kv; batch is floored, at least 1
    heads: tuple[int, ...] = ()
    kv_heads: tuple[int, ...] = ()
    head_dim: tuple[int, ...] = ()
    head_dim_v: tuple[int, ...] = ()
    dtype: tuple[Dtype, ...] = ()
    mask: tuple[str, ...] = ()
    score: tuple[str, ...] = ()
    scale: tuple[float | None, ...] = ()
    softcap: tuple[float | None, ...] = ()
    temperature: tuple[float | None, ...] = ()
    bias: tuple[str, ...] = ()
    weighting: tuple[str, ...] = ()
    sinks: tuple[bool, ...] = ()
    dropout: tuple[float, ...] = ()
    positions: tuple[Positions, ...] = ()
    scope: tuple[str, ...] = ()
    kv_dtype: tuple[KvDtype, ...] = ()
    autocast: tuple[Autocast, ...] = ()
    page_size: tuple[int, ...] = ()
    tp: tuple[int, ...] = ()  # ranks of tensor parallelism: the heads of one of them
    lengths: tuple[tuple[int, ...], ...] = ()
    returns: tuple[Returns, ...] = ()
    mode: tuple[Mode, ...] = ()
    backend: tuple[str, ...] = ()  # no axis: all of them measure every cell
    exclude: tuple[tuple[Filter, ...], ...] = ()  # a cell that fulfils all conditions of one entry is left out
    on: str = ""  # the kind of device that the table is for; empty: any
    name: str = ""
    source: str = ""
    check: bool = False  # nobody has compared these shapes with the source yet


class Suite(Record, frozen=True, kw_only=True):
    """What is to be measured, ready to expand."""

    name: str
    title: str = ""
    source: str = ""
    budget: str = ""  # as typed; empty: the default of the command
    gate: dict[str, Any] = {}  # as written; read by the gate
    tables: tuple[Table, ...]


class Cell(NamedTuple):
    """One problem in one mode, and the backends that its table names; none named is the choice of the command."""

    problem: Problem
    mode: Mode
    backends: tuple[str, ...] = ()
    table: int = 0  # of the suite


class Impossible(NamedTuple):
    """A combination of values that is no problem, and why."""

    text: str
    reason: str


def expand(suite: Suite, *, kind: str, dtype: Dtype, shard: str = "") -> Iterator[Cell | Impossible]:
    """Every cell for that kind of device, lazily; `dtype` is for tables that name none.

    `shard`, as `3/8`, is one part of eight: together they are the suite, and no two have a cell in common.
    """
    mine = _shard(shard)
    return (cell for count, cell in enumerate(_distinct(suite, kind, dtype)) if mine(count))


def check(table: Table, place: str) -> None:
    """Refuse a table whose keys contradict each other or give no lengths."""
    given = {name for name in table.__struct_fields__ if getattr(table, name)}
    if not given & {"seq", "seq_q", "lengths"}:
        raise UsageError(f"{place}: " + ("seq_kv needs seq_q" if "seq_kv" in given else "no seq (or seq_q, lengths)"))
    if given >= {"seq", "seq_q", "seq_kv"}:
        raise UsageError(f"{place}: seq beside both seq_q and seq_kv: two of the three are enough")
    if given >= {"batch", "tokens"}:
        raise UsageError(f"{place}: batch and tokens exclude each other: tokens decides the batch")
    for field in NUMBERS:
        if field in given and any(getattr(parse_score(text), field) is not None for text in table.score):
            raise UsageError(f"{place}: {field} is given twice, in score and by itself")
    count = math.prod(len(getattr(table, name)) for name in given - _NO_AXES)
    if count > MOST_CELLS:
        raise UsageError(f"{place}: {count:,} cells; at most {MOST_CELLS:,}")


_NO_AXES = {"backend", "exclude", "on", "name", "source", "check"}


def _distinct(suite: Suite, kind: str, dtype: Dtype) -> Iterator[Cell | Impossible]:
    """Cells without doubles: of a problem that stands twice, the second time only backends that are new."""
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


def _cells(table: Table, index: int, dtype: Dtype) -> Iterator[Cell | Impossible]:
    modes = table.mode or (Mode.FWD,)
    for values in _products(table, dtype):
        try:
            problem = Problem(**_of_rank(values))
        except ProblemError as wrong:
            # Exclusions may name just these; they look at attributes alone.
            asked = cast(Problem, SimpleNamespace(**values))
            if not all(_excluded(table, asked, mode) for mode in modes):
                yield Impossible(_text(values), str(wrong))
            continue
        for mode in modes:
            if not (table.exclude and _excluded(table, problem, mode)):
                yield Cell(problem, mode, table.backend, index)


def _excluded(table: Table, problem: Problem, mode: Mode) -> bool:
    return any(all(one.matches(problem, mode, "", "") for one in conditions) for conditions in table.exclude)


# Axes that are a field of Problem by the same name, and the value of a table that does not name them.
_PLAIN: Mapping[str, Any] = {
    "weighting": "softmax",
    "sinks": False,
    "dropout": 0.0,
    "positions": Positions.NONE,
    "scope": "core",
    "kv_dtype": KvDtype.SAME,
    "autocast": Autocast.NONE,
    "page_size": 0,
}


def _products(table: Table, dtype: Dtype) -> Iterator[dict[str, Any]]:
    """The fields of a Problem for every combination, the lengths varying fastest."""
    names = ("dtype", "heads", "kv_heads", "head_dim", "head_dim_v", "mask", "score", "returns", *_PLAIN)
    axes: tuple[tuple[Any, ...], ...] = (
        table.dtype or (dtype,),
        table.heads or (8,),
        table.kv_heads or (None,),
        table.head_dim or (64,),
        table.head_dim_v or (None,),
        table.mask or DEFAULT_MASKS,
        _scores(table),
        table.returns or (Returns.OUT,),
        *(getattr(table, name) or (default,) for name, default in _PLAIN.items()),
    )
    shapes = _shapes(table)
    for combination in product(*axes):
        values = dict(zip(names, combination, strict=True))
        values["kv_heads"] = values["kv_heads"] or values["heads"]
        values["head_dim_v"] = values["head_dim_v"] or values["head_dim"]
        for ranks, shape in product(table.tp or (1,), shapes):
            yield values | shape | {"tp": ranks}


def _of_rank(values: dict[str, Any]) -> dict[str, Any]:
    """The fields of one rank; where there are fewer key heads than ranks, each rank holds a copy of one."""
    rest = {name: value for name, value in values.items() if name != "tp"}
    heads, kv_heads, ranks = values["heads"], values["kv_heads"], values["tp"]
    if heads % ranks:
        raise ProblemError(f"heads={heads} cannot be shared out among tp={ranks} ranks")
    return rest | {"heads": heads // ranks, "kv_heads": max(1, kv_heads // ranks)}


def _scores(table: Table) -> tuple[Score, ...]:
    found = []
    names = (*NUMBERS, "bias")
    axes = [getattr(table, name) or (None,) for name in names]
    for text, *values in product(table.score or ("dot",), *axes):
        given = {name: value for name, value in zip(names, values, strict=True) if value is not None}
        found.append(replace(parse_score(text), **given))
    return tuple(dict.fromkeys(found))


def _shapes(table: Table) -> list[dict[str, Any]]:
    """batch, lengths, seq_q and seq_kv of every combination."""
    shapes = []
    for lengths in table.lengths or ((),):
        longest = (max(lengths),) if lengths else ()
        queries, keys = table.seq_q or table.seq or longest, table.seq_kv or table.seq
        # A lone length is that of queries and keys both: no product of the axis with itself.
        apart = bool(table.seq_kv or (table.seq_q and keys))
        pairs = list(product(queries, keys)) if apart else [(length, length) for length in queries]
        sizes = (table.batch or (len(lengths) or 1,)) if not table.tokens else ()
        shapes += [
            {"batch": batch, "lengths": lengths, "seq_q": seq_q, "seq_kv": seq_kv}
            for seq_q, seq_kv in pairs
            for batch in sizes or (max(1, tokens // max(seq_q, seq_kv)) for tokens in table.tokens)
        ]
    return shapes


def _text(values: dict[str, Any]) -> str:
    """The values of a combination, those that are empty left out."""
    shown = {name: spell_score(value) if name == "score" else spell(value) for name, value in values.items()}
    shown["bias"] = values["score"].bias
    quiet = {"score": "dot", "lengths": "none", "returns": "out", "bias": "none"}
    quiet["tp"] = "1"
    quiet |= {name: spell(default) for name, default in _PLAIN.items()}
    return " ".join(f"{name}={text}" for name, text in shown.items() if quiet.get(name) != text)


def _shard(text: str) -> Callable[[int], bool]:
    """Whether the cell of that number belongs to shard K of N; sizes differ by one at most."""
    if not text:
        return lambda count: True
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise UsageError(f"--shard: not K/N: {text!r} (try 1/8, 2/8 ... 8/8)")
    return partial(_falls_to, int(match[1]) - 1, int(match[2]))


def _falls_to(shard: int, shards: int, count: int) -> bool:
    # Dealt out one place further in each turn: with as many shards as lengths, one shard would get all the longest.
    return (count + count // shards) % shards == shard
