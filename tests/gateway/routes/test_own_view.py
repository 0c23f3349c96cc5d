"""The dashboard of a key without admin rights: its own application, and nothing of others."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from sollol.gateway.auth.keys import Key, Keyring, hash_of
from sollol.sim import ModelSpec, NodeSpec
from sollol.sim.serve import sim_cluster
from tests.gateway.stage import Stage, gateway_over, until

ANN, BOB, BOSS = "ann-0123456789abcdef", "bob-0123456789abcdef", "boss-0123456789abcdef"
MODELS = ("llama3.2", "secret-model")
# Words that belong to others: their application, their key, and a model that ann may not use.
OTHERS = ("bobs-app", "bob", "secret-model", "boss")


def keys() -> Keyring:
    return Keyring(
        [
            Key("ann", hash_of(ANN), app="anns-app", models=("llama3.2",)),
            Key("bob", hash_of(BOB), app="bobs-app"),
            Key("boss", hash_of(BOSS), app="boss", admin=True),
        ],
        required=True,
    )


@contextmanager
def stage_with_work() -> Iterator[Stage]:
    """Both have finished, running and waiting requests, and a batch; a node has failed, so that events name models."""
    specs = tuple(ModelSpec(name, size_bytes=1_000_000_000) for name in MODELS)
    embedder = ModelSpec("embedder", "embed", 300_000_000, dim=8)
    node = NodeSpec(models=(*specs, embedder), loaded=MODELS, decode_tokens_per_s=50.0, prefill_tokens_per_s=5_000.0)
    with sim_cluster([node]) as nodes, gateway_over(nodes.urls, keyring=keys()) as stage:
        for token, model in ((ANN, "llama3.2"), (BOB, "secret-model"), (BOB, "llama3.2")):
            assert ask(stage, token, model, 2).status_code == 200
        body = {"model": "embedder", "input": ["x"] * 80}
        with client(stage, BOB) as one:
            assert one.post("/api/embed", json=body).status_code == 200
        for token in (ANN, BOB) * 4:
            threading.Thread(target=quietly, args=(stage, token), daemon=True).start()
        until(lambda: stage.look(lambda gateway: len(gateway.engine.scheduler.view().tasks)) == 8)
        yield stage


def client(stage: Stage, token: str) -> httpx.Client:
    return stage.client(headers={"Authorization": f"Bearer {token}"})


def ask(stage: Stage, token: str, model: str, tokens: int) -> httpx.Response:
    body = {"model": model, "prompt": "x", "stream": False, "options": {"num_predict": tokens}}
    with client(stage, token) as one:
        return one.post("/api/generate", json=body)


def quietly(stage: Stage, token: str) -> None:
    try:
        ask(stage, token, "llama3.2", 100_000)
    except httpx.HTTPError:  # the gateway ends
        pass


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with stage_with_work() as made:
        yield made


def frames(stage: Stage, token: str) -> list[dict[str, Any]]:
    with client(stage, token) as one:
        found = [one.get("/dashboard/api/snapshot").json()]
        with one.stream("GET", "/dashboard/api/events") as answer:
            for line in answer.iter_lines():
                if line.startswith("data: "):
                    return [*found, json.loads(line.removeprefix("data: "))]
    raise AssertionError("no event")


def test_a_key_sees_its_own_requests_and_no_others(stage: Stage) -> None:
    for frame in frames(stage, ANN):
        assert {row["app"] for name in ("running", "waiting", "recent") for row in frame[name]} == {"anns-app"}
        assert len(frame["running"]) + len(frame["waiting"]) == 4
        assert len(frame["recent"]) == 1
        assert frame["totals"] == {"total_requests": 1, "successful_requests": 1, "failed_requests": 0, "faults": 0}
        assert frame["calibration"]["count"] == 1
        assert frame["can_act"] is False
        assert "1 of 1 nodes up" in frame["verdict"]["text"]
        text = json.dumps(frame)
        for word in OTHERS:
            assert word not in text
        assert not any(frame[name] for name in ("findings", "events", "latest", "applications"))


def test_an_admin_key_sees_all(stage: Stage) -> None:
    for frame in frames(stage, BOSS):
        assert {row["app"] for row in frame["recent"]} == {"anns-app", "bobs-app"}
        assert frame["can_act"] is True
        assert "own" not in frame


def test_history_and_explanations_are_its_own(stage: Stage) -> None:
    with client(stage, ANN) as one, client(stage, BOSS) as boss:
        own = one.get("/dashboard/api/history").json()["rows"]
        assert [row["app"] for row in own] == ["anns-app"]
        assert one.get("/dashboard/api/history", params={"filter": "app:bobs-app"}).json()["rows"] == []
        rows = boss.get("/dashboard/api/history").json()["rows"]
        others = [row["id"] for row in rows if row["app"] != "anns-app"]
        assert len(others) == 3
        assert one.get(f"/dashboard/api/explain/{own[0]['id']}").status_code == 200
        for number in others:
            assert one.get(f"/dashboard/api/explain/{number}").status_code == 404


@pytest.mark.parametrize(
    "path",
    [
        "nodes/{node}/drain",
        "nodes/{node}/resume",
        "models/unload",
        "requests/{id}/cancel",
        "mode",
    ],
)
def test_it_changes_nothing(stage: Stage, path: str) -> None:
    frame = frames(stage, ANN)[0]
    path = path.format(node=frame["nodes"][0]["host"], id=(frame["running"] or frame["waiting"])[0]["id"])
    with stage.client() as browser:
        opened = browser.post("/dashboard/login", headers={"Authorization": f"Bearer {ANN}"})
        assert opened.status_code == 204
        body = {"model": "llama3.2", "mode": "fast"}
        refused = browser.post(f"/dashboard/api/{path}", json=body, headers={"Origin": stage.url})
        assert refused.status_code == 403


@pytest.mark.parametrize("path", ["series/5m", "settings"])
def test_what_is_of_all_is_refused(stage: Stage, path: str) -> None:
    with client(stage, ANN) as one:
        assert one.get(f"/dashboard/api/{path}").status_code == 403


def test_a_revoked_key_gets_no_more_frames() -> None:
    with (
        sim_cluster([NodeSpec()]) as nodes,
        gateway_over(nodes.urls, keyring=keys()) as stage,
        client(stage, ANN) as one,
        one.stream("GET", "/dashboard/api/events") as answer,
    ):
        lines = answer.iter_lines()
        while not next(lines).startswith("data: "):
            pass
        stage.look(lambda gateway: gateway.keyring._by_hash.clear())
        while next(lines) != "event: trouble":
            pass
        assert "revoked" in next(lines)


def test_feeds_of_keys_without_a_page_are_dropped(stage: Stage) -> None:
    for token in (ANN, BOB, ANN):
        frames(stage, token)
    until(lambda: stage.look(lambda gateway: len(gateway._own_feeds._feeds)) <= 2)
    frames(stage, ANN)
    assert stage.look(lambda gateway: len(gateway._own_feeds._feeds)) == 1
