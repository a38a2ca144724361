"""Runs in the formats of other tools; each is read back by its own consumer in the tests."""

from __future__ import annotations

import io
import statistics
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec

from attnbench import frame, stats
from attnbench.errors import StoreError, UnknownNameError, UsageError
from attnbench.frame import Row
from attnbench.joined import Joined
from attnbench.report import csv, latex, markdown, trackers
from attnbench.report.trackers import Made, named
from attnbench.store import Run


def _csv(made: Made) -> str:
    return csv.text(made.rows)


def _json(made: Made) -> str:
    """One object: the manifest, and one row a case with every column of the frame."""
    return _pretty({"manifest": made.run.manifest, "columns": frame.COLUMNS, "rows": made.rows})


def _markdown(made: Made) -> str:
    return markdown.tables(made.rows)


def _latex(made: Made) -> str:
    """A table in the style of booktabs; times in ms with their intervals."""
    head = ("case", "time (ms)", r"95\,\% (ms)", "GFLOP/s", "speed-up")
    return latex.written("lrrrr", head, map(_tex, made.rows))


def _tex(row: Row) -> tuple[str, ...]:
    label = latex.escape(row["label"])
    if row["time_s"] is None:
        return label, rf"\multicolumn{{4}}{{l}}{{{latex.escape(row['status'])}}}"
    ends = f"{1e3 * row['time_low_s']:.4g}--{1e3 * row['time_high_s']:.4g}" if row["time_low_s"] is not None else "--"
    speedup = f"{row['speedup']:.2f}" if row["speedup"] is not None else "--"
    return label, f"{1e3 * row['time_s']:.4g}", ends, f"{row['flop_per_s'] / 1e9:.4g}", speedup


def _action(made: Made) -> str:
    """customSmallerIsBetter of https://github.com/benchmark-action/github-action-benchmark."""
    found = []
    for row in made.rows:
        if row["time_s"] is not None:
            half = (row["time_high_s"] - row["time_low_s"]) / 2 if row["time_low_s"] is not None else 0.0
            found.append({"name": named(row), "unit": "s", "value": row["time_s"], "range": f"± {half:.3g}"})
        if row["peak_bytes"] is not None:
            found.append({"name": f"{named(row)} peak memory", "unit": "B", "value": row["peak_bytes"]})
    return _pretty(found)


def _bencher(made: Made) -> str:
    """Bencher Metric Format, times in ns: https://bencher.dev/docs/reference/bencher-metric-format/."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for row in made.rows:
        if row["time_s"] is not None:
            latency = {"value": 1e9 * row["time_s"]}
            if row["time_low_s"] is not None and row["time_high_s"] is not None:
                latency |= {"lower_value": 1e9 * row["time_low_s"], "upper_value": 1e9 * row["time_high_s"]}
            found[named(row)] = {"latency": latency}
    return _pretty(found)


def _pytest_benchmark(made: Made) -> str:
    """What `pytest --benchmark-json` writes: a round is one of our blocks."""
    manifest = made.run.manifest
    card = manifest.machine
    machine = {
        "node": manifest.fingerprint,
        "processor": str(card.get("cpu")),
        "machine": str(card.get("system")),
        "python_version": str(card.get("python")),
        "system": str(card.get("system")),
        "cpu": {"brand_raw": card.get("cpu")},
        "python_implementation": "CPython",
        "release": str(card.get("kernel")),
        "python_compiler": "",
        "python_implementation_version": "",
        "python_build": ["", ""],
    }
    commit = manifest.commit or {}
    info = {"id": commit.get("commit", "unknown"), "dirty": bool(commit.get("dirty")), "time": manifest.created_at}
    info |= {"author_time": manifest.created_at, "project": "attnbench", "branch": "(unknown)"}
    benchmarks = [_benchmark(one) for one in frame.join(made.run.results) if one.time]
    return _pretty(
        {
            "machine_info": machine,
            "commit_info": info,
            "benchmarks": benchmarks,
            "datetime": manifest.created_at,
            "version": "5.1.0",
        }
    )


def _benchmark(one: Joined) -> dict[str, Any]:
    values = sorted(stats.finite(median for sample in one.times for median in stats.block_medians(sample)).tolist())
    low, _, high = statistics.quantiles(values, n=4) if len(values) > 1 else (values * 3)
    mean = statistics.fmean(values)
    fence = 1.5 * (high - low)
    inside = [value for value in values if low - fence <= value <= high + fence] or values
    outside = len(values) - len(inside)
    name = f"{one.case.label}@{one.arm.device}" + (f"#{one.arm.twin}" if one.arm.twin > 1 else "")
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return {
        "group": None,
        "name": name,
        "fullname": name,
        "params": None,
        "param": None,
        "extra_info": {"case_id": one.case.id, "launches": one.launches},
        "options": {
            "disable_gc": True,
            "timer": "perf_counter_ns",
            "min_rounds": 5,
            "max_time": 1.0,
            "min_time": 0.01,
            "warmup": True,
        },
        "stats": {
            "min": values[0],
            "max": values[-1],
            "mean": mean,
            "stddev": deviation,
            "rounds": len(values),
            "median": statistics.median(values),
            "iqr": high - low,
            "q1": low,
            "q3": high,
            "iqr_outliers": outside,
            "stddev_outliers": sum(abs(value - mean) > deviation for value in values),
            "outliers": f"{outside};{outside}",
            "ld15iqr": inside[0],
            "hd15iqr": inside[-1],
            "ops": 1 / mean,
            "total": sum(values),
            "iterations": 1,
        },
    }


def _pretty(value: Any) -> str:
    return msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n"


def _parquet(made: Made) -> bytes:
    """Every column of the frame, its type kept."""
    held = io.BytesIO()
    frame.table(made.rows).to_parquet(held, index=False)
    return held.getvalue()


class Format(msgspec.Struct, frozen=True):
    """How a run becomes a file of that ending, or a folder."""

    suffix: str
    make: Callable[[Made], str | bytes] | None = None
    fill: Callable[[Made, Path], None] | None = None  # a folder
    needs: str = ""  # a package that is no dependency of ours, and the extra that brings it


FORMATS: dict[str, Format] = {
    "csv": Format("csv", _csv),
    "json": Format("json", _json),
    "parquet": Format("parquet", _parquet, needs="pyarrow"),
    "md": Format("md", _markdown),
    "latex": Format("tex", _latex),
    "github-action-benchmark": Format("json", _action),
    "bencher": Format("json", _bencher),
    "pytest-benchmark": Format("json", _pytest_benchmark),
    "asv": Format("", fill=trackers.asv),
    "tensorboard": Format("", fill=trackers.tensorboard, needs="tensorboard"),
    "wandb": Format("", fill=trackers.wandb, needs="wandb"),
}
_EXTRAS = {"pyarrow": "parquet"}


def made(run: Run) -> Made:
    """A run with its rows."""
    return Made(run, frame.rows(run.results, roofs=frame.roofs_of(run.manifest)))


def text(run: Run, format_: str) -> str | bytes:
    """The run in one of FORMATS that is a file; bytes for Parquet."""
    make = FORMATS[format_].make
    assert make
    return make(made(run))


def check(format_: str, out: Path | None) -> None:
    """Refuse an unknown format, one whose package is missing, and a folder or a binary file on stdout."""
    if format_ not in FORMATS:
        raise UnknownNameError("format", format_, FORMATS, where="--to")
    one = FORMATS[format_]
    if one.needs and not find_spec(one.needs):
        extra = _EXTRAS.get(one.needs, one.needs)
        raise UsageError(f"--to {format_} needs {one.needs}: pip install 'attnbench[{extra}]'")
    if out is None and (one.fill or format_ == "parquet"):
        what = "a folder" if one.fill else "a binary file"
        raise UsageError(f"--to {format_} writes {what}: give --out")


def write(run: Run, format_: str, out: Path) -> None:
    """The run in any of FORMATS, as a file or a folder. StoreError where it cannot be written."""
    one = FORMATS[format_]
    try:
        if one.fill:
            out.mkdir(parents=True, exist_ok=True)
            one.fill(made(run), out)
        else:
            content = text(run, format_)
            out.write_bytes(content if isinstance(content, bytes) else content.encode())
    except OSError as error:
        raise StoreError(f"cannot write to {out}: {error.strerror}") from error
