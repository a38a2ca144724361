"""`attnbench suite`: suite files looked at, checked, and made from a model's config.json."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from attnbench.cli import catalog

app = typer.Typer(help="Suite files: what there is, and one of your own.", no_args_is_help=True, rich_markup_mode=None)

Which = Annotated[str, typer.Argument(help="A shipped name, or a file.", metavar="SUITE")]

app.command("list")(catalog.suites)


@app.command()
def show(name: Which) -> None:
    """Title, source, and every problem of each kind of device."""
    from attnbench import suite
    from attnbench.attention.problem import Dtype
    from attnbench.case import problem_label
    from attnbench.suite import Impossible

    one = suite.load(name)
    print(f"{one.name}: {one.title}\nsource: {one.source or 'none'}")
    for kind, dtype in (("cpu", Dtype.FP32), ("cuda", Dtype.BF16)):
        cells = list(suite.expand(one, kind=kind, dtype=dtype))
        print(f"\n{kind}: {len(cells)} problems")
        for cell in cells:
            if isinstance(cell, Impossible):
                print(f"  impossible: {cell.text}: {cell.reason}")
                continue
            table = one.tables[cell.table]
            said = [table.name, ", ".join(cell.backends), "not compared with the source yet" if table.check else ""]
            print(f"  {problem_label(cell.problem, cell.mode)}  {'; '.join(filter(None, said))}".rstrip())


@app.command()
def validate(
    files: Annotated[list[str], typer.Argument(help="Files, or shipped names.", metavar="SUITE...")],
) -> int:
    """Read each file, and say what is wrong in it, with its key; exit code 2 if anything is."""
    from attnbench import suite
    from attnbench.attention.problem import Dtype
    from attnbench.errors import AttnbenchError, Exit
    from attnbench.suite import Impossible

    wrong = 0
    for name in files:
        try:
            one = suite.load(name)
            cells = [cell for kind in ("cpu", "cuda") for cell in suite.expand(one, kind=kind, dtype=Dtype.FP32)]
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


@app.command()
def schema() -> None:
    """The JSON Schema of a suite file, for editors."""
    import json

    from attnbench import suite

    print(json.dumps(suite.schema(), indent=2))


@app.command("from-config")
def from_config(
    config: Annotated[Path, typer.Argument(help="A model's config.json.", metavar="CONFIG.JSON")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="File; printed by default.", metavar="FILE")] = None,
    source: Annotated[str, typer.Option(help="Where the config comes from; the file's name by default.")] = "",
) -> None:
    """Make a suite of a model's attention from its config.json; nothing is downloaded."""
    import json

    from attnbench.errors import StoreError, SuiteError
    from attnbench.suite import models

    try:
        read = json.loads(config.read_text(encoding="utf-8"))
    except OSError as error:
        raise SuiteError(f"{config}: {error.strerror}") from error
    except ValueError as error:
        raise SuiteError(f"{config}: not JSON: {error}") from error
    if not isinstance(read, dict):
        raise SuiteError(f"{config}: not the config of a model: a {type(read).__name__} where fields were expected")
    text = models.suite_of(read, source or config.name)
    if out is None:
        print(text, end="")
        return
    try:
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise StoreError(f"cannot write {out}: {error.strerror}") from error
    print(out)
