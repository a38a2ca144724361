"""Twelve runs with made-up times, for tests of what a reader sees first: the finding of each is easy to say."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from attnbench.analysis import traffic_part
from attnbench.analysis.traffic import draw
from attnbench.analysis.traffic_totals import Measured
from attnbench.attention.problem import Problem
from attnbench.records.result import Cause, Result, Status
from attnbench.records.run_directory import MANIFEST, RESULTS, Manifest, Run
from attnbench.studies import traffic_answer
from attnbench.studies.traffic_answer import TrafficAnswer
from tests.analysis.made_steps import made_steps
from tests.golden.made import measured, refused

LENGTHS = (512, 1024, 2048)
CACHES = (1024, 4096, 16384)
COMMIT_A, COMMIT_B = "a" * 40, "b" * 40


def one_winner() -> list[Run]:
    """sdpa:flash is three times as fast as naive, sdpa:math twice, with two masks and three lengths."""
    return [_run("one-winner", _prefill({"naive": 6.0, "sdpa:math": 3.0, "sdpa:flash": 2.0}, ("none", "causal")))]


def tie() -> list[Run]:
    """sdpa:math and sdpa:flash are half a percent apart, within one restart."""
    return [_run("tie", _prefill({"naive": 6.0, "sdpa:math": 2.01, "sdpa:flash": 2.0}))]


def split() -> list[Run]:
    """sdpa:math wins every decode problem, sdpa:flash every prefill problem."""
    prefill = _prefill({"naive": 6.0, "sdpa:math": 3.0, "sdpa:flash": 2.0}, ("causal",))
    decode = _decode({"naive": 6.0, "sdpa:math": 2.0, "sdpa:flash": 4.0})
    return [_run("split", [*prefill, *decode])]


def all_wrong() -> list[Run]:
    """Every case of the only backend is wrong, most by a little and one by much."""
    errors = dict.fromkeys(_problems(("none", "causal")), 0.02)
    errors[next(iter(errors))] = 5.2
    return [_run("all-wrong", [_wrong(problem, "my.py:f", error) for problem, error in errors.items()])]


def all_refused() -> list[Run]:
    """Nothing was measured: one backend does not know the mask, the other needs too much memory."""
    mask = "causal+window:256"
    results = [refused(Problem(seq_q=n, mask=mask), "sdpa:flash", Status.UNSUPPORTED, "no window") for n in LENGTHS]
    for n in LENGTHS:
        reason = f"needs {n} GiB, limit 9.6 GiB"
        results.append(refused(Problem(seq_q=n, mask=mask), "naive", Status.SKIPPED, reason, cause=Cause.MEMORY))
    return [_run("all-refused", results)]


def one_case() -> list[Run]:
    """One backend on one problem."""
    return [_run("one-case", [measured(Problem(seq_q=512), "sdpa:flash", 2e-3)])]


def decode_only() -> list[Run]:
    """sdpa:flash wins every decode problem."""
    return [_run("decode-only", _decode({"naive": 6.0, "sdpa:math": 4.0, "sdpa:flash": 2.0}))]


def prefill_and_decode() -> list[Run]:
    """sdpa:flash wins both, by different factors."""
    prefill = _prefill({"naive": 6.0, "sdpa:math": 3.0, "sdpa:flash": 2.0}, ("causal",))
    decode = _decode({"naive": 2.4, "sdpa:math": 2.2, "sdpa:flash": 2.0})
    return [_run("prefill-and-decode", [*prefill, *decode])]


def two_machines() -> list[Run]:
    """The run of one_winner, and one of another machine where all times are half as long."""
    here, there = ({"naive": 6.0, "sdpa:flash": 2.0}, {"naive": 3.0, "sdpa:flash": 1.0})
    return [
        _run("machine-a", _prefill(here), fingerprint="aaaaaaaaaaaa", machine={"cpu": "Abacus", "cores": 2}),
        _run("machine-b", _prefill(there), fingerprint="bbbbbbbbbbbb", machine={"cpu": "Babbage", "cores": 8}),
    ]


def two_commits() -> list[Run]:
    """Two commits on one machine, six restarts each: sdpa:flash is 20 % slower in the second, the others as before."""
    before, after = ({"naive": 6.0, "sdpa:math": 3.0, "sdpa:flash": flash} for flash in (2.0, 2.4))
    return [
        _run("commit-a", _restarted(before), commit={"commit": COMMIT_A, "dirty": False}),
        _run("commit-b", _restarted(after), commit={"commit": COMMIT_B, "dirty": False}),
    ]


def many_rows() -> list[Run]:
    """200 rows: 50 problems on four backends; sdpa:flash wins from length 1024 on, sdpa:math below."""
    results = []
    for mask in ("none", "causal", "causal+window:256", "causal+window:1024", "prefix:100"):
        for seq in (128, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096):
            flash = 2.0 if seq >= 1024 else 4.0
            results += _group(
                Problem(seq_q=seq, mask=mask), {"naive": 9.0, "sdpa:math": 3.0, "sdpa:flash": flash, "flex": 6.0}
            )
    return [_run("many-rows", results)]


def right_to_left() -> list[Run]:
    """Backends with names in Arabic and Hebrew; the second fails in one case."""
    results = _prefill({"naive": 6.0, "انتباه.py:انتبه": 2.0, "קשב.py:קשב": 3.0}, lengths=LENGTHS[:2])
    problem = Problem(seq_q=LENGTHS[2])
    late = _group(problem, {"naive": 6.0, "انتباه.py:انتبه": 2.0})
    return [_run("right-to-left", [*results, *late, refused(problem, "קשב.py:קשב", Status.ERROR, "ValueError: אורך")])]


def traffic(seed: int = 1, draws: int = 64, lacking: int = 0) -> TrafficAnswer:
    """Two hours of made-up traffic: flex wins decode steps, sdpa the others; sdpa:padded cannot run one.

    The last `lacking` steps in the order of measurement have no times.
    """
    steps, costs = made_steps(5000)
    drawn = draw(steps, draws, seed)
    every = np.stack([costs[name][drawn.steps] for name in ("fused", "decode", "padded")], axis=1)
    times = every[:, :, None] * np.exp(np.random.default_rng(seed).normal(0, 0.02, (*every.shape, 4)))
    times[-1, 2] = np.nan
    plan_s = np.outer(np.ones(len(every)), [0.0, 6.4e-5, 0.0])  # flex
    measured = Measured(
        backends=("sdpa", "flex", "sdpa:padded"), kinds=steps.kinds[drawn.steps], times_s=times,
        refusals={(len(times) - 1, "sdpa:padded"): "out of memory: needs 18 GiB, limit 9.6 GiB"},
        plan_s=plan_s, layers=32,
    )  # fmt: skip
    places = traffic_part.nested(drawn, steps.at(drawn.steps), seed).order
    missing = np.zeros(len(places), bool)
    missing[places[len(places) - lacking :]] = True
    times[missing] = np.nan
    options = {"speed": "1", "max_num_seqs": "256", "max_num_batched_tokens": "2048", "block_size": "16"}
    return traffic_answer.make(
        trace="azure-like", model="tiny-llama", options=options, seed=seed, steps=steps, drawn=drawn,
        measured=measured, hours=2, lacking=missing,
    )  # fmt: skip


CANNED: dict[str, Callable[[], list[Run]]] = {
    make.__name__: make
    for make in (
        one_winner, tie, split, all_wrong, all_refused, one_case, decode_only, prefill_and_decode, two_machines,
        two_commits, many_rows, right_to_left,
    )
}  # fmt: skip


def store(run: Run, folder: Path) -> Path:
    """Write the run as a run directory in `folder`; its path."""
    path = folder / run.path.name
    path.mkdir(parents=True)
    (path / MANIFEST).write_bytes(msgspec.json.encode(run.manifest))
    (path / RESULTS).write_bytes(b"".join(msgspec.json.encode(result) + b"\n" for result in run.results))
    return path


def _run(name: str, results: Sequence[Result], **manifest: Any) -> Run:
    arms = {result.arm.id: result.arm for result in results}
    fields: dict[str, Any] = {
        "schema_version": 1, "attnbench": "0.1.0", "created_at": "2026-01-02T03:04:05Z", "suite": name,
        "command": "attnbench run", "fingerprint": "aaaaaaaaaaaa", "machine": {"cpu": "Abacus", "cores": 2},
        "procedures": {"cpu": results[0].procedure} if results[0].procedure else {},
        "planned": len({(each.case, each.arm.id) for each in results}),
    }  # fmt: skip
    return Run(
        path=Path("results") / name,
        manifest=Manifest(**fields | {"arms": tuple(arms.values())} | manifest),
        results=list(results),
    )


def _problems(masks: Iterable[str]) -> list[Problem]:
    return [Problem(seq_q=seq, mask=mask) for mask in masks for seq in LENGTHS]


def _group(problem: Problem, milliseconds: dict[str, float], name: str = "", **other: Any) -> list[Result]:
    """Every backend on one problem, in shared rounds; a time is per 512 keys."""
    factor = problem.seq_kv / 512 * 1e-3
    group = f"g-{problem.mask}-{problem.seq_q}-{problem.seq_kv}{name}"
    return [measured(problem, backend, time * factor, group=group, **other) for backend, time in milliseconds.items()]


def _prefill(
    milliseconds: dict[str, float], masks: Iterable[str] = ("none",), lengths: Iterable[int] = LENGTHS
) -> list[Result]:
    problems = [Problem(seq_q=seq, mask=mask) for mask in masks for seq in lengths]
    return [result for problem in problems for result in _group(problem, milliseconds)]


def _decode(milliseconds: dict[str, float]) -> list[Result]:
    problems = [Problem(seq_q=1, seq_kv=cache, mask="causal", batch=batch) for batch in (1, 8) for cache in CACHES]
    return [result for problem in problems for result in _group(problem, milliseconds)]


def _restarted(milliseconds: dict[str, float]) -> list[Result]:
    """Six restarts, up to half a percent apart."""
    results = []
    for restart in range(6):
        drift = 1 + 0.002 * (restart % 3 - 1)
        drifted = {backend: time * drift for backend, time in milliseconds.items()}
        for problem in _problems(("none",)):
            results += _group(problem, drifted, f"-{restart}", restart=restart)
    return results


def _wrong(problem: Problem, backend: str, error: float, allowed: float = 1.5e-5) -> Result:
    reason = f"out: max |error| {error:.3g} at [b0 h3 q17 d5] is over {allowed:.3g}"
    facts = {"reference": "naive@cpu", "errors": {"out": {"max_abs": error, "budget": allowed}}}
    return refused(problem, backend, Status.INCORRECT, reason, facts=facts)
