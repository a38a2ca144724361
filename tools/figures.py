"""The figures of docs/benchmarks.md, by `python tools/figures.py timer | products | aa | overhead | idle | reports`.

Run alone on the machine: another process on the same cores ruins them.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import msgspec

import attnbench
from attnbench import host, protocol
from attnbench.arm import Arm, Device, parse_device
from attnbench.attention.problem import Problem
from attnbench.case import Case
from attnbench.joined import Joined
from attnbench.pool import Worker
from attnbench.result import Procedure
from attnbench.store import Run

SHAPES = (
    {"seq_q": 128},
    {"seq_q": 512},
    {"seq_q": 1024, "heads": 4},
    {"seq_q": 1, "seq_kv": 4096},
    {"seq_q": 384, "mask": "causal"},
)
BACKENDS = ("naive", "sdpa:math", "sdpa:flash")


def timer() -> None:
    """Our median of blocks against torch's own timer: same process, same closure, turn about."""
    import torch
    from torch.utils.benchmark import Timer

    from attnbench import backends
    from attnbench.attention import inputs
    from attnbench.device.cpu import CpuInstrument

    _like_a_worker()
    instrument = CpuInstrument(Device(kind="cpu", threads=1))
    print("| case | attnbench | torch Timer | ratio |\n|---|---:|---:|---:|")
    ratios = []
    for shape in SHAPES:
        for name in BACKENDS:
            case = Case(problem=Problem(**shape), backend=name)
            made = inputs.make(case.problem, 0)
            call = backends.load(name).prepare(case, "cpu").call
            with torch.no_grad():
                run = lambda: call(made.q, made.k, made.v)  # noqa: B023, E731
                pace = instrument.settle(run, Procedure())
                ours, theirs = [], []
                for _ in range(15):
                    ours.append(statistics.median(instrument.block(run, pace, Procedure()).values))
                    theirs.append(Timer("run()", globals={"run": run}).blocked_autorange(min_run_time=0.02).median)
            own, other = statistics.median(ours), statistics.median(theirs)
            ratios.append(statistics.median(one / two for one, two in zip(ours, theirs, strict=True)))
            print(f"| {case.label} | {own * 1e3:.3f} ms | {other * 1e3:.3f} ms | {ratios[-1]:.3f} |")
    worst = max(ratios, key=lambda ratio: abs(ratio - 1))
    print(f"\nworst {worst:.3f}; within 5 %: {sum(abs(r - 1) <= 0.05 for r in ratios)} of {len(ratios)}")


def reports(source: str = "last") -> None:
    """Time and memory of `report` and `compare` on many cases, made from a real run by giving it other batches."""
    real = attnbench.load(source)
    print("| command | cases | wall | peak memory | index.html |\n|---|---:|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as folder:
        for cases in (500, 100_000):
            run = _enlarged(real, Path(folder) / str(cases), cases)
            for command in (["report", run], ["report", run, "--plots", "svg"], ["compare", run, run]):
                seconds, peak = _timed([sys.executable, "-m", "attnbench", *map(str, command)])
                page = run / "report" / "index.html"
                size = f"{page.stat().st_size / 1e6:.1f} MB" if command[0] == "report" else ""
                shown = " ".join(map(str, command)).replace(str(run), "RUN")
                print(f"| `{shown}` | {cases} | {seconds:.1f} s | {peak / 2**30:.2f} GiB | {size} |")


def _enlarged(real: Run, folder: Path, cases: int) -> Path:
    """As many lines as asked for: those of the run, batch by batch."""
    folder.mkdir()
    (folder / "run.json").write_bytes((real.path / "run.json").read_bytes())
    with (folder / "results.jsonl").open("wb") as file:
        for number in range(cases):
            result = real.results[number % len(real.results)]
            problem = msgspec.structs.replace(result.case.problem, batch=1 + number // len(real.results))
            case = msgspec.structs.replace(result.case, problem=problem)
            file.write(msgspec.json.encode(msgspec.structs.replace(result, case=case, case_id=case.id)) + b"\n")
    return folder


def _timed(command: list[str]) -> tuple[float, int]:
    """Wall seconds and the most bytes that the process and those it forks held together."""
    import psutil

    start, peak = time.perf_counter(), 0
    process = psutil.Popen(command, stdout=subprocess.DEVNULL)
    while process.poll() is None:
        with contextlib.suppress(psutil.NoSuchProcess):
            # Forked processes share pages: what each has of its own, and its part of what is shared.
            peak = max(peak, sum(one.memory_full_info().pss for one in (process, *process.children(recursive=True))))
        time.sleep(3)  # to add up the pages of large processes takes a while, of their time too
    return time.perf_counter() - start, peak


def _like_a_worker() -> None:
    """Start anew with a worker's environment, on its core."""
    variables = host.arm_environment(Device(kind="cpu", threads=1))
    if any(os.environ.get(name) != value for name, value in variables.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **variables})
    os.sched_setaffinity(0, host.cores_for(Device(kind="cpu", threads=1)))


def products() -> None:
    """The sustained rate of `calibrate` against torch's own timer on the same product: same process, turn about."""
    import torch
    from torch.utils.benchmark import Timer

    from attnbench.device import ceilings
    from attnbench.device.cpu import CpuInstrument

    _like_a_worker()
    CpuInstrument(Device(kind="cpu", threads=1))
    meter = ceilings.Meter("cpu")
    print("| product | calibrate | torch Timer | ratio |\n|---|---:|---:|---:|")
    for dtype in ("fp32", "bf16"):
        size = ceilings.products(meter, dtype).size
        kind = {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]
        a, b = (torch.randn(size, size).to(kind) for _ in range(2))
        out = torch.empty_like(a)
        run = lambda: torch.mm(a, b, out=out)  # noqa: B023, E731
        pairs = []
        for _ in range(9):
            own = meter.sustained(run, 0.3)
            pairs.append((own, Timer("run()", globals={"run": run}).blocked_autorange(min_run_time=0.3).median))
        rates = [2 * size**3 / statistics.median(times) / 1e9 for times in zip(*pairs, strict=True)]
        ratio = statistics.median(other / own for own, other in pairs)
        print(f"| {dtype} n {size} | {rates[0]:.1f} GFLOP/s | {rates[1]:.1f} GFLOP/s | {ratio:.3f} |")


def aa(launches: int = 6) -> None:
    """The same backend as two arms: does the interval of their ratio hold 1?"""
    stored = attnbench.run(
        seq="64..1024:n7",
        mask=["none", "causal", "causal+window:64"],
        heads="4,8",
        backend="sdpa:flash,sdpa:flash",
        reference="sdpa:flash",
        launches=launches,
        budget="0",
        rounds="5..15",
        timeout="120s",
    )
    by_case: dict[str, dict[int, list]] = {}
    for result in stored.results:
        by_case.setdefault(result.case.label, {}).setdefault(result.arm.twin, []).append(result)
    print("| case | ratio of the twins | 95 % | holds 1 |\n|---|---:|---:|---|")
    held = []
    for label, twins in by_case.items():
        ratio = Joined(twins[1]).ratio_to(Joined(twins[2]))
        if ratio is None or ratio.low is None or ratio.high is None:
            continue
        held.append(ratio.low <= 1 <= ratio.high)
        print(f"| {label} | {ratio.value:.4f} | {ratio.low:.4f} .. {ratio.high:.4f} | {'yes' if held[-1] else 'no'} |")
    print(f"\n{sum(held)} of {len(held)} intervals hold 1; run {stored.path}")


def overhead() -> None:
    """What a run of 200 cases of at least 1 ms spends outside kernels and verification."""
    started = time.monotonic()
    stored = attnbench.run(
        seq="256..512:+32,544,576,608,640",
        mask=["none", "causal"],
        heads="4,6,8,10",
        backend="naive,sdpa:flash",
        budget="0",
        rounds="5..10",
    )
    total = time.monotonic() - started
    spent = stored.manifest.seconds
    kernels = sum(block.facts["seconds"] for result in stored.results for block in result.samples["time"].blocks)
    asked = sum(seconds for phase, seconds in spent.items() if phase not in ("total", "store", "time"))
    own = spent["total"] - asked - kernels
    print(f"{len(stored.results)} cases in {total:.1f} s; run {stored.path}")
    print({phase: round(seconds, 2) for phase, seconds in spent.items()}, f"blocks {kernels:.2f}")
    print(f"outside kernels, verification and starting: {own:.2f} s, {100 * own / spent['total']:.1f} %")


def idle() -> None:
    """One round trip to an idle worker."""
    arm = Arm(backend="naive", device="cpu:threads=1")
    worker = Worker(arm, host.cores_for(parse_device(arm.device)), 0)
    worker.open(60)
    took = []
    for _ in range(2000):
        start = time.perf_counter()
        worker.ask(protocol.Release(), 10)
        took.append(time.perf_counter() - start)
    worker.bury()
    print(f"median {statistics.median(took) * 1e3:.3f} ms, p95 {statistics.quantiles(took, n=20)[-1] * 1e3:.3f} ms")


if __name__ == "__main__":
    known = {"timer": timer, "products": products, "aa": aa, "overhead": overhead, "idle": idle, "reports": reports}
    known[sys.argv[1]](*sys.argv[2:])
