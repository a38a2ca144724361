"""Runs in the formats of other tools; each is read back by its own consumer in the tests."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec

from attnbench import frame, stats
from attnbench.frame import Row
from attnbench.joined import Joined
from attnbench.report import csv, latex, markdown
from attnbench.store import Run


class Made(NamedTuple):
    """What a format is written from."""

    run: Run
    rows: list[Row]


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
            found.append({"name": _name(row), "unit": "s", "value": row["time_s"], "range": f"± {half:.3g}"})
        if row["peak_bytes"] is not None:
            found.append({"name": f"{_name(row)} peak memory", "unit": "B", "value": row["peak_bytes"]})
    return _pretty(found)


def _bencher(made: Made) -> str:
    """Bencher Metric Format, times in ns: https://bencher.dev/docs/reference/bencher-metric-format/."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for row in made.rows:
        if row["time_s"] is not None:
            latency = {"value": 1e9 * row["time_s"]}
            if row["time_low_s"] is not None and row["time_high_s"] is not None:
                latency |= {"lower_value": 1e9 * row["time_low_s"], "upper_value": 1e9 * row["time_high_s"]}
            found[_name(row)] = {"latency": latency}
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


def _name(row: Row) -> str:
    return f"{row['label']}@{row['device']}"


def _pretty(value: Any) -> str:
    return msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n"


Writer = Callable[[Made], str]
FORMATS: dict[str, tuple[str, Writer]] = {
    "csv": ("csv", _csv),
    "json": ("json", _json),
    "md": ("md", _markdown),
    "latex": ("tex", _latex),
    "github-action-benchmark": ("json", _action),
    "bencher": ("json", _bencher),
    "pytest-benchmark": ("json", _pytest_benchmark),
}


def text(run: Run, format_: str) -> str:
    """The run in one of FORMATS."""
    return FORMATS[format_][1](Made(run, frame.rows(run.results, roofs=frame.roofs_of(run.manifest))))
