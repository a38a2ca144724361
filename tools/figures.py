"""The figures of docs/benchmarks.md, by `python tools/figures.py NAME`, with a name of `FIGURES`.

Run alone on the machine: another process on the same cores ruins them.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec

import attnbench
from attnbench.analysis.restarts import Restarts
from attnbench.attention.choices import Mode
from attnbench.attention.problem import Problem
from attnbench.engine.worker_process import Worker
from attnbench.machine import resources, worker_environment
from attnbench.records.arm import Arm, Device
from attnbench.records.case import Case
from attnbench.records.result import Procedure, Result, Sample
from attnbench.records.run_directory import Run
from attnbench.studies.dispatch_table import Choice, Dispatch, Origin, Ranked
from attnbench.worker import protocol

SHAPES = (
    {"seq_q": 128},
    {"seq_q": 512},
    {"seq_q": 1024, "heads": 4},
    {"seq_q": 1, "seq_kv": 4096},
    {"seq_q": 384, "mask": "causal"},
)
BACKENDS = ("naive", "sdpa:math", "sdpa:flash")
LEVEL_CHANGE = 500  # number of a made run, after which times are longer


def timer() -> None:
    """The median of our blocks against torch's timer: same process, same closure, in turn."""
    import torch
    from torch.utils.benchmark import Timer

    from attnbench import backends
    from attnbench.attention import inputs
    from attnbench.machine.device.cpu import CpuInstrument

    _like_a_worker()
    instrument = CpuInstrument(Device(kind="cpu", threads=1))
    print("| case | attnbench | torch Timer | ratio |\n|---|---:|---:|---:|")
    ratios = []
    for shape in SHAPES:
        for name in BACKENDS:
            case = Case(problem=Problem(**shape), backend=name)
            tensors = inputs.make(case.problem, 0)
            call = backends.load(name).prepare(case, "cpu").call
            with torch.no_grad():
                run = lambda: call(tensors.q, tensors.k, tensors.v)  # noqa: B023, E731
                pace = instrument.settle(run, Procedure())
                ours, theirs = [], []
                for _ in range(15):
                    ours.append(statistics.median(instrument.block(run, pace, Procedure()).values))
                    theirs.append(Timer("run()", globals={"run": run}).blocked_autorange(min_run_time=0.02).median)
            our_s, their_s = statistics.median(ours), statistics.median(theirs)
            ratios.append(statistics.median(our / their for our, their in zip(ours, theirs, strict=True)))
            print(f"| {case.label} | {our_s * 1e3:.3f} ms | {their_s * 1e3:.3f} ms | {ratios[-1]:.3f} |")
    worst = max(ratios, key=lambda ratio: abs(ratio - 1))
    print(f"\nworst {worst:.3f}; within 5 %: {sum(abs(r - 1) <= 0.05 for r in ratios)} of {len(ratios)}")


def reports(source: str = "last") -> None:
    """Time and memory of `report` and `compare` on many cases, made from a real run by giving it other batches."""
    real = attnbench.load(source)
    print("| command | cases | wall | CPU | peak memory | index.html |\n|---|---:|---:|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as folder:
        for cases in (500, 100_000):
            run = _enlarged(real, Path(folder) / str(cases), cases)
            for command in (["report", run], ["report", run, "--plots", "svg"], ["compare", run, run]):
                figures = _timed([sys.executable, "-m", "attnbench", *map(str, command)])
                page = run / "report" / "index.html"
                size = f"{page.stat().st_size / 1e6:.1f} MB" if command[0] == "report" else ""
                shown = " ".join(map(str, command)).replace(str(run), "RUN")
                print(f"| `{shown}` | {cases} | {figures} | {size} |")


def _enlarged(real: Run, folder: Path, cases: int, number: int = 0) -> Path:
    """A run of that many results: those of `real` again and again, each time with another batch.

    The times of run `number` differ a little from those of others; there is one change of level.
    """
    folder.mkdir()
    (folder / "run.json").write_bytes((real.path / "run.json").read_bytes())
    factor = 1 + 0.01 * math.sin(number) + (0.2 if number > LEVEL_CHANGE else 0.0)
    with (folder / "results.jsonl").open("wb") as file:
        for place in range(cases):
            result = real.results[place % len(real.results)]
            problem = msgspec.structs.replace(result.case.problem, batch=1 + place // len(real.results))
            case = msgspec.structs.replace(result.case, problem=problem)
            samples = {name: _scaled(sample, factor) for name, sample in result.samples.items()}
            made = msgspec.structs.replace(result, case=case, case_id=case.id, samples=samples)
            file.write(msgspec.json.encode(made) + b"\n")
    return folder


def _scaled(sample: Sample, factor: float) -> Sample:
    """The sample with longer times."""
    if sample.unit != "s" or factor == 1:
        return sample
    values = tuple(None if value is None else value * factor for value in sample.values)
    return msgspec.structs.replace(sample, values=values)


def fleet(runs: str = "1000", results: str = "1000", source: str = "last", folder: str = "") -> None:
    """Time and memory of the commands that read many runs, on runs made from a real one; the first makes the index."""
    real, count = attnbench.load(source), int(runs)
    first = real.results[0].case
    print("| command | wall | CPU | peak memory |\n|---|---:|---:|---:|")
    with tempfile.TemporaryDirectory(dir=folder or None) as root:
        os.environ["XDG_CACHE_HOME"] = str(Path(root) / "cache")
        stored = Path(root) / "results"
        stored.mkdir()
        for number in range(count):
            _of_fleet(real, _enlarged(real, stored / f"run-{number:04}", int(results), number), number)
        old, new = (str(stored / f"run-{number:04}") for number in (count - 1 - MACHINES, count - 1))
        sql = "SELECT backend, machine, median(time_s) FROM results JOIN runs USING (run) GROUP BY ALL"
        only = ["--only", f"seq_q={first.problem.seq_q}", "--only", f"backend={first.backend}", "--only", "batch=1"]
        for command in (
            ["query", sql, stored],
            ["query", sql, stored],
            ["report", stored, *only, "-o", Path(root) / "report"],
            ["compare", old, new],
            ["recommend", stored, "--machine", "machine-0"],
            ["history", stored, "--machine", "machine-0"],
        ):
            figures = _timed([sys.executable, "-m", "attnbench", *map(str, command)])
            shown = " ".join(map(str, command)).replace(root, "").replace("/results", "RUNS")
            print(f"| `{shown}` | {figures} |", flush=True)


MACHINES = 8  # of a made fleet


def _of_fleet(real: Run, folder: Path, number: int) -> None:
    """Give a made run a machine and a time of its own."""
    created = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(hours=number)
    manifest = msgspec.structs.replace(
        real.manifest, fingerprint=f"machine-{number % MACHINES}", created_at=created.isoformat(),
        commit={"commit": f"{number // MACHINES:040x}", "dirty": False},
    )  # fmt: skip
    (folder / "run.json").write_bytes(msgspec.json.encode(manifest))


def _timed(command: list[str]) -> str:
    """Wall and CPU seconds, and the peak memory, of the process and its forks together, as cells of a table."""
    import psutil

    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start, peak = time.perf_counter(), 0
    process = psutil.Popen(command, stdout=subprocess.DEVNULL)
    while process.poll() is None:
        with contextlib.suppress(psutil.NoSuchProcess):
            # Forked processes share pages; PSS counts the private pages and a part of the shared ones.
            peak = max(
                peak, sum(member.memory_full_info().pss for member in (process, *process.children(recursive=True)))
            )
        with contextlib.suppress(psutil.TimeoutExpired):
            # Counting the pages of large processes takes long, and slows them down.
            process.wait(min(3, 0.1 + (time.perf_counter() - start) / 10))
    wall_s, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return f"{wall_s:.1f} s | {cpu_s:.1f} s | {peak / 2**30:.2f} GiB"


def _like_a_worker() -> None:
    """Restart this process with the environment and the core of a worker."""
    variables = worker_environment.arm_environment(Device(kind="cpu", threads=1))
    if any(os.environ.get(name) != value for name, value in variables.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **variables})
    os.sched_setaffinity(0, resources.cores_for(Device(kind="cpu", threads=1)))


def products() -> None:
    """The sustained rate of `calibrate` against torch's timer on the same product: same process, in turn."""
    import torch
    from torch.utils.benchmark import Timer

    from attnbench.machine.device import ceilings
    from attnbench.machine.device.cpu import CpuInstrument

    _like_a_worker()
    CpuInstrument(Device(kind="cpu", threads=1))
    timer = ceilings.CallTimer("cpu")
    print("| product | calibrate | torch Timer | ratio |\n|---|---:|---:|---:|")
    for dtype in ("fp32", "bf16"):
        size = ceilings.products(timer, dtype).size
        kind = {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]
        a, b = (torch.randn(size, size).to(kind) for _ in range(2))
        out = torch.empty_like(a)
        run = lambda: torch.mm(a, b, out=out)  # noqa: B023, E731
        pairs = []
        for _ in range(9):
            ours = timer.sustained(run, 0.3)
            pairs.append((ours, Timer("run()", globals={"run": run}).blocked_autorange(min_run_time=0.3).median))
        rates = [2 * size**3 / statistics.median(times) / 1e9 for times in zip(*pairs, strict=True)]
        ratio = statistics.median(theirs / ours for ours, theirs in pairs)
        print(f"| {dtype} n {size} | {rates[0]:.1f} GFLOP/s | {rates[1]:.1f} GFLOP/s | {ratio:.3f} |")


def aa(restarts: int = 6) -> None:
    """The same backend as two arms: does the interval of their ratio hold 1?"""
    stored = attnbench.run(
        seq="64..1024:n7",
        mask=["none", "causal", "causal+window:64"],
        heads="4,8",
        backend="sdpa:flash,sdpa:flash",
        reference="sdpa:flash",
        restarts=restarts,
        budget="0",
        rounds="5..15",
        timeout="120s",
    )
    by_case: dict[str, dict[int, list[Result]]] = {}
    for result in stored.results:
        by_case.setdefault(result.case.label, {}).setdefault(result.arm.copy, []).append(result)
    print("| case | ratio of the two arms | 95 % | holds 1 |\n|---|---:|---:|---|")
    covers = []
    for label, copies in by_case.items():
        ratio = Restarts(copies[1]).ratio_to(Restarts(copies[2]))
        if ratio is None or ratio.low is None or ratio.high is None:
            continue
        covers.append(ratio.low <= 1 <= ratio.high)
        print(
            f"| {label} | {ratio.value:.4f} | {ratio.low:.4f} .. {ratio.high:.4f} | {'yes' if covers[-1] else 'no'} |"
        )
    print(f"\n{sum(covers)} of {len(covers)} intervals hold 1; run {stored.path}")


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
    other = sum(seconds for phase, seconds in spent.items() if phase not in ("total", "store", "time"))
    outside = spent["total"] - other - kernels
    print(f"{len(stored.results)} cases in {total:.1f} s; run {stored.path}")
    print({phase: round(seconds, 2) for phase, seconds in spent.items()}, f"blocks {kernels:.2f}")
    print(f"timed blocks: {100 * kernels / spent['total']:.1f} % of the run")
    print(f"outside kernels, verification and starting: {outside:.2f} s, {100 * outside / spent['total']:.1f} %")


def idle() -> None:
    """The duration of one round trip to an idle worker."""
    arm = Arm(backend="naive", device="cpu:threads=1")
    worker = Worker(arm, resources.cores_for(arm.parsed_device), 0)
    worker.open(60)
    times_s = []
    for _ in range(2000):
        start = time.perf_counter()
        worker.ask(protocol.ReleaseCase(), 10)
        times_s.append(time.perf_counter() - start)
    worker.terminate()
    print(
        f"median {statistics.median(times_s) * 1e3:.3f} ms, p95 {statistics.quantiles(times_s, n=20)[-1] * 1e3:.3f} ms"
    )


def dispatch() -> None:
    """What `attnbench.dispatch.attention` adds to a call of the chosen kernel: the least of short batches, in turn."""
    import torch

    from attnbench.dispatch import Table, attention, calls

    _like_a_worker()
    device = torch.device("cpu")
    print("| backend | gradients | kernel | attention() | added |\n|---|---|---:|---:|---:|")
    for name in (*BACKENDS, "sdpa"):
        for gradients in (False, True):
            mode = Mode.FWD_BWD if gradients else Mode.FWD
            case = Case(problem=Problem(seq_q=32, heads=2), backend=name, mode=mode)
            q, k, v = torch.randn(3, 1, 2, 32, 64).unbind()
            q.requires_grad_(gradients)
            call, table = calls.prepare(name, case, device), Table(_table_of(case))
            attention(q, k, v, table=table)
            run = functools.partial(attention, q, k, v, table=table)
            kernel = functools.partial(call, q, k, v)
            times_s = [(_batch(kernel), _batch(run)) for _ in range(3000)]
            kernel_s, total_s = (min(times) for times in zip(*times_s, strict=True))
            added_s = total_s - kernel_s
            print(
                f"| {name} | {gradients} | {kernel_s * 1e6:.2f} us | {total_s * 1e6:.2f} us | {added_s * 1e6:.2f} us |"
            )


def _batch(run: Callable[[], object], calls: int = 40) -> float:
    """The mean time of a call in a batch that is shorter than a time slice of the scheduler."""
    start = time.perf_counter()
    for _ in range(calls):
        run()
    return (time.perf_counter() - start) / calls


def _table_of(case: Case) -> Dispatch:
    """A dispatch table of this machine that recommends the backend of the case for its problem."""
    from attnbench.dispatch import origin

    choice = Choice(
        problem=case.label, device="cpu", mode=case.mode, shape={}, backend=case.backend, time_s=1.0, tied=(),
        second="", gain=None, axes=case.problem, ranking=(Ranked(backend=case.backend, over=1.0),),
    )  # fmt: skip
    here = origin.current("cpu", 0)
    made = Origin(
        attnbench=attnbench.__version__, created_at="2026-01-01T00:00:00Z", expires="2999-01-01T00:00:00Z",
        fingerprint="", devices={"cpu": here},
    )  # fmt: skip
    return Dispatch(origin=made, choices=(choice,), regrets=())


FIGURES = {each.__name__: each for each in (timer, products, aa, overhead, idle, reports, dispatch, fleet)}

if __name__ == "__main__":
    FIGURES[sys.argv[1]](*sys.argv[2:])
