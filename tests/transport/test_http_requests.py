"""What HttpTransport puts on the wire, and what it refuses to."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from typing import Any

import pytest

from sollol.core.endpoint import Endpoint, parse_endpoint
from sollol.core.value import replaced
from sollol.errors import BadInput
from sollol.transport.base import Call
from sollol.transport.http import HttpTransport
from sollol.transport.request_heads import HEADS_PER_NODE, RequestHeads
from tests.transport.raw_server import OK, Peer, on_both_loops, run, saying, serving

POST = Call("POST", "/api/chat", b'{"model":"m"}')


@on_both_loops
def test_a_request_with_a_body(new_loop: Any) -> None:
    async def main() -> None:
        async with serving(saying(OK)) as (server, http):
            node = server.node._replace(prefix="/team-a", auth="ann:s3cret")
            call = Call("POST", "/api/chat?x=1", b"{}", headers=(("X-Trace", "7"), ("User-Agent", "mine")))
            assert await (await http.send(node, call)).read() == b"ok"
            request = server.heard[0]
            assert request.line == "POST /team-a/api/chat?x=1 HTTP/1.1"
            assert request.body == b"{}"
            assert request.headers == {
                "host": f"127.0.0.1:{node.port}",
                "user-agent": "mine",
                "accept": "*/*",
                "authorization": "Basic " + base64.b64encode(b"ann:s3cret").decode(),
                "content-type": "application/json",
                "content-length": "2",
                "x-trace": "7",
            }

    run(new_loop, main())


@on_both_loops
@pytest.mark.parametrize("size", [1, 65_536, 65_537, 5_000_000])
def test_bodies_of_every_size_arrive(new_loop: Any, size: int) -> None:
    async def main() -> None:
        async with serving(saying(OK)) as (server, http):
            await http.send(server.node, replaced(POST, body=b"x" * size))
            await http.send(server.node, replaced(POST, body=b"y" * size))
            assert [request.body for request in server.heard] == [b"x" * size, b"y" * size]
            assert http.stats.opened == 1

    run(new_loop, main())


def test_an_empty_body_has_a_length_only_where_a_body_is_expected() -> None:
    heads = RequestHeads(Endpoint("n"))
    assert b"Content-" not in heads.for_call(Call("GET", "/api/tags"))
    assert heads.for_call(Call("POST", "/api/signout")).endswith(b"Content-Length: 0\r\n\r\n")


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("http://10.0.0.5", "10.0.0.5"),
        ("https://gate.example", "gate.example"),
        ("https://gate.example:80", "gate.example:80"),
        ("gate.example", "gate.example:11434"),
        ("[::1]:11435", "[::1]:11435"),
        ("http://[fe80::1%25eth0]:80/x", "[fe80::1]"),
    ],
)
def test_the_host_header_is_the_nodes_own_name(url: str, host: str) -> None:
    node = parse_endpoint(url) if "%" not in url else Endpoint("fe80::1%eth0", 80)
    assert f"\r\nHost: {host}\r\n".encode() in RequestHeads(node).for_call(Call("GET", "/"))


@pytest.mark.parametrize(
    "call",
    [
        replaced(POST, headers=(("X", "a\r\nEvil: 1"),)),
        replaced(POST, headers=(("X", "a\nb"),)),
        replaced(POST, headers=(("X", "a\x00b"),)),
        replaced(POST, headers=(("X", "smile \N{GRINNING FACE}"),)),
        replaced(POST, headers=(("X\r\nEvil", "1"),)),
        replaced(POST, headers=(("X Y", "1"),)),
        replaced(POST, headers=(("", "1"),)),
        replaced(POST, headers=(("Content-Length", "9"),)),
        replaced(POST, headers=(("transfer-encoding", "chunked"),)),
        replaced(POST, headers=(("HOST", "other"),)),
        replaced(POST, content_type="text/plain\r\nEvil: 1"),
        replaced(POST, method="GET / HTTP/1.1\r\nX:"),
        replaced(POST, path="/a b"),
        replaced(POST, path="/a\r\nEvil: 1"),
        replaced(POST, path="api/tags"),
        replaced(POST, path="/\N{GRINNING FACE}"),
    ],
)
def test_what_could_become_another_request_is_refused(call: Call) -> None:
    async def main() -> None:
        async with serving(saying(OK)) as (server, http):
            with pytest.raises(BadInput, match=r"call to http://127\.0\.0\.1"):
                await http.send(server.node, call)
            assert http.stats.opened == 0

    run(asyncio.new_event_loop, main())


def test_a_body_that_is_neither_bytes_nor_pieces_is_refused() -> None:
    async def main() -> None:
        with pytest.raises(BadInput, match="body is str"):
            await HttpTransport().send(Endpoint("127.0.0.1", 9), replaced(POST, body="text"))

    run(asyncio.new_event_loop, main())


def test_request_heads_are_kept_and_bounded() -> None:
    heads = RequestHeads(Endpoint("n"))
    assert heads.for_call(POST) is heads.for_call(replaced(POST, body=b"other"))
    for number in range(3 * HEADS_PER_NODE):
        heads.for_call(replaced(POST, path=f"/{number}"))
    assert len(heads._cache) <= HEADS_PER_NODE


# -- bodies that are still being made --------------------------------------------------------------------


async def pieces_of(*pieces: bytes, pause_s: float = 0.0) -> AsyncIterator[bytes]:
    for piece in pieces:
        await asyncio.sleep(pause_s)
        yield piece


@on_both_loops
def test_an_iterator_is_sent_in_chunks_always_on_a_fresh_connection(new_loop: Any) -> None:
    async def main() -> None:
        async with serving(saying(OK)) as (server, http):
            await http.send(server.node, POST)
            call = Call("POST", "/api/blobs/x", pieces_of(b"one", b"", b"two" * 9), "application/octet-stream")
            assert await (await http.send(server.node, call)).read() == b"ok"
            assert server.heard[1].body == b"one" + b"two" * 9
            assert "content-length" not in server.heard[1].headers
            assert http.stats == (2, 2, 0, 2, 2)  # and it can be used again afterwards

    run(new_loop, main())


@on_both_loops
def test_an_iterator_that_fails_gives_its_own_error_and_closes(new_loop: Any) -> None:
    async def failing() -> AsyncIterator[bytes]:
        yield b"one"
        raise KeyError("mine")

    async def main() -> None:
        async with serving(saying(OK)) as (server, http):
            with pytest.raises(KeyError, match="mine"):
                await http.send(server.node, replaced(POST, body=failing()))
            assert http.stats.open == 0
            assert server.heard == []

    run(new_loop, main())


@on_both_loops
def test_an_answer_before_the_end_of_the_request_stops_the_upload(new_loop: Any) -> None:
    closed = []

    async def endless() -> AsyncIterator[bytes]:
        try:
            while True:
                yield b"x"
                await asyncio.sleep(0.005)
        finally:
            closed.append(True)

    async def refusing(peer: Peer) -> None:
        await peer.reader.readuntil(b"\r\n\r\n")
        await peer.say(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno")
        await peer.client_left()

    async def main() -> None:
        async with serving(refusing) as (server, http):
            for stream in (False, True):
                reply = await http.send(server.node, replaced(POST, body=endless(), stream=stream))
                assert (reply.status, await reply.read()) == (413, b"no")
                assert http.stats.open == 0
            await asyncio.sleep(0.02)
            assert closed == [True, True]

    run(new_loop, main())
