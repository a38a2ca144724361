"""Compile every launch whose result is not stored, and write results.jsonl and the table of docs/kernels.md.

`python -m tests.kernels.compiled.table`. All cores compile; what was compiled before an interruption is kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import triton

from attnbench.analysis import parallel
from tests.kernels.compiled.build import Built, build
from tests.kernels.compiled.grid import Variant, call_of, everything, tiling_of
from tests.kernels.compiled.results import Result, digest, look_up, stored, write

DOCUMENT = Path(__file__).parents[3] / "docs" / "kernels.md"
BEGIN, END = "<!-- compiled: begin -->", "<!-- compiled: end -->"
TITLE = f"Triton {triton.__version__}, `python -m tests.kernels.compiled.table`:"
HEAD = (
    "| kernel | GPU | dtype | head_dim | mask | feature | block_q x block_kv | warps | stages | registers | spilled B "
    "| shared B | products |"
)


def row(variant: Variant, built: Built) -> str:
    """One line of the table."""
    chosen = tiling_of(variant)
    counts: dict[str, int] = {}
    for name, count in built.products.items():
        short = name.partition(".")[0] if "." in name else "mfma"
        counts[short] = counts.get(short, 0) + count
    products = ", ".join(f"{name} {count}" for name, count in sorted(counts.items())) or "-"
    cells = [
        *(variant.kernel, variant.arch, variant.dtype, variant.width, variant.mask, variant.feature or "-"),
        *(f"{chosen.block_q} x {chosen.block_kv}", chosen.warps, chosen.stages),
        *(built.registers, built.spilled_bytes, built.shared_bytes, products),
    ]
    return "| " + " | ".join(map(str, cells)) + " |"


def table(variants: list[Variant]) -> Iterator[str]:
    """The part of the document."""
    yield from (TITLE, "", HEAD, "|" + "---|" * (HEAD.count("|") - 1))
    for variant in variants:
        yield row(variant, stored()[variant.name].built)


def _compiled(variant: Variant) -> Result:
    return Result(name=variant.name, digest=digest(variant), built=build(call_of(variant), variant.arch))


def main() -> None:
    """Replace the results that are out of date, and the part of the document between the marks."""
    variants = list(dict.fromkeys(everything()))
    outdated = [variant for variant in variants if not look_up(variant)]
    names = {variant.name for variant in variants}
    for count, result in enumerate(parallel.stream(_compiled, outdated), 1):
        stored()[result.name] = result
        write(result for result in stored().values() if result.name in names)
        print(f"{count} of {len(outdated)}: {result.name}", flush=True)
    text = DOCUMENT.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    DOCUMENT.write_text(f"{before}{BEGIN}\n\n" + "\n".join(table(variants)) + f"\n\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
