"""`attnbench suite`: show, check and create suite files."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from attnbench.cli import list as list_
from attnbench.cli.application import Application

app = Application("Show, check and create suite files.")

Which = Annotated[str, typer.Argument(help="Shipped suite, or a suite file.", metavar="SUITE")]

app.add(list_.suites, "list")


@app.add
def show(name: Which) -> None:
    """Print the source and the problems of a suite."""
    from attnbench import suite
    from attnbench.attention.choices import Dtype
    from attnbench.records.case import problem_label
    from attnbench.suite import Impossible, sources

    loaded = suite.load(name)
    print(f"{loaded.name}: {loaded.title}\nsource: {loaded.source or 'none'}")
    for line in sources.describe(loaded.tables):
        print(line)
    for kind, dtype in (("cpu", Dtype.FP32), ("cuda", Dtype.BF16)):
        cells = list(suite.expand(loaded, kind=kind, dtype=dtype))
        cases = suite.count_cases(cells)
        print(f"\n{kind}: {len(cells)} problems" + (f", {cases} cases" if cases else ""))
        for cell in cells:
            if isinstance(cell, Impossible):
                print(f"  impossible: {cell.text}: {cell.reason}")
                continue
            table = loaded.tables[cell.table]
            notes = [table.name, ", ".join(cell.backends)]
            print(f"  {problem_label(cell.problem, cell.mode)}  {'; '.join(filter(None, notes))}".rstrip())


@app.add
def validate(
    files: Annotated[list[str], typer.Argument(help="Suite files, or shipped suites.", metavar="SUITE")],
) -> int:
    """Check suite files, and print their mistakes.

    Exit code 2 if there are any.
    """
    from attnbench import suite
    from attnbench.attention.choices import Dtype
    from attnbench.errors import AttnbenchError, Exit
    from attnbench.gate import record
    from attnbench.suite import Impossible

    wrong = 0
    for name in files:
        try:
            loaded = suite.load(name)
            record.read_settings(loaded.gate, loaded.gate_file)
            cells = [cell for kind in ("cpu", "cuda") for cell in suite.expand(loaded, kind=kind, dtype=Dtype.FP32)]
        except AttnbenchError as error:
            print(f"attnbench: {error}", file=sys.stderr)
            wrong += 1
            continue
        impossible = [cell for cell in dict.fromkeys(cells) if isinstance(cell, Impossible)]
        for cell in impossible:
            print(f"attnbench: {name}: {cell.text}: {cell.reason}", file=sys.stderr)
        wrong += bool(impossible)
        print(f"{name}: {'impossible problems' if impossible else 'ok'}, {len(dict.fromkeys(cells))} problems")
    return Exit.USAGE if wrong else Exit.OK


@app.add
def schema() -> None:
    """Print the JSON Schema of a suite file, for editors."""
    import json

    from attnbench.gate import record

    print(json.dumps(record.suite_schema(), indent=2))


def from_config(
    config: Annotated[Path, typer.Argument(help="config.json of a model.", metavar="CONFIG.JSON")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Output file; stdout by default.", metavar="FILE")
    ] = None,
    source: Annotated[
        str, typer.Option(help="Source to name in the suite; the file name by default.", metavar="TEXT")
    ] = "",
) -> None:
    """Create a suite from a model's config.json.

    Nothing is downloaded. What cannot be read is named on stderr and in the suite. An unknown model type is refused.
    """
    from attnbench.errors import SuiteError, UsageError, writing
    from attnbench.suite import models

    read = models.read_config(config)
    try:
        made = models.suite_of(read, source or config.name)
    except UsageError as error:
        raise SuiteError(f"{config}: {error}") from error
    for note in made.notes:
        print(f"attnbench: note: {note}", file=sys.stderr)
    if out is None:
        print(made.text, end="")
        return
    with writing(out):
        out.write_text(made.text, encoding="utf-8")
    print(out)


app.add(from_config)
