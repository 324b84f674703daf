"""HTML pages of one file: they hold all that they show, fetch nothing, and escape whatever comes from a run."""

import base64
import functools
import re
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

TYPES = {
    "md": "text/markdown;charset=utf-8",
    "tex": "text/x-tex;charset=utf-8",
    "csv": "text/csv;charset=utf-8",
    "json": "application/json",
    "pdf": "application/pdf",
    "png": "image/png",
    "svg": "image/svg+xml",
}


def render(template: str, package: str, charts: Mapping[str, Mapping[str, Any]], **values: Any) -> str:
    """A template that extends `base.html.jinja`.

    Args:
        template: its name in the package.
        package: such as `edge_grpo.reporting`.
        charts: name -> Vega-Lite specification; an element with `data-chart=name` shows it.
    """
    loader = ChoiceLoader([PackageLoader(package, "."), PackageLoader("edge_grpo.reporting", ".")])
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined)
    environment.filters["code"] = code
    return environment.get_template(template).render(
        charts=charts,
        vega=vega() if charts else "",
        sortable=files("edge_grpo.reporting").joinpath("sortable.auto.min.js").read_text("utf-8"),
        **values,
    )


def code(text: str) -> Markup:
    """Escaped, with what stands between backticks as code.

    >>> code("`a<b` of <i>")
    Markup('<code>a&lt;b</code> of &lt;i&gt;')
    """
    return Markup(re.sub(r"`([^`]*)`", r"<code>\1</code>", str(escape(text))))


def embedded(content: bytes, kind: str) -> str:
    """A file as an address that holds it, so that a link to it needs no other file.

    >>> embedded(b"a,b", "csv")
    'data:text/csv;charset=utf-8;base64,YSxi'
    """
    return f"data:{TYPES[kind]};base64,{base64.b64encode(content).decode()}"


@functools.cache
def vega() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script, of the version for which altair writes."""
    import altair
    import vl_convert

    version = ".".join(altair.SCHEMA_VERSION.removeprefix("v").split(".")[:2])
    return str(vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=version))
