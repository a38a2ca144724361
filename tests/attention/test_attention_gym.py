"""Masks against those of attention-gym (https://github.com/meta-pytorch/attention-gym), which are predicates too."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from attn_gym import masks as gym

from attnbench.attention import masks
from attnbench.attention.terms import Grid

Predicate = Callable[..., torch.Tensor]


def tree(prefix: int, parents: list[int]) -> Predicate:
    return gym.generate_jetspec_tree_causal_mask_mod(prefix, gym.build_tree_ancestor_matrix(parents, device="cpu"))


FIRST = torch.arange(40) < 2
# `generate_natten` exchanges the axes, which matters unless an image is square; the tiled one does not.
PAIRS = [
    ("causal", (40, 40), gym.causal_mask),
    ("causal+window:7", (40, 40), gym.generate_sliding_window(7)),
    ("prefix:9", (40, 40), gym.generate_prefix_lm_mask(9)),
    ("dilated:3+window:12", (40, 40), gym.generate_dilated_sliding_window(12, 3)),
    ("longformer:10:2", (40, 40), gym.generate_global_sliding_window(5, FIRST)),
    ("tree:0-0-1-1", (4, 4), tree(0, [-1, 0, 1, 1])),
    ("tree:0-0-1-1-3-3-0", (7, 57), tree(50, [-1, 0, 1, 1, 3, 3, 0])),
    ("blockdiffusion:1", (12, 12), gym.generate_block_diffusion_mask(6, 1)),
    ("blockdiffusion:4", (48, 48), gym.generate_block_diffusion_mask(24, 4)),
    ("natten:3:shape=6x6", (36, 36), gym.generate_natten(6, 6, 3, 3)),
    ("natten:5x3:shape=7x9", (63, 63), gym.generate_tiled_natten(9, 7, 3, 5, 1, 1)),
    ("sta:3:2:shape=8x10", (80, 80), gym.generate_sta_mask_mod_2d((8, 10), (6, 6), (2, 2))),
    ("sta:2x3:3x2:shape=12x8", (96, 96), gym.generate_sta_mask_mod_2d((12, 8), (6, 6), (3, 2))),
    ("sta:1x3x2:2:shape=4x6x8", (192, 192), gym.generate_sta_mask_mod_3d((4, 6, 8), (2, 6, 4), (2, 2, 2))),
]


@pytest.mark.parametrize(("text", "lengths", "other"), PAIRS, ids=[text for text, *_ in PAIRS])
def test_mask_equals_that_of_attention_gym(text: str, lengths: tuple[int, int], other: Predicate) -> None:
    grid = Grid(1, *lengths)
    mask = masks.parse(text)
    mask.check(grid)
    i, j = (torch.arange(length) for length in lengths)
    zero = torch.tensor(0)
    expected = other(zero, zero, i[:, None], j[None, :])
    assert torch.equal(torch.from_numpy(mask.dense(grid)[0]), expected.expand(lengths))
