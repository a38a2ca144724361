"""Kernels that are wrong for one unusual input each, and kernels that take, copy or refuse it."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest

from attnbench.backends import CaseRefusedError
from attnbench.errors import UnknownNameError
from attnbench.worker import probes
from attnbench.worker.prepared_case import PreparedCase
from attnbench.worker.probes import state
from attnbench.worker.probes.outcome import LASTING

from .test_probes import prepared

torch = pytest.importorskip("torch")


@pytest.fixture(autouse=True)
def time_for_forks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Enough on a busy machine."""
    monkeypatch.setattr(state, "FORK_S", 300.0)


def attend(q: Any, k: Any, v: Any, causal: bool = True) -> Any:
    """Causal attention of equal lengths."""
    logits = q.float() @ k.float().transpose(-1, -2) * q.shape[-1] ** -0.5
    if causal:
        hidden = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).triu(1 + k.shape[2] - q.shape[2])
        logits = logits.masked_fill(hidden, float("-inf"))
    return (logits.softmax(-1) @ v.float()).to(q.dtype)


def outcomes(attend: Any, probe: str, **fields: Any) -> dict[str, str]:
    """The outcome of each variant; a kernel is given as a function or by its name."""
    return {name: figure["outcome"] for name, figure in figures(attend, probe, **fields).items()}


def figures(attend: Any, probe: str, **fields: Any) -> dict[str, Any]:
    case: PreparedCase = prepared(attend, **{"mask": "causal", **fields})
    return probes.run([probe], case)[probe]


def as_contiguous(tensor: Any) -> Any:
    """What a kernel reads that ignores strides and the offset of the storage."""
    base = torch.as_strided(tensor, (tensor.untyped_storage().nbytes() // tensor.element_size(),), (1,), 0)
    padded = torch.cat([base, base.new_zeros(tensor.numel())])
    return padded[: tensor.numel()].view(tensor.shape)


def test_a_kernel_that_ignores_strides_is_wrong_for_every_view() -> None:
    outcome = outcomes(lambda *qkv: attend(*map(as_contiguous, qkv)), "layouts")
    assert set(outcome.values()) == {"wrong"}


def test_a_kernel_that_ignores_the_strides_of_values_alone_is_found() -> None:
    outcome = outcomes(lambda q, k, v: attend(q, k, as_contiguous(v)), "layouts")
    assert set(outcome.values()) == {"wrong"}


def test_a_kernel_that_makes_its_inputs_contiguous_copies_views() -> None:
    outcome = outcomes(lambda *qkv: attend(*(tensor.contiguous() for tensor in qkv)), "layouts")
    assert outcome == {
        "transposed": "copies", "sliced": "copies", "columns": "copies", "channels_last": "copies", "offset": "takes",
        "expanded": "copies",
    }  # fmt: skip


def test_a_kernel_that_checks_strides_refuses() -> None:
    def strict(q: Any, k: Any, v: Any) -> Any:
        if q.stride(-1) != 1:
            raise ValueError("the last stride must be 1")
        return attend(q, k, v)

    found = figures(strict, "layouts")
    assert found["columns"] == {"outcome": "refuses", "reason": "ValueError: the last stride must be 1"}
    assert found["sliced"]["outcome"] == "takes"


def test_keys_in_pages_have_no_views() -> None:
    outcome = figures("naive", "layouts", page_size=16)
    assert outcome["sliced"] == {"outcome": "absent", "reason": "keys are in pages"}


def test_a_running_maximum_that_begins_at_0_loses_negative_logits() -> None:
    def from_zero(q: Any, k: Any, v: Any) -> Any:
        logits = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
        weights = (logits - logits.amax(-1, keepdim=True).clamp_min(0)).exp().tril()
        return weights @ v / weights.sum(-1, keepdim=True)

    outcome = outcomes(from_zero, "values")
    assert (outcome["negative"], outcome["equal"]) == ("wrong", "right")


def test_sums_in_half_precision_overflow_near_the_limit() -> None:
    def in_half(q: Any, k: Any, v: Any) -> Any:
        logits = (q.float() @ k.float().transpose(-1, -2) * q.shape[-1] ** -0.5).tril()
        weights = (logits - logits.amax(-1, keepdim=True)).exp().tril()
        return (weights @ v.float()).half() / weights.sum(-1, keepdim=True).half()

    outcome = outcomes(in_half, "values", dtype="fp16")
    assert (outcome["limit"], outcome["equal"]) == ("wrong", "right")


def test_a_kernel_that_flushes_denormals_is_right_otherwise() -> None:
    def flushed(q: Any, k: Any, v: Any) -> Any:
        return attend(q, k, v.where(v.abs() > 1e-37, 0))

    assert outcomes(flushed, "values")["denormal"] == "flushes"
    assert outcomes(attend, "values")["denormal"] == "right"


def test_nan_spreads_unless_hidden_keys_are_left_out() -> None:
    def careful(q: Any, k: Any, v: Any) -> Any:
        rows = [attend(q[:, :, i : i + 1], k[:, :, : i + 1], v[:, :, : i + 1]) for i in range(q.shape[2])]
        return torch.cat(rows, dim=2)

    assert outcomes(attend, "values")["nan_hidden"] == "spreads"
    assert outcomes(careful, "values")["nan_hidden"] == "right"
    reason = figures(attend, "values")["nan_hidden"]["reason"]
    assert reason == "key 23 is NaN, and 23 rows do not see it: 23 rows became NaN"  # of 2 heads
    assert outcomes(lambda q, k, v: attend(q, k, v, False), "values", mask="none")["nan_hidden"] == "absent"


@pytest.mark.parametrize("backend", ["naive", "sdpa"])
def test_the_unused_ends_of_pages_are_not_read(backend: str) -> None:
    case = prepared(backend, mask="causal", requests="2q1s21_q3s5", page_size=16, batch=3, seq_q=3, seq_kv=21)
    assert probes.run(["values:nan_padding"], case)["values"]["nan_padding"]["outcome"] == "right"


@pytest.mark.parametrize("backend", ["naive", "sdpa:padded"])
@pytest.mark.parametrize("page_size", [0, 16])
def test_requests_without_queries_join_a_batch(backend: str, page_size: int) -> None:
    shape = {"mask": "causal", "requests": "2q1s21_q3s5", "batch": 3, "seq_q": 3, "seq_kv": 21}
    case = prepared(backend, page_size=page_size, **shape)
    assert probes.run(["lengths:waiting"], case)["lengths"]["waiting"]["outcome"] == "right"
    alone = probes.run(["lengths:waiting"], prepared(backend))["lengths"]["waiting"] if backend == "naive" else {}
    assert alone.get("outcome", "absent") == "absent"


def test_a_kernel_that_drops_the_rest_of_a_tile_is_wrong_for_some_lengths() -> None:
    def whole_tiles(q: Any, k: Any, v: Any) -> Any:
        out = attend(q, k, v)
        out[:, :, q.shape[2] - q.shape[2] % 4 :] = 0
        return out

    outcome = outcomes(whole_tiles, "lengths", seq_q=24)
    assert {name for name, what in outcome.items() if what == "wrong"} == {
        *("1", "61", "127", "129", "one_less", "one_more")
    }
    right = outcomes(attend, "lengths")
    assert {right[name] for name in ("1", "61", "127", "129", "one_less", "one_more")} == {"right"}
    assert right["over_int32"] == "absent"


def test_a_kernel_that_keeps_its_workspace_is_wrong_after_other_shapes() -> None:
    kept: dict[str, Any] = {}

    def stale(q: Any, k: Any, v: Any) -> Any:
        right = attend(q, k, v)
        if kept.setdefault("shape", q.shape) != q.shape:
            kept["touched"] = True
        return right * 2 if "touched" in kept and q.shape == kept["shape"] else right

    outcome = outcomes(stale, "state")
    assert outcome["between"] == "wrong"
    assert outcome["inference_mode"] == outcome["no_grad"] == outcome["gradients"] == "right"
    assert outcomes(attend, "state")["between"] == "right"


def test_a_kernel_bound_to_its_thread_or_process_is_found() -> None:
    thread, process = threading.get_ident(), os.getpid()

    def bound(q: Any, k: Any, v: Any) -> Any:
        if threading.get_ident() != thread:
            raise RuntimeError("no context in this thread")
        return attend(q, k, v) * (1 if os.getpid() == process else 2)

    outcome = outcomes(bound, "state")
    assert (outcome["thread"], outcome["fork"]) == ("refuses", "wrong")
    assert outcomes(attend, "state")["fork"] == "right"


def test_under_autocast_the_output_may_be_bf16() -> None:
    outcome = outcomes(lambda q, k, v: attend(q.bfloat16(), k.bfloat16(), v.bfloat16()), "state")
    assert outcome["autocast"] == "right"
    assert outcome["no_grad"] == "wrong"


def test_dropout_and_blocks_have_no_variants() -> None:
    outcome = outcomes("naive", "layouts", dropout=0.1)
    assert set(outcome.values()) == {"absent"}


def test_each_variant_is_a_part_and_cites_a_report() -> None:
    assert probes.parts(["noise", "layouts"])[:2] == ["noise", "layouts:transposed"]
    variants = [variant for variants in probes.VARIANTS.values() for variant in variants.values()]
    assert all(source.startswith("https://github.com/") for variant in variants for source in variant.sources)
    assert all(variant.sources and variant.what for variant in variants)


def test_the_documentation_lists_every_variant() -> None:
    page = (Path(__file__).parents[2] / "docs" / "numerics.md").read_text()
    for probe, variants in probes.VARIANTS.items():
        for name, variant in variants.items():
            (row,) = [line for line in page.splitlines() if line.startswith(f"| `{probe}` | `{name}` | ")]
            assert all(f"({source})" in row for source in variant.sources)
            assert variant.what.lower() in row.lower()


def test_an_unknown_probe_is_refused() -> None:
    with pytest.raises(UnknownNameError, match=r"--probe"):
        probes.named("values,layout", "--probe")


def test_probes_change_no_setting_of_the_process() -> None:
    case = prepared("naive", mask="causal")
    probes.run(["noise", "layouts", "values", "lengths", "state"], case)
    case.state.take_back()
    assert case.state.changes == []


def test_an_output_that_depends_on_earlier_calls_is_told_where_a_variant_is_wrong() -> None:
    """Stale for good after a call of another length: each later variant is wrong, and so is an ordinary call."""
    shapes: set[Any] = {torch.Size((1, 2, 24, 16))}

    def stale(q: Any, k: Any, v: Any) -> Any:
        shapes.add(q.shape)
        return attend(q, k, v) * len(shapes)

    case = prepared(stale, mask="causal")
    found = probes.run(["lengths:1", "values:equal"], case)
    assert [found["lengths"]["1"]["outcome"], found["values"]["equal"]["outcome"]] == ["wrong", "wrong"]
    assert found["values"]["equal"]["reason"].endswith(LASTING)
    assert LASTING not in figures(lambda *qkv: attend(*map(as_contiguous, qkv)), "layouts")["sliced"]["reason"]


def test_a_refusal_of_a_library_has_no_type_of_an_exception() -> None:
    def refusing(q: Any, k: Any, v: Any) -> Any:
        raise CaseRefusedError("copies q: its memory is not aligned")

    found = figures(refusing, "layouts")["offset"]
    assert found == {"outcome": "refuses", "reason": "copies q: its memory is not aligned"}
