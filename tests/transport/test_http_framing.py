"""Where an answer ends: every framing, every cutting of the bytes, every way of stopping early.

The cuttings feed a Connection directly, without a socket, so that every piece arrives exactly as cut.
"""

from __future__ import annotations

import asyncio
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sollol.core.value import replaced
from sollol.transport.base import Call, Fault, Reply, TransportFault
from sollol.transport.client_connection import Connection, ConnectionLimits
from sollol.transport.outbox import Outbox
from tests.transport.raw_server import OK, on_both_loops, run, saying, saying_once, serving

POST = Call("POST", "/api/chat", b'{"model":"m"}')
URL = "http://n:1"
CHUNKED = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n"
    b'5\r\n{"a"1\r\n2;ext=1\r\n}\n\r\n0\r\nX-Trailer: t\r\n\r\n'
)
COUNTED = b"HTTP/1.1 404 Not Found\r\nContent-Length: 11\r\nX-A: 1\r\nX-Empty:\r\nx-a:  2  \r\n\r\n{not found}"
UNTIL_CLOSE = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\nto the very end"
INTERIM = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + COUNTED
EMPTY = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
NO_CONTENT = b"HTTP/1.1 204 No Content\r\n\r\n"
NOT_MODIFIED = b"HTTP/1.1 304 Not Modified\r\nContent-Length: 77\r\n\r\n"
FRAMED = {
    "chunked": (CHUNKED, 200, b'{"a"1}\n'),
    "counted": (COUNTED, 404, b"{not found}"),
    "interim": (INTERIM, 404, b"{not found}"),
    "empty": (EMPTY, 200, b""),
    "no content": (NO_CONTENT, 204, b""),
    "not modified": (NOT_MODIFIED, 304, b""),
}
ANSWERS = {**FRAMED, "until close": (UNTIL_CLOSE, 200, b"to the very end")}


class Socketless:
    """A transport and a pool that only remember."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.aborted = self.released = False

    def write(self, data: bytes) -> None:
        self.written.append(data)

    def abort(self) -> None:
        self.aborted = True

    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...

    def release(self, connection: Connection) -> bool:
        self.released = True
        return True

    def forget(self, connection: Connection) -> None: ...


async def outcome(
    pieces: list[bytes], *, stream: bool = False, method: str = "POST", before: bytes = b""
) -> tuple[Any, ...]:
    """What a caller sees of an answer that comes in these pieces and then ends: (status, headers, body,
    kept alive), or the fault. `before`: an answer that the connection has brought earlier."""
    fake = Socketless()
    loop = asyncio.get_running_loop()
    connection = Connection(loop, Outbox(loop), URL, fake, ConnectionLimits(65_536, 1000, 262_144, 9.0))
    connection.connection_made(fake)  # type: ignore[arg-type]
    if before:
        waiter = connection.start(b"head", b"", POST)
        connection.data_received(before)
        await waiter
        assert fake.released
        fake.released = False
    waiter = connection.start(b"head", b"", replaced(POST, stream=stream, method=method))
    for piece in pieces:
        if not (fake.released or fake.aborted):
            connection.data_received(piece)
    kept = fake.released and not fake.aborted
    connection.eof_received()
    connection.connection_lost(None)
    try:
        reply: Reply = await waiter
        return reply.status, reply.headers, await reply.read(), kept
    except TransportFault as fault:
        return (fault.fault,)


def cut_at(data: bytes, *places: int) -> list[bytes]:
    edges = [0, *sorted(places), len(data)]
    return [data[a:b] for a, b in pairwise(edges) if a < b]


@pytest.mark.parametrize("name", ANSWERS)
@pytest.mark.parametrize("stream", [False, True])
def test_every_framing_gives_the_same_wherever_it_is_cut(name: str, stream: bool) -> None:
    data, status, body = ANSWERS[name]

    async def main() -> None:
        whole = await outcome([data], stream=stream)
        assert (whole[0], whole[2], whole[3]) == (status, body, name != "until close")
        for place in range(1, len(data)):
            assert await outcome(cut_at(data, place), stream=stream) == whole
        assert await outcome([data[i : i + 1] for i in range(len(data))], stream=stream) == whole

    run(asyncio.new_event_loop, main())


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(ANSWERS)), st.lists(st.integers(0, 400), max_size=12), st.booleans())
def test_any_cutting_gives_the_same(name: str, places: list[int], stream: bool) -> None:
    data = ANSWERS[name][0]
    pieces = cut_at(data, *{place % len(data) for place in places})

    async def main() -> None:
        assert await outcome(pieces, stream=stream) == await outcome([data], stream=stream)

    run(asyncio.new_event_loop, main())


@settings(max_examples=60, deadline=None)
@given(st.lists(st.binary(min_size=1, max_size=300), max_size=3), st.data(), st.booleans())
def test_any_body_survives_any_chunking_and_cutting(parts: list[bytes], data: st.DataObject, stream: bool) -> None:
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts)
    wire = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"
    places = data.draw(st.lists(st.integers(1, len(wire) - 1), max_size=8))

    async def main() -> None:
        seen = await outcome(cut_at(wire, *places), stream=stream)
        assert (seen[2], seen[3]) == (b"".join(parts), True)

    run(asyncio.new_event_loop, main())


@pytest.mark.parametrize("name", FRAMED)
@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_ends_early_is_never_taken_for_a_whole_one(name: str, stream: bool) -> None:
    data = FRAMED[name][0]

    async def main() -> None:
        for size in range(len(data)):
            assert await outcome([data[:size]] if size else [], stream=stream) == (Fault.CUT,)

    run(asyncio.new_event_loop, main())


KNOWN = b"HTTP/1.1 200 OK\r\nContent-Type: a\r\nContent-Length: 11\r\nDate: now\r\n\r\n{the first}"


@settings(max_examples=600, deadline=None)
@given(
    st.integers(0, len(KNOWN)),
    st.integers(0, 3),
    st.binary(max_size=4) | st.sampled_from([b"0", b"1", b"\r", b"\n", b" ", b"\r\n\r\n", b"9" * 20, b"\t"]),
)
@example(KNOWN.index(b"11"), 0, b"0")
def test_a_head_that_was_seen_before_is_read_as_if_it_were_new(at: int, cut: int, put: bytes) -> None:
    data = KNOWN[:at] + put + KNOWN[at + cut :]

    async def main() -> None:
        assert await outcome([data], before=KNOWN) == await outcome([data])

    run(asyncio.new_event_loop, main())


@pytest.mark.parametrize("size", [0, 1, 9, 11, 100, 1000, 1001])
def test_a_head_that_was_seen_before_may_have_another_length(size: int) -> None:
    data = KNOWN[:-11].replace(b"11", b"%d" % size) + b"x" * size

    async def main() -> None:
        seen = await outcome([data], before=KNOWN)
        assert seen == await outcome([data])
        assert seen == ((Fault.TOO_LARGE,) if size > 1000 else (200, seen[1], b"x" * size, True))

    run(asyncio.new_event_loop, main())


def test_headers_are_lower_case_stripped_and_joined() -> None:
    async def main() -> None:
        seen = await outcome([COUNTED], stream=False)
        assert seen[1] == {"content-length": "11", "x-a": "1, 2", "x-empty": ""}
        seen = await outcome([CHUNKED], stream=False)
        assert "x-trailer" not in seen[1]
        assert "link" not in (await outcome([INTERIM], stream=True))[1]

    run(asyncio.new_event_loop, main())


@settings(max_examples=150, deadline=None)
@given(st.binary(min_size=1, max_size=200), st.booleans(), st.booleans())
def test_garbage_never_gets_past_as_anything_but_a_fault(data: bytes, after_head: bool, stream: bool) -> None:
    prefix = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" if after_head else b""

    async def main() -> None:
        seen = await outcome([prefix + data], stream=stream)
        assert seen[0] in (Fault.PROTOCOL, Fault.CUT) or (after_head and seen[0] == 200)

    run(asyncio.new_event_loop, main())


@pytest.mark.parametrize(
    "data",
    [
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"HTTP/1.1 2x0 OK\r\n\r\n",
        b"HTTP/1.1 099 Odd\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nab",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nBad Header\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nabc\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n",
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_is_not_http(data: bytes, stream: bool) -> None:
    async def main() -> None:
        async with serving(saying(data)) as (server, http):
            with pytest.raises(TransportFault, match=f"^{server.node.url} ") as caught:
                await (await http.send(server.node, replaced(POST, stream=stream))).read()
            assert caught.value.fault is Fault.PROTOCOL
            assert "\n" not in str(caught.value)
            assert http.stats.open == 0

    run(asyncio.new_event_loop, main())


@on_both_loops
@pytest.mark.parametrize("stream", [False, True])
def test_head_has_no_body_whatever_its_headers_say(new_loop: Any, stream: bool) -> None:
    counted = b"HTTP/1.1 200 OK\r\nContent-Length: 17\r\n\r\n"
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"

    async def main() -> None:
        async with serving(saying(counted, chunked, counted, OK)) as (server, http):
            for _ in range(3):
                reply = await http.send(server.node, Call("HEAD", "/", stream=stream))
                assert (reply.status, await reply.read()) == (200, b"")
            assert await (await http.send(server.node, POST)).read() == b"ok"
            assert http.stats.opened == 1
        async with serving(saying(counted + b"a body after all!")) as (server, http):
            reply = await http.send(server.node, Call("HEAD", "/", stream=stream))
            assert await reply.read() == b""
            await asyncio.sleep(0.01)
            assert http.stats.open == 0

    run(new_loop, main())


@on_both_loops
@pytest.mark.parametrize("name", ANSWERS)
@pytest.mark.parametrize("stream", [False, True])
def test_every_framing_over_a_socket(new_loop: Any, name: str, stream: bool) -> None:
    data, status, body = ANSWERS[name]

    async def main() -> None:
        script = saying_once(data) if name == "until close" else saying(data)
        async with serving(script) as (server, http):
            for _ in range(2):
                reply = await http.send(server.node, replaced(POST, stream=stream))
                assert (reply.status, b"".join([piece async for piece in reply])) == (status, body)
            assert http.stats.opened == (2 if name == "until close" else 1)

    run(new_loop, main())


@on_both_loops
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("how", ["close", "reset"])
def test_a_cut_over_a_socket(new_loop: Any, stream: bool, how: str) -> None:
    async def script(peer: Any) -> None:
        await peer.hear()
        await peer.say(CHUNKED[:-30])
        await asyncio.sleep(0.01)
        peer.close() if how == "close" else peer.reset()

    async def main() -> None:
        async with serving(script) as (server, http):
            with pytest.raises(TransportFault, match="inside its answer, after") as caught:
                await (await http.send(server.node, replaced(POST, stream=stream))).read()
            assert caught.value.fault is Fault.CUT
            assert http.stats[:4] == (1, 1, 0, 0)

    run(new_loop, main())


def big_head(size: int) -> bytes:
    return b"HTTP/1.1 200 OK\r\nX: " + b"x" * size + b"\r\nContent-Length: 0\r\n\r\n"


@pytest.mark.parametrize(
    "data",
    [
        big_head(70_000),
        big_head(70_000)[:-4],
        b"HTTP/1.1 200 " + b"x" * 200_000,
        b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 40_000,
        b"HTTP/1.1 103 Hint\r\nA: b\r\n\r\n" * 40_000,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n" + b"A: b\r\n" * 40_000,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nA: " + b"x" * 300_000,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;" + b"x" * 300_000,
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_head_without_end(data: bytes, stream: bool) -> None:
    async def main() -> None:
        async with serving(saying(data)) as (server, http):
            with pytest.raises(TransportFault, match="sent a head of over 65536 bytes") as caught:
                await (await http.send(server.node, replaced(POST, stream=stream))).read()
            assert caught.value.fault is Fault.TOO_LARGE
            assert http.stats.open == 0

    run(asyncio.new_event_loop, main())


@on_both_loops
@pytest.mark.parametrize("stream", [False, True])
def test_a_body_over_the_bound(new_loop: Any, stream: bool) -> None:
    counted = b"HTTP/1.1 200 OK\r\nContent-Length: 1001\r\n\r\n" + b"x" * 1001
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"64\r\n%b\r\n" % (b"x" * 100) * 11
    just = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + b"x" * 1000

    async def main() -> None:
        for data in (counted, chunked):
            async with serving(saying(data), max_body_bytes=1000) as (server, http):
                with pytest.raises(TransportFault, match="sent a body of over 1000 bytes") as caught:
                    await (await http.send(server.node, replaced(POST, stream=stream))).read()
                assert caught.value.fault is Fault.TOO_LARGE
        async with serving(saying(just), max_body_bytes=1000) as (server, http):
            assert len(await (await http.send(server.node, replaced(POST, stream=stream))).read()) == 1000

    run(new_loop, main())


def test_iterating_a_streamed_answer_has_no_bound() -> None:
    async def main() -> None:
        body = b"x" * 100_000
        answer = b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + body
        async with serving(saying(answer), max_body_bytes=1000) as (server, http):
            reply = await http.send(server.node, replaced(POST, stream=True))
            assert b"".join([piece async for piece in reply]) == body

    run(asyncio.new_event_loop, main())
