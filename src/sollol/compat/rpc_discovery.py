"""Workers of llama.cpp on the network: what answers on their port. SOLLOL lists them, and sends them nothing."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Iterable
from typing import Any, Final

from sollol.config import load_settings
from sollol.discovery.networks import Network, addresses, own_interfaces, own_networks, parse_subnets, route_address
from sollol.discovery.search import run_apart
from sollol.workload.validation import short

RPC_PORT: Final = 50052
AT_ONCE: Final = 256  # connections
ADDRESSES_MOST: Final = 65_536


def check_rpc_server(host: str, port: int = RPC_PORT, timeout: float = 1.0) -> bool:
    """Check that something accepts connections there; `timeout` in seconds."""
    try:
        with socket.create_connection((host, port), timeout=timeout):
            return True
    except (OSError, OverflowError, UnicodeError):
        return False


def discover_rpc_backends(
    cidr: str | None = None, port: int = RPC_PORT, timeout: float = 1.0, auto_resolve_docker: bool = True
) -> list[dict[str, Any]]:
    """Return `[{"host", "port"}, ...]` of the workers in a network, by default this machine and its private networks.

    Args:
        cidr: A private network such as "10.9.66.0/24".
        port: The port of the workers.
        timeout: Seconds for each address.
        auto_resolve_docker: Without effect: the addresses of containers are tried like others.

    Raises:
        BadInput: The network is not private, or larger than a /16.
    """
    settings = load_settings()
    given = [cidr] if cidr is not None else settings.discovery_subnets
    if given is not None:
        networks: Iterable[Network] = parse_subnets(given)
    else:
        near = own_networks(own_interfaces(), False, route_address())
        networks = [*parse_subnets(["127.0.0.1/32"]), *(interface.network for interface in near)]
    hosts = [str(ip) for _, ip in zip(range(ADDRESSES_MOST), addresses(networks), strict=False)]
    found = run_apart(lambda: _sweep(hosts, port, timeout))
    return [{"host": host, "port": port} for host in found]


def auto_discover_rpc_backends(port: int = RPC_PORT, auto_resolve_docker: bool = True) -> list[dict[str, Any]]:
    """Return the workers of RPC_BACKENDS ("host:port,host:port") that answer, else those on the near networks."""
    named = os.environ.get("RPC_BACKENDS", "")
    if not named:
        return discover_rpc_backends(port=port)
    pairs = [parse_backend(entry) for entry in named.split(",") if entry.strip()]
    return [{"host": host, "port": at} for host, at in pairs if check_rpc_server(host, at)]


def detect_node_resources(host: str) -> dict[str, Any]:
    """Return the memory and the GPUs of this machine; of another one only that they are not known."""
    from sollol.compat.vram_monitor import VRAMMonitor

    local = host in ("127.0.0.1", "localhost", socket.gethostname())
    gpus = ((VRAMMonitor().get_local_vram_info() or {}).get("gpus", [])) if local else []
    ram_mb = _memory_mb() if local else 0
    devices = [f"{gpu['vendor']}:{gpu['index']}" for gpu in gpus]
    memory = [ram_mb, *(gpu["total_mb"] for gpu in gpus)]
    return {
        "has_gpu": bool(gpus),
        "gpu_devices": devices,
        "gpu_vram_mb": [gpu["total_mb"] for gpu in gpus],
        "cpu_ram_mb": ram_mb,
        "device_config": ",".join(["cpu", *devices]),
        "memory_config": ",".join(map(str, memory)),
        "total_parallel_workers": 1 + len(gpus),
        "known": local,
    }


def parse_backend(given: Any) -> tuple[str, int]:
    """Return (host, port) of "host:port", of a URL, or of a dict with `host` and `port`.

    Raises:
        BadInput: It is none of these.
    """
    from sollol.errors import BadInput

    if isinstance(given, dict) and isinstance(given.get("host"), str):
        given = f"{given['host']}:{given.get('port', RPC_PORT)}"
    text = given.strip().rpartition("//")[2] if isinstance(given, str) else ""
    host, _, port = text.rpartition(":") if ":" in text else (text, "", str(RPC_PORT))
    if not host or not port.isdigit() or not int(port) < 65536:
        raise BadInput(f"backend {short(given)}; expected 'host:port' or {{'host': ..., 'port': {RPC_PORT}}}")
    return host.strip("[]"), int(port)


def _memory_mb() -> int:
    with contextlib.suppress(OSError, ValueError, AttributeError):  # Windows has no sysconf
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // (1024 * 1024)
    return 0


async def _sweep(hosts: list[str], port: int, timeout: float) -> list[str]:
    places = asyncio.Semaphore(AT_ONCE)

    async def answers(host: str) -> bool:
        async with places:
            try:
                async with asyncio.timeout(timeout):
                    _, writer = await asyncio.open_connection(host, port)
            except OSError:
                return False
            writer.close()
            return True

    found = await asyncio.gather(*(answers(host) for host in hosts))
    return [host for host, good in zip(hosts, found, strict=True) if good]
