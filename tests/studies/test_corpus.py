"""The kernels of the corpus against brute force in float64, the rules of others on worked examples, the tables."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from functools import cache

import pytest
import torch

from attnbench import backends
from attnbench.attention import inputs
from attnbench.attention.choices import Mode, Returns
from attnbench.attention.inputs import Inputs
from attnbench.attention.logits import sink_logits
from attnbench.attention.problem import Problem
from attnbench.cli import invoke
from attnbench.errors import Exit
from attnbench.report.formats import corpus as report
from attnbench.studies.corpus import registry, rules, study
from attnbench.studies.corpus.kernels import formula
from attnbench.studies.corpus.kernels.state import keys_smoothed_in_place
from attnbench.studies.corpus.registry import CorpusKernel
from attnbench.studies.corpus.study import OURS, RuleVerdict
from tests.oracle import visible
from tools import corpus as tool

EPS = {"fp32": 2.0**-23, "tf32": 2.0**-10, "fp16": 2.0**-10, "bf16": 2.0**-7}
CALLS = 9  # one more than a race needs
DISTRIBUTIONS = ("normal", "peaked", "heavy", "low")
KERNELS = {kernel.name: kernel for kernel in registry.kernels()}
WRONG = [kernel for kernel in KERNELS.values() if not kernel.right]
RANDOM = {kernel.name for kernel in KERNELS.values() if kernel.problems[0].dropout}
IN_PLACE = "keys-smoothed-in-place"


def slopes(heads: int) -> list[float]:
    """As in the code of ALiBi's paper."""
    if math.log2(heads).is_integer():
        first = 2 ** (-(2 ** -(math.log2(heads) - 3)))
        return [first ** (head + 1) for head in range(heads)]
    closest = 2 ** math.floor(math.log2(heads))
    return slopes(closest) + slopes(2 * closest)[0::2][: heads - closest]


def brute_force(
    problem: Problem, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """out and lse in the dtype of q; one request after the other."""
    if problem.requests:
        parts = [
            brute_force(part, q[:, :, rows], k[:, :, keys], v[:, :, keys])
            for part, (rows, keys) in zip(problem.parts, problem.spans, strict=True)
        ]
        return torch.cat([out for out, _ in parts], 2), torch.cat([lse for _, lse in parts], 2)
    group = problem.heads // problem.kv_heads
    logits = torch.stack([q[:, head] @ k[:, head // group].mT for head in range(problem.heads)], 1) * problem.scale
    if problem.softcap:
        logits = problem.softcap * torch.tanh(logits / problem.softcap)
    if problem.score.bias == "alibi":
        rows = torch.arange(problem.seq_q)[:, None] + problem.seq_kv - problem.seq_q
        distance = (rows - torch.arange(problem.seq_kv)).abs()
        logits = logits - torch.tensor(slopes(problem.heads), dtype=q.dtype)[:, None, None] * distance
    logits = logits.masked_fill(~visible(problem), -math.inf)
    if problem.sinks:
        sink = sink_logits(problem).to(q.dtype)[:, None, None].expand(*logits.shape[:3], 1)
        logits = torch.cat([logits, sink], -1)
    lse = logits.logsumexp(-1)
    weights = (logits - lse.masked_fill(lse.isinf(), 0.0)[..., None]).exp()[..., : problem.seq_kv]
    out = torch.stack([weights[:, head] @ v[:, head // group] for head in range(problem.heads)], 1)
    return out, lse


def exact(problem: Problem, mode: Mode, values: Inputs) -> dict[str, torch.Tensor]:
    leaves = [tensor.double().requires_grad_() for tensor in (values.q, values.k, values.v)]
    out, lse = brute_force(problem, *leaves)
    outputs = {"out": out.detach(), "lse": lse.detach()}
    if mode.needs_grad:
        gradients = torch.autograd.grad(out, leaves, values.dout.double())
        outputs |= dict(zip(("dq", "dk", "dv"), gradients, strict=True))
    return outputs


def largest(actual: torch.Tensor, expected: torch.Tensor) -> float:
    error = (actual.double() - expected).masked_fill(actual.double() == expected, 0.0)
    return float(error.abs().nan_to_num(math.inf, math.inf).max())


def excess(kernel: CorpusKernel, problem: Problem, distribution: str, calls: int = 1) -> float:
    """The largest error of the kernel over the rule's bound of it; above 1 the kernel is wrong."""
    values = inputs.make(problem, 0, distribution)
    expected = exact(problem, kernel.mode, values)
    plain = rules._call(backends.load("naive"), problem, kernel.mode, values)
    backend, worst = backends.load(kernel.backend), 0.0
    for _ in range(calls):
        for name, output in rules._call(backend, problem, kernel.mode, values).items():
            reference = expected[name]
            finite = reference.masked_fill(reference.isinf(), 0.0)
            size = max(1.0, float(finite.abs().max()))
            far = max(1.0, float(expected["lse"].masked_fill(expected["lse"].isinf(), 0.0).abs().max()))
            bound = 2 * largest(plain[name], reference) + (10 * EPS[problem.dtype] + EPS["fp32"] * far) * size
            worst = max(worst, largest(output, reference) / bound)
    return worst


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    formula.KEPT.clear()
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_the_listing_has_a_kernel_for_each_entry_and_a_report_for_each_wrong_one() -> None:
    assert list(KERNELS) == list(registry.listing())
    assert (len(WRONG), len(KERNELS) - len(WRONG)) == (69, 40)
    assert len({kernel.source for kernel in WRONG}) == len(WRONG)
    assert all(kernel.source.startswith("https://github.com/") for kernel in WRONG)
    assert sum(kernel.chosen == "any" for kernel in WRONG) * 2 >= len(WRONG)


@pytest.mark.parametrize(
    "kernel", [each for each in WRONG if each.name not in {*RANDOM, IN_PLACE}], ids=lambda k: k.name
)
def test_a_wrong_kernel_differs_from_brute_force_by_more_than_the_bound(kernel: CorpusKernel) -> None:
    calls = CALLS if kernel.kind == "state" else 1
    distributions = DISTRIBUTIONS if kernel.mode is Mode.FWD else DISTRIBUTIONS[:3]
    for problem in kernel.problems[:-1]:
        assert excess(kernel, problem, "normal") < 1
    assert any(excess(kernel, kernel.problems[-1], distribution, calls) > 1 for distribution in distributions)


@pytest.mark.parametrize("kernel", [each for each in WRONG if each.elsewhere], ids=lambda k: k.name)
def test_a_wrong_kernel_is_right_where_it_says_so(kernel: CorpusKernel) -> None:
    assert kernel.elsewhere
    assert excess(kernel, kernel.elsewhere, "normal") < 1


@pytest.mark.parametrize(
    "kernel", [each for each in KERNELS.values() if each.right and each.name not in RANDOM], ids=lambda k: k.name
)
@pytest.mark.parametrize("distribution", ["normal", "heavy"])
def test_a_right_kernel_agrees_with_brute_force(kernel: CorpusKernel, distribution: str) -> None:
    assert excess(kernel, kernel.problems[0], distribution) < 1


def outputs_of(name: str, values: Inputs) -> dict[str, torch.Tensor]:
    kernel = KERNELS[name]
    return dict(rules._call(backends.load(kernel.backend), kernel.problems[0], kernel.mode, values))


def test_wrong_dropout_is_wrong_in_its_mean_or_spread() -> None:
    problem = KERNELS["dropout-before-sum"].problems[0]
    values = inputs.make(problem, 0)
    constant = Inputs(q=values.q, k=values.k, v=torch.ones_like(values.v), dout=values.dout)
    wrong, right = (outputs_of(name, constant)["out"] for name in ("dropout-before-sum", "dropout-after-product"))
    assert torch.minimum(wrong.abs(), (wrong - 1).abs()).max() < 1e-5  # 0 where every weight is dropped; should vary
    assert torch.minimum(right.abs(), (right - 1).abs()).max() > 0.1
    without = exact(problem, Mode.FWD_BWD, values)
    third = [outputs_of("dropout-off-later", values)["out"] for _ in range(3)][-1]
    assert largest(third, without["out"]) < 1e-5
    dv = torch.stack([outputs_of("dropout-gradient-scale", values)["dv"] for _ in range(50)]).mean(0).double()
    slope = float((dv * without["dv"]).sum() / without["dv"].square().sum())
    assert slope == pytest.approx(0.3 * 0.7, abs=0.02)  # the rate times the share of kept weights; should be 1


def test_the_right_dropout_has_the_mean_and_the_spread_of_dropout() -> None:
    problem = KERNELS["dropout-after-product"].problems[0]
    values = inputs.make(problem, 0)
    drawn = torch.stack([outputs_of("dropout-after-product", values)["out"] for _ in range(40)]).double()
    without = exact(problem, Mode.FWD, values)["out"]
    assert float((drawn.mean(0) * without).sum() / without.square().sum()) == pytest.approx(1, abs=0.05)


def test_the_kernel_that_smooths_its_keys_is_right_but_for_the_keys() -> None:
    kernel = KERNELS[IN_PLACE]
    assert excess(kernel, kernel.problems[0], "normal") < 1
    k = inputs.make(kernel.problems[0], 0).k
    before = k.clone()
    keys_smoothed_in_place(k.clone(), k, k.clone(), kernel.problems[0])
    assert not k.equal(before)


SMALL = Problem(seq_q=8, heads=1, head_dim=16)


@cache
def plain(rule: str, problem: Problem = SMALL) -> rules.KernelCall:
    """A call of which the outputs are those of the plain formula."""
    values = rules.RULES[rule].draw(problem, 0)
    outputs = rules._call(backends.load("naive"), problem, Mode.FWD, values)
    return rules.KernelCall(problem, Mode.FWD, values, outputs)


@pytest.mark.parametrize(
    ("rule", "dtype", "within", "beyond"),
    [
        ("assert_close", "fp32", 0.9e-5, 2e-5),
        ("allclose-1e-2", "fp32", 0.9e-2, 1.1e-2),
        ("kernelbench", "fp32", 0.9e-4, 3e-4),  # relative too: outputs are near 0.5
        ("kernelbench", "fp16", 0.9e-2, 3e-2),
        ("flash-attention", "fp32", 0.0, 1e-6),
        ("kernels", "fp32", 0.9e-2, 1.1e-2),
    ],
)
def test_each_rule_accepts_what_its_source_does(rule: str, dtype: str, within: float, beyond: float) -> None:
    call = plain(rule, Problem(seq_q=8, heads=1, head_dim=16, dtype=dtype))
    close = rules.RULES[rule].close
    close(call._replace(outputs={"out": call.outputs["out"] + within}))
    with pytest.raises(AssertionError):
        close(call._replace(outputs={"out": call.outputs["out"] + beyond}))
    with pytest.raises(AssertionError):
        close(call._replace(outputs={"out": call.outputs["out"] * math.nan}))


@pytest.mark.parametrize("rule", rules.RULES)
def test_rules_accept_equal_infinities_of_the_log_sum_exp(rule: str) -> None:
    problem = Problem(seq_q=8, seq_kv=4, heads=1, head_dim=16, mask="causal", returns=Returns.LSE)
    call = plain(rule, problem)
    rules.RULES[rule].close(call)
    finite = {**call.outputs, "lse": call.outputs["lse"].nan_to_num(neginf=-1e4)}
    with pytest.raises(AssertionError):
        rules.RULES[rule].close(call._replace(outputs=finite))


def test_a_rule_without_gradients_misses_a_wrong_one_and_dropout_is_not_judged() -> None:
    wrong = KERNELS["sink-gradient"]
    assert rules.objection(rules.RULES["kernelbench"], wrong) == ""
    assert rules.objection(rules.RULES["flash-attention"], wrong)
    assert rules.objection(rules.RULES["assert_close"], KERNELS["dropout-before-sum"]) is None


def test_a_sample_is_judged_right_by_attnbench(capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["corpus", "--sample", "8", "--rule", "attnbench", "--format", "jsonl"]) == Exit.OK
    verdicts = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(verdicts) == 8
    assert all(verdict["found_wrong"] is ("kind" in verdict) for verdict in verdicts)


@pytest.mark.parametrize(("name", "words"), [("sentinel-maximum", "low inputs: "), ("fp8-weights-underflow", "heavy ")])
def test_a_kernel_that_is_right_on_usual_inputs_fails_on_others(name: str, words: str) -> None:
    [verdict] = study.judge([name], [OURS])
    assert verdict.reason.startswith(words)


@pytest.mark.parametrize("name", ["split-two", "weights-by-lse"])
def test_the_rounding_of_a_large_log_sum_exp_is_allowed(name: str) -> None:
    [verdict] = study.judge([name], [OURS])
    assert verdict.reason == ""


@pytest.mark.slow
def test_attnbench_finds_every_wrong_kernel_and_no_right_one() -> None:
    assert [verdict for verdict in study.judge(study.sample(None), [OURS]) if not verdict.good] == []


def test_a_wrong_verdict_of_attnbench_fails_the_command_and_is_named() -> None:
    missed = RuleVerdict(kernel="scale-grows", rule=OURS, kind="scale", chosen="any", found_wrong=False)
    alarm = RuleVerdict(kernel="base-two", rule=OURS, found_wrong=True, reason="out: off")
    other = RuleVerdict(kernel="base-two", rule="kernels", found_wrong=True)
    assert study.exit_code([other]) is Exit.OK
    for verdict in (missed, alarm):
        assert study.exit_code([verdict, other]) is Exit.FAILED
    shown = "\n".join(report.text([missed, alarm], 80))
    assert "attnbench errs: scale-grows" in shown
    assert "base-two" in shown
    counts = study.rates([missed, alarm])[0]
    assert (counts.detected, counts.wrong, counts.false_alarms, counts.right) == (0, 1, 1, 1)


def test_the_tables_of_the_docs_are_those_of_the_stored_verdicts() -> None:
    stored, text = tool.stored(), tool.PAGE.read_text()
    assert tool.page(text, stored.verdicts) == text
    assert {(verdict.kernel, verdict.rule) for verdict in stored.verdicts} == {
        (name, rule) for name in registry.listing() for rule in study.RULES
    }
    ours = [verdict for verdict in stored.verdicts if verdict.rule == OURS]
    assert all(verdict.good for verdict in ours)


def test_a_listing_is_printed_without_judging(capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["corpus", "--list"]) == Exit.OK
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(KERNELS)
    assert lines[0].startswith("causal-top-left  wrong mask: ")
    assert lines[0].endswith("https://github.com/NVIDIA/cutlass/issues/2336")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--sample", "0"), "--sample: 0: at least 1"),
        (("--rule", "cosine"), "--rule: no rule 'cosine'; there are attnbench,"),
        (("--format", "csv"), "--format: no format 'csv'; there are table,"),
    ],
)
def test_bad_options_are_named(arguments: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["corpus", *arguments]) == Exit.USAGE
    assert words in capsys.readouterr().err
