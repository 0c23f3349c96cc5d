"""One node under two names is noticed, and used once; two nodes that look alike are used both."""

from __future__ import annotations

import time
from collections.abc import Callable

from sollol import OllamaPool
from sollol.sim import ModelSpec, NodeSpec, sim_cluster

MODEL = ModelSpec("m", size_bytes=1000)


def spec(**more: object) -> NodeSpec:
    return NodeSpec(models=(MODEL,), loaded=("m",), **more)  # type: ignore[arg-type]


def until(true: Callable[[], object]) -> None:
    end = time.monotonic() + 10
    while not true():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


def test_one_node_under_two_names_is_used_once() -> None:
    with sim_cluster([spec()]) as nodes:
        (url,) = nodes.urls
        port = url.rpartition(":")[2]
        with OllamaPool([f"http://127.0.0.1:{port}", f"http://localhost:{port}"]) as pool:
            pool.wait_ready()
            until(lambda: [node.is_healthy for node in pool.nodes] == [True, False])
            (notice,) = pool.snapshot()["notices"]
            assert notice.startswith(f"localhost:{port} is 127.0.0.1:{port} under another name")
            for _ in range(4):
                pool.chat("m", [{"role": "user", "content": "hi"}])
            assert list(pool.get_stats()["nodes_used"]) == [f"127.0.0.1:{port}"]


def test_two_nodes_that_look_alike_are_two() -> None:
    with sim_cluster([spec(), spec()]) as nodes, OllamaPool(list(nodes)) as pool:
        pool.wait_ready()
        for _ in range(4):
            pool.chat("m", [{"role": "user", "content": "hi"}])
        assert [node.is_healthy for node in pool.nodes] == [True, True]
        assert pool.snapshot()["notices"] == []
