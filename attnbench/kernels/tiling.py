"""The tiling and the path of a launch, from plain values: no torch, no GPU.

The shipped table (tiles.csv) holds the largest tiles whose shared memory fits and that spill no registers, but for some
of Blackwell (docs/kernels.md); results of `attnbench tune` take precedence. No search runs at call time: it would need
exclusive use of the GPU, and a bad configuration can crash the compiler.
"""

import itertools
import re
from enum import StrEnum

import msgspec

from attnbench.kernels.tables import Kernel, Table, TileConfig, find, shipped

MIN_BLOCK = 16  # tokens of a block of a block-sparse mask
MAX_HEAD_DIM = 256
MAX_LATENT = (576, 512)  # head_dim and head_dim_v where v is the first columns of k, as in DeepSeek-V3
INTERPRETER = "interpreter"  # the arch of a CPU
HOPPER = "sm_90"
MAX_HOPPER_BACKWARD_WIDTH = 128  # two accumulators of a wider head leave no registers

# Keys and values of the heads that run concurrently should stay in the L2 cache; FlashAttention-3 has the same limits.
# https://github.com/Dao-AILab/flash-attention/blob/main/hopper/tile_scheduler.hpp
RESIDENT_BYTES = {"forward": 32 * 2**20, "backward": 40 * 2**20}

# Shared memory of one block: the CUDA programming guide, table of compute capabilities; the LDS of CDNA 3.
# https://docs.nvidia.com/cuda/cuda-c-programming-guide/#features-and-technical-specifications
SHARED_BYTES = {"sm_80": 166912, "sm_86": 101376, "sm_90": 232448, "sm_100": 232448, "sm_120": 101376, "gfx942": 65536}
MAX_DECODE_ROWS = 16  # queries of a sequence that count as decoding
MAX_SPLITS = 128  # of the keys of one sequence
MAX_SPLIT_ROWS = 2**17  # rows of all splits: programs of at most 64 rows in 7 waves on the largest chip
# A launch with tensor descriptors takes about 20 microseconds longer; a shorter pass does not amortise them.
# https://github.com/triton-lang/triton/pull/7987
MIN_DESCRIPTOR_FLOPS = 2 * 10**10


class Preference(StrEnum):
    """Why a supported path is not chosen; ignored where the path is requested by name."""

    SLOWER = "slower"
    UNPROVED = "unproved"


class Objection(msgspec.Struct, frozen=True):
    """Why a path is not chosen. Without a preference, it is unsupported."""

    reason: str
    preference: Preference | None = None

    def __str__(self) -> str:
        return f"{self.preference}: {self.reason}" if self.preference else self.reason


class Path(StrEnum):
    """Ways to compute a forward pass, from the fastest; or one of the passes of a backward."""

    DECODE = "decode"
    HOPPER = "hopper"
    DESCRIPTORS = "descriptors"
    PORTABLE = "portable"


class Chip(msgspec.Struct, frozen=True):
    """The chip: `sm_90`, `gfx942` or `interpreter`, and its processors (SMs, CUs)."""

    arch: str
    processors: int = 1


class Work(msgspec.Struct, frozen=True, kw_only=True):
    """What a launch computes, in plain values."""

    dtype: str  # half, fp8, fp32 or tf32
    head_dim: int
    head_dim_v: int
    batch: int
    heads: int
    kv_heads: int
    seq_q: int
    seq_kv: int
    tokens_q: int = 0  # queries of a packed batch, whose requests have up to seq_q; 0: all have seq_q
    masked: bool = False  # some pair is hidden
    growing: bool = False  # later rows see more keys
    list_q: int = 0  # rows and keys of a block of a list; 0: no list
    list_kv: int = 0
    pair_bytes: int = 0  # read for every pair: biases, booleans
    descriptors: str = ""  # why tensor descriptors do not support these tensors; empty: they do
    split: str = ""  # why the keys cannot be split among programs; empty: they can
    hopper: str = ""  # why the kernels in Gluon do not support the call; empty: they do
    path: str = ""  # the requested one

    @property
    def dtype_bytes(self) -> int:
        """Bytes of one number."""
        return {"half": 2, "fp8": 1}.get(self.dtype, 4)


class Tiling(msgspec.Struct, frozen=True, kw_only=True):
    """Tile sizes, path and schedule of one launch."""

    path: str = "portable"
    block_q: int
    block_kv: int
    warps: int
    stages: int  # tiles in flight
    splits: int = 1  # shares of the keys
    parts: int = 1  # shares of the query heads of a key head, in the pass for dk and dv
    resident: int = 1  # (batch, head) pairs whose tiles run concurrently
    long_first: bool = False  # the tiles of the last rows before those of the first
    passed_over: tuple[str, ...] = ()  # faster paths, and why they are not chosen


def tiling(work: Work, chip: Chip, kernel: Kernel = Kernel.FORWARD, table: Table | None = None) -> Tiling:
    """The tiling of a launch. Entries of `table` take precedence over the shipped ones.

    A pass takes the first path without an objection. Raises ValueError for a requested path that is not supported.
    """
    of_path = {
        Path.DECODE: _no_split(work),
        Path.HOPPER: _no_hopper(work, chip),
        Path.DESCRIPTORS: _no_descriptors(work, chip),
        Path.PORTABLE: None,
    }
    objections = {path: objection for path, objection in of_path.items() if (kernel, path) in _KERNELS}
    for path in objections:
        if not objections[path] and not _entry(work, chip, _KERNELS[kernel, path], table):
            reason = f"no configuration for head dims of {_width(work)} in {work.dtype} on {chip.arch}"
            objections[path] = Objection(reason)
    if not objections:
        return _tiling(work, chip, kernel, table, path=Path.PORTABLE)
    if work.path and work.path not in tuple(Path):
        raise ValueError(f"path={work.path!r}: must be one of {', '.join(Path)}")
    forced = next((path for path in objections if path == work.path), None)
    if forced:
        if (objection := objections[forced]) and not objection.preference:
            raise ValueError(f"path={work.path!r} is not supported here: {objection}")
        return _tiling(work, chip, _KERNELS[kernel, forced], table, path=forced)
    chosen = next((path for path, objection in objections.items() if not objection), Path.PORTABLE)
    faster = itertools.takewhile(lambda path: path is not chosen, objections)
    passed = tuple(f"{path}: {objections[path]}" for path in faster)
    return _tiling(work, chip, _KERNELS[kernel, chosen], table, path=chosen, passed_over=passed)


_KERNELS = {
    (Kernel.FORWARD, Path.DECODE): Kernel.DECODE,
    (Kernel.FORWARD, Path.HOPPER): Kernel.FORWARD_HOPPER,
    (Kernel.FORWARD, Path.DESCRIPTORS): Kernel.FORWARD_TMA,
    (Kernel.FORWARD, Path.PORTABLE): Kernel.FORWARD,
    (Kernel.BACKWARD_KV, Path.HOPPER): Kernel.BACKWARD_KV_HOPPER,
    (Kernel.BACKWARD_KV, Path.DESCRIPTORS): Kernel.BACKWARD_KV_TMA,
    (Kernel.BACKWARD_KV, Path.PORTABLE): Kernel.BACKWARD_KV,
    (Kernel.BACKWARD_Q, Path.HOPPER): Kernel.BACKWARD_Q_HOPPER,
    (Kernel.BACKWARD_Q, Path.DESCRIPTORS): Kernel.BACKWARD_Q_TMA,
    (Kernel.BACKWARD_Q, Path.PORTABLE): Kernel.BACKWARD_Q,
}
PASSES = {kernel: pass_ for (pass_, _), kernel in _KERNELS.items()}  # the pass that a kernel of the tables computes
PATHS = {kernel: path for (_, path), kernel in _KERNELS.items()}  # and the path that takes it


def _no_split(work: Work) -> Objection | None:
    if work.split:
        return Objection(work.split)
    if work.seq_q > MAX_DECODE_ROWS:
        reason = f"{work.seq_q} queries, more than the {MAX_DECODE_ROWS} of decoding"
        return Objection(reason, Preference.SLOWER)
    return None


def _no_hopper(work: Work, chip: Chip) -> Objection:
    if chip.arch != HOPPER:
        return Objection(f"its kernels are in Gluon and for {HOPPER}, not for {chip.arch}")
    if work.dtype not in ("half", "fp8"):
        return Objection(f"its kernels take numbers of 16 or 8 bits, not {work.dtype}")
    if max(64, padded(work.head_dim)) != max(64, padded(work.head_dim_v)):
        return Objection(f"head dims of {work.head_dim} and {work.head_dim_v} need tiles of different widths")
    if work.list_q or work.pair_bytes:
        return Objection("a list of blocks or a number for every pair is not in its kernels")
    if unable := work.descriptors or work.hopper:
        return Objection(unable)
    return Objection("never run on a GPU, only compiled and simulated", Preference.UNPROVED)


def _no_descriptors(work: Work, chip: Chip) -> Objection | None:
    nvidia = re.fullmatch(r"sm_(\d+)", chip.arch)
    if chip.arch != INTERPRETER and not (nvidia and int(nvidia[1]) >= 90):
        return Objection(f"{chip.arch} has no tensor memory accelerator (sm_90 and later have)")
    if work.dtype in ("fp32", "tf32"):
        return Objection("numbers of 32 bits go through registers anyway")
    if work.descriptors:
        return Objection(work.descriptors)
    if work.list_q:
        return Objection("a list of blocks is walked by pointers")
    flops = 2 * work.batch * work.heads * work.seq_q * work.seq_kv * (work.head_dim + work.head_dim_v)
    if flops < MIN_DESCRIPTOR_FLOPS:
        return Objection("too little work to amortise the launch", Preference.SLOWER)
    return None


_OF_KEYS = (Kernel.BACKWARD_KV, Kernel.BACKWARD_KV_TMA, Kernel.BACKWARD_KV_HOPPER)


def _tiling(
    work: Work, chip: Chip, kernel: Kernel, table: Table | None, path: Path, passed_over: tuple[str, ...] = ()
) -> Tiling:
    config = _entry(work, chip, kernel, table)
    if config is None:
        raise ValueError(f"no configuration of {kernel} for head dims of {_width(work)} in {work.dtype} on {chip.arch}")
    block_q, block_kv = config.block_q, config.block_kv
    if path is not Path.HOPPER:  # its tiles are fixed by its warpgroups
        block_q = min(block_q, padded(work.seq_q), work.list_q or block_q)
        block_kv = min(block_kv, padded(work.seq_kv), work.list_kv or block_kv)
    splits = parts = 1
    if kernel is Kernel.DECODE:
        rows = work.heads // work.kv_heads * work.seq_q
        block_q = min(config.block_q, padded(rows))
        tiles_of_rows = work.batch * -(-rows // block_q)
        if work.tokens_q:
            tiles_of_rows = max(work.batch, -(-work.tokens_q * (work.heads // work.kv_heads) // block_q))
        tiles = work.kv_heads * tiles_of_rows
        splits = split_count(tiles, -(-work.seq_kv // block_kv), chip.processors)
    if kernel in _OF_KEYS and path is not Path.HOPPER:
        tiles = work.batch * work.kv_heads * -(-work.seq_kv // block_kv)
        parts = part_count(tiles, work.heads // work.kv_heads, chip.processors)
    # A pass over keys starts with the first keys, which most rows see; one over rows with the last.
    growing = work.growing and kernel not in (*_OF_KEYS, Kernel.DECODE)
    limit = RESIDENT_BYTES["backward" if kernel.startswith("backward") else "forward"]
    return Tiling(
        path=path.value,
        block_q=block_q,
        block_kv=block_kv,
        warps=_warps(config, kernel, block_q, block_kv),
        stages=_stages(work, chip, kernel, config.stages, block_q, block_kv),
        splits=splits,
        parts=parts,
        resident=_resident(work, limit, kernel, parts) if work.growing else 1,
        long_first=growing,
        passed_over=passed_over,
    )


def _warps(config: TileConfig, kernel: Kernel, block_q: int, block_kv: int) -> int:
    """The warps of the table, or 4 where a short sequence leaves a tile too small for eight."""
    rows, of_table = (block_kv, config.block_kv) if kernel in _OF_KEYS else (block_q, config.block_q)
    return min(config.warps, 4) if rows < min(64, of_table) else config.warps


def _stages(work: Work, chip: Chip, kernel: Kernel, stages: int, block_q: int, block_kv: int) -> int:
    """The stages of the table, fewer where biases and booleans of the pairs would not fit in shared memory too."""
    if not work.pair_bytes or chip.arch == INTERPRETER:
        return stages
    width = (padded(work.head_dim) + padded(work.head_dim_v)) * work.dtype_bytes
    streamed, fixed = (block_q, block_kv) if kernel in _OF_KEYS else (block_kv, block_q)
    each = streamed * width + block_q * block_kv * work.pair_bytes
    fitting = (SHARED_BYTES[family(chip.arch)] - fixed * width) // each
    return max(1, min(stages, fitting))


def _width(work: Work) -> int:
    """The width by which the tables are indexed."""
    return max(64, min(MAX_LATENT[1], padded(max(work.head_dim, work.head_dim_v))))


def _entry(work: Work, chip: Chip, kernel: Kernel, table: Table | None) -> TileConfig | None:
    if chip.arch == INTERPRETER:
        return TileConfig(block_q=32, block_kv=32, warps=1, stages=1)
    dtype = "fp32" if work.dtype == "tf32" else work.dtype
    # The user's entries are for one arch; the shipped ones for its family.
    here = family(chip.arch)
    mask = "some" if work.masked else "none"
    places = ((table or {}, chip.arch), (table or {}, here), (shipped(), here))
    configs = (find(rows, (kernel.value, arch, dtype, str(_width(work)), mask)) for rows, arch in places)
    return next(filter(None, configs), None)


def family(arch: str) -> str:
    """The arch of the tables that serves this one."""
    if arch in SHARED_BYTES:
        return arch
    if (nvidia := re.fullmatch(r"sm_(\d+)", arch)) and int(nvidia[1]) > 80:
        # 10x and 11x are Blackwell with much shared memory; 8x and 12x are consumer GPUs with little.
        number = int(nvidia[1])
        return "sm_86" if number < 90 else "sm_90" if number < 100 else "sm_100" if number < 120 else "sm_120"
    if arch.startswith("gfx9"):
        return "gfx942"
    raise ValueError(f"arch={arch!r}: no kernel configuration; there are sm_80 and newer, and gfx9")


def padded(length: int) -> int:
    """The next power of two, at least 16: the smallest side of a matrix product on tensor cores."""
    return max(16, 1 << (length - 1).bit_length())


def split_count(tiles: int, blocks: int, processors: int) -> int:
    """The number of splits of `blocks` of keys, where `tiles` programs run without a split.

    One if the programs occupy four fifths of the chip or there are few blocks; else the fewest that reach 85 % of the
    best occupancy of whole waves.
    """
    if 5 * tiles >= 4 * processors or blocks <= 4:
        return 1

    def occupancy(splits: int) -> float:
        waves = -(-tiles * splits // processors)
        return tiles * splits / (waves * processors)

    # A count that would leave a split empty is no candidate.
    candidates = [n for n in range(1, min(blocks, MAX_SPLITS) + 1) if -(-blocks // -(-blocks // n)) == n]
    best = max(map(occupancy, candidates))
    return next(n for n in candidates if occupancy(n) >= 0.85 * best)


def part_count(tiles: int, group: int, processors: int) -> int:
    """The number of parts of the `group` query heads of a key head, so that dk and dv occupy the chip."""
    divisors = [n for n in range(1, group + 1) if group % n == 0]
    return next((n for n in divisors if tiles * n >= processors), group)


def _resident(work: Work, limit: int, kernel: Kernel, parts: int) -> int:
    """How many (batch, head) pairs run concurrently; the heads of a group share one K and V."""
    pair_bytes = work.seq_kv * (work.head_dim + work.head_dim_v) * work.dtype_bytes
    groups = max(1, limit // max(1, pair_bytes))
    of_group = parts if kernel in _OF_KEYS else work.heads // work.kv_heads
    return min(work.batch * work.kv_heads * of_group, groups * of_group)
