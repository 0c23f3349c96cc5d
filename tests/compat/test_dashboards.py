"""Dashboards and gateways as processes, started in the ways of 0.9; presence in a Redis; lines of a log."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sollol import OllamaPool
from sollol.compat import dashboard_client, dashboard_launcher, dashboard_service
from sollol.compat.http_calls import call, call_async
from sollol.dashboard import UnifiedDashboard
from sollol.errors import NoNodeAvailable, ResponseError, SollolError
from sollol.sim import NodeSpec, free_port, sim_cluster
from tests.exporters.conftest import RedisServer, made

pytestmark = pytest.mark.filterwarnings("ignore:.*no effect any more")


@pytest.fixture(scope="module")
def urls() -> Iterator[list[str]]:
    with sim_cluster([NodeSpec(), NodeSpec()]) as nodes:
        yield nodes.urls


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[RedisServer]:
    found = made(tmp_path)
    found.start()
    yield found
    found.stop()


def until(found: Callable[[], Any]) -> Any:
    ends = time.monotonic() + 30
    while time.monotonic() < ends:
        if value := found():
            return value
        time.sleep(0.01)
    raise AssertionError("it did not happen")


@pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")
def test_a_dashboard_in_a_process(urls: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOLLOL_NODES", ",".join(urls))
    launcher = dashboard_launcher.DashboardProcessLauncher(f"redis://127.0.0.1:{free_port()}", free_port(), debug=False)
    assert not launcher.is_running()
    assert launcher.get_pid() is None
    assert launcher.start()
    try:
        assert launcher.is_running()
        assert launcher.get_pid()
        assert launcher.start(), "it runs already"
        base = f"http://127.0.0.1:{launcher.port}"
        assert {row["url"] for row in call(base, "/api/snapshot")["nodes"]} == set(urls)
        assert call(base, "/api/applications") == {"applications": [], "total": 0}
        client = dashboard_client.DashboardClient("mine", dashboard_url=base)
        assert client.registered
        assert client.heartbeat({"x": 1})
    finally:
        assert launcher.stop()
    assert not launcher.is_running()
    assert not launcher.stop()


def test_a_dashboard_by_the_words_of_0_9(urls: list[str]) -> None:
    with OllamaPool(urls) as pool:
        dashboard = UnifiedDashboard(router=pool.router, dashboard_port=free_port(), enable_dask=True)
        thread = threading.Thread(
            target=dashboard.run, kwargs={"host": "127.0.0.1", "debug": False, "allow_fallback": True}
        )
        thread.start()
        assert until(lambda: dashboard.running)
        assert call(dashboard.url, "/health")["status"] == "ok"
        dashboard.stop()
        thread.join(20)
        assert not thread.is_alive()


def test_a_service_shows_the_pool_that_it_is_given(urls: list[str]) -> None:
    with OllamaPool(urls[:1]) as pool:
        service = dashboard_service.DashboardService(port=free_port(), router_getter=lambda: pool)
        threading.Thread(target=service.run, daemon=True).start()

        def shown() -> Any:
            try:
                return call(f"http://127.0.0.1:{service.port}", "/api/snapshot")["nodes"]
            except SollolError:
                return None

        assert [row["url"] for row in until(shown)] == urls[:1]


def test_the_gateway_command_of_0_9(urls: list[str], tmp_path: Path) -> None:
    port = free_port()
    command = [sys.executable, "-m", "sollol", "up", "--port", str(port), "--ollama-nodes", ",".join(urls)]
    environment = {**os.environ, "XDG_STATE_HOME": str(tmp_path), "HOME": str(tmp_path)}
    with subprocess.Popen(
        [*command, "--ray-workers", "4", "--no-batch-processing"], stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            found = until(lambda: _health(port))
            assert found["status"] == "ok"
        finally:
            process.terminate()
        assert process.stderr is not None
        assert f"sollol serve --port {port}" in process.stderr.read()


def _health(port: int) -> Any:
    try:
        return call(f"http://127.0.0.1:{port}", "/api/health")
    except SollolError:
        return None


# --- with a Redis ---


def test_an_application_is_present_in_redis(redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    from sollol.exporters.applications import read_members

    monkeypatch.setenv("SOLLOL_REDIS_URL", redis_server.url)
    client = dashboard_client.DashboardClient("mine", router_type="agents", version="2", metadata={"nodes": 3})
    assert client.registered
    redis = redis_server.client()
    (member,) = until(lambda: read_members(redis))
    assert (member.id, member.app, member.kind, member.version, member.nodes) == (
        client.app_id,
        "mine",
        "agents",
        "2",
        3,
    )
    client.unregister()
    client.unregister()
    assert until(lambda: not read_members(redis))


def test_lines_of_a_log_go_to_redis(redis_server: RedisServer) -> None:
    handler = dashboard_service.install_redis_log_publisher(redis_server.url)
    redis = redis_server.client()
    try:
        logging.getLogger("some.program").warning("it is %s", "warm")
        entries = until(lambda: redis.xrange(dashboard_service.REDIS_LOG_STREAM))
        lines = [json.loads(fields[b"data"]) for _, fields in entries]
        assert any(line["message"] == "it is warm" and line["level"] == "WARNING" for line in lines)
    finally:
        logging.getLogger().removeHandler(handler)
        handler.close()
    assert not dashboard_service.install_log_hook_main(f"redis://127.0.0.1:{free_port()}")


# --- single calls ---


def test_single_calls_name_what_is_wrong(urls: list[str]) -> None:
    assert call(urls[0], "/api/version")["version"]
    assert asyncio.run(call_async(urls[0], "/api/version"))["version"]
    with pytest.raises(NoNodeAvailable, match="refused"):
        call(f"http://127.0.0.1:{free_port()}", "/")
    with pytest.raises(ResponseError, match="nowhere"):
        call(urls[0], "/api/generate", {"model": "nowhere", "prompt": "x"})
    with pytest.raises(ResponseError, match="not JSON"):
        call(urls[0], "/")
