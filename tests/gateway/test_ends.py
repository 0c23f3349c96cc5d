"""How connections, requests and the gateway itself end; health checks with bare line ends; hosts behind a proxy."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from typing import Any

import httpx
import pytest

from sollol.gateway.settings import GatewaySettings, Listen
from sollol.sim import sim_cluster
from tests.gateway.stage import MODEL, Stage, answering, gateway_over, talker, until

SAY = {"model": MODEL, "messages": [{"role": "user", "content": "a"}], "options": {"num_predict": 8}}


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with sim_cluster([talker(1, 20.0)]) as nodes, gateway_over(nodes.urls) as found:
        yield found


def raw(port: int, request: bytes, *, half_close: bool = False) -> bytes:
    with socket.create_connection(("127.0.0.1", port), 10) as connection:
        connection.sendall(request)
        if half_close:
            connection.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: connection.recv(65536), b""))


def post(path: str, fields: dict[str, Any], version: str = "1.1") -> bytes:
    body = json.dumps(fields).encode()
    head = f"POST {path} HTTP/{version}\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_ends_its_side_is_answered(stage: Stage, version: str, stream: bool) -> None:
    answer = raw(stage.port, post("/api/chat", {**SAY, "stream": stream}, version), half_close=True)
    assert b'"done":true' in answer
    assert b"HTTP/1.1 200 OK" in answer


def test_a_client_that_has_left_is_noticed(stage: Stage) -> None:
    """Though the end of its side looks the same at first."""
    with socket.create_connection(("127.0.0.1", stage.port), 10) as connection:
        connection.sendall(post("/api/chat", {**SAY, "stream": False, "options": {"num_predict": 10_000}}))
        until(lambda: stage.look(lambda gateway: len(gateway.engine.scheduler.view().attempts)))
    until(lambda: not stage.look(lambda gateway: len(gateway.engine.scheduler.view().tasks)))


def test_streams_are_not_to_be_held_back(stage: Stage) -> None:
    answer = httpx.post(f"{stage.url}/api/chat", json=SAY)
    assert answer.headers["x-accel-buffering"] == "no"


def test_those_who_wait_at_the_end_are_told() -> None:
    with sim_cluster([talker(1, 5.0)]) as nodes, gateway_over(nodes.urls) as stage:

        async def run() -> list[httpx.Response]:
            async with httpx.AsyncClient(base_url=stage.url, timeout=20, trust_env=False) as client:
                asked = {**SAY, "stream": False, "options": {"num_predict": 1_000}}
                calls = [asyncio.create_task(client.post("/api/chat", json=asked)) for _ in range(4)]
                while stage.look(lambda gateway: len(gateway.engine.scheduler.view().tasks)) < 4:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
                await asyncio.to_thread(stage.on_loop, lambda gateway: gateway.aclose(0.1))
                return await asyncio.gather(*calls)

        answers = asyncio.run(run())
    assert [answer.status_code for answer in answers] == [503] * 4
    assert all(int(answer.headers["retry-after"]) > 0 for answer in answers)
    assert all("about to end" in answer.json()["error"] for answer in answers)


@pytest.mark.parametrize("path", ["/", "/api/version", "/api/tags"])
@pytest.mark.parametrize("head", ["GET {} HTTP/1.0\n\n", "HEAD {} HTTP/1.0\n\n", "GET {} HTTP/1.0\nHost: [::1]\n\n"])
def test_health_checks_with_bare_line_ends(stage: Stage, path: str, head: str) -> None:
    assert raw(stage.port, head.format(path).encode()).startswith(b"HTTP/1.1 200 OK")


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET /api/ps HTTP/1.0\n\n",
        b"GET /sollol/nodes HTTP/1.0\n\n",
        b"GET / HTTP/1.0\nContent-Length: 5\n\nabcde",
        b"GET / HTTP/1.1\nHost: localhost\nTransfer-Encoding: chunked\n\n0\n\n",
        b"POST /api/chat HTTP/1.0\n\n",
        b"GET / HTTP/1.0\n\nGET /api/tags HTTP/1.0\n\n",
        b"GET / HTTP/1.0\r\nHost: localhost\n\r\n",
    ],
)
def test_bare_line_ends_are_refused_elsewhere(stage: Stage, request_bytes: bytes) -> None:
    assert raw(stage.port, request_bytes).startswith(b"HTTP/1.1 400")


def test_headers_that_come_twice(stage: Stage) -> None:
    body = json.dumps({**SAY, "stream": False}).encode()
    head = "POST /api/chat HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: %d\r\n%s\r\n"
    same = "Content-Type: application/json\r\n" * 2
    differ = "Content-Type: application/json\r\nContent-Type: text/plain\r\n"
    assert raw(stage.port, (head % (len(body), same)).encode() + body).startswith(b"HTTP/1.1 200")
    assert raw(stage.port, (head % (len(body), differ)).encode() + body).startswith(b"HTTP/1.1 400")
    hosts = b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n"
    assert raw(stage.port, hosts).startswith(b"HTTP/1.1 400")


def test_a_host_behind_a_proxy() -> None:
    listen = Listen(allowed_hosts=("llm.example.org", "*.example.net"))
    with sim_cluster([talker(1)]) as nodes, gateway_over(nodes.urls, GatewaySettings(listen)) as stage:
        for host, status in (
            ("llm.example.org", 200), ("LLM.example.org:443", 200), ("a.example.net", 200), ("localhost", 200),
            ("example.org", 403), ("evil-example.net", 403), ("llm.example.org.evil.com", 403),
        ):  # fmt: skip
            answer = httpx.get(f"{stage.url}/api/tags", headers={"Host": host})
            assert (host, answer.status_code) == (host, status)
        assert "allowed_hosts" in answer.text


class _Foreign(BaseHTTPRequestHandler):
    """Another server, which has models of OpenAI's shape."""

    def log_message(self, *args: Any) -> None: ...

    def do_GET(self) -> None:
        body = b'{"object":"list","data":[{"id":"foreign","object":"model"}]}'
        self.send_response(200 if self.path == "/v1/models" else 404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def test_models_of_a_foreign_server_are_not_listed() -> None:
    with answering(_Foreign) as url, gateway_over([url]) as stage:
        answer = httpx.get(f"{stage.url}/v1/models")
    assert answer.status_code >= 500
    assert "foreign" not in answer.text
