"""A mask passed as a boolean tensor, to measure what materialising it costs.

As `attn_mask` of torch.nn.functional.scaled_dot_product_attention
(https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.scaled_dot_product_attention.html).
Pairs: those of the other terms.
"""

from attnbench.attention.terms import Grid, Predicate, Table, Term


class Dense(Term, frozen=True):
    """Hides nothing: the other terms are passed as one boolean tensor, which shows the cost of materialising."""

    word = "dense"
    example = "dense+causal"
    summary = "mask as a boolean tensor"

    def predicate(self, grid: Grid, table: Table) -> Predicate:
        return lambda b, i, j: True
