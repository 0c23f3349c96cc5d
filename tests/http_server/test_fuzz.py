"""The request parser under arbitrary bytes: it never raises, never hangs, and hands on only whole requests.

Run longer with `HYPOTHESIS_PROFILE`-independent settings: `pytest tests/http_server/test_fuzz.py --hypothesis-seed=N`.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sollol.gateway.routes.table import Route
from sollol.gateway.settings import Limits
from sollol.http_server import connection as wire_module
from sollol.http_server.connection import UNLIKE, ClientConnection
from sollol.http_server.intake import Intake
from sollol.http_server.places import Line, Places
from sollol.http_server.request import Request
from sollol.transport.head_cache import CachedHead, cache_head
from sollol.transport.outbox import Outbox
from tests.marks import plain_only

VALID = [
    b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    b'POST /api/chat HTTP/1.1\r\nHost: a\r\nContent-Length: 13\r\n\r\n{"model":"m"}',
    b'POST /api/chat HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n6\r\n{"mode\r\n7\r\nl":"m"}\r\n0\r\n\r\n',
    b"HEAD /api/tags HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
    b"POST /x HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\n1",
]
PIECES = [
    b"\r\n", b"\r\n\r\n", b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n", b"Host: b\r\n", b" ",
    b"\x00", b"0\r\n\r\n", b"GET ", b"HTTP/1.1", b"Expect: x\r\n", b"Upgrade: h2c\r\nConnection: upgrade\r\n",
    b"ffffffffffffffff\r\n", b"\xff", b"\t",
]  # fmt: skip


class Wire:
    """A transport that keeps what is written."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.closed = False

    def write(self, data: bytes) -> None:
        assert not self.closed
        self.written.append(data)

    def close(self) -> None:
        self.closed = True

    abort = close

    def write_eof(self) -> None: ...
    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...
    def get_write_buffer_size(self) -> int:
        return 0


class Echo:
    """A gateway that answers every request at once (or, `crowded`, when the turn ends), and remembers it."""

    def __init__(self, loop: asyncio.AbstractEventLoop, crowded: bool = False) -> None:
        self.requests: list[Request] = []
        self.limits = Limits(max_body_mb=1, max_head_kb=1)
        self.places = Places(10)
        self.line = Line(loop)
        self.intake = Intake(self.limits)
        self.idle_s = 60.0
        self.outbox = Outbox(loop)
        self.is_crowded = crowded
        self.draining = False
        self.common = b"Date: now\r\n"

    def proves(self, request: Request) -> bool:
        return True

    def may_discard(self, size: int) -> bool:
        return True

    def decide(self, request: Request) -> None:
        request.route = Route()

    def settled(self, request: Request) -> Route | None:
        return Route() if request.path == "/api/chat" else None

    def handle(self, request: Request) -> None:
        self.requests.append(request)
        request.answer(200, b"{}")

    def admit(self, request: Request) -> None:
        self.handle(request)

    def error_body(self, path: str, status: int, message: str) -> bytes:
        return message.encode()


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    made = asyncio.new_event_loop()
    yield made
    made.close()


def feed(loop: asyncio.AbstractEventLoop, data: bytes, cuts: list[int], crowded: bool = False) -> tuple[Echo, Wire]:
    gateway, wire = Echo(loop, crowded), Wire()
    connection = ClientConnection(gateway, loop)  # type: ignore[arg-type]
    connection.connection_made(wire)  # type: ignore[arg-type]
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    for start, end in pairwise(places):
        if wire.closed:
            break
        connection.data_received(data[start:end])
        for _ in range(10):  # requests sent ahead are taken in later turns
            loop.run_until_complete(asyncio.sleep(0))
    connection.connection_lost(None)
    return gateway, wire


def mutated() -> st.SearchStrategy[bytes]:
    """Valid requests with pieces put in, taken out and doubled; and plain noise."""

    @st.composite
    def build(draw: st.DrawFn) -> bytes:
        data = b"".join(draw(st.lists(st.sampled_from(VALID), min_size=1, max_size=3)))
        for _ in range(draw(st.integers(0, 4))):
            at = draw(st.integers(0, len(data)))
            change = draw(st.integers(0, 2))
            if change == 0:
                data = data[:at] + draw(st.sampled_from(PIECES) | st.binary(max_size=8)) + data[at:]
            elif change == 1:
                data = data[:at] + data[at + draw(st.integers(1, 12)) :]
            else:
                data = data[:at] + data[max(0, at - draw(st.integers(1, 20))) :]
        return data

    return build() | st.binary(max_size=400)


@plain_only
@given(data=mutated(), cuts=st.lists(st.integers(0, 1000), max_size=8), crowded=st.booleans())
@settings(max_examples=600, deadline=None)
def test_only_whole_requests_are_handed_on(
    loop: asyncio.AbstractEventLoop, data: bytes, cuts: list[int], crowded: bool
) -> None:
    gateway, wire = feed(loop, data, cuts, crowded)
    for request in gateway.requests:
        assert request.path.startswith("/")
        assert request.version in ("1.0", "1.1")
        assert request.version == "1.0" or request.headers[b"host"]
        length = request.headers.get(b"content-length")
        assert length is None or int(length) == len(request.body)
        assert length is None or b"transfer-encoding" not in request.headers
    answers = len(re.findall(rb"HTTP/1\.1 \d", b"".join(wire.written)))
    assert answers >= len(gateway.requests)


KNOWN = VALID[1]


@plain_only
@given(
    at=st.integers(0, len(KNOWN)),
    cut=st.integers(0, 3),
    put=st.binary(max_size=4) | st.sampled_from([*PIECES, b"0", b"1", b"3", b"9" * 20, KNOWN]),
    crowded=st.booleans(),
)
@settings(max_examples=600, deadline=None)
def test_a_head_that_was_seen_before_is_read_as_if_it_were_new(
    loop: asyncio.AbstractEventLoop, at: int, cut: int, put: bytes, crowded: bool
) -> None:
    data = KNOWN[:at] + put + KNOWN[at + cut :]
    fresh, fresh_wire = feed(loop, data, [])
    second, wire = feed(loop, KNOWN + data, [len(KNOWN)], crowded)

    def told(requests: list[Request]) -> list[tuple[Any, ...]]:
        without = [{name: value for name, value in r.headers.items() if name != b"content-length"} for r in requests]
        return [
            (r.method, r.target, r.version, r.body, r.keep_alive, headers)
            for r, headers in zip(requests, without, strict=True)
        ]

    assert told(second.requests[1:]) == told(fresh.requests)
    assert wire.closed == fresh_wire.closed
    assert wire.written[1:] == fresh_wire.written


@plain_only
def test_a_client_whose_heads_all_differ_is_soon_not_remembered(
    loop: asyncio.AbstractEventLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    learned: list[bytes] = []

    def learn(data: bytes) -> CachedHead | None:
        learned.append(data)
        return cache_head(data)

    monkeypatch.setattr(wire_module, "cache_head", learn)
    gateway, wire = Echo(loop), Wire()
    connection = ClientConnection(gateway, loop)  # type: ignore[arg-type]
    connection.connection_made(wire)  # type: ignore[arg-type]
    for number in range(10):
        connection.data_received(KNOWN.replace(b"Host: a", b"Host: a\r\nX-Request-Id: %d" % number))
    assert [request.headers[b"x-request-id"] for request in gateway.requests] == [b"%d" % n for n in range(10)]
    assert len(learned) == UNLIKE


@plain_only
@given(order=st.lists(st.sampled_from(range(4)), max_size=6), cuts=st.lists(st.integers(0, 3000), max_size=20))
@settings(max_examples=200, deadline=None)
def test_valid_requests_arrive_whole_in_any_cutting(
    loop: asyncio.AbstractEventLoop, order: list[int], cuts: list[int]
) -> None:
    gateway, _ = feed(loop, b"".join(VALID[place] for place in order), cuts)
    assert [request.path for request in gateway.requests] == [
        ["/", "/api/chat", "/api/chat", "/api/tags"][place] for place in order
    ]
    assert all(request.body == b'{"model":"m"}' for request in gateway.requests if request.method == "POST")
