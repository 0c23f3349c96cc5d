"""A host with several addresses: the first that answers is used, and remembered (RFC 8305)."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from sollol.core.endpoint import Endpoint
from sollol.transport import dialing
from sollol.transport.base import Call, Fault, Timeouts, TransportFault
from sollol.transport.http import HttpTransport
from tests.transport.raw_server import OK, on_both_loops, run, saying, serving

GET = Call("GET", "/api/tags", timeouts=Timeouts(5.0, 5.0, 5.0))


@contextmanager
def silent(family: socket.AddressFamily, host: str, port: int) -> Iterator[None]:
    """An address that drops whatever wants to connect: the line of those who wait there is full."""
    with socket.socket(family) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind((host, port))
        server.listen(0)
        waiting = [socket.socket(family) for _ in range(4)]
        for each in waiting:
            each.setblocking(False)
            each.connect_ex((host, port))
        try:
            yield
        finally:
            for each in waiting:
                each.close()


def resolving(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> list[str]:
    """The name `n` has these addresses; the hosts that were looked up."""
    asked: list[str] = []

    def look_up(host: str, *_: object, **__: object) -> list[object]:
        asked.append(host)
        return [(0, 0, 0, "", (address, 0, 0, 0) if ":" in address else (address, 0)) for address in addresses]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    return asked


@on_both_loops
def test_a_dead_ipv6_address_beside_a_good_ipv4_one(new_loop: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    resolving(monkeypatch, "::1", "127.0.0.1")

    async def main() -> None:
        async with serving(saying(OK)) as (server, _):
            port = server.node.port
            with silent(socket.AF_INET6, "::1", port):
                http = HttpTransport(max_idle_per_node=0)
                took = []
                for _ in range(2):
                    began = asyncio.get_running_loop().time()
                    reply = await http.send(Endpoint("n", port), GET)
                    took.append(asyncio.get_running_loop().time() - began)
                    assert reply.status == 200
                assert took[0] > 0.2  # the dead family was tried first; the second time it is not
                assert took[1] < took[0]
                await http.aclose()

    run(new_loop, main())


@on_both_loops
def test_a_refusal_is_not_waited_for(new_loop: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    resolving(monkeypatch, "::1", "127.0.0.2", "127.0.0.1")
    monkeypatch.setattr(dialing, "STAGGER_S", 30.0)

    async def main() -> None:
        async with serving(saying(OK)) as (server, _):
            http = HttpTransport()
            assert (await http.send(Endpoint("n", server.node.port), GET)).status == 200
            assert http.stats.open == 1
            await http.aclose()

    run(new_loop, main())


@on_both_loops
def test_all_addresses_dead_is_one_fault_within_the_time(new_loop: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = resolving(monkeypatch, "::1", "127.0.0.1")

    async def main() -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        http = HttpTransport()
        with pytest.raises(TransportFault, match=r"n:\d+ refused the connection") as caught:
            await http.send(Endpoint("n", port), GET)
        assert caught.value.fault is Fault.CONNECT
        short = Call("GET", "/", timeouts=Timeouts(0.6, 5.0, 5.0))
        with (
            silent(socket.AF_INET6, "::1", port),
            silent(socket.AF_INET, "127.0.0.1", port),
            pytest.raises(TransportFault, match=r"did not accept a connection within 0\.6 s") as caught,
        ):
            await http.send(Endpoint("n", port), short)
        assert caught.value.fault is Fault.CONNECT_TIMEOUT
        assert asked == ["n", "n"]  # looked up anew, because nothing could be reached
        await http.aclose()

    run(new_loop, main())


def test_families_take_turns() -> None:
    given = ["2001:db8::1", "2001:db8::2", "2001:db8::3", "10.0.0.1"]
    assert dialing.alternating(given) == ["2001:db8::1", "10.0.0.1", "2001:db8::2", "2001:db8::3"]
    assert dialing.alternating(["10.0.0.1", "::1"]) == ["10.0.0.1", "::1"]
    assert dialing.alternating([]) == []
