"""Writes docs/schema/: the JSON Schemas of run.json, a line of results.jsonl, a dispatch table, and a suite file."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from typing import Any

import msgspec

from attnbench.gate import record
from attnbench.records.result import Result
from attnbench.records.run_directory import Manifest
from attnbench.studies.dispatch_table import Dispatch

FOLDER = Path(__file__).parents[1] / "docs" / "schema"


def _documented(schema: Any) -> Any:
    """The schema with descriptions as in Python 3.13, which stores docstrings without their indentation."""
    if isinstance(schema, list):
        return [_documented(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    cleaned = {name: _documented(value) for name, value in schema.items()}
    if isinstance(text := cleaned.get("description"), str):
        cleaned["description"] = inspect.cleandoc(text)
    return cleaned


def schemas() -> dict[str, dict[str, Any]]:
    """The schemas by file name."""
    return {
        "run.json": _documented(msgspec.json.schema(Manifest)),
        "result.json": _documented(msgspec.json.schema(Result)),
        "dispatch.json": _documented(msgspec.json.schema(Dispatch)),
        "suite.json": _documented(record.suite_schema()),
    }


def write(folder: Path) -> None:
    """Bring the folder up to date."""
    for name, schema in schemas().items():
        (folder / name).write_bytes(msgspec.json.format(msgspec.json.encode(schema, order="sorted"), indent=2) + b"\n")


if __name__ == "__main__":
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
