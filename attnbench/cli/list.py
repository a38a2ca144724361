"""`attnbench list`: what is available and what is missing, from package metadata, without importing backends."""

from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, Protocol

from attnbench.cli import options
from attnbench.cli.application import Application
from attnbench.report.terminal.text_layout import terminal_width, wrap

app = Application("List backends, suites, masks, metrics and devices.")

Table = Sequence[Mapping[str, object]]
Long = Annotated[bool, options.option("--long", help="Print all columns.")]
NOTHING: Mapping[str, bool] = {}
INDENT = 4
MIN_LAST = 24  # columns of the terminal for the last column of a table


class Word(Protocol):
    """A word of a grammar: a class of masks, biases or weightings."""

    __doc__: str | None
    example: ClassVar[str]


@app.add
def backends(long: Long = False, json: options.Json = False) -> None:
    """List the backends; --long shows how to install them."""
    from attnbench import backends
    from attnbench.engine import interpreters

    records = []
    for name in backends.names():
        backend = backends.load(name)
        absent = interpreters.missing(backend)
        records.append(
            {
                "backend": name,
                "devices": ",".join(sorted(backend.limits)),
                "installed": "no" if absent else "yes",
                "summary": backend.summary,
                "install": backend.install if absent else "",
            }
        )
    _print(records, json, below={"install": long})
    if not (json or long) and any(record["install"] for record in records):
        for line in wrap("attnbench list backends --long: how to install what is missing", terminal_width()):
            print(line)


@app.add
def suites(long: Long = False, json: options.Json = False) -> None:
    """List the shipped suites; --long shows their sources.

    A case is a problem on one backend; a suite that names no backends has as many as the command chooses.
    """
    from attnbench import suite
    from attnbench.attention.choices import Dtype
    from attnbench.suite import sources

    records = []
    for name in suite.shipped():
        loaded = suite.load(name)
        cells = [list(suite.expand(loaded, kind=kind, dtype=Dtype.FP32)) for kind in ("cpu", "cuda")]
        records.append(
            {
                "suite": name,
                "problems": "/".join(dict.fromkeys(str(len(of_kind)) for of_kind in cells)),
                "cases": "/".join(dict.fromkeys(str(suite.count_cases(of_kind) or "-") for of_kind in cells)),
                "title": loaded.title,
                "compared": sources.summarise(loaded.tables),
                "source": loaded.source,
            }
        )
    _print(records, json, below={"compared": long, "source": long})


@app.add
def masks(json: options.Json = False) -> None:
    """List the masks, and which backends support them."""
    from attnbench.attention.masks import PRIMITIVES

    _words("mask", PRIMITIVES, {"none": "every key"}, json)


@app.add
def biases(json: options.Json = False) -> None:
    """List the biases, and which backends support them."""
    from attnbench.attention.biases import BIASES

    _words("bias", BIASES, {"none": "no bias"}, json)


@app.add
def weightings(json: options.Json = False) -> None:
    """List the weightings, and which backends support them.

    They are set by `--set weighting=NAME`.
    """
    from attnbench.attention.weightings import WEIGHTINGS

    _words("weighting", WEIGHTINGS, {}, json)


def _words(noun: str, kinds: Mapping[str, type[Word]], plain: Mapping[str, str], json: bool) -> None:
    """Print the words of a grammar with the backends that support them; every backend supports those of `plain`."""
    from attnbench import backends

    features = {
        name: {word for limits in backends.load(name).limits.values() for word in limits.features}
        for name in backends.names()
    }
    records = []
    for word in (*plain, *kinds):
        takers = [name for name, words in features.items() if word in (*plain, "softmax") or word in words]
        about = plain.get(word) or (kinds[word].__doc__ or "").splitlines()[0]
        supported = ", ".join(takers) if json else _libraries(tuple(features), takers)
        records.append({noun: word if word in plain else kinds[word].example, "means": about, "backends": supported})
    _print(records, json, below={"means": False})
    if not json:
        print()
        for record in records:
            for line in wrap(f"{record[noun]}: {record['means']}", terminal_width(), indent=2):
                print(line)


def _libraries(names: Sequence[str], takers: Sequence[str]) -> str:
    """The libraries of the backends in `takers`, each with `4 of 5` where only some of its backends are."""
    shares = []
    for library in dict.fromkeys(name.partition(":")[0] for name in names):
        members = [name for name in names if name.partition(":")[0] == library]
        if count := sum(name in takers for name in members):
            shares.append(library if count == len(members) else f"{library} ({count} of {len(members)})")
    return ", ".join(shares) if set(names) - set(takers) else "all"


@app.add
def metrics(json: options.Json = False) -> None:
    """List the metrics for --metrics, with their groups."""
    from attnbench.analysis.metrics import GROUPS, METRICS

    groups = {name: ",".join(group for group, names in GROUPS.items() if name in names) for name in METRICS}
    _print(
        [
            {"metric": name, "unit": metric.unit or "-", "group": groups[name] or "-", "summary": metric.summary}
            for name, metric in METRICS.items()
        ],
        json,
    )


@app.add
def devices(json: options.Json = False) -> None:
    """List the devices of this machine."""
    from attnbench.machine import hardware

    model = hardware.cpu_model() or "CPU"
    gpus = {f"cuda:{gpu.index}": gpu.name for gpu in hardware.gpus()}
    records = [{"device": name, "is": gpus.get(name, model)} for name in hardware.devices()]
    _print(records, json)


def _print(records: Table, as_json: bool, below: Mapping[str, bool] = NOTHING) -> None:
    """Print a table as wide as the terminal: the last column is wrapped, or stands below where too little is left.

    `below`: the keys that are no columns, and whether their values are shown below each line.
    """
    if as_json:
        import msgspec

        for record in records:
            print(msgspec.json.encode(record).decode())
        return
    *names, last = [name for name in records[0] if name not in below]
    heading = {name: name for name in (*names, last)}
    widths = [max(len(str(record[name])) for record in [*records, heading]) for name in names]
    room = terminal_width() - sum(widths) - 2 * len(widths)
    for record in [heading, *records]:
        line = "  ".join(str(record[name]).ljust(width) for name, width in zip(names, widths, strict=True))
        pieces = wrap(str(record[last]), room if room >= MIN_LAST else terminal_width() - INDENT)
        if room >= MIN_LAST:
            line, pieces = (
                f"{line}  {pieces[0]}",
                [" " * (terminal_width() - room - INDENT) + each for each in pieces[1:]],
            )
        for name, shown in below.items():
            if shown and (text := record.get(name)):
                pieces += wrap(f"{name}: {text}", terminal_width() - INDENT, indent=2)
        print(line.rstrip())
        for piece in pieces:
            print(" " * INDENT + piece)
