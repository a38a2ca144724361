"""One HTML file that reads from disk, offline, with scripts off, and under a policy that forbids them.

Every chart stands as inline SVG; where scripts run, Vega draws it again, with tooltips and a filter. Nothing is loaded.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec

from attnbench import __version__
from attnbench.report import plots
from attnbench.report.material import ROWS_MOST, Page

THEMES = ("auto", "light", "dark", "print")


class Drawing(msgspec.Struct, frozen=True):
    """One chart of a page: what Vega draws, and the same as inline SVG."""

    page: str
    name: str
    spec: dict[str, Any]
    svg: str

    @property
    def file(self) -> str:
        """What its files in plots/ are called: by the page, and by the chart where that is another word."""
        return self.name if self.name == self.page else f"{self.page}-{self.name}"

    @property
    def heading(self) -> str:
        """What a screen reader says instead of the marks."""
        title = self.spec.get("title")
        return str(title.get("text", "")) if isinstance(title, dict) else ""


def draw(pages: Sequence[Page]) -> list[Drawing]:
    """Every chart of the pages."""
    drawn = []
    for one in pages:
        for name, chart in one.charts:
            found = plots.spec(chart)
            drawn.append(Drawing(one.name, name, found, plots.inline(found)))
    return drawn


def page(pages: Sequence[Page], drawn: Sequence[Drawing], title: str, theme: str = "auto") -> str:
    """The whole file."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    specs = {f"{one.page}/{one.name}": one.spec for one in drawn}
    environment = Environment(
        loader=PackageLoader("attnbench.report", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["drawing"] = Markup
    return environment.get_template("report.html.j2").render(
        pages=pages,
        drawn=drawn,
        title=title,
        theme=theme,
        most=ROWS_MOST,
        version=__version__,
        specs=Markup(_inline(msgspec.json.encode(specs, order="deterministic").decode())),
        bundle=Markup(_bundle()) if specs else "",
    )


def fragment(said: Sequence[str], rows: Sequence[Mapping[str, str]]) -> str:
    """Sentences and a table, for a notebook."""
    from markupsafe import Markup, escape

    cells = [
        Markup("<tr>") + Markup("").join(Markup("<td>{}</td>").format(one) for one in row.values()) for row in rows
    ]
    head = Markup("").join(Markup("<th>{}</th>").format(name) for name in (rows[0] if rows else ()))
    body = Markup("</tr>").join(cells)
    return "".join(f"<p>{escape(line)}</p>" for line in said) + f"<table><tr>{head}</tr>{body}</table>"


def _inline(text: str) -> str:
    """JSON that no browser takes for markup: `</script>` within a string would end the element."""
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _bundle() -> str:
    """Vega, Vega-Lite and Vega-Embed in one script, as vl-convert carries them; kept: to join them takes a second."""
    import platformdirs

    kept = Path(platformdirs.user_cache_dir("attnbench")) / f"vega-{version('vl-convert-python')}.js"
    with contextlib.suppress(OSError):
        return kept.read_text(encoding="utf-8")
    import vl_convert

    made: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    made = made.replace("</script", "<\\/script").replace("<!--", "<\\!--")
    with contextlib.suppress(OSError):  # a cache that cannot be written is none
        kept.parent.mkdir(parents=True, exist_ok=True)
        draft = kept.with_suffix(f".{os.getpid()}")
        draft.write_text(made, encoding="utf-8")
        draft.replace(kept)
    return made
