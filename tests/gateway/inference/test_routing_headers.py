"""What a client may say in headers, and what it is told in them."""

from __future__ import annotations

import contextlib
from typing import Any, cast

import httpx
import pytest

from sollol.gateway.inference import single
from sollol.sim.serve import sim_cluster
from tests.gateway.stage import MODEL, Stage, gateway_over, talker, until
from tests.marks import plain_only

BODY: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "x"}], "max_tokens": 3}
BODY["options"] = {"num_predict": 3}


@pytest.fixture(scope="module")
def stage() -> Any:
    with sim_cluster([talker(1, 400.0), talker(2, 100.0)]) as nodes, gateway_over(nodes.urls) as found:
        found.nodes = nodes
        yield found


def ask(stage: Stage, path: str = "/api/chat", stream: bool = False, **headers: str) -> httpx.Response:
    named = {f"X-Sollol-{name.replace('_', '-')}": value for name, value in headers.items()}
    with stage.client() as client:
        return client.post(path, json={**BODY, "stream": stream}, headers=named)


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_tells_where_it_comes_from(stage: Stage, stream: bool) -> None:
    told = ask(stage, stream=stream).headers
    assert told["x-sollol-node"] in {url.removeprefix("http://") for url in stage.nodes}
    assert told["x-sollol-attempts"] == "1"
    assert int(told["x-sollol-request-id"]) > 0
    assert int(told["x-sollol-queue-ms"]) >= 0
    assert int(told["x-sollol-predicted-ms"]) >= 0


def test_a_call_goes_to_the_node_it_names(stage: Stage) -> None:
    for url in stage.nodes.urls * 2:
        key = url.removeprefix("http://")
        assert ask(stage, Node=key).headers["x-sollol-node"] == key
    refused = ask(stage, Node="10.0.0.1")
    assert refused.status_code == 400
    assert "X-Sollol-Node" in refused.json()["error"]


def test_priority_mode_app_and_hedge_reach_the_queue(stage: Stage) -> None:
    ask(stage, Priority="9", Mode="reliable", App="indexer", Hedge="false")
    task = stage.last_task()
    assert (task.priority, task.mode, task.app, task.hedge) == (9, "reliable", "indexer", False)
    ask(stage)
    task = stage.last_task()
    assert (task.priority, task.mode, task.app, task.hedge) == (5, None, "", None)


@pytest.mark.parametrize(
    ("name", "value"),
    [("Priority", "11"), ("Priority", "high"), ("Mode", "quick"), ("Hedge", "perhaps"), ("Deadline_Ms", "0"),
     ("Request_Id", "a b")],
)  # fmt: skip
def test_a_header_that_cannot_be_used_is_named(stage: Stage, name: str, value: str) -> None:
    answer = ask(stage, **cast("Any", {name: value}))
    assert answer.status_code == 400
    assert value in answer.json()["error"]


def test_a_deadline_counts_the_queue() -> None:
    with sim_cluster([talker(1, 5.0)]) as nodes, gateway_over(nodes.urls) as stage:
        answer = ask(stage, Deadline_Ms="100")
        assert answer.status_code == 504
        assert "no answer in 0." in answer.json()["error"]


def test_keep_alive_over_v1_by_header(stage: Stage) -> None:
    answer = ask(stage, "/v1/chat/completions", Keep_Alive="-1")
    url = f"http://{answer.headers['x-sollol-node']}/api/ps"
    until(lambda: httpx.get(url, trust_env=False).json()["models"][0]["expires_at"] > "2100")


@pytest.mark.parametrize("value", ["--5", "9" * 5000, "abc", "5-", "10 minutes", "1e3"])
def test_a_keep_alive_that_is_none_is_refused(stage: Stage, value: str) -> None:
    answer = ask(stage, Keep_Alive=value)
    assert answer.status_code == 400
    assert "X-Sollol-Keep-Alive" in answer.json()["error"]
    assert len(answer.text) < 500


@pytest.mark.parametrize("value", ["5", "-5", "10m", "1h30m", "0.5h", "-1m"])
def test_a_keep_alive_may_be_seconds_or_a_duration(stage: Stage, value: str) -> None:
    assert ask(stage, Keep_Alive=value).status_code == 200


@plain_only
@pytest.mark.parametrize("stream", [False, True])
def test_a_fault_of_ours_leaves_no_client_waiting(stage: Stage, stream: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("of the gateway")

    monkeypatch.setattr(single.Inference, "_deliver", fail)
    with contextlib.suppress(httpx.RemoteProtocolError):  # a stream that has begun is cut off
        assert ask(stage, stream=stream).status_code == 500
    monkeypatch.undo()
    assert ask(stage).status_code == 200


def test_a_full_queue_says_when_to_come_back() -> None:
    import threading

    import msgspec

    from sollol.gateway.settings import GatewaySettings, Limits

    settings = msgspec.structs.replace(GatewaySettings(), limits=Limits(queue=1))
    with sim_cluster([talker(1, 5.0)]) as nodes, gateway_over(nodes.urls, settings) as stage:
        threads = [threading.Thread(target=ask, args=(stage,)) for _ in range(2)]
        for thread in threads:
            thread.start()
        while stage.look(lambda gateway: gateway.engine.scheduler.view().waiting()) < 1:
            pass
        full = ask(stage)
        assert full.status_code == 503
        assert int(full.headers["retry-after"]) >= 1
        full = ask(stage, "/v1/chat/completions")
        assert full.json()["error"]["type"] == "api_error"
        for thread in threads:
            thread.join()


def test_pages_of_other_sites_are_refused(stage: Stage) -> None:
    with stage.client() as client:
        assert client.get("/api/tags", headers={"Origin": "http://example.org"}).status_code == 403
        local = client.get("/api/tags", headers={"Origin": "http://localhost:3000"})
        assert local.headers["access-control-allow-origin"] == "http://localhost:3000"
        preflight = client.options(
            "/api/chat",
            headers={
                "Origin": "http://localhost:3000",
                "Access-Control-Request-Method": "POST",
                "Access-Control-Request-Headers": "content-type",
            },
        )
        assert preflight.status_code == 204
        assert "POST" in preflight.headers["access-control-allow-methods"]
        assert preflight.headers["access-control-allow-headers"] == "content-type"
        assert client.get("/api/tags", headers={"Host": "example.org"}).status_code == 403
        assert client.get("/api/tags", headers={"Host": "box.local:1"}).status_code == 200
