"""Lengths that break kernels: no query, one token, one beside a tile, primes, more elements than 32 bits count."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from msgspec.structs import replace

from attnbench.attention import inputs, requests
from attnbench.attention.choices import Mode
from attnbench.attention.requests import RequestSize
from attnbench.errors import ProblemError
from attnbench.records.case import Case
from attnbench.worker.prepared_case import PreparedCase
from attnbench.worker.probes import outcome
from attnbench.worker.probes.outcome import Judged, NotApplicableError, Reaction, Variant

if TYPE_CHECKING:
    from attnbench.attention.problem import Problem

INT32 = 2**31  # elements; a 32-bit offset is negative from here
REQUIRED = 4  # bytes of memory for each byte of keys: keys, values and their copies on the host


def _of_length(case: PreparedCase, length: int) -> Judged:
    """The same problem with so many keys, and with as many queries unless it decodes."""
    problem = case.problem
    if problem.requests or problem.page_size:
        raise NotApplicableError("sequences of one length are needed")
    queries = min(problem.seq_q, length) if problem.seq_q != problem.seq_kv else length
    return _judge(case, _resized(problem, queries, length))


def _one_off(case: PreparedCase, more: int) -> Judged:
    """The same problem with one key more or less than the case has."""
    return _of_length(case, case.problem.seq_kv + more)


def _with_waiting(case: PreparedCase) -> Judged:
    """The same batch with requests that have no query: one without a key, and one with the keys of the first."""
    problem = case.problem
    if not problem.requests or problem.shared_prefix:
        raise NotApplicableError("a batch of requests without a shared prefix is needed")
    first, *others = problem.sizes
    sizes = (RequestSize(0, 0), first, RequestSize(0, first.keys), *others)
    return _judge(case, replace(problem, batch=len(sizes), requests=requests.spell(sizes)))


def _over_int32(case: PreparedCase) -> Judged:
    """Keys of over 2^31 numbers; one query, one head."""
    import torch

    problem = case.problem
    if problem.requests or problem.page_size:
        raise NotApplicableError("sequences of one length are needed")
    length = INT32 // problem.head_dim + 1
    needed = REQUIRED * length * problem.head_dim * problem.dtype.bytes
    if case.q.device.type != "cuda":
        raise NotApplicableError("takes minutes on a CPU")
    if torch.cuda.mem_get_info(case.q.device)[0] < needed:
        raise NotApplicableError(f"needs {needed / 2**30:.0f} GiB of memory")
    single = replace(_resized(problem, 1, length), batch=1, heads=1, kv_heads=1)
    return _judge(case, single)


def _resized(problem: Problem, queries: int, keys: int) -> Problem:
    try:
        return replace(problem, seq_q=queries, seq_kv=keys)
    except ProblemError as error:
        raise NotApplicableError(str(error)) from None


def _judge(case: PreparedCase, problem: Problem) -> Judged:
    other = Case(problem=problem, backend=case.case.backend, mode=Mode.FWD)
    if objections := case.backend.objections(other, case.q.device.type, case.instrument.capability):
        return Judged(Reaction.REFUSES, "; ".join(objections))
    tensors = inputs.make(problem, case.procedure.seed)
    return outcome.judged(case, tensors, lambda: outcome.other_call(case, other, tensors), problem)


def _variant(length: int, what: str, *sources: str) -> Variant:
    return Variant(what=what, run=partial(_of_length, length=length), sources=sources)


_TILE = ("https://github.com/tenstorrent/tt-metal/issues/54833",)
VARIANTS = {
    "1": _variant(1, "one token", "https://github.com/Dao-AILab/flash-attention/issues/1537"),
    "61": _variant(61, "a prime", "https://github.com/flagos-ai/FlagGems/pull/898"),
    "127": _variant(127, "one less than a tile", *_TILE),
    "129": _variant(129, "one more than a tile", *_TILE),
    "one_less": Variant("one token less than the case", partial(_one_off, more=-1), _TILE),
    "one_more": Variant("one token more than the case", partial(_one_off, more=1), _TILE),
    "waiting": Variant(
        "requests without queries among those of a batch",
        _with_waiting,
        (
            "https://github.com/Dao-AILab/flash-attention/issues/1537",
            "https://github.com/Dao-AILab/flash-attention/issues/2562",
            "https://github.com/deepseek-ai/FlashMLA/issues/11",
        ),
    ),
    "over_int32": Variant(
        "keys of over 2^31 numbers",
        _over_int32,
        (
            "https://github.com/vllm-project/vllm/issues/50427",
            "https://github.com/pytorch/pytorch/issues/190857",
            "https://github.com/fla-org/flash-linear-attention/issues/1080",
        ),
    ),
}
