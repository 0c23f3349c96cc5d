"""A stream whose events come one by one: a node writes its opening events before it has a word to say."""

from __future__ import annotations

import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler

import httpx
import pytest

from sollol.sim.serve import sim_cluster
from tests.gateway.inference.test_relay import ROUTES, ask
from tests.gateway.stage import MODEL, answering, gateway_over, talker


@contextmanager
def one_by_one(node: str, stream: bytes) -> Iterator[str]:
    """A node that answers as `node` does, and a POST with this stream, a pause between its events; its URL."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            with urllib.request.urlopen(node + self.path) as answer:
                body = answer.read()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            if not self.path.startswith("/v1/"):  # how would it go on with the answer?
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for event in stream.split(b"\n\n")[:-1]:
                self.wfile.write(b"%x\r\n%b\n\n\r\n" % (len(event) + 2, event))
                time.sleep(0.005)
            self.wfile.write(b"0\r\n\r\n")

        def log_message(self, format: str, *args: object) -> None: ...

    with answering(Handler) as url:
        yield url


@pytest.mark.parametrize("case", [case for case in ROUTES if case.startswith("v1-")])
def test_events_that_come_one_by_one_are_passed_on_as_they_came(case: str) -> None:
    path, body = ROUTES[case]
    with sim_cluster([talker(1)]) as nodes:
        direct = httpx.post(nodes.urls[0] + path, json={"model": MODEL, "stream": True, **body}).content
        with one_by_one(nodes.urls[0], direct) as url, gateway_over([url]) as stage:
            assert ask(stage, case) == direct
            assert stage.look(lambda gateway: gateway.engine.recorder.history.recent()[0].attempts) == 1
