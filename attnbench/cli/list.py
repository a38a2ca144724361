"""`attnbench list`: what is available and what is missing, from package metadata, without importing backends."""

from collections.abc import Mapping, Sequence
from typing import ClassVar, Protocol

from attnbench.cli import options
from attnbench.cli.application import Application

app = Application("List backends, suites, masks, metrics and devices.")

Table = Sequence[Mapping[str, object]]


class Word(Protocol):
    """A word of a grammar: a class of masks, biases or weightings."""

    __doc__: str | None
    example: ClassVar[str]


@app.add
def backends(json: options.Json = False) -> None:
    """List the backends, and how to install what is missing."""
    from attnbench import backends
    from attnbench.engine import plan

    records = []
    for name in backends.names():
        backend = backends.load(name)
        absent = plan.missing(backend)
        records.append(
            {
                "backend": name,
                "devices": ",".join(sorted(backend.limits)),
                "installed": "no" if absent else "yes",
                "summary": backend.summary + (f"; install: {backend.install}" if absent else ""),
            }
        )
    _print(records, json)


@app.add
def suites(json: options.Json = False) -> None:
    """List the shipped suites, with their size and source.

    A case is a problem on one backend; a suite that names no backends has as many as the command chooses.
    """
    from attnbench import suite
    from attnbench.attention.problem import Dtype
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
    _print(records, json)


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
    records, meanings = [], []
    for word in (*plain, *kinds):
        takers = [name for name, words in features.items() if word in (*plain, "softmax") or word in words]
        written = word if word in plain else kinds[word].example
        about = plain.get(word) or (kinds[word].__doc__ or "").splitlines()[0]
        if json:
            records.append({noun: written, "means": about, "backends": ", ".join(takers)})
        else:
            records.append({noun: written, **_share_of_libraries(tuple(features), takers)})
            meanings.append(f"{written}: {about}")
    _print(records, json)
    for meaning in meanings:
        print(meaning)


def _share_of_libraries(names: Sequence[str], takers: Sequence[str]) -> dict[str, str]:
    """By library, how many of its backends are in `takers`: yes, no, or `4 of 5`."""
    shares = {}
    for library in dict.fromkeys(name.partition(":")[0] for name in names):
        members = [name for name in names if name.partition(":")[0] == library]
        count = sum(name in takers for name in members)
        shares[library] = "yes" if count == len(members) else f"{count} of {len(members)}" if count else "no"
    return shares


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


def _print(records: Table, as_json: bool) -> None:
    if as_json:
        import msgspec

        for record in records:
            print(msgspec.json.encode(record).decode())
        return
    names = list(records[0])
    widths = [max(len(str(record[name])) for record in [*records, {name: name}]) for name in names]
    for record in [{name: name for name in names}, *records]:
        padded = (str(record[name]).ljust(width) for name, width in zip(names, widths, strict=True))
        print("  ".join(padded).rstrip())
