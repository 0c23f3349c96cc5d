"""The same on real sockets: faults of one node, breakers, recovery, and the line, seen through the synchronous pool."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from sollol import NoNodeAvailable, OllamaPool, ResponseError
from sollol.sim import Cluster, NodeSpec, SimNode, sim_cluster
from tests.pool.breaking import MODEL, talker

ASKED: dict[str, Any] = {"options": {"num_predict": 4}}
HELLO = [{"role": "user", "content": "Hello"}]


def spec(number: int, rate: float | None = None) -> NodeSpec:
    return replace(
        talker(number), host="127.0.0.1", latency_s=0.0, decode_tokens_per_s=rate,
        prefill_tokens_per_s=None, load_bytes_per_s=None,
    )  # fmt: skip


FAULTS: dict[str, Callable[[SimNode], None]] = {
    "refuses": SimNode.die,
    "500": lambda node: node.error_rate(1.0),
    "429": lambda node: node.error_rate(1.0, status=429),
    "503": lambda node: node.error_rate(1.0, status=503),
    "cut": lambda node: node.cut_after(0),
    "cut answer": lambda node: node.cut_after(2),
    "late error": lambda node: node.late_error_after(0),
    "not JSON": lambda node: node.wrong("not-json"),
}


def key_of(nodes: Cluster, place: int) -> str:
    url: str = nodes.urls[place]
    return url.removeprefix("http://")


@pytest.mark.parametrize("fault", FAULTS)
def test_thirty_calls_beside_a_node_with_a_fault(fault: str) -> None:
    with sim_cluster([spec(1), spec(2)]) as nodes, OllamaPool(list(nodes)) as pool:
        pool.wait_ready()
        right = pool.chat(MODEL, HELLO, node=key_of(nodes, 1), **ASKED).message.content
        nodes.do(lambda found: FAULTS[fault](found[0]))

        def call(number: int) -> str:
            if number % 3:
                said: str = pool.chat(MODEL, HELLO, **ASKED).message.content
                return said
            return "".join(part.message.content for part in pool.chat(MODEL, HELLO, stream=True, **ASKED))

        with ThreadPoolExecutor(6) as callers:
            assert set(callers.map(call, range(30))) == {right}
        stats = pool.get_stats()
        assert stats["failed_requests"] == 0
        assert stats["node_performance"][key_of(nodes, 0)]["failed_requests"] <= 12


def test_a_node_that_is_back_is_used_again_without_a_call_at_risk() -> None:
    with sim_cluster([spec(1), spec(2)]) as nodes, OllamaPool(list(nodes)) as pool:
        pool.wait_ready()
        nodes.do(lambda found: found[0].die())
        with pytest.raises(NoNodeAvailable, match="refused the connection"):
            pool.chat(MODEL, HELLO, node=key_of(nodes, 0), **ASKED)
        assert [node.state for node in pool.nodes] == ["down", "up"]
        asked = pool.get_stats()["node_performance"][key_of(nodes, 0)]["total_requests"]
        nodes.do(lambda found: found[0].revive())
        end = time.monotonic() + 10
        while pool.nodes[0].state != "up":
            assert time.monotonic() < end, "ten seconds after it returned it is not noticed"
            time.sleep(0.02)
        assert pool.get_stats()["node_performance"][key_of(nodes, 0)]["total_requests"] == asked
        assert pool.chat(MODEL, HELLO, node=key_of(nodes, 0), **ASKED).routing.node == key_of(nodes, 0)


def test_whose_fault_it_was() -> None:
    with sim_cluster([spec(1), spec(2)]) as nodes, OllamaPool(list(nodes)) as pool:
        with pytest.raises(ResponseError) as refused:
            pool.chat(MODEL, HELLO, tools=[{"type": "function", "function": {"name": "x"}}])
        assert refused.value.status_code == 400
        assert all(row["failed_requests"] == 0 for row in pool.get_stats()["node_performance"].values())
        nodes.do(lambda found: [node.error_rate(1.0) for node in found])
        with pytest.raises(ResponseError, match="simulated fault"):
            pool.chat(MODEL, HELLO)
        nodes.do(lambda found: [node.die() for node in found])
        with pytest.raises(NoNodeAvailable) as caught:
            pool.chat(MODEL, HELLO)
        assert {node for node, _ in caught.value.tried} == {key_of(nodes, 0), key_of(nodes, 1)}
        assert "refused the connection" in str(caught.value)


def test_a_critical_call_overtakes_those_who_wait() -> None:
    with sim_cluster([spec(1, 400.0)]) as nodes, OllamaPool(list(nodes)) as pool:
        pool.chat(MODEL, HELLO, **ASKED)
        done: list[str] = []

        def call(name: str, priority: int) -> None:
            pool.chat(MODEL, HELLO, priority=priority, options={"num_predict": 40})  # a tenth of a second
            done.append(name)

        with ThreadPoolExecutor(22) as callers:
            for number in range(20):
                callers.submit(call, f"low {number}", 2)
            while len(pool.snapshot()["waiting"]) < 15:
                time.sleep(0.005)
            callers.submit(call, "critical", 10)
        assert len(done) == 21
        assert done.index("critical") <= 15  # it came last, and does not end last
