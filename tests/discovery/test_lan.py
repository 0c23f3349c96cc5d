"""Searches on networks of our own: namespaces with a switch between them, where silence is real silence."""

import json
from typing import Any

import pytest
from bench.lan import Lan

pytestmark = [pytest.mark.root, pytest.mark.skipif(bool(Lan.missing()), reason=Lan.missing() or "network namespaces")]

SEARCH = """
import asyncio, json, time
from sollol.discovery import discover, physical_hosts
start = time.perf_counter()
found = asyncio.run(discover({options}))
took = time.perf_counter() - start
ids = physical_hosts([node.endpoint for node in found])
print(json.dumps(dict(took=took, keys=[n.endpoint.key for n in found], aliases=[n.aliases for n in found],
                      sources=[str(n.source) for n in found], ids=list(ids.values()))))
"""


@pytest.fixture
def lan() -> Any:
    with Lan() as made:
        yield made


def search(client: Any, options: Any = "", **env: Any) -> Any:
    return json.loads(client.python(SEARCH.format(options=options), **env))


def test_a_24_with_two_nodes_a_foreign_server_and_silence(lan: Any) -> None:
    lan.host("10.77.0.21/24", serve=["10.77.0.21:11434=ollama:red"])
    lan.host("10.77.0.154/24", serve=["10.77.0.154:11434=ollama:blue"])
    lan.host("10.77.0.99/24", serve=["10.77.0.99:11434=silent"])
    lan.host("10.77.0.100/24", serve=["10.77.0.100:11434=html"])
    client = lan.host("10.77.0.10/24")
    result = search(client, "timeout=60")
    assert result["keys"] == ["10.77.0.21:11434", "10.77.0.154:11434"]
    assert result["sources"] == ["subnet", "subnet"]
    assert len(set(result["ids"])) == 2
    assert result["took"] < 60  # the benchmark measures it: 0.3 s


def test_a_silent_network_is_an_empty_list_within_the_timeout(lan: Any) -> None:
    result = search(lan.host("10.77.0.10/24"), "timeout=0.4")
    assert result["keys"] == []


def test_a_machine_with_two_addresses_is_one_node(lan: Any) -> None:
    lan.host("10.77.0.21/24", "10.77.0.22/24", serve=["0.0.0.0:11434=ollama:red"], one_card=True)
    lan.host("10.77.0.31/24", "10.77.0.32/24", serve=["0.0.0.0:11434=ollama"], one_card=True)  # without models
    lan.host("10.77.0.41/24", "10.77.0.42/24", serve=["0.0.0.0:11434=ollama:blue"])  # with two network cards
    result = search(lan.host("10.77.0.10/24"), "timeout=2")
    assert result["keys"] == ["10.77.0.21:11434", "10.77.0.31:11434", "10.77.0.41:11434"]
    assert result["aliases"] == [["10.77.0.22:11434"], ["10.77.0.32:11434"], ["10.77.0.42:11434"]]


def test_machines_that_look_alike_are_not_merged(lan: Any) -> None:
    lan.host("10.77.0.21/24", serve=["10.77.0.21:11434=ollama"])
    lan.host("10.77.0.22/24", serve=["10.77.0.22:11434=ollama"])  # both without models
    lan.host("10.77.0.31/24", serve=["10.77.0.31:11434=running:one-disk"])
    lan.host("10.77.0.32/24", serve=["10.77.0.32:11434=running:one-disk"])  # each has loaded for itself
    result = search(lan.host("10.77.0.10/24"), "timeout=2")
    assert [key.split(":")[0] for key in result["keys"]] == ["10.77.0.21", "10.77.0.22", "10.77.0.31", "10.77.0.32"]
    assert len(set(result["ids"])) == 4


def test_two_ports_on_one_machine_are_two_nodes_on_one_physical_host(lan: Any) -> None:
    lan.host("10.77.0.21/24", serve=["10.77.0.21:11434=ollama:red", "10.77.0.21:11435=ollama:red"])
    result = search(lan.host("10.77.0.10/24"), "timeout=2, ports=(11434, 11435)")
    assert result["keys"] == ["10.77.0.21:11434", "10.77.0.21:11435"]
    assert len(set(result["ids"])) == 1


def test_localhost_is_this_machines_address_on_the_network(lan: Any) -> None:
    client = lan.host("10.77.0.10/24", serve=["0.0.0.0:11434=ollama:red"])
    result = search(client, "timeout=2")
    assert result["keys"] == ["10.77.0.10:11434"]
    assert result["aliases"] == [["127.0.0.1:11434"]]
    assert result["ids"] == ["this machine"]
    assert search(client, "timeout=0.5, exclude_localhost=True")["keys"] == []


def test_only_loopback_is_named_where_ollama_listens_only_there(lan: Any) -> None:
    client = lan.host("10.77.0.10/24", serve=["127.0.0.1:11434=ollama:red"])
    assert search(client)["keys"] == ["127.0.0.1:11434"]


def test_a_container_finds_the_machine_outside(lan: Any) -> None:
    lan.host("172.18.0.1/16", serve=["172.18.0.1:11434=ollama:red"])
    client = lan.host("172.18.5.3/16")  # so far away that its own /24 is not the outside's
    client.route("172.18.0.1")
    result = search(client, container="podman")
    assert (result["keys"], result["sources"]) == (["172.18.0.1:11434"], ["container host"])
    assert search(client, "auto_resolve_docker=False", container="podman")["keys"] == []


def test_no_network_at_all(lan: Any) -> None:
    assert search(lan.host())["keys"] == []


def test_no_more_neighbours_are_asked_for_than_the_system_keeps(lan: Any) -> None:
    lan.host("10.77.0.254/24", serve=["10.77.0.254:11434=ollama:red"])
    few = "import sollol.discovery.sweep as s; s.NEIGHBOUR_S = 0.2; s.neighbour_limit = lambda: 64\n"
    result = json.loads(lan.host("10.77.0.10/24").python(few + SEARCH.format(options="timeout=8")))
    assert result["keys"] == ["10.77.0.254:11434"]
    assert result["took"] > 3 * 0.2


def test_the_last_address_of_a_22_is_reached(lan: Any) -> None:
    """Last in this file: it leaves the system's neighbour table, which all namespaces share, full for 3 s."""
    lan.host("10.77.3.254/22", serve=["10.77.3.254:11434=ollama:red"])
    result = search(lan.host("10.77.0.10/22"), "timeout=8")
    assert result["keys"] == ["10.77.3.254:11434"]
