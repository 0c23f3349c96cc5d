"""Agents that have the key and lie: the node goes on as one without an agent, and the finding is told."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from sollol.agent.report import contradiction, parse_report
from sollol.backends.agent_proof import proof_of
from sollol.core.types import LoadedModel
from sollol.gateway.settings import GatewaySettings
from sollol.sim import ModelSpec, NodeSpec, sim_cluster
from tests.agent.test_agent import KEY
from tests.gateway.stage import Stage, answering, gateway_over
from tests.gateway.test_agents import findings, look

GB = 10**9
MODEL = ModelSpec("llama3.2", size_bytes=2 * GB)
GPU = {"name": "RTX 3060", "driver": "nvidia", "memory_bytes": 12 * GB, "used_bytes": 3 * GB}


def report(**more: Any) -> bytes:
    """A report that is true, but for what is given."""
    disk = {"disk_bytes": 500 * GB, "disk_free_bytes": 100 * GB}
    memory = {"memory_bytes": 64 * GB, "available_bytes": 30 * GB}
    return json.dumps({"agent": "1.0.0", "at": time.time(), "gpus": [GPU], **memory, **disk, **more}).encode()


@contextmanager
def stage_with(body: bytes, status: int = 200, **headers: str) -> Iterator[Stage]:
    """A gateway over a node with an agent that signs, and answers this in place of its report."""

    class Liar(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            url = urlsplit(self.path)
            is_hello = url.path == "/agent/hello"
            proof = proof_of(KEY, parse_qs(url.query).get("nonce", [""])[0])
            answer = json.dumps({"proof": proof}).encode() if is_hello else body
            self.send_response(200 if is_hello else status)
            for name, value in {} if is_hello else headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *args: Any) -> None:
            pass

    spec = NodeSpec(models=(MODEL,), loaded=("llama3.2",))
    with answering(Liar) as url, sim_cluster([spec]) as nodes:
        settings = GatewaySettings(agents_key=KEY, agents_port=int(url.rpartition(":")[2]))
        with gateway_over(nodes.urls, settings) as stage:
            look(stage)
            yield stage


def memory(stage: Stage) -> list[int | None]:
    def read(gateway: Any) -> list[int | None]:
        return [gateway.context.agents.memory(node.key) for node in gateway.pool.nodes]

    return stage.look(read)


def test_the_truth_is_used() -> None:
    with stage_with(report()) as stage:
        assert findings(stage) == []
        assert memory(stage) == [12 * GB]


LIES: dict[str, tuple[Callable[[], bytes], str]] = {
    "negative": (lambda: report(memory_bytes=-5), "cannot be used"),
    "a petabyte of memory": (lambda: report(memory_bytes=2**50), "cannot be used"),
    "a petabyte on a GPU": (lambda: report(gpus=[{**GPU, "memory_bytes": 2**50}]), "cannot be used"),
    "a huge number": (lambda: report(load=10**300), "cannot be used"),
    "a fraction of a byte": (lambda: report(memory_bytes=1.5), "cannot be used"),
    "not a number": (lambda: report().replace(b"64000000000", b"NaN"), "cannot be used"),
    "infinity": (lambda: report().replace(b"64000000000", b"1e999"), "cannot be used"),
    "a text as number": (lambda: report(memory_bytes="64 GB"), "cannot be used"),
    "a number as text": (lambda: report(agent=7), "cannot be used"),
    "a list as object": (lambda: report(ollama=[]), "cannot be used"),
    "null where a number is": (lambda: report(memory_bytes=None), "cannot be used"),
    "a huge text": (lambda: report(gpus=[{**GPU, "name": "x" * 100_000}]), "cannot be used"),
    "thousands of GPUs": (lambda: report(gpus=[GPU] * 1_000), "cannot be used"),
    "thousands of settings": (
        lambda: report(ollama={"settings": {str(n): "" for n in range(5_000)}}),
        "cannot be used",
    ),
    "an endless report": (lambda: report(problems=["x" * 300] * 5_000), "does not answer"),
    "the future": (lambda: report(at=time.time() + 86_400), "away from the time here"),
    "the far future": (lambda: report(at=1e300), "cannot be used"),
    "the past": (lambda: report(at=0), "away from the time here"),
    "more free than there is": (lambda: report(available_bytes=65 * GB), "more free memory than there is"),
    "more room than there is": (lambda: report(disk_free_bytes=600 * GB), "more room on the disk than there is"),
    "more in use than there is": (lambda: report(gpus=[{**GPU, "used_bytes": 13 * GB}]), "than there is"),
    "less in use than listed": (
        lambda: report(gpus=[{**GPU, "used_bytes": 0}]),
        "while Ollama lists 2,000,000,000 there",
    ),
    "smaller than what is in it": (
        lambda: report(gpus=[{**GPU, "memory_bytes": 1_500_000_000, "used_bytes": 1_500_000_000}]),
        "it reports GPUs of 1,500,000,000 bytes, while Ollama lists 2,000,000,000 there",
    ),
    "nothing": (lambda: b"", "cannot be used"),
    "no JSON": (lambda: b"\xff\xfe\x00", "cannot be used"),
    "very deep JSON": (lambda: b'{"agent":' * 50_000, "cannot be used"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_is_a_finding_and_nothing_else_changes(lie: str) -> None:
    body, words = LIES[lie]
    with stage_with(body()) as stage:
        (finding,) = findings(stage)
        assert (finding["id"], finding["severity"]) == ("agent", "warning")
        assert words in finding["summary"]
        assert len(finding["summary"]) < 500
        assert memory(stage) == [None]
        assert stage.look(lambda gateway: gateway.context.agents and gateway.context.agents.rooms()) == {}
        answer = {"model": "llama3.2", "prompt": "a", "stream": False}
        assert httpx.post(f"{stage.url}/api/generate", json=answer, trust_env=False, timeout=20).status_code == 200


@pytest.mark.parametrize(
    ("status", "headers", "words"),
    [
        (401, {}, "another key"),
        (500, {}, "it answers 500"),
        (302, {"Location": "http://169.254.169.254/"}, "it answers 302"),
        (200, {"Content-Encoding": "gzip"}, "cannot be used"),
    ],
)
def test_an_answer_that_is_no_report(status: int, headers: dict[str, str], words: str) -> None:
    with stage_with(b"{}", status, **headers) as stage:
        (finding,) = findings(stage)
        assert words in finding["summary"]
        assert memory(stage) == [None]


def test_a_model_that_has_left_the_memory_since_the_last_probe_is_no_lie() -> None:
    with stage_with(report(gpus=[{**GPU, "used_bytes": 0}])) as stage:
        assert memory(stage) == [None]
        body = {"model": "llama3.2", "keep_alive": 0}
        (node,) = stage.look(lambda gateway: [node.url for node in gateway.pool.nodes])
        assert httpx.post(f"{node}/api/generate", json=body, trust_env=False, timeout=20).status_code == 200
        look(stage)  # the gateway's own list is still the old one
        assert stage.look(lambda gateway: gateway.pool.snapshot())["nodes"][0]["loaded"]
        assert findings(stage) == []
        assert memory(stage) == [12 * GB]


def test_a_list_that_is_older_than_the_report_is_no_lie() -> None:
    now = time.time()
    found = parse_report(report(at=now, gpus=[{**GPU, "used_bytes": 0}]), now)
    at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now - 20))
    assert contradiction(found, {"a": LoadedModel(GB, GB, at)}) == "", "it has left the memory 20 s ago"
    assert contradiction(found, {"a": LoadedModel(GB, GB, "2319-01-01T00:00:00Z")})
