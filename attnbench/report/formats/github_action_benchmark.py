"""customSmallerIsBetter of https://github.com/benchmark-action/github-action-benchmark."""

from attnbench.report.formats.exported_run import ExportedRun, json_text


def text(exported: ExportedRun) -> str:
    """Times with half the width of their interval, and peak memory."""
    entries: list[dict[str, object]] = []
    for row in exported.rows:
        name = row.name
        if row.time_s is not None:
            low, high = row.time_low_s, row.time_high_s
            half_width = (high - low) / 2 if low is not None and high is not None else 0.0
            entries.append({"name": name, "unit": "s", "value": row.time_s, "range": f"± {half_width:.3g}"})
        if row.peak_bytes is not None:
            entries.append({"name": f"{name} peak memory", "unit": "B", "value": row.peak_bytes})
    return json_text(entries)
