"""Candidates: a pure function from facts about this machine to the addresses to try.

Four sources, most certain first; they are tried in this order:

1. settings: `OLLAMA_HOST`, `SOLLOL_NODES` or the file. Any URL is permitted, and the search waits for these until the
   end of `timeout`;
2. localhost: 127.0.0.1, ::1 and this machine's own private addresses (Ollama may listen on any of them);
3. container host: inside a container, the user's Ollama usually runs on the host. It is reachable at the default
   gateway, and by name with Docker Desktop or Podman. Outside a container these addresses are this machine's own, so
   they are skipped;
4. subnet: every address of the private networks, nearest first (`networks.py`).
"""

from __future__ import annotations

import enum
import ipaddress
import os
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from sollol.config import Settings
from sollol.core.endpoint import Endpoint
from sollol.discovery.networks import (
    IP,
    Interface,
    Network,
    addresses,
    is_private,
    nearest_first,
    own_networks,
)

CONTAINER_HOST_NAMES = ("host.docker.internal", "host.containers.internal")
DOCKER_GATEWAY = ipaddress.IPv4Address("172.17.0.1")
_LOOPBACKS: tuple[IP, ...] = (ipaddress.IPv4Address("127.0.0.1"), ipaddress.IPv6Address("::1"))
_MARKS = ("/.dockerenv", "/run/.containerenv")
_VARIABLES = ("KUBERNETES_SERVICE_HOST", "container")  # `container` is set by Podman, LXC and systemd-nspawn


class CandidateSource(enum.IntEnum):
    """The source of an address. Smaller values are more certain."""

    SETTINGS = 0
    LOCALHOST = 1
    CONTAINER_HOST = 2
    SUBNET = 3

    def __str__(self) -> str:
        return self.name.lower().replace("_", " ")


class Target(NamedTuple):
    """An address for a bare connection attempt. `on_link`: it needs a neighbour (ARP) entry."""

    ip: IP
    port: int
    source: CandidateSource
    on_link: bool = False

    @property
    def endpoint(self) -> Endpoint:
        """The address as an endpoint."""
        return Endpoint(str(self.ip), self.port)


class Surroundings(NamedTuple):
    """Addresses, route and container state of this machine."""

    interfaces: tuple[Interface, ...]
    route: IP | None = None
    in_container: bool = False
    gateway: IP | None = None

    def is_own(self, ip: IP) -> bool:
        """Check for an address of this machine."""
        return ip.is_loopback or any(ip == each.ip for each in self.interfaces)


class SearchPlan(NamedTuple):
    """The addresses of a search.

    `named` are identified at once, `names` become targets on `ports` when they are resolved, `targets` are swept.
    """

    named: tuple[Endpoint, ...]
    names: tuple[str, ...]
    ports: tuple[int, ...]
    targets: Iterator[Target]


def plan(
    around: Surroundings,
    settings: Settings,
    ports: Sequence[int],
    subnets: Sequence[Network] | None = None,
    *,
    exclude_localhost: bool = False,
    containers: bool = True,
    wide: bool = False,
) -> SearchPlan:
    """Return the addresses to try. `subnets` replace this machine's networks; the other sources are tried as well."""
    named = [*([settings.ollama_host] if settings.ollama_host else []), *settings.nodes]
    inside = containers and around.in_container
    targets = _targets(around, ports, subnets, inside, wide)
    if exclude_localhost:
        targets = (target for target in targets if not around.is_own(target.ip))
    return SearchPlan(tuple(dict.fromkeys(named)), CONTAINER_HOST_NAMES if inside else (), tuple(ports), targets)


def _targets(
    around: Surroundings, ports: Sequence[int], subnets: Sequence[Network] | None, inside: bool, wide: bool
) -> Iterator[Target]:
    seen: set[IP] = set()

    def fresh(ips: Iterable[IP], source: CandidateSource) -> Iterator[Target]:
        for ip in ips:
            if ip not in seen:
                seen.add(ip)
                near = source is CandidateSource.SUBNET and any(ip in network for network in links)
                yield from (Target(ip, port, source, near) for port in ports)

    links = [each.network for each in around.interfaces if not each.ip.is_loopback and each.ip.version == 4]
    yield from fresh([*_LOOPBACKS, *own_addresses(around)], CandidateSource.LOCALHOST)
    if inside:
        hosts = [ip for ip in (around.gateway, DOCKER_GATEWAY) if ip is not None and is_private(ip)]
        yield from fresh(hosts, CandidateSource.CONTAINER_HOST)
    if subnets is None:
        yield from fresh(nearest_first(own_networks(around.interfaces, wide, around.route)), CandidateSource.SUBNET)
    else:
        yield from fresh(addresses(subnets), CandidateSource.SUBNET)


def own_addresses(around: Surroundings) -> list[IP]:
    """Return this machine's private addresses: the routed one first, container bridges last."""
    private = [each for each in around.interfaces if is_private(each.ip)]
    private.sort(key=lambda each: (each.ip != around.route, each.is_bridge))
    return [each.ip for each in private]


def in_container(root: Path = Path("/"), env: Mapping[str, str] | None = None) -> bool:
    """Check for a container, or for WSL, whose Windows host is reachable in the same way."""
    env = os.environ if env is None else env
    if any((root / mark.lstrip("/")).exists() for mark in _MARKS) or any(env.get(name) for name in _VARIABLES):
        return True
    return "microsoft" in _text(root / "proc/sys/kernel/osrelease").lower()


def default_gateway(root: Path = Path("/")) -> IP | None:
    """Return the default gateway of Linux's routing table; None on other systems."""
    for line in _text(root / "proc/net/route").splitlines()[1:]:
        fields = line.split()
        if len(fields) > 7 and fields[1] == "00000000" and fields[7] == "00000000":
            gateway = ipaddress.IPv4Address(struct.pack("=I", int(fields[2], 16)))
            if int(gateway):
                return gateway
    return None


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
