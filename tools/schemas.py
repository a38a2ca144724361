"""Writes docs/schema/: the JSON Schemas of run.json, of a line of results.jsonl, and of a suite file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import msgspec

from attnbench import suite
from attnbench.records.result import Result
from attnbench.records.run_directory import Manifest

FOLDER = Path(__file__).parents[1] / "docs" / "schema"


def schemas() -> dict[str, dict[str, Any]]:
    """The schemas by file name."""
    return {
        "run.json": msgspec.json.schema(Manifest),
        "result.json": msgspec.json.schema(Result),
        "suite.json": suite.schema(),
    }


def write(folder: Path) -> None:
    """Bring the folder up to date."""
    for name, schema in schemas().items():
        (folder / name).write_bytes(msgspec.json.format(msgspec.json.encode(schema, order="sorted"), indent=2) + b"\n")


if __name__ == "__main__":
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
