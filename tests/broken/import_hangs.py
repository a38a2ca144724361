"""A plug-in that never finishes its import."""

import time

time.sleep(100_000)


def attend(q, k, v, *, causal, scale):
    return q
