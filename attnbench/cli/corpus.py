"""`attnbench corpus`: the detection and false-alarm rates of attnbench's rule and of others."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from attnbench.cli import checks, options

FORMATS = ("table", "md", "jsonl")


def corpus(
    context: typer.Context,
    sample: Annotated[
        int | None,
        options.option("--sample", help="Judge so many kernels, evenly spread.", metavar="N", check=checks.at_least(1)),
    ] = None,
    rule: Annotated[
        str,
        options.option(
            "--rule", help="Comma list of rules; all by default.", metavar="NAMES",
            check=checks.some_of("rule", checks.names_in("studies.corpus.study:RULES")),
        ),
    ] = "",
    format: Annotated[  # noqa: A002
        str,
        options.option(
            "--format", help="Output format: table, md or jsonl.", metavar="FORMAT",
            check=checks.one_of("format", lambda: FORMATS),
        ),
    ] = "table",
    list_only: Annotated[bool, options.option("--list", help="List the kernels and sources; judge none.")] = False,
) -> int:  # fmt: skip
    """Judge known wrong and right kernels by several rules.

    The wrong ones are silent bugs from public reports, the right ones look suspicious. Prints how many each rule finds
    wrong. Exits with 5 if attnbench's own rule errs. About half a minute on one core.
    """
    from attnbench.studies.corpus import study

    if list_only:
        return _list(study.sample(sample), format)
    return _judge(study.sample(sample), rule, format, options.global_options(context).quiet)


def _list(names: list[str], form: str) -> int:
    from attnbench.cli import output
    from attnbench.errors import Exit
    from attnbench.report.formats import corpus as report
    from attnbench.studies.corpus import registry

    entries = [registry.listing()[name] for name in names]
    output.lines(entries, report.entries(entries), form == "jsonl")
    return Exit.OK


def _judge(names: list[str], rule: str, form: str, quiet: bool) -> int:
    import msgspec

    from attnbench.cli import output
    from attnbench.report.formats import corpus as report
    from attnbench.report.terminal.text_layout import terminal_width
    from attnbench.studies.corpus import study
    from attnbench.units import words

    rules = words(rule, "--rule") if rule else study.RULES
    verdicts = []
    for verdict in study.judge(names, rules):
        verdicts.append(verdict)
        if not quiet and sys.stderr.isatty():
            print(f"\r{len(verdicts)} of {len(names) * len(rules)} judged", end="", file=sys.stderr)
    if form == "md":
        print(report.tables(verdicts), end="")
    else:
        output.lines(map(msgspec.to_builtins, verdicts), report.text(verdicts, terminal_width()), form == "jsonl")
    return study.exit_code(verdicts)
