"""`attnbench bisect`: which commit made a case slower."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from attnbench.cli import options
from attnbench.cli.options import MEASURING


def bisect(
    context: typer.Context,
    good: Annotated[str, typer.Argument(help="A commit, branch or tag at which the case was fast.", metavar="GOOD")],
    bad: Annotated[str, typer.Argument(help="A later one at which it is slow.", metavar="BAD")] = "HEAD",
    case: Annotated[
        str, typer.Option("--case", help="Label or id, as `gate` prints it; all that is asked for by default.")
    ] = "",
    suite: options.Suite = None,
    seq: options.Seq = None,
    heads: options.Heads = None,
    head_dim: options.HeadDim = None,
    dtype: options.Dtype = None,
    mask: options.Mask = None,
    mode: options.ModeOption = None,
    set_: options.Set = None,
    backend: options.BackendOption = None,
    device: options.DeviceOption = None,
    rounds: Annotated[str, typer.Option(rich_help_panel=MEASURING, help="Rounds of a launch.", metavar="N")] = "10",
    budget: Annotated[str, typer.Option(rich_help_panel=MEASURING, help="Of one step.", metavar="TIME")] = "5m",
) -> int:
    """Gate GOOD against the commits between, halving what is left; a commit that cannot be judged is skipped."""
    from attnbench import sweep
    from attnbench.cli import progress
    from attnbench.errors import Exit
    from attnbench.gate import bisect as study
    from attnbench.gate import paired, trees
    from attnbench.gate.bisect import Word
    from attnbench.sweep import Request
    from attnbench.units import parse_seconds

    axes = options.axes(set_, seq=seq, heads=heads, head_dim=head_dim, dtype=dtype, mask=mask, mode=mode)
    request = Request(
        suites=tuple(suite or ()), axes=axes, backend=backend or "", device=device or "", budget="0", rounds=rounds
    )
    budget_s = parse_seconds(budget, "--budget") or float("inf")
    commits = study.commits(good, bad)
    ready = sweep.ready(paired.request(request), default_suite=paired.DEFAULT_SUITE)
    ready = paired.only(ready, case) if case else ready

    def ask(commit: str) -> Word:
        with (
            tempfile.TemporaryDirectory(prefix="attnbench-") as folder, trees.of_ref(good) as base,
            trees.of_ref(commit) as head, progress.observer("none", 0) as watcher,
        ):  # fmt: skip
            ended = paired.measure(
                ready, base, head, directory=Path(folder) / "run", observer=watcher, budget_s=budget_s,
                watch=lambda _: None,
            )  # fmt: skip
        word = study.word(ended.judged)
        if not context.obj["quiet"]:
            print(f"{word.value:<5} {trees.subject(commit)}", file=sys.stderr, flush=True)
        return word

    last = ask(commits[-1])
    if last is not Word.BAD:
        print(f"{bad} is not slower than {good}: {last.value}; nothing to look for")
        return Exit.INCONCLUSIVE if last is Word.SKIP else Exit.OK
    found = study.search(commits, ask)
    if found.first_bad:
        print(f"first bad: {trees.subject(found.first_bad)}")
        return Exit.OK
    print(f"the first bad one is among {len(found.suspects)}, of which all but the last cannot be judged:")
    for commit in found.suspects:
        print(f"  {trees.subject(commit)}")
    return Exit.INCONCLUSIVE
