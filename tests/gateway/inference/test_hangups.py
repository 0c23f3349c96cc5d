"""Clients that hang up at random phases: what they asked for stops at the nodes, and nobody else notices."""

from __future__ import annotations

import asyncio
from typing import Any

from bench.hangups import all_leave, get_to_know

from sollol.sim.serve import Cluster, sim_cluster
from tests.gateway.stage import MODEL, Stage, gateway_over, talker, until

CLIENTS, AT_ONCE, NODES = 150, 24, 12


def test_a_client_that_leaves_stops_its_work_and_harms_nobody() -> None:
    with sim_cluster([talker(i, 200.0) for i in range(NODES)]) as nodes, gateway_over(nodes.urls) as stage:
        asyncio.run(get_to_know(stage.port, NODES))
        before, asked = stats(stage), reached(nodes)
        left_in = asyncio.run(all_leave(stage.port, CLIENTS, AT_ONCE))
        assert min(left_in[phase] for phase in ("in the head", "in the body", "before an answer", "mid-stream")) > 5
        assert reached(nodes) - asked > left_in["mid-stream"]  # some were left while a node read the prompt

        until(lambda: not running(nodes) and not unsettled(stage))
        after = stats(stage)
        assert after["successful_requests"] == before["successful_requests"]
        assert all(row["failed_requests"] == 0 for row in after["node_performance"].values())
        breakers = stage.look(
            lambda gateway: [
                replica.breaker.closed
                for node in gateway.engine.scheduler.view().nodes.values()
                for replica in node.replicas.values()
            ]
        )
        assert breakers == [True] * NODES
        with stage.client() as client:
            body = {"model": MODEL, "messages": [{"role": "user", "content": "x"}], "stream": False}
            answer = client.post("/api/chat", json=body | {"options": {"num_predict": 3}})
        assert answer.status_code == 200
        stage.look(lambda gateway: gateway.engine.scheduler.invariants())


def stats(stage: Stage) -> dict[str, Any]:
    return stage.look(lambda gateway: gateway.pool.get_stats())


def reached(nodes: Cluster) -> int:
    return nodes.do(lambda found: sum(node.counters.requests.get("POST /api/chat", 0) for node in found))


def running(nodes: Cluster) -> int:
    return nodes.do(lambda found: sum(node.counters.inflight for node in found))


def unsettled(stage: Stage) -> int:
    return stage.look(lambda gateway: len(gateway.engine.scheduler.view().tasks))
