"""Closed sets of values of a problem: number formats, passes, outputs, positions, caches, autocast."""

from __future__ import annotations

from enum import StrEnum


class Dtype(StrEnum):
    """Number formats of q, k and v. fp32 is IEEE on every device; tf32 is fp32 tensors on TF32 tensor cores."""

    FP32 = "fp32"
    TF32 = "tf32"
    FP16 = "fp16"
    BF16 = "bf16"
    FP8_E4M3 = "fp8_e4m3"

    @property
    def bytes(self) -> int:
        """Bytes of one stored number."""
        return _BYTES[self]

    @property
    def out(self) -> Dtype:
        """The format of the output: bf16 for fp8, else that of the inputs."""
        return Dtype.BF16 if self is Dtype.FP8_E4M3 else self


_BYTES = {Dtype.FP32: 4, Dtype.TF32: 4, Dtype.FP16: 2, Dtype.BF16: 2, Dtype.FP8_E4M3: 1}


class Mode(StrEnum):
    """The passes of a call."""

    FWD = "fwd"
    BWD = "bwd"
    FWD_BWD = "fwd_bwd"

    @property
    def needs_grad(self) -> bool:
        """Whether a call computes the gradients of q, k and v."""
        return self is not Mode.FWD


class Returns(StrEnum):
    """What a call returns besides the output."""

    OUT = "out"
    LSE = "lse"
    WEIGHTS = "weights"  # [batch, heads, seq_q, seq_kv], in the dtype of the output


class Positions(StrEnum):
    """Position embeddings of q and k, applied within the call."""

    NONE = "none"
    SINUSOIDAL = "sinusoidal"  # added to q and k
    ROPE = "rope"  # q and k rotated


class Autocast(StrEnum):
    """The dtype of the matrix products of a block or layers with fp32 weights (torch.autocast)."""

    NONE = "none"
    BF16 = "bf16"
    FP16 = "fp16"


class KvDtype(StrEnum):
    """The number format of k and v in a KV cache. Simulated: a call gets the dequantised k and v in its dtype."""

    SAME = "same"  # the dtype of the problem
    INT8 = "int8"  # one float32 scale for each token and head
    FP8_E4M3 = "fp8_e4m3"
    INT8_TENSOR = "int8:tensor"  # one float32 scale for all of k, and one for all of v
    FP8_E4M3_TENSOR = "fp8_e4m3:tensor"
    NVFP4 = "nvfp4"  # float4_e2m1, an fp8_e4m3 scale for 16 numbers, and a float32 scale for all of k and of v

    @property
    def scale_of_tensor(self) -> bool:
        """Whether k and v have one scale each, instead of one for each token and head."""
        return self in (KvDtype.INT8_TENSOR, KvDtype.FP8_E4M3_TENSOR)
