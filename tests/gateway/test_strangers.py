"""Work for strangers: what is read, answered, held and parsed of a request before it is accepted, and after.

Bytes are counted by the gateway's own books, so that no bound here depends on the speed of a machine.
"""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Iterator

import msgspec
import pytest

from sollol.gateway.auth.keys import Keyring, keys_of_environment
from sollol.gateway.settings import GatewaySettings, Limits, Listen
from sollol.http_server.intake import READERS
from sollol.sim import sim_cluster
from tests.gateway.stage import MODEL, Stage, gateway_over, talker, until
from tests.http_server.test_connection import HOST, status, talk

MB = 1024 * 1024
TOKEN = "sk-sollol-of-a-test-that-is-long-enough"
LIMITS = Limits(
    header_timeout_s=1.0, body_timeout_s=2.0, max_body_mb=4, max_head_kb=8, max_arriving_mb=6, max_held_mb=8
)
KEY = b"Authorization: Bearer %b\r\n" % TOKEN.encode()
EXPECT = b"Expect: 100-continue\r\n"
BODY = b'{"model":"llama3.2","messages":[{"role":"user","content":"a"}],"stream":false,"options":{"num_predict":2}}'
DIGEST = b"sha256:" + b"a" * 64


@pytest.fixture(scope="module")
def cluster() -> Iterator[list[str]]:
    with sim_cluster([talker(1, 50_000.0)]) as made:
        yield made.urls


@pytest.fixture(scope="module")
def stage(cluster: list[str]) -> Iterator[Stage]:
    """Asks for no keys."""
    with gateway_over(cluster, msgspec.structs.replace(GatewaySettings(), limits=LIMITS)) as made:
        yield made


@pytest.fixture(scope="module")
def locked(cluster: list[str]) -> Iterator[Stage]:
    """Asks for keys."""
    settings = msgspec.structs.replace(GatewaySettings(), limits=LIMITS, listen=Listen(require_keys=True))
    keyring = Keyring(keys_of_environment(f"app={TOKEN}, admin:admin={TOKEN}-admin"), None, required=True)
    with gateway_over(cluster, settings, keyring=keyring) as made:
        yield made


def head(start: bytes, *lines: bytes, host: bytes = HOST) -> bytes:
    return b"%b HTTP/1.1\r\n%b%b\r\n" % (start, host, b"".join(lines))


def sent(body: bytes, *lines: bytes, start: bytes = b"POST /api/chat") -> bytes:
    return head(start, b"Content-Length: %d\r\n" % len(body), *lines) + body


def books(stage: Stage) -> tuple[int, int, int]:
    """Return the bytes that arrive and are held, and the bodies that are being read in turns."""
    return stage.look(lambda gateway: (gateway.intake.arriving, gateway.intake.held, gateway.intake.readers))


def statuses(answer: bytes) -> list[int]:
    return [int(found) for found in re.findall(rb"HTTP/1\.1 (\d+) ", answer)]


# --- decided by the head ---

FRAMINGS = {"a length": b"Content-Length: 1000000\r\n", "chunks": b"Transfer-Encoding: chunked\r\n"}
STRANGERS = {
    "no key": (401, b"POST /api/chat", HOST, b""),
    "another key": (401, b"POST /v1/chat/completions", HOST, b"Authorization: Bearer sk-sollol-no\r\n"),
    "no key, a route of the nodes": (401, b"POST /api/whatever", HOST, b""),
    "no key, an upload": (401, b"POST /api/blobs/" + DIGEST, HOST, b""),
    "a key without rights, an upload": (403, b"POST /api/blobs/" + DIGEST, HOST, KEY),
    "a key without rights, a pull": (403, b"POST /api/pull", HOST, KEY),
    "a foreign host": (403, b"POST /api/chat", b"Host: evil.example\r\n", KEY),
    "a foreign origin": (403, b"POST /api/chat", HOST, KEY + b"Origin: https://evil.example\r\n"),
    "an unknown route": (404, b"POST /sollol/nothing", HOST, KEY),
    "a method that is not taken": (405, b"PUT /api/chat", HOST, KEY),
    "no digest": (400, b"POST /api/blobs/sha256:abc", HOST, KEY.replace(b"\r\n", b"-admin\r\n")),
}


@pytest.mark.parametrize("framing", FRAMINGS)
@pytest.mark.parametrize("case", STRANGERS)
def test_a_refusal_comes_before_the_body(locked: Stage, case: str, framing: str) -> None:
    wanted, start, host, lines = STRANGERS[case]
    asked = head(start, FRAMINGS[framing], lines, EXPECT, host=host)
    answer = talk(locked, asked, wait_s=10)  # and no byte of the body
    assert statuses(answer) == [wanted], answer
    assert b"Connection: close\r\n" in answer
    # What follows is never taken for a request, even in the same write.
    answer = talk(locked, asked.replace(EXPECT, b"") + head(b"GET /api/version", KEY))
    assert statuses(answer) == [wanted], answer
    assert books(locked) == (0, 0, 0)


def test_a_body_is_asked_for_once_the_head_is_accepted(locked: Stage) -> None:
    with socket.create_connection(("127.0.0.1", locked.port), timeout=5) as sock:
        sock.sendall(head(b"POST /api/chat", b"Content-Length: %d\r\n" % len(BODY), KEY, EXPECT))
        assert sock.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        sock.sendall(BODY)
        assert status(sock.recv(10_000)) == 200


def test_a_refusal_waits_for_the_answers_before_it(locked: Stage) -> None:
    stranger = head(b"POST /api/chat", b"Content-Length: 100000\r\n")
    answer = talk(locked, sent(BODY, KEY) + head(b"GET /sollol/health") + sent(BODY, KEY) + stranger + b"{")
    assert statuses(answer) == [200, 200, 200, 401]


def test_a_body_that_no_route_takes_is_passed_over(locked: Stage) -> None:
    assert statuses(talk(locked, sent(b"a" * 5_000, b"Connection: close\r\n", start=b"GET /"))) == [200]
    answer = talk(locked, head(b"GET /", b"Content-Length: 3000000\r\n") + b"a" * 300_000)
    assert statuses(answer) == [413]
    assert books(locked) == (0, 0, 0)


@pytest.mark.parametrize("digest", [b"x", b"sha256:" + b"g" * 64, b"sha256:" + b"a" * 63, b"%0d%0aX:%20y", b"..%2f.."])
@pytest.mark.parametrize("method", [b"HEAD", b"POST"])
def test_only_digests_go_to_a_node(stage: Stage, method: bytes, digest: bytes) -> None:
    answer = talk(stage, sent(b"", b"Connection: close\r\n", start=method + b" /api/blobs/" + digest))
    assert status(answer) in (400, 404, 307)
    assert status(answer) == 400 or b"%2f" in digest


# --- framing ---


@pytest.mark.parametrize(
    "codings", [(b"gzip", b"chunked"), (b"chunked", b"chunked"), (b"chunked", b"gzip"), (b"x,chunked",)]
)
def test_transfer_encoding_is_chunked_once_or_nothing(stage: Stage, codings: tuple[bytes, ...]) -> None:
    lines = [b"Transfer-Encoding: %b\r\n" % coding for coding in codings]
    assert status(talk(stage, head(b"POST /api/chat", *lines) + b"0\r\n\r\n")) in (400, 501)


ENDLESS = {
    "trailers": b"0\r\n" + b"X: y\r\n" * 400_000,
    "one trailer": b"0\r\nX: " + b"y" * 2_000_000,
    "the name of a trailer": b"0\r\n" + b"y" * 2_000_000,
    "a chunk extension": b"1;" + b"y" * 2_000_000,
    "chunk extensions": b"1;yyyyyyyyyyyyyyyyyyyyyyyyyyyyyy\r\na\r\n" * 60_000,
}


@pytest.mark.parametrize("case", ENDLESS)
def test_what_belongs_to_no_body_is_bounded(stage: Stage, case: str) -> None:
    with socket.create_connection(("127.0.0.1", stage.port), timeout=10) as sock:
        sock.sendall(head(b"POST /api/chat", b"Transfer-Encoding: chunked\r\n"))
        try:
            sock.sendall(ENDLESS[case])
            answer = sock.recv(1000)
        except ConnectionError:
            pass
        else:
            assert status(answer) in (400, 431)
    until(lambda: books(stage) == (0, 0, 0))


@pytest.mark.parametrize("size", [1, 2, 7])
def test_a_body_in_small_chunks_is_answered(stage: Stage, size: int) -> None:
    text = b'{"model":"llama3.2","prompt":"%b","stream":false,"options":{"num_predict":2}}' % (b"word " * 40_000)
    chunks = b"".join(
        b"%x\r\n%b\r\n" % (len(text[i : i + size]), text[i : i + size]) for i in range(0, len(text), size)
    )
    lines = b"Transfer-Encoding: chunked\r\nConnection: close\r\n"
    answer = talk(stage, head(b"POST /api/generate", lines), chunks + b"0\r\n\r\n", wait_s=30)
    assert statuses(answer) == [200]
    assert books(stage) == (0, 0, 0)


# --- requests sent ahead ---


def test_heads_alone_count_as_heads(stage: Stage) -> None:
    many = head(b"GET /") * 3_000 + head(b"GET /", b"Connection: close\r\n")
    answer = talk(stage, many, wait_s=10)
    assert statuses(answer) == [200] * 3_001
    text = b'{"model":"llama3.2","prompt":"%b","stream":false,"options":{"num_predict":2}}' % (b"word " * 18_000)
    whole = sent(text, start=b"POST /api/generate") + head(b"GET /", b"Connection: close\r\n")
    for cut in (len(whole) - 30, len(text) - 10, 70_000):
        assert statuses(talk(stage, whole[:cut], whole[cut:], pause_s=0.1)) == [200, 200]


def test_what_is_sent_ahead_is_answered_before_what_is_wrong(stage: Stage) -> None:
    answer = talk(stage, head(b"GET /") * 40 + b"nonsense\r\n\r\n" + head(b"GET /"))
    assert statuses(answer) == [200] * 40 + [400]


# --- time ---


def test_a_slow_body_is_ended(stage: Stage) -> None:
    """A byte at a time: something comes always, and never enough."""
    with socket.create_connection(("127.0.0.1", stage.port), timeout=10) as sock:
        sock.sendall(head(b"POST /api/chat", b"Content-Length: 1000\r\n"))
        sock.settimeout(0.2)
        for _ in range(60):
            sock.sendall(b" ")
            try:
                assert status(sock.recv(1000)) == 408
                break
            except TimeoutError:
                pass
        else:
            raise AssertionError("it was never ended")


def test_a_health_check_with_bare_lines_has_a_time_too(stage: Stage) -> None:
    with socket.create_connection(("127.0.0.1", stage.port), timeout=10) as sock:
        sock.sendall(b"GET / HTTP/1.1\nX: ")
        sock.settimeout(0.2)
        for _ in range(60):
            try:
                sock.sendall(b"y")
                if not sock.recv(1000):
                    break
            except TimeoutError:
                continue
            except ConnectionError:
                break
        else:
            raise AssertionError("it was never ended")


# --- memory ---


def test_arriving_bodies_have_a_bound_together(stage: Stage) -> None:
    """Each may be 4 MB and all together 6: the largest is refused, never a small one."""
    held = [socket.create_connection(("127.0.0.1", stage.port), timeout=10) for _ in range(6)]
    for sock in held:
        sock.sendall(head(b"POST /api/chat", b"Content-Length: 4000000\r\n") + b'{"model":"llama3.2","x":"')
    most = 0
    for _ in range(30):
        for sock in held:
            try:
                sock.sendall(b"a" * 100_000)
            except ConnectionError:
                pass
        arriving, _, readers = books(stage)
        most = max(most, arriving)
        assert arriving <= 6 * MB
        assert readers <= READERS
        assert status(talk(stage, sent(BODY, b"Connection: close\r\n"))) == 200
    assert most > 2 * MB
    for sock in held:
        sock.close()
    until(lambda: books(stage) == (0, 0, 0))


def test_large_bodies_take_turns_and_all_arrive(stage: Stage) -> None:
    text = b'{"model":"llama3.2","prompt":"%b","stream":false,"options":{"num_predict":2}}' % (b"word " * 80_000)
    count = 3 * READERS
    held = [socket.create_connection(("127.0.0.1", stage.port), timeout=20) for _ in range(count)]
    request = sent(text, b"Connection: close\r\n", start=b"POST /api/generate")
    for place in range(0, len(request), 50_000):
        for sock in held:
            sock.sendall(request[place : place + 50_000])
    answers = [sock.recv(1000) for sock in held]
    for sock in held:
        sock.close()
    assert {status(answer) for answer in answers} == {200}
    until(lambda: books(stage) == (0, 0, 0))


def test_whole_bodies_have_a_bound_until_they_are_answered(cluster: list[str]) -> None:
    limits = msgspec.structs.replace(LIMITS, max_held_mb=4)
    text = b'{"model":"llama3.2","prompt":"%b","options":{"num_predict":1000000}}' % (b"word " * 300_000)
    with (
        sim_cluster([talker(1, 50.0)]) as slow,
        gateway_over(slow.urls, msgspec.structs.replace(GatewaySettings(), limits=limits)) as stage,
    ):
        held = [socket.create_connection(("127.0.0.1", stage.port), timeout=10) for _ in range(4)]
        for sock in held:
            sock.sendall(sent(text, start=b"POST /api/generate"))
        answer = held[3].recv(1000)
        assert status(answer) == 503
        assert b"Retry-After: " in answer
        assert books(stage)[1] <= 4 * MB
        for sock in held:
            sock.close()
        until(lambda: books(stage) == (0, 0, 0))


def test_connections_are_freed(stage: Stage) -> None:
    held = [socket.create_connection(("127.0.0.1", stage.port), timeout=5) for _ in range(50)]
    for place, sock in enumerate(held):
        sock.sendall([b"GET", head(b"GET /"), head(b"POST /api/chat", b"Content-Length: 9\r\n") + b"{"][place % 3])
    time.sleep(0.1)
    for sock in held:
        sock.close()
    until(lambda: stage.look(lambda gateway: len(gateway.places.all())) == 0)
    with stage.client() as client:
        asked = {"model": MODEL, "prompt": "a", "stream": False, "options": {"num_predict": 2}}
        assert client.post("/api/generate", json=asked).status_code == 200


# --- decoding ---


@pytest.mark.parametrize("unit", [b"{},", b"[],", b"1,", b'{"a":1},'], ids=repr)
@pytest.mark.parametrize("route", [b"/api/chat", b"/v1/chat/completions", b"/api/embed", b"/api/show", b"/api/new"])
def test_a_body_of_too_many_values_is_not_decoded(stage: Stage, route: bytes, unit: bytes) -> None:
    body = b'{"model":"llama3.2","messages":[%b{}]}' % (unit * (3 * MB // len(unit)))
    answer = talk(stage, sent(body, b"Connection: close\r\n", start=b"POST " + route), wait_s=20)
    assert status(answer) in (413, 400)
    assert b"too many values" in answer
    until(lambda: books(stage) == (0, 0, 0))


@pytest.mark.parametrize("stream", [b"true", b"false"])
def test_a_large_body_is_answered_as_a_small_one(stage: Stage, stream: bytes) -> None:
    for words in (10, 10_000, 500_000):  # decoded on the loop, and in a thread
        body = (
            b'{"Model":"llama3.2","messages":[{"role":"user","content":"%b"}],"stream":%b,"options":{"num_predict":2}}'
        )
        asked = body % (b"{a}, " * words, stream)
        answer = talk(stage, sent(asked, b"Connection: close\r\n"), wait_s=20)
        assert status(answer) == 200, answer[:300]
        assert b'"done":true' in answer
    padded = b'{"model":"llama3.2","x":"%b"}' % (b"word " * 400_000)
    answer = talk(stage, sent(padded, b"Connection: close\r\n", start=b"POST /api/show"), wait_s=20)
    assert status(answer) == 200
    many = b'{"model":"llama3.2","input":[%b"a"]}' % (b'"some text",' * 30_000)
    answer = talk(stage, sent(many, b"Connection: close\r\n", start=b"POST /api/embed"), wait_s=20)
    assert status(answer) != 413
