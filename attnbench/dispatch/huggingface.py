"""The attention of a dispatch table as an implementation of Hugging Face's transformers.

transformers 5.24: modeling_utils.py (AttentionInterface), masking_utils.py (AttentionMaskInterface),
integrations/sdpa_attention.py, whose function computes what a table cannot: masks as tensors, dropout, position biases.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from attnbench.dispatch.call_site import attention
from attnbench.dispatch.table import Table, load
from attnbench.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

# Options of a layer that change the result, and that SDPA's function leaves out without an error.
REFUSED = ("s_aux",)  # sinks


def register(name: str = "attnbench", table: Table | str | Path | None = None) -> None:
    """Offer a table, or the file of one, as `attn_implementation=name`. Raises UsageError without transformers."""
    try:
        from transformers import AttentionInterface, AttentionMaskInterface
        from transformers.integrations.sdpa_attention import sdpa_attention_forward
        from transformers.masking_utils import sdpa_mask
    except ImportError as error:
        raise UsageError(
            f"register: transformers with AttentionInterface is not installed ({error}); pip install 'transformers>=5'"
        ) from error
    chosen = load(table) if isinstance(table, str | Path) else table

    def forward(
        module: Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
        dropout: float = 0.0, scaling: float | None = None, is_causal: bool | None = None, **options: object,
    ) -> tuple[Tensor, None]:  # fmt: skip
        """q: [batch, heads, seq_q, head_dim]; out: [batch, seq_q, heads, head_dim]."""
        if refused := [option for option in REFUSED if options.get(option) is not None]:
            raise ValueError(f"{name} attention has no {', '.join(refused)}: use attn_implementation='eager'")
        causal = bool(getattr(module, "is_causal", True) if is_causal is None else is_causal)
        queries, keys = query.shape[2], key.shape[2]
        # Causal queries before the last keys are the first tokens of a static cache: SDPA's function cuts the keys.
        beyond = attention_mask is not None or dropout or (causal and 1 < queries != keys)
        if beyond or any(options.get(option) is not None for option in ("position_bias", "softcap")):
            arguments = {"dropout": dropout, "scaling": scaling, "is_causal": is_causal, **options}
            whole: tuple[Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **arguments)
            return whole
        out = attention(query, key, value, causal=causal, scale=scaling, table=chosen)
        return out.transpose(1, 2).contiguous(), None

    AttentionInterface.register(name, forward)
    AttentionMaskInterface.register(name, sdpa_mask)
