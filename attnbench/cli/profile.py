"""`attnbench profile`: where the time and the memory of one case are spent."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from attnbench.cli import options

if TYPE_CHECKING:
    from attnbench.engine.sweep import Request
    from attnbench.records.result import Result


@options.with_options(
    options.PROBLEM, options.backend_option("sdpa"), options.DEVICE, options.BACKEND_PYTHON, options.TIMEOUT,
    options.MEM_LIMIT,
)  # fmt: skip
def profile(
    request: Request,
    bare: Annotated[
        bool, options.option("--bare", help="Only call the backend, in NVTX ranges, for nsys and ncu.")
    ] = False,
    out: Annotated[
        Path | None,
        options.option(
            "--out", "-o", help="Folder of the trace and the memory timeline; `profile` by default.", metavar="DIR"
        ),
    ] = None,
    json: options.Json = False,
) -> int:
    """Profile one case: operators or kernels, gaps, memory.

    Writes a trace for Perfetto. Without options: sdpa, causal, batch 1, 8 heads, 1024 tokens, head_dim 64.
    """
    from attnbench.cli.running import exit_code
    from attnbench.errors import writing
    from attnbench.studies import profile as study

    folder = out or Path("profile")
    if not bare:
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
    result, ending = study.run(study.with_defaults(request), folder, bare=bare)
    _show(result, folder, bare=bare, as_json=json)
    return exit_code([result], ending)


def _show(result: Result, folder: Path, *, bare: bool, as_json: bool) -> None:
    import msgspec

    from attnbench.report.formats import jsonl
    from attnbench.report.terminal import failures
    from attnbench.report.terminal import profile as report

    if as_json:
        print(jsonl.line({"type": "profile", "folder": str(folder), **msgspec.to_builtins(result)}))
    elif "profile" not in result.facts:
        for text in [f"{result.case.label}: {result.status.value}: {result.reason}", *failures.details([result])]:
            print(text, file=sys.stderr)
    elif bare:
        print(f"{result.case.label}: called in NVTX ranges named attnbench")
    else:
        for line in report.text(result, str(folder), _commands(result)):
            print(line)


def _commands(result: Result) -> list[str]:
    """Commands that profile the same calls with nsys and ncu; both follow child processes, such as the workers."""
    if result.arm.parsed_device.kind != "cuda":
        return []
    command = shlex.join(["attnbench", *sys.argv[1:], "--bare"])
    return [
        f"nsys profile --trace cuda,nvtx --capture-range nvtx --nvtx-capture attnbench "
        f"--env-var NSYS_NVTX_PROFILER_REGISTER_ONLY=0 -o attnbench {command}",
        f"ncu --target-processes all --nvtx --nvtx-include attnbench/ -o attnbench {command}",
    ]
