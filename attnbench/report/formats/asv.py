"""A results folder of https://asv.readthedocs.io: benchmarks.json, and one file of results for the commit."""

from pathlib import Path

from attnbench.analysis.rows import Row
from attnbench.errors import UsageError
from attnbench.report.formats.exported_run import ExportedRun, json_text

COLUMNS = ("result", "params", "version", "started_at", "duration", "stats_ci_99_a", "stats_ci_99_b")


def write(exported: ExportedRun, folder: Path) -> None:
    """Write times and peak memory. Raises UsageError for a run outside a git repository: asv orders by commit."""
    manifest = exported.run.manifest
    commit = (manifest.commit or {}).get("commit")
    if not commit:
        raise UsageError(f"{exported.run.path.name} was measured outside a git repository, and asv orders by commit")
    card = manifest.machine
    machine = {
        "machine": manifest.machine_id.replace("/", "-"), "os": str(card.get("system")),
        "arch": str(card.get("arch", "")), "cpu": str(card.get("cpu")), "num_cpu": str(card.get("cores")),
        "ram": f"{card.get('memory_gib')} GiB",
    }  # fmt: skip
    started_ms = int(1000 * exported.created_s)
    environment = f"attnbench-torch{exported.packages.get('torch', '')}"
    results, benchmarks = _benchmarks(exported.rows, started_ms)
    of_commit = {
        "commit_hash": commit, "env_name": environment, "date": started_ms, "params": machine,
        "requirements": exported.packages, "python": str(card.get("python", "")), "env_vars": {},
        "result_columns": COLUMNS, "results": results, "durations": {}, "version": 2,
    }  # fmt: skip
    machine_folder = folder / machine["machine"]
    machine_folder.mkdir(exist_ok=True)
    for path, value in (
        (machine_folder / "machine.json", {**machine, "version": 1}),
        (machine_folder / f"{commit[:8]}-{environment}.json", of_commit),
        (folder / "benchmarks.json", {**benchmarks, "version": 2}),
    ):
        path.write_text(json_text(value), encoding="utf-8")


def _benchmarks(rows: list[Row], started_ms: int) -> tuple[dict[str, object], dict[str, object]]:
    results: dict[str, object] = {}
    benchmarks: dict[str, object] = {}
    for row in rows:
        time = ("time", "seconds", row.time_s, [row.time_low_s], [row.time_high_s])
        for kind, unit, value, low, high in (time, ("peakmem", "bytes", row.total_bytes, None, None)):
            if value is None:
                continue
            name = f"{kind}.{row.name}"
            results[name] = [[value], [], row.case_id, started_ms, None, low, high]
            benchmarks[name] = {
                "name": name, "type": kind, "unit": unit, "version": row.case_id, "params": [], "param_names": [],
                "code": row.name, "timeout": 60.0,
            }  # fmt: skip
    return results, benchmarks
