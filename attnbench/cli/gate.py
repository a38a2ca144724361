"""`attnbench gate`: is head slower than base? With verdicts, an exit code, and what CI wants to read."""

from __future__ import annotations

import os
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from attnbench.cli import options
from attnbench.cli.options import ARMS, CHOOSING, MEASURING, OUTPUT

if TYPE_CHECKING:
    from attnbench.gate.judgement import Judged
    from attnbench.gate.paired import Ended
    from attnbench.gate.trees import Side
    from attnbench.store import Run
    from attnbench.sweep import Request

BASE = "Base"


def gate(
    context: typer.Context,
    suites: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[SUITE]...|RUN", help="What to measure, `ci` by default; or the run of a gate, judged again."
        ),
    ] = None,
    base_ref: Annotated[
        str, typer.Option("--base-ref", rich_help_panel=BASE, help="Commit, branch or tag.", metavar="REF")
    ] = "",
    base_path: Annotated[
        Path | None, typer.Option("--base-path", rich_help_panel=BASE, help="Another folder.", metavar="DIR")
    ] = None,
    base_python: Annotated[
        str, typer.Option("--base-python", rich_help_panel=BASE, help="Another environment.", metavar="PYTHON")
    ] = "",
    baseline: Annotated[
        str,
        typer.Option(
            rich_help_panel=BASE, help="Compare two stored runs instead: a run, or a name.", metavar="RUN|NAME"
        ),
    ] = "",
    noop: Annotated[
        bool, typer.Option("--noop", rich_help_panel=BASE, help="Head against itself: what this machine can tell.")
    ] = False,
    seq: options.Seq = None,
    batch: options.Batch = None,
    heads: options.Heads = None,
    kv_heads: options.KvHeads = None,
    head_dim: options.HeadDim = None,
    dtype: options.Dtype = None,
    mask: options.Mask = None,
    score: options.Score = None,
    bias: options.Bias = None,
    mode: options.ModeOption = None,
    set_: options.Set = None,
    backend: options.BackendOption = None,
    device: Annotated[
        str, typer.Option("--device", rich_help_panel=ARMS, help="cpu:threads=1 or cuda:0 by default.", metavar="LIST")
    ] = "",
    budget: Annotated[
        str, typer.Option(rich_help_panel=MEASURING, help="No further launches begin after it.", metavar="TIME")
    ] = "15m",
    rounds: Annotated[str, typer.Option(rich_help_panel=MEASURING, help="Rounds of a launch.", metavar="N")] = "10",
    timeout: Annotated[
        str, typer.Option(rich_help_panel=MEASURING, help="For each phase of a case.", metavar="TIME")
    ] = "60s",
    seed: Annotated[int, typer.Option(rich_help_panel=MEASURING, help="Of inputs and of the order.", metavar="N")] = 0,
    case: Annotated[
        str, typer.Option("--case", rich_help_panel=CHOOSING, help="One alone: its label or id.", metavar="CASE")
    ] = "",
    only: Annotated[
        list[str] | None, typer.Option(rich_help_panel=CHOOSING, help="Keep these: seq=..4k.", metavar="KEY=VALUES")
    ] = None,
    skip: Annotated[
        list[str] | None, typer.Option(rich_help_panel=CHOOSING, help="Drop these: backend=flex.", metavar="KEY=VALUES")
    ] = None,
    inconclusive: Annotated[
        str, typer.Option(help="fail: exit 3 where a case stays open; ok: exit 0.", metavar="fail|ok")
    ] = "fail",
    out: Annotated[Path | None, typer.Option("--out", "-o", rich_help_panel=OUTPUT, help="Run directory.")] = None,
    everything: Annotated[bool, typer.Option("--all", rich_help_panel=OUTPUT, help="Unchanged cases too.")] = False,
    json_: Annotated[bool, typer.Option("--json", rich_help_panel=OUTPUT, help="One JSON object a line.")] = False,
    markdown: Annotated[
        Path | None, typer.Option(rich_help_panel=OUTPUT, help="A comment for a pull request.", metavar="FILE")
    ] = None,
    junit: Annotated[Path | None, typer.Option(rich_help_panel=OUTPUT, help="JUnit XML.", metavar="FILE")] = None,
    gitlab: Annotated[
        Path | None, typer.Option(rich_help_panel=OUTPUT, help="Code quality report of GitLab.", metavar="FILE")
    ] = None,
    github: Annotated[
        bool, typer.Option("--github", rich_help_panel=OUTPUT, help="Annotations, and the step summary.")
    ] = False,
    history_: Annotated[
        Path | None,
        typer.Option("--history", rich_help_panel=OUTPUT, help="Append head's times to this trend.", metavar="FILE"),
    ] = None,
    progress_: Annotated[
        str, typer.Option("--progress", rich_help_panel=OUTPUT, help="auto, bar, lines or none.", metavar="STYLE")
    ] = "auto",
) -> int:
    """Measure base and head side by side over relaunched workers, confirm what looks changed, and say so.

    Exit codes: 0 ok, 1 regressed, 3 inconclusive, 4 not comparable, 5 wrong, failed or vanished, 6 nothing measured.
    """
    from attnbench import api
    from attnbench.errors import Exit, UsageError
    from attnbench.gate import history, judgement
    from attnbench.gate import stored as rule
    from attnbench.report import gate as report
    from attnbench.sweep import Request

    if inconclusive not in ("fail", "ok"):
        raise UsageError(f"--inconclusive {inconclusive}: fail or ok")
    stored = _stored(suites)
    interrupted = False
    if stored:
        if base_ref or base_path or base_python or noop:
            raise UsageError(f"{stored} is a run that was measured: a base is given for what is to be measured")
        run: Run = api.load(stored)
        if baseline:
            judged = rule.against(run, rule.base_of(baseline, run.manifest.fingerprint))
        else:
            judged = judgement.judge(run)
    elif baseline:
        raise UsageError(f"--baseline {baseline}: against which run? attnbench gate RUN --baseline {baseline}")
    else:
        axes = options.axes(
            set_, seq=seq, batch=batch, heads=heads, kv_heads=kv_heads, head_dim=head_dim, dtype=dtype, mask=mask,
            score=score, bias=bias, mode=mode,
        )  # fmt: skip
        request = Request(
            suites=tuple(suites or ()), axes=axes, backend=backend or "", device=device, budget="0", rounds=rounds,
            timeout=timeout, seed=seed, only=tuple(only or ()), skip=tuple(skip or ()),
        )  # fmt: skip
        with _base(base_ref, base_path, base_python, noop) as base:
            ended = _measure(request, case, base, out, budget, "none" if context.obj["quiet"] else progress_)
        run, judged, interrupted = ended.run, ended.judged, ended.interrupted
    code = report.exit_code(judged, inconclusive == "ok")
    _print(run, judged, code, as_json=json_, everything=everything or noop)
    _files(run, judged, markdown, junit, gitlab, github)
    if history_:
        history.append(history_, history.point(run))
    if noop and not json_:
        print(f"\n{report.reach(judged)}")
    print(f"run: {run.path}", file=sys.stderr)
    return Exit.INTERRUPTED if interrupted else code


def _stored(names: list[str] | None) -> str:
    """The name of a run, where one was given and no suite."""
    from attnbench import store

    if names and len(names) == 1:
        for path in (Path(names[0]), store.results_root() / names[0]):
            if (path / store.MANIFEST).is_file():
                return names[0]
        if names[0] == "last":
            return "last"
    return ""


def _base(ref: str, path: Path | None, python: str, noop: bool) -> AbstractContextManager[Side]:
    from attnbench.errors import UsageError
    from attnbench.gate import trees

    given = [name for name, value in (("--base-ref", ref), ("--base-path", path), ("--base-python", python)) if value]
    given += ["--noop"] if noop else []
    if len(given) != 1:
        said = f"{' and '.join(given)} name the base twice" if given else "no base"
        raise UsageError(f"{said}: give one of --base-ref REF, --base-path DIR, --base-python PYTHON, --noop")
    if ref:
        return trees.of_ref(ref)
    if path:
        return nullcontext(trees.of_path(path))
    return nullcontext(trees.of_python(python) if python else trees.head())


def _measure(request: Request, case: str, base: Side, out: Path | None, budget: str, style: str) -> Ended:
    from datetime import UTC, datetime

    from attnbench import store, sweep
    from attnbench.cli import progress, running
    from attnbench.gate import paired, trees
    from attnbench.runner import Runner
    from attnbench.units import parse_seconds

    budget_s = parse_seconds(budget, "--budget") or float("inf")
    ready = sweep.ready(paired.request(request), default_suite=paired.DEFAULT_SUITE)
    ready = paired.only(ready, case) if case else ready
    where = out or store.new_directory(
        store.results_root(), f"gate-{ready.name}", ready.devices[0].text, datetime.now(UTC)
    )
    runners: list[Runner] = []
    launches = ready.terms.launches
    with (
        progress.observer(style, paired.results_expected(ready) * launches) as watcher,
        running.interruptible(runners),
    ):
        return paired.measure(
            ready, base, trees.head(), directory=where, observer=watcher, budget_s=budget_s, watch=runners.append,
            command=["attnbench", *sys.argv[1:]],
        )  # fmt: skip


def _print(run: Run, judged: Judged, code: int, *, as_json: bool, everything: bool) -> None:
    from attnbench.errors import Exit
    from attnbench.report import gate as report
    from attnbench.report import jsonl
    from attnbench.report.table import columns

    if as_json:
        for one in judged.verdicts:
            print(jsonl.line(report.record(one)))
        print(jsonl.line(report.summary(run, judged, Exit(code))))
        return
    for line in report.text(run, judged, columns(), everything):
        print(line)


def _files(
    run: Run, judged: Judged, markdown: Path | None, junit: Path | None, gitlab: Path | None, github: bool
) -> None:
    from attnbench.errors import StoreError
    from attnbench.report import ci
    from attnbench.report import gate as report

    summary = os.environ.get("GITHUB_STEP_SUMMARY") if github else None
    written = (
        (markdown, report.markdown(run, judged)),
        (junit, ci.junit(judged, run.manifest.suite)),
        (gitlab, ci.gitlab(judged, run.manifest.suite)),
    )
    try:
        for path, text in written:
            if path:
                path.write_text(text, encoding="utf-8")
        if summary:
            with Path(summary).open("a", encoding="utf-8") as file:
                file.write(report.markdown(run, judged, report.SUMMARY_MOST))
    except OSError as error:
        raise StoreError(f"cannot write {error.filename}: {error.strerror}") from error
    if github:
        for line in ci.commands(judged):
            print(line)
