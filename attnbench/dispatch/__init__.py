"""Attention at run time by the backend that measurements recommend: `load`, `attention`, `register`.

    table = attnbench.dispatch.load("table.json")  # of `attnbench recommend -o table.json`
    out = attnbench.dispatch.attention(q, k, v, causal=True, table=table)

Importing this package imports no torch. docs/dispatch.md describes how a backend is chosen.
"""

from attnbench.dispatch.call_site import attention
from attnbench.dispatch.huggingface import register
from attnbench.dispatch.origin import StaleTableWarning
from attnbench.dispatch.table import Table, load

__all__ = ["StaleTableWarning", "Table", "attention", "load", "register"]
