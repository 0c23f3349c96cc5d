"""Actions on the running cluster: drain, unload, cancel, mode; who may do so, and what is refused."""

from __future__ import annotations

import threading
from typing import Any

import httpx
import pytest

from sollol.gateway.auth.keys import Key, Keyring, hash_of
from sollol.sim import sim_cluster
from tests.gateway.stage import MODEL, Stage, gateway_over, talker, until

BODY: dict[str, Any] = {"model": MODEL, "prompt": "a", "stream": False, "options": {"num_predict": 4}}


def post(stage: Stage, path: str, **more: Any) -> httpx.Response:
    return httpx.post(f"{stage.url}{path}", trust_env=False, timeout=20, **more)


def node_of(stage: Stage, place: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = stage.look(lambda gateway: gateway.pool.snapshot()["nodes"][place])
    return found


def test_a_drained_node_ends_its_work_and_gets_no_more() -> None:
    with sim_cluster([talker(1, 40.0), talker(2, 40.0)]) as nodes, gateway_over(nodes.urls) as stage:
        names = [url.removeprefix("http://") for url in nodes.urls]
        long = {**BODY, "options": {"num_predict": 30}}
        answers: list[httpx.Response] = []
        running = threading.Thread(target=lambda: answers.append(post(stage, "/api/generate", json=long)))
        running.start()
        until(lambda: any(node_of(stage, place)["active_requests"] for place in (0, 1)))
        busy = 0 if node_of(stage, 0)["active_requests"] else 1
        drained = post(stage, f"/sollol/nodes/{names[busy]}/drain")
        assert drained.json() == {"node": names[busy], "drained": True}
        for _ in range(4):
            assert post(stage, "/api/generate", json=BODY).headers["x-sollol-node"] == names[1 - busy]
        running.join()
        assert answers[0].status_code == 200
        assert answers[0].headers["x-sollol-node"] == names[busy]
        assert node_of(stage, busy)["drained"] is True
        post(stage, f"/sollol/nodes/{names[1 - busy]}/drain")
        refused = post(stage, "/api/generate", json=BODY)
        assert refused.status_code == 502
        assert "is drained: an operator keeps new work away" in refused.json()["error"]
        post(stage, f"/sollol/nodes/{names[busy]}/resume")
        assert post(stage, "/api/generate", json=BODY).headers["x-sollol-node"] == names[busy]


def test_waiting_requests_go_to_a_node_that_is_resumed() -> None:
    with sim_cluster([talker(1, 20.0), talker(2, 400.0)]) as nodes, gateway_over(nodes.urls) as stage:
        names = [url.removeprefix("http://") for url in nodes.urls]
        post(stage, f"/sollol/nodes/{names[1]}/drain")
        long = {**BODY, "options": {"num_predict": 40}}
        threads = [
            threading.Thread(target=post, args=(stage, "/api/generate"), kwargs={"json": long}) for _ in range(3)
        ]
        for thread in threads:
            thread.start()
        until(lambda: stage.look(lambda gateway: gateway.engine.scheduler.view().waiting()) >= 1)
        post(stage, f"/sollol/nodes/{names[1]}/resume")
        until(lambda: node_of(stage, 1)["total_requests"] or node_of(stage, 1)["active_requests"])
        for thread in threads:
            thread.join()


def test_a_model_is_unloaded() -> None:
    with sim_cluster([talker(1), talker(2)]) as nodes, gateway_over(nodes.urls) as stage:
        names = [url.removeprefix("http://") for url in nodes.urls]
        until(lambda: all(node_of(stage, place)["loaded"] for place in (0, 1)))
        one = post(stage, "/sollol/models/unload", json={"model": MODEL, "node": names[0]})
        assert one.json() == {"model": f"{MODEL}:latest", "nodes": [names[0]]}
        until(lambda: not node_of(stage, 0)["loaded"])
        assert node_of(stage, 1)["loaded"]
        assert post(stage, "/sollol/models/unload", json={"model": MODEL}).json()["nodes"] == [names[1]]
        until(lambda: not node_of(stage, 1)["loaded"])
        assert post(stage, "/sollol/models/unload", json={"model": MODEL}).status_code == 404


def test_a_request_is_cancelled() -> None:
    with sim_cluster([talker(1, 5.0)]) as nodes, gateway_over(nodes.urls) as stage:
        long = {**BODY, "options": {"num_predict": 500}}
        answers: list[httpx.Response] = []
        headers = {"X-Sollol-Request-Id": "mine"}
        waiting = threading.Thread(
            target=lambda: answers.append(post(stage, "/api/generate", json=long, headers=headers))
        )
        waiting.start()
        until(lambda: node_of(stage)["active_requests"])
        assert post(stage, "/sollol/requests/mine/cancel").json()["cancelled"] is True
        waiting.join(10)
        assert not waiting.is_alive()
        assert (answers[0].status_code, answers[0].json()["error"]) == (410, "an operator has cancelled this request")
        assert post(stage, "/sollol/requests/mine/cancel").status_code == 404


def test_the_mode_is_set() -> None:
    with sim_cluster([talker(1)]) as nodes, gateway_over(nodes.urls) as stage:
        assert post(stage, "/sollol/mode", json={"mode": "fast"}).json() == {"mode": "fast"}
        assert stage.look(lambda gateway: gateway.pool.snapshot()["routing_mode"]) == "fast"
        assert post(stage, "/sollol/mode", json={"mode": None}).json() == {"mode": None}
        wrong = post(stage, "/sollol/mode", json={"mode": "best"})
        assert wrong.status_code == 400
        assert "expected" in wrong.json()["error"]


PATHS = ["/sollol/nodes/{node}/drain", "/sollol/models/unload", "/sollol/requests/1/cancel", "/sollol/mode"]


@pytest.mark.parametrize("path", PATHS)
def test_only_an_admin_key_acts(path: str) -> None:
    keys = [Key("ann", hash_of("ann")), Key("boss", hash_of("boss"), admin=True)]
    with sim_cluster([talker(1)]) as nodes, gateway_over(nodes.urls, keyring=Keyring(keys, required=True)) as stage:
        url = path.replace("{node}", nodes.urls[0].removeprefix("http://"))
        assert post(stage, url, json={}).status_code == 401
        assert post(stage, url, json={}, headers={"Authorization": "Bearer ann"}).status_code == 403
        assert post(stage, url, json={}, headers={"Authorization": "Bearer boss"}).status_code in (200, 400, 404)


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/sollol/nodes/nowhere:1/drain", None, 404), ("/sollol/models/unload", {}, 400),
        ("/sollol/models/unload", {"model": 5}, 400), ("/sollol/models/unload", [], 400),
        ("/sollol/models/unload", {"model": "m", "node": "nowhere:1"}, 404), ("/sollol/requests/999/cancel", None, 404),
        ("/sollol/requests/-1/cancel", None, 404), ("/sollol/mode", "x", 400),
    ],
)  # fmt: skip
def test_what_cannot_be_done(path: str, body: Any, status: int) -> None:
    with sim_cluster([talker(1)]) as nodes, gateway_over(nodes.urls) as stage:
        assert post(stage, path, json=body).status_code == status


def test_a_page_of_another_site_does_nothing() -> None:
    with sim_cluster([talker(1)]) as nodes, gateway_over(nodes.urls) as stage:
        node = nodes.urls[0].removeprefix("http://")
        answer = post(stage, f"/sollol/nodes/{node}/drain", headers={"Origin": "https://evil.example"})
        assert answer.status_code == 403
        assert node_of(stage)["drained"] is False
