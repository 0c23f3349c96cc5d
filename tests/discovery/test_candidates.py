"""Where a node might be: from what is known of the machine to places to ask, without asking."""

import ipaddress
from pathlib import Path
from typing import Any

from sollol.config import Settings
from sollol.core.endpoint import Endpoint
from sollol.discovery.candidates import CandidateSource, Surroundings, default_gateway, in_container, plan
from sollol.discovery.networks import Interface, parse_subnets

ip = ipaddress.ip_address
LAN = Interface("eth0", ip("192.168.1.5"), 24)
DOCKER = Interface("docker0", ip("172.17.0.1"), 16)
LOOPBACK = Interface("lo", ip("127.0.0.1"), 8)
PUBLIC = Interface("eth1", ip("203.0.113.9"), 24)
HOME = Surroundings((LOOPBACK, DOCKER, LAN, PUBLIC), route=ip("192.168.1.5"))
BOX = Surroundings(
    (LOOPBACK, Interface("eth0", ip("172.18.0.3"), 16)), ip("172.18.0.3"), True, gateway=ip("172.18.0.1")
)


def targets(around: Any = HOME, ports: Any = (11434,), subnets: Any = None, **options: Any) -> Any:
    return list(plan(around, Settings(), ports, parse_subnets(subnets) if subnets else None, **options).targets)


def hosts(source: Any, found: Any) -> Any:
    return [str(target.ip) for target in found if target.source is source]


def test_localhost_is_every_own_private_address_and_never_a_public_one() -> None:
    found = targets()
    assert hosts(CandidateSource.LOCALHOST, found) == ["127.0.0.1", "::1", "192.168.1.5", "172.17.0.1"]
    assert not any(str(target.ip).startswith("203.0.113.") for target in found)


def test_own_networks_follow_without_own_addresses() -> None:
    found = hosts(CandidateSource.SUBNET, targets())
    assert len(found) == 253 + 253
    assert found[0] == "192.168.1.1"
    assert "192.168.1.5" not in found


def test_only_neighbours_on_a_link_take_a_neighbour_entry() -> None:
    near = {str(target.ip): target.on_link for target in targets(subnets=["192.168.1.7", "10.0.0.1", "127.0.0.9"])}
    assert near["192.168.1.7"]
    assert not near["10.0.0.1"]
    assert not near["127.0.0.9"]


def test_subnets_stand_in_for_own_networks() -> None:
    assert hosts(CandidateSource.SUBNET, targets(subnets=["10.0.0.0/30"])) == ["10.0.0.1", "10.0.0.2"]
    assert hosts(CandidateSource.LOCALHOST, targets(subnets=["10.0.0.0/30"]))


def test_a_wide_network_is_searched_whole_only_when_all_is_asked_for() -> None:
    around = Surroundings((Interface("eth0", ip("10.77.0.10"), 20),))
    assert "10.77.1.21" not in hosts(CandidateSource.SUBNET, targets(around))
    assert "10.77.1.21" in hosts(CandidateSource.SUBNET, targets(around, wide=True))


def test_every_port_is_tried_at_every_address() -> None:
    found = targets(ports=(11434, 8080), subnets=["10.0.0.1"])
    assert [target.port for target in found if str(target.ip) == "10.0.0.1"] == [11434, 8080]


def test_without_localhost_no_own_address_is_asked() -> None:
    found = targets(exclude_localhost=True, subnets=["192.168.1.0/29", "127.0.0.0/30"])
    assert [str(target.ip) for target in found] == [f"192.168.1.{last}" for last in (1, 2, 3, 4, 6)]


def test_a_container_asks_the_machine_outside() -> None:
    made = plan(BOX, Settings(), (11434,))
    assert hosts(CandidateSource.CONTAINER_HOST, made.targets) == ["172.18.0.1", "172.17.0.1"]
    assert made.names == ("host.docker.internal", "host.containers.internal")


def test_outside_a_container_or_when_told_not_to_no_container_host_is_asked() -> None:
    for made in (plan(HOME, Settings(), (11434,)), plan(BOX, Settings(), (11434,), containers=False)):
        assert made.names == ()
        assert not hosts(CandidateSource.CONTAINER_HOST, made.targets)


def test_a_public_gateway_is_not_asked() -> None:
    assert hosts(CandidateSource.CONTAINER_HOST, targets(BOX._replace(gateway=ip("203.0.113.1")))) == ["172.17.0.1"]


def test_what_a_person_named_comes_first_and_once() -> None:
    settings = Settings(ollama_host=Endpoint("a"), nodes=(Endpoint("b", 1), Endpoint("a")))
    assert plan(HOME, settings, (11434,)).named == (Endpoint("a"), Endpoint("b", 1))


def test_no_network_at_all_still_asks_localhost() -> None:
    found = targets(Surroundings((LOOPBACK,)))
    assert [str(target.ip) for target in found] == ["127.0.0.1", "::1"]


def test_containers_are_known_by_their_marks(tmp_path: Path) -> None:
    assert not in_container(tmp_path, {})
    assert in_container(tmp_path, {"KUBERNETES_SERVICE_HOST": "10.0.0.1"})
    assert in_container(tmp_path, {"container": "podman"})
    (tmp_path / ".dockerenv").touch()
    assert in_container(tmp_path, {})


def test_windows_linux_counts_as_a_container(tmp_path: Path) -> None:
    (tmp_path / "proc/sys/kernel").mkdir(parents=True)
    (tmp_path / "proc/sys/kernel/osrelease").write_text("5.15.90.1-microsoft-standard-WSL2\n")
    assert in_container(tmp_path, {})


def test_default_gateway_from_the_routing_table(tmp_path: Path) -> None:
    assert default_gateway(tmp_path) is None
    (tmp_path / "proc/net").mkdir(parents=True)
    (tmp_path / "proc/net/route").write_text(
        "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n"
        "eth0\t000011AC\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0\n"
        "eth0\t00000000\t010011AC\t0003\t0\t0\t0\t00000000\t0\t0\t0\n"
    )
    assert default_gateway(tmp_path) == ip("172.17.0.1")
