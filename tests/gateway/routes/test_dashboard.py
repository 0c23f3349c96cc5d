"""The dashboard at the gateway's own address: the page, its feed, and who may see them."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from sollol.config import load_settings
from sollol.gateway.auth.keys import Key, Keyring, hash_of
from sollol.gateway.settings import gateway_settings
from sollol.gateway.settings_in_force import settings_in_force
from sollol.sim import sim_cluster
from tests.gateway.stage import MODEL, Stage, gateway_over, talker, until

PATHS = (
    "/dashboard/",
    *(f"/dashboard/api/{name}" for name in ("snapshot", "events", "explain/1", "history", "settings")),
)


def get(stage: Stage, path: str, **more: Any) -> httpx.Response:
    return httpx.get(f"{stage.url}{path}", trust_env=False, **more)


def events(stage: Stage, count: int, **more: Any) -> list[dict[str, Any]]:
    """Return the first snapshots of the feed."""
    found: list[dict[str, Any]] = []
    with httpx.stream("GET", f"{stage.url}/dashboard/api/events", trust_env=False, **more) as answer:
        assert answer.headers["content-type"] == "text/event-stream"
        for line in answer.iter_lines():
            if line.startswith("data: "):
                found.append(json.loads(line[6:]))
            if len(found) == count:
                break
    return found


def test_the_page_shows_the_gateways_own_pool() -> None:
    with sim_cluster([talker(1), talker(2)]) as nodes, gateway_over(nodes.urls) as stage:
        moved = get(stage, "/dashboard")
        assert (moved.status_code, moved.headers["location"]) == (307, "/dashboard/")
        page = get(stage, "/dashboard/")
        assert page.headers["content-type"] == "text/html; charset=utf-8"
        assert "default-src 'none'" in page.headers["content-security-policy"]
        assert page.headers["x-frame-options"] == "DENY"
        body = {"model": MODEL, "stream": False, "messages": [{"role": "user", "content": "Hello"}]}
        body["options"] = {"num_predict": 3}
        number = int(httpx.post(f"{stage.url}/api/chat", json=body, trust_env=False).headers["x-sollol-request-id"])
        first, second = events(stage, 2)
        assert len(first["nodes"]) == 2
        assert [call["id"] for call in second["recent"]] == [number]
        assert get(stage, f"/dashboard/api/explain/{number}").json()["outcome"] == "ok"
        assert get(stage, "/dashboard/api/snapshot").json()["totals"]["total_requests"] == 1
        assert get(stage, "/dashboard/api/explain/99").status_code == 404
        until(lambda: stage.look(lambda gateway: gateway.feed.listening) == 0)


def test_the_history_is_filtered_and_says_whether_it_is_stored(tmp_path: Path) -> None:
    with sim_cluster([talker(1)]) as nodes, gateway_over(nodes.urls) as stage:
        for number in range(3):
            body = {
                "model": MODEL if number else "absent",
                "stream": False,
                "prompt": "a",
                "options": {"num_predict": 2},
            }
            httpx.post(f"{stage.url}/api/generate", json=body, trust_env=False)
        found = get(stage, "/dashboard/api/history").json()
        assert [row["outcome"] == "ok" for row in found["rows"]] == [True, True, False]
        assert (found["next"], found["stored"]) == (None, False)
        assert len(get(stage, "/dashboard/api/history?filter=failed").json()["rows"]) == 1
        stage.look(lambda gateway: gateway.pool.use_store(tmp_path / "store.sqlite3"))
        httpx.post(f"{stage.url}/api/generate", json=body, trust_env=False)
        until(lambda: len(get(stage, "/dashboard/api/history").json()["rows"]) == 1)
        assert get(stage, "/dashboard/api/history").json()["stored"]
        for wrong in ("x", "-1", "9" * 30):
            assert get(stage, f"/dashboard/api/history?before={wrong}").status_code == 400


def test_the_settings_say_where_each_came_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "sollol.toml"
    path.write_text('[limits]\nqueue = 7\n[alerts]\nurls = ["https://hooks.example.org/secret"]\n')
    monkeypatch.setenv("SOLLOL_APP_NAME", "flock")
    monkeypatch.setenv("SOLLOL_REDIS_URL", "redis://:secret@127.0.0.1:1/0")
    settings = gateway_settings(load_settings(config=str(path)), str(path)).listening(port=0)
    rows = {row["name"]: row for row in settings_in_force(settings)}
    assert (rows["limits.queue"]["value"], rows["limits.queue"]["origin"]) == (7, f"file {path}")
    assert (rows["app_name"]["value"], rows["app_name"]["origin"]) == ("flock", "SOLLOL_APP_NAME")
    assert (rows["gateway.port"]["value"], rows["gateway.port"]["origin"]) == (0, "command line")
    assert rows["redis"]["origin"] == "SOLLOL_REDIS_URL"
    assert rows["routing.strategy"]["origin"] == "default"
    assert "secret" not in str(rows)
    with sim_cluster([talker(1)]) as nodes, gateway_over(nodes.urls) as stage:
        shown = {row["name"] for row in get(stage, "/dashboard/api/settings").json()["settings"]}
    assert shown == set(rows)


def keyed(admin: bool = True) -> Keyring:
    return Keyring([Key("ops", hash_of("secret"), admin=admin)], required=True)


@pytest.mark.parametrize("admin", [True, False])
def test_it_takes_a_key_as_a_password(admin: bool) -> None:
    with sim_cluster([talker(1)]) as nodes, gateway_over(nodes.urls, keyring=keyed(admin)) as stage:
        for path in PATHS:
            refused = get(stage, path)
            assert refused.status_code == 401
            assert refused.headers.get("www-authenticate", "Bearer") == "Bearer"  # no window of the browser's own
            if path != "/dashboard/":
                assert get(stage, path, auth=("any", "wrong")).status_code == 401
        assert "A key of this gateway" in get(stage, "/dashboard/").text
        assert get(stage, "/dashboard/", auth=("any", "secret")).status_code == 200
        for frame in (
            events(stage, 1, auth=("any", "secret"))[0],
            get(stage, "/dashboard/api/snapshot", auth=("any", "secret")).json(),
        ):
            assert len(frame["nodes"]) == 1
            assert frame["can_act"] is admin
            assert frame["login"] is True


def login(stage: Stage, client: httpx.Client, token: str = "secret") -> httpx.Response:
    return client.post(f"{stage.url}/dashboard/login", headers={"Authorization": f"Bearer {token}"})


def test_a_browser_logs_in_once() -> None:
    with (
        sim_cluster([talker(1)]) as nodes,
        gateway_over(nodes.urls, keyring=keyed()) as stage,
        httpx.Client(trust_env=False) as browser,
    ):
        assert login(stage, browser, "wrong").status_code == 401
        opened = login(stage, browser)
        assert opened.status_code == 204
        cookie = opened.headers["set-cookie"]
        assert "secret" not in cookie
        for part in ("HttpOnly", "SameSite=Strict", "Path=/dashboard/", "Max-Age=28800"):
            assert part in cookie
        assert browser.get(f"{stage.url}/dashboard/").status_code == 200
        assert browser.get(f"{stage.url}/dashboard/api/snapshot").json()["login"] is True
        assert browser.get(f"{stage.url}/api/tags", headers={"Cookie": cookie}).status_code == 401
        assert browser.post(f"{stage.url}/dashboard/logout", headers={"Origin": stage.url}).status_code == 204
        assert browser.get(f"{stage.url}/dashboard/api/snapshot").status_code == 401


def test_a_session_ends_with_its_key_and_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        sim_cluster([talker(1)]) as nodes,
        gateway_over(nodes.urls, keyring=keyed()) as stage,
        httpx.Client(trust_env=False) as browser,
    ):
        login(stage, browser)
        url = f"{stage.url}/dashboard/api/snapshot"
        assert browser.get(url).status_code == 200
        now = time.time()
        monkeypatch.setattr("sollol.gateway.auth.admission.time.time", lambda: now + 9 * 3_600)
        assert browser.get(url).status_code == 401
        monkeypatch.undo()
        assert browser.get(url).status_code == 200
        stage.look(lambda gateway: gateway.keyring._by_hash.clear())
        assert browser.get(url).status_code == 401


@pytest.mark.parametrize("origin", [None, "http://127.0.0.1:1", "http://localhost:3000", "null"])
def test_a_page_of_another_port_changes_nothing(origin: str | None) -> None:
    with sim_cluster([talker(1)]) as nodes, gateway_over(nodes.urls, keyring=keyed()) as stage:
        node = nodes.urls[0].removeprefix("http://")
        with httpx.Client(trust_env=False) as browser:
            login(stage, browser)
            url = f"{stage.url}/dashboard/api/nodes/{node}/drain"
            headers = {} if origin is None else {"Origin": origin}
            assert browser.post(url, headers=headers).status_code == 403
            assert browser.post(url, headers={"Origin": stage.url}).status_code == 200


def test_a_page_of_another_site_reads_nothing() -> None:
    with sim_cluster([talker(1)]) as nodes, gateway_over(nodes.urls) as stage:
        for path in PATHS:
            assert get(stage, path, headers={"Host": "evil.example"}).status_code == 403


def test_streams_end_with_the_gateway() -> None:
    with sim_cluster([talker(1)]) as nodes, gateway_over(nodes.urls) as stage:
        answer = httpx.stream("GET", f"{stage.url}/dashboard/api/events", trust_env=False, timeout=30)
        with answer as lines:
            iterator = lines.iter_lines()
            while not next(iterator).startswith("data: "):
                pass
            stage.look(lambda gateway: gateway.feed.close())
            for _ in iterator:
                pass
