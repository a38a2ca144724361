"""Keys and values in pages, as servers of language models keep them (https://arxiv.org/abs/2309.06180).

Every sequence has as many pages as its keys need; pages lie in memory in a fixed disorder, and a table finds them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from attnbench.attention.patterns import hashed
from attnbench.attention.problem import Problem

if TYPE_CHECKING:
    from torch import Tensor


def table(problem: Problem) -> NDArray[np.int32]:
    """[batch, pages of a sequence]: where each page of a sequence lies."""
    each = -(-problem.seq_kv // problem.page_size)
    order = np.argsort(hashed(0, np.arange(problem.batch * each)), kind="stable")
    return order.astype(np.int32).reshape(problem.batch, each)


def stored(problem: Problem, tensor: Tensor) -> Tensor:
    """[batch, kv_heads, seq_kv, width] -> [pages, page_size, kv_heads, width]; what fills the last page is 0."""
    import torch

    where = torch.from_numpy(table(problem).astype(np.int64)).to(tensor.device)
    batch, heads, _, width = tensor.shape
    room = where.shape[1] * problem.page_size
    filled = torch.nn.functional.pad(tensor, (0, 0, 0, room - problem.seq_kv)).transpose(1, 2)
    pages = filled.reshape(batch * where.shape[1], problem.page_size, heads, width)
    return torch.empty_like(pages).index_copy_(0, where.flatten(), pages)


def read(problem: Problem, pages: Tensor, where: Tensor) -> Tensor:
    """The reverse, as a call does it: [batch, kv_heads, seq_kv, width], through `where`, int64 [batch, pages]."""
    found = pages[where].flatten(1, 2)[:, : problem.seq_kv]
    return found.transpose(1, 2)
