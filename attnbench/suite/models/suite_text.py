"""The text of a suite file of a config."""

import json
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from msgspec.structs import replace

from attnbench.errors import SuiteError, UsageError
from attnbench.suite.models import types
from attnbench.suite.models.fields import Fields
from attnbench.suite.models.parts import Part, parts_of
from attnbench.suite.models.problems import tables_of
from attnbench.suite.models.shapes import Table


class ModelSuite(NamedTuple):
    """A suite file, and what it does not hold or did not find in the config."""

    text: str
    notes: tuple[str, ...]


def suite_of(config: Mapping[str, object], source: str) -> ModelSuite:
    """The suite of a config. Raises SuiteError if no part of it can be read."""
    name = config.get("model_type")
    tables: list[Table] = []
    notes: list[str] = []
    errors: list[UsageError] = []
    if entry := types.table().get(str(name)):
        notes += [entry.note] if entry.note and entry.kind is types.Kind.COMPOSITE else []
    elif name:
        notes.append(f"model_type={name!r} is unknown: its parts are read by the model types that they state")
    for part in parts_of(config, str(name or "")):
        try:
            part_tables, part_notes = _read(part)
        except UsageError as error:
            errors.append(error)
            notes.append(f"not written: {error}")
            continue
        tables += part_tables
        notes += part_notes
    if not tables:
        raise errors[0] if errors else SuiteError(f"model_type={name!r} has no part with attention")
    return ModelSuite("\n".join(_lines(str(name or "model"), source, tables, notes)) + "\n", tuple(notes))


def _read(part: Part) -> tuple[list[Table], list[str]]:
    model_type = types.table().get(part.type_name)
    if model_type is None:
        raise types.unknown(part.type_name, part.place)
    fields = Fields(part.values, model_type.defaults, part.place)
    model_type = replace(model_type, bidirectional_prompt=part.bidirectional_prompt)
    tables = tables_of(fields, model_type, part.type_name)
    named = [{**table, "name": part.title + str(table["name"])} for table in tables]
    fields.add_remarks(part.type_name)
    return named, fields.notes


def _lines(name: str, source: str, tables: list[Table], notes: list[str]) -> Iterator[str]:
    for note in notes:
        yield "# " + "".join(letter if letter.isprintable() else "?" for letter in note)
    yield f"title = {_quoted(f'Attention of {name}, from its config.json')}"
    yield f"source = {_quoted(source)}"
    for table in tables:
        yield from ("", "[[problem]]", *(f"{key} = {_value(value)}" for key, value in table.items()))


def _value(value: object) -> str:
    if isinstance(value, list) and len(value) == 1:
        return _value(value[0])
    if isinstance(value, list):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, bool):
        return str(value).lower()
    return _quoted(value) if isinstance(value, str) else repr(value)


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)  # a JSON string is a basic string of TOML too
