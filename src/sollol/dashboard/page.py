"""Build the page as one document that contains its style and script.

The page is complete after one request and works without the internet. The Content-Security-Policy lists the digests
of style and script, so a browser runs nothing else.
"""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from importlib.resources import files
from typing import Final, NamedTuple

STYLES: Final = ("vendor/uplot.css", "page.css")
SCRIPTS: Final = (
    "vendor/uplot.js",
    *("format.js", "table.js", "request.js", "chart.js", "actions.js", "nodes.js", "lanes.js", "history.js", "main.js"),
)


class Page(NamedTuple):
    """Hold the document and its Content-Security-Policy."""

    html: bytes
    policy: str


@cache
def page() -> Page:
    """Return the dashboard and its Content-Security-Policy."""
    return _built("page.html", STYLES, SCRIPTS)


@cache
def login_page() -> Page:
    """Return the page that takes a key, and its Content-Security-Policy."""
    return _built("login.html", ("page.css",), ("login.js",))


def _built(name: str, styles: tuple[str, ...], scripts: tuple[str, ...]) -> Page:
    folder = files("sollol.dashboard").joinpath("page")
    style, script = (
        "\n".join(folder.joinpath(part).read_text("utf-8") for part in parts) for parts in (styles, scripts)
    )
    html = folder.joinpath(name).read_text("utf-8").replace("/*STYLE*/", style).replace("/*SCRIPT*/", script)
    policy = (
        f"default-src 'none'; style-src {_digest(style)}; script-src {_digest(script)}; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return Page(html.encode(), policy)


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
