"""What `attnbench tune` does: configurations of the in-house kernels, measured in paired rounds against those in use.

Every candidate is an arm of its own, the backend `triton` with a table of one line (ATTNBENCH_TILES): it is verified
before it is timed, in a process of its own, and one that breaks the compiler is lost alone.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from attnbench import frame, host, plan, stats, sweep
from attnbench.arm import Arm
from attnbench.attention.problem import Mode, Problem
from attnbench.errors import UsageError
from attnbench.kernels import tables
from attnbench.kernels.tables import Cut, Kernel
from attnbench.kernels.tiling import HOPPER, HOPPER_BACKWARD_WIDTH_MOST, PASSES, PATHS, SHARED_BYTES, family
from attnbench.kernels.tiling import Path as KernelPath
from attnbench.result import Result, Status
from attnbench.runner import Observer, Runner
from attnbench.suite import Cell
from attnbench.sweep import Request
from attnbench.units import parse_seconds

WIDTHS = (64, 128, 256)
MASKS = {"none": "none", "some": "causal"}
TOKENS, SEQ = 16384, 4096
AT_ONCE = 6  # candidates in one group: each holds its inputs on the device
BLOCKS = {
    Kernel.FORWARD: ((64, 128), (32, 64, 128)),
    Kernel.BACKWARD_KV: ((16, 32, 64, 128), (32, 64, 128)),
    Kernel.BACKWARD_Q: ((64, 128), (32, 64, 128)),
    Kernel.DECODE: ((16, 64), (32, 64, 128)),
}
WARPS, STAGES = (4, 8), (1, 2, 3, 4)
REGISTERS = 255 * 4  # bytes of the accumulators that a thread can hold at most


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """One line of a table that is to be tuned."""

    kernel: Kernel
    arch: str
    width: int
    mask: str  # some or none
    dtype: str = "half"

    @property
    def key(self) -> tables.Key:
        """As in the tables."""
        return (self.kernel.value, self.arch, self.dtype, str(self.width), self.mask)

    @property
    def problem(self) -> Problem:
        """What it is measured on: 16k tokens, or 32 sequences that decode."""
        shape = {"heads": 32, "kv_heads": 8, "head_dim": self.width, "dtype": "bf16", "mask": MASKS[self.mask]}
        if self.kernel is Kernel.DECODE:
            return Problem(batch=32, seq_q=1, seq_kv=2 * SEQ, **shape)  # type: ignore[arg-type]
        return Problem(batch=TOKENS // SEQ, seq_q=SEQ, **shape)  # type: ignore[arg-type]

    @property
    def mode(self) -> Mode:
        """The pass that runs it."""
        return Mode.BWD if self.kernel.startswith("backward") else Mode.FWD


class Finding(msgspec.Struct, kw_only=True):
    """What was measured of one line: ratios are the time in use over the time of the candidate."""

    target: Target
    used: Cut | None
    measured: list[tuple[Cut, float, float, float]]  # candidate, ratio, and its 95 % interval
    lost: list[tuple[Cut, str]]  # candidates that were not timed, and why

    @property
    def best(self) -> Cut | None:
        """The fastest of those that are faster beyond doubt; None keeps what is in use."""
        better = [(ratio, cut) for cut, ratio, low, _ in self.measured if low > 1.0]
        return max(better, key=lambda pair: pair[0])[1] if better else None


def candidates(kernel: Kernel, arch: str, width: int) -> list[Cut]:
    """Configurations for numbers of 16 bits that shared memory and registers can hold, by size."""
    if PATHS[kernel] is KernelPath.HOPPER:
        return _of_warpgroups(kernel, width) if family(arch) == HOPPER else []
    blocks_q, blocks_kv = BLOCKS[Kernel.DECODE if kernel is Kernel.DECODE else PASSES[kernel]]
    limit = SHARED_BYTES[family(arch)]
    found = [
        Cut(block_q=block_q, block_kv=block_kv, warps=warps, stages=stages)
        for block_q in blocks_q
        for block_kv in blocks_kv
        for warps in WARPS
        for stages in STAGES
        if _fits(kernel, width, block_q, block_kv, warps, stages, limit)
    ]
    return sorted(found, key=lambda cut: (cut.block_q * cut.block_kv, cut.warps, cut.stages))


def _of_warpgroups(kernel: Kernel, width: int) -> list[Cut]:
    """Two warpgroups of 64 rows, or keys, each, and rings of what moves past them, two tiles a stage."""
    backward = kernel is not Kernel.FORWARD_HOPPER
    if backward and width > HOPPER_BACKWARD_WIDTH_MOST:
        return []
    found = []
    for moving in (32, 64, 128):
        for stages in STAGES:
            # The output takes the place of q; dk and dv those of k and v.
            shared = (128 * (2 if backward else 1) + 2 * stages * moving) * width * 2 + 256
            block_q, block_kv = (moving, 128) if kernel is Kernel.BACKWARD_KV_HOPPER else (128, moving)
            if shared <= SHARED_BYTES[HOPPER] and moving * width <= 128 * 128:
                found.append(Cut(block_q=block_q, block_kv=block_kv, warps=8, stages=stages))
    return found


def _fits(kernel: Kernel, width: int, block_q: int, block_kv: int, warps: int, stages: int, limit: int) -> bool:
    of_keys = kernel.startswith("backward_kv")
    own, moving = (block_kv, block_q) if of_keys else (block_q, block_kv)
    # Two operands of 2 bytes in flight for each stage.
    shared = stages * moving * width * 4
    # Accumulators and logits are float32, spread over the threads.
    accumulators = (2 if of_keys else 1) * own * width + (2 if kernel.startswith("backward") else 1) * own * moving
    # Below 64 rows eight warps would have no rows of their own.
    return shared <= limit and accumulators * 4 / (warps * 32) <= REGISTERS and not (warps == 8 and own < 64)


def targets(
    device: str, kernels: Sequence[str], widths: Sequence[int], masks: Sequence[str], arch: str
) -> list[Target]:
    """The lines that are asked for. UsageError names a word that is none, or a device that cannot be tuned."""
    for noun, given, known in (("--kernel", kernels, tuple(Kernel)), ("--mask", masks, tuple(MASKS))):
        if wrong := [word for word in given if word not in known]:
            raise UsageError(f"{noun}: {wrong[0]!r}: one of {', '.join(known)}")
    if wrong_widths := [width for width in widths if width not in WIDTHS]:
        raise UsageError(f"--head-dim: {wrong_widths[0]}: tables hold {', '.join(map(str, WIDTHS))}")
    if not arch:
        arch = arch_of(device)
    try:
        tma = family(arch) in ("sm_90", "sm_100", "sm_120")
    except ValueError as unknown:
        raise UsageError(f"--arch: {unknown}") from None
    here = {KernelPath.DESCRIPTORS: tma, KernelPath.HOPPER: family(arch) == HOPPER}
    chosen = [Kernel(name) for name in kernels] or [kernel for kernel in Kernel if here.get(PATHS[kernel], True)]
    return [
        Target(kernel=kernel, arch=arch, width=width, mask=mask)
        for kernel in chosen
        for width in widths or WIDTHS
        for mask in masks or MASKS
    ]


def arch_of(device: str) -> str:
    """`sm_90` of `cuda:0`. UsageError where there is no GPU to time anything on."""
    gpus = {f"cuda:{gpu.index}": gpu for gpu in host.gpus()}
    if device not in gpus:
        have = f"there are {', '.join(gpus)}" if gpus else "there is no GPU here"
        raise UsageError(f"--device {device}: times of the kernels mean something on a GPU alone; {have}")
    major, minor = gpus[device].capability
    return f"sm_{major}{minor}"


def run(chosen: Sequence[Target], device: str, budget: str, observer: Observer) -> Iterator[Finding]:
    """Measure one line after another; what is measured is yielded at once."""
    total_s = parse_seconds(budget, "--budget") if budget else 0.0
    share = f"{total_s / max(1, len(chosen))}s" if total_s else "0"
    with tempfile.TemporaryDirectory(prefix="attnbench-tune-") as folder:
        for number, target in enumerate(chosen):
            yield _measure(target, device, share, observer, Path(folder) / str(number))


def _measure(target: Target, device: str, budget: str, observer: Observer, folder: Path) -> Finding:
    used = in_use(target)
    others = [cut for cut in candidates(target.kernel, target.arch, target.width) if not _equal(cut, used)]
    finding = Finding(target=target, used=used, measured=[], lost=[])
    for first in range(0, len(others), AT_ONCE):
        part = others[first : first + AT_ONCE]
        results = _sweep(target, used, part, device, budget, observer, folder / str(first))
        for cut, result, ratio in results:
            if ratio and ratio.low is not None and ratio.high is not None:
                finding.measured.append((cut, ratio.value, ratio.low, ratio.high))
            else:
                finding.lost.append((cut, result.reason or result.status.value if result else "not measured"))
    shutil.rmtree(folder, ignore_errors=True)
    return finding


def _sweep(
    target: Target, used: Cut | None, part: Sequence[Cut], device: str, budget: str, observer: Observer, folder: Path
) -> list[tuple[Cut, Result | None, stats.Estimate | None]]:
    """Candidates beside what is in use: their results, and how many times faster they are."""
    arms = [arm(target, used, device, folder / "used.csv", 1)]
    arms += [arm(target, cut, device, folder / f"{index}.csv", index + 2) for index, cut in enumerate(part)]
    request = Request(axes={"seq": "16"}, backend="triton", device=device, reference="triton", budget=budget or "0")
    ready = sweep.ready(request, interpreted=True)
    made = plan.make([(Cell(target.problem, target.mode), arms)], sweep.plan_terms(ready.terms))
    results: list[Result] = list(made.refusals)
    Runner(made, ready.terms, results.extend, observer).run()
    joined = {one.arm.twin: one for one in frame.join(results)}
    found = []
    for index, cut in enumerate(part):
        one = joined.get(index + 2)
        ok = one is not None and one.status is Status.OK
        found.append((cut, one.worst if one else None, one.speedup if one and ok else None))
    return found


def in_use(target: Target) -> Cut | None:
    """What the tables hold: the user's for the very GPU, then for its family, then the shipped ones."""
    general = family(target.arch)
    places = ((tables.users(), target.arch), (tables.users(), general), (tables.shipped(), general))
    found = (tables.find(table, (target.key[0], arch, *target.key[2:])) for table, arch in places)
    return next((cut for cut in found if cut), None)


def arm(target: Target, cut: Cut | None, device: str, file: Path, twin: int) -> Arm:
    """The backend `triton` with that cut for that line, by the path that its kernel belongs to."""
    tables.write(file, {target.key: cut} if cut else {})
    env = ((tables.VARIABLE, str(file)), ("ATTNBENCH_KERNEL_PATH", PATHS[target.kernel].value))
    return Arm(backend="triton", device=device, twin=twin, env=env)


def write(findings: Sequence[Finding], file: Path, device_name: str, triton: str) -> int:
    """Add what was faster to a table; gives how many lines. What the table held of other lines stays."""
    today = datetime.now(UTC).date().isoformat()
    source = f"measured: {device_name}, triton {triton}, {today}"
    new = {f.target.key: msgspec.structs.replace(f.best, source=source) for f in findings if f.best}
    if new:
        tables.write(file, (tables.read(file) if file.exists() else {}) | new)
    return len(new)


def _equal(cut: Cut, other: Cut | None) -> bool:
    return other is not None and msgspec.structs.replace(other, source="") == cut
