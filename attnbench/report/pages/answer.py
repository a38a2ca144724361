"""The first section: what to use, what went wrong, how sure that is, and what one backend for everything costs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime

from attnbench.analysis.rows import Row, axes
from attnbench.attention.problem import Problem
from attnbench.records.result import Status
from attnbench.records.run_directory import Run
from attnbench.report import quantities
from attnbench.report.answer import Advice, Answer, FixedChoice
from attnbench.report.charts import panels
from attnbench.report.pages import best_grid, cautions, lead, places, ranking
from attnbench.report.pages.page import ReportData
from attnbench.report.pages.ranking import AnswerKind, Contest
from attnbench.report.quantities import listed, sentence, whole
from attnbench.studies import recommend

MAX_FIXED = 12  # backends
MAX_RUNS = 4  # runs that the lead is about


def answer(data: ReportData, compared: Sequence[str] = (), undecided: Sequence[Advice] = ()) -> Answer:
    """The first screen; `compared` and `undecided` are what several runs show beside each other."""
    problems = ranking.contests(data.rows, data.layout)
    of_all = ranking.verdict(problems, data.left)
    sides = ranking.split(problems, data.layout) if of_all.kind is AnswerKind.MIXED else []
    choices = "" if sides or of_all.kind is not AnswerKind.MIXED else lead.by_phase(problems)
    texts = [*compared, choices, lead.lead(problems, of_all, sides, data.layout)]
    headline = lead.headline(problems, of_all, sides)
    if len(data.traffic) == 1 and (traffic := data.traffic[0]):
        # Drawn steps stand for different times of traffic: their answer is the traffic's.
        texts = [f"Each drawn step counted once: {headline}", *texts]
        headline = f"{traffic.headline}."
    return Answer(
        context=context(data),
        headline=headline,
        lead=" ".join(filter(None, texts)),
        failures=tuple(cautions.failures(data.runs, data.by_run)),
        cautions=(*undecided, *cautions.cautions(data.runs, data.by_run, data.names, data.ceilings)),
        grid=best_grid.grid(data.rows, problems, data.layout),
        fixed=tuple(_fixed(data, problems)),
        checked=checked(data.rows),
    )


def context(data: ReportData) -> str:
    """`AMD EPYC · cpu:threads=1 · fp32 forward · batch 1, 8 heads of 64 · 29 Nov 2026, 08:51 UTC · run ra`."""
    machines = dict.fromkeys(machine(run) for run in data.runs)
    dates = dict.fromkeys(date(run.manifest.created_at) for run in data.runs)
    folders = [run.path.name for run in data.runs]
    if data.names == panels.OLD_AND_NEW:
        folders = [f"{folder} ({name})" for folder, name in zip(folders, data.names, strict=True)]
    runs = f"{'run' if len(data.runs) == 1 else 'runs'} {listed(folders, limit=MAX_RUNS)}"
    parts = (listed(list(machines)), *_shared(data.rows), listed(list(dates), limit=MAX_RUNS), runs)
    return " · ".join(filter(None, parts))


def _shared(rows: Sequence[Row]) -> list[str]:
    """What all rows share: device, dtype and mode, the shape, and axes that are not at their defaults."""
    words = {name: text for name in panels.COLUMNS for text in panels.shared(rows, (name,))}
    heads = " of ".join(filter(None, (words.get("heads"), words.get("head_dim", "").removeprefix("head dim "))))
    shape = (words.get("batch"), heads if "heads" in words else words.get("head_dim"), _kv_heads(rows, words))
    computed = " ".join(filter(None, (words.get("dtype"), words.get("mode"))))
    rest = [
        text
        for name, text in words.items()
        if name not in _SPELLED and name in _DEFAULTS and rows[0].value(name) != _DEFAULTS[name]
    ]
    parts = [words.get("device", ""), computed, ", ".join(filter(None, shape)), words.get("mask", ""), *rest]
    return [quantities.clipped(part, places.MAX_WORDS) for part in parts]


_DEFAULTS = axes(Problem(seq_q=1))
_SPELLED = {
    "device", "dtype", "mode", "batch", "heads", "kv_heads", "head_dim", "mask", "run", panels.PHASE, "seq_q", "seq_kv",
    "head_dim_v", "scale",
}  # fmt: skip


def _kv_heads(rows: Sequence[Row], words: dict[str, str]) -> str:
    grouped = bool(rows) and rows[0].kv_heads != rows[0].heads
    return words.get("kv_heads", "") if grouped else ""


def machine(run: Run) -> str:
    """The GPUs of a machine, else its CPU."""
    facts = run.manifest.machine
    return ", ".join(dict.fromkeys(facts.get("gpus") or ())) or str(facts.get("cpu") or "")


def date(text: str) -> str:
    """`29 Nov 2026, 08:51 UTC`; a text that is no date, as it is."""
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        return text
    return f"{when.day} {when:%b %Y, %H:%M} UTC"


def _fixed(data: ReportData, problems: Sequence[Contest]) -> Iterator[FixedChoice]:
    """The backends of each device in the order of their cost; none for several runs, nor with one problem or none."""
    if len(data.runs) > 1:
        return
    words = {(each.first.device, each.first.problem): each.first for each in problems}
    devices = recommend.dispatch(data.rows).by_device
    for device, regrets in devices.items():
        for regret in regrets[:MAX_FIXED] if len(regrets) > 1 and regrets[0].of > 1 else ():
            row = words[device, regret.worst_at]
            yield FixedChoice(
                arm=regret.backend, mean=regret.mean, worst=regret.worst, worst_at=places.of(row, data.layout),
                runs=regret.runs, of=regret.of, where=device if len(devices) > 1 else "",
            )  # fmt: skip


def checked(rows: Sequence[Row]) -> str:
    """How many outputs were checked, and how many of them are right; empty if none were."""
    wrong = sum(row.status is Status.INCORRECT for row in rows)
    right = sum(row.status is Status.OK for row in rows)
    if not wrong + right:
        return ""
    subject = f"{sentence(whole(wrong + right, 'output'))} were" if wrong + right > 1 else "The output was"
    result = "all are right" if right > 1 else "it is right"
    if wrong:
        result = f"{wrong:,} {'is' if wrong == 1 else 'are'} wrong" if right else "all are wrong"
        result = "it is wrong" if wrong + right == 1 else result
    if not right:
        return f"{subject} checked against float64; {result}, so nothing was timed."
    if wrong:
        return f"{subject} checked against float64; {result} and {'was' if wrong == 1 else 'were'} not timed."
    return f"{subject} checked against float64 before {'they were' if right > 1 else 'it was'} timed; {result}."
