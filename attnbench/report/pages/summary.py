"""The first page: the finding, the best backends, the machine, and what was not measured."""

from collections.abc import Mapping, Sequence

from attnbench import units
from attnbench.analysis.rows import Row, leaders
from attnbench.records.run_directory import Run
from attnbench.report import pivot
from attnbench.report import summary as finding
from attnbench.report.charts import best_backend, latency, speedup
from attnbench.report.pages.page import Page, PageTable, ReportData, drawn

MAX_PANELS = 2  # of each chart; the charts' own pages have all


def page(data: ReportData, missing: Sequence[Page]) -> Page:
    """Summarise the report; `missing` are the pages without data."""
    impossible = sum(len(run.manifest.impossible) for run in data.runs)
    text = [finding.sentence(data.rows), *finding.notes(data.rows, data.ceilings)]
    text += [finding.tally(data.rows, impossible)]
    text += [f"{page.title}: nothing yet; {page.hint}" for page in missing if page.hint]
    text += [f"{run.path.name}: {run.skipped_lines} lines could not be read" for run in data.runs if run.skipped_lines]
    facts = [fact for run in data.runs for fact in _facts(run).items()]
    lines = [(name, str(value)) for name, value in facts if value not in (None, "", "None")]
    return Page(
        text=tuple(text),
        charts=drawn(
            best=best_backend.chart(data.charted, data.caption),
            latency=latency.chart(data.charted, data.caption, MAX_PANELS),
            speedup=speedup.chart(data.charted, data.caption, MAX_PANELS),
        ),
        tables=(_best(data.rows), PageTable(heading="Machine", head=("", ""), rows=lines)),
    )


def _best(rows: Sequence[Row]) -> PageTable:
    """The fastest backend of each problem, or all that are tied with it."""
    lines = []
    for group in leaders(rows):
        names, best = ", ".join(row.arm_name for row in group), group[0]
        device = ", ".join(filter(None, (best.device, best.run)))
        speedup = pivot.factor(best.speedup)
        lines.append((best.problem, device, names, str(best.place), units.seconds(best.time_s), speedup))
    return PageTable(
        heading="Best backend",
        head=("problem", "device", "best", "place", "time", "speed-up"),
        rows=lines,
        numbers=(False, False, False, False, True, True),
        note="tied: the 95 % intervals do not distinguish them",
    )


def _facts(run: Run) -> Mapping[str, object]:
    manifest, machine = run.manifest, run.manifest.machine
    packages = next((env.packages for env in manifest.environments.values()), {})
    commit = ""
    if manifest.commit:
        commit = manifest.commit["commit"][:12] + (" with changes" if manifest.commit.get("dirty") else "")
    return {
        "run": run.path.name, "measured": manifest.created_at, "attnbench": manifest.attnbench,
        "device": ", ".join(machine.get("gpus") or [str(machine.get("cpu"))]), "cores": machine.get("cores"),
        "memory": f"{machine.get('memory_gib')} GiB", "system": f"{machine.get('system')} {machine.get('kernel')}",
        "torch": packages.get("torch"), "triton": packages.get("triton"), "commit": commit,
        **{f"tag {name}": value for name, value in manifest.tags.items()},
    }  # fmt: skip
