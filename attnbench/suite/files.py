"""Suite files: TOML in, a Suite out; `extends`, the shipped suites, and options laid over a suite."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType
from msgspec.structs import asdict, replace

from attnbench.attention.scores import NUMBERS
from attnbench.errors import SuiteError, UnknownNameError, UsageError
from attnbench.result import Record
from attnbench.suite.cells import Suite, Table, check
from attnbench.suite.filters import Filter, make_filter
from attnbench.suite.keys import AXES, words
from attnbench.units import parse_seconds

KINDS = ("cpu", "cuda")

Integers = int | str | tuple[int | str, ...]
Numbers = int | float | str | tuple[int | float | str, ...]
Words = str | tuple[str, ...]

# Keys that a flag for one of them replaces: each says in another way what the others say.
_REPLACED_BY: Mapping[str, tuple[str, ...]] = {
    "seq": ("seq", "seq_q", "seq_kv", "lengths"),
    "seq_q": ("seq_q", "lengths"),
    "seq_kv": ("seq_kv", "lengths"),
    "lengths": ("seq", "seq_q", "seq_kv", "batch", "tokens", "lengths"),
    "batch": ("batch", "tokens"),
    "tokens": ("batch", "tokens"),
}
# Keys without an option of their own.
_BY_SET = frozenset(
    {
        *NUMBERS,
        "lengths",
        "returns",
        "weighting",
        "sinks",
        "dropout",
        "positions",
        "scope",
        "kv_dtype",
        "autocast",
        "tp",
        "page_size",
    }
)
_OPTIONS = frozenset(AXES) - _BY_SET


class ProblemTable(Record, frozen=True, kw_only=True):
    """A `[[problem]]` as it is written."""

    seq: Integers | UnsetType = UNSET
    seq_q: Integers | UnsetType = UNSET
    seq_kv: Integers | UnsetType = UNSET
    batch: Integers | UnsetType = UNSET
    tokens: Integers | UnsetType = UNSET
    heads: Integers | UnsetType = UNSET
    kv_heads: Integers | UnsetType = UNSET
    head_dim: Integers | UnsetType = UNSET
    head_dim_v: Integers | UnsetType = UNSET
    dtype: Words | UnsetType = UNSET
    mask: Words | UnsetType = UNSET
    score: Words | UnsetType = UNSET
    scale: Numbers | UnsetType = UNSET
    softcap: Numbers | UnsetType = UNSET
    temperature: Numbers | UnsetType = UNSET
    bias: Words | UnsetType = UNSET
    weighting: Words | UnsetType = UNSET
    sinks: bool | tuple[bool, ...] | str | UnsetType = UNSET
    dropout: Numbers | UnsetType = UNSET
    positions: Words | UnsetType = UNSET
    scope: Words | UnsetType = UNSET
    kv_dtype: Words | UnsetType = UNSET
    autocast: Words | UnsetType = UNSET
    page_size: Integers | UnsetType = UNSET
    tp: Integers | UnsetType = UNSET
    lengths: Words | UnsetType = UNSET
    returns: Words | UnsetType = UNSET
    mode: Words | UnsetType = UNSET
    backend: Words | UnsetType = UNSET
    exclude: tuple[dict[str, Numbers], ...] = ()
    on: str = ""
    name: str = ""
    source: str = ""
    check: bool = False


class SuiteFile(Record, frozen=True, kw_only=True):
    """A suite as it is written."""

    title: str = ""
    source: str = ""
    extends: str = ""
    budget: float | str = ""
    gate: dict[str, Any] = {}
    problem: tuple[ProblemTable, ...] = ()


def load(name: str) -> Suite:
    """The shipped suite of that name, or a file: `quick`, `path/to/mine.toml`."""
    return _load(_find(name, Path(), "suite"), ())


def from_flags(flags: Mapping[str, str]) -> Suite:
    """Options alone make a suite of one table, named custom."""
    table = Table(**_read_flags(flags))
    check(table, "options")
    return Suite(name="custom", title="options of the command line", tables=(table,))


def override(suite: Suite, flags: Mapping[str, str]) -> Suite:
    """The suite with these axes in place of its own, in every table. `seq` replaces seq_q, seq_kv and lengths too."""
    values = _read_flags(flags)
    replaced = {name: () for key in values for name in _REPLACED_BY.get(key, ())}
    tables = tuple(replace(table, **(replaced | values)) for table in suite.tables)
    for index, table in enumerate(tables):
        check(table, f"suite {suite.name}: problem[{index}]")
    return replace(suite, tables=tables)


def shipped() -> tuple[str, ...]:
    """The names of the shipped suites."""
    return tuple(sorted(path.stem for path in shipped_folder().glob("*.toml")))


def schema() -> dict[str, Any]:
    """The JSON Schema of a suite file."""
    return msgspec.json.schema(SuiteFile)


def shipped_folder() -> Path:
    """Where the shipped suites lie: in an installed package, or beside it in a checkout."""
    package = Path(__file__).parent.parent
    installed = package / "shipped_suites"
    return installed if installed.is_dir() else package.parent / "suites"


def _find(text: str, beside: Path, where: str) -> Path:
    if "/" not in text and not text.endswith(".toml"):
        if text not in shipped():
            hint = "" if where == "suite" else where
            raise UnknownNameError("suite", text, shipped(), where=hint)
        return shipped_folder() / f"{text}.toml"
    path = beside / Path(text).expanduser()
    if not path.is_file():
        there = ", ".join(sorted(other.name for other in path.parent.glob("*.toml"))) or "no suite"
        raise SuiteError(
            f"{where}: no file {text!r}; in that folder there is {there}; shipped ones: attnbench list suites"
        )
    return path


def _load(path: Path, chain: tuple[Path, ...]) -> Suite:
    resolved = path.resolve()
    if resolved in chain:
        names = [step.name for step in (*chain, resolved)]
        raise SuiteError(f"{_shown(chain[0])}: extends itself: {' -> '.join(names)}")
    place = _shown(path)
    written = _written(_toml(path, place), place)
    parent = Suite(name="", tables=())
    if written.extends:
        parent = _load(_find(written.extends, path.parent, f"{place}: extends"), (*chain, resolved))
    if path.parent == shipped_folder() and not written.source:
        raise SuiteError(f"{place}: source: a shipped suite names where its shapes come from")
    try:
        tables = [_table(table, f"{place}: problem[{index}]") for index, table in enumerate(written.problem)]
        budget = str(written.budget)
        if budget:
            parse_seconds(budget, f"{place}: budget")
    except SuiteError:
        raise
    except UsageError as wrong:
        raise SuiteError(str(wrong)) from None
    if not (*parent.tables, *tables):
        raise SuiteError(f"{place}: no [[problem]]: nothing to measure")
    return Suite(
        name=path.stem,
        title=written.title or parent.title,
        source=written.source or parent.source,
        budget=budget or parent.budget,
        gate=written.gate or parent.gate,
        tables=(*parent.tables, *tables),
    )


def _toml(path: Path, place: str) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as wrong:
        raise SuiteError(f"{place}: not TOML: {wrong}") from None
    except UnicodeDecodeError:
        raise SuiteError(f"{place}: not a text in UTF-8") from None
    except OSError as wrong:
        raise SuiteError(f"{place}: {wrong.strerror}") from None


def _written(raw: dict[str, Any], place: str) -> SuiteFile:
    """The file as a record, after a check of its keys that can name the nearest one."""
    _refuse_unknown(raw, SuiteFile, place, "")
    tables = raw.get("problem", [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise SuiteError(f"{place}: problem: write [[problem]], once for each table")
    for index, table in enumerate(tables):
        _refuse_unknown(table, ProblemTable, place, f"problem[{index}].")
    try:
        return msgspec.convert(raw, SuiteFile)
    except msgspec.ValidationError as wrong:
        what, _, key = str(wrong).rstrip("`").partition(" - at `$.")
        raise SuiteError(f"{place}: {key}: {what[:1].lower()}{what[1:]}") from None


def _refuse_unknown(raw: Mapping[str, Any], kind: type[msgspec.Struct], place: str, prefix: str) -> None:
    for key in raw:
        if key == "device" and prefix:
            raise SuiteError(f"{place}: {prefix}device: a suite names no device: use --device, or `on` for a kind")
        if key not in kind.__struct_fields__:
            unknown = UnknownNameError("key", key, kind.__struct_fields__, where=f"{place}: {prefix}{key}")
            raise SuiteError(str(unknown))


def _table(written: ProblemTable, place: str) -> Table:
    values: dict[str, Any] = {}
    for key, value in asdict(written).items():
        if key in AXES:
            if value is not UNSET:
                values[key] = AXES[key](value, f"{place}.{key}")
        elif key == "backend":
            values[key] = () if value is UNSET else words(value, f"{place}.{key}")
        elif key == "exclude":
            values[key] = tuple(_conditions(entry, f"{place}.exclude[{n}]") for n, entry in enumerate(value))
        else:
            values[key] = value
    if written.on not in ("", *KINDS):
        raise UnknownNameError("kind of device", written.on, KINDS, where=f"{place}.on")
    table = Table(**values)
    check(table, place)
    return table


def _conditions(entry: Mapping[str, Any], place: str) -> tuple[Filter, ...]:
    if not entry:
        raise SuiteError(f"{place}: an empty condition would exclude everything")
    return tuple(make_filter(key, value, f"{place}.{key}", tuple(AXES)) for key, value in entry.items())


def _read_flags(flags: Mapping[str, str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, text in flags.items():
        if key not in AXES:
            raise UnknownNameError("suite key", key, tuple(AXES), where="--set")
        values[key] = AXES[key](text, _option(key))
    return values


def _option(key: str) -> str:
    return f"--{key.replace('_', '-')}" if key in _OPTIONS else f"--set {key}"


def _shown(path: Path) -> str:
    """The path as messages have it: a shipped suite by its folder and name, others relative where they can be."""
    if path.parent == shipped_folder():
        return f"suites/{path.name}"
    try:
        return path.resolve().relative_to(Path.cwd()).as_posix()
    except ValueError:
        return str(path)
