"""The section on the machine and the method: what a reader needs to repeat a run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from attnbench.records.run_directory import Run
from attnbench.report.pages import answer, cautions
from attnbench.report.pages.page import Page, PageTable, ReportData, blocks
from attnbench.units import counted

MAX_RUNS = 20  # that are described beside each other
METHOD = (
    "Every output was checked against a float64 reference before it was timed. Backends ran in processes of their own "
    "and took turns in rounds of random, balanced order{rounds}. A time is the median of blocks of repeated calls; a "
    "speed-up is paired by round. FLOPs count the visible pairs of the mask exactly; the softmax is not counted."
)


def page(data: ReportData) -> Page:
    """Facts of each run beside each other, and its command."""
    if not data.rows:
        return Page()
    shown = _shown(data)
    columns = [_facts(run) for run, _ in shown]
    names = list(dict.fromkeys(name for facts in columns for name in facts))
    lines = [(name, *(facts.get(name, "") for facts in columns)) for name in names]
    head: tuple[str, ...] = ("", "") if len(data.runs) == 1 else ("", *(name for _, name in shown))
    commands = PageTable(
        heading="Repeat",
        head=("", ""),
        rows=[(name, line) for run, name in shown for line in run.manifest.command.splitlines()],
    )
    facts = PageTable(heading="Machine", head=head, rows=[line for line in lines if any(line[1:])])
    return Page(
        finding="Machine and method",
        text=(METHOD.format(rounds=_rounds(data)), *_intervals(data), *_left_out(data, shown)),
        blocks=blocks(facts, commands),
    )


def _shown(data: ReportData) -> list[tuple[Run, str]]:
    """The runs that are described, with their names: of very many the last of each machine."""
    named = list(zip(data.runs, data.names, strict=True))
    if len(named) <= MAX_RUNS:
        return named
    return list({run.manifest.machine_id: (run, name) for run, name in named}.values())[-MAX_RUNS:]


def _left_out(data: ReportData, shown: Sequence[tuple[Run, str]]) -> Iterator[str]:
    if len(shown) < len(data.runs):
        yield f"Of {len(data.runs)} runs the last of each machine is described, of at most {MAX_RUNS} machines."


def _rounds(data: ReportData) -> str:
    counts = [int(row.rounds) for row in data.rows if row.rounds]
    if not counts:
        return ""
    ends = dict.fromkeys(map(str, (min(counts), max(counts))))
    return f" ({' to '.join(ends)} {'round' if max(counts) == 1 else 'rounds'})"


def _intervals(data: ReportData) -> Iterator[str]:
    intervals = dict.fromkeys(row.interval for row in data.rows if row.interval)
    if set(intervals) == {"within one restart"}:
        yield "Intervals hold within this one restart; `--restarts 6` also covers what differs from process to process."


def _elsewhere(run: Run) -> dict[str, str]:
    """The packages of backends that ran in another interpreter."""
    environments, texts = run.manifest.environments, {}
    for arm in run.manifest.arms:
        if arm.python and arm.id in environments:
            versions = ", ".join(f"{name} {version}" for name, version in environments[arm.id].packages.items())
            texts[f"software of {arm.name}"] = f"{arm.python}: {versions}"
    return texts


def _facts(run: Run) -> dict[str, str]:
    manifest, machine = run.manifest, run.manifest.machine
    elsewhere = {arm.id for arm in manifest.arms if arm.python}
    environments = [environment for arm, environment in manifest.environments.items() if arm not in elsewhere]
    packages = next((environment.packages for environment in environments), {})
    commit = ""
    if manifest.commit:
        commit = str(manifest.commit.get("commit", ""))[:12] + (" with changes" if manifest.commit.get("dirty") else "")
    software = {name: version for name, version in packages.items() if name != "attnbench"}
    isa = machine.get("isa")
    processor = ", ".join(map(str, filter(None, (machine.get("cpu"), *(isa if isinstance(isa, list) else ())))))
    cores, load = machine.get("cores"), machine.get("load")
    busy = ": busy" if cautions.busy(run) else ""
    system = " ".join(str(value) for key in ("system", "kernel") if (value := machine.get(key)))
    facts = {
        "measured": answer.date(manifest.created_at),
        "suite": manifest.suite,
        "graphics": ", ".join(machine.get("gpus") or ()),
        "processor": ", ".join(filter(None, (processor, counted(cores, "core") if isinstance(cores, int) else ""))),
        "memory": f"{machine['memory_gib']} GiB" if machine.get("memory_gib") else "",
        "nodes": ", ".join(
            f"{name} ({hardware})" if (hardware := facts.get("hardware")) else name
            for name, facts in manifest.nodes.items()
        ),
        "load at start": f"{load:.1f}{busy}" if isinstance(load, int | float) else "",
        "system": ", ".join(filter(None, (system, f"Python {machine['python']}" if machine.get("python") else ""))),
        "attnbench": manifest.attnbench,
        "software": ", ".join(f"{name} {version}" for name, version in software.items()),
        **_elsewhere(run),
        "commit": commit,
        "not read": counted(run.skipped_lines, "line") if run.skipped_lines else "",
        **{f"tag {name}": value for name, value in manifest.tags.items()},
    }
    return {name: value for name, value in facts.items() if value}
