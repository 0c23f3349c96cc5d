"""Which addresses are one node, and which nodes one machine."""

import ipaddress
from pathlib import Path
from typing import Any

import pytest

from sollol.core.endpoint import Endpoint
from sollol.discovery.candidates import CandidateSource, Surroundings
from sollol.discovery.identity import THIS_MACHINE, Deduplicator, Sighting, host_id, neighbours
from sollol.discovery.networks import Interface
from sollol.discovery.search import _warn_of_relays
from sollol.discovery.verify import NodeIdentity

ip = ipaddress.ip_address
AROUND = Surroundings(
    (
        Interface("lo", ip("127.0.0.1"), 8),
        Interface("docker0", ip("172.17.0.1"), 16),
        Interface("eth0", ip("192.168.1.5"), 24),
    ),
    route=ip("192.168.1.5"),
)
EMPTY = "no models"


def seen(
    host: Any,
    says: Any = "red",
    port: Any = 11434,
    source: Any = CandidateSource.SUBNET,
    ips: Any = None,
    latency_s: Any = 0.001,
) -> Any:
    addresses = (ip(host),) if ips is None else tuple(map(ip, ips))
    return Sighting(Endpoint(host, port), source, addresses, NodeIdentity("1", ("m",), latency_s, says, says != EMPTY))


def keys(*sightings: Any, macs: Any = None, loaded_alike: Any = True) -> Any:
    deduplicator = Deduplicator(sightings, AROUND, macs or {})
    return [node.endpoint.key for node in deduplicator.nodes(deduplicator.doubtful() if loaded_alike else [])]


def test_this_machine_is_one_node_under_the_address_that_others_know() -> None:
    everywhere = [
        seen("127.0.0.1", source=CandidateSource.LOCALHOST),
        seen("::1"),
        seen("172.17.0.1"),
        seen("192.168.1.5"),
    ]
    deduplicator = Deduplicator(everywhere, AROUND, {})
    (node,) = deduplicator.nodes([])
    assert node.endpoint == Endpoint("192.168.1.5")
    assert node.aliases == ("127.0.0.1:11434", "172.17.0.1:11434", "[::1]:11434")
    assert (node.host_id, node.source) == (THIS_MACHINE, CandidateSource.LOCALHOST)


def test_loopback_is_kept_where_nothing_better_answers() -> None:
    assert keys(seen("127.0.0.1"), seen("::1"), seen("172.17.0.1")) == ["127.0.0.1:11434"]
    assert keys(seen("::1")) == ["[::1]:11434"]


def test_a_published_container_of_this_machine_is_one_node() -> None:
    assert keys(seen("192.168.1.5", EMPTY), seen("172.17.0.2", EMPTY)) == ["192.168.1.5:11434"]


def test_different_answers_are_different_nodes_even_on_this_machine() -> None:
    assert keys(seen("127.0.0.2", "red"), seen("127.0.0.3", "blue")) == ["127.0.0.2:11434", "127.0.0.3:11434"]


def test_two_ports_are_two_nodes_on_one_machine() -> None:
    nodes = Deduplicator([seen("192.168.1.9"), seen("192.168.1.9", port=11435)], AROUND, {}).nodes([])
    assert [node.endpoint.port for node in nodes] == [11434, 11435]
    assert nodes[0].host_id == nodes[1].host_id


def test_one_mac_and_equal_answers_are_one_node() -> None:
    macs = {"192.168.1.8": "aa", "192.168.1.9": "aa"}
    assert keys(seen("192.168.1.8", EMPTY), seen("192.168.1.9", EMPTY), macs=macs) == ["192.168.1.8:11434"]


def test_one_mac_with_different_answers_is_a_repeater_with_two_machines_behind_it() -> None:
    macs = {"192.168.1.8": "aa", "192.168.1.9": "aa"}
    assert len(keys(seen("192.168.1.8", "red"), seen("192.168.1.9", "blue"), macs=macs)) == 2


def test_two_cards_of_one_machine_are_known_by_what_is_on_its_disk() -> None:
    macs = {"192.168.1.8": "aa", "192.168.1.9": "bb"}
    assert keys(seen("192.168.1.8"), seen("192.168.1.9"), macs=macs) == ["192.168.1.8:11434"]


def test_but_not_if_they_have_different_models_loaded() -> None:
    macs = {"192.168.1.8": "aa", "192.168.1.9": "bb"}
    assert len(keys(seen("192.168.1.8"), seen("192.168.1.9"), macs=macs, loaded_alike=False)) == 2


def test_machines_without_models_look_alike_and_are_kept_apart() -> None:
    assert len(keys(seen("192.168.1.8", EMPTY), seen("192.168.1.9", EMPTY))) == 2


def test_three_machines_with_one_disk_share_a_directory() -> None:
    assert len(keys(seen("192.168.1.8"), seen("192.168.1.9"), seen("192.168.1.10"))) == 3


def test_two_nodes_that_a_person_named_stay_two() -> None:
    named = [seen("192.168.1.8", source=CandidateSource.SETTINGS), seen("192.168.1.9", source=CandidateSource.SETTINGS)]
    assert len(keys(*named)) == 2


def test_a_name_is_kept_and_its_address_becomes_an_alias() -> None:
    named = seen("box.lan", source=CandidateSource.SETTINGS, ips=["192.168.1.8"])
    (node,) = Deduplicator([seen("192.168.1.8"), named], AROUND, {}).nodes([])
    assert (node.endpoint.host, node.aliases, node.source) == (
        "box.lan",
        ("192.168.1.8:11434",),
        CandidateSource.SETTINGS,
    )


def test_nodes_come_in_the_order_of_their_addresses() -> None:
    many = [seen(host, host) for host in ("192.168.1.100", "10.9.66.154", "192.168.1.9", "10.9.66.15")]
    named = seen("box.lan", "box", ips=["10.0.0.1"])
    assert keys(named, *many) == [
        "10.9.66.15:11434",
        "10.9.66.154:11434",
        "192.168.1.9:11434",
        "192.168.1.100:11434",
        "box.lan:11434",
    ]


def test_host_ids() -> None:
    macs = {"192.168.1.8": "aa:bb"}
    assert host_id("x", [ip("127.0.0.7")], AROUND, macs) == THIS_MACHINE
    assert host_id("x", [ip("172.17.0.9")], AROUND, macs) == THIS_MACHINE  # a container of ours
    assert host_id("x", [ip("192.168.1.8")], AROUND, macs) == "mac aa:bb"
    assert host_id("x", [ip("192.168.1.9")], AROUND, macs) == "ip 192.168.1.9"
    assert host_id("x", [], AROUND, macs) == "name x"


def test_the_neighbour_table_without_incomplete_entries(tmp_path: Path) -> None:
    assert neighbours(tmp_path) == {}
    (tmp_path / "proc/net").mkdir(parents=True)
    (tmp_path / "proc/net/arp").write_text(
        "IP address       HW type     Flags       HW address            Mask     Device\n"
        "10.77.0.21       0x1         0x2         02:fc:00:00:00:05     *        e0\n"
        "10.77.0.22       0x1         0x0         00:00:00:00:00:00     *        e0\n"
    )
    assert neighbours(tmp_path) == {"10.77.0.21": "02:fc:00:00:00:05"}


def test_both_addresses_of_what_answers_alike_are_told(caplog: pytest.LogCaptureFixture) -> None:
    relay, real = seen("192.168.1.8"), seen("192.168.1.9")
    deduplicator = Deduplicator([relay, real], AROUND, {})
    pairs = deduplicator.doubtful()
    _warn_of_relays(pairs, deduplicator.nodes(pairs))
    assert "192.168.1.8:11434 and 192.168.1.9:11434 answer alike" in caplog.text
    assert "192.168.1.8:11434 is used" in caplog.text
    named = [relay, seen("192.168.1.9", source=CandidateSource.SETTINGS)]
    assert keys(*named) == ["192.168.1.9:11434"]
