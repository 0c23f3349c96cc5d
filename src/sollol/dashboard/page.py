"""The page as one document: style and script stand in it, and the policy names their digests.

So it is whole after one request, works without a network, and runs nothing that is not in this package.
"""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from importlib.resources import files
from typing import NamedTuple


class Page(NamedTuple):
    html: bytes
    policy: str


@cache
def page() -> Page:
    """The document, and the Content-Security-Policy that goes with it."""
    room = files("sollol.dashboard").joinpath("page")
    style, script = (room.joinpath(name).read_text("utf-8") for name in ("page.css", "page.js"))
    html = room.joinpath("page.html").read_text("utf-8")
    html = html.replace("/*STYLE*/", style).replace("/*SCRIPT*/", script)
    policy = (
        f"default-src 'none'; style-src {_digest(style)}; script-src {_digest(script)}; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return Page(html.encode(), policy)


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
