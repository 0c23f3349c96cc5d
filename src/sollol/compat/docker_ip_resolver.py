"""Addresses of containers: which they are, and how a published port is reached. Discovery does this by itself."""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from sollol.compat.rpc_discovery import check_rpc_server as is_port_open
from sollol.discovery.candidates import in_container
from sollol.discovery.networks import own_interfaces, route_address

DOCKER_IP_RANGES: Final = ["172.16.0.0/12", "10.0.0.0/8"]  # bridges, and overlays of a swarm
HOST_NAME: Final = "host.docker.internal"
_NETWORKS: Final = [ipaddress.ip_network(each) for each in DOCKER_IP_RANGES]
_CONTAINER: Final = re.compile(r"[0-9a-f]{64}")
Verify = Callable[[str, int, float], bool]


def is_docker_ip(ip: str) -> bool:
    """Check that an address is in a range that Docker uses by default; others use these ranges, too."""
    try:
        found = ipaddress.ip_address(ip)
    except ValueError:
        return False
    return any(found in network for network in _NETWORKS)


def is_running_in_docker() -> bool:
    """Check that this process runs in a container."""
    return in_container()


def get_docker_network_mode() -> str:
    """Return "host", "bridge" or "none" for a container, "unknown" outside of one."""
    if not in_container():
        return "unknown"
    interfaces = [interface for interface in own_interfaces() if not interface.ip.is_loopback]
    if not interfaces:
        return "none"
    return "host" if any(interface.is_bridge for interface in interfaces) else "bridge"


def get_deployment_context() -> dict[str, Any]:
    """Return `mode` ("docker" or "bare_metal"), `is_docker`, `network_mode` and `container_id`."""
    inside = in_container()
    return {
        "mode": "docker" if inside else "bare_metal",
        "is_docker": inside,
        "network_mode": get_docker_network_mode(),
        "container_id": _container_id() if inside else None,
    }


def resolve_docker_ip(
    docker_ip: str,
    port: int,
    timeout: float = 1.0,
    verify_func: Verify | None = None,
    deployment_context: Mapping[str, Any] | None = None,
) -> str | None:
    """Return an address at which a container's port can be reached from here, None if there is none.

    Args:
        docker_ip: The address in Docker's network.
        port: The port.
        timeout: Seconds for each address.
        verify_func: Called with address, port and timeout, to check what answers.
        deployment_context: The result of `get_deployment_context`, by default that of this process.
    """
    found = _reachable(_candidates(docker_ip, deployment_context), port, timeout, verify_func, 1)
    return found[0][0] if found else None


def resolve_docker_ip_with_alternatives(
    docker_ip: str,
    port: int,
    timeout: float = 1.0,
    verify_func: Verify | None = None,
    deployment_context: Mapping[str, Any] | None = None,
) -> list[tuple[str, int]]:
    """Return all (address, port) pairs at which a container's port can be reached from here."""
    return _reachable(_candidates(docker_ip, deployment_context), port, timeout, verify_func, None)


def auto_resolve_ips(
    nodes: Sequence[Mapping[str, Any]],
    timeout: float = 1.0,
    verify_func: Verify | None = None,
    deployment_context: Mapping[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """Return the nodes with addresses of containers replaced where others are reached; unreachable ones are left out.

    Nodes with another address stay as they are.
    """
    found: list[dict[str, Any]] = []
    for node in nodes:
        host, port = str(node["host"]), int(node.get("port", 11434))
        if not is_docker_ip(host) or _reachable([host], port, timeout, verify_func, 1):
            found.append(dict(node))
            continue
        resolved = resolve_docker_ip(host, port, timeout, verify_func, deployment_context)
        if resolved is not None:
            found.append({**node, "host": resolved})
    return found


def resolve_docker_nodes(
    nodes: Sequence[Mapping[str, Any]], timeout: float = 1.0, verify_func: Verify | None = None
) -> list[dict[str, Any]]:
    """Return `auto_resolve_ips(...)`."""
    return auto_resolve_ips(nodes, timeout, verify_func)


def _candidates(docker_ip: str, context: Mapping[str, Any] | None) -> list[str]:
    """Return the addresses to try: from a container first the container's own, from the host first loopback."""
    inside = bool((context or get_deployment_context()).get("is_docker"))
    own = route_address()
    here = ["127.0.0.1", *([str(own)] if own is not None else [])]
    gateway = docker_ip.rpartition(".")[0] + ".1" if is_docker_ip(docker_ip) and "." in docker_ip else None
    around = [*_resolved(HOST_NAME), *([gateway] if gateway else [])]
    order = [docker_ip, *around, *here] if inside else [*here, *around]
    return list(dict.fromkeys(order))


def _resolved(name: str) -> list[str]:
    try:
        return [socket.gethostbyname(name)]
    except OSError:
        return []


def _reachable(
    hosts: Sequence[str], port: int, timeout: float, verify: Verify | None, most: int | None
) -> list[tuple[str, int]]:
    found: list[tuple[str, int]] = []
    for host in hosts:
        if is_port_open(host, port, timeout) and (verify is None or verify(host, port, timeout)):
            found.append((host, port))
            if most is not None and len(found) >= most:
                break
    return found


def _container_id() -> str | None:
    try:
        found = _CONTAINER.search(Path("/proc/self/mountinfo").read_text())
    except OSError:
        return None
    return found.group()[:12] if found else None
