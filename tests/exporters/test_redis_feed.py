"""The Redis that applications share, with a real redis-server: seen by all, and awaited by no request."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from sollol import OllamaPool, UnifiedDashboard
from sollol.cli.app import app
from sollol.cli.applications import Applications
from sollol.config import load_settings
from sollol.config.problems import without_secrets
from sollol.errors import BadInput, ConfigError, SollolError
from sollol.exporters import redis_feed
from sollol.exporters.applications import REQUESTS, Identity, connect, read_members, read_recent, sums_by_app
from sollol.exporters.redis_feed import RedisFeed
from sollol.observe.metrics import APPS_MOST, OTHER
from sollol.sim import NodeSpec, sim_cluster
from tests.exporters.conftest import WAIT_S, RedisServer, made
from tests.gateway.stage import MODEL, gateway_over, talker

PROGRAM = """
import sys, time
from sollol import OllamaPool
with OllamaPool([sys.argv[1]], app_name=sys.argv[2]) as pool:
    for _ in range(int(sys.argv[3])):
        pool.chat("llama3.2", [{"role": "user", "content": "Hello"}], options={"num_predict": 3})
    print("done", flush=True)
    sys.stdin.readline()
"""


def until(true: Callable[[], Any]) -> None:
    end = time.monotonic() + WAIT_S
    while not true():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


def node() -> NodeSpec:
    return talker(1, 5_000.0)


def chat(pool: OllamaPool) -> None:
    pool.chat(MODEL, [{"role": "user", "content": "Hello"}], options={"num_predict": 3})


def feed_of(pool: OllamaPool) -> RedisFeed:
    assert pool._engine is not None
    feed = pool._engine.redis_feed
    assert feed is not None
    return feed


def connected(pool: OllamaPool) -> bool:
    return bool(feed_of(pool).applications()["connected"])


@pytest.fixture
def pool(server: RedisServer) -> Any:
    with sim_cluster([node()]) as cluster, OllamaPool(cluster.urls, app_name="one") as made_pool:
        made_pool.use_redis(server.url)
        chat(made_pool)
        until(lambda: connected(made_pool))
        yield made_pool


def test_two_processes_are_seen_by_one_reader(server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOLLOL_REDIS_URL", server.url)
    with sim_cluster([node()]) as cluster:
        programs = [
            subprocess.Popen(
                [sys.executable, "-c", PROGRAM, cluster.urls[0], app, str(number)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for app, number in (("indexer", 3), ("agents", 5))
        ]
        try:
            for program in programs:
                assert program.stdout is not None
                assert program.stdout.readline() == "done\n"
            client = connect(server.url)

            def requests() -> dict[str, float]:
                return {app: sums["requests"] for app, sums in sums_by_app(read_members(client)).items()}

            until(lambda: requests() == {"indexer": 3, "agents": 5})
            members = read_members(client)
            assert {(m.app, m.kind, m.pid) for m in members} == {
                (app, "pool", program.pid) for app, program in zip(("indexer", "agents"), programs, strict=True)
            }
            until(lambda: len(read_recent(client)) == 8)
            assert {record.app for record in read_recent(client)} == {"indexer", "agents"}
            for program in programs:  # a regular end is seen at once, not after the key has expired
                program.communicate("\n", timeout=WAIT_S)
            assert [program.returncode for program in programs] == [0, 0]
            assert read_members(client) == []
            client.close()
        finally:
            for program in programs:
                program.kill()
                program.communicate()


def test_a_killed_process_is_gone_after_its_key_has_expired(server: RedisServer, pool: OllamaPool) -> None:
    with server.client() as client:
        until(lambda: len(read_members(client)) == 1)
        client.sadd("sollol:members", "a-process-that-was-killed")
        assert [member.app for member in read_members(client)] == ["one"]
        assert client.scard("sollol:members") == 1
        assert 0 < client.ttl(f"sollol:member:{feed_of(pool).identity.id}") <= 10


def test_a_frozen_redis_delays_no_request_and_no_end(server: RedisServer, pool: OllamaPool) -> None:
    server.freeze()
    feed = feed_of(pool)
    began = time.monotonic()
    number = 0
    while not feed.problem:  # the feed runs into its timeout meanwhile
        chat(pool)
        number += 1
        assert time.monotonic() - began < WAIT_S, "the feed did not notice"
    assert number > 3  # a request that waited for Redis would take TIMEOUT_S
    assert not connected(pool)
    chat(pool)
    assert pool.get_stats()["failed_requests"] == 0
    pool.close()


def test_it_goes_on_after_a_restart_and_names_the_gap(
    server: RedisServer, pool: OllamaPool, caplog: pytest.LogCaptureFixture
) -> None:
    feed = feed_of(pool)
    with server.client() as client:  # what is on its way when the server ends is lost
        until(lambda: len(read_recent(client)) == 1)
    server.stop()
    until(lambda: feed.problem)
    for _ in range(4):
        chat(pool)
    until(lambda: any("cannot be used" in event["text"] for event in pool.overview()["events"]))
    server.start()
    until(lambda: connected(pool))
    with server.client() as client:  # what waited in the queue arrives
        until(lambda: len(read_recent(client)) >= 4)
    assert feed._records.lost == 0
    until(lambda: "answers again; no record was lost" in caplog.text)


def test_records_beyond_the_queue_are_lost_and_counted(
    server: RedisServer, pool: OllamaPool, caplog: pytest.LogCaptureFixture
) -> None:
    feed = feed_of(pool)
    until(lambda: not len(feed._records))
    server.stop()
    until(lambda: feed.problem)
    entries: Any = feed._records._entries
    feed._records._entries = type(entries)(entries, maxlen=3)
    for _ in range(5):
        chat(pool)
    assert (feed._records.lost, len(feed._records)) == (2, 3)
    assert pool._engine is not None
    text = pool.read_state(lambda: pool._engine.metrics("1"))  # type: ignore[union-attr]
    assert b'sollol_records_lost_total{subscriber="redis"} 2' in text
    assert b"sollol_redis_up 0" in text
    server.start()
    until(lambda: "answers again; records lost meanwhile: 2" in caplog.text)


def test_a_full_redis_costs_no_request(tmp_path: Path) -> None:
    server = made(tmp_path, "--maxmemory", "1mb", "--maxmemory-policy", "noeviction")
    server.start()
    try:
        with sim_cluster([node()]) as cluster, OllamaPool(cluster.urls, app_name="one") as pool:
            pool.use_redis(server.url)
            chat(pool)
            until(lambda: "maxmemory" in feed_of(pool).problem)
            chat(pool)
            with server.client() as client:
                client.config_set("maxmemory", "100mb")
            until(lambda: connected(pool))
    finally:
        server.stop()


def test_strangers_in_the_keys_are_left_out(server: RedisServer, pool: OllamaPool) -> None:
    with server.client() as client:
        for name, value in (("a", b"no JSON"), ("b", b'{"id": 5}'), ("c", b"\xff")):
            client.set(f"sollol:member:{name}", value)
            client.sadd("sollol:members", name)
        client.xadd(REQUESTS, {"other": "fields"})
        client.xadd(REQUESTS, {"records": "no JSON"})
        until(lambda: [member.app for member in read_members(client)] == ["one"])
        until(lambda: len(read_recent(client)) == 1)


def test_the_stream_is_bounded(server: RedisServer, pool: OllamaPool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_feed, "ENTRIES_MOST", 200)
    feed = feed_of(pool)
    with server.client() as client:
        until(lambda: client.xlen(REQUESTS))
        (record, *_) = read_recent(client)
        for _ in range(500):
            client.xadd(REQUESTS, {"records": "[]"})
        feed._records.put(record)
        feed._wake.set()
        until(lambda: client.xlen(REQUESTS) <= 300)  # Redis cuts off whole nodes of 100 entries


def test_the_gateway_shows_all_applications(
    server: RedisServer, pool: OllamaPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOLLOL_REDIS_URL", server.url)
    with sim_cluster([node()]) as cluster, gateway_over(cluster.urls) as stage, stage.client() as client:

        def apps() -> dict[str, Any]:
            found: dict[str, Any] = client.get("/sollol/snapshot").json()["applications"]
            return found

        until(lambda: {"one", ""} <= set(apps()["apps"]) and apps()["connected"])
        both = {("one", "pool"), ("", "gateway")}
        until(lambda: {(row["app"], row["kind"]) for row in apps()["processes"]} == both)
        text = client.get("/metrics").text
        assert "sollol_redis_up 1" in text
        assert 'sollol_application_processes{app="one"} 1' in text


def test_applications_beyond_the_bound_are_summed_as_other() -> None:
    identity = Identity("app", "1")
    totals = {f"app{number}": (1, 0, 0) for number in range(APPS_MOST + 20)}
    sums = sums_by_app([identity.present(totals, 0, 0, 0, 0)])
    assert len(sums) == APPS_MOST + 1
    assert sums[OTHER]["requests"] == 21


SECRET = "hunter2"


@pytest.mark.parametrize(
    "url",
    [
        f"redis://:{SECRET}@127.0.0.1:1/x",
        f"redis://user:{SECRET}@127.0.0.1:1",
        f"rediss://127.0.0.1:1?password={SECRET}",
        f"redis://:{SECRET}[@127.0.0.1:1",
        f"redis://:x/{SECRET}@127.0.0.1:1",
        f"redis://:x?{SECRET}@127.0.0.1:1",
        f"redis://127.0.0.1:1?password=x@{SECRET}",
        f"redis://:{SECRET}@127.0.0.1:port",
        f":{SECRET}@127.0.0.1:1",
        f"http://:{SECRET}@127.0.0.1:1",
    ],
)
def test_the_password_is_in_no_message(
    url: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert SECRET not in without_secrets(url)
    monkeypatch.setenv("SOLLOL_REDIS_URL", url)
    caplog.set_level(logging.DEBUG)
    try:
        load_settings()
    except ConfigError:
        with pytest.raises(ConfigError) as caught:
            load_settings()
        assert SECRET not in str(caught.value)
        return
    with sim_cluster([node()]) as cluster, OllamaPool(cluster.urls) as pool:
        chat(pool)
        until(lambda: feed_of(pool).problem)
        assert SECRET not in str(pool.overview()["applications"])
    assert "Redis at" in caplog.text
    assert SECRET not in caplog.text


def test_a_wrong_password_is_a_problem_in_words(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    server = made(tmp_path, password=SECRET)
    server.start()
    try:
        with sim_cluster([node()]) as cluster, OllamaPool(cluster.urls) as pool:
            pool.use_redis(server.url.replace(SECRET, "wrong-one"))
            chat(pool)
            until(lambda: "WRONGPASS" in caplog.text or "invalid" in caplog.text)
            assert "wrong-one" not in caplog.text
    finally:
        server.stop()


def test_a_missing_package_is_reported_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setitem(sys.modules, "redis", None)
    with sim_cluster([node()]) as cluster, OllamaPool(cluster.urls) as pool:
        pool.use_redis("redis://127.0.0.1:1")
        chat(pool)
        until(lambda: "pip install '.[redis]'" in caplog.text)
        chat(pool)
    assert caplog.text.count("cannot be used") == 1


@pytest.mark.parametrize(
    ("env", "url"),
    [
        ({}, None),
        ({"SOLLOL_REDIS_PORT": "6380"}, None),
        ({"SOLLOL_REDIS_HOST": "box"}, "redis://box:6379"),
        ({"SOLLOL_REDIS_HOST": "::1", "SOLLOL_REDIS_PORT": "6380"}, "redis://[::1]:6380"),
        ({"SOLLOL_REDIS_URL": "redis://a:1/2", "SOLLOL_REDIS_HOST": "box"}, "redis://a:1/2"),
        ({"SOLLOL_REDIS_URL": "unix:///run/redis.sock"}, "unix:///run/redis.sock"),
    ],
)
def test_the_url_wins_over_host_and_port(env: dict[str, str], url: str | None) -> None:
    assert load_settings(env).redis == url


def test_top_shows_all_applications(server: RedisServer, pool: OllamaPool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOLLOL_REDIS_URL", server.url)
    with server.client() as client:
        until(lambda: sum(row["requests"] for row in sums_by_app(read_members(client)).values()) == 1)
        until(lambda: len(read_recent(client)) == 1)
    run = CliRunner()
    shown = run.invoke(app, ["top", "--redis", "--once"])
    assert shown.exit_code == 0
    assert re.search(r"one +1 +1 ", shown.stdout)
    assert re.search(r"one +chat +llama3.2:latest .* ok ", shown.stdout)
    found = json.loads(run.invoke(app, ["top", "--redis", "--json"]).stdout)
    assert (found["apps"]["one"]["requests"], found["processes"][0]["pid"]) == (1, os.getpid())
    server.stop()
    assert isinstance(run.invoke(app, ["top", "--redis", "--once"]).exception, SollolError | SystemExit)


@pytest.mark.skipif(sys.platform == "win32", reason="no pty")
def test_top_of_a_redis_only_looks(server: RedisServer, pool: OllamaPool) -> None:
    from tests.cli.screens import screen_of

    with screen_of("top", "--redis", "--interval", "0.2", SOLLOL_REDIS_URL=server.url) as screen:
        screen.shows("1 application  1 process  ", "pool", "llama3.2:latest")
        for key, verb in (("d", "drain"), ("u", "unload"), ("c", "cancel"), ("e", "explain")):
            screen.press(key)
            screen.shows(f"{verb}: a shared Redis is only read")
        screen.press("/", *"nobody", "\r")
        screen.shows("applications: nothing matches the filter")
        screen.press("q")
        assert screen.ended() == 0
        assert screen.is_restored()


def test_top_without_a_redis_names_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SOLLOL_REDIS_URL", raising=False)
    with pytest.raises(BadInput, match="SOLLOL_REDIS_URL"):
        Applications()


def test_the_page_lists_applications(server: RedisServer, pool: OllamaPool) -> None:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("no Chromium on this machine")
    with UnifiedDashboard(pool, 0) as dashboard, playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        problems: list[str] = []
        tab = browser.new_page()
        tab.on("pageerror", lambda error: problems.append(str(error)))
        tab.goto(dashboard.url)
        row = tab.locator("#applications-table tbody tr")
        row.first.wait_for()
        assert row.locator("th").all_text_contents() == ["one"]
        row.first.locator("td").nth(3).get_by_text("1", exact=True).wait_for()
        server.stop()
        tab.locator("#applications-state").get_by_text("does not answer").wait_for()
        assert problems == []
        browser.close()
