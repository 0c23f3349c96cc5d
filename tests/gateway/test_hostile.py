"""Bodies of clients and answers of nodes that no honest one sends: each ends in an answer, and frees its slot."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from typing import Any, ClassVar

import pytest

from sollol.sim import ModelSpec, NodeSpec, sim_cluster
from tests.gateway.stage import MODEL, Stage, answering, gateway_over, talker, until

DEEP = 3_000
DIGITS = "9" * 400


def nested(depth: int) -> bytes:
    return b"[" * depth + b"]" * depth


BODIES: dict[str, bytes] = {
    "1,000 deep": b'{"model":"llama3.2","messages":[{"role":"user","content":"a"}],"x":%b}' % nested(1_000),
    "100,000 deep": b'{"model":"llama3.2","messages":%b}' % nested(100_000),
    "deep options": b'{"model":"llama3.2","messages":[],"options":{"a":%b}}' % nested(DEEP),
    "400 digits": b'{"model":"llama3.2","messages":[{"role":"user","content":"a"}],"options":{"num_predict":%b}}'
    % DIGITS.encode(),
    "5,000 digits": b'{"model":"llama3.2","messages":[],"options":{"num_ctx":%b}}' % (b"9" * 5_000),
    "400 digits of max_tokens": b'{"model":"llama3.2","messages":[{"role":"user","content":"a"}],"max_tokens":%b}'
    % DIGITS.encode(),
    "1e999": b'{"model":"llama3.2","messages":[{"role":"user","content":"a"}],"options":{"temperature":1e999}}',
    "not UTF-8": b'{"model":"llama3.2","messages":[{"role":"user","content":"a\xff"}]}',
    "a number of messages": b'{"model":"llama3.2","messages":5}',
    "an array": b"[1,2]",
    "a number": b"5",
    "a lone surrogate": b'{"model":"llama3.2","messages":[{"role":"user","content":"\\ud800"}]}',
    "a NUL": b'{"model":"a\\u0000b","messages":[{"role":"user","content":"a"}]}',
    "half of it": b'{"model":"llama3.2","mess',
    "nothing": b"",
    "texts that are none": b'{"model":"llama3.2","input":[1,null,{}]}',
    "numbers of texts": b'{"model":"llama3.2","input":%b}' % json.dumps([5] * 100).encode(),
}
ROUTES = [
    "/api/chat", "/api/generate", "/api/embed", "/api/embeddings", "/api/show", "/api/pull", "/api/create", "/api/copy",
    "/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/messages", "/v1/responses",
]  # fmt: skip


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with sim_cluster([talker(1, 50_000.0)]) as cluster, gateway_over(cluster.urls) as made:
        yield made


def is_idle(stage: Stage) -> bool:
    return stage.look(
        lambda gateway: not gateway.engine.scheduler.view().tasks and not gateway.engine.scheduler.view().attempts
    )


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("body", BODIES)
def test_a_hostile_body_is_answered(stage: Stage, route: str, body: str, caplog: pytest.LogCaptureFixture) -> None:
    with stage.client() as client, caplog.at_level(logging.ERROR):
        for stream in (b"", b'{"stream":false,'):
            sent = stream + BODIES[body][1:] if stream and BODIES[body].startswith(b"{") else BODIES[body]
            answer = client.post(route, content=sent)
            assert 200 <= answer.status_code < 505, answer.text
            assert "x-sollol-fault" not in answer.headers, answer.text
    until(lambda: is_idle(stage))
    assert not [record for record in caplog.records if record.exc_info], "a traceback in the log"
    assert stage.look(lambda gateway: gateway.engine.dispatcher.faults) == 0


class Liar(BaseHTTPRequestHandler):
    """A node that says what a test wants, byte for byte: of itself by path, and to all work the same."""

    protocol_version = "HTTP/1.1"
    says: ClassVar[dict[str, bytes]] = {}
    status = 200
    body = b""
    vector = b""  # of each text
    asked: ClassVar[list[str]]

    def log_message(self, *args: Any) -> None: ...

    def do_GET(self) -> None:
        row = b",".join(
            b'{"name":"%b:latest","model":"%b:latest","size":1000,"digest":""}' % (name, name)
            for name in (b"llama3.2", b"nomic-embed-text")
        )
        told = {"/api/version": b'{"version":"0.33"}', "/api/tags": b'{"models":[%b]}' % row, "/api/ps": b"{}"}
        self._say(200, {**told, **self.says}.get(self.path, b"{}"))

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers.get("content-length", 0))))
        self.asked.append(self.path)
        if self.vector:
            rows = b",".join([self.vector] * len(asked["input"]))
            self._say(200, b'{"model":"nomic-embed-text","embeddings":[%b],"prompt_eval_count":5}' % rows)
        else:
            self._say(self.status, self.body)

    def _say(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def liar(**about: Any) -> Iterator[tuple[str, list[str]]]:
    asked: list[str] = []
    with answering(type("Node", (Liar,), {"asked": asked, **about})) as url:
        yield url, asked


class Slow(Liar):
    """Lists its models at a byte in a tenth of a second, or without end, once it is told to."""

    slow: ClassVar[list[str]]

    def do_GET(self) -> None:
        if not self.slow or self.path != "/api/tags":
            super().do_GET()
            return
        self.send_response(200)
        self.end_headers()
        piece = b"[" if self.slow == ["bytes"] else b"[" * 2**20
        try:
            for _ in range(300):
                self.wfile.write(piece)
                time.sleep(0.1 if len(piece) == 1 else 0.0)
        except OSError:
            pass
        self.close_connection = True


@pytest.mark.parametrize("how", ["bytes", "endless"])
def test_a_list_without_end_is_left_and_what_is_remembered_serves(how: str) -> None:
    slow: list[str] = []
    with (
        answering(type("Node", (Slow,), {"asked": [], "slow": slow, "body": whole()})) as url,
        gateway_over([url]) as stage,
        stage.client() as client,
    ):
        before = client.get("/api/tags").json()["models"]
        assert len(before) == 2
        slow.append(how)
        assert client.get("/api/tags").json()["models"] == before
        chat = {"model": MODEL, "messages": [{"role": "user", "content": "a"}], "stream": False}
        assert client.post("/api/chat", json=chat).status_code == 200


def whole(**fields: bytes) -> bytes:
    told = {"model": b'"llama3.2"', "message": b'{"role":"assistant","content":"hi"}', "done": b"true", **fields}
    return b"{" + b",".join(b'"%b":%b' % (name.encode(), value) for name, value in told.items()) + b"}\n"


ROW = b'{"name":"llama3.2:latest","model":"llama3.2:latest","size":%b,"digest":"a"}'
ODD = b'{"models":[5,null,[],{"name":7},{}]}'
LIES: dict[str, dict[str, Any]] = {
    "a size of 400 digits": {"says": {"/api/tags": b'{"models":[%b]}' % (ROW % DIGITS.encode())}},
    "a size_vram of 400 digits": {
        "says": {"/api/ps": b'{"models":[{"name":"llama3.2:latest","size":5,"size_vram":%b}]}' % DIGITS.encode()}
    },
    "a negative size": {"says": {"/api/tags": b'{"models":[%b]}' % (ROW % b"-5")}},
    "a size of text": {"says": {"/api/tags": b'{"models":[%b]}' % (ROW % b'"x"')}},
    "a list deep": {"says": {"/api/tags": b'{"models":%b}' % nested(DEEP)}},
    "odd rows": {
        "says": {"/api/tags": b'{"models":[5,null,[],{"name":7},{}]}', "/api/ps": b'{"models":[5,{"name":[]}]}'}
    },
    "lists that are none": {"says": {"/api/tags": b'{"models":5}', "/api/ps": b'{"models":"x"}'}},
    "a version of digits": {"says": {"/api/version": '{"version":"\u00b2.1"}'.encode()}},
    "a version that is none": {"says": {"/api/version": b'{"version":[[1]]}'}},
    **{
        f"{name} of 400 digits": {"body": whole(**{name: DIGITS.encode()})}
        for name in ("eval_count", "prompt_eval_count", "load_duration", "total_duration")
    },
    "an eval_count of 1e999": {"body": whole(eval_count=b"1e999")},
    "an eval_count of text": {"body": whole(eval_count=b'"many"')},
    "a negative eval_count": {"body": whole(eval_count=b"-1000", eval_duration=b"1000")},
    "an eval_count of 10^18": {"body": whole(eval_count=b"1000000000000000000", eval_duration=b"1")},
    "an answer 3,000 deep": {"body": whole(x=nested(DEEP))},
    "an answer not UTF-8": {"body": whole(message=b'{"role":"assistant","content":"\xff"}')},
    **{
        f"{status}, 3,000 deep": {"status": status, "body": b'{"error":%b}' % nested(DEEP)}
        for status in (400, 404, 500)
    },
    **{
        f"status {status}": {"status": status, "body": b'{"error":"no"}'}
        for status in (420, 430, 440, 449, 460, 494, 499, 418, 299, 599, 600, 999)
    },
    "a space before an error": {"body": b'{ "error": "it broke"}'},
    "half an answer": {"body": b'{"model":"llama3.2","message":{"role":"assis'},
}


@pytest.mark.parametrize("lie", LIES)
def test_what_a_hostile_node_says_ends_in_the_answer_of_another(lie: str) -> None:
    with (
        sim_cluster([talker(1, 50_000.0)]) as cluster,
        liar(**LIES[lie]) as (url, _),
        gateway_over([url, *cluster.urls]) as stage,
        stage.client() as client,
    ):
        for stream in (False, True, False, True):
            body = {"model": MODEL, "messages": [{"role": "user", "content": "a"}], "stream": stream}
            answer = client.post("/api/chat", json=body)
            assert answer.status_code == 200, answer.text
            assert answer.text.rstrip().endswith("}"), answer.text
            assert b"broke" not in answer.content
        until(lambda: is_idle(stage))
        assert client.get("/api/tags").status_code == client.get("/api/ps").status_code == 200
        assert client.get("/api/version").status_code == 200
        assert stage.look(lambda gateway: gateway.engine.dispatcher.faults) == 0


@pytest.mark.parametrize("lie", LIES)
def test_where_only_a_hostile_node_is_left_the_client_has_an_answer(lie: str) -> None:
    with liar(**LIES[lie]) as (url, _), gateway_over([url]) as stage, stage.client() as client:
        body = {"model": MODEL, "messages": [{"role": "user", "content": "a"}]}
        for path in ("/api/chat", "/v1/chat/completions"):
            answer = client.post(path, json={**body, "stream": path == "/api/chat"})
            assert 200 <= answer.status_code < 1000
            assert answer.content
        until(lambda: is_idle(stage))
        assert stage.look(lambda gateway: gateway.engine.dispatcher.faults) == 0


@pytest.mark.parametrize(
    "vector",
    [b"[1e39,1,1]", b"[0,0,0]", b"[null,1]", b'["a",1]', b"[{},1]", b"[]", b"null", b'"AAAA"', b"[1e999]"],
    ids=repr,
)
def test_vectors_that_are_none_are_embedded_by_another_node(vector: bytes) -> None:
    embedder = ModelSpec("nomic-embed-text", "embed", 300_000_000, 16)
    spec = NodeSpec(models=(embedder,), loaded=("nomic-embed-text",), embed_items_per_s=5_000)
    with (
        liar(vector=vector) as (url, asked),
        sim_cluster([spec]) as cluster,
        gateway_over([url, *cluster.urls]) as stage,
        stage.client() as client,
    ):
        for count in (1, 3, 70, 200):
            given = {"model": "nomic-embed-text", "input": [f"text {n}" for n in range(count)]}
            found = client.post("/api/embed", json=given)
            assert found.status_code == 200, found.text
            assert [len(row) for row in found.json()["embeddings"]] == [16] * count
            coded = client.post("/v1/embeddings", json={**given, "encoding_format": "base64"})
            assert coded.status_code == 200, coded.text
            assert len(coded.json()["data"]) == count
        assert asked
        until(lambda: is_idle(stage))
        assert stage.look(lambda gateway: gateway.engine.dispatcher.faults) == 0
