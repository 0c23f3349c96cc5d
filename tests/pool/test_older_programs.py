"""What programs that were written against older versions ask of a pool."""

from __future__ import annotations

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
