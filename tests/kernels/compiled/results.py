"""What the compiler made of every launch, stored in `results.jsonl` with a digest of all that this depends on.

A result counts while its digest is that of its launch. `python -m tests.kernels.compiled.table` compiles the others.
"""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import msgspec
import triton
from triton.compiler.compiler import make_backend

from tests.kernels.compiled import build
from tests.kernels.compiled.build import TARGETS, Built
from tests.kernels.compiled.code import code_of, normalised, source_of
from tests.kernels.compiled.grid import Variant, call_of

STORED = Path(__file__).with_name("results.jsonl")


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """A line of the file."""

    name: str  # of a variant
    digest: str
    built: Built


@cache
def digest(variant: Variant) -> str:
    """Of all that the compiler's result depends on: code, constants, signature, options, target and versions."""
    call = call_of(variant)
    launch, kernel = build.source(call), call.kernel
    parts = (
        *(kernel.__name__, code_of(kernel.fn.__module__, kernel.fn.__name__), _compilation()),
        *(launch.signature, sorted(map(str, launch.constants.items())), sorted(launch.attrs)),
        *(sorted(build.options(call).items()), TARGETS[variant.arch], triton.__version__, _assembler(variant.arch)),
    )
    return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()[:16]


@cache
def _compilation() -> str:
    """How a launch is compiled, and its figures are read."""
    return normalised(source_of(build.__name__))


@cache
def _assembler(arch: str) -> str:
    """The version of ptxas; AMD's assembler is a part of Triton."""
    return make_backend(TARGETS[arch]).hash()


@cache
def stored() -> dict[str, Result]:
    """Every line of the file, by the name of its variant."""
    lines = STORED.read_bytes().splitlines() if STORED.exists() else []
    results = (msgspec.json.decode(line, type=Result) for line in lines)
    return {result.name: result for result in results}


def look_up(variant: Variant) -> Built | None:
    """The stored result, if it is up to date."""
    result = stored().get(variant.name)
    return result.built if result and result.digest == digest(variant) else None


def write(results: Iterable[Result]) -> None:
    """Replace the file."""
    lines = [msgspec.json.encode(result) + b"\n" for result in sorted(results, key=lambda result: result.name)]
    STORED.write_bytes(b"".join(lines))


def sample(variants: Iterable[Variant]) -> Variant | None:
    """One of those whose result is stored: another one with each commit."""
    current = sorted(variant for variant in variants if look_up(variant))
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=STORED.parent, capture_output=True, check=False).stdout
    number = int.from_bytes(hashlib.sha256(head).digest()[:8], "big")
    return current[number % len(current)] if current else None
