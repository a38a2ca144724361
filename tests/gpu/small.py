"""Small calls by one path, for tools that watch every access: `compute-sanitizer python -m tests.gpu.small hopper`."""

from __future__ import annotations

import sys

import torch

from attnbench import kernels


def main(path: str) -> None:
    """Forward and backward, full and causal, with shared heads and lengths that fill no tile."""
    torch.manual_seed(0)
    for causal in (False, True):
        q = torch.randn(1, 4, 300, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        k, v = (torch.randn(1, 2, 300, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True) for _ in range(2))
        out = kernels.attention(q, k, v, causal=causal, path=path)
        out.backward(torch.randn_like(out))
        torch.cuda.synchronize()
        assert all(torch.isfinite(tensor.grad).all() for tensor in (q, k, v))
        print(f"{path} causal={causal}: {float(out.abs().mean()):.4f}")


if __name__ == "__main__":
    main(sys.argv[1])
