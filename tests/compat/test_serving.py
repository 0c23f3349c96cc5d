"""Gateways, clients, pools of the process and observers of 0.9."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from typing import Any

import pytest

from sollol import OllamaPool
from sollol.compat import (
    app_config,
    client,
    dashboard_client,
    network_observer,
    routing_logger,
    sync_wrapper,
)
from sollol.compat import (
    pool as pool_of_process,
)
from sollol.compat import (
    sollol as legacy,
)
from sollol.errors import BadInput, DeadlineExceeded, NoNodeAvailable, NotSupported, ResponseError

CHAT, EMBED = "llama3.2", "nomic-embed-text"


# --- clients ---


def test_a_gateway_in_a_thread_and_its_client(urls: list[str]) -> None:
    config = app_config.SOLLOLConfig(hosts=urls, gateway_port=_free())
    gateway = legacy.SOLLOL(config)
    assert gateway.get_health() == {"error": "SOLLOL is not running; call start()"}
    gateway.start()
    try:
        status = gateway.get_status()
        assert status["running"]
        assert status["ollama_nodes"] == 2
        assert gateway.get_health()["status"] == "ok"
        assert len(gateway.get_stats()["hosts"]) == 2
        with client.connect(status["endpoints"]["gateway"], default_priority=7) as speaks:
            answer = speaks.chat("Name a colour.", system_prompt="Be brief.", conversation_history=[
                {"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}])  # fmt: skip
            assert answer["message"]["content"] == answer.message.content
            assert asyncio.run(speaks.chat_async("Name a colour."))["message"]["content"]
            vector = speaks.embed("a text")
            assert speaks.batch_embed(["a text", "other"])["embeddings"][0] == pytest.approx(vector)
            assert speaks.health()["status"] == "ok"
            assert {row["url"] for row in speaks.health()["hosts"]} == set(urls)
            assert speaks.stats()["hosts"][0]["state"] == "up"
            assert speaks.dashboard()["nodes"]
            with pytest.raises(ResponseError, match="nowhere"):
                speaks.chat("x", model="nowhere")
            with pytest.raises(BadInput, match="priority"):
                speaks.chat("x", priority=11)
        gateway.start()  # runs already
    finally:
        gateway.stop()
    assert not gateway.get_status()["running"]
    with pytest.raises(NoNodeAvailable):
        client.SOLLOLClient(client.SOLLOLConfig(status["endpoints"]["gateway"])).health()
    gateway.update_config(gateway_port=9999)
    assert gateway.config is not None
    assert gateway.config.gateway_port == 9999


def test_a_taken_port_is_named(urls: list[str]) -> None:
    port = int(urls[0].rpartition(":")[2])
    with pytest.raises(BadInput, match=str(port)):
        legacy.SOLLOL(port=port, ollama_nodes=urls).start()


@pytest.mark.filterwarnings("ignore:.*no effect any more")
def test_a_configuration_of_0_9() -> None:
    config = app_config.SOLLOLConfig.from_dict({"hosts": ["a:1"], "ray_workers": 8, "routing_strategy": "round_robin"})
    assert app_config.SOLLOLConfig.from_dict(config.to_dict()) == config
    assert config.pool_arguments() == {"nodes": ["a:1"], "routing_strategy": "round_robin", "timeout": 300.0}
    wrongs: list[dict[str, Any]] = [
        {"hosts": []},
        {"gateway_port": 0},
        {"routing_strategy": "best"},
        {"log_level": "LOUD"},
        {"x": 1},
    ]
    for wrong in wrongs:
        with pytest.raises(BadInput):
            app_config.SOLLOLConfig.from_dict(wrong)


def _free() -> int:
    from sollol.sim import free_port

    return free_port()


@pytest.mark.filterwarnings("ignore:.*is taken")
def test_a_pool_whose_answers_are_texts(urls: list[str]) -> None:
    ollama = client.Ollama(nodes=urls)
    assert isinstance(ollama.chat(CHAT, "Name a colour."), str)
    assert ollama.chat(CHAT, [{"role": "user", "content": "Name a colour."}], temperature=0.1)
    assert ollama.generate(CHAT, "Name a colour.", options={"num_predict": 3}).strip()
    assert len(ollama.embed(EMBED, "a text")) > 1
    assert ollama.get_stats()["nodes_configured"] == 2
    with pytest.raises(NotSupported, match="stream"):
        ollama.chat(CHAT, "x", stream=True)
    ollama.close()


def test_the_pool_of_the_process(urls: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_of_process, "_pools", [])
    monkeypatch.setenv("SOLLOL_NODES", ",".join(urls))
    monkeypatch.setenv("SOLLOL_DISCOVERY_SUBNETS", "127.0.0.1/32")
    made = pool_of_process.get_pool()
    assert {node.url for node in made.nodes} == set(urls)
    assert pool_of_process.get_pool() is made
    made.close()


def test_coroutines_without_an_event_loop() -> None:
    async def double(number: int) -> int:
        await asyncio.sleep(0)
        return 2 * number

    assert sync_wrapper.sync_wrapper(double)(4) == 8
    runner = sync_wrapper.get_event_loop()
    assert runner.run_coroutine(double(1)) == 2
    with pytest.raises(DeadlineExceeded):
        runner.run_coroutine(asyncio.sleep(30), timeout=0.01)
    assert sync_wrapper.OllamaPool is OllamaPool


# --- observers ---


@pytest.fixture
def observer(monkeypatch: pytest.MonkeyPatch) -> network_observer.NetworkObserver:
    monkeypatch.setattr(network_observer, "_observers", [])
    monkeypatch.setattr(routing_logger, "_loggers", [])
    return network_observer.get_observer()


def test_the_observer_of_the_process_hears_every_pool(
    urls: list[str], observer: network_observer.NetworkObserver
) -> None:
    with OllamaPool(urls) as later, OllamaPool(urls) as other:
        for each in (later, other):
            each.generate(CHAT, "x", options={"num_predict": 1})
        kinds = [event["event_type"] for event in observer.get_recent_events()]
        assert kinds.count("ollama_request") == kinds.count("ollama_response") == 2
        assert observer.get_active_requests() == {}
        assert observer.get_stats()["backends_tracked"] >= 1
        key = observer.get_recent_events(1)[0]["backend"]
        assert observer.get_backend_metrics(key)["events"] == observer.get_backend_metrics()[key]["events"] > 0

        async def coroutines() -> None:
            from sollol import AsyncOllamaPool

            async with AsyncOllamaPool(urls) as third:
                await third.generate(CHAT, "x", options={"num_predict": 1})

        asyncio.run(coroutines())
        kinds = [event["event_type"] for event in observer.get_recent_events(1000)]
        assert kinds.count("ollama_response") == 3


def test_it_hears_pools_that_run_already(urls: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with OllamaPool(urls) as earlier:
        earlier.generate(CHAT, "x", options={"num_predict": 1})
        monkeypatch.setattr(network_observer, "_observers", [])
        made = network_observer.get_observer()
        earlier.generate(CHAT, "x", options={"num_predict": 1})
        answers = list(made.get_recent_events(1000, "ollama_response"))
        assert len(answers) == 1


def test_events_of_a_programs_own(observer: network_observer.NetworkObserver) -> None:
    network_observer.log_rpc_request("a:50052", "big")
    network_observer.log_rpc_response("a:50052", "big", 5.0)
    network_observer.log_rpc_error("a:50052", "big", "down")
    network_observer.log_node_health_check("a:1", "up", 1.0)
    network_observer.log_node_status_change("a:1", "up", "down")
    kinds = [event["event_type"] for event in observer.get_recent_events(5)]
    assert kinds == ["node_status_change", "node_health_check", "rpc_error", "rpc_response", "rpc_request"]


def test_decisions_are_logged(
    urls: list[str], observer: network_observer.NetworkObserver, capsys: pytest.CaptureFixture[str], caplog: Any
) -> None:
    assert observer
    caplog.set_level(logging.INFO, "sollol.routing")
    routing_logger.enable_console_routing_log()
    log = routing_logger.get_routing_logger()
    assert log.enabled
    assert not log.redis_available
    with OllamaPool(urls) as pool:
        pool.generate(CHAT, "x", options={"num_predict": 1})
    out = capsys.readouterr().out
    assert '"event_type": "ROUTE_DECISION"' in out
    assert f'"model": "{CHAT}:latest"' in out
    log.log_task_queued("1", CHAT)
    log.log_task_start("1", CHAT, "a")
    log.log_task_complete("1", CHAT, "a", 0.5)
    log.log_worker_load("a", 1)
    log.log_fallback(CHAT, "a", "b", "down")
    log.log_model_switch("x", "y", "a")
    log.log_coordinator_start(CHAT, 1)
    log.log_coordinator_stop(CHAT)
    log.log_rpc_backend_selected("a", 50052, "only one")
    log.log_ollama_node_selected("http://a", "quick", CHAT)
    kinds = [record.args[0] for record in caplog.records if record.name == "sollol.routing" and record.args]
    assert kinds[-10:] == [
        "TASK_QUEUED", "TASK_START", "TASK_COMPLETE", "WORKER_LOAD", "FALLBACK_TRIGGERED", "MODEL_SWITCH",
        "COORDINATOR_START", "COORDINATOR_STOP", "RPC_BACKEND_SELECTED", "OLLAMA_NODE_SELECTED",
    ]  # fmt: skip
    log.enabled = False
    log.log_coordinator_stop(CHAT)
    assert capsys.readouterr().out.count("COORDINATOR_STOP") == 1


def test_lines_for_a_redis_delay_nobody() -> None:
    sent: list[tuple[str, str]] = []
    arrived = threading.Event()

    class Client:
        broken = True

        def publish(self, channel: str, line: str) -> None:
            if self.broken:
                raise OSError("no Redis")
            sent.append((channel, line))

        def xadd(self, stream: str, fields: dict[str, str], maxlen: int, approximate: bool) -> None:
            sent.append((stream, fields["data"]))
            arrived.set()

    redis = Client()
    log = routing_logger.RoutingEventLogger(redis)
    log.log_coordinator_stop("x")
    until = time.monotonic() + 20
    while log.redis_available and time.monotonic() < until:
        time.sleep(0.005)
    assert not log.redis_available
    redis.broken = False
    log.log_coordinator_stop("y")
    assert arrived.wait(20)
    assert [place for place, _ in sent] == [routing_logger.CHANNEL, routing_logger.STREAM]
    assert '"model": "y"' in sent[0][1]


def test_an_application_without_a_dashboard_is_not_registered() -> None:
    made = dashboard_client.DashboardClient("mine", dashboard_url="http://127.0.0.1:9", metadata={"nodes": 2})
    assert not made.registered
    assert not made.heartbeat()
    assert made.app_id
    made.update_metadata({"nodes": 3})
    made.unregister()
