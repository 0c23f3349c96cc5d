"""The routes and the life of a dashboard, over real HTTP."""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from sollol import AsyncOllamaPool, BadInput, OllamaPool, UnifiedDashboard, run_unified_dashboard
from sollol.dashboard import CannotListen
from sollol.pool import keywords
from sollol.sim import Cluster, free_port
from tests.dashboard.conftest import CHAT, EMBED, HELLO, dashboard_threads, get, listener


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as other:
        yield other.getsockname()[1]


def until(true: Any, seconds: float = 5.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


# --- routes ---


def test_the_snapshot_is_the_pools_own(dashboard: UnifiedDashboard, pool: OllamaPool) -> None:
    pool.chat(CHAT, HELLO)
    pool.embed_batch(EMBED, ["a", "b", "c"])
    got = get(dashboard.url, "/api/snapshot")
    assert got.status == 200
    assert got.headers["content-type"] == "application/json; charset=utf-8"
    told = got.json()
    assert told["app_name"] == "trial"
    assert told["totals"]["total_requests"] == 2
    assert [row["kind"] for row in told["recent"]] == ["embed", "chat"]
    assert told.keys() == pool.overview().keys()
    assert [node["url"] for node in told["nodes"]] == [node.url for node in pool.nodes]


def test_nodes_are_asked_though_the_pool_was_never_used(dashboard: UnifiedDashboard) -> None:
    until(lambda: [n["state"] for n in get(dashboard.url, "/api/snapshot").json()["nodes"]] == ["up", "up"])
    processors = {m["processor"] for n in get(dashboard.url, "/api/snapshot").json()["nodes"] for m in n["loaded"]}
    assert processors == {"50%/50% CPU/GPU"}


def test_a_call_is_explained(dashboard: UnifiedDashboard, pool: OllamaPool) -> None:
    routing = pool.chat(CHAT, HELLO).routing
    told = get(dashboard.url, f"/api/explain/{routing.id}").json()
    assert told["node"] == routing.node
    assert told["predicted_ms"] == routing.predicted_ms
    assert told["candidates"][0]["terms"]
    missing = get(dashboard.url, "/api/explain/999")
    assert missing.status == 404
    assert "999" in missing.json()["error"]
    assert get(dashboard.url, "/api/explain/x").status == 404


def test_health_and_what_is_not_there(dashboard: UnifiedDashboard) -> None:
    assert get(dashboard.url, "/healthz").json()["status"] == "ok"
    assert get(dashboard.url, "/api/health").status == 404
    assert get(dashboard.url, "/", method="POST").status == 405
    assert get(dashboard.url, "/api/events", method="POST").status == 405


def test_a_foreign_name_is_refused(dashboard: UnifiedDashboard) -> None:
    port = dashboard.url.rpartition(":")[2]
    for path in ("/", "/api/snapshot", "/api/events", "/healthz", "/api/explain/1"):
        refused = get(dashboard.url, path, host=f"evil.example:{port}")
        assert refused.status == 403
        assert b"trial" not in refused.body
    assert get(dashboard.url, "/healthz", host=f"localhost:{port}").status == 200
    assert get(dashboard.url, "/healthz", host="[::1]").status == 200
    assert get(dashboard.url, "/healthz", host="").status in (400, 403)


def test_every_answer_is_closed_to_other_sites(dashboard: UnifiedDashboard) -> None:
    for path in ("/", "/api/snapshot", "/nothing"):
        headers = get(dashboard.url, path).headers
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert "access-control-allow-origin" not in headers
        assert "server" not in headers


# --- the stream ---


def test_listeners_get_a_snapshot_about_once_a_second(dashboard: UnifiedDashboard, pool: OllamaPool) -> None:
    with listener(dashboard.url) as first, listener(dashboard.url) as second:
        assert first.reply.headers["content-type"].startswith("text/event-stream")
        began = time.monotonic()
        frames = [first.event() for _ in range(3)]
        assert time.monotonic() - began > 1.0
        assert [name for name, _ in frames] == ["snapshot"] * 3
        assert second.event()[1]["app_name"] == "trial"
        pool.chat(CHAT, HELLO)
        until(lambda: first.event()[1]["recent"])


def test_a_listener_that_leaves_is_forgotten_and_too_many_are_refused(
    dashboard: UnifiedDashboard, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sollol.dashboard import feed

    monkeypatch.setattr(feed, "LISTENERS", 2)
    with listener(dashboard.url) as one, listener(dashboard.url) as two:
        assert one.event()[0] == two.event()[0] == "snapshot"
        with listener(dashboard.url) as three:
            assert three.reply.status == 503
            assert three.reply.headers["retry-after"]
    until(lambda: dashboard._running is not None and dashboard._running.feed.listening == 0)
    with listener(dashboard.url) as four:
        assert four.event()[0] == "snapshot"


def test_stopping_ends_every_stream(pool: OllamaPool) -> None:
    dashboard = UnifiedDashboard(pool, 0)
    with listener(dashboard.start()) as one:
        assert one.event()[0] == "snapshot"
        dashboard.stop()
        assert one.event() == ("", None)


# --- start and stop ---


def test_start_and_stop_leave_nothing_behind(pool: OllamaPool) -> None:
    before = dashboard_threads()
    dashboard = UnifiedDashboard(pool, 0)
    url = dashboard.start()
    assert dashboard.start() == url == dashboard.url
    assert len(dashboard_threads()) == len(before) + 1
    assert get(url, "/healthz").status == 200
    dashboard.stop()
    dashboard.stop()
    assert not dashboard.running
    assert dashboard_threads() == before
    with pytest.raises(ConnectionRefusedError):
        get(url, "/healthz")
    assert dashboard.start() == url  # the port was given back
    dashboard.stop()
    pool.chat(CHAT, HELLO)  # the pool is its user's


def test_run_blocks_until_stop(pool: OllamaPool) -> None:
    dashboard = UnifiedDashboard(pool, 0)
    thread = threading.Thread(target=dashboard.run)
    thread.start()
    until(lambda: dashboard.running)
    assert thread.is_alive()
    dashboard.stop()
    thread.join(2)
    assert not thread.is_alive()


def test_in_a_daemon_thread_as_in_the_guide(pool: OllamaPool) -> None:
    port = free_port()
    threading.Thread(target=run_unified_dashboard, args=(pool, port), daemon=True).start()
    until(lambda: listens(port))
    pool.chat(CHAT, HELLO)
    assert get(f"http://127.0.0.1:{port}", "/api/snapshot").json()["totals"]["successful_requests"] == 1
    pool.close()
    assert get(f"http://127.0.0.1:{port}", "/api/snapshot").json()["totals"]["successful_requests"] == 1


def test_it_ends_with_the_program() -> None:
    import subprocess

    code = (
        "import threading, time, sollol, urllib.request\n"
        "pool = sollol.OllamaPool()\n"
        "dashboard = sollol.UnifiedDashboard(pool, 0)\n"
        "url = dashboard.start()\n"
        "threading.Thread(target=sollol.run_unified_dashboard, args=(pool, 0), daemon=True).start()\n"
        "print(urllib.request.urlopen(url + '/healthz').status)\n"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20, check=True)
    assert out.stdout.strip() == "200"
    assert not out.stderr


def test_a_taken_port_is_told_and_the_program_goes_on(
    pool: OllamaPool, taken: int, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(CannotListen, match=rf"port {taken}: Address already in use; choose another port"):
        UnifiedDashboard(pool, taken).start()
    with caplog.at_level(logging.WARNING, "sollol.dashboard"):
        told = run_unified_dashboard(pool, taken)
    assert told["started"] is False
    assert told["url"] == f"http://127.0.0.1:{taken}"
    assert str(taken) in told["reason"]
    assert told["reason"] in caplog.text


def test_addresses_that_cannot_be_used(pool: OllamaPool) -> None:
    with pytest.raises(CannotListen, match=r"192\.0\.2\.1"):
        UnifiedDashboard(pool, 0, host="192.0.2.1").start()
    for port in (-1, 70_000, "8080", True):
        with pytest.raises(BadInput, match="port="):
            UnifiedDashboard(pool, port)  # type: ignore[arg-type]


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6")
def test_it_listens_where_it_is_told(pool: OllamaPool) -> None:
    try:
        with UnifiedDashboard(pool, 0, host="::1") as six:
            assert six.url.startswith("http://[::1]:")
            assert get(six.url, "/healthz").status == 200
    except CannotListen:
        pytest.skip("this machine has no ::1")


def test_the_main_program_is_not_touched(dashboard: UnifiedDashboard) -> None:
    """No signal handler, no logger set up."""
    import signal

    before = list(logging.getLogger().handlers)
    assert get(dashboard.url, "/healthz").status == 200
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert logging.getLogger().handlers == before


# --- what can be shown ---


def test_an_async_pool(cluster: Cluster) -> None:
    async def main() -> Any:
        async with AsyncOllamaPool(list(cluster), app_name="coroutines") as pool:
            with UnifiedDashboard(pool, 0) as dashboard:
                routing = (await pool.chat(CHAT, HELLO)).routing
                snapshot = await asyncio.to_thread(get, dashboard.url, "/api/snapshot")
                explained = await asyncio.to_thread(get, dashboard.url, f"/api/explain/{routing.id}")
                return snapshot.json(), explained.json()

    snapshot, explained = asyncio.run(main())
    assert snapshot["app_name"] == "coroutines"
    assert explained["outcome"] == "ok"


def test_a_router_with_a_pool(pool: OllamaPool) -> None:
    with UnifiedDashboard(SimpleNamespace(pool=pool), 0) as dashboard:
        assert get(dashboard.url, "/api/snapshot").json()["app_name"] == "trial"


@pytest.mark.parametrize("router", [None, SimpleNamespace(pool=None)])
def test_without_a_pool_the_nodes_of_the_settings(
    router: Any, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOLLOL_NODES", " ".join(cluster))
    with UnifiedDashboard(router, 0) as dashboard:
        told = get(dashboard.url, "/api/snapshot").json()
        assert told["watching"]
        assert [node["state"] for node in told["nodes"]] == ["up", "up"]
        assert get(dashboard.url, "/api/explain/1").status == 404


def test_anything_else_is_refused() -> None:
    with pytest.raises(BadInput, match="expected a pool"):
        UnifiedDashboard("http://127.0.0.1:11434", 0).start()


def test_old_keywords_are_accepted_and_said_once(pool: OllamaPool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keywords, "_warned", set())
    with pytest.warns(UserWarning, match="ray_dashboard_port") as told:
        UnifiedDashboard(pool, 0, ray_dashboard_port=8265)
    assert told[0].filename == __file__
    UnifiedDashboard(pool, 0, ray_dashboard_port=8265)  # a warning would be an error here
