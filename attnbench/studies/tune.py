"""Measure configurations of the in-house kernels in paired rounds against those in use.

Every candidate is a separate arm: the backend `triton` with a table of one line (ATTNBENCH_TILES). It is verified
before it is timed, in its own process, so a candidate that crashes the compiler fails alone.
"""

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from attnbench.analysis.restarts import Restarts, join
from attnbench.attention.choices import Mode
from attnbench.attention.problem import Problem
from attnbench.engine import plan, sweep
from attnbench.engine.runner import Observer, Runner
from attnbench.engine.sweep import Request
from attnbench.errors import UsageError
from attnbench.kernels import tables
from attnbench.kernels.tables import Kernel, TileConfig
from attnbench.kernels.tiling import HOPPER, MAX_HOPPER_BACKWARD_WIDTH, PASSES, PATHS, SHARED_BYTES, family
from attnbench.kernels.tiling import Path as KernelPath
from attnbench.machine import hardware
from attnbench.records.arm import Arm
from attnbench.records.result import Result, Status
from attnbench.suite import Cell
from attnbench.units import parse_seconds

LATENT, ROPE = 512, 64  # columns of the values of a latent cache, and those of the keys beside them; decode alone
WIDTHS = (64, 128, 256, LATENT)
MASKS = {"none": "none", "some": "causal"}
TOKENS, SEQ = 16384, 4096
AT_ONCE = 6  # candidates in one group; each keeps its inputs on the device
BLOCKS = {
    Kernel.FORWARD: ((64, 128), (32, 64, 128)),
    Kernel.BACKWARD_KV: ((16, 32, 64, 128), (32, 64, 128)),
    Kernel.BACKWARD_Q: ((64, 128), (32, 64, 128)),
    Kernel.DECODE: ((16, 64), (32, 64, 128)),
}
LATENT_BLOCKS = (16, 32, 64), (16, 32, 64)
WARPS, STAGES = (4, 8), (1, 2, 3, 4)
REGISTERS = 255 * 4  # bytes of the accumulators that a thread can hold at most


class TuningTarget(msgspec.Struct, frozen=True, kw_only=True):
    """One line of a table to tune."""

    kernel: Kernel
    arch: str
    width: int
    mask: str  # some or none
    dtype: str = "half"

    @property
    def key(self) -> tables.Key:
        return (self.kernel.value, self.arch, self.dtype, str(self.width), self.mask)

    @property
    def problem(self) -> Problem:
        """The problem that is measured: 16k tokens, or decoding of 32 sequences, from a latent cache at its width."""
        shape = {"heads": 32, "kv_heads": 8, "head_dim": self.width, "dtype": "bf16", "mask": MASKS[self.mask]}
        if self.width == LATENT:
            shape |= {"heads": 128, "kv_heads": 1, "head_dim": 192, "head_dim_v": 128, "kv": f"latent:{LATENT}+{ROPE}"}
        if self.kernel is Kernel.DECODE:
            return Problem(batch=32, seq_q=1, seq_kv=2 * SEQ, **shape)  # type: ignore[arg-type]
        return Problem(batch=TOKENS // SEQ, seq_q=SEQ, **shape)  # type: ignore[arg-type]

    @property
    def mode(self) -> Mode:
        return Mode.BWD if self.kernel.startswith("backward") else Mode.FWD


class Finding(msgspec.Struct, kw_only=True):
    """The measurements of one line. A ratio is the time of the configuration in use over that of the candidate."""

    target: TuningTarget
    used: TileConfig | None
    measured: list[tuple[TileConfig, float, float, float]]  # candidate, ratio, and its 95 % interval
    lost: list[tuple[TileConfig, str]]  # candidates that were not timed, and why

    @property
    def best(self) -> TileConfig | None:
        """The fastest candidate whose interval lies above 1; None keeps the configuration in use."""
        better = [(ratio, config) for config, ratio, low, _ in self.measured if low > 1.0]
        return max(better, key=lambda pair: pair[0])[1] if better else None


def candidates(kernel: Kernel, arch: str, width: int) -> list[TileConfig]:
    """Configurations for 16-bit numbers that fit in shared memory and registers, sorted by size."""
    if width == LATENT and kernel is not Kernel.DECODE:
        return []
    if PATHS[kernel] is KernelPath.HOPPER:
        return _of_warpgroups(kernel, width) if family(arch) == HOPPER else []
    of_kernel = BLOCKS[Kernel.DECODE if kernel is Kernel.DECODE else PASSES[kernel]]
    blocks_q, blocks_kv = LATENT_BLOCKS if width == LATENT else of_kernel
    limit = SHARED_BYTES[family(arch)]
    configs = [
        TileConfig(block_q=block_q, block_kv=block_kv, warps=warps, stages=stages)
        for block_q in blocks_q
        for block_kv in blocks_kv
        for warps in WARPS
        for stages in STAGES
        if _fits(kernel, width, block_q, block_kv, warps, stages, limit)
    ]
    return sorted(configs, key=lambda config: (config.block_q * config.block_kv, config.warps, config.stages))


def _of_warpgroups(kernel: Kernel, width: int) -> list[TileConfig]:
    """Two warpgroups of 64 rows or keys each, and ring buffers of the streamed tiles, two tiles per stage."""
    backward = kernel is not Kernel.FORWARD_HOPPER
    if backward and width > MAX_HOPPER_BACKWARD_WIDTH:
        return []
    configs = []
    for moving in (32, 64, 128):
        for stages in STAGES:
            # The output reuses the buffer of q; dk and dv reuse those of k and v.
            shared = (128 * (2 if backward else 1) + 2 * stages * moving) * width * 2 + 256
            block_q, block_kv = (moving, 128) if kernel is Kernel.BACKWARD_KV_HOPPER else (128, moving)
            if shared <= SHARED_BYTES[HOPPER] and moving * width <= 128 * 128:
                configs.append(TileConfig(block_q=block_q, block_kv=block_kv, warps=8, stages=stages))
    return configs


def _fits(kernel: Kernel, width: int, block_q: int, block_kv: int, warps: int, stages: int, limit: int) -> bool:
    of_keys = kernel.startswith("backward_kv")
    fixed, moving = (block_kv, block_q) if of_keys else (block_q, block_kv)
    # Two operands of 2 bytes in flight for each stage, or the one of a latent cache.
    shared = stages * moving * (2 * (width + ROPE) if width == LATENT else 4 * width)
    # Accumulators and logits are float32, spread over the threads.
    accumulators = (2 if of_keys else 1) * fixed * width + (2 if kernel.startswith("backward") else 1) * fixed * moving
    # With fewer than 64 rows, some of eight warps would have none, but for the many columns of a latent cache.
    idle = warps == 8 and fixed < 64 and width != LATENT
    return shared <= limit and accumulators * 4 / (warps * 32) <= REGISTERS and not idle


def targets(
    device: str, kernels: Sequence[str], widths: Sequence[int], masks: Sequence[str], arch: str
) -> list[TuningTarget]:
    """The requested lines. Raises UsageError for an unknown architecture, or a device that cannot be tuned."""
    if not arch:
        arch = arch_of(device)
    try:
        tma = family(arch) in ("sm_90", "sm_100", "sm_120")
    except ValueError as unknown:
        raise UsageError(f"--arch: {unknown}") from None
    here = {KernelPath.DESCRIPTORS: tma, KernelPath.HOPPER: family(arch) == HOPPER}
    chosen = [Kernel(name) for name in kernels] or [kernel for kernel in Kernel if here.get(PATHS[kernel], True)]
    lines = [
        TuningTarget(kernel=kernel, arch=arch, width=width, mask=mask)
        for kernel in chosen
        for width in widths or WIDTHS
        for mask in masks or MASKS
        if width != LATENT or kernel is Kernel.DECODE
    ]
    if not lines:
        raise UsageError(f"--head-dim {LATENT}: the width of a latent cache, only with --kernel decode")
    return lines


def arch_of(device: str) -> str:
    """The architecture of a device: `sm_90` for `cuda:0`. Raises UsageError if it is no GPU of this machine."""
    gpus = {f"cuda:{gpu.index}": gpu for gpu in hardware.gpus()}
    if device not in gpus:
        available = f"there are {', '.join(gpus)}" if gpus else "there is no GPU here"
        raise UsageError(f"--device {device}: kernels can only be tuned on a GPU; {available}")
    major, minor = gpus[device].capability
    return f"sm_{major}{minor}"


def run(chosen: Sequence[TuningTarget], device: str, budget: str, observer: Observer) -> Iterator[Finding]:
    """Measure one line after another, and yield each finding at once."""
    total_s = parse_seconds(budget, "--budget") if budget else 0.0
    share = f"{total_s / max(1, len(chosen))}s" if total_s else "0"
    with tempfile.TemporaryDirectory(prefix="attnbench-tune-") as folder:
        for number, target in enumerate(chosen):
            yield _measure(target, device, share, observer, Path(folder) / str(number))


def _measure(target: TuningTarget, device: str, budget: str, observer: Observer, folder: Path) -> Finding:
    used = in_use(target)
    plain = msgspec.structs.replace(used, source="") if used else None
    others = [config for config in candidates(target.kernel, target.arch, target.width) if config != plain]
    finding = Finding(target=target, used=used, measured=[], lost=[])
    for first in range(0, len(others), AT_ONCE):
        part = others[first : first + AT_ONCE]
        by_copy = _sweep(target, used, part, device, budget, observer, folder / str(first))
        for copy, config in enumerate(part, start=2):
            restarts = by_copy.get(copy)
            ratio = restarts.speedup if restarts and restarts.status is Status.OK else None
            if ratio and ratio.low is not None and ratio.high is not None:
                finding.measured.append((config, ratio.value, ratio.low, ratio.high))
            else:
                worst = restarts.worst if restarts else None
                finding.lost.append((config, worst.reason or worst.status.value if worst else "not measured"))
    shutil.rmtree(folder, ignore_errors=True)
    return finding


def _sweep(
    target: TuningTarget,
    used: TileConfig | None,
    part: Sequence[TileConfig],
    device: str,
    budget: str,
    observer: Observer,
    folder: Path,
) -> dict[int, Restarts]:
    """Measure the candidates beside the configuration in use; the results by copy: 1 is in use, then `part`."""
    arms = [arm(target, used, device, folder / "used.csv", 1)]
    arms += [arm(target, config, device, folder / f"{copy}.csv", copy) for copy, config in enumerate(part, start=2)]
    request = Request(axes={"seq": "16"}, backend="triton", device=device, reference="triton", budget=budget or "0")
    ready = sweep.prepare(request, interpreted=True)
    planned = plan.make([(Cell(target.problem, target.mode), arms)], sweep.plan_limits(ready.settings))
    results: list[Result] = list(planned.refusals)
    Runner(planned, ready.settings, results.extend, observer).run()
    return {restarts.arm.copy: restarts for restarts in join(results)}


def in_use(target: TuningTarget) -> TileConfig | None:
    """The configuration in use: from the user's table for this GPU or its family, else from the shipped table."""
    general = family(target.arch)
    places = ((tables.users(), target.arch), (tables.users(), general), (tables.shipped(), general))
    configs = (tables.find(table, (target.key[0], arch, *target.key[2:])) for table, arch in places)
    return next((config for config in configs if config), None)


def arm(target: TuningTarget, config: TileConfig | None, device: str, file: Path, copy: int) -> Arm:
    """The backend `triton` with this configuration for this line, on the path of its kernel."""
    tables.write(file, {target.key: config} if config else {})
    env = ((tables.VARIABLE, str(file)), ("ATTNBENCH_KERNEL_PATH", PATHS[target.kernel].value))
    return Arm(backend="triton", device=device, copy=copy, env=env)


def write(findings: Sequence[Finding], file: Path, device_name: str, triton: str) -> int:
    """Add the faster configurations to a table, keeping its other lines; return the number of new lines."""
    today = datetime.now(UTC).date().isoformat()
    source = f"measured: {device_name}, triton {triton}, {today}"
    new = {f.target.key: msgspec.structs.replace(f.best, source=source) for f in findings if f.best}
    if new:
        tables.write(file, (tables.read(file) if file.exists() else {}) | new)
    return len(new)
