"""One HTML file that works offline, without scripts, and under a content security policy that forbids them.

Every chart is inline SVG; where scripts run, Vega draws it again with tooltips and a filter. Nothing is loaded.
"""

import contextlib
import os
from collections.abc import Mapping, Sequence
from importlib.metadata import version

import msgspec

from attnbench._version import __version__
from attnbench.attention import user_folders
from attnbench.errors import StoreError
from attnbench.report.charts import rendering
from attnbench.report.glossary import TERMS
from attnbench.report.pages.page import MAX_ROWS, Page

THEMES = ("auto", "light", "dark", "print")


class Drawing(msgspec.Struct, frozen=True):
    """One chart of a page, as a Vega-Lite spec and as inline SVG."""

    page: str
    name: str
    spec: rendering.Spec
    svg: str

    @property
    def file(self) -> str:
        return self.name if self.name == self.page else f"{self.page}-{self.name}"

    @property
    def heading(self) -> str:
        """What a screen reader says instead of the marks."""
        title = self.spec.get("title")
        return str(title.get("text", "")) if isinstance(title, dict) else ""


def draw(pages: Sequence[Page]) -> list[Drawing]:
    """Every chart of the pages."""
    specs = [(page.name, name, rendering.spec(chart)) for page in pages for name, chart in page.charts]
    return [Drawing(page, name, spec, rendering.inline(spec)) for page, name, spec in specs]


def page(pages: Sequence[Page], drawings: Sequence[Drawing], title: str, theme: str = "auto") -> str:
    """The whole file."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    specs = {f"{drawing.page}/{drawing.name}": drawing.spec for drawing in drawings}
    environment = Environment(
        loader=PackageLoader("attnbench.report.formats", "."), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["markup"] = Markup
    environment.globals |= {"max_rows": MAX_ROWS, "version": __version__, "terms": TERMS}
    data = msgspec.json.encode(specs, order="deterministic").decode()
    for character in "<>&":  # `</script>` inside a string would end the element that holds the data
        data = data.replace(character, f"\\u{ord(character):04x}")
    return environment.get_template("report.html.j2").render(
        pages=pages,
        drawings=drawings,
        title=title,
        theme=theme,
        specs=Markup(data),
        bundle=Markup(_bundle()) if specs else "",
    )


def fragment(sentences: Sequence[str], rows: Sequence[Mapping[str, str]]) -> str:
    """Sentences and a table, for a notebook."""
    from markupsafe import escape

    head = "".join(f"<th>{escape(name)}</th>" for name in (rows[0] if rows else ()))
    lines = ("".join(f"<td>{escape(cell)}</td>" for cell in row.values()) for row in rows)
    body = "</tr>".join(f"<tr>{line}" for line in lines)
    return "".join(f"<p>{escape(line)}</p>" for line in sentences) + f"<table><tr>{head}</tr>{body}</table>"


def _bundle() -> str:
    """Vega, Vega-Lite and Vega-Embed in one script, from vl-convert; cached, since bundling takes a second."""
    name = f"vega-{version('vl-convert-python')}.js"
    with contextlib.suppress(OSError, StoreError):
        return (user_folders.cache() / name).read_text(encoding="utf-8")
    import vl_convert

    script: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    script = script.replace("</script", "<\\/script").replace("<!--", "<\\!--")
    with contextlib.suppress(OSError, StoreError):  # the cache is an optimisation
        cache = user_folders.cache() / name
        cache.parent.mkdir(parents=True, exist_ok=True)
        draft = cache.with_suffix(f".{os.getpid()}")
        draft.write_text(script, encoding="utf-8")
        draft.replace(cache)
    return script
