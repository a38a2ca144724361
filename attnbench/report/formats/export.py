"""The formats of `attnbench export`, each read back by its own tool in the tests."""

import io
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import msgspec

from attnbench.analysis.rows import COLUMNS, as_frame
from attnbench.errors import UnknownNameError, UsageError, writing
from attnbench.records.run_directory import Run
from attnbench.report.formats import (
    asv,
    bencher,
    csv,
    github_action_benchmark,
    latex,
    markdown,
    pytest_benchmark,
    tensorboard,
    wandb,
)
from attnbench.report.formats.exported_run import ExportedRun, exported, json_text


class Format(msgspec.Struct, frozen=True):
    """How a run becomes a file with that suffix, or a folder."""

    suffix: str
    text: Callable[[ExportedRun], str | bytes] | None = None
    write: Callable[[ExportedRun, Path], None] | None = None  # into a folder
    package: str = ""  # that must be installed


def _json(exported: ExportedRun) -> str:
    """One object: the manifest, and one row for each case with every column of the frame."""
    return json_text({"manifest": exported.run.manifest, "columns": COLUMNS, "rows": exported.rows})


def _parquet(exported: ExportedRun) -> bytes:
    """Every column of the frame with its type."""
    content = io.BytesIO()
    as_frame(exported.rows).to_parquet(content, index=False)
    return content.getvalue()


FORMATS: dict[str, Format] = {
    "csv": Format("csv", lambda exported: csv.text(row.plain() for row in exported.rows)),
    "json": Format("json", _json),
    "parquet": Format("parquet", _parquet, package="pyarrow"),
    "md": Format("md", lambda exported: markdown.tables(exported.rows)),
    "latex": Format("tex", lambda exported: latex.times(exported.rows)),
    "github-action-benchmark": Format("json", github_action_benchmark.text),
    "bencher": Format("json", bencher.text),
    "pytest-benchmark": Format("json", pytest_benchmark.text),
    "asv": Format("", write=asv.write),
    "tensorboard": Format("", write=tensorboard.write, package="tensorboard"),
    "wandb": Format("", write=wandb.write, package="wandb"),
}


def text(run: Run, format_: str) -> str | bytes:
    """The run in one of FORMATS that is a file; bytes for Parquet."""
    make = FORMATS[format_].text
    assert make
    return make(exported(run))


def check(name: str, out: Path | None) -> None:
    """Raise UsageError for an unknown format, for a missing package, and for a folder or a binary file on stdout."""
    if name not in FORMATS:
        raise UnknownNameError("format", name, FORMATS, where="--to")
    format_ = FORMATS[name]
    if format_.package and not find_spec(format_.package):
        raise UsageError(f"--to {name} needs {format_.package}: pip install {format_.package}")
    if out is None and (format_.write or name == "parquet"):
        kind = "a folder" if format_.write else "a binary file"
        raise UsageError(f"--to {name} writes {kind}: give --out")


def write(run: Run, name: str, out: Path) -> None:
    """Write the run in any of FORMATS, as a file or a folder. Raises StoreError if it cannot be written."""
    format_ = FORMATS[name]
    with writing(out):
        if format_.write:
            out.mkdir(parents=True, exist_ok=True)
            format_.write(exported(run), out)
        else:
            content = text(run, name)
            out.write_bytes(content if isinstance(content, bytes) else content.encode())
