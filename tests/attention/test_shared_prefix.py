"""Prefixes that requests share: their grammar, equal keys, pages, bytes, and what every backend computes of them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from attnbench import backends
from attnbench.attention import cost, inputs, layouts, shared_prefix
from attnbench.attention.choices import Mode
from attnbench.attention.problem import Problem
from attnbench.attention.requests import RequestSize
from attnbench.attention.shared_prefix import PrefixGroup
from attnbench.backends import cascade, scope
from attnbench.errors import ProblemError
from attnbench.records.case import Case, problem_label
from attnbench.suite import cells
from attnbench.suite.cells import Cell
from tests.attention.test_requests import check_output, problem_of

MASKS = ("none", "causal", "causal+window:2", "window:3:1", "strided:3", "causal+dilated:2")


@st.composite
def groups_of(draw: st.DrawFn, sizes: list[RequestSize], shortest: int) -> str:
    """Groups of consecutive requests with prefixes of their own; empty if no two neighbours can share one."""
    segments, number = [], 0
    while number < len(sizes):
        count = draw(st.integers(1, len(sizes) - number))
        longest = min(keys - queries for queries, keys in sizes[number : number + count])
        keys = draw(st.integers(shortest, longest)) if count > 1 and longest >= shortest else 0
        segments.append(f"{keys}:{count}")
        number += count
    return "_".join(segments) if len(segments) > 1 and any(text[0] != "0" for text in segments) else ""


@st.composite
def problems(draw: st.DrawFn, masks: tuple[str, ...] = MASKS, page_sizes: tuple[int, ...] = (0, 1, 2, 4)) -> Problem:
    """Batches of which some requests have the prefix, and others are as long."""
    page_size = draw(st.sampled_from(page_sizes))
    prefix = draw(st.integers(max(1, page_size), 9))
    has = st.tuples(st.integers(1, 4), st.integers(0, 6)).map(lambda n: RequestSize(n[0], n[0] + n[1] + prefix))
    lacks = st.integers(0, 3).map(lambda more: RequestSize(more + 1, more + prefix))
    sizes = draw(st.lists(has | lacks, min_size=2, max_size=7))
    assume(sum(keys - queries >= prefix for queries, keys in sizes) > 1)
    text = f"{prefix}:{draw(st.integers(2, 4))}"
    if draw(st.booleans()):
        text = draw(groups_of(sizes, max(1, page_size))) or text
    return problem_of(sizes, mask=draw(st.sampled_from(masks)), page_size=page_size, shared_prefix=text)


def of(requests: str, text: str, **changes: Any) -> Problem:
    """A batch written as a user does."""
    fields: dict[str, Any] = {"heads": 4, "kv_heads": 2, "head_dim": 8, "mask": "causal", **changes}
    return Problem(**cells._shape_of_requests(requests), shared_prefix=text, **fields)


# -- the grammar and the groups ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "canonical"),
    [("2k:8", "2k:8"), ("2048:08", "2k:8"), (" 100:2", "100:2"), ("2048:8_0:1_9:2", "2k:8_0:1_9:2")],
)
def test_a_prefix_has_one_canonical_text(text: str, canonical: str) -> None:
    assert shared_prefix.spell(shared_prefix.parse(text)) == canonical


@pytest.mark.parametrize(
    "text", ["2k", "2k:", ":8", "0:8", "2k:1", "2m:8", "2k:8:2", "-1:8", "0:2_0:3", "2k:8_", "2k:1_0:3", "2k:2_0:0"]
)
def test_a_malformed_prefix_is_named(text: str) -> None:
    with pytest.raises(ProblemError, match="2k:8") as caught:
        shared_prefix.parse(text)
    assert f"shared_prefix={text!r}" in str(caught.value)


def test_groups_are_consecutive_requests_that_have_the_prefix_before_their_queries() -> None:
    """Requests 0 and 3 compute their first 20 keys in this step; 5 and 6 begin a new group, 7 is alone in another."""
    problem = of("q20_2q1s50_q10s29_q5s25_3q1s21", "20:3")
    assert problem.prefix_groups == (PrefixGroup(20, (1, 2, 4)), PrefixGroup(20, (5, 6, 7)))
    assert of("4q1s50", "20:3").prefix_groups == (PrefixGroup(20, (0, 1, 2)),)


def test_several_segments_are_the_groups_themselves() -> None:
    problem = of("3q1s50_q10s29_2q5s25_q1s9", "40:2_0:2_20:2")
    assert problem.prefix_groups == (PrefixGroup(40, (0, 1)), PrefixGroup(20, (4, 5)))
    assert of("4q1s50", "20:3_0:1").prefix_groups == (PrefixGroup(20, (0, 1, 2)),)  # the last one shares nothing


def test_groups_with_unlike_prefixes_are_not_starts_of_one_prefix() -> None:
    assert layouts.prefix_starts(of("4q1s50", "20:2", page_size=4)) == (0, 2, 4)
    assert layouts.prefix_starts(of("4q1s50", "20:2_20:2", page_size=4)) == (0, 2, 4)
    assert layouts.prefix_starts(of("4q1s50", "20:2_40:2", page_size=4)) == ()


def test_the_last_page_of_a_prefix_is_shared_only_if_it_is_full() -> None:
    problem = of("2q1s50", "20:2", page_size=16)
    assert problem.prefix_groups == (PrefixGroup(16, (0, 1)),)
    first, second = layouts.page_table(problem)
    assert first[0] == second[0]
    assert len({*first[1:], *second[1:]}) == 6


@pytest.mark.parametrize(
    ("requests", "text", "page_size", "message"),
    [
        ("8q1s1k", "2k:8", 0, "request q1s1k has 1024 keys, fewer than the prefix; .* shared_prefix=1023:8"),
        ("4q1s4k_q1s9", "2k:8", 0, "request q1s9 has 9 keys, .* shared_prefix=9:8"),
        ("q2k_q1s4k", "2k:8", 0, "fewer than 2 requests have 2048 keys before their queries; .* as 8q1s4k"),
        ("q1s3000_q1s9000_q2k", "2k:8", 0, ""),
        ("q4_q4", "4:2", 0, "fewer than 2 requests have 4 keys before their queries; .* as 8q1s4k"),
        ("2q1s50", "20:2_20:2", 0, "shared_prefix=20:2_20:2: groups of 4 requests for a batch of 2: use fewer"),
        ("q1s50_q5s24", "20:2_0:0", 0, "use at least 1 key and 2 requests"),
        ("q1s50_q5s24_q9", "20:2_0:1", 0, "request 2 .q5s24. has 19 keys before its queries: use at most 19"),
        ("4q1s50", "20:2_8:2", 16, "shared_prefix=20:2_8:2 with page_size=16: whole pages are shared"),
        ("8q1s4k", "15:8", 16, "shared_prefix=15:8 with page_size=16: whole pages are shared"),
    ],
)
def test_requests_that_cannot_share_are_refused(requests: str, text: str, page_size: int, message: str) -> None:
    if not message:
        assert len(of(requests, text, page_size=page_size).prefix_groups) == 1
        return
    with pytest.raises(ProblemError, match=message):
        of(requests, text, page_size=page_size)


def test_a_prefix_without_requests_is_refused() -> None:
    with pytest.raises(ProblemError, match="shared_prefix=2k:8: use it with requests, as requests=8q1s4k"):
        Problem(seq_q=1, seq_kv=4096, batch=8, shared_prefix="2k:8")


@settings(max_examples=30)
@given(problems(masks=("causal",), page_sizes=(0,)), st.floats(0.05, 1))
def test_a_shrunk_batch_shares_a_prefix_still_or_is_too_short(problem: Problem, share: float) -> None:
    (small,) = cells.shrunk([Cell(problem, Mode.FWD)], share)
    if isinstance(small, Cell):
        before = [size.keys - size.queries for size in small.problem.sizes]
        for keys, members in small.problem.prefix_groups:
            assert all(before[number] >= keys for number in members)
        shared = {number for group in small.problem.prefix_groups for number in group.requests}
        if "_" not in problem.shared_prefix:
            # One that was the third of a group may be alone now, where others of the group lost their prefix.
            members = [number for group in problem.prefix_groups for number in group.requests if before[number]]
            assert len(set(members) - shared) <= len(problem.prefix_groups)
    else:
        assert "before their queries" in small.reason


# -- tensors, pages and bytes ------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(problems())
def test_requests_of_a_group_have_equal_keys_and_share_their_pages(problem: Problem) -> None:
    tensors = inputs.make(problem, 3)
    keys = [tensors.k[0, :, span.start : span.stop] for _, span in problem.spans]
    for length, members in shared_prefix.groups(problem.shared_prefix, problem.sizes, page_size=0):
        for member in members[1:]:
            assert torch.equal(keys[member][:, :length], keys[members[0]][:, :length])
    if not problem.page_size:
        return
    table, pool = layouts.page_table(problem), layouts.paged(problem, tensors.k)
    counts = [-(-size.keys // problem.page_size) for size in problem.sizes]
    users = Counter(page for row, count in zip(table, counts, strict=True) for page in set(row[:count]))
    assert sorted(users) == list(range(len(pool)))
    shared = [table[group.requests[0], : group.keys // problem.page_size] for group in problem.prefix_groups]
    assert sum(times - 1 for times in users.values()) == sum(
        len(pages) * (len(group.requests) - 1) for pages, group in zip(shared, problem.prefix_groups, strict=True)
    )
    assert torch.equal(layouts.packed_keys(pool, torch.from_numpy(layouts.slots(problem))), tensors.k)


@pytest.mark.parametrize("distribution", ["normal", "sink", "outlier"])
def test_all_other_inputs_are_those_without_a_prefix(distribution: str) -> None:
    """Requests 1 and 2 share 5 keys, and begin at keys 8 and 17. The first key of a sink is the same everywhere."""
    shared = inputs.make(of("q4s8_3q2s9", "5:2"), 3, distribution)
    alone = inputs.make(of("q4s8_3q2s9", ""), 3, distribution)
    assert torch.equal(shared.q, alone.q)
    assert torch.equal(shared.dout, alone.dout)
    different = (shared.k != alone.k).any(-1)[0, 0].nonzero().flatten().tolist()
    assert different == list(range(18 if distribution == "sink" else 17, 22))


@given(problems())
def test_traffic_counts_a_shared_key_once(problem: Problem) -> None:
    """Every (page, slot) that some query sees; without pages every (group or request, key)."""
    group_of = {number: ("group", group) for group in problem.prefix_groups for number in group.requests}
    size = problem.page_size
    table = layouts.page_table(problem) if size else np.zeros((problem.batch, 0), dtype=np.int32)
    seen: set[object] = set()
    for number, part in enumerate(problem.parts):
        for key in np.flatnonzero(part.visible()[0].any(axis=0)).tolist():
            group = group_of.get(number)
            owner = group if group and key < group[1].keys else number
            seen.add((table[number, key // size], key % size) if size else (owner, key))
    tables = 4 * sum(-(-keys // size) for _, keys in problem.sizes) if size else 0
    q_and_out = problem.tokens_q * 4 * (8 + 8) * 4
    assert cost.seen_keys(problem) == len(seen)
    assert cost.traffic_bytes(problem, Mode.FWD) == q_and_out + len(seen) * 2 * (8 + 8) * 4 + tables


def test_bytes_by_hand() -> None:
    """8 decodes over 4096 keys of which 2048 are shared: 2048 + 8 x 2048 keys, and 256 entries of the table each."""
    problem = of("8q1s4k", "2k:8", page_size=16)
    assert cost.seen_keys(problem) == 9 * 2048
    assert cost.kv_bytes(problem) == 9 * 2048 * 2 * 16 * 4
    assert cost.kv_bytes(of("8q1s4k", "2k:8")) == 8 * 4096 * 2 * 16 * 4  # packed tensors hold it 8 times
    assert cost.traffic_bytes(problem, Mode.FWD) == cost.kv_bytes(problem) + 4 * 8 * 256 + 2 * 8 * 4 * 8 * 4


def test_a_file_of_inputs_must_have_equal_first_keys(tmp_path: Path) -> None:
    problem, name = of("2q1s6", "4:2"), f"file:{tmp_path / 'x.safetensors'}"
    made = inputs.make(problem, 3)
    tensors = {each: getattr(made, each) for each in ("q", "k", "v", "dout")}
    save_file(tensors, tmp_path / "x.safetensors")
    assert inputs.objection(name, problem) == ""
    tensors["v"] = tensors["v"].clone()
    tensors["v"][0, 0, 7, 0] += 1
    save_file(tensors, tmp_path / "x.safetensors")
    reason = inputs.objection(name, problem)
    assert reason == "v differs among requests with shared_prefix=4:2: use equal first keys"


# -- backends ----------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=12)
@given(problems(masks=("none", "causal"), page_sizes=(0, 2)))
@pytest.mark.parametrize("name", ["naive", "sdpa", "sdpa:padded"])
def test_backends_that_compute_requests_read_shared_pages(name: str, problem: Problem) -> None:
    check_output(name, problem)


def check_cascade(examples: int) -> None:
    @settings(deadline=None, max_examples=examples)
    @given(problems(masks=("none", "causal")))
    def check_one(problem: Problem) -> None:
        check_output("sdpa:cascade", problem)

    check_one()


few_and_many = pytest.mark.parametrize("examples", [40, pytest.param(100, marks=pytest.mark.slow)])


@few_and_many
def test_cascade_computes_what_the_formula_says(examples: int) -> None:
    check_cascade(examples)


def bottom_right(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, dropout_p: float = 0.0, is_causal: bool = False,
    return_debug_mask: bool = False, *, scale: float | None = None,
) -> tuple[torch.Tensor | None, ...]:  # fmt: skip
    """The kernel of torch for CUDA, by its schema: it takes no mask, and its causal one ends at the last key."""
    assert scale is not None
    kv_heads, rows, columns = k.shape[1], q.shape[2], k.shape[2]
    logits = (q.unflatten(1, (kv_heads, -1)).double() @ k.double().mT[:, :, None]) * scale
    if is_causal:
        logits += torch.full((rows, columns), -torch.inf, dtype=logits.dtype).triu(columns - rows + 1)
    out = (logits.softmax(-1) @ v.double()[:, :, None]).flatten(1, 2).to(q.dtype)
    return (out, logits.logsumexp(-1).flatten(1, 2).float(), *[None] * 7)


@few_and_many
def test_cascade_by_the_kernel_for_cuda_computes_what_the_formula_says(
    examples: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.ops.aten, "_scaled_dot_product_flash_attention", bottom_right)
    of_cuda = cascade.kernel("cuda")
    monkeypatch.setattr(cascade, "kernel", lambda _: of_cuda)
    check_cascade(examples)


def test_the_merge_of_two_parts_is_attention_to_both() -> None:
    """Also where one part has all the weight, and float32 has no e^lse."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 2, 3, 10, generator=generator, dtype=torch.float64) * 4
    logits[:, :, 1, :4] += 500
    logits[:, :, 2, 4:] += 500
    v = torch.randn(1, 2, 10, 8, generator=generator, dtype=torch.float64)
    parts = [
        (each.softmax(-1) @ v[:, :, rows], each.logsumexp(-1).float())
        for each, rows in ((logits[..., :4], slice(4)), (logits[..., 4:], slice(4, 10)))
    ]
    out = cascade.merged(*parts[0], *parts[1])
    torch.testing.assert_close(out.double(), logits.softmax(-1) @ v, rtol=0, atol=1e-4)


def test_the_prefix_is_one_call_for_a_group() -> None:
    problem = of("q20_4q1s50_q2s22", "20:2", page_size=4)
    facts = scope.prepare(backends.load("sdpa:cascade"), Case(problem=problem, backend="sdpa:cascade"), "cpu").facts
    # Groups (1, 2), (3, 4); request 5 has the prefix alone. 2 calls, and one for each request.
    assert (facts["groups"], facts["calls_inside"]) == (2, 2 + 6)
    # 4 queries x 4 heads x (8 numbers of 4 bytes, and the lse), written and read at both levels.
    assert facts["merge_bytes"] == 2 * 2 * 4 * 4 * (8 * 4 + 4)
    steps = cascade.plan(problem, aligned_right=False)
    assert [(step.rows, step.keys, step.merges) for step in steps[:2]] == [
        (slice(20, 22), slice(20, 40), False),
        (slice(22, 24), slice(120, 140), False),
    ]


@pytest.mark.parametrize(
    ("text", "changes", "mode", "reason"),
    [
        ("", {}, Mode.FWD, "no shared prefix: use --requests and --set shared_prefix=2k:8"),
        ("4:2", {"mask": "causal+window:2"}, Mode.FWD, "sliding window unsupported"),
        ("4:2", {"head_dim_v": 4}, Mode.FWD, "head_dim_v different from head_dim unsupported"),
        ("4:2", {}, Mode.FWD_BWD, "backward of keys that requests share unsupported"),
    ],
)
def test_what_cascade_cannot_do_is_refused(text: str, changes: dict[str, Any], mode: Mode, reason: str) -> None:
    case = Case(problem=of("3q1s9", text, **changes), backend="sdpa:cascade", mode=mode)
    assert reason in backends.load("sdpa:cascade").objections(case, "cpu")
    assert reason in backends.load("sdpa:cascade").objections(case, "cuda")


def test_a_pool_and_what_a_backend_gathers_from_it_are_predicted() -> None:
    problem = of("8q1s4k", "2k:8", page_size=16, kv_heads=4)
    of_token, out = 4 * 16 * 4, 8 * 4 * 8 * 4
    for name, keys in (("sdpa:cascade", 2048), ("naive", 4096)):
        predicted = backends.load(name).peak_bytes(Case(problem=problem, backend=name))
        fixed = 9 * 2048 * of_token + 2 * out + keys * of_token  # the pool, q and out, and gathered keys
        assert fixed < predicted < fixed + 4096 * of_token, name


@pytest.mark.parametrize("name", ["naive", "sdpa"])
@pytest.mark.parametrize(
    ("text", "page_size", "reason"),
    [("4:2", 0, "keys that requests share"), ("", 4, "keys in pages"), ("4:2", 4, "keys in pages")],
)
def test_gradients_of_keys_that_lie_in_one_place_for_several_are_refused(
    name: str, text: str, page_size: int, reason: str
) -> None:
    """`naive` and `sdpa` compute each request alone, and would not notice."""
    case = Case(problem=of("3q1s9", text, page_size=page_size), backend=name, mode=Mode.FWD_BWD)
    assert f"backward of {reason} unsupported" in backends.load(name).objections(case, "cpu")


def test_a_long_list_of_groups_is_short_in_a_label() -> None:
    text = "_".join(["2k:3", "0:1"] * 12)
    problem = of("48q1s4k", text)
    label = problem_label(problem, Mode.FWD)
    assert "shared_prefix=12-groups-save-48k~" in label
    assert label != problem_label(of("48q1s4k", text.replace("2k:3", "2048:2_0:1", 1)), Mode.FWD)
    assert "shared_prefix=2k:8" in problem_label(of("8q1s4k", "2k:8"), Mode.FWD)
