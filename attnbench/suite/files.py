"""Read suite files in TOML, with `extends`; list the shipped suites; apply options to a suite."""

import re
import shlex
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias, TypeVar, cast

import msgspec
from msgspec import UNSET, UnsetType
from msgspec.structs import replace

from attnbench.errors import SuiteError, UnknownNameError, UsageError
from attnbench.records.result import Record
from attnbench.suite.cells import ProblemTable, Suite, check
from attnbench.suite.filters import Filter, axis_keys, make_filter
from attnbench.suite.keys import AXES, Numbers, Words, read_flags
from attnbench.suite.readers import words
from attnbench.suite.sources import SourceCheck, read_comparison
from attnbench.units import parse_seconds

KINDS = ("cpu", "cuda")
SHIPPED_SUITES = "shipped_suites"  # the folder of an installed package
Toml: TypeAlias = dict[str, Any]  # a table as it is written
Kind = TypeVar("Kind", bound=msgspec.Struct)

# The keys of a `[[problem]]` that are no axis, as they are written.
_TABLE_KEYS = (
    ("backend", Words | UnsetType, UNSET),
    ("exclude", tuple[dict[str, Numbers], ...], ()),
    ("on", str, ""),
    ("layers", int, 0),
    ("name", str, ""),
    ("source", str, ""),
    ("checked", Words | UnsetType, UNSET),
    ("unchecked", str, ""),
    ("check", bool, False),  # read as `unchecked` without a reason
)


class SuiteKeys(Record, frozen=True, kw_only=True):
    """The keys of a suite file, without its tables."""

    title: str = ""
    source: str = ""
    checked: str | tuple[str, ...] | UnsetType = UNSET
    unchecked: str = ""
    extends: str = ""
    budget: float | str = ""
    gate: Toml = {}


@cache
def written_table() -> type[msgspec.Struct]:
    """The record of a `[[problem]]` as it is written, with a key for each axis."""
    axes = [(axis.name, axis.written | UnsetType, UNSET) for axis in AXES.values()]
    return _record("ProblemTable", (*axes, *_TABLE_KEYS), Record, "A `[[problem]]` as it is written.")


@cache
def written_suite() -> type[SuiteKeys]:
    """The record of a suite file as it is written."""
    tables = ("problem", tuple[written_table(), ...], ())  # type: ignore[misc]
    return cast("type[SuiteKeys]", _record("SuiteFile", (tables,), SuiteKeys, "A suite as it is written."))


def _record(name: str, fields: Iterable[tuple[str, Any, Any]], base: type[Record], doc: str) -> type[msgspec.Struct]:
    return msgspec.defstruct(name, fields, bases=(base,), namespace={"__doc__": doc}, frozen=True, kw_only=True)


def load(name: str) -> Suite:
    """The shipped suite of that name, or a file: `quick`, `path/to/mine.toml`."""
    return _load(_find(name, Path(), "suite"), ())


def from_flags(flags: Mapping[str, str]) -> Suite:
    """Options alone make a suite of one table, named custom."""
    table = ProblemTable(axes=read_flags(flags))
    check(table, "options")
    return Suite(name="custom", title="options of the command line", tables=(table,))


def override(suite: Suite, flags: Mapping[str, str]) -> Suite:
    """The suite with these axes replaced in every table. `seq` replaces seq_q, seq_kv and requests too."""
    values = read_flags(flags)
    removed = {name for key in values for name in AXES[key].replaces}
    tables = tuple(
        replace(table, axes={name: axis for name, axis in table.axes.items() if name not in removed} | values)
        for table in suite.tables
    )
    for index, table in enumerate(tables):
        check(table, f"suite {suite.name}: problem[{index}]")
    return replace(suite, tables=tables)


def shipped() -> tuple[str, ...]:
    """The names of the shipped suites."""
    return tuple(sorted(path.stem for path in shipped_folder().glob("*.toml")))


def schema() -> dict[str, object]:
    """The JSON Schema of a suite file."""
    return msgspec.json.schema(written_suite())


def shipped_folder() -> Path:
    """The folder of the shipped suites: in an installed package, or beside it in a checkout."""
    package = Path(__file__).parent.parent
    installed = package / SHIPPED_SUITES
    return installed if installed.is_dir() else package.parent / "suites"


def _find(text: str, beside: Path, where: str) -> Path:
    if "/" not in text and not text.endswith((".toml", ".json")):
        if text not in shipped():
            hint = "" if where == "suite" else where
            raise UnknownNameError("suite", text, shipped(), where=hint)
        return shipped_folder() / f"{text}.toml"
    path = beside / Path(text).expanduser()
    if path.suffix == ".json":
        raise SuiteError(
            f"{where}: {text!r} is not a suite, which is a .toml file; to make one of a model's config: "
            f"attnbench suite from-config {shlex.quote(text)} -o {shlex.quote(path.stem)}.toml"
        )
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
    raw = _toml(path, place)
    written = _written(raw, place)
    parent = Suite(name="", tables=())
    if written.extends:
        parent = _load(_find(written.extends, path.parent, f"{place}: extends"), (*chain, resolved))
    if path.parent == shipped_folder() and not written.source:
        raise SuiteError(f"{place}: source: a shipped suite names where its shapes come from")
    with _as_suite_error():
        if written.budget:
            parse_seconds(str(written.budget), f"{place}: budget")
        comparison = read_comparison(raw, f"{place}: ")
    tables = [
        _table(table, f"{place}: problem[{index}]", comparison) for index, table in enumerate(raw.get("problem", ()))
    ]
    if not (*parent.tables, *tables):
        raise SuiteError(f"{place}: no [[problem]]: nothing to measure")
    return Suite(
        name=path.stem,
        title=written.title or parent.title,
        source=written.source or parent.source,
        budget=str(written.budget) or parent.budget,
        gate=written.gate or parent.gate,
        gate_file=place if written.gate else parent.gate_file,
        tables=(*parent.tables, *tables),
    )


@contextmanager
def _as_suite_error() -> Iterator[None]:
    """A mistake in a file has the same exit code wherever it is detected."""
    try:
        yield
    except SuiteError:
        raise
    except UsageError as wrong:
        raise SuiteError(str(wrong)) from None


def _toml(path: Path, place: str) -> Toml:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as wrong:
        raise SuiteError(f"{place}: not TOML: {wrong}") from None
    except UnicodeDecodeError:
        raise SuiteError(f"{place}: not a text in UTF-8") from None
    except OSError as wrong:
        raise SuiteError(f"{place}: {wrong.strerror}") from None


def _written(raw: Toml, place: str) -> SuiteKeys:
    """The file as a record, after a check of its keys that can name the nearest one."""
    refuse_unknown(raw, written_suite(), place, "")
    tables = raw.get("problem", [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise SuiteError(f"{place}: problem: write [[problem]], once for each table")
    for index, table in enumerate(tables):
        refuse_unknown(table, written_table(), place, f"problem[{index}].")
    return convert(raw, written_suite(), f"{place}: ")


def convert(raw: Mapping[str, object], kind: type[Kind], where: str) -> Kind:
    """A record of this kind from values as they are written. Raises SuiteError, which begins with `where`."""
    try:
        return msgspec.convert(raw, kind)
    except msgspec.ValidationError as wrong:
        what, _, key = str(wrong).rstrip("`").partition(" - at `$.")
        if missing := re.fullmatch("Object missing required field `(.*?)`", what):
            what = f"no key {missing[1]!r}, which is required"
        raise SuiteError(f"{where}{key}: {what[:1].lower()}{what[1:]}") from None


def refuse_unknown(raw: Mapping[str, object], kind: type[msgspec.Struct], place: str, prefix: str) -> None:
    """Raise SuiteError, with the nearest known key, where a table has a key that its kind lacks."""
    for key in raw:
        if key == "device" and prefix.startswith("problem"):
            raise SuiteError(f"{place}: {prefix}device: a suite names no device: use --device, or `on` for a kind")
        if key not in kind.__struct_fields__:
            unknown = UnknownNameError("key", key, kind.__struct_fields__, where=f"{place}: {prefix}{key}")
            raise SuiteError(str(unknown))


def _table(raw: Toml, place: str, of_file: SourceCheck) -> ProblemTable:
    excluded = raw.get("exclude", ())
    with _as_suite_error():
        of_table = read_comparison(raw, f"{place}.")
        table = ProblemTable(
            axes={key: AXES[key].read(value, f"{place}.{key}") for key, value in raw.items() if key in AXES},
            backend=words(raw["backend"], f"{place}.backend") if "backend" in raw else (),
            exclude=tuple(_conditions(entry, f"{place}.exclude[{index}]") for index, entry in enumerate(excluded)),
            **{key: raw[key] for key in ("on", "layers", "name", "source") if key in raw},
            **(of_table if any(of_table.values()) else of_file),
        )
        if table.on not in ("", *KINDS):
            raise UnknownNameError("kind of device", table.on, KINDS, where=f"{place}.on")
        if "layers" in raw and table.layers < 1:
            raise SuiteError(f"{place}.layers: {table.layers}: at least 1 layer of the model has this attention")
        check(table, place)
    return table


def _conditions(entry: Mapping[str, object], place: str) -> tuple[Filter, ...]:
    if not entry:
        raise SuiteError(f"{place}: an empty condition would exclude everything")
    return tuple(make_filter(key, value, f"{place}.{key}", axis_keys()) for key, value in entry.items())


def _shown(path: Path) -> str:
    """The path for messages: folder and name of a shipped suite, otherwise relative if possible."""
    if path.parent == shipped_folder():
        return f"suites/{path.name}"
    try:
        return path.resolve().relative_to(Path.cwd()).as_posix()
    except ValueError:
        return str(path)
