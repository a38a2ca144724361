"""Suite files: what is read from them, what is refused and in which words, and options laid over them."""

from __future__ import annotations

import errno
import re
import shlex
from pathlib import Path

import msgspec
import pytest

from attnbench import suite
from attnbench.attention.choices import Dtype, Mode, Returns
from attnbench.errors import ProblemError, RangeError, SuiteError, UnknownNameError, UsageError
from attnbench.suite import AXES, Cell, ProblemTable, Suite
from attnbench.suite.files import shipped_folder, written_suite, written_table
from tests.suite import table_of

ROOT = Path(__file__).parents[2]
FORMATS = (ROOT / "docs" / "formats.md").read_text()
SHIPPED = suite.shipped()


def written(folder: Path, text: str, name: str = "mine.toml") -> str:
    (folder / name).write_text(text)
    return str(folder / name)


def table(folder: Path, text: str) -> ProblemTable:
    """The one table of a suite."""
    return suite.load(written(folder, f"[[problem]]\n{text}")).tables[0]


def cells(loaded: Suite, kind: str = "cpu") -> list[Cell]:
    expanded = list(suite.expand(loaded, kind=kind, dtype=Dtype.FP32))
    assert all(isinstance(cell, Cell) for cell in expanded)
    return [cell for cell in expanded if isinstance(cell, Cell)]


# -- shipped -----------------------------------------------------------------------------------------------------------


OWN = {
    "ci",
    "cpu",
    "hopper",
    "kernels",
    "quick",
    "scaling",
    "verify",
    "mt-article3",
    "multitask-mix",
}  # not a published model's shapes
OWN |= {"claims", "dispatch-check", "grad-accumulation", "layers", "tensor-parallel"}
# The rows of applications of docs/mechanisms.md.
MODELS = {
    "bart-large", "bert-base", "bert-qa", "bert4rec", "bidaf", "chat-decode", "clinical-longformer", "clip",
    "deepseek-v3", "detr", "din", "dinat-mini", "dit-xl2", "finbert-stream", "flamingo", "gemma2-9b", "gpt-oss", "gpt2",
    "graphormer", "led",
    "llama3-70b", "llama3-8b", "minilm", "mistral-7b", "mt-transformer-base", "qformer", "sasrec", "sd-unet",
    "segformer-b0", "serving-deepseek-v3", "serving-gpt-oss", "serving-llama3-8b", "serving-qwen3", "swin-t", "t5-base",
    "vit-3d", "vit-b16", "whisper-base", "xl-wt103-base", "xl-wt103-large",
}  # fmt: skip


def test_these_suites_are_shipped() -> None:
    assert set(SHIPPED) == OWN | MODELS


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_suite_has_title_and_source(name: str) -> None:
    loaded = suite.load(name)
    assert loaded.title
    assert loaded.source


@pytest.mark.parametrize("name", sorted(MODELS))
def test_suite_of_a_model_cites_the_published_configuration(name: str) -> None:
    assert re.match(r"https://\S+", suite.load(name).source)


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_suite_names_no_device(name: str) -> None:
    assert not re.search(r"\b(device|cuda:\d|cpu:)", (shipped_folder() / f"{name}.toml").read_text())


@pytest.mark.parametrize("kind", suite.files.KINDS)
@pytest.mark.parametrize("name", SHIPPED)
def test_every_cell_of_a_shipped_suite_is_possible(name: str, kind: str) -> None:
    assert cells(suite.load(name), kind)


def test_quick_on_a_cpu_is_the_documented_sweep() -> None:
    actual = {(c.problem.seq_q, c.problem.mask, c.mode) for c in cells(suite.load("quick"))}
    assert actual == {(seq, mask, Mode.FWD) for seq in (128, 256, 512, 1024) for mask in ("none", "causal")}
    assert suite.load("quick").budget == "90s"


def test_quick_on_a_gpu_keeps_the_tokens_of_a_batch() -> None:
    tokens = {c.problem.batch * c.problem.seq_q for c in cells(suite.load("quick"), "cuda")}
    assert tokens == {8192}


def test_ci_has_twenty_cases() -> None:
    assert sum(len(cell.backends) for cell in cells(suite.load("ci"))) == 20


def test_llama_prefill_and_decode_have_the_published_heads() -> None:
    heads = {(c.problem.heads, c.problem.kv_heads, c.problem.head_dim) for c in cells(suite.load("llama3-8b"))}
    assert heads == {(32, 8, 128)}


def test_shipped_suite_without_source_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suite.files, "shipped_folder", lambda: tmp_path)
    written(tmp_path, "[[problem]]\nseq = 8\n", "made.toml")
    with pytest.raises(SuiteError, match=r"suites/made\.toml: source: a shipped suite names where"):
        suite.load("made")


# -- values ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "key", "values"),
    [
        ('seq = "512,1k..4k"', "seq", (512, 1024, 2048, 4096)),
        ("seq = [64, 32]", "seq", (32, 64)),
        ('seq = ["8..32", 48]', "seq", (8, 16, 32, 48)),
        ("seq = 8\nheads = 20", "heads", (20,)),
        ('seq = 8\ndtype = "bf16,fp32"', "dtype", (Dtype.BF16, Dtype.FP32)),
        ('seq = 8\nmask = ["none", "window:4+causal"]', "mask", ("none", "causal+window:4")),
        ('seq = 8\nmask = "causal+window:4,window:4:0"', "mask", ("causal+window:4",)),
        ('seq = 8\nscore = "dot:softcap=30"', "score", ("dot:softcap=30",)),
        ('seq = 8\nsoftcap = [30, "none"]', "softcap", (30.0, None)),
        ("seq = 8\nscale = 0.125", "scale", (0.125,)),
        ('lengths = ["3-2-1", "5"]', "lengths", ("q3_q2_q1", "q5")),
        ('seq = 8\nreturns = "lse"', "returns", (Returns.LSE,)),
        ('seq = 8\nmode = ["fwd", "bwd"]', "mode", (Mode.FWD, Mode.BWD)),
        ('seq = 8\nbackend = ["naive", "naive"]', "backend", ("naive", "naive")),
        ("seq = 8\ncheck = true", "unchecked", "no reason is given"),
        ('seq = 8\non = "cuda"', "on", "cuda"),
        ('seq = 8\nname = "decode"', "name", "decode"),
    ],
)
def test_value_becomes_a_tuple_of_what_is_swept(tmp_path: Path, text: str, key: str, values: object) -> None:
    read = table(tmp_path, text)
    assert (read.axes[key] if key in read.axes else getattr(read, key)) == values


def test_top_level_keys_are_read(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        'title = "T"\nsource = "S"\nbudget = "2m"\n[gate]\ntime = "2%"\nlimits = {peak = 1}\n[[problem]]\nseq = 8\n',
    )
    loaded = suite.load(path)
    gate = {"time": "2%", "limits": {"peak": 1}}
    assert (loaded.name, loaded.title, loaded.source, loaded.budget, loaded.gate) == ("mine", "T", "S", "2m", gate)


# -- mistakes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("sourc = 1\n[[problem]]\nseq = 8", "sourc: no key 'sourc'; did you mean 'source'?"),
        ("[[problem]]\nseq = 8\n[[problem]]\nsek = 8", "problem[1].sek: no key 'sek'; did you mean 'seq'?"),
        ('[[problem]]\nseq = 8\ndevice = "cpu"', "problem[0].device: a suite names no device: use --device, or `on`"),
        ("[[problem]]\nseq = 1.5", "problem[0].seq: expected `int | str | array`, got `float`"),
        ("[[problem]]\nseq = [8, true]", "problem[0].seq[1]: expected `int | str`, got `bool`"),
        ('[[problem]]\nseq = 8\ncheck = "yes"', "problem[0].check: expected `bool`, got `str`"),
        ("[[problem]]\nseq = 8\nmask = 3", "problem[0].mask: expected `str | array`, got `int`"),
        ("[problem]\nseq = 8", "problem: write [[problem]], once for each table"),
        ("problem = [1]", "problem: write [[problem]], once for each table"),
        ('[[problem]]\nseq = "16..8"', "problem[0].seq: empty range '16..8': the low end comes first"),
        ("[[problem]]\nseq = 0", "problem[0].seq: 0: must be at least 1"),
        ("[[problem]]\nseq = 8\nkv_heads = 0", "problem[0].kv_heads: 0: must be at least 1"),
        ("[[problem]]\nseq = []", "problem[0].seq: an empty list"),
        ('[[problem]]\nseq = 8\nmask = "casual"', "problem[0].mask: no mask 'casual'; did you mean 'causal'?"),
        ('[[problem]]\nseq = 8\nmask = "window:-1"', "problem[0].mask: mask 'window:-1': -1 is negative"),
        ('[[problem]]\nseq = 8\ndtype = "bf61"', "problem[0].dtype: no dtype 'bf61'; did you mean 'bf16'?"),
        ('[[problem]]\nseq = 8\nscore = "cosinus"', "problem[0].score: no score 'cosinus'"),
        ('[[problem]]\nseq = 8\nscore = "dot:softcap"', "problem[0].score: score 'dot:softcap': no value"),
        ('[[problem]]\nseq = 8\nscore = "dot:softcup=3"', "problem[0].score: no key of dot 'softcup'; did you mean"),
        ("[[problem]]\nseq = 8\nsoftcap = -1", "problem[0].softcap: score softcap=-1.0: a positive number"),
        ('[[problem]]\nseq = 8\nscale = "wide"', "problem[0].scale: not a number: 'wide'"),
        ('[[problem]]\nseq = 8\non = "tpu"', "problem[0].on: no kind of device 'tpu'"),
        ('[[problem]]\nmask = "none"', "problem[0]: no seq (or seq_q, lengths, requests)"),
        ("[[problem]]\nseq_kv = 8", "problem[0]: seq_kv needs seq_q"),
        ("[[problem]]\nseq = 8\nseq_q = 1\nseq_kv = 2", "problem[0]: seq beside both seq_q and seq_kv"),
        ("[[problem]]\nseq = 8\nbatch = 1\ntokens = 8", "problem[0]: batch and tokens exclude each other"),
        ('[[problem]]\nseq = 8\nscale = 1\nscore = "dot:scale=1"', "problem[0]: scale is given twice"),
        ("[[problem]]\nseq = 8\nexclude = [{sek = 8}]", "problem[0].exclude[0].sek: no key 'sek'; did you mean 'seq'?"),
        ("[[problem]]\nseq = 8\nexclude = [{}]", "problem[0].exclude[0]: an empty condition"),
        ("[[problem]]\nseq = 8\nexclude = {seq = 8}", "problem[0].exclude: expected `array`, got `object`"),
        ('budget = "soon"\n[[problem]]\nseq = 8', "budget: not a duration: 'soon'"),
        ('title = "nothing"', "no [[problem]]: nothing to measure"),
        ("[[problem]]\nseq = \nmask = 1", "not TOML: Invalid value (at line 2, column 7)"),
        ('[[problem]]\nseq = "1..1000000:+1"\nheads = "1..9"', "problem[0]: 5,000,000 cells; at most 1,000,000"),
    ],
)
def test_mistake_in_a_file_is_named_with_file_and_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, complaint: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SuiteError) as caught:
        suite.load(written(tmp_path, text))
    assert str(caught.value).startswith(f"mine.toml: {complaint}")
    assert "\n" not in str(caught.value)


def test_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(SuiteError, match=r"mine\.toml: not a text in UTF-8"):
        suite.load(str(tmp_path / "mine.toml"))


def test_file_that_may_not_be_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, "[[problem]]\nseq = 8")

    def refuse(*_: object, **__: object) -> str:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(SuiteError, match=r"mine\.toml: Permission denied"):
        suite.load(path)


def test_unknown_suite_comes_with_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match=r"^no suite 'quik'; did you mean 'quick'\?$"):
        suite.load("quik")


def test_missing_file_comes_with_what_is_there(tmp_path: Path) -> None:
    written(tmp_path, "", "other.toml")
    with pytest.raises(
        SuiteError, match=r"no file '.*gone\.toml'; in that folder there is other\.toml; shipped ones: attnbench list"
    ):
        suite.load(str(tmp_path / "gone.toml"))


# -- extends -----------------------------------------------------------------------------------------------------------


def test_tables_of_the_parent_come_first(tmp_path: Path) -> None:
    written(tmp_path, "[[problem]]\nseq = 8\n", "parent.toml")
    child = written(tmp_path, 'extends = "parent.toml"\n[[problem]]\nseq = 16\n')
    assert [table.axes["seq"] for table in suite.load(child).tables] == [(8,), (16,)]


def test_keys_of_the_child_override(tmp_path: Path) -> None:
    written(tmp_path, 'title = "P"\nsource = "S"\nbudget = "1m"\n[gate]\na = 1\n[[problem]]\nseq = 8\n', "parent.toml")
    loaded = suite.load(written(tmp_path, 'extends = "parent.toml"\ntitle = "C"\n[gate]\nb = 2\n'))
    assert (loaded.name, loaded.title, loaded.source, loaded.budget, loaded.gate) == ("mine", "C", "S", "1m", {"b": 2})


def test_shipped_suite_can_be_extended(tmp_path: Path) -> None:
    loaded = suite.load(written(tmp_path, 'extends = "quick"\n[[problem]]\nseq = 16\n'))
    assert loaded.tables == (*suite.load("quick").tables, table_of(seq=(16,)))


def test_parent_is_looked_for_beside_the_child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "below").mkdir()
    written(tmp_path / "below", "[[problem]]\nseq = 8\n", "parent.toml")
    child = written(tmp_path / "below", 'extends = "parent.toml"')
    monkeypatch.chdir(tmp_path)
    assert suite.load(child).tables == (table_of(seq=(8,)),)


def test_cycle_is_refused_with_its_chain(tmp_path: Path) -> None:
    written(tmp_path, 'extends = "b.toml"', "a.toml")
    written(tmp_path, 'extends = "c.toml"', "b.toml")
    written(tmp_path, 'extends = "a.toml"', "c.toml")
    with pytest.raises(SuiteError, match=r"extends itself: a\.toml -> b\.toml -> c\.toml -> a\.toml$"):
        suite.load(str(tmp_path / "a.toml"))


def test_missing_parent_is_named_with_the_file_that_wants_it(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match=r"mine\.toml: extends: no suite 'quik'; did you mean 'quick'\?"):
        suite.load(written(tmp_path, 'extends = "quik"'))


# -- options -----------------------------------------------------------------------------------------------------------


def overridden(axes: dict[str, object], flags: dict[str, str]) -> dict[str, object]:
    """What a table with these axes holds once the flags are laid over it."""
    swept = Suite(name="made", tables=(table_of(**axes),))
    return dict(suite.override(swept, flags).tables[0].axes)


@pytest.mark.parametrize(
    ("axes", "flags", "result"),
    [
        ({"seq": (8,)}, {"seq": "16,32"}, {"seq": (16, 32)}),
        ({"seq_q": (1,), "seq_kv": (8,)}, {"seq": "16"}, {"seq": (16,)}),
        ({"lengths": ("q3_q2",)}, {"seq": "16"}, {"seq": (16,)}),
        ({"seq": (8,)}, {"seq_q": "1"}, {"seq": (8,), "seq_q": (1,)}),
        ({"seq_q": (8,), "seq_kv": (4,)}, {"seq_kv": "2"}, {"seq_q": (8,), "seq_kv": (2,)}),
        ({"seq": (8,), "tokens": (64,)}, {"batch": "2"}, {"seq": (8,), "batch": (2,)}),
        ({"seq": (8,), "batch": (2,)}, {"tokens": "64"}, {"seq": (8,), "tokens": (64,)}),
        ({"seq": (8,), "batch": (2,)}, {"lengths": "3-2"}, {"lengths": ("q3_q2",)}),
        ({"seq": (8,), "mask": ("none",)}, {"heads": "2"}, {"seq": (8,), "mask": ("none",), "heads": (2,)}),
    ],
)
def test_option_replaces_its_key_and_those_that_say_the_same(
    axes: dict[str, object], flags: dict[str, str], result: dict[str, object]
) -> None:
    assert overridden(axes, flags) == result


def test_option_holds_for_every_table() -> None:
    overridden_suite = suite.override(suite.load("bert-base"), {"dtype": "bf16"})
    assert {table.axes["dtype"] for table in overridden_suite.tables} == {(Dtype.BF16,)}


def test_options_alone_make_one_table() -> None:
    made_suite = suite.from_flags({"seq": "8", "mask": "causal"})
    assert (made_suite.name, made_suite.tables) == ("custom", (table_of(seq=(8,), mask=("causal",)),))


@pytest.mark.parametrize(
    ("flags", "kind", "complaint"),
    [
        ({"seq": "16384..512"}, RangeError, "--seq: empty range '16384..512': the low end comes first"),
        ({"seq_kv": "x", "seq_q": "1"}, RangeError, "--seq-kv: not an integer: 'x'"),
        ({"seq": "8", "mask": "casual"}, UnknownNameError, "--mask: no mask 'casual'; did you mean 'causal'?"),
        ({"seq": "8", "softcup": "3"}, UnknownNameError, "--set: no suite key 'softcup'; did you mean 'softcap'?"),
        ({"seq": "8", "score": "absent.py:mine"}, ProblemError, "--score: score 'absent.py:mine': no file absent.py"),
        ({"seq": "8", "softcap": "x"}, UsageError, "--set softcap: not a number: 'x'"),
        ({"mask": "none"}, UsageError, "options: no seq"),
    ],
)
def test_mistake_in_an_option_names_the_option(flags: dict[str, str], kind: type[UsageError], complaint: str) -> None:
    with pytest.raises(kind) as caught:
        suite.from_flags(flags)
    assert str(caught.value).startswith(complaint)


# -- records -----------------------------------------------------------------------------------------------------------


def test_suite_survives_a_manifest() -> None:
    loaded = suite.load(str(ROOT / "suites" / "ci.toml"))
    assert msgspec.convert(msgspec.to_builtins(loaded), Suite) == loaded


def test_keys_of_a_written_table_are_the_axes_and_those_of_a_table() -> None:
    # `check` is an older spelling of `unchecked`.
    assert written_table().__struct_fields__ == (*AXES, *ProblemTable.__struct_fields__[1:], "check")


def test_every_key_is_documented() -> None:
    documented = set(re.findall(r"`(\w+)`", FORMATS.partition("## Configuration")[0]))
    assert documented >= {*written_table().__struct_fields__, *written_suite().__struct_fields__}


def test_the_table_of_the_documentation_is_that_of_the_code() -> None:
    """`python tools/axes.py` prints it."""
    assert "\n".join(axis.row for axis in AXES.values()) in FORMATS


def test_example_of_the_documentation_has_the_cells_that_it_says(tmp_path: Path) -> None:
    loaded = suite.load(written(tmp_path, FORMATS.split("```")[1].removeprefix("toml")))
    cells_on_cuda = list(suite.expand(loaded, kind="cuda", dtype=Dtype.BF16))
    rows = [(c.problem.mask, c.problem.seq_q, c.problem.seq_kv) for c in cells_on_cuda if isinstance(c, Cell)]
    assert rows == [
        ("causal", 1024, 1024),
        *(("causal+window:1023", seq, seq) for seq in (1024, 2048, 4096)),
        *(("causal", 1, seq) for seq in (2048, 8192)),
    ]
    assert len(cells_on_cuda) - len(rows) == 4


def test_schema_describes_every_key() -> None:
    definitions = suite.schema()["$defs"]
    assert tuple(definitions["ProblemTable"]["properties"]) == written_table().__struct_fields__
    assert tuple(definitions["SuiteFile"]["properties"]) == written_suite().__struct_fields__


@pytest.mark.parametrize("name", ["config.json", "models/my model/config.json"])
def test_a_config_of_a_model_is_answered_with_the_command_that_makes_a_suite_of_it(name: str) -> None:
    with pytest.raises(SuiteError, match=f"attnbench suite from-config {shlex.quote(name)} -o config.toml"):
        suite.load(name)
