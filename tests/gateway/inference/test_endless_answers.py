"""Answers without an end, and answers that are none: each ends at its bound, in bounded memory, and the node is left.

What a node could send before it was left is counted at the node, so nothing here depends on how fast the machine is.
"""

from __future__ import annotations

import json
import resource
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler
from typing import Any, ClassVar

import httpx
import pytest

from sollol import OllamaPool
from sollol.errors import SollolError
from sollol.sim import sim_cluster
from tests.gateway.stage import MODEL, answering, gateway_over, talker, until

MB = 2**20
PIECE = b"x" * 65_536
BUFFERS = 24 * MB  # of the sockets on both sides, and what was read before it was counted
GROWTH_KB = 150 * 1024  # of the whole process, in which the node runs, too
ROUTES = ["/api/chat", "/api/generate", "/v1/chat/completions", "/v1/completions", "/v1/messages", "/v1/responses"]


def endless(node: Node, head: bytes, total: int, piece: bytes = PIECE) -> None:
    """Send `head`, and pieces (by default without an end of line), until the other side leaves or `total` came."""
    node.wfile.write(head)
    while type(node).sent < total:
        node.wfile.write(piece)
        type(node).sent += len(piece)


def cut(node: Node, data: bytes) -> None:
    node.wfile.write(data)


HEAD = b"HTTP/1.1 %s\r\nContent-Type: %s\r\n\r\n"  # the end of the connection is the end of the answer
LINES, EVENTS = b"application/x-ndjson", b"text/event-stream"
# How the node answers, and how much of it may be read.
KINDS: dict[str, tuple[Callable[[Any], None], int]] = {
    "an error of 3 GB": (lambda node: endless(node, HEAD % (b"500 Broken", b"text/plain"), 3_000 * MB), MB),
    "a refusal of 3 GB": (lambda node: endless(node, HEAD % (b"400 No", b"application/json"), 3_000 * MB), MB),
    "a line of 300 MB": (lambda node: endless(node, HEAD % (b"200 OK", LINES) + b'{"a":"', 300 * MB), 17 * MB),
    "an event of 300 MB": (lambda node: endless(node, HEAD % (b"200 OK", EVENTS) + b'data: {"a":"', 300 * MB), 17 * MB),
    **{
        f"endless {name}": (
            partial(endless, head=HEAD % (b"200 OK", form), total=3_000 * MB, piece=piece),
            MB,
        )
        for name, form, piece in (
            ("blank lines", LINES, b"\n" * 10_000),
            ("lines of CRLF", EVENTS, b"\r\n" * 5_000),
            ("spaces", LINES, b" " * 10_000),
        )
    },
    **{
        f"an endless whole answer of {name}": (
            partial(endless, head=HEAD % (b"200 OK", b"application/json") + begin, total=3_000 * MB),
            most,
        )
        for name, begin, most in (
            ("text", b"", MB),
            ("HTML", b"\n<html>", MB),
            ("a JSON text", b'"', MB),
            ("an object", b'{"message":{"content":"', 65 * MB),
        )
    },
    "300 MB of events that are comments": (
        lambda node: endless(node, HEAD % (b"200 OK", EVENTS), 300 * MB, b": ping\n\n" * 1_400),
        MB,
    ),
    "a blank line and a cut": (lambda node: cut(node, HEAD % (b"200 OK", LINES) + b"\n"), MB),
    "blank events and a cut": (lambda node: cut(node, HEAD % (b"200 OK", EVENTS) + b"\n\n: c\n\n"), MB),
    "status 199": (lambda node: cut(node, HEAD % (b"199 What", LINES) + b'{"done":true}\n'), MB),
    "status 199 and no more": (lambda node: cut(node, b"HTTP/1.1 199 What\r\n\r\n"), MB),
}


class Node(BaseHTTPRequestHandler):
    """Lists MODEL, and answers every call as `answer` does."""

    answer: ClassVar[Callable[[Any], None]]
    sent: ClassVar[int] = 0
    asked: ClassVar[int] = 0

    def log_message(self, *args: Any) -> None: ...

    def handle(self) -> None:
        try:
            super().handle()
        except OSError:  # it was left
            pass

    def do_GET(self) -> None:
        row = {"name": f"{MODEL}:latest", "model": f"{MODEL}:latest", "size": 1, "size_vram": 1}
        lists = {"/api/version": {"version": "0.33.0"}, "/api/tags": {"models": [row]}, "/api/ps": {"models": [row]}}
        body = json.dumps(lists.get(self.path, {})).encode()
        self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%b" % (len(body), body))

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65_536)
        type(self).asked += 1
        type(self).answer(self)
        self.close_connection = True


@contextmanager
def hostile(kind: str) -> Iterator[tuple[type[Node], str]]:
    node = type("Here", (Node,), {"answer": staticmethod(KINDS[kind][0]), "sent": 0, "asked": 0})
    with answering(node) as url:
        yield node, url


@contextmanager
def bounded(kind: str, node: type[Node]) -> Iterator[None]:
    """Check that the node was asked, how much it could send, and how much the process has grown."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert node.asked
    assert node.sent <= node.asked * (KINDS[kind][1] + BUFFERS), f"{node.sent / MB:.0f} MB in {node.asked} answers"
    if sys.platform == "linux":
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < GROWTH_KB + 2 * KINDS[kind][1] // 1024


def body_of(path: str, stream: bool) -> dict[str, Any]:
    body: dict[str, Any] = {"model": MODEL, "stream": stream, "max_tokens": 4, "options": {"num_predict": 4}}
    if path in ("/api/generate", "/v1/completions"):
        return {**body, "prompt": "a"}
    return {**body, "input" if path == "/v1/responses" else "messages": [{"role": "user", "content": "a"}]}


def failed(answer: httpx.Response) -> bool:
    """Check for an error: by its status, or at the end of a stream that had begun."""
    return answer.status_code >= 400 or '"error"' in answer.text


@pytest.mark.parametrize("kind", KINDS)
def test_the_gateway_leaves_such_a_node_in_bounded_memory(kind: str) -> None:
    with hostile(kind) as (node, url), gateway_over([url]) as stage, stage.client() as client, bounded(kind, node):
        for path in ROUTES:
            for stream in (True, False) if "MB" not in kind else (True,):
                answer = client.post(path, json=body_of(path, stream), headers={"X-Sollol-Deadline-Ms": "5000"})
                assert failed(answer), (path, stream, answer.status_code, answer.text[:200])
                assert len(answer.content) <= 2 * 65_536 + 4_096
        view = stage.look(lambda gateway: gateway.engine.scheduler.view())
        until(lambda: stage.look(lambda gateway: not view.tasks and not view.attempts))


@pytest.mark.parametrize("kind", KINDS)
def test_a_good_node_beside_it_answers(kind: str) -> None:
    with (
        hostile(kind) as (node, url),
        sim_cluster([talker(1)]) as cluster,
        gateway_over([url, *cluster.urls]) as stage,
        stage.client() as client,
        bounded(kind, node),
    ):
        if "refusal" in kind:
            pytest.skip("a refusal is the caller's fault, unless the other node says otherwise")
        answers: list[httpx.Response] = []

        def ask() -> None:
            body = {**body_of("/api/chat", True), "options": {"num_predict": 40}}
            answers.append(client.post("/api/chat", json=body))

        threads = [threading.Thread(target=ask) for _ in range(6)]  # more than the good node has slots
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for answer in answers:
            assert answer.status_code == 200
            assert '"done":true' in answer.text.splitlines()[-1]


@pytest.mark.parametrize("kind", KINDS)
def test_the_library_leaves_it_too(kind: str) -> None:
    with hostile(kind) as (node, url), OllamaPool([url]) as pool, bounded(kind, node):
        for stream in (True, False) if "line" not in kind and "event" not in kind else (True,):  # one whole may be long
            with pytest.raises(SollolError):
                list(pool.generate(MODEL, "a", stream=stream, timeout=10))
