"""HttpTransport: what it sends, and how it keeps connections."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest

from sollol.core.endpoint import Endpoint
from sollol.core.value import replaced
from sollol.transport.base import Call, Fault, Reply, Timeouts, Transport, TransportFault
from sollol.transport.http import HttpTransport
from tests.marks import plain_only
from tests.transport.raw_server import OK, Peer, on_both_loops, run, saying, saying_once, serving

POST = Call("POST", "/api/chat", b'{"model":"m"}')


def test_it_is_a_transport_and_its_replies_are_replies() -> None:
    transport: Transport = HttpTransport()
    assert "0 connections" in repr(transport)

    async def main() -> None:
        async with serving(saying(OK)) as (server, http):
            whole: Reply = await http.send(server.node, POST)
            stream: Reply = await http.send(server.node, replaced(POST, stream=True))
            assert (whole.status, await whole.read()) == (200, b"ok")
            assert (stream.status, await stream.read()) == (200, b"ok")
            assert repr(http) == "<HttpTransport 1 connections (1 idle) · 2 requests>"
            assert (repr(whole), repr(stream)) == ("<WholeReply 200>", "<StreamReply 200 ended>")

    run(asyncio.new_event_loop, main())


# -- how it keeps connections -------------------------------------------------------------------------------


@on_both_loops
def test_calls_one_after_another_share_a_connection(new_loop: Any) -> None:
    async def main() -> None:
        async with serving(saying(OK)) as (server, http):
            for number in range(20):
                reply = await http.send(server.node, replaced(POST, stream=number % 2 == 0))
                assert await reply.read() == b"ok"
            assert len(server.peers) == 1
            assert http.stats == (20, 1, 19, 1, 1)

    run(new_loop, main())


@on_both_loops
def test_calls_at_the_same_time_have_connections_of_their_own_and_the_surplus_closes(new_loop: Any) -> None:
    async def main() -> None:
        async with serving(saying(OK), max_idle_per_node=3) as (server, http):
            await asyncio.gather(*(http.send(server.node, POST) for _ in range(8)))
            assert len(server.peers) == 8
            assert (http.stats.open, http.stats.idle) == (3, 3)
            await http.send(server.node, POST)
            assert http.stats.opened == 8

    run(new_loop, main())


@on_both_loops
def test_the_connection_used_last_is_taken_first_and_the_others_age_out(new_loop: Any) -> None:
    async def main() -> None:
        async with serving(saying(OK), max_idle_s=0.6) as (server, http):
            await asyncio.gather(*(http.send(server.node, POST) for _ in range(4)))
            for _ in range(5):
                await asyncio.sleep(0.2)
                await http.send(server.node, POST)
            assert http.stats[1:] == (4, 5, 1, 1)
            await asyncio.sleep(1.0)
            assert http.stats.open == 0
            assert await asyncio.gather(*(peer.client_left() for peer in server.peers))

    run(new_loop, main())


@on_both_loops
def test_a_connection_that_the_node_closed_while_idle_is_not_used(new_loop: Any) -> None:
    async def main() -> None:
        async with serving(saying_once(OK)) as (server, http):
            for _ in range(3):
                await http.send(server.node, POST)
                await asyncio.sleep(0.02)
            assert http.stats == (3, 3, 0, 0, 0)

    run(new_loop, main())


def closing_at_second(how: str) -> Any:
    """Answer one call; close when the next one has been heard."""

    async def script(peer: Peer) -> None:
        await peer.hear()
        await peer.say(OK)
        await peer.hear()
        peer.reset() if how == "reset" else peer.close()

    return script


@on_both_loops
@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_call_on_a_stale_connection_is_sent_again_on_a_fresh_one(new_loop: Any, how: str, stream: bool) -> None:
    async def main() -> None:
        async with serving(closing_at_second(how)) as (server, http):
            for number in range(4):
                reply = await http.send(server.node, replaced(POST, body=b"%d" % number, stream=stream))
                assert await reply.read() == b"ok"
            assert http.stats[:3] == (4, 4, 3)
            assert [request.body for request in server.heard] == [b"0", b"1", b"1", b"2", b"2", b"3", b"3"]

    run(new_loop, main())


@on_both_loops
def test_it_is_sent_again_once_only_and_never_when_an_answer_had_begun(new_loop: Any) -> None:
    async def once_then_nothing(peer: Peer) -> None:
        await peer.hear()
        if len(peer.server.peers) == 1:
            await peer.say(OK)
            await peer.hear()

    async def once_then_a_byte(peer: Peer) -> None:
        await once_then_nothing(peer)
        await peer.say(b"H")

    async def main() -> None:
        for script, heard in ((once_then_nothing, 3), (once_then_a_byte, 2)):
            async with serving(script) as (server, http):
                await http.send(server.node, POST)
                with pytest.raises(TransportFault, match="before it answered") as caught:
                    await http.send(server.node, POST)
                assert caught.value.fault is Fault.CUT
                assert len(server.heard) == heard

    run(new_loop, main())


@on_both_loops
def test_connection_close_is_obeyed(new_loop: Any) -> None:
    closing = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok"
    old = b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok"
    old_kept = b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok"

    async def main() -> None:
        for answer, opened in ((closing, 3), (old, 3), (old_kept, 1)):
            async with serving(saying(answer)) as (server, http):
                for _ in range(3):
                    await http.send(server.node, POST)
                assert http.stats.opened == opened

    run(new_loop, main())


@on_both_loops
def test_bytes_after_the_answer_or_between_calls_spoil_the_connection(new_loop: Any) -> None:
    async def late(peer: Peer) -> None:
        await peer.hear()
        await peer.say(OK)
        await asyncio.sleep(0.01)
        await peer.say(OK)
        await peer.client_left()

    async def main() -> None:
        async with serving(saying(OK + OK)) as (server, http):
            await http.send(server.node, POST)
            assert http.stats.open == 0
        async with serving(late) as (server, http):
            await http.send(server.node, POST)
            assert http.stats.open == 1
            await asyncio.sleep(0.05)
            assert http.stats.open == 0

    run(new_loop, main())


@on_both_loops
def test_aclose_closes_everything_and_refuses_what_comes_later(new_loop: Any) -> None:
    async def slow(peer: Peer) -> None:
        await peer.hear()
        await peer.client_left()

    async def main() -> None:
        async with serving(slow) as (server, http):
            waiting = asyncio.ensure_future(http.send(server.node, POST))
            await server.has_heard.wait()
            await http.aclose()
            await http.aclose()
            with pytest.raises(TransportFault, match="closed from this side"):
                await waiting
            with pytest.raises(TransportFault, match="the transport is closed"):
                await http.send(server.node, POST)
            assert "closed" in repr(http)
            await asyncio.gather(*server.tasks)  # the script has seen the client leave

    run(new_loop, main())


def test_another_event_loop_begins_with_an_empty_pool() -> None:
    http = HttpTransport()

    async def main() -> None:
        async with serving(saying(OK)) as (server, _):
            await http.send(server.node, POST)
            await http.send(server.node, POST)
            await asyncio.gather(*(connection.lost.wait() for connection in close_all(http)))

    def close_all(transport: HttpTransport) -> Any:
        connections = [c for host in transport._hosts.values() for c in host.connections]
        for connection in connections:
            connection.abort()
        return connections

    run(asyncio.new_event_loop, main())
    run(asyncio.new_event_loop, main())
    assert http.stats == (4, 2, 2, 0, 0)


@plain_only
def test_only_nodes_in_use_are_remembered_beyond_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sollol.transport.http.MAX_NODES", 3)

    async def main() -> None:
        async with serving(saying(OK)) as (server, http):
            await http.send(server.node, POST)
            for port in range(1, 8):
                with pytest.raises(TransportFault):
                    await http.send(Endpoint("127.0.0.1", port), POST)
            assert len(http._hosts) <= 3
            await http.send(server.node, POST)
            assert http.stats.reused == 1

    run(asyncio.new_event_loop, main())


# -- no connection ------------------------------------------------------------------------------------------


@on_both_loops
def test_a_node_that_refuses(new_loop: Any) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]

        async def main() -> None:
            for host in ("127.0.0.1", "localhost"):
                with pytest.raises(TransportFault) as caught:
                    await HttpTransport().send(Endpoint(host, port, auth="ann:s3cret"), POST)
                assert caught.value.fault is Fault.CONNECT
                assert str(caught.value) == f"http://{host}:{port} refused the connection"

        run(new_loop, main())


@on_both_loops
def test_a_node_that_does_not_accept_in_time(new_loop: Any) -> None:
    async def main(port: int) -> None:
        started = asyncio.get_running_loop().time()
        with pytest.raises(TransportFault, match=r"did not accept a connection within 0.1 s") as caught:
            await HttpTransport().send(Endpoint("127.0.0.1", port), replaced(POST, timeouts=Timeouts(0.1)))
        assert caught.value.fault is Fault.CONNECT_TIMEOUT
        assert asyncio.get_running_loop().time() - started < 0.5

    with socket.socket() as full, socket.socket() as first, socket.socket() as second:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for client in (first, second):  # the waiting line of the socket is full now: further calls get no answer
            client.setblocking(False)
            client.connect_ex(full.getsockname())
        run(new_loop, main(full.getsockname()[1]))


@on_both_loops
def test_a_name_that_cannot_be(new_loop: Any) -> None:
    async def main() -> None:
        with pytest.raises(TransportFault, match="has a name that cannot be resolved") as caught:
            await HttpTransport().send(Endpoint("a" * 64 + ".example"), POST)
        assert caught.value.fault is Fault.CONNECT
        assert "\n" not in str(caught.value)

    run(new_loop, main())


@on_both_loops
def test_ipv6(new_loop: Any) -> None:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        pytest.skip("this machine has no ::1")

    async def main() -> None:
        async with serving(saying(OK), host="::1") as (server, http):
            assert await (await http.send(server.node, POST)).read() == b"ok"
            assert server.heard[0].headers["host"] == f"[::1]:{server.node.port}"

    run(new_loop, main())
