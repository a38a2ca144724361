"""Random problems, as options, so that each of them can be repeated."""

import math
from random import Random

HEADS = (1, 2, 4, 8)
HEAD_DIMS = (16, 32, 40, 64, 64, 72, 80, 96, 128, 128, 160, 192, 256)
DTYPES = ("bf16", "fp16", "fp32")
MODES = ("fwd", "bwd")


def draw(random: Random, longest: int) -> dict[str, str]:
    """Axes of one problem, each with one value: lengths of all magnitudes up to `longest`, rarely a round number."""
    seq_q, seq_kv = (max(1, round(2 ** random.uniform(0, math.log2(longest)))) for _ in range(2))
    if random.random() < 0.5:
        seq_kv = seq_q
    heads = random.choice(HEADS)
    numbers = {
        "seq_q": seq_q,
        "seq_kv": seq_kv,
        "batch": random.choice((1, 1, 2, 3)),
        "heads": heads,
        "kv_heads": random.choice([count for count in HEADS if heads % count == 0]),
        "head_dim": random.choice(HEAD_DIMS),
    }
    words = {"dtype": random.choice(DTYPES), "mode": random.choice(MODES), "mask": _mask(random, seq_q, seq_kv)}
    return {key: str(value) for key, value in numbers.items()} | words


def _mask(random: Random, seq_q: int, seq_kv: int) -> str:
    before, after = (random.randrange(seq_kv) for _ in range(2))
    masks = ["none", "causal", "causal", f"window:{before}:{after}", f"causal+window:{before}"]
    if seq_q == seq_kv:
        masks += [f"prefix:{before + 1}", f"causal+document:{random.randint(1, min(seq_q, 8))}"]
        masks += [f"causal+padding:{random.choice((0.1, 0.3, 0.5))}"]
    return random.choice(masks)
