"""What a key is charged: over all routes, whole and streamed, all ends of a call, with and without counts of the node.

Each call is settled once, and is charged what its node reports, or what came by the documented estimate.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, ClassVar

import httpx
import pytest

from sollol.gateway.app import Gateway
from sollol.gateway.auth.charging import ENVELOPE, answer_tokens, prompt_tokens, size_of
from sollol.gateway.auth.keys import Key, Keyring, add_key
from sollol.sim import ModelSpec, NodeSpec, sim_cluster
from tests.gateway.stage import MODEL, Stage, answering, gateway_over, talker, until

PARTS, READ, STALL_S = 5, 77, 30.0
ENDS = ["done", "dies", "error", "stalls", "left", "refused", "broken"]
CHATS = ["/api/chat", "/api/generate", "/v1/chat/completions", "/v1/completions", "/v1/messages", "/v1/responses"]
EMBEDS = ["/api/embed", "/api/embeddings", "/v1/embeddings"]
DEADLINE = {"X-Sollol-Deadline-Ms": "400"}


def event(data: dict[str, Any], name: str = "") -> bytes:
    return (f"event: {name}\n" if name else "").encode() + b"data: " + json.dumps(data).encode() + b"\n\n"


def parts_of(path: str) -> Iterator[bytes]:
    """The beginning of a stream: PARTS words."""
    chunk = {"id": "a", "object": "x", "created": 1, "model": MODEL, "system_fingerprint": "f"}
    if path == "/v1/messages":
        usage = {"input_tokens": 0, "output_tokens": 0}
        yield event({"type": "message_start", "message": {"id": "m", "usage": usage}}, "message_start")
        block = {"type": "text", "text": ""}
        yield event({"type": "content_block_start", "index": 0, "content_block": block}, "content_block_start")
    if path == "/v1/responses":
        yield event({"type": "response.created", "sequence_number": 0, "response": {"id": "r"}}, "response.created")
    for _ in range(PARTS):
        if path == "/api/chat":
            line = {"model": MODEL, "message": {"role": "assistant", "content": "word"}, "done": False}
        elif path == "/api/generate":
            line = {"model": MODEL, "response": "word", "done": False}
        elif path == "/v1/chat/completions":
            choice = {"index": 0, "delta": {"content": "word"}, "finish_reason": None}
            yield event({**chunk, "choices": [choice]}).replace(b": null", b":null")
            continue
        elif path == "/v1/completions":
            choice = {"index": 0, "text": "word", "finish_reason": None}
            yield event({**chunk, "choices": [choice]}).replace(b": null", b":null")
            continue
        elif path == "/v1/messages":
            name, delta = "content_block_delta", {"type": "text_delta", "text": "word"}
            yield event({"type": name, "index": 0, "delta": delta}, name)
            continue
        else:
            name = "response.output_text.delta"
            yield event({"type": name, "sequence_number": 1, "delta": "word"}, name)
            continue
        yield json.dumps(line, separators=(",", ":")).encode() + b"\n"


def end_of(path: str, told: bool) -> bytes:
    usage: dict[str, Any]
    said: dict[str, Any]
    chunk = {"id": "a", "object": "x", "created": 1, "model": MODEL}
    if path.startswith("/api/"):
        said = {"message": {"role": "assistant", "content": ""}} if path == "/api/chat" else {"response": ""}
        counts = {"prompt_eval_count": READ, "eval_count": PARTS} if told else {}
        return json.dumps({"model": MODEL, **said, "done": True, "done_reason": "stop", **counts}).encode() + b"\n"
    if path == "/v1/messages":
        usage = {"usage": {"input_tokens": READ, "output_tokens": PARTS}} if told else {}
        stop = event({"type": "content_block_stop", "index": 0}, "content_block_stop")
        delta = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, **usage}
        return stop + event(delta, "message_delta") + event({"type": "message_stop"}, "message_stop")
    if path == "/v1/responses":
        usage = {"usage": {"input_tokens": READ, "output_tokens": PARTS}} if told else {}
        name = "response.completed"
        return event({"type": name, "response": {"id": "r", "status": "completed", **usage}}, name)
    said = {"delta": {}} if "chat" in path else {"text": ""}
    end = event({**chunk, "choices": [{"index": 0, **said, "finish_reason": "stop"}]})
    if told:
        usage = {"prompt_tokens": READ, "completion_tokens": PARTS, "total_tokens": READ + PARTS}
        end += event({**chunk, "choices": [], "usage": usage})
    return end + b"data: [DONE]\n\n"


def whole_of(path: str, told: bool) -> bytes:
    text = "word " * PARTS
    counts: dict[str, Any] = {"prompt_eval_count": READ, "eval_count": PARTS} if told else {}
    newer: dict[str, Any] = {"usage": {"input_tokens": READ, "output_tokens": PARTS}} if told else {}
    older: dict[str, Any] = {"usage": {"prompt_tokens": READ, "completion_tokens": PARTS}} if told else {}
    said: dict[str, dict[str, Any]] = {
        "/api/chat": {"message": {"role": "assistant", "content": text}, "done": True, **counts},
        "/api/generate": {"response": text, "done": True, **counts},
        "/v1/chat/completions": {"choices": [{"message": {"content": text}, "finish_reason": "stop"}], **older},
        "/v1/completions": {"choices": [{"text": text, "finish_reason": "stop"}], **older},
        "/v1/messages": {"type": "message", "stop_reason": "end_turn", "content": [{"text": text}], **newer},
        "/v1/responses": {"status": "completed", "output": [{"text": text}], **newer},
        "/api/embed": {"embeddings": [[1.0, 0.5]], **({"prompt_eval_count": READ} if told else {})},
        "/api/embeddings": {"embedding": [1.0, 0.5]},
        "/v1/embeddings": {"data": [{"embedding": [1.0, 0.5], "index": 0}], **older},
    }
    return json.dumps({"model": MODEL, **said[path]}).encode()


class Node(BaseHTTPRequestHandler):
    """Answers as the test says: `end`, and whether it tells counts."""

    protocol_version = "HTTP/1.1"
    end: ClassVar[str] = "done"
    told: ClassVar[bool] = True
    asked: ClassVar[int] = 0
    closing: ClassVar[threading.Event]

    def log_message(self, *args: Any) -> None: ...

    def do_GET(self) -> None:
        row = {"name": f"{MODEL}:latest", "model": f"{MODEL}:latest", "size": 1}
        lists = {"/api/version": {"version": "0.33.0"}, "/api/tags": {"models": [row]}, "/api/ps": {"models": [row]}}
        self._whole(200, json.dumps(lists.get(self.path, {})).encode())

    def _whole(self, status: int, body: bytes, kind: str = "application/json") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.path not in CHATS + EMBEDS or asked.get("_debug_render_only"):
            self._whole(404, b'{"error":"not here"}')
            return
        type(self).asked += 1
        streams = self.path in CHATS and asked.get("stream", self.path.startswith("/api/"))
        if self.end == "refused":
            self._whole(400, b'{"error":"it is not possible"}')
        elif self.end == "broken":
            self._whole(500, b'{"error":"it broke"}')
        elif streams:
            self._stream()
        elif self.end == "done":
            self._whole(200, whole_of(self.path, self.told))
        elif self.end in ("stalls", "left"):
            self.closing.wait(STALL_S)
        else:
            self.close_connection = True

    def _stream(self) -> None:
        self.send_response(200)
        kind = "application/x-ndjson" if self.path.startswith("/api/") else "text/event-stream"
        self.send_header("Content-Type", kind)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for part in parts_of(self.path):
            self._piece(part)
        if self.end == "done":
            self._piece(end_of(self.path, self.told))
            self.wfile.write(b"0\r\n\r\n")
        elif self.end in ("stalls", "left"):
            self.closing.wait(STALL_S)
        elif self.end == "error":
            name = "error" if self.path in ("/v1/messages", "/v1/responses") else ""
            error: dict[str, Any] = (
                {"error": "it broke"} if self.path.startswith("/api/") else {"error": {"message": "x"}}
            )
            line = json.dumps({"type": "error", **error} if name else error, separators=(",", ":")).encode()
            self._piece(line + b"\n" if self.path.startswith("/api/") else event(json.loads(line), name))
            self.wfile.write(b"0\r\n\r\n")
        else:
            self.close_connection = True

    def _piece(self, piece: bytes) -> None:
        self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
        self.wfile.flush()


def body_of(path: str, stream: bool) -> dict[str, Any]:
    text = "how many words are there in a sentence of this kind"
    if path in EMBEDS:
        return {"model": MODEL, "prompt" if path == "/api/embeddings" else "input": text}
    body: dict[str, Any] = {"model": MODEL, "stream": stream, "max_tokens": 50, "max_output_tokens": 50}
    if path in ("/api/generate", "/v1/completions"):
        return {**body, "prompt": text}
    return {**body, "input" if path == "/v1/responses" else "messages": [{"role": "user", "content": text}]}


def ask(client: httpx.Client, path: str, body: dict[str, Any], end: str) -> int:
    """Ask, and end the call on this side where that is its end. Returns the parts that came of a stream."""
    headers = DEADLINE if end == "stalls" else {}
    if end != "left":
        client.post(path, json=body, headers=headers)
        return PARTS
    try:
        with client.stream("POST", path, json=body, timeout=0.4) as answer:
            for count, _ in enumerate(answer.iter_raw(), 1):
                if count == 2:
                    break
    except httpx.TimeoutException:
        pass
    return 1


def settled(stage: Stage, name: str) -> dict[str, int]:
    """Wait for the end of the only call of a key; what it was charged."""
    until(lambda: stage.look(lambda gateway: gateway.limiter.usage().get(name, {}).get("calls")))
    return stage.look(lambda gateway: gateway.limiter.usage()[name])


def spent(stage: Stage) -> float:
    """Return what is missing in the only bucket; it has filled a little since."""

    def read(gateway: Gateway) -> float:
        (bucket,) = gateway.limiter._tokens.values()
        return bucket.size - bucket.left(asyncio.get_running_loop().time())

    return stage.look(read)


def bounds(path: str, stream: bool, end: str, told: bool, body: dict[str, Any]) -> tuple[int, int]:
    """The least and the most that a call may be charged."""
    raw = json.dumps(body, separators=(",", ":")).encode()
    if end in ("refused", "broken"):
        return 0, 0
    if path in EMBEDS:
        prompt = prompt_tokens(size_of([body.get("input") or body["prompt"]]))
        if end == "done" and told and path != "/api/embeddings":
            return READ, READ
        return (0, 0) if end in ("dies", "error") else (prompt, prompt)
    prompt = prompt_tokens(len(raw))
    if end == "done" and told:
        return READ + PARTS, READ + PARTS
    if end == "done":
        return prompt + (PARTS if stream else 1), prompt + 2 * PARTS
    if not stream:
        return (prompt, prompt + 50) if end in ("stalls", "left") else (0, 0)
    return prompt + 1, prompt + 2 * PARTS


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("path", CHATS + EMBEDS)
def test_each_call_is_settled_once_at_what_it_used(path: str, end: str, tmp_path: Path) -> None:
    for stream in (True, False) if path in CHATS else (False,):
        for told in (True, False) if end == "done" else (True,):
            name = f"{stream}-{told}"
            keys = tmp_path / f"{name}.json"
            token = add_key(keys, Key(name, "", tokens_per_minute=240))
            node: Any = type("Here", (Node,), {"end": end, "told": told, "closing": threading.Event()})
            with (
                answering(node) as url,
                gateway_over([url], keyring=Keyring(path=keys, required=True)) as stage,
                stage.client(headers={"Authorization": f"Bearer {token}"}) as client,
            ):
                body, began = body_of(path, stream), time.monotonic()
                try:
                    ask(client, path, body, end)
                    found = settled(stage, name)
                finally:
                    node.closing.set()
                least, most = bounds(path, stream, end, told, body)
                assert node.asked, (path, stream)
                assert (found["calls"], found["running"], found["reserved"]) == (1, 0, 0)
                assert least <= found["tokens"] <= most, (path, stream, end, told, found, least, most)
                filled = 4 * (time.monotonic() - began) + 1
                assert found["tokens"] - filled <= spent(stage) <= found["tokens"]  # the books, and what is left


@pytest.mark.parametrize("how", ["done", "left", "deadline"])
def test_a_list_over_several_nodes_is_charged_what_was_embedded(how: str, tmp_path: Path) -> None:
    texts = [f"text number {number} of a longer list" for number in range(200)]
    token = add_key(tmp_path / "k", Key("a", "", tokens_per_minute=1_000_000))
    model = ModelSpec("nomic-embed-text", "embed")
    rate = 1e6 if how == "done" else 40.0
    specs = [NodeSpec(models=(model,), loaded=(model.name,), embed_items_per_s=rate, seed=number) for number in (1, 2)]
    with (
        sim_cluster(specs) as nodes,
        gateway_over(nodes.urls, keyring=Keyring(path=tmp_path / "k", required=True)) as stage,
        stage.client(headers={"Authorization": f"Bearer {token}"}) as client,
    ):
        body = {"model": model.name, "input": texts}
        try:
            headers = {"X-Sollol-Deadline-Ms": "500"} if how == "deadline" else {}
            answer = client.post("/api/embed", json=body, headers=headers, timeout=0.5 if how == "left" else 10.0)
        except httpx.TimeoutException:
            assert how == "left"
        else:
            assert answer.status_code == (200 if how == "done" else 504), answer.text
        found = settled(stage, "a")
        assert (found["running"], found["reserved"]) == (0, 0)
        if how == "done":
            assert found["tokens"] == answer.json()["prompt_eval_count"]
        else:
            assert 0 < found["tokens"] < prompt_tokens(size_of(texts)) + len(texts)


def test_loading_a_model_costs_nothing(tmp_path: Path) -> None:
    token = add_key(tmp_path / "k", Key("a", "", tokens_per_minute=1000))
    with (
        sim_cluster([talker(1)]) as nodes,
        gateway_over(nodes.urls, keyring=Keyring(path=tmp_path / "k", required=True)) as stage,
        stage.client(headers={"Authorization": f"Bearer {token}"}) as client,
    ):
        body: dict[str, Any]
        for body in ({"messages": []}, {"messages": [], "stream": False}):
            assert client.post("/api/chat", json={"model": MODEL, **body}).status_code == 200
        assert client.post("/api/generate", json={"model": MODEL}).status_code == 200
        until(lambda: stage.look(lambda gateway: gateway.limiter.usage()["a"]["calls"]) == 3)
        assert stage.look(lambda gateway: gateway.limiter.usage()["a"]["tokens"]) == 0


@pytest.mark.parametrize("bounded", [True, False])
def test_forty_calls_at_once_use_the_minute_and_what_one_call_is_over(bounded: bool, tmp_path: Path) -> None:
    token = add_key(tmp_path / "k", Key("a", "", tokens_per_minute=1000))
    model = ModelSpec(MODEL, mean_words=100)
    body = {"model": MODEL, "prompt": "count", "options": {"num_predict": 100} if bounded else {}}
    used: list[int] = []
    statuses: list[int] = []
    began = time.monotonic()
    with (
        sim_cluster([talker(1, 2000.0, models=(model,), num_parallel=4)]) as nodes,
        gateway_over(nodes.urls, keyring=Keyring(path=tmp_path / "k", required=True)) as stage,
        stage.client(headers={"Authorization": f"Bearer {token}"}) as client,
    ):

        def one() -> None:
            answer = client.post("/api/generate", json={**body, "stream": False})
            statuses.append(answer.status_code)
            if answer.status_code == 200:
                used.append(answer.json()["eval_count"] + answer.json()["prompt_eval_count"])

        threads = [threading.Thread(target=one) for _ in range(40)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        told = stage.look(lambda gateway: gateway.limiter.usage()["a"])
    assert set(statuses) == {200, 429}
    assert told == {"calls": len(used), "tokens": sum(used), "running": 0, "reserved": 0}
    assert sum(used) <= 1000 * (1 + (time.monotonic() - began) / 60) + max(used)


def test_the_snapshot_shows_what_was_charged(tmp_path: Path) -> None:
    token = add_key(tmp_path / "k", Key("a", "", admin=True))
    with (
        sim_cluster([talker(1)]) as nodes,
        gateway_over(nodes.urls, keyring=Keyring(path=tmp_path / "k", required=True)) as stage,
        stage.client(headers={"Authorization": f"Bearer {token}"}) as client,
    ):
        body = {"model": MODEL, "prompt": "a", "stream": False, "options": {"num_predict": 4}}
        answers = [client.post("/api/generate", json=body).json() for _ in range(3)]
        tokens = sum(answer["prompt_eval_count"] + answer["eval_count"] for answer in answers)
        told = client.get("/sollol/snapshot").json()["keys"]
        assert told == {"a": {"calls": 3, "tokens": tokens, "running": 0, "reserved": 0}}


def test_the_estimate_of_an_answer_counts_parts_and_what_is_long_in_them() -> None:
    assert answer_tokens(10, 10 * 200) == 10
    assert answer_tokens(1, ENVELOPE + 4000) == 1000
    assert prompt_tokens(5) == 2
    assert prompt_tokens(10**9) == 25_000
    assert size_of(["abc", [1, 2, 3], 7]) == 3 + 12 + 4
