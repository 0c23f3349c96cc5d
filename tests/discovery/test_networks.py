"""What may be searched, and in which order."""

import ipaddress
import itertools
from typing import Any

import pytest

from sollol.discovery.networks import (
    Interface,
    addresses,
    broadcast_addresses,
    is_private,
    nearest_first,
    own_interfaces,
    own_networks,
    parse_subnets,
)
from sollol.errors import BadInput

ip = ipaddress.ip_address


def card(address: Any, name: Any = "eth0") -> Any:
    host, _, prefix = address.partition("/")
    return Interface(name, ip(host), int(prefix))


def searched(*cards: Any, wide: Any = False, first: Any = None) -> Any:
    return [str(each.network) for each in own_networks(cards, wide, ip(first) if first else None)]


@pytest.mark.parametrize("text", ["10.0.0.1", "10.255.255.254", "172.16.0.1", "172.31.9.9", "192.168.1.5"])
def test_private(text: Any) -> None:
    assert is_private(ip(text))


@pytest.mark.parametrize(
    "text",
    [
        "8.8.8.8",
        "172.15.0.1",
        "172.32.0.1",
        "192.0.2.2",
        "100.64.0.1",
        "169.254.1.1",
        "127.0.0.1",
        "fd00::1",
        "198.18.0.1",
    ],
)
def test_not_searched_unasked(text: Any) -> None:
    assert not is_private(ip(text))
    assert searched(card(f"{text}/24")) == []


def test_a_network_up_to_1022_hosts_is_searched_whole_and_a_wider_one_is_narrowed() -> None:
    assert searched(card("10.9.66.15/24")) == ["10.9.66.0/24"]
    assert searched(card("10.9.66.15/22")) == ["10.9.64.0/22"]
    assert searched(card("10.9.66.15/21")) == ["10.9.66.0/24"]
    assert searched(card("10.9.66.15/8")) == ["10.9.66.0/24"]


def test_wide_goes_to_a_16_and_no_further() -> None:
    assert searched(card("10.9.66.15/8"), wide=True) == ["10.9.0.0/16"]
    assert searched(card("10.9.66.15/20"), wide=True) == ["10.9.64.0/20"]


def test_the_routed_network_comes_first_and_container_bridges_last() -> None:
    cards = [
        card("172.17.0.1/16", "docker0"),
        card("10.8.0.2/24", "tun0"),
        card("172.18.0.1/16", "br-0123456789ab"),
        card("192.168.1.5/24"),
    ]
    assert searched(*cards, first="192.168.1.5") == ["192.168.1.0/24", "10.8.0.0/24", "172.17.0.0/24", "172.18.0.0/24"]


def test_two_cards_in_one_network_search_it_once() -> None:
    assert searched(card("192.168.1.5/24"), card("192.168.1.6/24", "wlan0")) == ["192.168.1.0/24"]


@pytest.mark.parametrize(
    ("name", "bridge"),
    [
        ("docker0", True),
        ("br-0123456789ab", True),
        ("virbr0", True),
        ("br-lan", False),
        ("br0", False),
        ("eth0", False),
    ],
)
def test_bridges_to_containers_are_known_by_name(name: Any, bridge: Any) -> None:
    assert card("10.0.0.1/24", name).is_bridge is bridge


def test_hosts_are_without_network_and_broadcast_address() -> None:
    hosts = list(nearest_first([card("10.9.66.15/24")]))
    assert (len(hosts), hosts[0], hosts[-1]) == (254, ip("10.9.66.1"), ip("10.9.66.254"))
    assert list(nearest_first([card("10.0.0.2/31")])) == [ip("10.0.0.2"), ip("10.0.0.3")]
    assert list(nearest_first([card("10.0.0.2/32")])) == [ip("10.0.0.2")]
    assert len(list(nearest_first([card("10.9.66.15/22")]))) == 1022
    assert len(list(nearest_first([card("10.9.66.15/16")]))) == 65534


def test_the_nearest_24_of_every_network_comes_before_the_second_of_any() -> None:
    hosts = nearest_first([card("10.9.66.15/22"), card("192.168.1.5/24")])
    blocks = [str(ipaddress.ip_network((host, 24), strict=False)) for host in hosts]
    assert [block for block, _ in itertools.groupby(blocks)] == [
        "10.9.66.0/24",
        "192.168.1.0/24",
        "10.9.65.0/24",
        "10.9.67.0/24",
        "10.9.64.0/24",
    ]


def test_subnets_are_networks_or_addresses() -> None:
    networks = parse_subnets(["10.9.66.15/30", " 192.168.1.5 ", "fd00::5", "[::1]", "127.0.0.0/30", "100.64.0.9"])
    found = [str(each) for each in addresses(networks)]
    assert found[:4] == ["10.9.66.13", "10.9.66.14", "192.168.1.5", "fd00::5"]
    assert found[4:] == ["::1", "127.0.0.1", "127.0.0.2", "100.64.0.9"]
    assert list(addresses(parse_subnets(["10.0.0.1", "10.0.0.1/32"]))) == [ip("10.0.0.1")]
    assert parse_subnets("10.0.0.0/24") == parse_subnets(["10.0.0.0/24"])


@pytest.mark.parametrize("entry", ["10.0.0", "10.0.0.0/33", "gpu-box", "", "10.0.0.1-20", 7, None, "300.1.1.1"])
def test_a_bad_subnet_is_named(entry: Any) -> None:
    with pytest.raises(BadInput) as caught:
        parse_subnets([entry])
    assert repr(entry) in str(caught.value) or entry == 7


@pytest.mark.parametrize(
    "entry", ["8.8.8.0/24", "0.0.0.0/0", "10.0.0.0/7", "172.16.0.0/11", "2001:db8::/120", "192.0.2.0/24"]
)
def test_public_networks_are_refused(entry: Any) -> None:
    with pytest.raises(BadInput, match="not a private network"):
        parse_subnets([entry])


def test_subnets_are_bounded() -> None:
    assert parse_subnets(["10.0.0.0/16"])
    for too_many in (["10.0.0.0/15"], ["10.0.0.0/16", "10.9.0.1"], ["fd00::/64"]):
        with pytest.raises(BadInput, match="more than one search takes"):
            parse_subnets(too_many)


def test_this_machine_has_a_loopback() -> None:
    assert any(each.ip.is_loopback for each in own_interfaces())


def test_a_packet_for_a_sleeping_machine_leaves_through_its_network() -> None:
    own = [card("127.0.0.1/8", "lo"), card("10.78.0.10/24"), card("10.79.0.10/22"), card("fd00::1/64")]
    own.append(card("100.64.0.3/32", "tun0"))
    assert broadcast_addresses("10.79.2.21", own) == ["10.79.3.255"]
    for unplaced in ("office-pc", "192.0.2.7", "fd00::2"):
        assert broadcast_addresses(unplaced, own) == ["10.78.0.255", "10.79.3.255"]
    assert broadcast_addresses("10.79.2.21", own[:1]) == []
