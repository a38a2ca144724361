"""A plug-in whose own import fails."""

raise ImportError("libcudart.so.99: cannot open shared object file")


def attend(q, k, v, *, causal, scale):
    return q
