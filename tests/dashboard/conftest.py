"""A real dashboard on loopback over simulated nodes, and a client that says exactly what it sends."""

from __future__ import annotations

import http.client
import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pytest

from sollol import OllamaPool, UnifiedDashboard
from sollol.sim import Cluster, ModelSpec, NodeSpec, sim_cluster

CHAT, EMBED = "llama3.2", "nomic-embed-text"
MODELS = (ModelSpec(CHAT, size_bytes=2_000_000_000), ModelSpec(EMBED, "embed", 274_000_000))
HELLO = [{"role": "user", "content": "Hello"}]
CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
ARGUMENTS += ["--disable-component-update", "--disable-sync"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as started:
        running = started.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield running
        running.close()


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OLLAMA_HOST", "SOLLOL_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SOLLOL_NODES", "127.0.0.1:9")


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    whole = NodeSpec(models=MODELS, decode_tokens_per_s=400.0)
    half = NodeSpec(
        models=MODELS, decode_tokens_per_s=200.0, vram_bytes=1_000_000_000, cpu_slowdown=2.0, loaded=(CHAT,)
    )
    with sim_cluster([whole, half]) as running:
        yield running


@pytest.fixture
def pool(cluster: Cluster) -> Iterator[OllamaPool]:
    with OllamaPool(list(cluster), app_name="trial") as made:
        yield made


@pytest.fixture
def dashboard(pool: OllamaPool) -> Iterator[UnifiedDashboard]:
    with UnifiedDashboard(pool, 0) as running:
        yield running


class Got(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


def get(url: str, path: str, host: str | None = None, method: str = "GET") -> Got:
    """One request. `host` replaces the Host header; "" leaves it out."""
    connection = http.client.HTTPConnection(str(urlsplit(url).hostname), urlsplit(url).port, timeout=10)
    try:
        connection.putrequest(method, path, skip_host=host is not None)
        if host:
            connection.putheader("Host", host)
        connection.endheaders()
        reply = connection.getresponse()
        return Got(reply.status, {name.lower(): value for name, value in reply.getheaders()}, reply.read())
    finally:
        connection.close()


class Listener:
    """A client of `/api/events`."""

    def __init__(self, url: str) -> None:
        self._connection = http.client.HTTPConnection(str(urlsplit(url).hostname), urlsplit(url).port, timeout=10)
        self._connection.request("GET", "/api/events")
        self.reply = self._connection.getresponse()

    def event(self) -> tuple[str, Any]:
        """The next event; ("", None) at the end of the stream."""
        name, data = "", None
        while line := self.reply.readline().decode():
            field, _, value = line.rstrip("\n").partition(": ")
            if field == "event":
                name = value
            elif field == "data":
                data = json.loads(value)
            elif not line.strip() and name:
                return name, data
        return "", None

    def close(self) -> None:
        self.reply.close()
        self._connection.close()


@contextmanager
def listener(url: str) -> Iterator[Listener]:
    made = Listener(url)
    try:
        yield made
    finally:
        made.close()


def dashboard_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "sollol-dashboard"]
