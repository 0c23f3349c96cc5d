"""What programs that were written against older versions ask of a pool."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from sollol import AsyncOllamaPool, BadInput, OllamaPool
from sollol.discovery import search
from sollol.sim import NodeSpec, sim_cluster


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with sim_cluster([NodeSpec()]) as nodes:
        yield nodes.urls[0]


@pytest.fixture
def only_here(url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A network that is this machine, with one node."""
    monkeypatch.setenv("SOLLOL_DISCOVERY_SUBNETS", "127.0.0.1/32")
    monkeypatch.setenv("SOLLOL_DISCOVERY_PORTS", url.rpartition(":")[2])
    return url.removeprefix("http://")


@pytest.mark.parametrize("make", [OllamaPool, AsyncOllamaPool])
@pytest.mark.parametrize("nodes", [{}, {"nodes": None}, {"nodes": []}])
def test_a_pool_without_nodes_looks_for_them_when_told_to(make: Any, nodes: dict[str, Any], only_here: str) -> None:
    pool = make(**nodes, discover_all_nodes=True, app_name="indexer")
    assert [node.key for node in pool.nodes] == [only_here]


@pytest.mark.filterwarnings("ignore:.*no effect any more")
def test_this_machine_is_left_out_when_told_to(only_here: str) -> None:
    assert only_here
    assert OllamaPool(discover_all_nodes=True, exclude_localhost=True, enable_ray=False).nodes == []
    assert OllamaPool.auto_configure(exclude_localhost=True).nodes == []
    assert len(OllamaPool.auto_configure().nodes) == 1


@pytest.mark.filterwarnings("ignore:.*no effect any more")
@pytest.mark.parametrize(
    "make", [lambda: OllamaPool(discover_all_nodes=False), lambda: OllamaPool(["10.0.0.5"], discover_all_nodes=True)]
)
def test_no_other_constructor_looks_at_the_network(make: Callable[[], OllamaPool], monkeypatch: Any) -> None:
    def fail(*_: object) -> Any:
        raise AssertionError("it looked")

    monkeypatch.setattr(search, "discover", fail)
    make()


def test_a_switch_that_is_none_is_refused() -> None:
    with pytest.raises(BadInput, match="discover_all_nodes='yes'"):
        OllamaPool(discover_all_nodes="yes")


def test_several_nodes_of_one_machine_are_no_parallel_machines() -> None:
    pool = OllamaPool(["127.0.0.1:1", "127.0.0.1:2", "localhost:3"])
    assert pool.count_unique_physical_hosts() == 1
    assert not pool.should_use_parallel_execution(10)
    pool.add_node("gpu-1.invalid")
    assert pool.count_unique_physical_hosts() == 2
    assert pool.should_use_parallel_execution(2)
    assert not pool.should_use_parallel_execution(1)


def test_a_named_node_of_this_machine_is_found_without_the_others(only_here: str, monkeypatch: Any) -> None:
    monkeypatch.setenv("SOLLOL_NODES", only_here)
    assert [node.key for node in OllamaPool(discover_all_nodes=True, exclude_localhost=True).nodes] == [only_here]


# --- the list of nodes ---


@pytest.mark.parametrize("make", [OllamaPool, AsyncOllamaPool])
def test_changes_of_the_list_of_nodes_change_the_pool(make: Any) -> None:
    pool = make(["a"])

    def hosts() -> list[str]:
        return [node["host"] for node in pool.nodes]

    pool.nodes.append({"host": "b", "port": 1})
    pool.nodes.append({"host": "b", "port": 1})
    pool.nodes.extend(["c", "http://d:2"])
    assert [node.key for node in pool.nodes] == ["a:11434", "b:1", "c:11434", "d:2"]
    nodes = pool.nodes
    assert nodes.pop(0).host == "a"
    assert [node.host for node in nodes] == hosts() == ["b", "c", "d"]
    nodes.remove({"host": "c", "port": 11434})
    del nodes[0]
    nodes += ["e"]
    nodes.insert(0, "f")
    assert hosts() == ["d", "e", "f"]
    with pytest.raises(BadInput, match="remove_node"):
        nodes[0] = "g"
    with pytest.raises(BadInput, match="port"):
        nodes.append("h:x")
    for wrong in (nodes.sort, nodes.reverse):
        with pytest.raises(BadInput, match="order of addition"):
            wrong()
    pool.nodes = [nodes[1], "http://g:1", "h"]
    assert hosts() == ["e", "g", "h"]
    nodes = pool.nodes
    nodes.clear()
    assert hosts() == []


def test_a_program_that_replaces_add_node_sees_what_is_added() -> None:
    pool, seen = OllamaPool(), []
    nodes: list[Any] = pool.nodes
    add = pool.add_node

    def noted(host: Any, port: int = 11434) -> None:
        seen.append(host)
        add(host, port)

    pool.add_node = noted  # type: ignore[method-assign, assignment]
    nodes.append({"host": "a", "port": 1})
    assert seen == ["http://a:1"]
    assert len(pool.nodes) == 1


def test_a_node_reads_in_older_words(url: str) -> None:
    with OllamaPool([url]) as pool:
        node = pool.nodes[0]
        assert node.node_id == node["node_id"] == node.key
        assert node.gpu_available is False
        pool.generate("llama3.2", "x", options={"num_predict": 1})
        pool.wait_ready()
        assert node.get("healthy") is node.healthy is True
        assert node.get("vram_total", 0) == 0


# --- statistics ---


def test_what_is_written_into_the_statistics_can_be_read_back_or_raises(url: str) -> None:
    with OllamaPool([url, "elsewhere"]) as pool:
        key, other = (node.key for node in pool.nodes)
        with pytest.warns(UserWarning, match="no call is routed by them"):
            pool.stats["node_performance"] = {key: {"batch_throughput": 6.0, "latency_ms": 12.0, "primed": True}}
        pool.stats["node_performance"][other] = {"latency_ms": 1.0}
        pool.stats["node_performance"][other]["mine"] = 1
        pool.stats["node_performance"].setdefault("gone:1", {"mine": 2})
        rows = pool.stats["node_performance"]
        rows |= {other: {"more": 3}}
        rows = pool.get_stats()["node_performance"]
        assert (rows[key]["latency_ms"], rows[key]["batch_throughput"], rows[key]["available"]) == (12.0, 6.0, True)
        assert (rows[other]["latency_ms"], rows[other]["mine"], rows["gone:1"]) == (1.0, 1, {"mine": 2})
        assert rows[other]["more"] == 3
        pool.generate("llama3.2", "x", options={"num_predict": 1})
        row = pool.stats["node_performance"][key]
        assert row["primed"] is True
        assert row["latency_ms"] != 12.0, "what is measured goes before"
        assert json.loads(json.dumps(pool.stats))["node_performance"][key] == row
        changes: list[Callable[[Any], Any]] = [
            lambda stats: stats.__setitem__("total_requests", 5),
            lambda stats: stats.update(total_requests=5),
            lambda stats: stats.pop("nodes"),
            lambda stats: stats.setdefault("mine", 5),
            lambda stats: stats["node_performance"].__setitem__(key, 5),
            lambda stats: stats["node_performance"].pop(key),
            lambda stats: stats["node_performance"][key].clear(),
        ]
        for change in changes:
            with pytest.raises(BadInput, match="stats"):
                change(pool.stats)


def test_statistics_have_the_names_of_older_versions(url: str) -> None:
    with OllamaPool([url, "elsewhere"], routing_strategy="round_robin") as pool:
        stats = pool.get_stats()
        assert stats["nodes_configured"] == 2
        assert stats["routing_strategy"] == "round_robin"
        assert stats["intelligent_routing_enabled"] is False
        assert stats["cache"] == pool.get_cache_stats()
        assert stats["cache"]["enabled"] is False
        pool.clear_cache()
        assert pool.invalidate_cache_by_model("llama3.2") == 0


# --- calls ---


def test_calls_in_the_words_of_0_9(url: str) -> None:
    with OllamaPool([url]) as pool:
        assert len(pool.embed_batch("nomic-embed-text", ["a", "b"], 4, use_adaptive=False)) == 2
        with pytest.warns(UserWarning, match="embed_batch"):
            assert len(pool.batch_embed("nomic-embed-text", ["a", "b"])) == 2
        warmed = pool.warm_models(["llama3.2", "nomic-embed-text"], parallel=True)
        assert list(warmed) == ["llama3.2", "nomic-embed-text"]
        assert all(warmed.values())
        node = pool.nodes[0]
        assert pool.warm_model("llama3.2", {"host": node["host"], "port": node["port"]})
        answer = pool.generate("llama3.2", "x", options={"num_predict": 1})
        routing = answer["_sollol_routing"]
        assert (routing["host"], routing["port"]) == (node.host, node.port)


def test_warnings_name_the_line_of_the_program(url: str) -> None:
    with OllamaPool([url]) as pool, pytest.warns(UserWarning, match="today|is taken") as told:
        for _ in pool.generate_stream("llama3.2", "x", temperature=0.1, prefer_cpu=True, num_predict=1):
            pass
    assert len(told) == 4
    assert {warning.filename for warning in told} == {__file__}


@pytest.mark.filterwarnings("ignore:.*no effect any more")
def test_the_setup_of_gpu_monitoring_is_taken(only_here: str) -> None:
    assert only_here
    assert len(OllamaPool.auto_configure(setup_local_gpu_monitoring=False).nodes) == 1


@pytest.mark.filterwarnings("ignore:.*stream=True")
def test_a_program_of_coroutines_uses_a_synchronous_pool(url: str) -> None:
    """As those of SOLLOL's fork for Hydra do: they await its methods, and read its streams asynchronously."""

    async def main() -> None:
        pool = OllamaPool([url])
        options = {"num_predict": 8}
        with pytest.warns(UserWarning, match="blocked the event loop"):
            answer = await pool.generate("llama3.2", "x", options=options)  # type: ignore[attr-defined]
        assert answer["response"]
        beats = 0

        async def beat() -> None:
            nonlocal beats
            while True:
                beats += 1
                await asyncio.sleep(0)

        beating = asyncio.ensure_future(beat())
        parts = pool.generate_stream("llama3.2", "x", options=options)
        text = "".join([part["response"] async for part in parts])  # type: ignore[attr-defined]
        assert text == answer["response"]
        assert beats > 1, "the event loop went on meanwhile"
        beating.cancel()
        messages = [{"role": "user", "content": "x"}]
        assert "".join(part["message"]["content"] for part in pool.chat_stream("llama3.2", messages, options=options))
        await pool.start_health_monitoring()
        async for _ in pool.chat("llama3.2", messages, stream=True):  # type: ignore[attr-defined]
            break  # leaves it
        await pool.close()  # type: ignore[misc]

    asyncio.run(main())


def test_searching_for_nodes_adds_them(only_here: str) -> None:
    pool = OllamaPool()

    async def main() -> Any:
        return await pool.discover_nodes()  # type: ignore[misc]

    assert len(asyncio.run(main())) == 1
    assert [node.key for node in pool.nodes] == [only_here]
    assert pool.router is pool
