"""Calls that bypass the queue end in their total time, however a node sends its answer."""

from __future__ import annotations

import asyncio
import time
from http.server import BaseHTTPRequestHandler

import pytest

from sollol.core.endpoint import parse_endpoint
from sollol.models import operations
from sollol.transport.base import Call, Timeouts, TransportFault
from sollol.transport.http import HttpTransport
from tests.gateway.stage import WAIT_S, answering

CALLS = [
    ("GET", "/api/tags"), ("GET", "/api/ps"), ("GET", "/api/version"), ("GET", "/v1/models"),
    ("POST", "/api/show"), ("POST", "/api/copy"), ("DELETE", "/api/delete"),
]  # fmt: skip


class Dripping(BaseHTTPRequestHandler):
    """Send a blank now and then, as if an answer were on its way."""

    def drip(self) -> None:
        self.send_response(200)
        self.end_headers()
        try:
            self.wfile.write(b"{")
            while True:
                self.wfile.write(b" ")
                time.sleep(0.02)
        except OSError:
            pass

    do_GET = do_POST = do_DELETE = drip  # noqa: N815 - names of the base class

    def log_message(self, format: str, *args: object) -> None: ...


@pytest.mark.parametrize("way", ["fetch", "fetch_bytes", "fetch_from_all"])
def test_a_node_that_sends_a_byte_now_and_then_is_given_up(way: str) -> None:
    async def main(url: str) -> list[object]:
        transport, node = HttpTransport(), parse_endpoint(url)
        timeouts = Timeouts(connect_s=1.0, first_byte_s=1.0, idle_s=1.0)

        async def one(method: str, path: str) -> object:
            if way == "fetch_from_all":
                answers = await operations.fetch_from_all(transport, [node], method, path, {}, timeouts)
                return answers[node.key]
            try:
                if way == "fetch":
                    return await operations.fetch(transport, node, Call(method, path, timeouts=timeouts))
                return await operations.fetch_bytes(transport, node, method, path, {}, timeouts)
            except TransportFault as fault:
                return fault

        try:
            async with asyncio.timeout(WAIT_S):
                return list(await asyncio.gather(*(one(*call) for call in CALLS)))
        finally:
            await transport.aclose()

    with answering(Dripping) as url:
        for call, found in zip(CALLS, asyncio.run(main(url)), strict=True):
            assert isinstance(found, TransportFault), call
            assert found.fault.is_timeout, call
