"""HttpTransport and time: timeouts that mean different things, cancels that the node sees at once, and
readers and writers of different speed."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from sollol.core.endpoint import Endpoint
from sollol.core.value import replaced
from sollol.transport.base import Call, Fault, Timeouts, TransportFault
from sollol.transport.http import HttpTransport
from tests.transport.raw_server import OK, Peer, noting_when_the_client_leaves, on_both_loops, run, saying, serving

POST = Call("POST", "/api/chat", b'{"model":"m"}')
CHUNKS = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def now() -> float:
    return asyncio.get_running_loop().time()


def saying_slowly(*pieces: bytes, pause_s: float) -> Any:
    async def script(peer: Peer) -> None:
        while True:
            await peer.hear()
            for piece in pieces:
                await asyncio.sleep(pause_s)
                await peer.say(piece)

    return script


async def silent(peer: Peer) -> None:
    await peer.hear()
    await peer.client_left()


async def begins_and_stops(peer: Peer) -> None:
    await peer.hear()
    await peer.say(CHUNKS + b"2\r\nhi\r\n")
    await peer.client_left()


# -- timeouts ------------------------------------------------------------------------------------------


@on_both_loops
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("script", "timeouts", "fault", "words"),
    [
        (silent, Timeouts(9, 0.08, 9), Fault.FIRST_BYTE_TIMEOUT, r"did not begin to answer within 0\.08 s"),
        (begins_and_stops, Timeouts(9, 9, 0.08), Fault.IDLE_TIMEOUT, r"sent nothing within 0\.08 s inside its answer"),
    ],
)
def test_each_silence_has_its_own_fault(
    new_loop: Any, script: Any, timeouts: Any, fault: Any, words: Any, stream: bool
) -> None:
    async def main() -> None:
        async with serving(script) as (server, http):
            started = now()
            with pytest.raises(TransportFault, match=words) as caught:
                await (await http.send(server.node, replaced(POST, timeouts=timeouts, stream=stream))).read()
            assert caught.value.fault is fault
            assert 0.07 < now() - started < 0.3
            assert http.stats.open == 0
            await asyncio.wait_for(asyncio.gather(*server.tasks), 0.05)  # the node saw us leave

    run(new_loop, main())


@on_both_loops
def test_many_short_silences_are_no_long_one(new_loop: Any) -> None:
    async def main() -> None:
        script = saying_slowly(OK[:10], OK[10:20], OK[20:-1], OK[-1:], pause_s=0.04)
        async with serving(script) as (server, http):
            for _ in range(2):
                reply = await http.send(server.node, replaced(POST, timeouts=Timeouts(1, 0.1, 0.1)))
                assert await reply.read() == b"ok"
            assert http.stats.opened == 1

    run(new_loop, main())


@on_both_loops
def test_a_provisional_answer_is_not_the_first_byte(new_loop: Any) -> None:
    async def main() -> None:
        script = saying_slowly(b"HTTP/1.1 102 Processing\r\n\r\n", b"", b"", OK, pause_s=0.04)
        async with serving(script) as (server, http):
            reply = await http.send(server.node, replaced(POST, timeouts=Timeouts(1, 0.5, 0.06)))
            assert await reply.read() == b"ok"

    run(new_loop, main())


@on_both_loops
def test_none_is_no_bound_and_a_later_call_may_have_a_shorter_one(new_loop: Any) -> None:
    async def main() -> None:
        async with serving(saying(OK), max_idle_s=50) as (server, http):
            await http.send(server.node, replaced(POST, timeouts=Timeouts(None, None, None)))
        async with serving(saying_slowly(OK, pause_s=0.08)) as (server, http):
            await http.send(server.node, POST)  # the timer now stands far ahead
            with pytest.raises(TransportFault) as caught:
                await http.send(server.node, replaced(POST, timeouts=Timeouts(9, 0.02, 9)))
            assert caught.value.fault is Fault.FIRST_BYTE_TIMEOUT

    run(new_loop, main())


@on_both_loops
def test_a_stall_of_our_own_loop_is_not_the_nodes_silence(new_loop: Any) -> None:
    def answer_soon(listener: socket.socket) -> None:
        client, _ = listener.accept()
        with client:
            client.recv(65536)
            time.sleep(0.05)
            client.sendall(OK)
            client.recv(65536)

    async def main(port: int) -> bytes:
        http = HttpTransport()
        call = replaced(POST, timeouts=Timeouts(1, 0.2, 0.2))
        sending = asyncio.ensure_future(http.send(Endpoint("127.0.0.1", port), call))
        await asyncio.sleep(0.02)
        time.sleep(0.4)  # noqa: ASYNC251  the answer comes meanwhile, and its deadline passes
        try:
            return await (await sending).read()
        finally:
            await http.aclose()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=answer_soon, args=(listener,))
        thread.start()
        assert run(new_loop, main(listener.getsockname()[1])) == b"ok"
        thread.join()


@on_both_loops
def test_calls_do_not_leave_timers_behind(new_loop: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with serving(saying(OK)) as (server, http):
            await http.send(server.node, POST)
            (connection,) = http._hosts[server.node].connections
            await http.send(server.node, POST)
            timer = connection._timer
            for _ in range(20):
                await http.send(server.node, POST)
            assert connection._timer is timer

    run(new_loop, main())


# -- leaving -------------------------------------------------------------------------------------------


@on_both_loops
@pytest.mark.parametrize("stream", [False, True])
def test_cancelling_send_closes_at_once(new_loop: Any, stream: bool) -> None:
    async def main() -> None:
        script, left = noting_when_the_client_leaves(b"" if stream else CHUNKS + b"2\r\nhi\r\n")
        async with serving(script) as (server, http):
            sending = asyncio.ensure_future(http.send(server.node, replaced(POST, stream=stream)))
            await server.has_heard.wait()
            await asyncio.sleep(0.01)
            cancelled = now()
            sending.cancel()
            with pytest.raises(asyncio.CancelledError):
                await sending
            await asyncio.sleep(0.05)
            assert left[0] - cancelled < 0.05
            assert http.stats.open == 0

    run(new_loop, main())


@on_both_loops
@pytest.mark.parametrize("way", ["aclose", "forget", "break"])
def test_leaving_a_streamed_reply_closes_at_once(new_loop: Any, way: str) -> None:
    async def main() -> None:
        script, left = noting_when_the_client_leaves(CHUNKS + b"2\r\nhi\r\n")
        async with serving(script) as (server, http):
            reply = await http.send(server.node, replaced(POST, stream=True))
            if way == "break":
                async for piece in reply:
                    assert piece == b"hi"
                    break
            assert http.stats.open == 1
            gone = now()
            if way == "forget":
                del reply  # and nothing else refers to it: no need to wait for the collector
            else:
                await reply.aclose()
                await reply.aclose()
                with pytest.raises(TransportFault, match="closed from this side"):
                    await reply.read()
            await asyncio.sleep(0.05)
            assert left[0] - gone < 0.05
            assert http.stats.open == 0

    run(new_loop, main())


@on_both_loops
def test_a_cancel_that_comes_with_the_answer_harms_nobody_else(new_loop: Any) -> None:
    """The connection is back in the pool, or with another call, when the cancelled task gets its turn."""

    async def main() -> None:
        async with serving(saying(OK)) as (server, http):
            for stream in (False, True):
                for steps in range(40):
                    sending = asyncio.ensure_future(http.send(server.node, replaced(POST, stream=stream)))
                    for _ in range(steps // 4):
                        await asyncio.sleep(0)
                    if steps % 2:
                        await asyncio.sleep(0.001)
                    sending.cancel()
                    others = [http.send(server.node, POST) for _ in range(3)]
                    assert [await reply.read() for reply in await asyncio.gather(*others)] == [b"ok"] * 3
                    await asyncio.gather(sending, return_exceptions=True)
                    del sending
            await asyncio.sleep(0.01)
            assert http.stats.open == http.stats.idle

    run(new_loop, main())


@on_both_loops
def test_cancelling_the_wait_for_a_piece_keeps_the_reply(new_loop: Any) -> None:
    async def main() -> None:
        async with serving(saying_slowly(CHUNKS, b"2\r\nhi\r\n0\r\n\r\n", pause_s=0.06)) as (server, http):
            reply = await http.send(server.node, replaced(POST, stream=True))
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(reply.read(), 0.01)
            assert await reply.read() == b"hi"
            assert http.stats.idle == 1

    run(new_loop, main())


@on_both_loops
def test_two_readers_of_one_reply_are_an_error(new_loop: Any) -> None:
    async def main() -> None:
        async with serving(begins_and_stops) as (server, http):
            reply = await http.send(server.node, replaced(POST, stream=True))
            assert await anext(aiter(reply)) == b"hi"
            first = asyncio.ensure_future(reply.read())
            await asyncio.sleep(0)
            with pytest.raises(RuntimeError, match="two tasks read the same reply"):
                await reply.read()
            await reply.aclose()
            with pytest.raises(TransportFault):
                await first

    run(new_loop, main())


@on_both_loops
def test_cancelling_an_upload_closes_the_iterator_and_the_connection(new_loop: Any) -> None:
    closed = []

    async def endless() -> AsyncIterator[bytes]:
        try:
            while True:
                yield b"x" * 1000
                await asyncio.sleep(0.005)
        finally:
            closed.append(True)

    async def main() -> None:
        async with serving(silent) as (server, http):
            sending = asyncio.ensure_future(http.send(server.node, replaced(POST, body=endless())))
            await asyncio.sleep(0.05)
            sending.cancel()
            with pytest.raises(asyncio.CancelledError):
                await sending
            await asyncio.sleep(0.02)
            assert closed == [True]
            assert http.stats.open == 0

    run(new_loop, main())
