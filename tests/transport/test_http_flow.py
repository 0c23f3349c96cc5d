"""HttpTransport between a reader and a writer of different speed: memory stays bounded both ways."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from sollol.core.value import replaced
from sollol.transport.base import Call, Fault, Timeouts, TransportFault
from tests.transport.raw_server import OK, Peer, on_both_loops, run, serving

POST = Call("POST", "/api/chat", b'{"model":"m"}')
MIB = 1 << 20


@on_both_loops
def test_a_slow_reader_holds_the_node_back(new_loop: Any) -> None:
    total, piece, sent = 50 * MIB, b"x" * MIB, 0

    async def script(peer: Peer) -> None:
        nonlocal sent
        await peer.hear()
        await peer.say(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % total)
        for _ in range(total // MIB):
            await peer.say(piece)
            sent += MIB

    async def main() -> None:
        async with serving(script) as (server, http):
            call = replaced(POST, stream=True, timeouts=Timeouts(1, 1, 0.1))  # shorter than the reader's nap
            reply = await http.send(server.node, call)
            await asyncio.sleep(0.25)
            assert sent < 25 * MIB  # the kernel's buffers on both sides, and ours
            read = most = 0
            async for part in reply:
                read += len(part)
                most = max(most, len(part))
                if read < MIB:
                    await asyncio.sleep(0.001)
            assert read == total
            assert most <= 256 * 1024 + 256 * 1024  # the high-water mark, and what one read of the loop brings
            assert http.stats.idle == 1

    run(new_loop, main())


@on_both_loops
def test_a_slow_node_holds_an_upload_back(new_loop: Any) -> None:
    made = 0
    go_on = asyncio.Event()

    async def pieces() -> AsyncIterator[bytes]:
        nonlocal made
        for _ in range(320):
            made += 65_536
            yield b"x" * 65_536

    async def script(peer: Peer) -> None:
        await go_on.wait()
        await peer.hear()
        await peer.say(OK)

    async def main() -> None:
        async with serving(script) as (server, http):
            call = replaced(POST, body=pieces(), timeouts=Timeouts(1, 1, 5))
            sending = asyncio.ensure_future(http.send(server.node, call))
            await asyncio.sleep(0.15)
            assert 0 < made < 12 * MIB
            go_on.set()
            assert await (await sending).read() == b"ok"
            assert len(server.heard[0].body) == made == 320 * 65_536

    run(new_loop, main())


@on_both_loops
@pytest.mark.parametrize("kind", ["bytes", "pieces"])
def test_a_node_that_takes_nothing_is_given_up(new_loop: Any, kind: str) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(40):
            yield b"x" * MIB

    async def script(peer: Peer) -> None:
        await asyncio.sleep(9)

    async def main() -> None:
        async with serving(script) as (server, http):
            body = b"x" * (40 * MIB) if kind == "bytes" else pieces()
            with pytest.raises(TransportFault, match=r"took nothing of the request within 0\.1 s") as caught:
                await http.send(server.node, replaced(POST, body=body, timeouts=Timeouts(1, 1, 0.1)))
            assert caught.value.fault is Fault.IDLE_TIMEOUT

    run(new_loop, main())


@on_both_loops
def test_a_node_that_takes_bytes_slowly_is_not_given_up(new_loop: Any) -> None:
    async def script(peer: Peer) -> None:
        read = 0
        while read < 8 * MIB:
            read += len(await peer.reader.read(MIB))
            await asyncio.sleep(0.01)
        await peer.say(OK)

    async def main() -> None:
        async with serving(script) as (server, http):
            call = replaced(POST, body=b"x" * (8 * MIB), timeouts=Timeouts(1, 1, 0.1))
            assert await (await http.send(server.node, call)).read() == b"ok"

    run(new_loop, main())
