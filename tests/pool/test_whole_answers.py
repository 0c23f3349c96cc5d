"""A whole answer that is asked for as a stream, to learn of slots, differs in nothing from one that is not."""

from __future__ import annotations

from typing import Any

import pytest

from sollol.backends.ollama import judge_vectors
from sollol.backends.refusals import refusal
from sollol.core.endpoint import Endpoint
from sollol.core.types import OK, Status
from sollol.engine.whole_answers import send_observed
from sollol.sim import run
from sollol.sim.reply import JSON, SimReply
from sollol.transport.base import Call

NODE = Endpoint("10.0.0.1", 11434)


class Answers:
    """A node that answers everything alike, and keeps what it was asked."""

    def __init__(self, status: int, body: bytes, **headers: str) -> None:
        self._reply = status, body, headers
        self.asked: list[bytes] = []

    async def send(self, node: Endpoint, call: Call) -> Any:
        self.asked.append(call.body)  # type: ignore[arg-type]
        status, body, headers = self._reply
        reply = SimReply.of(status, body, JSON)
        reply.headers = {**reply.headers, **headers}
        return reply

    async def aclose(self) -> None: ...


def observe(transport: Answers, body: bytes) -> Any:
    return run(send_observed(transport, NODE, Call("POST", "/api/chat", body), lambda movable: None))


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"m","messages":[{"role":"user","content":"hi \xe9"}],"stream":false}',
        b'{"model":"m","messages":[{"role":"user","content":"hi \\ud83d"}],"stream":false}',
        b'{"model":"m","messages":[],"stream":false} {"more":1}',
        b'{"model":"m","messages":[],"options":{"seed":1e999}}',
        b"[1]",
    ],
)
def test_a_request_that_cannot_be_read_here_is_sent_as_it_came(body: bytes) -> None:
    transport = Answers(400, b'{"error":"invalid character in request body"}')
    found, status, _ = observe(transport, body)
    assert (found, status) == (b'{"error":"invalid character in request body"}', 400)
    assert transport.asked == [body]


def test_a_busy_node_says_when_to_come_back() -> None:
    transport = Answers(429, b'{"error":"too many requests"}', **{"retry-after": "7"})
    body, status, headers = observe(transport, b'{"model":"m","messages":[]}')
    outcome = refusal(status, body, headers)
    assert outcome.status is Status.BUSY
    assert outcome.retry_us == 7_000_000


@pytest.mark.parametrize(
    ("path", "asked", "answer", "fits"),
    [
        ("/api/embed", b'{"input":"a"}', b'{"embeddings":[[1,2]]}', True),
        ("/api/embed", b'{"input":"a"}', b'{"embedding":[]}', False),
        ("/api/embed", b'{"input":"a"}', b'{"embedding":[1,2]}', False),
        ("/api/embed", b'{"input":"a"}', b'{"data":[{"embedding":[1,2]}]}', False),
        ("/api/embed", b'{"input":[]}', b'{"embeddings":[]}', True),
        ("/api/embeddings", b'{"prompt":"a"}', b'{"embedding":[1,2]}', True),
        ("/api/embeddings", b'{"prompt":"a"}', b'{"embedding":[]}', False),
        ("/api/embeddings", b'{"prompt":""}', b'{"embedding":[]}', True),
        ("/api/embeddings", b'{"prompt":"a"}', b'{"embeddings":[[1,2]]}', False),
        ("/v1/embeddings", b'{"input":"a"}', b'{"data":[{"embedding":[1,2]}]}', True),
        ("/v1/embeddings", b'{"input":"a"}', b'{"data":[{"embedding":"AACAPw=="}]}', True),
        ("/v1/embeddings", b'{"input":"a"}', b'{"embeddings":[[1,2]]}', False),
    ],
)
def test_vectors_stand_where_their_route_has_them(path: str, asked: bytes, answer: bytes, fits: bool) -> None:
    wrong = judge_vectors(path, asked, answer)
    assert (wrong is None) == fits
    assert wrong is None or wrong.status not in (OK, Status.REFUSED)
