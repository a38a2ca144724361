"""One HTML file that reads from disk, offline, with scripts off, and under a policy that forbids them.

Every chart stands as inline SVG; where scripts run, Vega draws it again, with tooltips and a filter. Nothing is loaded.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from attnbench import __version__
from attnbench.report import plots
from attnbench.report.material import ROWS_MOST, Page

THEMES = ("auto", "light", "dark", "print")


def page(pages: Sequence[Page], title: str, theme: str = "auto") -> str:
    """The whole file."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    drawn: dict[str, list[tuple[str, Any]]] = {one.name: [] for one in pages}
    specs: dict[str, Mapping[str, Any]] = {}
    for one in pages:
        for name, chart in one.charts:
            drawn[one.name].append((name, Markup(plots.inline(chart))))
            specs[f"{one.name}/{name}"] = plots.spec(chart)
    environment = Environment(
        loader=PackageLoader("attnbench.report", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    return environment.get_template("report.html.j2").render(
        pages=pages,
        drawn=drawn,
        title=title,
        theme=theme,
        most=ROWS_MOST,
        version=__version__,
        specs=Markup(_inline(json.dumps(specs, sort_keys=True))),
        bundle=Markup(_bundle()) if specs else "",
    )


def _inline(text: str) -> str:
    """JSON that no browser takes for markup: `</script>` within a string would end the element."""
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


@lru_cache(maxsize=1)
def _bundle() -> str:
    """Vega, Vega-Lite and Vega-Embed in one script, as vl-convert carries them."""
    import vl_convert

    bundle: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    return bundle.replace("</script", "<\\/script").replace("<!--", "<\\!--")
