"""Backends from a file: what is said without running it, and what running it gives."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

import attnbench
from attnbench import backends, suite
from attnbench.attention import scores, user_files
from attnbench.attention.choices import Mode
from attnbench.attention.problem import Problem
from attnbench.backends import Backend, Layout, plugin
from attnbench.errors import UnknownNameError, UsageError
from attnbench.records.case import Case
from tests import oracle

PLAIN = """
import torch

def attend(q, k, v, *, causal, scale):
    s = q @ k.transpose(-2, -1) * scale
    if causal:
        s = s.masked_fill(torch.ones(s.shape[-2:]).triu(s.shape[-1] - s.shape[-2] + 1).bool(), float("-inf"))
    return s.softmax(-1) @ v

if True:
    other = attend
"""


@pytest.fixture
def file(tmp_path):
    (tmp_path / "mine.py").write_text(PLAIN)
    return tmp_path / "mine.py"


def test_a_plain_function_gets_repeated_kv_heads(file):
    name = f"{file}:attend"
    problem = Problem(seq_q=12, seq_kv=20, heads=4, kv_heads=2, mask="causal")
    qkv, _ = oracle.drawn(problem)
    out = backends.load(name).prepare(Case(problem=problem, backend=name), "cpu").call(*qkv)
    torch.testing.assert_close(out.double(), oracle.attend(problem, *qkv)[0], rtol=0, atol=2e-5)


def test_names_are_found_without_running_the_file(tmp_path):
    (tmp_path / "heavy.py").write_text(
        "raise SystemExit\ndef attend(): ...\ntry:\n    kernel = 1\nexcept E:\n    pass\n"
    )
    assert plugin.check(f"{tmp_path}/heavy.py:attend")[1] == "attend"
    assert plugin.check(f"{tmp_path}/heavy.py:kernel")[1] == "kernel"
    with pytest.raises(UnknownNameError, match="did you mean 'attend'"):
        plugin.check(f"{tmp_path}/heavy.py:atend")


@pytest.mark.parametrize(
    ("name", "words"),
    [("{}/none.py:attend", "no file"), ("{}/mine.py", "which callable"), ("{}/broken.py:attend", "cannot be parsed")],
)
def test_a_file_that_cannot_be_used_is_named(file, name, words):
    (file.parent / "broken.py").write_text("def attend(:\n")
    with pytest.raises(UsageError, match=words):
        plugin.check(name.format(file.parent))


@pytest.mark.parametrize("end", ["", ":"])
def test_a_file_without_a_callable_is_answered_with_one_of_its_functions(tmp_path, monkeypatch, end):
    monkeypatch.chdir(tmp_path)
    Path("kern.py").write_text("import math\ndef _scaled(q): ...\ndef flash(q, k, v): ...\n")
    with pytest.raises(UsageError, match=r"\(try kern.py:flash\)"):
        plugin.check(f"kern.py{end}")
    with pytest.raises(UsageError, match=r"\(try none.py:attend\)"):
        plugin.check(f"none.py{end}")


def test_two_colons_are_answered_with_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("kern.py").write_text("def flash(q, k, v): ...\n")
    for name, wanted in (("kern.py::flash", "kern.py:flash"), ("kern.py::", "kern.py:flash")):
        with pytest.raises(UsageError, match=rf"--backend {name}: one colon .*\(try {wanted}\)"):
            plugin.check(name)


def test_a_missing_callable_is_answered_with_what_the_file_defines_itself(tmp_path):
    source = "import math\nfrom functools import partial\ndef flash(q, k, v): ...\nfused = partial(flash)\n"
    (tmp_path / "kern.py").write_text(source)
    with pytest.raises(UnknownNameError, match=r"no callable 'nam'; there are flash, fused$"):
        plugin.check(f"{tmp_path}/kern.py:nam")


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("import math\nfrom math import exp\nSCALE = 2.0\nclass Attention: ...\n", "the file defines no function$"),
        ("def _attend(q, k, v): ...\n", "there are _attend$"),
        ("SCALE = 2.0\nSHAPE = 1, 2\ndef scaled(q): ...\ndef flash(q, k, v): ...\n", "there are scaled, flash$"),
        ("def scaled(q): ...\n", "there are scaled$"),
    ],
)
def test_a_missing_callable_is_answered_with_functions_alone(tmp_path, source, words):
    (tmp_path / "kern.py").write_text(source)
    with pytest.raises(UsageError, match=rf"^--backend \S*kern.py:x: no callable 'x'; {words}"):
        plugin.check(f"{tmp_path}/kern.py:x")


def test_a_missing_score_function_is_answered_without_running_the_file(tmp_path):
    (tmp_path / "score.py").write_text("def dot(q, k): ...\nraise RuntimeError\n")
    with pytest.raises(UsageError, match=r"no callable 'dott'; did you mean 'dot'\?$"):
        suite.from_flags({"seq": "8", "score": f"{tmp_path}/score.py:dott"})


@pytest.mark.parametrize(
    ("source", "example"),
    [
        ("def scaled(q): ...\ndef flash(q, k, v): ...\n", "flash"),
        ("def build(): ...\nSIZE = 3\nflash = build()\n", "flash"),
        ("def _flash(*qkv): ...\n", "_flash"),
        ("def scaled(q): ...\n", "attend"),
    ],
)
def test_the_example_of_a_callable_takes_q_k_and_v(tmp_path, source, example):
    (tmp_path / "kern.py").write_text(source)
    with pytest.raises(UsageError, match=rf"\(try \S*kern.py:{example}\)"):
        plugin.check(f"{tmp_path}/kern.py")


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package in the working directory; its name is new in each test, because Python imports a name once."""
    name = f"kernels_{tmp_path.name}".replace("-", "_")
    ops = tmp_path / name / "ops"
    ops.mkdir(parents=True)
    (ops.parent / "__init__.py").write_text("")
    (ops / "__init__.py").write_text("from .attn import attend\n")
    (ops / "scaling.py").write_text("def scaled(q, scale): return q * scale\n")
    (ops / "attn.py").write_text(
        "from .scaling import scaled\n\ndef attend(q, k, v, *, causal, scale):\n"
        "    from . import scaling\n    from beside import ONE\n"
        "    return (scaled(q, scale) @ k.mT).softmax(-1) @ v * ONE\n"
    )
    (ops / "beside.py").write_text("ONE = 1\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    return ops.parent


@pytest.mark.parametrize("name", ["{0}/ops/attn.py:attend", "{0}/ops/__init__.py:attend", "{0}.ops:attend"])
def test_a_file_inside_a_package_is_imported_as_its_module(package, name):
    name = name.format(package.name)
    assert backends.is_file(name)
    problem = Problem(seq_q=12, heads=2, head_dim=16)
    qkv, _ = oracle.drawn(problem)
    out = backends.load(name).prepare(Case(problem=problem, backend=name), "cpu").call(*qkv)
    torch.testing.assert_close(out.double(), oracle.attend(problem, *qkv)[0], rtol=0, atol=2e-5)
    assert f"{package.name}.ops.attn" in sys.modules


def test_a_score_function_inside_a_package_may_import_relatively(package):
    (package / "ops" / "score.py").write_text(
        "from .scaling import scaled\n\ndef dot(q, k): return scaled(q, 2) @ k.mT\n"
    )
    dot = scores.load_function(f"{package}/ops/score.py:dot")
    torch.testing.assert_close(dot(torch.ones(3, 4), torch.ones(5, 4)), torch.full((3, 5), 8.0))


def test_relative_imports_make_a_folder_a_package(package):
    (package / "ops" / "__init__.py").unlink()
    (package / "__init__.py").unlink()
    assert user_files.module_name(package / "ops" / "attn.py") == (package, "ops.attn")
    assert user_files.module_name(package / "ops" / "scaling.py") == (package / "ops", "scaling")
    (package / "ops" / "attn.py").write_text("from ..other import x\n")
    assert user_files.module_name(package / "ops" / "attn.py") == (package.parent, f"{package.name}.ops.attn")


def test_the_folders_of_a_file_hide_no_other_module_once_it_is_imported(package):
    before = [*sys.path]
    user_files.import_file(package / "ops" / "attn.py")
    assert sys.path == [*before, str(package.parent), str(package / "ops")]


def test_a_package_with_the_name_of_one_in_use_is_refused(tmp_path):
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("")
    (tmp_path / "torch" / "mine.py").write_text(PLAIN)
    with pytest.raises(UsageError, match="'torch' has the name of a package that is in use"):
        backends.load(f"{tmp_path}/torch/mine.py:attend")


def test_a_module_that_does_not_exist_is_named(package):
    with pytest.raises(UsageError, match=r"--backend .*\.opps:attend: no module"):
        plugin.check(f"{package.name}.opps:attend")
    assert not backends.is_file("sdpa:flsh")
    assert not backends.is_file("nothing_here:attend")


def test_what_is_not_callable_is_refused():
    with pytest.raises(UsageError, match="a int, not a function"):
        plugin.wrap(3, "x.py:three")


def test_a_decorator_declares_what_objections_then_say():
    @attnbench.backend(dtypes={"fp16"}, features={"window"}, modes={"fwd"}, layout="bshd", head_dim_most=64)
    def kernel(q, k, v, problem):
        return q

    made = plugin.wrap(kernel, "x.py:kernel")
    assert made.layout is Layout.BSHD
    case = Case(problem=Problem(seq_q=8, head_dim=128, mask="causal"), backend="x", mode=Mode.BWD)
    assert made.objections(case, "cpu") == [
        "fp32 unsupported (supported: fp16)",
        "backward unsupported",
        "head_dim 128 is over 64",
        "head_dim_v 128 is over 64",
        "bottom-right causal mask unsupported",
    ]


@pytest.mark.parametrize(
    "values", [{"features": {"causl"}}, {"dtypes": {"fp31"}}, {"modes": {"fdw"}}, {"layout": "bshh"}]
)
def test_a_declared_word_that_is_none_of_ours_is_refused(values):
    with pytest.raises(UnknownNameError):
        attnbench.backend(**values)(lambda q, k, v, problem: q)


def test_a_backend_made_by_hand_is_taken_as_it_is():
    own = backends.load("naive")
    assert isinstance(plugin.wrap(own, "theirs"), Backend)
    assert plugin.wrap(own, "theirs").name == "theirs"


def test_an_unknown_name_offers_the_nearest():
    with pytest.raises(UnknownNameError, match="did you mean 'sdpa:flash'"):
        backends.load("sdpa:flsh")


def test_every_built_in_leaf_holds_its_names():
    for name in backends.BUILTIN:
        backend = backends.load(name)
        assert backend.name == name
        assert backend.summary
        assert backend.limits
        assert "torch" in backend.requires or backend.install


ATTEND = "torch.nn.functional.scaled_dot_product_attention"
FOREIGN = {
    "sdpa": f"""
def kernel(query, key, value, attn_mask, dropout_p, is_causal, scale=None, enable_gqa=False):
    return {ATTEND}(query, key, value, is_causal=is_causal, scale=scale)
""",
    "sdpa_without_scale": f"""
def kernel(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False):
    return {ATTEND}(query, key, value, is_causal=is_causal)
""",
    "sdpa_itself": f"kernel = {ATTEND}\n",
    "flash": f"""
def kernel(q, k, v, dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1), *, deterministic=False):
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return {ATTEND}(q, k, v, is_causal=causal, scale=softmax_scale).transpose(1, 2)
""",
    "flash_decorated": f"""
@torch.no_grad()
def kernel(q, k, v, dropout_p, softmax_scale, causal, window_size):
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return {ATTEND}(q, k, v, is_causal=causal, scale=softmax_scale).transpose(1, 2)
""",
}


@pytest.mark.parametrize("style", FOREIGN)
def test_a_foreign_signature_is_named_with_an_adapter_that_works(style, tmp_path):
    source = f"import attnbench, torch\n{FOREIGN[style]}"
    (tmp_path / "foreign.py").write_text(source)
    problem = Problem(seq_q=16, heads=2, head_dim=16, mask="causal")
    qkv, _ = oracle.drawn(problem)

    def attended(name):
        backend = backends.load(name)
        arguments = [x.transpose(1, 2) for x in qkv] if backend.layout is Layout.BSHD else qkv
        out = backend.prepare(Case(problem=problem, backend=name), "cpu").call(*arguments)
        return out.transpose(1, 2) if backend.layout is Layout.BSHD else out

    with pytest.raises(UsageError) as wrong:
        attended(f"{tmp_path}/foreign.py:kernel")
    text = str(wrong.value)
    wanted = "scaled_dot_product_attention" if "sdpa" in style else "flash-attn, on [batch, seq, heads, head_dim]"
    assert f"has the signature of {wanted}" in text
    adapter = text.partition("Adapt it: ")[2].partition("; where")[0].replace(" above ", "\n")
    name = text.partition("(")[0]
    rebound = "" if name == "kernel" else f"\n{name} = kernel\n"
    (tmp_path / "adapted.py").write_text(source + rebound + adapter + "\n")
    out = attended(f"{tmp_path}/adapted.py:adapted")
    torch.testing.assert_close(out.double(), oracle.attend(problem, *qkv)[0], rtol=0, atol=2e-5)


def test_a_kernel_that_takes_any_keyword_is_told_what_it_receives(tmp_path):
    (tmp_path / "any.py").write_text(
        "def strict(q, k, v, softmax_scale=None, causal=False): return q\n"
        "def passes(q, k, v, **options): return strict(q, k, v, **options)\n"
        "def plain(q, k, v, *, causal, scale): return q\n"
    )
    problem = Problem(seq_q=16)
    prepared = {}
    for name in ("passes", "plain"):
        backend = f"{tmp_path}/any.py:{name}"
        prepared[name] = backends.load(backend).prepare(Case(problem=problem, backend=backend), "cpu")
    assert "passes receives causal and scale, and tensors [batch, heads, seq, head_dim]" in prepared["passes"].hint
    assert prepared["plain"].hint == ""
    with pytest.raises(
        UsageError, match=r"passes its keywords on: strict.* unexpected keyword argument 'scale'; passes"
    ):
        prepared["passes"].call(*oracle.drawn(problem)[0])


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("def kernel(q, k, v): ...", "kernel(q, k, v): attnbench calls fn(q, k, v, *, causal, scale)"),
        ("def kernel(q, k, v, problem): ...", "decorate it with @attnbench.backend"),
        ("@attnbench.backend()\ndef kernel(q, k, v): ...", "which calls fn(q, k, v, problem)"),
    ],
)
def test_a_signature_that_does_not_fit_says_what_is_called(source, words, tmp_path):
    (tmp_path / "unfit.py").write_text(f"import attnbench\n{source}\n")
    name = f"{tmp_path}/unfit.py:kernel"
    problem = Problem(seq_q=16)
    with pytest.raises(UsageError) as wrong:
        backends.load(name).prepare(Case(problem=problem, backend=name), "cpu").call(*oracle.drawn(problem)[0])
    assert words in str(wrong.value)


def test_a_type_error_of_a_kernel_that_fits_is_its_own(tmp_path):
    (tmp_path / "fits.py").write_text("def kernel(q, k, v, **options):\n    return len(1)\n")
    name = f"{tmp_path}/fits.py:kernel"
    problem = Problem(seq_q=16)
    with pytest.raises(TypeError, match="object of type 'int' has no len"):
        backends.load(name).prepare(Case(problem=problem, backend=name), "cpu").call(*oracle.drawn(problem)[0])


PAGED = """
import attnbench

@attnbench.backend(features={"paged", "causal", "cross"}, modes={"fwd"})
def attend(q, k, v, problem, page_table=None):
    if page_table is not None:
        k, v = (t[page_table].flatten(1, 2)[:, : problem.seq_kv].transpose(1, 2) for t in (k, v))
    return (q @ k.transpose(-2, -1) * problem.scale).softmax(-1) @ v
"""


@pytest.mark.parametrize("page_size", [0, 16])
def test_a_kernel_that_declares_pages_receives_them_with_their_table(tmp_path, page_size):
    (tmp_path / "paged.py").write_text(PAGED)
    name = f"{tmp_path}/paged.py:attend"
    problem = Problem(seq_q=1, seq_kv=40, batch=2, heads=2, page_size=page_size)
    (q, k, v), _ = oracle.drawn(problem)
    prepared = backends.load(name).prepare(Case(problem=problem, backend=name), "cpu")
    if prepared.stored:
        k, v = prepared.stored(k), prepared.stored(v)
        assert k.shape == (6, 16, 2, 64)
    out = prepared.call(q, k, v)
    q, k, v = oracle.drawn(problem)[0]
    torch.testing.assert_close(out.double(), oracle.attend(problem, q, k, v)[0], rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    ("mask", "causal", "window"),
    [
        ("none", False, None),
        ("causal", True, None),
        ("window:3:5", False, (3, 5)),
        ("causal+window:3", True, (3, 0)),
        ("window:4:0", True, (4, 0)),
    ],
)
def test_the_problem_gives_its_mask_without_parsing(mask, causal, window):
    problem = Problem(seq_q=6, seq_kv=9, mask=mask)
    assert (problem.causal, problem.window) == (causal, window)
    left, right = window or (9, 0 if causal else 9)
    expected = [[i + 3 - left <= j <= i + 3 + right for j in range(9)] for i in range(6)]
    assert problem.visible().tolist() == [expected]


def test_the_import_of_a_file_leaves_nothing_in_its_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    package = tmp_path / "cleanpkg"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "tile.py").write_text("SIZE = 16\n")
    (package / "attn.py").write_text("from .tile import SIZE\n")
    (tmp_path / "helper.py").write_text("")
    (tmp_path / "kernel.py").write_text("import helper\n")
    assert user_files.import_file(package / "attn.py").SIZE == 16
    user_files.import_file(tmp_path / "kernel.py")
    assert not list(tmp_path.rglob("__pycache__"))
    assert not sys.dont_write_bytecode
