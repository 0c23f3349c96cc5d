"""The gateway's HTTP, byte for byte on real sockets: what is refused, what is bounded, what is answered in order."""

from __future__ import annotations

import re
import socket
import time
from typing import Any

import msgspec
import pytest

from sollol.gateway.settings import GatewaySettings, Limits
from sollol.http_server.places import GRACE_S
from sollol.sim import NodeSpec
from sollol.sim.serve import sim_cluster
from tests.gateway.stage import Stage, gateway_over, talker, until

LIMITS = Limits(header_timeout_s=0.5, body_timeout_s=0.5, idle_timeout_s=1.0, max_body_mb=1, max_head_kb=8)
HOST = b"Host: localhost\r\n"


@pytest.fixture(scope="module")
def stage() -> Any:
    settings = msgspec.structs.replace(GatewaySettings(), limits=LIMITS)
    with sim_cluster([NodeSpec()]) as nodes, gateway_over(nodes.urls, settings) as found:
        yield found


def talk(stage: Stage, *pieces: bytes, pause_s: float = 0.0, shut: bool = False, wait_s: float = 5.0) -> bytes:
    """Send pieces; everything that comes until the gateway closes, or nothing more comes."""
    with socket.create_connection(("127.0.0.1", stage.port), timeout=wait_s) as sock:
        for piece in pieces:
            sock.sendall(piece)
            time.sleep(pause_s)
        if shut:
            sock.shutdown(socket.SHUT_WR)
        came = b""
        try:
            while data := sock.recv(65536):
                came += data
        except TimeoutError:
            pass
        return came


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1]) if answer else 0


REFUSED = {
    "two lengths": (400, b"POST /api/chat HTTP/1.1\r\n" + HOST + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd"),
    "the same length twice": (
        400,
        b"POST /api/chat HTTP/1.1\r\n" + HOST + b"Content-Length: 1\r\nContent-Length: 1\r\n\r\na",
    ),
    "length and coding": (
        400,
        b"POST /api/chat HTTP/1.1\r\n" + HOST + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ),
    "another coding": (
        501,
        b"POST /api/chat HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    ),
    "a hidden coding": (501, b"POST /api/chat HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n"),
    "coding in 1.0": (400, b"POST /api/chat HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    "a signed length": (400, b"POST /api/chat HTTP/1.1\r\n" + HOST + b"Content-Length: +3\r\n\r\nabc"),
    "a length of words": (400, b"POST /api/chat HTTP/1.1\r\n" + HOST + b"Content-Length: three\r\n\r\nabc"),
    "a folded header": (400, b"GET / HTTP/1.1\r\n" + HOST + b"X: a\r\n b\r\n\r\n"),
    "space before the colon": (400, b"GET / HTTP/1.1\r\nHost : localhost\r\n\r\n"),
    "bare line ends": (400, b"GET / HTTP/1.1\nHost: localhost\n\n"),
    "a bare CR": (400, b"GET / HTTP/1.1\r\nHost: local\rhost\r\n\r\n"),
    "a NUL": (400, b"GET / HTTP/1.1\r\n" + HOST + b"X: a\x00b\r\n\r\n"),
    "two hosts": (400, b"GET / HTTP/1.1\r\n" + HOST + HOST + b"\r\n"),
    "two spaces before the address": (400, b"GET  / HTTP/1.1\r\n" + HOST + b"\r\n"),
    "two spaces before the address of a body": (
        400,
        b"POST  /api/chat HTTP/1.1\r\n" + HOST + b"Content-Length: 2\r\n\r\n{}",
    ),
    "two spaces behind the address": (400, b"GET /  HTTP/1.1\r\n" + HOST + b"\r\n"),
    "no host": (400, b"GET / HTTP/1.1\r\n\r\n"),
    "two keys": (400, b"GET / HTTP/1.1\r\n" + HOST + b"Authorization: a\r\nAuthorization: b\r\n\r\n"),
    "a bad chunk size": (
        400,
        b"POST /api/chat HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n+1\r\na\r\n0\r\n\r\n",
    ),
    "a chunk that is longer": (
        400,
        b"POST /api/chat HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabcd\r\n0\r\n\r\n",
    ),
    "no method": (400, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 40),
    "HTTP/2": (400, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    "a tunnel": (400, b"CONNECT example.org:443 HTTP/1.1\r\n" + HOST + b"\r\n"),
    "a strange version": (505, b"GET / HTTP/2.0\r\n" + HOST + b"\r\n"),
    "a long head": (431, b"GET / HTTP/1.1\r\n" + HOST + b"X: " + b"a" * 20_000 + b"\r\n\r\n"),
    "many headers": (431, b"GET / HTTP/1.1\r\n" + HOST + b"X: a\r\n" * 200 + b"\r\n"),
    "a long address": (414, b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\n" + HOST + b"\r\n"),
    "a large body": (413, b"POST /api/chat HTTP/1.1\r\n" + HOST + b"Content-Length: 2000000\r\n\r\n"),
    "a large chunked body": (
        413,
        b"POST /api/chat HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n200000\r\n" + b"a" * 0x200000,
    ),
    "another expectation": (417, b"POST /api/chat HTTP/1.1\r\n" + HOST + b"Expect: tea\r\nContent-Length: 2\r\n\r\n{}"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_breaks_a_rule_is_refused_and_the_connection_closed(stage: Stage, case: str) -> None:
    wanted, request = REFUSED[case]
    # What follows must not be taken for a request.
    answer = talk(stage, request + b"GET /sollol/health HTTP/1.1\r\n" + HOST + b"\r\n")
    assert status(answer) in ({wanted, 400} if case in ("HTTP/2", "a strange version") else {wanted}), answer[:200]
    assert len(re.findall(rb"HTTP/1\.1 \d", answer)) == 1
    assert b"Connection: close\r\n" in answer
    assert b'{"error":' in answer


BEFORE = {
    "nothing": b"",
    "line ends": b"\r\n\r\n",
    "a request": b"GET / HTTP/1.1\r\n" + HOST + b"\r\n",
    "a body": b"POST /api/show HTTP/1.1\r\n" + HOST + b"Content-Length: 4\r\n\r\n\r\n\r\n",
    "chunks": b"POST /api/show HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n4\r\n\r\n\r\n\r\n0\r\n\r\n",
    "trailers": b"POST /api/show HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n0\r\nX: y\r\n\r\n",
}
LINES = [b"GET  / HTTP/1.1\r\n", b"GET /  HTTP/1.1\r\n", b"POST  /api/show HTTP/1.1\r\nContent-Length: 2\r\n"]


@pytest.mark.parametrize("before", BEFORE)
@pytest.mark.parametrize("line", LINES)
def test_two_spaces_are_refused_in_any_cutting(stage: Stage, before: str, line: bytes) -> None:
    """A request line may arrive in parts, and behind another request in one write."""
    request = line + HOST + b"\r\n{}"
    ahead = BEFORE[before].count(b" HTTP/1.1")
    sent = BEFORE[before] + request
    cuttings = [[sent], [BEFORE[before], request], [sent[i : i + 1] for i in range(len(sent))]]
    cuttings += [[sent[:-cut], sent[-cut:]] for cut in range(len(request) - 6, len(request) + 4)]
    for pieces in cuttings:
        answers = re.findall(rb"HTTP/1\.1 (\d+)", talk(stage, *pieces, pause_s=0.002))
        assert len(answers) == ahead + 1, (pieces, answers)
        assert answers[-1] == b"400"


@pytest.mark.parametrize("before", BEFORE)
def test_a_request_behind_another_is_answered_in_any_cutting(stage: Stage, before: str) -> None:
    last = b"GET /sollol/health HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n"
    sent = BEFORE[before] + last
    for cut in range(0, len(sent), 3):
        answer = talk(stage, sent[:cut], sent[cut:], pause_s=0.002)
        assert status(answer[answer.rindex(b"HTTP/1.1 ") :]) == 200, (sent[:cut], answer)


def test_a_slow_head_is_cut_off(stage: Stage) -> None:
    answer = talk(stage, *[bytes([c]) for c in b"GET / HTTP/1.1\r\nHost: a"], pause_s=0.05)
    assert status(answer) == 408


def test_a_slow_body_is_cut_off(stage: Stage) -> None:
    answer = talk(stage, b"POST /api/chat HTTP/1.1\r\n" + HOST + b"Content-Length: 100\r\n\r\n{")
    assert status(answer) == 408


def test_an_idle_connection_is_closed(stage: Stage) -> None:
    began = time.monotonic()
    assert talk(stage, b"") == b""
    assert time.monotonic() - began > 0.3


def test_requests_sent_ahead_are_answered_in_order(stage: Stage) -> None:
    paths = [b"/sollol/health", b"/api/version", b"/", b"/api/nothing", b"/api/tags"] * 6
    asked = b"".join(b"GET " + path + b" HTTP/1.1\r\n" + HOST + b"\r\n" for path in paths[:-1])
    asked += b"GET /api/tags HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n"
    answer = talk(stage, asked)
    statuses = [int(part.split(b" ")[0]) for part in answer.split(b"HTTP/1.1 ")[1:]]
    assert statuses == [200, 200, 200, 404, 200] * 6
    assert answer.index(b"Ollama is running") > answer.index(b'"version"')


def test_a_body_is_asked_for(stage: Stage) -> None:
    with socket.create_connection(("127.0.0.1", stage.port), timeout=5) as sock:
        sock.sendall(b"POST /api/show HTTP/1.1\r\n" + HOST + b"Expect: 100-continue\r\nContent-Length: 20\r\n\r\n")
        assert sock.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        sock.sendall(b'{"model":"llama3.2"}')
        assert status(sock.recv(1000)) == 200


def test_http_1_0_gets_a_stream_that_ends_with_the_connection(stage: Stage) -> None:
    body = b'{"model":"llama3.2","prompt":"x","options":{"num_predict":3}}'
    answer = talk(
        stage, b"POST /api/generate HTTP/1.0\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    )
    head, _, said = answer.partition(b"\r\n\r\n")
    assert b"Transfer-Encoding" not in head
    assert b"Connection: close" in head
    assert said.startswith(b"{")
    assert b'"done":true' in said
    kept = talk(stage, b"GET / HTTP/1.0\r\nHost: localhost\r\nConnection: keep-alive\r\n\r\n" * 2)
    assert kept.count(b"Connection: keep-alive") == 2


def test_a_head_request_has_no_body(stage: Stage) -> None:
    answer = talk(stage, b"HEAD /api/tags HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n")
    assert answer.endswith(b"\r\n\r\n")
    assert b"Content-Length: 0" not in answer


def test_an_upgrade_is_passed_over(stage: Stage) -> None:
    upgrade = HOST + b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AA\r\n"
    body = b'{"model":"llama3.2"}'
    post = b"POST /api/show HTTP/1.1\r\n" + upgrade + b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
    last = b"GET / HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n"
    sent = b"GET / HTTP/1.1\r\n" + upgrade + b"\r\n" + post + last
    for pieces in ([sent], [sent[:100], sent[100:]], [sent[i : i + 9] for i in range(0, len(sent), 9)]):
        answer = talk(stage, *pieces)
        assert answer.count(b"HTTP/1.1 200 OK") == 3
        assert answer.count(b"Ollama is running") == 2
        assert answer.count(b'"capabilities"') == 1


def test_an_address_as_to_a_proxy(stage: Stage) -> None:
    answer = talk(stage, b"GET http://localhost/sollol/health HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n")
    assert status(answer) == 200


def test_chunks_in_any_cutting(stage: Stage) -> None:
    body = b'{"model":"llama3.2"}'
    chunks = b"".join(b"1\r\n%c\r\n" % c for c in body) + b"0\r\n\r\n"
    head = b"POST /api/show HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    assert status(talk(stage, *[(head + chunks)[i : i + 7] for i in range(0, len(head + chunks), 7)])) == 200


def test_a_client_that_does_not_read_is_cut_off() -> None:
    settings = msgspec.structs.replace(GatewaySettings(), limits=LIMITS)
    body = b'{"model":"llama3.2","prompt":"x","options":{"num_predict":400000}}'
    head = b"POST /api/generate HTTP/1.1\r\n" + HOST + b"Content-Length: %d\r\n\r\n" % len(body)
    with (
        sim_cluster([talker(1, 1e6)]) as nodes,
        gateway_over(nodes.urls, settings) as stage,
        socket.create_connection(("127.0.0.1", stage.port), timeout=5) as sock,
    ):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.sendall(head + body)
        deadline, busy = time.monotonic() + 15, True
        while busy and time.monotonic() < deadline:
            time.sleep(0.1)
            busy = stage.look(lambda gateway: bool(gateway.engine.scheduler.view().attempts or len(gateway.places)))
        assert not busy
        assert stage.look(lambda gateway: gateway.engine.scheduler.view().nodes[nodes[0][7:]].failed) == 0


def test_strangers_go_first_when_places_are_short() -> None:
    settings = msgspec.structs.replace(GatewaySettings(), limits=Limits(max_connections=4))
    slow = b"POST /api/chat HTTP/1.1\r\n" + HOST + b"Content-Length: 100\r\n\r\n{"
    with sim_cluster([NodeSpec()]) as nodes, gateway_over(nodes.urls, settings) as stage, stage.client() as known:
        assert known.get("/api/version").status_code == 200
        held = [socket.create_connection(("127.0.0.1", stage.port), timeout=5) for _ in range(3)]
        for sock in held:
            sock.sendall(slow)
        for _ in range(6):  # more than there are places
            time.sleep(2 * GRACE_S)
            with stage.client() as client:
                assert client.get("/api/version").status_code == 200
                assert known.get("/api/version").status_code == 200
        assert status(held[0].recv(1000)) == 503
        assert stage.look(lambda gateway: len(gateway.places)) <= 4
        for sock in held:
            sock.close()


def test_connections_whose_requests_are_answered_stay() -> None:
    settings = msgspec.structs.replace(GatewaySettings(), limits=Limits(max_connections=2))
    body = b'{"model":"llama3.2","prompt":"x","options":{"num_predict":100000}}'
    busy = b"POST /api/generate HTTP/1.1\r\n" + HOST + b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
    with sim_cluster([talker(1)]) as nodes, gateway_over(nodes.urls, settings) as stage:
        held = [socket.create_connection(("127.0.0.1", stage.port), timeout=5) for _ in range(2)]
        for sock in held:
            sock.sendall(busy)
        until(lambda: stage.look(lambda gateway: len(gateway.engine.scheduler.view().tasks)) == 2)
        time.sleep(2 * GRACE_S)
        answer = talk(stage, b"GET / HTTP/1.1\r\n" + HOST + b"\r\n")
        assert status(answer) == 503
        assert b"Retry-After: " in answer
        for sock in held:
            sock.close()
        until(lambda: stage.look(lambda gateway: len(gateway.places)) == 0)
        with stage.client() as client:
            assert client.get("/").status_code == 200
