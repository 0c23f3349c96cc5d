"""HttpTransport and time: timeouts that mean different things, cancels that the node sees at once, and
readers and writers of different speed."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
import time
from collections.abc import AsyncIterator

import pytest
import trustme

from sollol.core.endpoint import Endpoint
from sollol.nodes.http import HttpTransport
from sollol.nodes.transport import Call, Fault, Timeouts, TransportFault
from tests.nodes.raw_server import OK, Peer, on_both_loops, run, saying, serving

POST = Call("POST", "/api/chat", b'{"model":"m"}')
CHUNKS = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
MIB = 1 << 20


def now() -> float:
    return asyncio.get_running_loop().time()


def saying_slowly(*pieces: bytes, pause_s: float):
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
        (silent, Timeouts(9, 0.08, 9), Fault.FIRST_BYTE_TIMEOUT, "did not begin to answer within 0.08 s"),
        (begins_and_stops, Timeouts(9, 9, 0.08), Fault.IDLE_TIMEOUT, "fell silent for 0.08 s"),
    ],
)
def test_each_silence_has_its_own_fault(new_loop, script, timeouts, fault, words, stream: bool) -> None:
    async def main() -> None:
        async with serving(script) as (server, http):
            started = now()
            with pytest.raises(TransportFault, match=words) as caught:
                await (await http.send(server.node, POST._replace(timeouts=timeouts, stream=stream))).read()
            assert caught.value.fault is fault
            assert 0.07 < now() - started < 0.3
            assert http.stats.open == 0
            await asyncio.wait_for(asyncio.gather(*server.tasks), 0.05)  # the node saw us leave

    run(new_loop, main())


@on_both_loops
def test_many_short_silences_are_no_long_one(new_loop) -> None:
    async def main() -> None:
        script = saying_slowly(OK[:10], OK[10:20], OK[20:-1], OK[-1:], pause_s=0.04)
        async with serving(script) as (server, http):
            for _ in range(2):
                reply = await http.send(server.node, POST._replace(timeouts=Timeouts(1, 0.1, 0.1)))
                assert await reply.read() == b"ok"
            assert http.stats.opened == 1

    run(new_loop, main())


@on_both_loops
def test_a_provisional_answer_is_not_the_first_byte(new_loop) -> None:
    async def main() -> None:
        script = saying_slowly(b"HTTP/1.1 102 Processing\r\n\r\n", b"", b"", OK, pause_s=0.04)
        async with serving(script) as (server, http):
            reply = await http.send(server.node, POST._replace(timeouts=Timeouts(1, 0.5, 0.06)))
            assert await reply.read() == b"ok"

    run(new_loop, main())


@on_both_loops
def test_none_is_no_bound_and_a_later_call_may_have_a_shorter_one(new_loop) -> None:
    async def main() -> None:
        async with serving(saying(OK), max_idle_s=50) as (server, http):
            await http.send(server.node, POST._replace(timeouts=Timeouts(None, None, None)))
        async with serving(saying_slowly(OK, pause_s=0.08)) as (server, http):
            await http.send(server.node, POST)  # the timer now stands far ahead
            with pytest.raises(TransportFault) as caught:
                await http.send(server.node, POST._replace(timeouts=Timeouts(9, 0.02, 9)))
            assert caught.value.fault is Fault.FIRST_BYTE_TIMEOUT

    run(new_loop, main())


@on_both_loops
def test_a_stall_of_our_own_loop_is_not_the_nodes_silence(new_loop) -> None:
    def answer_soon(listener: socket.socket) -> None:
        client, _ = listener.accept()
        with client:
            client.recv(65536)
            time.sleep(0.05)
            client.sendall(OK)
            client.recv(65536)

    async def main(port: int) -> bytes:
        http = HttpTransport()
        call = POST._replace(timeouts=Timeouts(1, 0.2, 0.2))
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
def test_calls_do_not_leave_timers_behind(new_loop, monkeypatch: pytest.MonkeyPatch) -> None:
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


def noting_when_the_client_leaves(first: bytes):
    left: list[float] = []

    async def script(peer: Peer) -> None:
        await peer.hear()
        await peer.say(first)
        left.append(await peer.client_left())

    return script, left


@on_both_loops
@pytest.mark.parametrize("stream", [False, True])
def test_cancelling_send_closes_at_once(new_loop, stream: bool) -> None:
    async def main() -> None:
        script, left = noting_when_the_client_leaves(b"" if stream else CHUNKS + b"2\r\nhi\r\n")
        async with serving(script) as (server, http):
            sending = asyncio.ensure_future(http.send(server.node, POST._replace(stream=stream)))
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
def test_leaving_a_streamed_reply_closes_at_once(new_loop, way: str) -> None:
    async def main() -> None:
        script, left = noting_when_the_client_leaves(CHUNKS + b"2\r\nhi\r\n")
        async with serving(script) as (server, http):
            reply = await http.send(server.node, POST._replace(stream=True))
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
def test_a_cancel_that_comes_with_the_answer_harms_nobody_else(new_loop) -> None:
    """The connection is back in the pool, or with another call, when the cancelled task gets its turn."""

    async def main() -> None:
        async with serving(saying(OK)) as (server, http):
            for stream in (False, True):
                for steps in range(40):
                    sending = asyncio.ensure_future(http.send(server.node, POST._replace(stream=stream)))
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
def test_cancelling_the_wait_for_a_piece_keeps_the_reply(new_loop) -> None:
    async def main() -> None:
        async with serving(saying_slowly(CHUNKS, b"2\r\nhi\r\n0\r\n\r\n", pause_s=0.06)) as (server, http):
            reply = await http.send(server.node, POST._replace(stream=True))
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(reply.read(), 0.01)
            assert await reply.read() == b"hi"
            assert http.stats.idle == 1

    run(new_loop, main())


@on_both_loops
def test_two_readers_of_one_reply_are_an_error(new_loop) -> None:
    async def main() -> None:
        async with serving(begins_and_stops) as (server, http):
            reply = await http.send(server.node, POST._replace(stream=True))
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
def test_cancelling_an_upload_closes_the_iterator_and_the_connection(new_loop) -> None:
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
            sending = asyncio.ensure_future(http.send(server.node, POST._replace(body=endless())))
            await asyncio.sleep(0.05)
            sending.cancel()
            with pytest.raises(asyncio.CancelledError):
                await sending
            await asyncio.sleep(0.02)
            assert closed == [True]
            assert http.stats.open == 0

    run(new_loop, main())


# -- speed ---------------------------------------------------------------------------------------------


@on_both_loops
def test_a_slow_reader_holds_the_node_back(new_loop) -> None:
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
            call = POST._replace(stream=True, timeouts=Timeouts(1, 1, 0.1))  # shorter than the reader's nap
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
def test_a_slow_node_holds_an_upload_back(new_loop) -> None:
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
            call = POST._replace(body=pieces(), timeouts=Timeouts(1, 1, 5))
            sending = asyncio.ensure_future(http.send(server.node, call))
            await asyncio.sleep(0.15)
            assert 0 < made < 12 * MIB
            go_on.set()
            assert await (await sending).read() == b"ok"
            assert len(server.heard[0].body) == made == 320 * 65_536

    run(new_loop, main())


@on_both_loops
@pytest.mark.parametrize("kind", ["bytes", "pieces"])
def test_a_node_that_takes_nothing_is_given_up(new_loop, kind: str) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(40):
            yield b"x" * MIB

    async def script(peer: Peer) -> None:
        await asyncio.sleep(9)

    async def main() -> None:
        async with serving(script) as (server, http):
            body = b"x" * (40 * MIB) if kind == "bytes" else pieces()
            with pytest.raises(TransportFault, match=r"took no bytes of the request for 0\.1 s") as caught:
                await http.send(server.node, POST._replace(body=body, timeouts=Timeouts(1, 1, 0.1)))
            assert caught.value.fault is Fault.IDLE_TIMEOUT

    run(new_loop, main())


@on_both_loops
def test_a_node_that_takes_bytes_slowly_is_not_given_up(new_loop) -> None:
    async def script(peer: Peer) -> None:
        read = 0
        while read < 16 * MIB:
            read += len(await peer.reader.read(MIB))
            await asyncio.sleep(0.01)
        await peer.say(OK)

    async def main() -> None:
        async with serving(script) as (server, http):
            call = POST._replace(body=b"x" * (16 * MIB), timeouts=Timeouts(1, 1, 0.1))
            assert await (await http.send(server.node, call)).read() == b"ok"

    run(new_loop, main())


# -- TLS -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def server_tls(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1", "localhost").configure_cert(context)
    return context


@on_both_loops
def test_https(new_loop, authority: trustme.CA, server_tls: ssl.SSLContext) -> None:
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    names: list[str | None] = []
    server_tls.sni_callback = lambda _socket, name, _context: names.append(name)
    body = b"x" * (3 * MIB)
    big = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)

    async def main() -> None:
        async with serving(saying(OK, big), tls=server_tls, ssl_context=trusting) as (server, http):
            node = server.node._replace(host="localhost")
            assert await (await http.send(node, POST)).read() == b"ok"
            assert await (await http.send(node, POST._replace(body=body))).read() == body
            assert await (await http.send(node, POST._replace(stream=True))).read() == body
            assert (http.stats.opened, http.stats.reused) == (1, 2)
            assert server.heard[1].body == body
            assert server.heard[0].headers["host"] == f"localhost:{node.port}"
            assert names == ["localhost"]
            await http.send(server.node, POST)  # by address

    run(new_loop, main())


@on_both_loops
def test_leaving_over_tls_closes_at_once(new_loop, authority: trustme.CA, server_tls: ssl.SSLContext) -> None:
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)

    async def main() -> None:
        script, left = noting_when_the_client_leaves(CHUNKS + b"2\r\nhi\r\n")
        async with serving(script, tls=server_tls, ssl_context=trusting) as (server, http):
            reply = await http.send(server.node, POST._replace(stream=True))
            gone = now()
            await reply.aclose()
            await asyncio.sleep(0.05)
            assert left[0] - gone < 0.05

    run(new_loop, main())


@on_both_loops
def test_tls_that_fails_is_a_failed_connect(new_loop, server_tls: ssl.SSLContext) -> None:
    async def no_tls_here(peer: Peer) -> None:
        await peer.reader.read(10)
        await peer.say(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    async def main() -> None:
        async with serving(saying(OK), tls=server_tls) as (server, http):
            with pytest.raises(TransportFault, match="has a certificate that is not trusted") as caught:
                await http.send(server.node, POST)
            assert caught.value.fault is Fault.CONNECT
        async with serving(no_tls_here) as (server, http):
            with pytest.raises(TransportFault, match="failed the TLS handshake") as caught:
                await http.send(server.node._replace(scheme="https"), POST)
            assert caught.value.fault is Fault.CONNECT

    run(new_loop, main())
