"""The example notebook, executed from top to bottom by a kernel of this environment; and what a run shows in one."""

from __future__ import annotations

from pathlib import Path

import pytest

import attnbench
from attnbench.analysis import rows
from attnbench.errors import UnknownNameError

EXAMPLE = Path(__file__).parents[1] / "examples" / "choose_a_backend.ipynb"


def test_a_run_shows_its_finding_and_escapes_its_names(stored_run: Path) -> None:
    run = attnbench.load(stored_run)
    text = run._repr_html_()
    assert run.sentence in text
    assert text.count("<tr>") == 1 + len(run.results)
    evil = attnbench.load(stored_run)
    evil.results[0] = evil.results[0].__class__(
        **{name: getattr(evil.results[0], name) for name in evil.results[0].__struct_fields__}
        | {"case": evil.results[0].case.__class__(problem=evil.results[0].case.problem, backend="<b>.py:f")}
    )
    assert "<b>" not in evil._repr_html_()


def test_the_frame_has_the_documented_columns_and_another_reference(stored_run: Path) -> None:
    run = attnbench.load(stored_run)
    table = run.frame()
    assert list(table.columns) == list(rows.COLUMNS)
    assert table["time_s"].dtype.kind == "f"
    other = run.frame(reference=run.rows()[-1]["arm_name"])
    assert other["speedup"].iloc[-1] == pytest.approx(1.0)


def test_a_plot_names_what_it_does_not_know(stored_run: Path) -> None:
    run = attnbench.load(stored_run)
    with pytest.raises(UnknownNameError, match="did you mean 'time_s'"):
        run.plot(y="time")
    picture = run.plot(x="seq", y="time_s")
    assert picture.figure.heading == "Time of a call"
    assert picture._repr_svg_().startswith("<svg")


def test_a_plot_is_saved_by_a_path_or_its_text(stored_run: Path, tmp_path: Path) -> None:
    picture = attnbench.load(stored_run).plot()
    for file in (tmp_path / "path.svg", tmp_path / "text.svg"):
        picture.save(str(file) if file.stem == "text" else file)
        assert file.read_text() == picture._repr_svg_()


@pytest.mark.slow  # it judges no time, so it need not run alone
def test_the_example_runs_from_top_to_bottom(tmp_path: Path) -> None:
    nbformat = pytest.importorskip("nbformat")
    client = pytest.importorskip("nbclient")
    notebook = nbformat.read(EXAMPLE, as_version=4)
    client.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert "speed-up" in "".join(output["data"].get("text/html", "") for output in shown if "data" in output)
    assert sum("image/svg+xml" in output.get("data", {}) for output in shown) == 2
    assert [path.name for path in tmp_path.glob("results/*/report/*.html")] == ["index.html"]
