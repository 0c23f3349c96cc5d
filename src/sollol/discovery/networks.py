"""Permitted networks of a search: the private networks of this machine.

Users expect a node in the next room to be found without settings. Connection attempts to foreign addresses are noise at
best and an incident at worst. So only private networks are searched, also when the caller names a network:

- by default: 10/8, 172.16/12, 192.168/16 (RFC 1918). A network wider than /22 (1,022 hosts) is narrowed to the /24
  around this machine's own address, with `discover_all_nodes=True` to the /16;
- only when written in `subnets=`: loopback, link-local (169.254/16: computers joined by a Thunderbolt cable),
  fc00::/7, and 100.64/10. The last is Tailscale's, but also that of providers who put strangers behind one address.
  Tailscale gives out single addresses anyway: name such nodes.

Nearest addresses come first, because a short `timeout` should be spent on likely neighbours. Everything is pure except
`own_interfaces`, `own_broadcasts` and `route_address`.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from sollol.errors import BadInput

IPv4 = ipaddress.IPv4Address
IP = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

WIDEST_PREFIX = 22  # narrowest network that is searched whole by default
NARROWED_PREFIX = 24  # wider networks are narrowed to this
WIDE_PREFIX = 16  # the same with discover_all_nodes=True
MAX_ADDRESSES = 1 << 16  # of all `subnets` together

_AUTOMATIC = [ipaddress.IPv4Network(text) for text in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")]
_PERMITTED: list[Network] = [
    *_AUTOMATIC,
    *map(ipaddress.ip_network, ("127.0.0.0/8", "169.254.0.0/16", "100.64.0.0/10")),
    *map(ipaddress.ip_network, ("::1/128", "fc00::/7")),
]
_BRIDGE = re.compile(r"(docker|podman|nerdctl|cni|cni-podman|virbr|lxcbr|lxdbr|vmnet|vboxnet)\d+|br-[0-9a-f]{12}")


class Interface(NamedTuple):
    """One address of this machine."""

    name: str
    ip: IP
    prefix: int

    @property
    def network(self) -> Network:
        """The network of this address."""
        return ipaddress.ip_network((self.ip, self.prefix), strict=False)

    @property
    def is_bridge(self) -> bool:
        """True for a bridge to containers or virtual machines on this machine."""
        return _BRIDGE.fullmatch(self.name) is not None


def own_interfaces() -> list[Interface]:
    """Return all addresses of this machine, loopback included, in the system's order."""
    import ifaddr

    found = []
    for adapter in ifaddr.get_adapters():
        for entry in adapter.ips:
            text = entry.ip if isinstance(entry.ip, str) else entry.ip[0]
            found.append(Interface(adapter.name, ipaddress.ip_address(text), entry.network_prefix))
    return found


def route_address() -> IP | None:
    """Return this machine's address towards other networks. Connecting a datagram socket sends nothing."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("203.0.113.1", 9))
            return ipaddress.ip_address(probe.getsockname()[0])
        except OSError:
            return None  # no route


def broadcast_addresses(host: str, interfaces: Iterable[Interface]) -> list[str]:
    """Return the broadcast address of a host's network; those of all networks if it is in none.

    A packet for 255.255.255.255 leaves through one network card only, which may be another than the host's.
    """
    networks = [
        each.network for each in interfaces if each.ip.version == 4 and not each.ip.is_loopback and each.prefix < 31
    ]
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:  # a name, which may not be found while its machine sleeps
        ip = None
    own = [network for network in networks if ip in network] if ip is not None else []
    return list(dict.fromkeys(str(network.broadcast_address) for network in own or networks))


def own_broadcasts(host: str) -> list[str]:
    """Return the broadcast addresses of this machine that reach a host."""
    return broadcast_addresses(host, own_interfaces())


def is_private(ip: IP) -> bool:
    """Check whether a network with this address is searched by default."""
    return isinstance(ip, IPv4) and any(ip in network for network in _AUTOMATIC)


def own_networks(interfaces: Iterable[Interface], wide: bool, first: IP | None = None) -> list[Interface]:
    """Return the private IPv4 networks to search, each once: the routed one first, container bridges last."""
    private = [each for each in interfaces if is_private(each.ip)]
    private.sort(key=lambda each: (each.ip != first, each.is_bridge))  # stable: otherwise the system's order
    cut = [each._replace(prefix=_narrowed(each.prefix, wide)) for each in private]
    return list({each.network: each for each in reversed(cut)}.values())[::-1]


def _narrowed(prefix: int, wide: bool) -> int:
    if wide:
        return max(prefix, WIDE_PREFIX)
    return prefix if prefix >= WIDEST_PREFIX else NARROWED_PREFIX


def nearest_first(networks: Sequence[Interface]) -> Iterator[IP]:
    """Yield all host addresses: each network's /24 around its own address, then the next ones outwards."""
    blocks: list[tuple[int, int, int, Network]] = []
    for rank, each in enumerate(networks):
        own = int(each.ip) >> 8
        low, high = (int(end) >> 8 for end in (each.network.network_address, each.network.broadcast_address))
        blocks.extend((abs(block - own), rank, block, each.network) for block in range(low, high + 1))
    seen: set[int] = set()
    for _, _, block, network in sorted(blocks, key=lambda entry: entry[:3]):
        for number in _hosts(network, block << 8, (block + 1 << 8) - 1):
            if number not in seen:
                seen.add(number)
                yield IPv4(number)


def _hosts(network: Network, low: int, high: int) -> range:
    """Return the host numbers of `network` from low to high, without the network's and the broadcast address."""
    edge = 0 if network.prefixlen >= network.max_prefixlen - 1 or network.version == 6 else 1
    first = int(network.network_address) + edge
    last = int(network.network_address) + network.num_addresses - 1 - edge
    return range(max(low, first), min(high, last) + 1)


def parse_subnets(subnets: Iterable[str]) -> list[Network]:
    """Parse `subnets=`: networks in CIDR ("10.9.66.0/24") or single addresses.

    Raises:
        BadInput: An entry is no network, not private, or the networks are too large.
    """
    if isinstance(subnets, str):
        subnets = [subnets]
    networks = [_subnet(entry) for entry in subnets]
    count = sum(network.num_addresses for network in networks)
    if count > MAX_ADDRESSES:
        raise BadInput(
            f"subnets: {count:,} addresses are more than one search takes ({MAX_ADDRESSES:,}, a /16); "
            "search smaller networks, or name the nodes in SOLLOL_NODES"
        )
    return networks


def _subnet(entry: object) -> Network:
    try:
        network = ipaddress.ip_network(str(entry).strip().strip("[]"), strict=False)
    except ValueError:
        raise BadInput(
            f"subnets: {entry!r} is not a network; expected one like '10.9.66.0/24' or an address like "
            "'10.9.66.15' (a host with a name belongs in SOLLOL_NODES)"
        ) from None
    if not any(_within(network, allowed) for allowed in _PERMITTED):
        raise BadInput(
            f"subnets: {entry!r} is not a private network, and only those are searched; "
            "name a node elsewhere in SOLLOL_NODES or with pool.add_node(host, port)"
        )
    return network


def _within(network: Network, allowed: Network) -> bool:
    if isinstance(network, ipaddress.IPv4Network) and isinstance(allowed, ipaddress.IPv4Network):
        return network.subnet_of(allowed)
    if isinstance(network, ipaddress.IPv6Network) and isinstance(allowed, ipaddress.IPv6Network):
        return network.subnet_of(allowed)
    return False


def addresses(networks: Iterable[Network]) -> Iterator[IP]:
    """Yield the host addresses of networks in the given order, each once."""
    seen: set[tuple[int, int]] = set()
    for network in networks:
        make = ipaddress.IPv4Address if network.version == 4 else ipaddress.IPv6Address
        for number in _hosts(network, 0, 1 << network.max_prefixlen):
            if (network.version, number) not in seen:
                seen.add((network.version, number))
                yield make(number)
