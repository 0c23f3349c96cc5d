"""Clients that hang up at random phases: what they asked for stops at the nodes, and nobody else notices."""

from __future__ import annotations

import json
import random
import socket
import time

from sollol.sim.serve import sim_cluster
from tests.gateway.stage import MODEL, gateway_over, talker

CLIENTS = 100
NODES = 2


def request(number: int) -> bytes:
    body = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": f"[{number}] " + "word " * 200}]})
    head = f"POST /api/chat HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
    return (head + body).encode()


def test_a_client_that_leaves_stops_its_work_and_harms_nobody() -> None:
    dice = random.Random(7)
    with sim_cluster([talker(i, 200.0) for i in range(NODES)]) as nodes, gateway_over(nodes.urls) as stage:
        open_: list[tuple[float, socket.socket]] = []
        for number in range(CLIENTS):
            sock = socket.create_connection(("127.0.0.1", stage.port))
            data = request(number)
            sock.sendall(data if dice.random() < 0.8 else data[: dice.randrange(len(data))])
            open_.append((time.monotonic() + dice.choice([0.0, 0.01, 0.05, 0.2]), sock))
            while open_ and len(open_) > 20:
                close_due(open_)
        while open_:
            close_due(open_)

        deadline = time.monotonic() + 1.0  # what counts is measured by the benchmark; here, that it happens at all
        while time.monotonic() < deadline and (running(nodes) or unsettled(stage)):
            time.sleep(0.01)
        assert running(nodes) == 0
        assert unsettled(stage) == 0
        stats = stage.look(lambda gateway: gateway.pool.get_stats())
        assert stats["successful_requests"] == 0
        assert all(row["failed_requests"] == 0 for row in stats["node_performance"].values())
        breakers = stage.look(
            lambda gateway: [
                lane.breaker.closed
                for node in gateway.engine.scheduler.fleet.nodes.values()
                for lane in node.lanes.values()
            ]
        )
        assert breakers == [True] * NODES
        with stage.client() as client:
            body = {"model": MODEL, "messages": [{"role": "user", "content": "x"}], "stream": False}
            answer = client.post("/api/chat", json=body | {"options": {"num_predict": 3}})
        assert answer.status_code == 200
        stage.look(lambda gateway: gateway.engine.scheduler.invariants())


def close_due(open_: list[tuple[float, socket.socket]]) -> None:
    now = time.monotonic()
    for entry in [entry for entry in open_ if entry[0] <= now]:
        entry[1].close()
        open_.remove(entry)
    time.sleep(0.002)


def running(nodes) -> int:
    return nodes.do(lambda found: sum(node.counters.inflight for node in found))


def unsettled(stage) -> int:
    return stage.look(lambda gateway: len(gateway.engine.scheduler.open))
