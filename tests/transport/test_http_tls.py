"""HttpTransport over TLS, with an authority made for the test."""

from __future__ import annotations

import asyncio
import ssl
from typing import Any

import pytest
import trustme

from sollol.core.value import replaced
from sollol.transport.base import Call, Fault, TransportFault
from tests.transport.raw_server import OK, Peer, noting_when_the_client_leaves, on_both_loops, run, saying, serving

POST = Call("POST", "/api/chat", b'{"model":"m"}')
CHUNKS = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
MIB = 1 << 20


def now() -> float:
    return asyncio.get_running_loop().time()


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def server_tls(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1", "localhost").configure_cert(context)
    return context


@on_both_loops
def test_https(new_loop: Any, authority: trustme.CA, server_tls: ssl.SSLContext) -> None:
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    names: list[str | None] = []
    server_tls.sni_callback = lambda _socket, name, _context: names.append(name)
    body = b'{"x":"%b"}' % (b"x" * (3 * MIB))
    big = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)

    async def main() -> None:
        async with serving(saying(OK, big), tls=server_tls, ssl_context=trusting) as (server, http):
            node = server.node._replace(host="localhost")
            assert await (await http.send(node, POST)).read() == b"ok"
            assert await (await http.send(node, replaced(POST, body=body))).read() == body
            assert await (await http.send(node, replaced(POST, stream=True))).read() == body
            assert (http.stats.opened, http.stats.reused) == (1, 2)
            assert server.heard[1].body == body
            assert server.heard[0].headers["host"] == f"localhost:{node.port}"
            assert names == ["localhost"]
            await http.send(server.node, POST)  # by address

    run(new_loop, main())


@on_both_loops
def test_leaving_over_tls_closes_at_once(new_loop: Any, authority: trustme.CA, server_tls: ssl.SSLContext) -> None:
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)

    async def main() -> None:
        script, left = noting_when_the_client_leaves(CHUNKS + b"2\r\nhi\r\n")
        async with serving(script, tls=server_tls, ssl_context=trusting) as (server, http):
            reply = await http.send(server.node, replaced(POST, stream=True))
            gone = now()
            await reply.aclose()
            await asyncio.sleep(0.05)
            assert left[0] - gone < 0.05

    run(new_loop, main())


@on_both_loops
def test_tls_that_fails_is_a_failed_connect(new_loop: Any, server_tls: ssl.SSLContext) -> None:
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
