"""`attnbench list`: what there is, and what is missing. Package metadata is read; nothing is imported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

app = typer.Typer(
    help="Backends, suites, masks, metrics, devices: what there is and what is missing.", no_args_is_help=True
)

Json = Annotated[bool, typer.Option("--json", help="One JSON object a line.")]


@app.command()
def backends(json_: Json = False) -> None:
    """Every backend, where it runs, and the command that brings what is missing."""
    from attnbench import backends, plan

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
    _print(records, json_)


@app.command()
def suites(json_: Json = False) -> None:
    """Every shipped suite, its cells, and the source of its shapes."""
    from attnbench import suite
    from attnbench.attention.problem import Dtype

    records = []
    for name in suite.shipped():
        one = suite.load(name)
        cells = {kind: sum(1 for _ in suite.expand(one, kind=kind, dtype=Dtype.FP32)) for kind in ("cpu", "cuda")}
        count = "/".join(str(number) for number in dict.fromkeys(cells.values()))
        records.append({"suite": name, "cells": count, "title": one.title, "source": one.source})
    _print(records, json_)


@app.command()
def masks(json_: Json = False) -> None:
    """Every mask, how it is written, and which backends take it: all of a library's, some of them, or none."""
    from attnbench.attention.masks import PRIMITIVES

    _words("mask", PRIMITIVES, {"none": "every key"}, json_)


@app.command()
def biases(json_: Json = False) -> None:
    """Every bias for --bias, how it is written, and which backends take it."""
    from attnbench.attention.biases import BIASES

    _words("bias", BIASES, {"none": "no bias"}, json_)


@app.command()
def weightings(json_: Json = False) -> None:
    """Every weighting for --set weighting=..., how it is written, and which backends take it."""
    from attnbench.attention.weightings import WEIGHTINGS

    _words("weighting", WEIGHTINGS, {}, json_)


def _words(noun: str, kinds: Mapping[str, Any], everyone: Mapping[str, str], json_: bool) -> None:
    """The words of a grammar with the backends that take them; `everyone` takes those that mean nothing special."""
    from attnbench import backends

    features = {
        name: {word for limits in backends.load(name).limits.values() for word in limits.features}
        for name in backends.names()
    }
    records, meanings = [], []
    for word in (*everyone, *kinds):
        feature = getattr(kinds.get(word), "name", "") or word
        takers = [name for name, words in features.items() if word in (*everyone, "softmax") or feature in words]
        written = word if word in everyone else kinds[word].example
        about = everyone.get(word) or (kinds[word].__doc__ or "").splitlines()[0]
        if json_:
            records.append({noun: written, "means": about, "backends": ", ".join(takers)})
        else:
            records.append({noun: written, **_share_of_libraries(tuple(features), takers)})
            meanings.append(f"{written}: {about}")
    _print(records, json_)
    for meaning in meanings:
        print(meaning)


def _share_of_libraries(names: Sequence[str], takers: Sequence[str]) -> dict[str, str]:
    """By library, how many of its backends are takers: yes, no, or `4 of 5`."""
    shares = {}
    for library in dict.fromkeys(name.partition(":")[0] for name in names):
        own = [name for name in names if name.partition(":")[0] == library]
        count = sum(name in takers for name in own)
        shares[library] = "yes" if count == len(own) else f"{count} of {len(own)}" if count else "no"
    return shares


@app.command()
def metrics(json_: Json = False) -> None:
    """Every number that follows from a result, for --metrics; and the groups of them."""
    from attnbench.metrics import GROUPS, METRICS

    groups = {name: ",".join(group for group, names in GROUPS.items() if name in names) for name in METRICS}
    _print(
        [
            {"metric": one.name, "unit": one.unit or "-", "group": groups[one.name] or "-", "summary": one.summary}
            for one in METRICS.values()
        ],
        json_,
    )


@app.command()
def devices(json_: Json = False) -> None:
    """What `--device` can be on this machine."""
    from attnbench import host

    model = host.cpu_model() or "CPU"
    gpus = {f"cuda:{gpu.index}": gpu.name for gpu in host.gpus()}
    records = [{"device": name, "is": gpus.get(name, model)} for name in host.devices()]
    _print(records, json_)


def _print(records: Sequence[dict[str, Any]], as_json: bool) -> None:
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
