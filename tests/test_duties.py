"""Background duties: whatever is raised in one of them, it is logged with its traceback, counted, and goes on."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import logging
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sollol import OllamaPool, duties
from sollol.backends.ollama import load_call
from sollol.backends.probe import probe, probes
from sollol.cli import serving
from sollol.cli.console import warn
from sollol.compat.gpu_controller import SOLLOLGPUController
from sollol.core.actions import Load
from sollol.core.types import Kind
from sollol.dashboard.feed import Feed
from sollol.dashboard.watch import Watch
from sollol.duties import PAUSE_MOST_S, Duties, in_thread, pause_s
from sollol.engine import dispatcher, resumption, stream_watch
from sollol.gateway import app
from sollol.gateway.auth.keys import Key, Keyring, add_key, revoke_key
from sollol.pool import thread
from sollol.pool.aio import AsyncOllamaPool
from sollol.sim import sim_cluster
from sollol.transport.resolver import Resolver
from tests.gateway.stage import MODEL, Stage, gateway_over, talker, until

SOURCE = Path(duties.__file__).parent
# What is started by hand: each belongs to one call, or to one search or transfer, whose end waits for it.
BY_HAND = {
    "http_server/server.py": 1,  # the handler of a request
    "gateway/shared_queries.py": 1,  # a question that several requests wait for
    "gateway/routes/blobs.py": 2,  # a transfer to one node
    "transport/client_connection.py": 1,  # the body of a request
    "transport/http.py": 2,  # the connection of a request
    "transport/dialing.py": 1,  # the addresses of a host, tried beside each other
    "backends/probe.py": 1,  # the two lists of a probe
    "engine/dispatcher.py": 1,  # an attempt
    "models/operations.py": 2,  # progress of a transfer
    "pool/thread.py": 1,  # the thread of a pool: its start is waited for
    "compat/background.py": 1,  # a loop for callers without one
    "compat/gpu_placement.py": 1,  # a load that is waited for
    "compat/hedging.py": 2,  # copies of a call
    "dashboard/watch.py": 1,  # a question to a node for one frame
    "dashboard/source.py": 1,  # a reading for one frame
    "dashboard/server.py": 1,  # the server, started by its owner
    "discovery/search.py": 1,  # a search that its caller waits for
    "models/distribution.py": 1,  # lines of several transfers, read by one caller
    "registry/upstream.py": 1,  # a fetch, whose readers get its error
    "cli/terminal.py": 1,  # keys of a terminal, read while it is shown
    "cli/top_live.py": 1,  # a task group
}


class Boom(Exception):
    pass


def failing(times: int, then: Callable[..., Any]) -> Callable[..., Any]:
    """Return `then` with an exception in its first calls."""
    calls = iter(range(times))

    def call(*given: Any, **named: Any) -> Any:
        if next(calls, None) is not None:
            raise Boom("by the test")
        return then(*given, **named)

    return call


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duties, "PAUSE_S", 0.01)


def tracebacks(caplog: pytest.LogCaptureFixture) -> int:
    return sum(1 for record in caplog.records if record.exc_info and record.exc_info[0] is Boom)


@contextlib.contextmanager
def served(**more: Any) -> Iterator[Stage]:
    with sim_cluster([talker(1)]) as nodes, gateway_over(nodes.urls, **more) as stage:
        yield stage


def faults(stage: Stage) -> int:
    return stage.look(lambda gateway: gateway.engine.dispatcher.faults)


# --- the mechanism ---


def test_a_duty_goes_on_after_each_failure(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        enough = asyncio.Event()
        owner = Duties()

        async def work() -> None:
            enough.set()

        task = owner.keep("a duty", failing(5, work))
        async with asyncio.timeout(10):
            await enough.wait()
        assert (owner.failures, task.done()) == (5, False)
        await owner.aclose()
        assert task.cancelled()

    asyncio.run(main())
    assert tracebacks(caplog) == 5


def test_the_pause_doubles_and_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duties, "PAUSE_S", 0.5)
    assert [pause_s(failures) for failures in (1, 2, 3)] == [0.5, 1.0, 2.0]
    assert pause_s(10**6) == PAUSE_MOST_S


def test_what_is_done_once_and_in_threads_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    async def fails() -> None:
        raise Boom

    async def main() -> None:
        owner = Duties()
        await asyncio.wait([owner.once("once", fails())])
        await asyncio.sleep(0)
        owner.guarded("a timer", failing(1, print))()
        assert owner.failures == 2

    asyncio.run(main())
    in_thread("a thread", failing(1, print)).join(10)
    assert tracebacks(caplog) == 3


def test_tasks_and_threads_are_started_here_or_belong_to_a_call() -> None:
    found: dict[str, int] = {}
    for path in SOURCE.rglob("*.py"):
        name = path.relative_to(SOURCE).as_posix()
        if name.startswith("sim/") or name == "duties.py":
            continue
        for item in ast.walk(ast.parse(path.read_text())):
            called = item.func if isinstance(item, ast.Call) else None
            word = (
                called.attr if isinstance(called, ast.Attribute) else called.id if isinstance(called, ast.Name) else ""
            )
            if word in ("create_task", "ensure_future", "Thread"):
                found[name] = found.get(name, 0) + 1
    found = {name: count for name, count in found.items() if count > BY_HAND.get(name, 0)}
    assert not found, f"start these by sollol.duties, or list them with their reason: {found}"


# --- each duty: it throws, and is alive afterwards ---


def test_the_date_of_answers(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    with served() as stage:
        monkeypatch.setattr(app.Gateway, "header_lines", failing(3, lambda gateway: b"Later: 1\r\n"))
        until(lambda: b"Later: 1" in stage.look(lambda gateway: gateway.common))
        assert faults(stage) == tracebacks(caplog) == 3


def test_the_watch_over_settings_and_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "keys.json"
    token = add_key(path, Key("me", "", app="me"))
    monkeypatch.setattr(serving, "WATCH_S", 0.02)
    ring = Keyring(path=path, required=True)
    read: Any = SimpleNamespace(version=lambda: 1)
    with served(keyring=ring) as stage, stage.client(headers={"Authorization": f"Bearer {token}"}) as client:

        async def start(gateway: app.Gateway) -> None:
            watch = serving.SettingsWatch(read, gateway, asyncio.Event())
            gateway.duties.keep(serving.WATCH, watch.look)

        stage.on_loop(start)
        assert client.get("/api/tags").status_code == 200
        monkeypatch.setattr(ring, "reload", failing(3, ring.reload))  # inside of the watch
        monkeypatch.setattr(serving, "warn", failing(2, warn))  # and where it reports
        revoke_key(path, "me")
        until(lambda: client.get("/api/tags").status_code == 401)
        assert faults(stage) >= 3
        assert tracebacks(caplog) >= 3


def test_the_watch_over_silent_streams(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    looked: list[float] = []
    monkeypatch.setattr(stream_watch, "LOOK_S", 0.02)
    monkeypatch.setattr(stream_watch, "LEAST_S", 0.0)
    monkeypatch.setattr(
        stream_watch.StreamWatch, "_silent", failing(3, lambda self, now: looked.append(now) or iter(()))
    )
    with served() as stage, stage.client() as client:
        body = {"model": MODEL, "prompt": "a", "options": {"num_predict": 10_000}}
        with client.stream("POST", "/api/generate", json=body) as answer:
            pieces = answer.iter_raw()
            next(pieces)
            until(lambda: looked)
        assert faults(stage) == tracebacks(caplog) == 3


def test_asking_a_node_how_it_is(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    with served() as stage:
        monkeypatch.setattr(dispatcher, "probes", failing(1, probes))
        stage.look(lambda gateway: gateway.engine.refresh())
        until(lambda: tracebacks(caplog) == 1)

        def state(gateway: app.Gateway) -> str:
            gateway.engine.refresh()  # as a call would
            return gateway.pool.nodes[0].state

        until(lambda: stage.look(state) == "up")
        assert faults(stage) == 1


def test_a_message_to_a_node(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    headers = {"X-Sollol-Keep-Alive": "10m"}
    body = {"model": MODEL, "prompt": "a", "stream": False, "options": {"num_predict": 2}}
    with served() as stage, stage.client(headers=headers) as client:
        own = stage.gateway.engine.dispatcher
        sent: list[Any] = []
        first = failing(1, lambda node, call: sent.append(call))

        async def send(node: Any, call: Any) -> None:
            first(node, call)

        monkeypatch.setattr(own, "_send", send)
        for _ in range(2):
            assert client.post("/api/generate", json=body).status_code == 200
        until(lambda: sent)
        assert faults(stage) == tracebacks(caplog) == 1


def test_loading_ahead(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    with served() as stage:
        own = stage.gateway.engine.dispatcher
        monkeypatch.setattr(dispatcher, "load_call", failing(1, load_call))
        action = Load(next(iter(own.scheduler.view().nodes)), MODEL, Kind.CHAT, "")

        async def load(gateway: app.Gateway) -> None:
            await asyncio.wait([own.duties.once("a load", own._load(action))])

        for _ in range(2):
            stage.on_loop(load)
        assert faults(stage) == tracebacks(caplog) == 1


def test_whether_other_nodes_can_go_on(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(resumption.ResumeSupport, "render_prompt", failing(1, resumption.ResumeSupport.render_prompt))
    body = {"model": MODEL, "prompt": "a", "options": {"num_predict": 20}}
    specs = [talker(number, continues=True) for number in (1, 2)]
    with sim_cluster(specs) as nodes, gateway_over(nodes.urls) as stage, stage.client() as client:
        for _ in range(2):
            assert client.post("/api/generate", json=body).status_code == 200
        until(lambda: stage.look(lambda gateway: list(gateway.engine.resume_support._supported.values())) == [True])
        assert faults(stage) == tracebacks(caplog) == 1


def test_what_the_page_shows(caplog: pytest.LogCaptureFixture) -> None:
    async def good() -> dict[str, Any]:
        return {"good": True}

    async def main() -> None:
        feed = Feed(failing(3, good), every_s=0.01)
        assert feed.take_place()
        frames = feed.frames()
        seen = b""
        async with asyncio.timeout(10):
            while b"good" not in seen:
                seen = await anext(frames)
        feed.leave()

    asyncio.run(main())
    assert tracebacks(caplog) == 1  # once, while it stays the same


def test_the_nodes_of_a_page_without_a_pool(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    from sollol.dashboard import watch

    async def main(url: str) -> list[str]:
        seen = Watch([url])
        states: list[str] = [(await seen.snapshot(None)).nodes[0].state for _ in range(2)]
        await seen.aclose()
        return states

    monkeypatch.setattr(watch, "probe", failing(1, probe))
    with sim_cluster([talker(1)]) as nodes:
        assert asyncio.run(main(nodes.urls[0])) == ["down", "up"]
    assert tracebacks(caplog) == 1


def test_looking_a_name_up(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    from sollol.transport import resolver

    row = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.9", 0))
    monkeypatch.setattr(socket, "getaddrinfo", failing(1, lambda *_, **__: [row]))
    monkeypatch.setattr(resolver, "RETRY_S", 0.0)

    async def main() -> tuple[str, ...]:
        names = Resolver()
        async with asyncio.timeout(10):
            with pytest.raises(OSError, match="Boom"):
                await names.resolve("node")
            return await names.resolve("node")

    assert asyncio.run(main()) == ("127.0.0.9",)
    assert tracebacks(caplog) == 1


@pytest.mark.parametrize("place", ["_identify", "_fill"])
def test_a_search_for_nodes(place: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    from sollol.discovery import discover_ollama_nodes, search, sweep

    room: Any = {"_identify": search._Search, "_fill": sweep.Sweep}[place]
    monkeypatch.setattr(room, place, failing(1, getattr(room, place)))
    monkeypatch.setattr(sweep, "PAUSE_S", 0.01)
    monkeypatch.delenv("OLLAMA_HOST", raising=False)
    with sim_cluster([talker(1), talker(2)]) as nodes:
        ports = [int(url.rpartition(":")[2]) for url in nodes.urls]
        found = discover_ollama_nodes(5.0, auto_resolve_docker=False, subnets=["127.0.0.1/32"], ports=ports)
    assert len(found) == (1 if place == "_identify" else 2)
    assert tracebacks(caplog) == 1


def test_the_start_of_a_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    with sim_cluster([talker(1)]) as nodes, OllamaPool(nodes.urls) as pool:
        monkeypatch.setattr(thread, "AsyncOllamaPool", failing(1, AsyncOllamaPool))
        with pytest.raises(Boom):
            pool.wait_ready()
        assert pool.generate(MODEL, "a", options={"num_predict": 2}).done


def test_warming_models(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(SOLLOLGPUController, "optimize_cluster", failing(1, print))
    with sim_cluster([talker(1)]) as nodes:
        control = SOLLOLGPUController(nodes.urls, [MODEL])
        until(lambda: tracebacks(caplog) == 1)
        assert control.get_model_status(nodes.urls[0])["models"]
        control.close()


def test_nothing_is_logged_of_what_ends_by_itself(caplog: pytest.LogCaptureFixture) -> None:
    with served() as stage, stage.client() as client:
        assert client.get("/api/tags").status_code == 200
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert threading.active_count() >= 1
