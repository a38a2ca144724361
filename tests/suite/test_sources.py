"""What the shapes of a suite were compared with: as written, as shown, and in the shipped suites."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest

from attnbench import suite
from attnbench.attention.choices import Dtype
from attnbench.errors import SuiteError
from attnbench.suite import Cell, sources
from tests.suite import table_of

ROOT = Path(__file__).parents[2]
LINK = f"https://github.com/o/r/blob/{'0123456789' * 4}/config.json"
OTHER = LINK.replace("config", "model")


def load(folder: Path, text: str) -> suite.Suite:
    (folder / "mine.toml").write_text(text)
    return suite.load(str(folder / "mine.toml"))


# -- as written --------------------------------------------------------------------------------------------------------


def test_links_of_the_file_are_those_of_its_tables_unless_a_table_differs(tmp_path: Path) -> None:
    loaded = load(
        tmp_path,
        f'checked = ["{LINK}", "{OTHER}"]\n[[problem]]\nseq = 8\n[[problem]]\nseq = 9\nunchecked = "not public"\n'
        f'[[problem]]\nseq = 10\nchecked = "{OTHER}"\n[[problem]]\nseq = 11\ncheck = true\n',
    )
    assert [(table.checked, table.unchecked) for table in loaded.tables] == [
        ((LINK, OTHER), ""),
        ((), "not public"),
        ((OTHER,), ""),
        ((), sources.UNREAD),
    ]


def test_child_does_not_inherit_the_comparison_of_its_parent(tmp_path: Path) -> None:
    loaded = load(tmp_path, 'extends = "vit-b16"\n[[problem]]\nseq = 8\n')
    assert [bool(table.checked) for table in loaded.tables] == [True, False]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("checked = 1\n[[problem]]\nseq = 8", "checked: expected `str | array`, got `int`"),
        ("unchecked = true\n[[problem]]\nseq = 8", "unchecked: expected `str`, got `bool`"),
        ('checked = ""\n[[problem]]\nseq = 8', "checked: an empty item in ''"),
        (
            'checked = "https://github.com/o/r/blob/main/config.json"\n[[problem]]\nseq = 8',
            "checked: 'https://github.com/o/r/blob/main/config.json': not a link to a file at a commit "
            "(https://github.com/OWNER/REPOSITORY/blob/COMMIT/PATH, with all 40 digits of the commit)",
        ),
        ('[[problem]]\nseq = 8\nchecked = "config.json"', "problem[0].checked: 'config.json': not a link to a file"),
        (f'checked = "{LINK}"\nunchecked = "why"\n[[problem]]\nseq = 8', "checked and unchecked exclude each other"),
        (f'[[problem]]\nseq = 8\nchecked = "{LINK}"\ncheck = true', "problem[0].checked and check exclude each other"),
    ],
)
def test_mistake_is_named_with_file_and_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, complaint: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SuiteError) as caught:
        load(tmp_path, text)
    assert str(caught.value).startswith(("mine.toml: " + complaint, str(tmp_path / "mine.toml") + ": " + complaint))


# -- as shown ----------------------------------------------------------------------------------------------------------

CHECKED = table_of(checked=(LINK,), name="prefill")
OWN = table_of(unchecked="own lengths", name="decode")


def test_reader_sees_each_file_once_and_which_tables_were_not_compared() -> None:
    assert sources.describe([CHECKED, CHECKED, OWN]) == (f"compared with: {LINK}", "not compared (decode): own lengths")
    assert sources.describe([OWN, OWN]) == ("not compared: own lengths",)
    assert sources.describe([table_of(name="x")]) == ()


@pytest.mark.parametrize(
    ("tables", "word"),
    [
        ([CHECKED, CHECKED], "yes"),
        ([CHECKED, OWN], "in part"),
        ([OWN, OWN], "no: own lengths"),
        ([table_of()], "no: nothing stated"),
    ],
)
def test_list_says_whether_a_suite_was_compared(tables: list[suite.ProblemTable], word: str) -> None:
    assert sources.summarise(tables) == word


# -- shipped suites ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", suite.shipped())
def test_every_table_was_compared_with_a_file_at_a_commit_or_says_why_not(name: str) -> None:
    for table in suite.load(name).tables:
        assert bool(table.checked) != bool(table.unchecked)
        assert table.unchecked != sources.UNREAD


def cells(name: str, kind: str = "cpu") -> list[Cell]:
    return [cell for cell in suite.expand(suite.load(name), kind=kind, dtype=Dtype.FP32) if isinstance(cell, Cell)]


def table_cells(name: str, table: str) -> list[Cell]:
    loaded = suite.load(name)
    return [cell for cell in cells(name) if loaded.tables[cell.table].name.startswith(table)]


# Values that differed from the source; the links are in the suites.


def test_deepseek_scales_by_yarn() -> None:
    # inference/model.py: qk_head_dim ** -0.5, times mscale squared above original_seq_len.
    (scale,) = {cell.problem.score.scale for cell in cells("deepseek-v3")}
    assert scale == pytest.approx((128 + 64) ** -0.5 * (0.1 * math.log(40) + 1) ** 2)


@pytest.mark.parametrize(("name", "segment", "memory"), [("xl-wt103-base", 64, 640), ("xl-wt103-large", 128, 1600)])
def test_transformer_xl_evaluates_with_the_same_context_for_each_token(name: str, segment: int, memory: int) -> None:
    # pytorch/mem_transformer.py, same_length: hidden are triu(1 + mlen) and, as klen - mem_len = qlen, tril(0).
    (cell,) = table_cells(name, "evaluation")
    problem = cell.problem
    assert (problem.batch, problem.seq_q, problem.seq_kv) == (10, segment, memory + segment)
    ones = np.ones((segment, memory + segment), bool)
    assert (problem.masking.dense(problem.grid)[0] == ~(np.triu(ones, 1 + memory) | np.tril(ones))).all()


def test_bidaf_attends_from_one_query_to_the_context_without_a_scale() -> None:
    # basic/model.py, bi_attention: softsel(h, reduce_max(u_logits, 3)).
    (cell,) = table_cells("bidaf", "question to context")
    assert (cell.problem.seq_q, cell.problem.seq_kv) == (1, 400)
    assert {cell.problem.score.scale for cell in cells("bidaf")} == {1}


def test_din_is_as_wide_as_an_item_and_its_category() -> None:
    # din/model.py: hidden_units 128, divided by sqrt(128); din/train.py: batches of 32 and 512.
    assert {cell.problem.head_dim for cell in cells("din")} == {128}
    assert {cell.problem.batch for cell in cells("din")} == {32, 512}
    (scale,) = {cell.problem.score.scale for cell in table_cells("din", "a candidate")}
    assert scale == pytest.approx(128**-0.5)


def test_graphormer_has_128_nodes_and_a_token_for_the_graph() -> None:
    # graph_prediction.py: max_nodes 128, num_spatial 512; graphormer_layers.py: n_node + 1; pcqv2.sh: --batch-size 256.
    shapes = {
        (cell.problem.seq_q, cell.problem.batch, cell.problem.score.bias) for cell in table_cells("graphormer", "g")
    }
    assert (129, 256, "edge:512") in shapes


def test_diffusion_attends_in_the_middle_block() -> None:
    # openaimodel.py: middle_block holds a SpatialTransformer, at an eighth of the latents of 64 x 64.
    shapes = {(cell.problem.seq_q, cell.problem.seq_kv, cell.problem.head_dim) for cell in cells("sd-unet")}
    assert shapes >= {(64, 64, 160), (64, 77, 160)}


def test_gemma_decodes_with_the_window_of_its_local_layers() -> None:
    # gemma/config.py: AttentionType.LOCAL_SLIDING in every other layer, sliding_window_size 4096.
    masks = {(cell.problem.mask, cell.problem.score.softcap) for cell in table_cells("gemma2-9b", "decode")}
    assert masks == {("causal", 50), ("causal+window:4095", 50)}


# eagle/model/choices.py: mc_sim_7b_63, each draft token as its path of ranks.
EAGLE = "0 1 2 3 00 01 02 10 11 20 21 30 000 001 002 010 011 020 021 100 0000 0001 0002 00000 00001"


def test_speculative_decoding_has_the_tree_of_eagle() -> None:
    tokens = ["", *EAGLE.split()]
    for cell in table_cells("chat-decode", "speculative"):
        grid = cell.problem.grid
        visible = cell.problem.masking.dense(grid)[0]
        assert visible[:, : grid.offset].all()
        for path, row in zip(tokens, visible[:, grid.offset :], strict=True):
            assert [path.startswith(other) for other in tokens] == row.tolist()


QWEN3_30B = (32, 4, 128, 128, "", None, False)  # torchtitan: _30b_a3b


@pytest.mark.parametrize(("name", "shapes"), [
    *((name, None) for name in ("llama3-8b", "deepseek-v3", "gpt-oss")), ("qwen3", {QWEN3_30B}),
])  # fmt: skip
def test_served_batches_have_the_shapes_of_the_model(name: str, shapes: set[tuple[object, ...]] | None) -> None:
    assert {_shape(cell) for cell in cells(f"serving-{name}")} == (
        shapes or {_shape(cell) for cell in table_cells(name, "decode") if cell.problem.sinks == (name == "gpt-oss")}
    )


def _shape(cell: Cell) -> tuple[object, ...]:
    problem = cell.problem
    widths = (problem.heads, problem.kv_heads, problem.head_dim, problem.head_dim_v)
    return (*widths, problem.kv, problem.score.scale, problem.sinks)


@pytest.mark.parametrize(("name", "layers"), [("llama3-8b", 32), ("deepseek-v3", 61), ("gpt-oss", 12), ("qwen3", 48)])
def test_served_batches_state_the_layers_that_share_their_plan(name: str, layers: int) -> None:
    assert {cell.layers for cell in cells(f"serving-{name}")} == {layers}


@pytest.mark.parametrize("name", ["llama3-8b", "deepseek-v3", "gpt-oss", "qwen3"])
def test_requests_of_a_server_are_those_of_their_table(name: str) -> None:
    for cell in [*table_cells(f"serving-{name}", "chunked"), *table_cells(f"serving-{name}", "mixed")]:
        assert cell.problem.tokens_q in (2048, 8192)
    for cell in table_cells(f"serving-{name}", "decode"):
        assert {queries for queries, _ in cell.problem.sizes} == {1}
        assert len({keys for _, keys in cell.problem.sizes}) >= 3
    for cell in table_cells(f"serving-{name}", "speculative"):
        assert {queries for queries, _ in cell.problem.sizes} <= {4, 5, 6, 7, 8}
    shared = table_cells(f"serving-{name}", "shared prefix")
    assert {group.keys for cell in shared for group in cell.problem.prefix_groups} == {2048}


def test_dialogues_have_contexts_of_their_own_lengths() -> None:
    for cell in table_cells("chat-decode", "one token"):
        assert len({keys for _, keys in cell.problem.sizes}) == 4


def test_dinat_divides_its_width_among_its_heads() -> None:
    # dinat.py: embed_dim 64, num_heads [2, 4, 8, 16], dilations [1, 8, 1] ...; nat.py: stages double it.
    for number, heads in enumerate((2, 4, 8, 16)):
        found = {
            (cell.problem.heads, cell.problem.head_dim, cell.problem.seq_q)
            for cell in table_cells("dinat-mini", f"stage {number + 1}")
        }
        assert found == {(heads, 64 * 2**number // heads, (224 // 4 // 2**number) ** 2)}


@pytest.mark.parametrize(
    ("name", "batches"),
    [
        ("finbert-stream", {5, 32}),  # finbert.py: predict, train_batch_size
        ("mt-transformer-base", {32}),  # transformer.py: batch_size 4096 tokens, of 128
        ("vit-3d", {1, 4}),  # data_utils.py: num_samples 4 of one volume; main.py: sw_batch_size 1
    ],
)
def test_batches_are_the_published_ones(name: str, batches: set[int]) -> None:
    assert {cell.problem.batch for cell in cells(name)} == batches


# -- counts in texts ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", suite.shipped())
def test_title_counts_right(name: str) -> None:
    of_kind = cells(name)
    title = suite.load(name).title
    assert not re.search(r"(?i)(teen|ty|ten|dozen|hundred) (cases|problems)", title)  # a number that this test misses
    counts = {"cases": suite.count_cases(of_kind), "problems": len(of_kind)}
    for number, what in re.findall(r"(\d+) (cases|problems)", title):
        assert int(number) == counts[what]


@pytest.mark.parametrize("page", ["gate.md", "benchmarks.md"])
def test_pages_count_the_cases_of_ci(page: str) -> None:
    counts = re.findall(r"`(?:gate )?ci(?: --noop)?`,? \(?(\d+) cases", (ROOT / "docs" / page).read_text())
    assert counts
    assert {int(count) for count in counts} == {suite.count_cases(cells("ci"))}


def test_list_counts_problems_and_cases(capsys: pytest.CaptureFixture[str]) -> None:
    from attnbench.cli import list as list_

    list_.suites()
    lines = {line.split()[0]: line.split()[1:3] for line in capsys.readouterr().out.splitlines()}
    assert (lines["suite"], lines["ci"]) == (["problems", "cases"], ["13", "20"])
    assert lines["gpt2"] == ["9", "-"]


def test_show_names_the_files_and_counts_problems_and_cases(capsys: pytest.CaptureFixture[str]) -> None:
    from attnbench.cli.suite import show

    show("bert-qa")
    show("ci")
    out = capsys.readouterr().out
    assert "\ncompared with: https://github.com/google-research/bert/blob/" in out
    assert "\nnot compared: own shapes\n" in out
    assert "\ncpu: 13 problems, 20 cases\n" in out
