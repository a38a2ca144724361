"""Suites: what is swept, as TOML or as options. Tables of axes become problems; filters and shards choose among them.

A table's keys are the option names of `run` with `_`; each value is a number, a word, a range string or a list. The
cells of a table are the product of its axes. docs/formats.md has the whole grammar.
"""

from __future__ import annotations

import itertools
import re
import tomllib
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec

from attnbench import ranges
from attnbench.attention import masks
from attnbench.attention.problem import Dtype, Mode, Problem, Returns
from attnbench.attention.scores import Score, Similarity
from attnbench.errors import AttnbenchError, ProblemError, RangeError, SuiteError, UnknownNameError, UsageError

INTEGERS = ("seq", "seq_q", "seq_kv", "batch", "tokens", "heads", "kv_heads", "head_dim", "head_dim_v")
WORDS = ("dtype", "mask", "score", "mode", "returns")
NUMBERS = ("scale", "softcap")
AXES = (*INTEGERS, *WORDS, *NUMBERS, "lengths")
ABOUT = ("name", "source", "check", "on")  # keys of a table that are no axes
TABLE_KEYS = (*AXES, "backend", "exclude", *ABOUT)
TOP_KEYS = ("title", "source", "extends", "budget", "gate", "problem")
FILTER_KEYS = (*AXES, "backend", "device")

# Keys that say the same: a table has one side or the other.
_RIVALS = {"seq": ("seq_q", "seq_kv"), "tokens": ("batch",), "lengths": ("seq", "seq_q", "seq_kv", "batch", "tokens")}

DEFAULT_MASKS = ("none", "causal")
_COMPARED = re.compile(r"(\w*)\.\.(\w*)")


class Table(msgspec.Struct, frozen=True, kw_only=True):
    """One `[[problem]]`: axes, each a tuple of values, and what is left out of their product."""

    axes: dict[str, tuple[Any, ...]]
    backends: tuple[str, ...] = ()
    exclude: tuple[tuple[Filter, ...], ...] = ()  # a cell goes if all filters of one entry hold
    on: str = ""  # a kind of device, `cpu` or `cuda`: the table is there for that kind alone
    source: str = ""
    check: bool = False  # nobody has read the source yet


class Suite(msgspec.Struct, frozen=True, kw_only=True):
    """A named set of tables."""

    name: str
    tables: tuple[Table, ...]
    title: str = ""
    source: str = ""
    budget: str = ""
    gate: dict[str, Any] = {}


class Cell(msgspec.Struct, frozen=True, kw_only=True):
    """One problem in one mode, and the backends that the suite names for it; none: whatever is asked for."""

    problem: Problem
    mode: Mode
    backends: tuple[str, ...] = ()


class Impossible(msgspec.Struct, frozen=True, kw_only=True):
    """A cell of a product that is no problem."""

    text: str
    reason: str


class Filter(msgspec.Struct, frozen=True, kw_only=True):
    """`key=values` of `--only`, `--skip` and `exclude`: the value is one of them, or lies between two bounds."""

    key: str
    words: frozenset[str] = frozenset()
    bounds: tuple[tuple[int, int], ...] = ()

    def matches(self, problem: Problem, mode: Mode, backend: str, device: str) -> bool:
        """Whether the filter holds for that case."""
        value = _value_of(self.key, problem, mode, backend, device)
        if isinstance(value, int) and any(low <= value <= high for low, high in self.bounds):
            return True
        return str(value) in self.words or (
            self.key in ("backend", "device") and str(value).split(":")[0] in self.words
        )


# -- reading -----------------------------------------------------------------------------------------------------------


def shipped_folder() -> Path:
    """Where the shipped suites lie: inside an installed package, or beside it in a checkout."""
    package = Path(__file__).parent
    inside = package / "shipped_suites"
    return inside if inside.is_dir() else package.parent / "suites"


def shipped() -> tuple[str, ...]:
    """The names of the shipped suites."""
    return tuple(sorted(path.stem for path in shipped_folder().glob("*.toml")))


def load(name: str) -> Suite:
    """A shipped suite by name, or a file by path. Raises SuiteError with file and key."""
    return _load(_path_of(name), ())


def _path_of(name: str) -> Path:
    if name.endswith(".toml") or "/" in name:
        if not Path(name).is_file():
            raise SuiteError(f"no suite file {name}; shipped are {', '.join(shipped())}")
        return Path(name)
    if name not in shipped():
        raise UnknownNameError("suite", name, shipped())
    return shipped_folder() / f"{name}.toml"


def _load(path: Path, above: tuple[Path, ...]) -> Suite:
    path = path.resolve()
    if path in above:
        chain = " -> ".join(one.name for one in (*above, path))
        raise SuiteError(f"{path.name}: extends itself: {chain}")
    try:
        raw = tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SuiteError(f"{path.name}: not TOML: {error}") from error
    _known(raw, TOP_KEYS, path.name)
    if shipped_folder().resolve() == path.parent and not raw.get("source"):
        raise SuiteError(f"{path.name}: a shipped suite needs `source`")
    for key in ("title", "source", "extends", "budget"):
        if not isinstance(raw.get(key, ""), str):
            raise SuiteError(f"{path.name}: {key} = {raw[key]!r}: must be a string")
    problems = raw.get("problem", [])
    if not isinstance(problems, list) or not all(isinstance(one, dict) for one in problems):
        raise SuiteError(f"{path.name}: problem must be an array of tables: [[problem]]")
    tables = tuple(_table(one, f"{path.name}: problem[{index}]") for index, one in enumerate(problems))
    own = Suite(
        name=path.stem,
        tables=tables,
        title=raw.get("title", ""),
        source=raw.get("source", ""),
        budget=raw.get("budget", ""),
        gate=raw.get("gate", {}),
    )
    if "extends" not in raw:
        if not tables:
            raise SuiteError(f"{path.name}: no [[problem]] table")
        return own
    return _extended(own, raw["extends"], path, above)


def _extended(own: Suite, parent_name: str, path: Path, above: tuple[Path, ...]) -> Suite:
    beside = path.parent / parent_name
    is_file = parent_name.endswith(".toml") and beside.is_file()
    parent = _load(beside if is_file else _path_of(parent_name), (*above, path))
    return msgspec.structs.replace(
        own,
        tables=parent.tables + own.tables,
        title=own.title or parent.title,
        source=own.source or parent.source,
        budget=own.budget or parent.budget,
        gate={**parent.gate, **own.gate},
    )


def _table(raw: Mapping[str, Any], where: str) -> Table:
    _known(raw, TABLE_KEYS, where)
    axes = {key: _values(key, value, f"{where}.{key}") for key, value in raw.items() if key in AXES}
    _exclusive(axes, where)
    if raw.get("on", "") not in ("", "cpu", "cuda"):
        raise SuiteError(f"{where}.on = {raw['on']!r}: a kind of device, cpu or cuda")
    excluded = raw.get("exclude", [])
    if not isinstance(excluded, list) or not all(isinstance(one, dict) for one in excluded):
        raise SuiteError(f'{where}.exclude: a list of tables, as [{{seq = "8k..", mask = "none"}}]')
    return Table(
        axes=axes,
        backends=_words(raw.get("backend", ()), f"{where}.backend"),
        exclude=tuple(
            tuple(_filter(key, str(value), f"{where}.exclude[{index}]") for key, value in one.items())
            for index, one in enumerate(excluded)
        ),
        on=raw.get("on", ""),
        source=raw.get("source", ""),
        check=bool(raw.get("check", False)),
    )


def _known(raw: Mapping[str, Any], keys: tuple[str, ...], where: str) -> None:
    for key in raw:
        if key not in keys:
            raise SuiteError(str(UnknownNameError("key", key, keys, where=where)))


def _exclusive(axes: Mapping[str, Any], where: str) -> None:
    for one, others in _RIVALS.items():
        for other in others:
            if one in axes and other in axes:
                raise SuiteError(f"{where}: {one} and {other} say the same; give one of them")


def _values(key: str, value: Any, where: str) -> tuple[Any, ...]:
    """The values of one axis, from a number, a word, a range string, or a list of these."""
    if isinstance(value, list):
        if key == "lengths" and value and all(isinstance(item, int) for item in value):
            return (tuple(value),)
        return tuple(dict.fromkeys(itertools.chain.from_iterable(_values(key, item, where) for item in value)))
    if isinstance(value, bool) or not isinstance(value, int | float | str) or value == "":
        raise SuiteError(f"{where} = {value!r}: a number, a word or a list of them")
    if key in INTEGERS:
        if isinstance(value, float):
            raise SuiteError(f"{where} = {value!r}: must be an integer or a range such as 512..4k")
        return ranges.integers(value, where)
    if key == "lengths":
        items = ranges.words(str(value), where)
        return tuple(tuple(ranges.integer(number, where) for number in item.split("-")) for item in items)
    words = ranges.words(str(value), where)
    return tuple(_READERS[key](word, where) for word in words)


def _words(value: Any, where: str) -> tuple[str, ...]:
    items = value if isinstance(value, list | tuple) else [value]
    if not all(isinstance(item, str) for item in items):
        raise SuiteError(f"{where} = {value!r}: a word or a list of words")
    return tuple(itertools.chain.from_iterable(ranges.words(item, where) for item in items))


def _read_number(word: str, where: str) -> float:
    try:
        return float(word)
    except ValueError:
        raise RangeError(f"{where}: not a number: {word!r} (try 30 or 0.125)") from None


def _read_mask(word: str, _: str) -> str:
    return masks.parse(word).text


def _read_score(word: str, where: str) -> Score:
    """`dot`, `dot:scale=1`, `dot:softcap=30`."""
    similarity, *rest = word.split(":")
    if similarity not in tuple(Similarity):
        raise UnknownNameError("score", similarity, tuple(Similarity), where=where)
    given: dict[str, float] = {}
    for item in rest:
        key, _, value = item.partition("=")
        if key not in NUMBERS:
            raise UnknownNameError("key of a score", key, NUMBERS, where=where)
        given[key] = _read_number(value, f"{where} {key}")
    return Score(similarity=Similarity(similarity), **given)  # type: ignore[arg-type]


def _word_of(kind: Any, noun: str) -> Any:
    def read(word: str, where: str) -> Any:
        if word not in tuple(kind):
            raise UnknownNameError(noun, word, tuple(kind), where=where)
        return kind(word)

    return read


_READERS: dict[str, Any] = {
    "dtype": _word_of(Dtype, "dtype"),
    "mode": _word_of(Mode, "mode"),
    "returns": _word_of(Returns, "result"),
    "mask": _read_mask,
    "score": _read_score,
    "scale": _read_number,
    "softcap": _read_number,
}


# -- options -----------------------------------------------------------------------------------------------------------


def from_flags(flags: Mapping[str, str]) -> Suite:
    """A suite of one table, made of options alone."""
    return override(Suite(name="custom", tables=(Table(axes={}),), title="options of the command line"), flags)


def override(suite: Suite, flags: Mapping[str, str]) -> Suite:
    """Options replace a key in every table, and its rivals: `--seq` replaces seq_q and seq_kv too, and the reverse."""
    axes = {key: _values(_axis(key), value, _option(key)) for key, value in flags.items()}
    _exclusive(axes, "options")
    gone = set(axes)
    for one, others in _RIVALS.items():
        if one in axes:
            gone.update(others)
        if any(other in axes for other in others):
            gone.add(one)
    tables = []
    for table in suite.tables:
        kept = {key: values for key, values in table.axes.items() if key not in gone}
        if "seq" in table.axes and "seq" in gone and not {"seq", "lengths"} & set(axes):
            kept["seq_q"] = kept["seq_kv"] = table.axes["seq"]  # one half of it was replaced
        tables.append(msgspec.structs.replace(table, axes={**kept, **axes}))
    return msgspec.structs.replace(suite, tables=tuple(tables))


def _axis(key: str) -> str:
    if key not in AXES:
        raise UnknownNameError("key", key, AXES, where="--set")
    return key


def _option(key: str) -> str:
    return "--" + key.replace("_", "-")


# -- cells -------------------------------------------------------------------------------------------------------------


def expand(suite: Suite, *, kind: str, dtype: Dtype, shard: str = "") -> Iterator[Cell | Impossible]:
    """Every cell of the products, in a stable order, each once; `dtype` is the default of that kind of device.

    `shard`, as `3/8`, keeps every eighth cell; the shards of a suite together are the suite.
    """
    part, parts = _shard(shard)
    seen: set[tuple[Problem, Mode, tuple[str, ...]]] = set()
    for number, (table, values) in enumerate(_products(suite, kind, dtype)):
        if number % parts != part - 1:
            continue
        mode = values.pop("mode")
        try:
            problem = _problem(values)
        except AttnbenchError as error:
            text = " ".join(f"{key}={value}" for key, value in values.items() if value is not None)
            yield Impossible(text=f"{text} {mode}", reason=str(error))
            continue
        if any(all(one.matches(problem, mode, "", "") for one in entry) for entry in table.exclude):
            continue
        key = (problem, mode, table.backends)
        if key not in seen:
            seen.add(key)
            yield Cell(problem=problem, mode=mode, backends=table.backends)


def _products(suite: Suite, kind: str, dtype: Dtype) -> Iterator[tuple[Table, dict[str, Any]]]:
    for table in suite.tables:
        if table.on and table.on != kind:
            continue
        axes: dict[str, tuple[Any, ...]] = {"dtype": (dtype,), "mask": DEFAULT_MASKS, "mode": (Mode.FWD,), **table.axes}
        names = list(axes)
        for values in itertools.product(*axes.values()):
            yield table, dict(zip(names, values, strict=True))


def _problem(values: dict[str, Any]) -> Problem:
    """Defaults of what the table leaves out; `tokens` is a constant batch x seq_q, floored to a batch of at least 1."""
    given = dict(values)
    if (seq := given.pop("seq", None)) is not None:
        given["seq_q"] = seq
    if lengths := given.get("lengths"):
        given.update(seq_q=max(lengths), batch=len(lengths))
    if "seq_q" not in given:
        raise ProblemError("no sequence length: give seq, seq_q or lengths")
    if (tokens := given.pop("tokens", None)) is not None:
        given["batch"] = max(1, tokens // given["seq_q"])
    score = given.pop("score", Score())
    numbers = {key: given.pop(key) for key in NUMBERS if key in given}
    return Problem(score=msgspec.structs.replace(score, **numbers) if numbers else score, **given)


def _shard(text: str) -> tuple[int, int]:
    if not text:
        return 1, 1
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise UsageError(f"--shard: not a part: {text!r} (try 3/8: the third of eight)")
    return int(match[1]), int(match[2])


# -- filters -----------------------------------------------------------------------------------------------------------


def parse_filter(text: str, where: str = "--only/--skip") -> Filter:
    """`seq=..4k`, `mask=causal,none`, `backend=flex`. A range means between, not the steps of the axis grammar."""
    key, equals, values = text.partition("=")
    if not equals or not values:
        raise UsageError(f"{where}: not KEY=VALUES: {text!r} (try seq=..4k or backend=flex)")
    return _filter(key.strip().replace("-", "_"), values, where)


def _filter(key: str, values: str, where: str) -> Filter:
    if key not in FILTER_KEYS:
        raise UnknownNameError("key", key, FILTER_KEYS, where=where)
    found: list[str] = []
    bounds: list[tuple[int, int]] = []
    for word in ranges.words(values, where):
        between = _COMPARED.fullmatch(word)
        if between and key in INTEGERS:
            low, high = between[1], between[2]
            bounds.append((ranges.integer(low, where) if low else 0, ranges.integer(high, where) if high else 1 << 62))
        elif key in INTEGERS:
            number = ranges.integer(word, where)
            bounds.append((number, number))
        elif key in NUMBERS:
            found.append(str(_read_number(word, where)))
        elif key == "mask":
            found.append(masks.parse(word).text)
        elif key in ("dtype", "mode", "returns"):
            found.append(str(_READERS[key](word, where)))
        else:
            found.append(word)
    return Filter(key=key, words=frozenset(found), bounds=tuple(bounds))


@lru_cache(maxsize=65536)
def _value_of(key: str, problem: Problem, mode: Mode, backend: str, device: str) -> Any:
    if key in ("backend", "device", "mode"):
        return {"backend": backend, "device": device, "mode": mode.value}[key]
    if key == "seq":
        return problem.seq_q if problem.seq_q == problem.seq_kv else max(problem.seq_q, problem.seq_kv)
    if key == "tokens":
        return problem.batch * problem.seq_q
    if key in NUMBERS:
        return getattr(problem.score, key)
    if key == "score":
        return problem.score.similarity.value
    value = getattr(problem, key)
    return "-".join(map(str, value)) if isinstance(value, tuple) else value
