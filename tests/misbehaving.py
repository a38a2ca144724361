"""Faulty backends with one fault each, for tests with real workers: `--backend tests/misbehaving.py:hang`."""

from __future__ import annotations

import collections
import ctypes
import hashlib
import itertools
import os
import random
import signal
import subprocess
import sys
import threading
import time

import torch

import attnbench


def _right(q, k, v, causal, scale):
    """Correct attention, causal at the bottom right; q, k, v: [batch, heads, seq, head_dim]."""
    scores = q @ k.transpose(-2, -1) * scale
    if causal:
        seq_q, seq_kv = scores.shape[-2:]
        hidden = torch.ones(seq_q, seq_kv, dtype=torch.bool, device=q.device).triu(seq_kv - seq_q + 1)
        scores = scores.masked_fill(hidden, float("-inf"))
    return scores.softmax(-1) @ v


def right(q, k, v, *, causal, scale):
    return _right(q, k, v, causal, scale)


_calls = itertools.count()


def of_flash_attn(q, k, v, **options):
    """Expects [batch, seq, heads, head_dim] and flash-attn's names of arguments."""
    q, k, v = (tensor.transpose(1, 2) for tensor in (q, k, v))
    return _right(q, k, v, options["causal"], options["scale"]).transpose(1, 2).contiguous()


def raises(q, k, v, *, causal, scale):
    raise ValueError("the tile size 48 is not a power of two")


def raises_base_exception(q, k, v, *, causal, scale):
    raise SystemExit(3)


def wrong_shape(q, k, v, *, causal, scale):
    return _right(q, k, v, causal, scale)[..., :-1]


def wrong_dtype(q, k, v, *, causal, scale):
    return _right(q, k, v, causal, scale).double()


def wrong_device(q, k, v, *, causal, scale):
    return _right(q, k, v, causal, scale).to("meta")


def not_a_tensor(q, k, v, *, causal, scale):
    return _right(q, k, v, causal, scale).tolist()


def nan(q, k, v, *, causal, scale):
    out = _right(q, k, v, causal, scale).clone()
    out[0, 0, -1, -1] = float("nan")
    return out


def zeros(q, k, v, *, causal, scale):
    return torch.zeros_like(_right(q, k, v, causal, scale))


def mean_of_v(q, k, v, *, causal, scale):
    return v.mean(-2, keepdim=True).expand(*q.shape[:-1], v.shape[-1]).clone()


def unwritten(q, k, v, *, causal, scale):
    return torch.empty(*q.shape[:-1], v.shape[-1], dtype=q.dtype, device=q.device)


def top_left(q, k, v, *, causal, scale):
    """Causal mask aligned to the wrong corner: correct only if seq_q == seq_kv."""
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scale)


_cache: dict[tuple[int, ...], torch.Tensor] = {}


def last_output(q, k, v, *, causal, scale):
    """A cache keyed by address and shape: a second call with new values gives the first one's output."""
    key = (q.data_ptr(), k.data_ptr(), v.data_ptr(), *q.shape)
    if key not in _cache:
        _cache[key] = _right(q, k, v, causal, scale)
    return _cache[key].clone()


_first_v: dict[tuple[int, ...], torch.Tensor] = {}


def keeps_first_v(q, k, v, *, causal, scale):
    """Reads the first v of each shape, whose numbers are right as long as the caller writes into the same tensor."""
    return _right(q, k, _first_v.setdefault(v.shape, v), causal, scale)


def view_of_input(q, k, v, *, causal, scale):
    q.copy_(_right(q, k, v, causal, scale))
    return q


def changes_inputs(q, k, v, *, causal, scale):
    out = _right(q, k, v, causal, scale)
    k.mul_(1.0).add_(1e-3)
    return out


_children: list[subprocess.Popen[bytes]] = []


def restless(q, k, v, *, causal, scale):
    """Correct, but starts a process that outlives it, and prints hundreds of megabytes over the life of a case."""
    if not _children:
        _children.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]))
    line = b"tuning configuration, please wait ... " * 27000
    for _ in range(6):
        os.write(1, line)
        os.write(2, line)
    os.write(1, b"\norphan: %d\n" % _children[0].pid)
    return _right(q, k, v, causal, scale)


def segfault(q, k, v, *, causal, scale):
    ctypes.string_at(0)


def hang(q, k, v, *, causal, scale):
    while True:
        time.sleep(0.05)


def hang_in_c(q, k, v, *, causal, scale):
    libc = ctypes.PyDLL(None)  # keeps the interpreter lock: no Python code runs any more
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    libc.sleep(100_000)


_leak: list[torch.Tensor] = []


def leaks(q, k, v, *, causal, scale):
    while True:
        _leak.append(torch.ones(64 * 1024**2 // 4))


def spins(q, k, v, *, causal, scale):
    """Correct, but leaves a thread that spins."""
    if not any(thread.name == "spinner" for thread in threading.enumerate()):
        threading.Thread(target=_spin, name="spinner", daemon=True).start()
    return _right(q, k, v, causal, scale)


def _spin():
    matrix = torch.ones(2048, 2048)  # so large that the thread hardly ever waits for the interpreter's lock
    while True:
        matrix @ matrix


def wrong_later(q, k, v, *, causal, scale):
    """Correct for 20 calls, then wrong: like a race, or a kernel that cheats after verification."""
    wrong_later.calls = getattr(wrong_later, "calls", 0) + 1
    if wrong_later.calls == 21:
        print("wrong from here")
    out = _right(q, k, v, causal, scale)
    return out if wrong_later.calls <= 20 else out * 1.01


def wrong_in_eighth(q, k, v, *, causal, scale):
    """Wrong in every eighth call, like a workspace that is used in turn and not cleared."""
    out = _right(q, k, v, causal, scale)
    return out if next(_calls) % 8 else out * 1.01


_random = random.Random(0)


def wrong_at_random(q, k, v, *, causal, scale):
    """Wrong in one call of eight, like a race."""
    out = _right(q, k, v, causal, scale)
    return out if _random.random() > 1 / 8 else out * 1.01


def rounds_differently(q, k, v, *, causal, scale):
    """Correct, with other last bits in every call, like a sum with atomics."""
    return _right(q, k, v, causal, scale) * (1 + 1e-7 * _random.random())


wrong_now = threading.Event()


def wrong_while_set(q, k, v, *, causal, scale):
    out = _right(q, k, v, causal, scale)
    return out * 1.01 if wrong_now.is_set() else out


@attnbench.backend(features={"causal", "lse"}, modes={"fwd"})
def wrong_lse(q, k, v, problem):
    scores = q @ k.transpose(-2, -1) * problem.scale
    out = _right(q, k, v, "causal" in problem.features, problem.scale)
    return (out, scores.logsumexp(-1) + 1) if problem.returns == "lse" else out


@attnbench.backend(dtypes={"fp32"}, features={"causal"}, modes={"fwd"})
def wrong_gradient_refused(q, k, v, problem):
    return _right(q, k, v, "causal" in problem.features, problem.scale)


class _WrongGradient(torch.autograd.Function):
    @staticmethod
    def forward(context, q, k, v, causal, scale):
        context.save_for_backward(q, k, v)
        return _right(q, k, v, causal, scale)

    @staticmethod
    def backward(context, dout):
        q, k, v = context.saved_tensors
        return q, k, v, None, None


def wrong_gradient(q, k, v, *, causal, scale):
    return _WrongGradient.apply(q, k, v, causal, scale)


def _remembering(key, after=0):
    """A kernel that takes 3 ms, and remembers its output under a key of its inputs, after so many calls with it."""
    outputs, calls = {}, collections.Counter()

    def kernel(q, k, v, *, causal, scale):
        name = key(q, k, v)
        calls[name] += 1
        if name not in outputs or calls[name] <= after:
            time.sleep(0.003)
            outputs[name] = _right(q, k, v, causal, scale)
        return outputs[name].clone()

    return kernel


def _digest(*tensors):
    return hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in tensors)).digest()


remembers_shape = _remembering(lambda q, k, v: (q.shape, k.shape))
remembers_version = _remembering(lambda q, k, v: tuple((tensor.data_ptr(), tensor._version) for tensor in (q, k, v)))
remembers_digest = _remembering(_digest)
remembers_sample = _remembering(lambda *qkv: tuple(value for x in qkv for value in x.flatten()[::37].tolist()))
remembers_round = _remembering(_digest, after=2)

_weights: dict[bytes, torch.Tensor] = {}


def remembers_weights(q, k, v, *, causal, scale, miss_s=0.003):
    """Remembers the weights under the logits of a row, which transformations of the inputs do not change."""
    name = _digest(q[:, :, :1] @ k.transpose(-2, -1))
    if name not in _weights:
        time.sleep(miss_s)
        _weights[name] = (q @ k.transpose(-2, -1) * scale).softmax(-1)
    return _weights[name] @ v


def remembers_weights_for_long(q, k, v, *, causal, scale):
    """The same, in calls that each are a block."""
    time.sleep(0.003)
    return remembers_weights(q, k, v, causal=causal, scale=scale, miss_s=0.04)


_by_size: dict[bytes, tuple[torch.Tensor, torch.Tensor]] = {}


def remembers_sign(q, k, v, *, causal, scale):
    """Recognises inputs by the sizes of their numbers, and gives the output of the first ones with the sign of v."""
    name = _digest(
        *((tensor.abs() / tensor.abs().max()).flatten().sort().values for tensor in (q, k, v)),
        q.abs().max() * k.abs().max(),
    )
    if name not in _by_size:
        _by_size[name] = _right(q, k, v, causal, scale), v.clone()
    out, first = _by_size[name]
    return out * (v[0, 0, 0, 0] / first[0, 0, 0, 0]).sign() * (v.abs().max() / first.abs().max())


_counts: collections.Counter[str] = collections.Counter()


def skips_between(q, k, v, *, causal, scale):
    """Leaves out the last head in three of four calls, after the verification."""
    _counts["skips"] += 1
    out = _right(q, k, v, causal, scale)
    if _counts["skips"] > 30 and _counts["skips"] % 4:
        out[:, -1] = 0
    return out


def stops_after_calls(q, k, v, *, causal, scale):
    """Returns memory that it did not write, after the verification."""
    _counts["stops"] += 1
    return _right(q, k, v, causal, scale) if _counts["stops"] <= 30 else torch.empty_like(q)


_next_call = threading.Event()


def in_thread(q, k, v, *, causal, scale):
    """Computes in a thread that finishes when the next call begins, once the verification has passed."""
    global _next_call
    _next_call.set()
    _counts["thread"] += 1
    if _counts["thread"] <= 30:
        return _right(q, k, v, causal, scale)
    out, _next_call = torch.zeros_like(q), threading.Event()
    threading.Thread(target=_finish, args=(out, _next_call, q, k, v, causal, scale), daemon=True).start()
    return out


def _finish(out, begin, *arguments):
    begin.wait()
    out.copy_(_right(*arguments))


def in_stream(q, k, v, *, causal, scale):
    """Computes in a CUDA stream that the calling one does not wait for."""
    out, side = torch.zeros_like(q), torch.cuda.Stream(q.device)
    side.wait_stream(torch.cuda.current_stream(q.device))
    with torch.cuda.stream(side):
        torch.cuda._sleep(50_000_000)
        out.copy_(_right(q, k, v, causal, scale))
    return out


_perf_counter_ns = time.perf_counter_ns


def bends_time(q, k, v, *, causal, scale):
    """Slows the clock of Python down."""
    time.perf_counter_ns = lambda: _perf_counter_ns() // 2
    return _right(q, k, v, causal, scale)


def bends_clock(q, k, v, *, causal, scale):
    """Slows the clock of attnbench down."""
    sys.modules["attnbench.machine.device.cpu"]._clock = lambda: _perf_counter_ns() // 2
    return _right(q, k, v, causal, scale)
