"""Writes what the compiler makes of every kernel into docs/kernels.md: `python -m tests.kernels.compiled.table`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import triton

from tests.kernels.compiled.build import Built, build
from tests.kernels.compiled.grid import Variant, call_of, everything, tiling_of

DOCUMENT = Path(__file__).parents[3] / "docs" / "kernels.md"
BEGIN, END = "<!-- compiled: begin -->", "<!-- compiled: end -->"
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
        *(built.registers, built.spilled_bytes, built.shared_bytes, built.error or products),
    ]
    return "| " + " | ".join(map(str, cells)) + " |"


def lines() -> Iterator[str]:
    """The whole table."""
    yield f"Triton {triton.__version__}, `python -m tests.kernels.compiled.table`:"
    yield ""
    yield HEAD
    yield "|" + "---|" * (HEAD.count("|") - 1)
    for variant in dict.fromkeys(everything()):
        yield row(variant, build(call_of(variant), variant.arch))


def main() -> None:
    """Replace the part of the document between the marks."""
    text = DOCUMENT.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    DOCUMENT.write_text(f"{before}{BEGIN}\n\n" + "\n".join(lines()) + f"\n\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
