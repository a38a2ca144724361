"""Tables of kernel configurations: one CSV format for those that are shipped and those that a user measured.

A key is (kernel, arch, dtype, head_dim padded to a power of two, mask): `mask` is `some`, `none` or `any`.
"""

import csv
import os
from enum import StrEnum
from functools import lru_cache
from pathlib import Path

import msgspec

from attnbench.attention import user_folders
from attnbench.errors import StoreError, writing

COLUMNS = ("kernel", "arch", "dtype", "width", "mask", "block_q", "block_kv", "warps", "stages", "source")
KEYS = 5


class Kernel(StrEnum):
    """The kernels with separate configurations."""

    FORWARD = "forward"
    FORWARD_TMA = "forward_tma"
    FORWARD_HOPPER = "forward_hopper"
    BACKWARD_KV = "backward_kv"
    BACKWARD_KV_TMA = "backward_kv_tma"
    BACKWARD_KV_HOPPER = "backward_kv_hopper"
    BACKWARD_Q = "backward_q"
    BACKWARD_Q_TMA = "backward_q_tma"
    BACKWARD_Q_HOPPER = "backward_q_hopper"
    DECODE = "decode"


WORDS: dict[str, tuple[str, ...]] = {
    "kernel": tuple(Kernel),
    "dtype": ("half", "fp8", "fp32"),
    "width": ("64", "128", "256", "512"),
    "mask": ("some", "none", "any"),
}
VARIABLE = "ATTNBENCH_TILES"
SHIPPED = Path(__file__).with_name("tiles.csv")


class TileConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Tile sizes, warps and pipeline stages; `source`: `compiled`, or the device that measured it."""

    block_q: int
    block_kv: int
    warps: int
    stages: int
    source: str = ""


Key = tuple[str, ...]  # kernel, arch, dtype, width, mask
Table = dict[Key, TileConfig]


@lru_cache(maxsize=1)
def shipped() -> Table:
    """The table of this package."""
    return read(SHIPPED)


def users_file() -> Path:
    """The file to which `attnbench tune` writes its results on this machine, or that of ATTNBENCH_TILES."""
    path = os.environ.get(VARIABLE)
    return Path(path) if path else user_folders.config() / "tiles.csv"


def users() -> Table:
    """The user's table; empty without a file. Raises ValueError if ATTNBENCH_TILES names no file."""
    try:
        path = users_file()
    except StoreError:  # no home directory
        return {}
    if not path.exists():
        if os.environ.get(VARIABLE):
            raise ValueError(f"{VARIABLE}={path}: no such file")
        return {}
    return read(path)


def read(path: Path) -> Table:
    """Read a table. Raises ValueError with the file, the line and the column."""
    table: Table = {}
    with path.open(encoding="utf-8", newline="") as file:
        lines = csv.DictReader(file)
        if tuple(lines.fieldnames or ()) != COLUMNS:
            raise ValueError(f"{path}: the first line must be {','.join(COLUMNS)}")
        for number, line in enumerate(lines, start=2):
            key = tuple(_word(path, number, name, line[name]) for name in COLUMNS[:KEYS])
            sizes = {name: _size(path, number, name, line[name]) for name in ("block_q", "block_kv", "warps", "stages")}
            table[key] = TileConfig(**sizes, source=line["source"] or "")
    return table


def find(table: Table, key: Key) -> TileConfig | None:
    """The entry for that mask, else that for any."""
    return table.get(key) or table.get((*key[:-1], "any"))


def write(path: Path, table: Table) -> None:
    """Replace the file atomically. StoreError where that cannot be written."""
    draft = path.with_name(f".{path.name}.draft")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with draft.open("w", encoding="utf-8", newline="") as file:
            out = csv.writer(file, lineterminator="\n")
            out.writerow(COLUMNS)
            for key, config in sorted(table.items(), key=_order):
                out.writerow([*key, config.block_q, config.block_kv, config.warps, config.stages, config.source])
        draft.replace(path)


def _order(entry: tuple[Key, TileConfig]) -> tuple[str, str, str, int, str]:
    kernel, arch, dtype, width, mask = entry[0]
    return kernel, arch, dtype, int(width), mask


def _word(path: Path, line: int, column: str, text: str | None) -> str:
    words = WORDS.get(column, ())
    if not text or (words and text not in words):
        raise ValueError(f"{path}: line {line}: {column}={text!r}: must be one of {', '.join(words)}")
    return text


def _size(path: Path, line: int, column: str, text: str | None) -> int:
    size = int(text) if text and text.isdecimal() else 0
    rule = "a power of two" if column != "stages" else "a number"
    if size < 1 or (column != "stages" and size & (size - 1)):
        raise ValueError(f"{path}: line {line}: {column}={text!r}: must be {rule}")
    return size
