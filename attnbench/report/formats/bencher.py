"""Bencher Metric Format: https://bencher.dev/docs/reference/bencher-metric-format/."""

from attnbench.report.formats.exported_run import ExportedRun, json_text


def text(exported: ExportedRun) -> str:
    """Times in ns with the ends of their interval."""
    benchmarks: dict[str, dict[str, dict[str, float]]] = {}
    for row in exported.rows:
        if row.time_s is not None:
            latency = {"value": 1e9 * row.time_s}
            if row.time_low_s is not None and row.time_high_s is not None:
                latency |= {"lower_value": 1e9 * row.time_low_s, "upper_value": 1e9 * row.time_high_s}
            benchmarks[row.name] = {"latency": latency}
    return json_text(benchmarks)
