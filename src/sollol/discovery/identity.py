"""Merge addresses of one machine and port into one node.

A docked laptop answers on the cable and on Wi-Fi, this machine on localhost and on its address. Counted twice, it gets
twice the work. The opposite mistake is worse: two machines merged into one leave half the cluster idle. So two
addresses are one node only if port, URL and fingerprint (`verify.NodeIdentity.fingerprint`) agree, and there is
evidence of one machine:

- certain: both addresses are this machine's own (loopback, its interfaces, its container bridges), or resolve to the
  same address;
- on the same link: the neighbour table has the same MAC for both. Alone that proves little (Wi-Fi repeaters and
  bridges of virtual machines answer with their own MAC), with equal fingerprints it is enough;
- otherwise: the same models, written to disk at the same nanoseconds. That is one disk, usually of one machine. It can
  be a shared directory or copies of one image, so it does not count if three or more machines have it, if both nodes
  were named in the settings, or if they differ in their loaded models.

Known limit: two idle machines with one shared model directory, found by search, look like one. Name both in
`SOLLOL_NODES`. Neighbour tables are read on Linux only.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from sollol.core.endpoint import Endpoint
from sollol.discovery.candidates import CandidateSource, Surroundings, own_addresses
from sollol.discovery.networks import IP
from sollol.discovery.verify import NodeIdentity

THIS_MACHINE = "this machine"
Macs = Mapping[str, str]


class Found(NamedTuple):
    """A node. `aliases` are the keys (`host:port`) of its other addresses."""

    endpoint: Endpoint
    version: str
    models: tuple[str, ...]
    aliases: tuple[str, ...]
    source: CandidateSource
    latency_s: float
    host_id: str
    """Equal for two nodes on one physical machine."""


class Sighting(NamedTuple):
    """An address at which Ollama answered. `ips` are the addresses of its host."""

    endpoint: Endpoint
    source: CandidateSource
    ips: tuple[IP, ...]
    answer: NodeIdentity


def neighbours(root: Path = Path("/")) -> dict[str, str]:
    """Return address -> MAC of Linux's neighbour table; empty on other systems."""
    try:
        lines = (root / "proc/net/arp").read_text().splitlines()[1:]
    except OSError:
        return {}
    rows = [line.split() for line in lines]
    complete = [row for row in rows if len(row) >= 4 and row[2] != "0x0" and row[3] != "00:00:00:00:00:00"]
    return {row[0]: row[3] for row in complete}


def host_id(host: str, ips: Sequence[IP], around: Surroundings, macs: Macs) -> str:
    """Return an id of the physical machine behind a host."""
    bridges = [each.network for each in around.interfaces if each.is_bridge]
    if any(around.is_own(ip) or any(ip in bridge for bridge in bridges) for ip in ips):
        return THIS_MACHINE
    seen = sorted(macs[str(ip)] for ip in ips if str(ip) in macs)
    if seen:
        return f"mac {seen[0]}"
    return f"ip {min(map(str, ips))}" if ips else f"name {host}"


class Deduplicator:
    """Group sightings by fingerprint and machine."""

    def __init__(self, sightings: Sequence[Sighting], around: Surroundings, macs: Macs) -> None:
        self._around = around
        self._macs = macs
        self._rank = {ip: rank for rank, ip in enumerate(own_addresses(around))}
        self._alike: dict[tuple[object, ...], dict[str, list[Sighting]]] = defaultdict(dict)
        for each in dict.fromkeys(sightings):
            e = each.endpoint
            kind = (e.port, e.scheme, e.prefix, each.answer.fingerprint)
            self._alike[kind].setdefault(self.host_of(each), []).append(each)

    def host_of(self, sighting: Sighting) -> str:
        """Return the id of the machine of a sighting."""
        return host_id(sighting.endpoint.host, sighting.ips, self._around, self._macs)

    def doubtful(self) -> list[tuple[Sighting, Sighting]]:
        """Return pairs with equal fingerprints on two machines; their loaded models decide whether they are one."""
        return [
            (first[0], second[0])
            for hosts in self._alike.values()
            if len(hosts) == 2
            for first, second in [tuple(hosts.values())]
            if first[0].answer.strong and not (_named(first) and _named(second))
        ]

    def nodes(self, same_nodes: Sequence[tuple[Sighting, Sighting]]) -> list[Found]:
        """Return the nodes in the order of their addresses; merge the given pairs."""
        merged = {first for first, _ in same_nodes}
        found: list[Found] = []
        for hosts in self._alike.values():
            groups = list(hosts.values())
            if len(groups) == 2 and groups[0][0] in merged:
                groups = [groups[0] + groups[1]]
            found.extend(self._node(group) for group in groups)
        return sorted(found, key=lambda node: _order(node.endpoint.host, node.endpoint.port))

    def _node(self, group: list[Sighting]) -> Found:
        best = min(group, key=self._preference)
        others = sorted({each.endpoint.key for each in group} - {best.endpoint.key})
        return Found(
            best.endpoint,
            best.answer.version,
            best.answer.models,
            tuple(others),
            min(each.source for each in group),
            best.answer.latency_s,
            self.host_of(best),
        )

    def _preference(self, sighting: Sighting) -> tuple[object, ...]:
        """Return the sort key of a sighting: the best address of a node has the lowest.

        For this machine: its routed address, then loopback, then a bridge. For others: the address from the settings.
        """
        e = sighting.endpoint
        if self.host_of(sighting) == THIS_MACHINE:
            return (0, min(map(self._own_rank, sighting.ips)), _order(e.host, e.port))
        return (1, sighting.source != CandidateSource.SETTINGS, _order(e.host, e.port))

    def _own_rank(self, ip: IP) -> int:
        bridges = {each.ip for each in self._around.interfaces if each.is_bridge}
        if ip in self._rank and ip not in bridges:
            return self._rank[ip]
        if ip.is_loopback:
            return 1000 + ip.version
        return 2000


def _named(group: Sequence[Sighting]) -> bool:
    return any(each.source is CandidateSource.SETTINGS for each in group)


def _order(host: str, port: int) -> tuple[int, int, str, int]:
    """Return a sort key: numeric addresses in numeric order, then names."""
    import ipaddress

    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        return (9, 0, host, port)
    return (ip.version, int(ip), "", port)
