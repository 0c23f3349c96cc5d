"""One node for each machine and port, however many addresses lead to it.

The problem: a laptop in its dock answers on the cable and on Wi-Fi, this machine on localhost and on its address.
Counted twice, it gets twice the work. The opposite mistake is worse: two machines taken for one, and half the
cluster is idle. So two addresses are one node only if port, URL and **all they say** (`verify.Answer.fingerprint`)
agree, and there is evidence of one machine:

- certain: both addresses are this machine's own (loopback, its interfaces, its container bridges), or resolve to the
  same address;
- on the same link: the neighbour table gives both the same MAC. Alone that proves little (Wi-Fi repeaters and
  bridged virtual machines answer for others under their own), with equal answers it is enough;
- otherwise: the same models, written to disk at the same nanoseconds. That is one disk, usually one machine. It can be
  a directory shared by several, or copies of one image, so it does not count if three or more machines show it, if a
  person named both nodes, or if they differ in what they have loaded right now.

What stays wrong: two idle machines with one shared model directory, found by search, look like one. Name both in
`SOLLOL_NODES`. Neighbour tables are read on Linux only; elsewhere the other evidence has to do.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from sollol.core.endpoint import Endpoint
from sollol.discovery.candidates import Source, Surroundings, own_addresses
from sollol.discovery.networks import IP
from sollol.discovery.verify import Answer

THIS_MACHINE = "this machine"
Macs = Mapping[str, str]


class Found(NamedTuple):
    """A node. `aliases` are the keys (`host:port`) of other addresses under which the same node answered."""

    endpoint: Endpoint
    version: str
    models: tuple[str, ...]
    aliases: tuple[str, ...]
    source: Source
    latency_s: float
    host_id: str
    """Equal for two nodes on one physical machine."""


class Sighting(NamedTuple):
    """An address at which Ollama answered. `ips` are what the host resolves to."""

    endpoint: Endpoint
    source: Source
    ips: tuple[IP, ...]
    answer: Answer


def neighbours(root: Path = Path("/")) -> dict[str, str]:
    """Address to MAC, from Linux's neighbour table; empty elsewhere."""
    try:
        lines = (root / "proc/net/arp").read_text().splitlines()[1:]
    except OSError:
        return {}
    rows = [line.split() for line in lines]
    complete = [row for row in rows if len(row) >= 4 and row[2] != "0x0" and row[3] != "00:00:00:00:00:00"]
    return {row[0]: row[3] for row in complete}


def host_id(host: str, ips: Sequence[IP], around: Surroundings, macs: Macs) -> str:
    """A name for the physical machine that answers at a host."""
    bridges = [each.network for each in around.interfaces if each.is_bridge]
    if any(around.is_own(ip) or any(ip in bridge for bridge in bridges) for ip in ips):
        return THIS_MACHINE
    seen = sorted(macs[str(ip)] for ip in ips if str(ip) in macs)
    if seen:
        return f"mac {seen[0]}"
    return f"ip {min(map(str, ips))}" if ips else f"name {host}"


class Crowd:
    """The sightings, sorted by what can be the same node."""

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
        return host_id(sighting.endpoint.host, sighting.ips, self._around, self._macs)

    def doubtful(self) -> list[tuple[Sighting, Sighting]]:
        """Pairs that speak alike but are two machines as far as the link knows: ask what they have loaded."""
        return [
            (first[0], second[0])
            for hosts in self._alike.values()
            if len(hosts) == 2
            for first, second in [tuple(hosts.values())]
            if first[0].answer.strong and not (_named(first) and _named(second))
        ]

    def nodes(self, one_and_the_same: Sequence[tuple[Sighting, Sighting]]) -> list[Found]:
        """The nodes, in the order of their addresses. The pairs given are merged, too."""
        merged = {first for first, _ in one_and_the_same}
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
        """This machine: by the address that others know, then loopback, then a bridge. Others: as a person named it."""
        e = sighting.endpoint
        if self.host_of(sighting) == THIS_MACHINE:
            return (0, min(map(self._own_rank, sighting.ips)), _order(e.host, e.port))
        return (1, sighting.source != Source.SETTINGS, _order(e.host, e.port))

    def _own_rank(self, ip: IP) -> int:
        bridges = {each.ip for each in self._around.interfaces if each.is_bridge}
        if ip in self._rank and ip not in bridges:
            return self._rank[ip]
        if ip.is_loopback:
            return 1000 + ip.version
        return 2000


def _named(group: Sequence[Sighting]) -> bool:
    return any(each.source is Source.SETTINGS for each in group)


def _order(host: str, port: int) -> tuple[int, int, str, int]:
    """Numeric addresses in numeric order, then names."""
    import ipaddress

    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        return (9, 0, host, port)
    return (ip.version, int(ip), "", port)
