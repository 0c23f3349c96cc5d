"""A gateway between hostile clients and hostile nodes, with one good node, for as long as you like.

Bodies and answers are honest ones with bytes changed, cut out, doubled and nested, made from one seed. Nodes reset
connections and come back; clients hang up. What must hold: every client that stays has an answer, no slot stays taken,
no exception of ours, no memory that grows.
"""

from __future__ import annotations

import random
import resource
import socket
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler
from typing import Any, ClassVar, NamedTuple

from sollol.gateway.auth.keys import Key, Keyring, hash_of
from sollol.sim import ModelSpec, sim_cluster
from tests.gateway.stage import MODEL, answering, gateway_over, talker

EMBED = "nomic-embed-text"
TOKEN = "soak-0123456789abcdef"
STRANGE = [
    b"[" * 3_000, b"9" * 400, b"1e999", b"-1", b"\xff\xfe", b"\\ud800", b"\x00", b"null", b'{"a":' * 500, b'"', b"}",
    b"\n", b"\x1b[2J", b'"eval_count":1000000000000000000', b'"error":"x"', b"[[[]]]", b"NaN", b"{}", b"\r\n\r\n", b",",
]  # fmt: skip
BODIES = [
    b'{"model":"llama3.2","messages":[{"role":"user","content":"a"}],"stream":false,"options":{"num_predict":8}}',
    b'{"model":"llama3.2","messages":[{"role":"user","content":"a"}],"options":{"num_predict":8}}',
    b'{"model":"llama3.2","prompt":"a","options":{"num_predict":8}}',
    b'{"model":"llama3.2","messages":[{"role":"user","content":"a"}],"max_tokens":8,"stream":true}',
    b'{"model":"nomic-embed-text","input":["a","b"]}',
    b'{"model":"nomic-embed-text","input":[%b]}' % b",".join([b'"a"'] * 80),
]
ROUTES = [
    "/api/chat", "/api/generate", "/api/embed", "/api/embeddings", "/api/show", "/v1/chat/completions",
    "/v1/completions", "/v1/embeddings", "/v1/messages", "/v1/responses", "/api/tags", "/api/ps", "/api/version",
]  # fmt: skip
ANSWERS = [
    b'{"model":"llama3.2","message":{"role":"assistant","content":"hi"},"done":true,"eval_count":1,"eval_duration":5}',
    b'{"model":"llama3.2","message":{"role":"assistant","content":"hi"},"done":false}\n{"model":"llama3.2","done":true}\n',
    b'{"model":"nomic-embed-text","embeddings":[[1,0],[0,1]],"prompt_eval_count":2}',
    b'data: {"id":"a","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":"a"}}]}\n\n',
    b'{"error":"it broke"}',
]
LISTS = {
    "/api/version": b'{"version":"0.33.0"}',
    "/api/tags": b'{"models":[{"name":"llama3.2:latest","model":"llama3.2:latest","size":1000},'
    b'{"name":"nomic-embed-text:latest","model":"nomic-embed-text:latest","size":1000}]}',
    "/api/ps": b'{"models":[]}',
}


class Result(NamedTuple):
    answered: int
    statuses: dict[int, int]
    unanswered: int
    hung_up: int
    open_tasks: int
    attempts: int
    faults: int
    grown_mb: float
    good_status: int
    unsettled: int
    tokens: int

    @property
    def holds(self) -> bool:
        """Check that nothing was left waiting, taken or unexpected."""
        left = self.unanswered + self.open_tasks + self.attempts + self.faults + self.unsettled
        return not left and self.good_status == 200 and self.answered > 0


def changed(text: bytes, rng: random.Random) -> bytes:
    """Return bytes with up to four changes."""
    for _ in range(rng.randint(0, 4)):
        place = rng.randint(0, len(text))
        end = min(len(text), place + rng.randint(0, 8))
        text = text[:place] + rng.choice([rng.choice(STRANGE), b"", text[place:end] * 2]) + text[end:]
    return text


class HostileNode(BaseHTTPRequestHandler):
    """Says what chance says, with any status, and sometimes breaks off."""

    protocol_version = "HTTP/1.1"
    rng: ClassVar[random.Random]

    def log_message(self, *args: Any) -> None: ...

    def handle(self) -> None:
        try:
            super().handle()
        except OSError:
            pass

    def do_GET(self) -> None:
        lists = LISTS.get(self.path, b"{}")
        self._say(200, changed(lists, self.rng) if self.rng.random() < 0.3 else lists)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("content-length", 0)))
        rng = self.rng
        status = rng.choice([200] * 12 + [400, 404, 420, 430, 449, 499, 500, 503, 599])
        self._say(status, changed(rng.choice(ANSWERS), rng))

    def _say(self, status: int, body: bytes) -> None:
        rng = self.rng
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if rng.random() < 0.1:
            body = body[: rng.randint(0, len(body))]
            self.close_connection = True
        self.wfile.write(body)


class Client(threading.Thread):
    """Sends hostile bodies, one after the other, and sometimes hangs up."""

    def __init__(self, port: int, seed: int, until: float, patience_s: float) -> None:
        super().__init__(daemon=True)
        self.port, self.rng, self.until, self.patience_s = port, random.Random(seed), until, patience_s
        self.statuses: Counter[int] = Counter()
        self.unanswered = self.hung_up = 0
        self.silent: list[bytes] = []

    def run(self) -> None:
        while time.monotonic() < self.until:
            rng = self.rng
            path, body = rng.choice(ROUTES), changed(rng.choice(BODIES), rng)
            method = "POST" if path[5:] not in ("tags", "ps", "version") else "GET"
            head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nX-Api-Key: {TOKEN}\r\n"
            head += f"Content-Length: {len(body)}\r\n\r\n"
            self._ask(head.encode() + body)

    def _ask(self, request: bytes) -> None:
        with socket.create_connection(("127.0.0.1", self.port), self.patience_s) as connection:
            connection.sendall(request)
            if self.rng.random() < 0.1:
                self.hung_up += 1
                return
            try:
                head = connection.recv(65_536)
                while head and connection.recv(65_536):
                    pass
            except ConnectionResetError:
                head = head if "head" in locals() else b""
            except TimeoutError:
                self.unanswered += 1
                self.silent.append(request)
                return
        if head.startswith(b"HTTP/1.1 "):
            self.statuses[int(head[9:12])] += 1
        else:
            self.unanswered += 1
            self.silent.append(request)


def resident_mb() -> float:
    """Return the memory of this process, in MB."""
    with open("/proc/self/statm") as told:
        return int(told.read().split()[1]) * resource.getpagesize() / 1e6


def soak(seconds: float, seed: int, clients: int = 6, patience_s: float = 30.0) -> Result:
    """Run for so long and return what was seen."""
    models = (*talker(1).models, ModelSpec(EMBED, "embed"))
    spec = talker(1, 50_000.0, models=models, loaded=(MODEL, EMBED))
    key = Key("soak", hash_of(TOKEN), app="soak", tokens_per_minute=10**9)
    hostile = [type("Node", (HostileNode,), {"rng": random.Random(seed + number)}) for number in (1, 2)]
    with (
        answering(hostile[0]) as one,
        answering(hostile[1]) as two,
        sim_cluster([spec]) as cluster,
        gateway_over([one, two, *cluster.urls], keyring=Keyring([key], required=True)) as stage,
    ):
        before = resident_mb()
        until = time.monotonic() + seconds
        threads = [Client(stage.port, seed * 1_000 + number, until, patience_s) for number in range(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(seconds + 2 * patience_s)
        good = {"model": MODEL, "prompt": "a", "stream": False, "options": {"num_predict": 4}}
        with stage.client(headers={"X-Api-Key": TOKEN}) as client:
            status = client.post("/api/generate", json=good).status_code
        for _ in range(100):
            left = stage.look(lambda g: (len(g.engine.scheduler.view().tasks), len(g.engine.scheduler.view().attempts)))
            if left == (0, 0):
                break
            time.sleep(0.05)
        account = stage.look(lambda gateway: gateway.limiter.usage()["soak"])
        statuses: Counter[int] = sum((thread.statuses for thread in threads), Counter())
        return Result(
            answered=statuses.total(),
            statuses=dict(sorted(statuses.items())),
            unanswered=sum(thread.unanswered for thread in threads),
            hung_up=sum(thread.hung_up for thread in threads),
            open_tasks=left[0],
            attempts=left[1],
            faults=stage.look(lambda gateway: gateway.engine.dispatcher.faults),
            grown_mb=round(resident_mb() - before, 1),
            good_status=status,
            unsettled=account["running"] + account["reserved"],
            tokens=account["tokens"],
        )
