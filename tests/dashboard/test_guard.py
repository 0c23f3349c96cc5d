"""Which names are answered, and that the page runs nothing but itself."""

from __future__ import annotations

import base64
import hashlib
import re
import socket

import pytest

from sollol.dashboard.guard import Hosts, name_in
from sollol.dashboard.page import page

LOOPBACK = ["127.0.0.1", "127.0.0.1:8080", "127.8.9.1", "localhost", "LOCALHOST:1", "app.localhost", "[::1]:8080"]
FOREIGN = ["", ":8080", "evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "10.0.0.5", "[::2]", "::1"]


@pytest.mark.parametrize("host", LOOPBACK)
@pytest.mark.parametrize("bound", ["127.0.0.1", "0.0.0.0", "::1", "10.0.0.5", "box"])
def test_loopback_is_always_answered(bound: str, host: str) -> None:
    assert Hosts(bound).allow(host)


@pytest.mark.parametrize("host", FOREIGN)
def test_on_loopback_nothing_else_is(host: str) -> None:
    assert not Hosts("127.0.0.1").allow(host)


def test_the_bound_address_is_answered() -> None:
    assert Hosts("10.0.0.5").allow("10.0.0.5:8080")
    assert Hosts("box.lan").allow("BOX.lan.:8080")
    assert Hosts("fd00::5").allow("[fd00::5]:8080")
    assert not Hosts("10.0.0.5").allow("10.0.0.6")


@pytest.mark.parametrize("bound", ["0.0.0.0", "::", ""])
def test_everywhere_means_every_address_and_the_own_name_but_no_other(bound: str) -> None:
    hosts = Hosts(bound)
    assert hosts.allow("192.168.1.7:8080")
    assert hosts.allow("[fd00::7]:8080")
    assert hosts.allow(socket.gethostname())
    assert not hosts.allow("evil.example")
    assert not hosts.allow("")


def test_names_in_headers() -> None:
    assert name_in("[::1]:80") == "::1"
    assert name_in(" A.b.:80 ") == "a.b"


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
