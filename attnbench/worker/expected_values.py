"""Expected values of a problem: outputs of the float64 reference and their tolerances, computed once.

They are written to files, so that any number of processes can share them. Where the whole reference is too expensive,
whole (sequence, kv head) groups are drawn by seed, then runs of rows; the verified share is recorded.
"""

import math
import os
import random
import time
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path

import msgspec
import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from attnbench.attention import inputs
from attnbench.attention.blocks import Group, Span, computed_logits, groups, rows_of
from attnbench.attention.choices import Mode
from attnbench.attention.problem import Problem
from attnbench.errors import StoreError
from attnbench.records.result import Record
from attnbench.worker.protocol import EXPECTED_FILE
from attnbench.worker.reference_outputs import GRADIENTS, group_outputs, sequence_outputs
from attnbench.worker.tolerances import OutputTally, OutputTolerance

LOGITS_WITHIN = 16.0  # assumed size of the logits inside a block or layers, which return no lse
FAR_LOGITS = 128.0  # size of a log-sum-exp from which on its rounding in float32 matters
DROPPED = ("out", "dv")  # outputs whose mean under dropout is the output without dropout
RUN = 64  # rows that are drawn together, where one group is too expensive


class Selection(Record, frozen=True, kw_only=True):
    """The verified part: rows `spans` of every group in `groups`; no spans mean all rows."""

    groups: tuple[Group, ...]
    spans: tuple[Span, ...] = ()
    share: float = 1.0  # of all query rows, over batch and heads


class ExpectedValues(Record, frozen=True, kw_only=True):
    """Expected values of a problem. The arrays are files beside this record, mapped when used.

    Keys are those that workers of other versions read.
    """

    problem: Problem
    mode: Mode
    seed: int
    distribution: str
    digest: str  # of the inputs
    selection: Selection
    tolerances: dict[str, OutputTolerance]
    seconds: float  # of the computation
    directory: str = ""

    @property
    def share(self) -> float:
        """The verified part of all query rows."""
        return self.selection.share

    def array(self, name: str) -> NDArray[np.floating]:
        """`out`: [groups, heads of a group, rows, width]; `out.tiles`: the error that each tile may have.

        Where groups differ in their rows, the rows of the longest, of which a group uses the first.
        """
        return np.load(Path(self.directory) / f"{name}.npy", mmap_mode="r")  # type: ignore[no-any-return]


def compute(
    problem: Problem,
    mode: Mode,
    seed: int,
    distribution: str,
    directory: Path,
    budget_s: float,
    *,
    tensors: inputs.Inputs | None = None,
) -> ExpectedValues:
    """Compute both references once and write them to `directory`, for any number of processes to `load`.

    Groups are drawn by seed if all would take longer than `budget_s`; gradients need at least one whole group.
    `tensors`: the inputs, in place of those that the distribution gives.
    """
    start = time.perf_counter()
    directory.mkdir(parents=True, exist_ok=True)
    tensors = tensors or inputs.make(problem, seed, distribution)
    selection = select(problem, mode, seed, budget_s)
    tallies = _tallies(problem, mode, tensors, selection, directory)
    expected = ExpectedValues(
        problem=problem,
        mode=mode,
        seed=seed,
        distribution=distribution,
        digest=inputs.digest(tensors),
        selection=selection,
        tolerances=_tolerances(problem, tallies),
        seconds=time.perf_counter() - start,
    )
    # Written last, and renamed into place: a reader finds a complete record, or none.
    draft = directory / f"{EXPECTED_FILE}.{os.getpid()}"
    draft.write_bytes(msgspec.json.encode(expected))
    draft.replace(directory / EXPECTED_FILE)
    return replace(expected, directory=str(directory))


def _tallies(
    problem: Problem, mode: Mode, tensors: inputs.Inputs, selection: Selection, directory: Path
) -> dict[str, OutputTally]:
    """Compute both references of the selected rows. Values in float64 are written, errors are summed up."""
    tallies: dict[str, OutputTally] = {}
    for place, group in enumerate(selection.groups):
        for output in group_outputs(problem, mode, tensors, group, list(selection.spans) or None):
            if output.name not in tallies:
                shape = len(selection.groups), _most_rows(problem, output.name)
                tallies[output.name] = OutputTally(problem.working_dtype, directory, output.name, shape)
            tallies[output.name].add(place, output, with_mass=problem.dropout > 0 and output.name in DROPPED)
    sequence_outputs.cache_clear()
    return tallies


def _tolerances(problem: Problem, tallies: Mapping[str, OutputTally]) -> dict[str, OutputTolerance]:
    # Rounding error of two sums of head_dim terms, as random walks, in units of eps.
    size = tallies["lse"].largest if "lse" in tallies else LOGITS_WITHIN
    logits = max(1.0, math.sqrt(problem.head_dim) / 2) * size
    far = size if size > FAR_LOGITS else 0.0
    return {
        name: tally.tolerance(logits if name in GRADIENTS else far, far, _terms(problem, name))
        for name, tally in tallies.items()
    }


def _terms(problem: Problem, name: str) -> int:
    """The most terms of a sum in that output: keys, or for gradients of keys the queries that share them."""
    of_keys = name in ("dk", "dv")
    return problem.seq_q * problem.heads // problem.kv_heads if of_keys else problem.seq_kv


def _most_rows(problem: Problem, name: str) -> int:
    """The most rows that a group has in that output, where groups differ; else 0."""
    if not problem.requests:
        return 0
    return problem.seq_kv if name in ("dk", "dv") else problem.seq_q


def load(directory: Path) -> ExpectedValues:
    """Read what `compute` wrote. Raises StoreError if there is nothing."""
    try:
        record = (directory / EXPECTED_FILE).read_bytes()
    except FileNotFoundError:
        raise StoreError(f"{directory}: no expected values ({EXPECTED_FILE} is missing)") from None
    return replace(msgspec.json.decode(record, type=ExpectedValues), directory=str(directory))


def select(problem: Problem, mode: Mode, seed: int, budget_s: float) -> Selection:
    """All groups if they fit the budget, else groups drawn by seed, else (forward only) rows of one group."""
    all_groups = groups(problem)
    every_row = sum(rows_of(problem, group) for group in all_groups)
    if problem.scope != "core":
        return _whole_sequences(problem, mode, seed, budget_s)
    seconds = _predictor(problem, mode)
    by_sequence = [seconds(b, None) for b in range(problem.sequences)]
    if sum(by_sequence) * problem.kv_heads <= budget_s:
        return Selection(groups=tuple(all_groups))
    drawn, spent = [], 0.0
    for group in random.Random(seed).sample(all_groups, len(all_groups)):
        if spent + by_sequence[group[0]] <= budget_s:
            drawn.append(group)
            spent += by_sequence[group[0]]
    if drawn:
        return Selection(groups=tuple(sorted(drawn)), share=sum(rows_of(problem, each) for each in drawn) / every_row)
    group = random.Random(seed).choice(all_groups)
    if mode.needs_grad:
        return Selection(groups=(group,), share=rows_of(problem, group) / every_row)
    spans = _row_runs(rows_of(problem, group), seed, budget_s, lambda span: seconds(group[0], [span]))
    rows = sum(stop - first for first, stop in spans)
    return Selection(groups=(group,), spans=spans, share=rows / every_row)


def _whole_sequences(problem: Problem, mode: Mode, seed: int, budget_s: float) -> Selection:
    """Every group of at least one sequence, drawn by seed: a projection mixes all heads of a sequence."""
    seconds = _predictor(replace(problem, scope="core", autocast="none"), mode)
    layers = max(1, problem.scoped[1])
    sequence_s = layers * problem.kv_heads * sum(seconds(b, None) for b in range(problem.sequences)) / problem.sequences
    count = max(1, min(problem.sequences, int(budget_s / sequence_s)))
    sequences = sorted(random.Random(seed).sample(range(problem.sequences), count))
    drawn = tuple((b, head) for b in sequences for head in range(problem.kv_heads))
    rows = sum(rows_of(problem, (b, 0)) for b in sequences)
    return Selection(groups=drawn, share=rows / problem.tokens_q)


def _row_runs(seq_q: int, seed: int, budget_s: float, seconds: Callable[[Span], float]) -> tuple[Span, ...]:
    """Runs of rows: the first, the last, one drawn by seed, and more of these within the budget."""
    runs = [(first, min(first + RUN, seq_q)) for first in range(0, seq_q, RUN)]
    ends = list(dict.fromkeys([runs[0], runs[-1]]))
    inner = [run for run in runs if run not in ends]
    drawn, spent = ends, sum(map(seconds, ends))
    for place, run in enumerate(random.Random(seed).sample(inner, len(inner))):
        spent += seconds(run)
        if place and spent > budget_s:
            break
        drawn.append(run)
    return tuple(sorted(drawn))


def _predictor(problem: Problem, mode: Mode) -> Callable[[int, list[Span] | None], float]:
    """Predicted seconds of one group of a sequence, from the time of a small problem of the same kind here."""
    sharing = problem.heads // problem.kv_heads
    rows = min(problem.seq_q, 128)
    keys = min(problem.seq_kv, 2**16 // rows)

    def probe(seq_q: int, seq_kv: int) -> float:
        shape = {"batch": 1, "heads": min(sharing, 4), "kv_heads": 1, "seq_q": seq_q, "seq_kv": seq_kv}
        return _probed_s(replace(problem, **shape, mask="none", lengths=(), requests="", shared_prefix=""), mode)

    fixed = probe(1, 1)
    per_logit = probe(rows, keys) / (rows * keys * min(sharing, 4))

    def seconds(sequence: int, spans: list[Span] | None) -> float:
        return fixed + sharing * per_logit * computed_logits(problem, sequence, spans)

    return seconds


@lru_cache(maxsize=16)
def _probed_s(small: Problem, mode: Mode) -> float:
    """Seconds of a group of a small problem here: measured once for all problems of the same kind and size."""
    tensors = inputs.make(small, 0)
    times = []
    for _ in range(3):
        start = time.perf_counter()
        for _ in group_outputs(small, mode, tensors, (0, 0), None):
            pass
        times.append(time.perf_counter() - start)
    return min(times)
