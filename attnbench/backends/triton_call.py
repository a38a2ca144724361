"""The calls of the in-house kernels for the Triton backends: arguments of all, and the decode kernel."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from attnbench.attention import cost, latent, layouts, logits
from attnbench.attention.biases import Alibi, ByDistance, Constant
from attnbench.attention.choices import Dtype, Mode, Returns
from attnbench.attention.problem import Problem
from attnbench.backends import Keywords, Output, Prepared, planned, tables_on
from attnbench.kernels.tiling import MAX_DECODE_ROWS, MAX_LATENT
from attnbench.records.case import Case

if TYPE_CHECKING:
    import torch

MAX_PAGE = 256  # tokens
FP8 = Dtype.FP8_E4M3


def arguments(problem: Problem) -> Keywords:
    """The problem in the words of `attnbench.kernels.attention`, without intervals."""
    return {
        "causal": problem.causal,
        "window": problem.window,
        "scale": problem.scale,
        "softcap": problem.softcap,
        "precision": "tf32" if problem.dtype is Dtype.TF32 else "ieee",
        "return_lse": problem.returns is Returns.LSE,
    }


def optional_arguments(problem: Problem, device: str) -> Keywords:
    """Scales, sinks, dropout, and a bias of no tensor: by slope or by distance, or as a tensor where requested."""
    import torch

    options: Keywords = {"dropout": problem.dropout} if problem.dropout else {}
    if problem.dtype is FP8:
        heads = (problem.heads, problem.kv_heads, problem.kv_heads)
        options["descale"] = tuple(torch.ones(count, device=device) for count in heads)
    if problem.sinks:
        options["sinks"] = logits.sink_logits(problem).float().to(device)
    bias = problem.bias
    if isinstance(bias, Alibi) and not bias.dense:
        options["alibi_slopes"] = bias.slopes(problem).float().to(device)
    elif isinstance(bias, ByDistance) and not bias.dense:
        options["bias"] = bias.distances(problem).float().contiguous().to(device)
    elif isinstance(bias, Constant):
        options["bias"] = bias.dense_tensor(problem).float()[None].contiguous().to(device)
    return options


def is_decoded(case: Case) -> bool:
    """Whether the decode kernel takes it: pages, a latent cache, and requests where it can."""
    problem = case.problem
    if problem.page_size or problem.kv:
        return True
    unnamed = bool(problem.requests) and case.backend == "triton" and not case.mode.needs_grad
    return unnamed and not _beyond_decode(problem)


def _beyond_decode(problem: Problem) -> list[str]:
    """What the decode kernel has not."""
    words = sorted(problem.masking.words - {"causal", "window"})
    others = (problem.bias and problem.bias.text != "alibi") or problem.dropout
    return words + (["biases other than ALiBi and dropout"] if others else [])


def decoded(problem: Problem, device: str, cascade: bool = False) -> Prepared:
    """The decode kernel, which reads pages and latent caches, and takes requests of different lengths.

    `cascade`: it computes a prefix that requests share once for each group of them.
    """
    from attnbench import kernels

    inner = latent.absorbed(problem) if problem.kv else problem
    plan, move = (_cascade_tables, _cascade_tables_on) if cascade else (tables, tables_on)
    places, seconds = planned(partial(plan, problem), partial(move, device), device)
    options = arguments(inner) | optional_arguments(inner, device) | places
    facts: Keywords = {"page_size": problem.page_size} if problem.page_size else {}
    decode = _packed(kernels.decode) if problem.requests else kernels.decode

    def call(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Output:
        output: Output = decode(q, k, v, facts=None if "path" in facts else facts, check=False, **options)
        return output

    run = call
    if problem.kv:
        facts["executed_flops"] = cost.flops(inner, Mode.FWD) + latent.product_flops(problem, problem.tokens_q)
        run = _absorbed(problem, device, call)
    stored = partial(layouts.paged, problem) if problem.page_size else None
    return Prepared(call=run, seconds=seconds if problem.requests else {}, stored=stored, late_facts=lambda: facts)


def _absorbed(problem: Problem, device: str, decode: Callable[..., Output]) -> Callable[..., Output]:
    """Attention to a latent cache, with the products of q and out with its matrices around it."""
    weights = latent.Matrices(*(matrix.to(device) for matrix in latent.matrices(problem)))
    rank = weights.of_values.shape[1]

    def call(q: torch.Tensor, cache: torch.Tensor, _: torch.Tensor) -> Output:
        output = decode(latent.absorb(weights, q), cache, cache[..., :rank])
        if not isinstance(output, tuple):
            return latent.project(weights, output)
        return latent.project(weights, output[0]), output[1]

    return call


def tables(problem: Problem) -> Keywords:
    """Where the queries and keys of every sequence are, in the words of `attnbench.kernels.decode`."""
    batch = layouts.segments(problem)
    places: Keywords = {}
    if problem.page_size:
        places |= {"page_table": layouts.page_table(problem), "kv_lengths": np.array(batch.lengths_kv, np.int32)}
    elif problem.requests:
        places["cu_seqlens_kv"] = np.array(batch.starts_kv, np.int32)
    if problem.requests:
        places["cu_seqlens_q"] = np.array(batch.starts_q, np.int32)
        places |= {"max_seqlen_q": batch.longest_q, "max_seqlen_kv": batch.longest_kv}
    return places


def _cascade_tables(problem: Problem) -> Keywords:
    """The same, and the prefixes of the groups."""
    from attnbench import kernels

    places = tables_on("cpu", tables(problem))
    where = {name: places[name] for name in ("page_table", "cu_seqlens_q")}
    shared = kernels.prefixes(
        problem.prefix_groups[0].keys, layouts.prefix_starts(problem), page_size=problem.page_size, **where
    )
    return places | {"shared_prefix": shared}


def _cascade_tables_on(device: str, places: Keywords) -> Keywords:
    import torch

    shared = places["shared_prefix"]
    shared = shared._replace(table=shared.table.to(device), starts_q=shared.starts_q.to(device))
    moved = {name: each.to(device) if isinstance(each, torch.Tensor) else each for name, each in places.items()}
    return moved | {"shared_prefix": shared}


def _packed(decode: Callable[..., Output]) -> Callable[..., Output]:
    """The same function of packed tokens [1, heads, tokens, width]; keys in pages remain as they are."""

    def call(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **options: object) -> Output:
        keys = (kv if "page_table" in options else kv[0].transpose(0, 1) for kv in (k, v))
        output = decode(q[0].transpose(0, 1), *keys, **options)
        if not isinstance(output, tuple):
            return output.transpose(0, 1)[None]
        out, lse = output
        return out.transpose(0, 1)[None], None if lse is None else lse[None]

    return call


def refuses(case: Case) -> list[str]:
    """Objections of the decode kernel, which reads pages and latent caches, and takes requests."""
    problem = case.problem
    if not is_decoded(case):
        return refuses_packed(problem)
    reads = "pages" if problem.page_size else "a latent cache"
    reasons, what = [], "in a batch of requests" if problem.requests else f"over {reads}"
    if problem.seq_q > MAX_DECODE_ROWS and not problem.requests:
        reasons.append(f"the decode kernel, which reads {reads}, takes at most {MAX_DECODE_ROWS} queries")
    if (cache := problem.latent) and (sum(cache) > MAX_LATENT[0] or cache.rank > MAX_LATENT[1]):
        reasons.append(f"kv={problem.kv} is over {MAX_LATENT[1]}+{MAX_LATENT[0] - MAX_LATENT[1]}")
    if problem.page_size > MAX_PAGE:
        reasons.append(f"page_size {problem.page_size} is over {MAX_PAGE}")
    if beyond := _beyond_decode(problem):
        reasons.append(f"{', '.join(beyond)} {what} unsupported")
    return reasons


def refuses_packed(problem: Problem) -> list[str]:
    """Objections of the other kernels to packed requests: the whole batch is one sequence to them."""
    if problem.requests and problem.bias:
        return ["biases in a batch of requests unsupported, but for ALiBi in a forward pass with causal and window"]
    return []


def refuses_in_cascade(case: Case) -> list[str]:
    """The same, and those of a shared prefix."""
    problem = case.problem
    if not problem.shared_prefix:
        return ["no shared prefix: use --requests and --set shared_prefix=2k:8"]
    reasons = refuses(case)
    if not problem.page_size:
        reasons.append("it reads a prefix from pages: use --set page_size=16")
    elif not layouts.prefix_starts(problem):
        reasons.append(
            "a request without the prefix, or groups with gaps or unlike prefixes, unsupported: use sdpa:cascade"
        )
    return reasons
