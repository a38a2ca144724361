"""The JSON of `pytest --benchmark-json`; a round of it is a block of ours."""

import statistics
from collections.abc import Mapping, Sequence

from attnbench.analysis import readings
from attnbench.analysis.restarts import Restarts, join
from attnbench.records.run_directory import Manifest
from attnbench.report.formats.exported_run import ExportedRun, json_text

VERSION = "5.1.0"  # of pytest-benchmark, whose format this is
LIMITS = {"min_rounds": 5, "max_time": 1.0, "min_time": 0.01}
OPTIONS = {"disable_gc": True, "timer": "perf_counter_ns", **LIMITS, "warmup": True}


def text(exported: ExportedRun) -> str:
    """Every timed case with its statistics."""
    manifest = exported.run.manifest
    return json_text({
        "machine_info": _machine(manifest),
        "commit_info": _commit(manifest),
        "benchmarks": [_benchmark(joined) for joined in join(exported.run.results, arms=manifest.arms) if joined.time],
        "datetime": manifest.created_at,
        "version": VERSION,
    })  # fmt: skip


def _machine(manifest: Manifest) -> Mapping[str, object]:
    cpu, system, python, kernel = map(manifest.machine.get, ("cpu", "system", "python", "kernel"))
    facts: dict[str, object] = {"node": manifest.fingerprint, "processor": str(cpu), "machine": str(system)}
    facts |= {
        "python_version": str(python),
        "system": str(system),
        "cpu": {"brand_raw": cpu},
        "python_implementation": "CPython",
    }
    unknown = {"python_compiler": "", "python_implementation_version": "", "python_build": ["", ""]}
    return {**facts, "python_implementation": "CPython", "release": str(kernel), **unknown}


def _commit(manifest: Manifest) -> Mapping[str, object]:
    commit = manifest.commit or {}
    return {
        "id": commit.get("commit", "unknown"), "dirty": bool(commit.get("dirty")), "time": manifest.created_at,
        "author_time": manifest.created_at, "project": "attnbench", "branch": "(unknown)",
    }  # fmt: skip


def _benchmark(joined: Restarts) -> Mapping[str, object]:
    medians = (median for sample in joined.times for median in readings.block_medians(sample))
    name = joined.label
    extra = {"case_id": joined.case.id, "restarts": joined.count}
    stats = _stats(sorted(readings.finite(medians).tolist()))
    identity = {"group": None, "name": name, "fullname": name, "params": None, "param": None}
    return {**identity, "extra_info": extra, "options": OPTIONS, "stats": stats}


def _stats(values: Sequence[float]) -> Mapping[str, object]:
    """The statistics of sorted block medians, in seconds, by the names of pytest-benchmark."""
    low, _, high = statistics.quantiles(values, n=4) if len(values) > 1 else (*values, *values, *values)
    mean = statistics.fmean(values)
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    fence = 1.5 * (high - low)
    inside = [value for value in values if low - fence <= value <= high + fence] or values
    outside = len(values) - len(inside)
    figures: dict[str, object] = {"min": values[0], "max": values[-1], "mean": mean, "stddev": deviation}
    figures |= {"rounds": len(values), "median": statistics.median(values), "iqr": high - low, "q1": low, "q3": high}
    far = sum(abs(value - mean) > deviation for value in values)
    ends = {"ld15iqr": inside[0], "hd15iqr": inside[-1]}
    figures |= {"iqr_outliers": outside, "stddev_outliers": far, "outliers": f"{outside};{outside}"}
    return {**figures, **ends, "ops": 1 / mean, "total": sum(values), "iterations": 1}
