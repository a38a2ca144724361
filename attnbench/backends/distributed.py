"""Attention over several processes, each with a part of the sequence: `ring` and `ulysses` (by heads).

Ring (https://arxiv.org/abs/2310.01889): keys and values are passed from rank to rank, and each rank merges partial
outputs by their lse. Ulysses (https://arxiv.org/abs/2309.14509): all-to-all from a share of the sequence to a share of
the heads, and back. Ranks are processes of this machine that communicate by gloo; q, k, v and out are in shared memory,
so that a call moves only what ranks on separate machines would move.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import os
import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from attnbench.attention import cost
from attnbench.attention.choices import Dtype, Mode
from attnbench.attention.problem import Problem
from attnbench.backends import Backend, Limits, Prepared
from attnbench.records.case import Case

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from torch import Tensor

WORLDS = (2, 4)
RUN, STOP = 1, 0  # commands of rank 0


class Job(NamedTuple):
    """What every rank receives once."""

    kind: str
    problem: Problem
    world: int
    threads: int
    rendezvous: str  # path of the file by which gloo connects the ranks


def prepare(case: Case, device: str) -> Prepared:  # noqa: ARG001 - ranks run on the CPU only
    """Start the other ranks; they wait, without spinning, for a call."""
    import torch

    _stop()
    kind, _, count = case.backend.partition(":")
    problem, world = case.problem, int(count)
    threads = max(1, torch.get_num_threads() // world)
    folder = tempfile.mkdtemp(prefix="attnbench-ranks-")
    job = Job(kind, problem, world, threads, str(Path(folder) / "rendezvous"))
    _CURRENT.append(_Ranks(job))

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return _CURRENT[-1].call(q, k, v)

    moved = moved_bytes(problem, kind, world)
    facts = {"ranks": world, "threads_of_a_rank": threads, "moved_bytes": moved, "memory_of": "rank 0"}
    return Prepared(call=call, facts=facts)


def moved_bytes(problem: Problem, kind: str, world: int) -> int:
    """Bytes that all ranks send in a call: keys and values to the next rank, or all but the local share to others."""
    out = cost.output_bytes(problem, Mode.FWD)
    if kind == "ring":
        return (world - 1) * cost.kv_bytes(problem)
    return (cost.input_bytes(problem) + out) * (world - 1) // world


class _Ranks:
    """The processes of one case; this one is rank 0."""

    def __init__(self, job: Job) -> None:
        from torch import multiprocessing

        self.job = job
        context = multiprocessing.get_context("spawn")
        self.pipes = []
        self.processes = []
        for rank in range(1, job.world):
            mine, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(rank, job, theirs), daemon=True)
            process.start()
            self.pipes.append(mine)
            self.processes.append(process)
        self.shared: tuple[Tensor, ...] = ()
        _join(0, job)

    def call(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if not self.shared or any(a.data_ptr() != b.data_ptr() for a, b in zip(self.shared, (q, k, v), strict=False)):
            self._share(q, k, v)
        for pipe in self.pipes:
            pipe.send(RUN)
        _work(0, self.job, *self.shared)
        for pipe in self.pipes:
            if (failure := pipe.recv()) is not None:
                raise RuntimeError(failure)
        return self.shared[3].clone()

    def _share(self, q: Tensor, k: Tensor, v: Tensor) -> None:
        problem = self.job.problem
        out = q.new_empty(problem.batch, problem.heads, problem.seq_q, problem.head_dim_v)
        self.shared = tuple(tensor.detach().share_memory_() for tensor in (q, k, v, out))
        for pipe in self.pipes:
            pipe.send(self.shared)

    def stop(self) -> None:
        for pipe in self.pipes:
            with contextlib.suppress(OSError):
                pipe.send(STOP)
        for process in self.processes:
            process.join(5)
            process.kill()
        import torch.distributed as dist

        dist.destroy_process_group()


_CURRENT: list[_Ranks] = []


@atexit.register
def _stop() -> None:
    while _CURRENT:
        _CURRENT.pop().stop()


def _serve(rank: int, job: Job, pipe: Connection) -> None:
    """The loop of a rank: receive the tensors once, then run a call on each command, until the pipe closes."""
    import torch

    torch.set_num_threads(job.threads)
    _join(rank, job)
    shared: tuple[Tensor, ...] = ()
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            message = pipe.recv()
            if isinstance(message, tuple):
                shared = message
            elif message == STOP:
                return
            else:
                try:
                    _work(rank, job, *shared)
                    pipe.send(None)
                except Exception as error:  # rank 0 raises it for all ranks
                    pipe.send(f"rank {rank}: {type(error).__name__}: {error}")


def _join(rank: int, job: Job) -> None:
    import torch.distributed as dist

    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", init_method=f"file://{job.rendezvous}", rank=rank, world_size=job.world)


def _work(rank: int, job: Job, q: Tensor, k: Tensor, v: Tensor, out: Tensor) -> None:
    """The part of one rank in a call: it reads its rows of q, k and v, and writes its rows of out."""
    import torch

    rows, keys = shares(job.problem.seq_q, job.world), shares(job.problem.seq_kv, job.world)
    local = [q[:, :, rows[rank]], k[:, :, keys[rank]], v[:, :, keys[rank]]]
    with torch.no_grad():
        run = _ring if job.kind == "ring" else _ulysses
        out[:, :, rows[rank]] = run(rank, job, *(tensor.contiguous() for tensor in local))


def shares(length: int, world: int) -> list[slice]:
    """The tokens of every rank: consecutive runs of near-equal length, the first ones longer."""
    short, longer = divmod(length, world)
    ends = [rank * short + min(rank, longer) for rank in range(world + 1)]
    return [slice(first, last) for first, last in itertools.pairwise(ends)]


def _ring(rank: int, job: Job, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    import torch
    import torch.distributed as dist

    problem, world = job.problem, job.world
    causal, keys = problem.mask == "causal", shares(problem.seq_kv, world)
    after, before = (rank + 1) % world, (rank - 1) % world
    parts = []
    current = [k, v]
    for step in range(world):
        owner = (rank - step) % world
        pending: list[dist.Work | None] = []
        incoming: list[Tensor] = []
        if step < world - 1:
            length = keys[(rank - step - 1) % world]
            shapes = [(*tensor.shape[:2], length.stop - length.start, tensor.shape[3]) for tensor in current]
            incoming = [torch.empty(shape, dtype=q.dtype) for shape in shapes]
            pending = [dist.isend(tensor, after) for tensor in current]
            pending += [work for tensor in incoming if (work := dist.irecv(tensor, before))]
        if not (causal and owner > rank):  # keys behind the diagonal are skipped
            parts.append(_attend(problem, (q, *current), causal and owner == rank))
        for work in filter(None, pending):
            work.wait()
        current = incoming or current
    return merge(parts)[0].to(q.dtype)


def _attend(problem: Problem, qkv: tuple[Tensor, ...], causal: bool) -> tuple[Tensor, Tensor]:
    """Out and its log-sum-exp of some rows over some keys, by torch's FlashAttention for CPUs."""
    import torch

    q, k, v = qkv
    groups = problem.heads // problem.kv_heads
    if groups > 1:
        k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, causal, scale=problem.scale)
    return out, lse


def merge(parts: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Combine partial outputs [..., rows, width] over parts of the keys, and their lse [..., rows]."""
    import torch

    lse = torch.stack([part_lse for _, part_lse in parts]).logsumexp(0)
    out = sum((part.to(lse.dtype) * (part_lse - lse).exp()[..., None] for part, part_lse in parts), torch.zeros(()))
    return out, lse


def _ulysses(rank: int, job: Job, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    problem, world = job.problem, job.world
    rows, keys = shares(problem.seq_q, world), shares(problem.seq_kv, world)
    lengths = [[share.stop - share.start for share in tokens] for tokens in (rows, keys, keys)]
    whole = tuple(_to_heads(tensor, rank, counts) for tensor, counts in zip((q, k, v), lengths, strict=True))
    out, _ = _attend(problem, whole, problem.mask == "causal")
    return _to_rows(out, lengths[0], rank)


def _to_heads(local: Tensor, rank: int, lengths: list[int]) -> Tensor:
    """[batch, heads, local rows, width] -> [batch, heads / world, all rows, width]."""
    import torch
    import torch.distributed as dist

    world = len(lengths)
    batch, heads, _, width = local.shape
    share = heads // world
    outgoing = torch.cat([part.flatten() for part in local.chunk(world, dim=1)])
    sizes = [batch * share * length * width for length in lengths]
    received = local.new_empty(sum(sizes))
    dist.all_to_all_single(received, outgoing, sizes, [sizes[rank]] * world)
    pieces = (p.view(batch, share, n, width) for p, n in zip(received.split(sizes), lengths, strict=True))
    return torch.cat(list(pieces), dim=2)


def _to_rows(out: Tensor, lengths: list[int], rank: int) -> Tensor:
    """[batch, heads / world, all rows, width] -> [batch, heads, local rows, width]."""
    import torch
    import torch.distributed as dist

    world = len(lengths)
    batch, share, _, width = out.shape
    sizes = [batch * share * length * width for length in lengths]
    outgoing = torch.cat([part.flatten() for part in out.split(lengths, dim=2)])
    received = out.new_empty(sizes[rank] * world)
    dist.all_to_all_single(received, outgoing, [sizes[rank]] * world, sizes)
    return received.view(world, batch, share, lengths[rank], width).transpose(0, 1).flatten(1, 2)


def objections(case: Case, kind: str, world: int) -> list[str]:
    """Lengths and heads that cannot be divided among the ranks."""
    problem, reasons = case.problem, []
    if min(problem.seq_q, problem.seq_kv) < world:
        reasons.append(f"a rank of {world} would have no token of {min(problem.seq_q, problem.seq_kv)}")
    if problem.mask == "causal" and problem.seq_q != problem.seq_kv:
        reasons.append("causal only where seq_q and seq_kv are equal")
    if kind == "ulysses" and problem.kv_heads % world:
        reasons.append(f"kv_heads {problem.kv_heads} is not a multiple of {world} ranks")
    return reasons


def scratch_bytes(case: Case) -> int:
    """Of rank 0: its shares, keys in transit, partial outputs, and the copy of out from shared memory."""
    problem = case.problem
    out = cost.output_bytes(problem, Mode.FWD)
    return 2 * cost.input_bytes(problem) + 4 * out


def _backend(kind: str, world: int, summary: str) -> Backend:
    dtypes, features = frozenset({Dtype.FP32, Dtype.BF16}), frozenset({"causal", "gqa", "scale", "cross"})
    return Backend(
        name=f"{kind}:{world}",
        summary=f"{summary}, {world} processes by gloo",
        limits={"cpu": Limits(dtypes=dtypes, features=features, modes=frozenset({Mode.FWD}))},
        prepare=prepare,
        scratch_bytes=scratch_bytes,
        requires=("torch", "torch.distributed"),
        install="pip install torch",
        refuses=partial(objections, kind=kind, world=world),
    )


KINDS = {"ring": "ring attention: keys and values pass from rank to rank", "ulysses": "Ulysses: by heads, all-to-all"}
BACKENDS = {f"{kind}:{world}": _backend(kind, world, summary) for kind, summary in KINDS.items() for world in WORLDS}
