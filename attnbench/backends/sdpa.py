"""torch's scaled_dot_product_attention: each of its kernels alone, and torch's choice among them."""

from msgspec.structs import replace

from attnbench.attention.biases import BIASES
from attnbench.backends import FLOATS, HALVES, Backend, Limits
from attnbench.backends.torch_sdpa import MASKS, SWITCHES, prepare, scratch_bytes

_SHAPES = frozenset({"gqa", "cross", "scale", "head_dim_v"})
_BIASES = frozenset({*BIASES, "dense_bias"})


def _cuda_limits(kernel: str) -> Limits:
    """As torch's own checks have them (aten/src/ATen/native/transformers/cuda/sdp_utils.cpp)."""
    return {
        "math": Limits(dtypes=FLOATS, features=MASKS | _SHAPES | _BIASES | {"dropout", "weights"}),
        "flash": Limits(
            dtypes=HALVES,
            features=frozenset({"causal", "gqa", "scale", "cross", "dropout"}),
            head_dim_most=256,
            capability=(8, 0),
            # is_causal is top-left: where the lengths differ it would be another mask, and flash takes no mask tensor.
            combinations=(frozenset({"causal", "cross"}),),
        ),
        "efficient": Limits(dtypes=FLOATS, features=MASKS | _SHAPES | _BIASES | {"dropout"}, capability=(5, 0)),
        "cudnn": Limits(
            dtypes=HALVES,
            features=MASKS | _SHAPES | {"dropout"},
            head_dim_most=256,
            head_dim_multiple=8,
            capability=(8, 0),
        ),
    }[kernel]


def _backend(name: str, summary: str) -> Backend:
    kernel = name.partition(":")[2]
    limits = {"cuda": _cuda_limits(kernel or "math")}
    if not kernel:  # torch prefers a fused kernel, which returns no weights
        limits["cuda"] = replace(limits["cuda"], features=limits["cuda"].features - {"weights"})
    if kernel in ("", "math", "flash"):
        features = MASKS | _SHAPES | _BIASES
        if kernel == "flash":  # a mask that depends on the queries needs a gradient, which it lacks
            features -= {"head_dim_v", "xl", "shaw"}
        else:
            features |= {"dropout"} | ({"weights"} if kernel else frozenset())
        limits["cpu"] = Limits(dtypes=FLOATS, features=features)
    return Backend(
        name=name,
        summary=summary,
        limits=limits,
        prepare=prepare,
        scratch_bytes=scratch_bytes,
        requires=("torch",),
        install="pip install torch",
        by_request=True,
        sets=SWITCHES,
    )


SUMMARIES = {
    "sdpa": "torch SDPA, the kernel that torch picks",
    "sdpa:math": "torch SDPA, the unfused formula alone",
    "sdpa:flash": "torch SDPA, FlashAttention alone",
    "sdpa:efficient": "torch SDPA, memory-efficient attention alone (CUDA)",
    "sdpa:cudnn": "torch SDPA, cuDNN alone (CUDA)",
}
BACKENDS = {name: _backend(name, summary) for name, summary in SUMMARIES.items()}
