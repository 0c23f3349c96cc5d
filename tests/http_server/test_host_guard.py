"""Hosts that only this machine or its network can have are accepted; those of other sites are not."""

from __future__ import annotations

import socket

import pytest

from sollol.http_server.host_guard import HostGuard, is_loopback, name_in

BOUND = ["127.0.0.1", "0.0.0.0", "::", "", "::1", "10.0.0.5", "box"]
OWN = ["127.0.0.1", "127.0.0.1:8080", "127.8.9.1", "localhost", "LOCALHOST:1", "app.localhost", "[::1]:8080"]
OWN += ["192.168.1.7:8080", "[fd00::7]:8080", "box.local:80", "ollama.internal", socket.gethostname()]
FOREIGN = ["", ":8080", "evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "::1", "local", "a.b:80"]


@pytest.mark.parametrize("bound", BOUND)
@pytest.mark.parametrize("host", OWN)
def test_addresses_and_local_names_are_accepted(bound: str, host: str) -> None:
    assert HostGuard(bound).allows(host.encode())


@pytest.mark.parametrize("bound", BOUND)
@pytest.mark.parametrize("host", FOREIGN)
def test_names_of_other_sites_are_refused(bound: str, host: str) -> None:
    assert not HostGuard(bound).allows(host.encode())


def test_the_bound_name_and_those_of_the_settings_are_accepted() -> None:
    assert HostGuard("box.lan").allows(b"BOX.lan.:8080")
    guard = HostGuard("127.0.0.1", ("llm.example.org", "*.Example.net"))
    assert all(guard.allows(host) for host in (b"llm.example.org:1", b"a.b.example.net"))
    assert not any(guard.allows(host) for host in (b"example.net", b"example.org"))


def test_http_1_0_may_have_no_host() -> None:
    assert HostGuard("127.0.0.1").allows(None)


def test_names_in_headers() -> None:
    assert name_in("[::1]:80") == "::1"
    assert name_in(" A.b.:80 ") == "a.b"


@pytest.mark.parametrize(
    ("host", "expected"), [("127.9.9.9", True), ("::1", True), ("localhost", True), ("box", False)]
)
def test_loopback(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected
