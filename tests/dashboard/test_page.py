"""The page runs nothing but itself."""

from __future__ import annotations

import base64
import hashlib
import re

from sollol.dashboard.page import page


def test_the_policy_names_the_digest_of_what_stands_in_the_page() -> None:
    html = page().html.decode()
    for tag in ("style", "script"):
        inside = re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.S)
        assert len(inside) == 1
        digest = base64.b64encode(hashlib.sha256(inside[0].encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in page().policy


def test_the_page_is_whole_and_inserts_text_only() -> None:
    html = page().html.decode()
    assert not re.search(r"<[^>]*\s(on\w+|style)\s*=", html)
    assert not re.search(r"(src|href|url)\s*[=(]\s*[\"']?(https?:)?//", html)
    for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "srcdoc"):
        assert word not in html
