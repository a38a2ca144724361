"""The command line that measures or verifies a case again, with the interpreters of its backends."""

import shlex
from collections.abc import Iterable, Sequence

from attnbench.engine import interpreters


def case_command(
    command: str, problem: Sequence[str], backends: Sequence[str], device: str, pythons: Iterable[str]
) -> str:
    """`attnbench run --batch 1 ... -b naive --device cpu`, with those of `pythons` (NAME=PYTHON) that are used."""
    names = [(text.partition("=")[0], text) for text in pythons]
    used = [text for name, text in names if any(interpreters.of(backend, {name: text}) for backend in backends)]
    options = [part for text in used for part in (interpreters.OPTION, text)]
    return shlex.join(["attnbench", command, *problem, "-b", ",".join(backends), "--device", device, *options])
