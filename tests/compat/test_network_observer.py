"""Events of pools: all of them, a share of them, or none."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest

from sollol import AsyncOllamaPool, BadInput, OllamaPool
from sollol.network_observer import (
    EventType,
    NetworkEvent,
    NetworkObserver,
    get_observer,
    log_ollama_error,
    log_ollama_request,
    log_ollama_response,
)
from sollol.sim import Cluster, NodeSpec, free_port, sim_cluster

CHAT, EMBED = "llama3.2", "nomic-embed-text"
HELLO = [{"role": "user", "content": "Hello, who is there?"}]


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with sim_cluster([NodeSpec(seed=i) for i in range(2)]) as running:
        yield running


@pytest.fixture
def pool(cluster: Cluster) -> Iterator[OllamaPool]:
    with OllamaPool(list(cluster)) as pool:
        pool.wait_ready()
        yield pool


def until(true: Callable[[], Any]) -> None:
    end = time.perf_counter() + 60
    while not true():
        assert time.perf_counter() < end
        time.sleep(0.01)


def test_a_call_is_a_request_and_a_response(pool: OllamaPool) -> None:
    observer = NetworkObserver(pool, sample_rate=1)
    answer = pool.chat(CHAT, HELLO, priority=7)
    until(lambda: len(observer.events) >= 2)
    response, request = observer.get_recent_events()[:2]
    assert (request["event_type"], response["event_type"]) == ("ollama_request", "ollama_response")
    assert request["backend"] == response["backend"] == answer.routing.node
    assert request["details"]["task"] == response["details"]["task"] == answer.routing.id
    assert (request["details"]["model"], request["details"]["priority"]) == (f"{CHAT}:latest", 7)
    assert request["details"]["reason"] == answer.routing.reasons[0]
    assert response["details"]["latency_ms"] == pytest.approx(answer.routing.actual_ms, abs=5)
    assert response["timestamp"] == pytest.approx(time.time(), abs=60)
    assert observer.get_recent_events(event_type="ollama_response", backend=answer.routing.node) == [response]


def test_chunks_and_failures(pool: OllamaPool, cluster: Cluster) -> None:
    observer = NetworkObserver(pool, sample_rate=1)
    pool.embed_batch(EMBED, [f"text {i}" for i in range(20)])
    items = [e.details["items"] for e in list(observer.events) if e.event_type is EventType.OLLAMA_REQUEST]
    assert sum(items) >= 20
    chosen = pool.chat(CHAT, HELLO).routing.node
    cluster.do(lambda nodes: nodes[list(cluster).index(f"http://{chosen}")].error_rate(1.0))
    until(lambda: pool.chat(CHAT, HELLO) and observer.get_recent_events(min_severity="error"))
    errors = observer.get_recent_events(min_severity="error")
    assert {event["backend"] for event in errors} == {chosen}
    assert errors[0]["details"]["outcome"] == "failed"
    assert observer.get_stats()["errors_by_backend"] == {errors[0]["backend"]: len(errors)}


def test_nodes_that_come_and_go(pool: OllamaPool, cluster: Cluster) -> None:
    observer = NetworkObserver(pool, sample_rate=1)
    pool.add_node("127.0.0.1", free_port())
    until(lambda: observer.get_recent_events(event_type=EventType.NODE_STATUS_CHANGE))
    (change,) = observer.get_recent_events(event_type=EventType.NODE_STATUS_CHANGE)
    assert (change["severity"], change["details"]["new_status"]) == ("warning", "down")
    assert change["details"]["why"]
    pool.remove_node(change["backend"])
    until(lambda: observer.get_recent_events(event_type=EventType.NODE_REMOVED))
    assert observer.get_recent_events(event_type=EventType.NODE_DISCOVERED)[0]["backend"] == change["backend"]


def test_sampling_keeps_whole_requests(pool: OllamaPool) -> None:
    observer = NetworkObserver(pool, sample_rate=0.25)
    for _ in range(40):
        pool.chat(CHAT, HELLO)
    until(lambda: observer.get_stats()["total_events"] >= 80)
    stats = observer.get_stats()
    assert stats["events_by_type"] == {"ollama_request": 10, "ollama_response": 10}
    assert (stats["sampled_events"], stats["dropped_events"], stats["sample_rate"]) == (20, 60, 0.25)
    tasks = [event.details["task"] for event in observer.events]
    assert all(tasks.count(task) == 2 for task in tasks)


def test_zero_is_off_and_the_setting_counts(pool: OllamaPool, monkeypatch: pytest.MonkeyPatch) -> None:
    for value, rate in (("false", 0.0), ("true", 1.0), ("0.1", 0.1)):
        monkeypatch.setenv("SOLLOL_OBSERVER_SAMPLING", value)
        assert NetworkObserver().sample_rate == rate
    observer = NetworkObserver(pool, sample_rate=0)
    with pytest.raises(Exception, match="no-such-model"):
        pool.chat("no-such-model", HELLO)
    pool.chat(CHAT, HELLO)
    assert observer.get_stats()["total_events"] == 0
    observer.sample_rate = 1
    pool.chat(CHAT, HELLO)
    until(lambda: len(observer.events) == 2)


def test_listeners(pool: OllamaPool, caplog: pytest.LogCaptureFixture) -> None:
    observer = NetworkObserver(pool, sample_rate=1)
    heard: list[NetworkEvent] = []

    def broken(event: NetworkEvent) -> None:
        raise ValueError("not today")

    observer.subscribe(broken)
    stop = observer.subscribe(heard.append)
    with caplog.at_level(logging.DEBUG, "sollol.network_observer"):
        pool.chat(CHAT, HELLO)  # a listener that raises harms nobody
        until(lambda: len(heard) == 2)
    assert sum("is not called again" in message for message in caplog.messages) == 1
    assert any("ollama_request" in message for message in caplog.messages)
    stop()
    stop()
    pool.chat(CHAT, HELLO)
    until(lambda: len(observer.events) == 4)
    assert len(heard) == 2


def test_detaching_and_closing(pool: OllamaPool) -> None:
    observer = NetworkObserver(sample_rate=1)
    detach = observer.attach(pool)
    detach()
    detach()
    pool.chat(CHAT, HELLO)
    assert not observer.events
    observer.attach(pool)
    pool.close()
    observer.close()


def test_an_asynchronous_pool(cluster: Cluster) -> None:
    async def main() -> None:
        async with AsyncOllamaPool(list(cluster)) as pool:
            observer = NetworkObserver(pool, sample_rate=1)
            await pool.chat(CHAT, HELLO)
            assert {event.event_type for event in observer.events} >= {"ollama_request", "ollama_response"}

    asyncio.run(main())


def test_a_cancelled_request_is_told(pool: OllamaPool) -> None:
    observer = NetworkObserver(pool, sample_rate=1)
    stream = pool.chat(CHAT, HELLO, stream=True)
    next(stream)
    stream.close()
    until(lambda: len(observer.events) >= 2)
    assert observer.events[-1].event_type in (EventType.OLLAMA_CANCELLED, EventType.OLLAMA_RESPONSE)


def test_events_of_your_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sollol.compat.network_observer._observers", [NetworkObserver(sample_rate=0.5)])
    for _ in range(10):
        log_ollama_request("10.0.0.5:11434", CHAT, "chat", priority=5)
        log_ollama_response("10.0.0.5:11434", CHAT, 120.0)
        log_ollama_error("10.0.0.5:11434", CHAT, "it broke")
    observer = get_observer()
    assert observer is get_observer()
    stats = observer.get_stats()
    assert stats["events_by_type"]["ollama_error"] == 10  # failures are never dropped
    assert stats["total_events"] == 30
    assert stats["sampled_events"] == 20
    assert observer.get_recent_events(limit=1)[0]["details"] == {"model": CHAT, "error": "it broke"}
    assert observer.get_recent_events(backend="10.0.0.6:11434") == []


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: NetworkObserver(7), "pool=7; expected an OllamaPool"),
        (lambda: NetworkObserver(sample_rate=2), "sample_rate=2; expected a number from 0 to 1"),
        (lambda: NetworkObserver(max_events=0), "max_events=0"),
        (lambda: NetworkObserver(rate=1), "unknown keyword 'rate'"),
        (lambda: NetworkObserver().log_event("lunch", "a"), "event_type='lunch'; expected one of ollama_request"),
        (lambda: NetworkObserver().log_event("ollama_error", "a", severity="bad"), "severity='bad'"),
        (lambda: NetworkObserver().get_recent_events(limit=0), "limit=0"),
        (lambda: cast("Any", NetworkObserver()).subscribe("print"), "listener='print'"),
    ],
)
def test_what_cannot_be_used_is_told(call: Any, words: str) -> None:
    with pytest.raises(BadInput, match=words):
        call()
