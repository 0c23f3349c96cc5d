"""Read the values of settings.

Each reader receives a raw value (text from the environment, or a typed one) and returns the setting. It raises BadInput
with the expected values.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from sollol.core.endpoint import Endpoint, parse_endpoint
from sollol.errors import BadInput
from sollol.node_options import NodeOptions, parse_node_options

SAMPLING_EXPECTED = "true, false (off) or a fraction from 0 to 1, such as 0.1"
_WORDS = {"true": 1.0, "yes": 1.0, "on": 1.0, "false": 0.0, "no": 0.0, "off": 0.0}
_SEPARATORS = re.compile(r"[\s,;]+")


def _nodes(raw: Any) -> tuple[Endpoint, ...]:
    items = list(raw) if has_tables(raw) else _listed(raw)
    return tuple(dict.fromkeys(parse_endpoint(item) for item in items))


def has_tables(raw: Any) -> bool:
    """Check whether the nodes are tables with the wishes of their owners, by address."""
    return isinstance(raw, Mapping) and bool(raw) and all(isinstance(value, Mapping) for value in raw.values())


def _node_options(raw: Any) -> Mapping[str, NodeOptions]:
    found = {}
    for name, table in raw.items() if has_tables(raw) else ():
        try:
            found[parse_endpoint(name).key] = parse_node_options(table)
        except BadInput as problem:
            raise BadInput(f"of {name}: {problem}") from None
    return MappingProxyType(found)


def _ollama_host(raw: str) -> Endpoint:
    return parse_endpoint(f"127.0.0.1{raw}" if re.match(r":\d", raw) else raw)  # as Ollama reads ":8080"


def _name(raw: Any) -> str:
    if not isinstance(raw, str) or not raw.strip():
        raise BadInput("expected a name")
    return raw.strip()


def _sampling(raw: Any) -> float:
    if isinstance(raw, str):
        raw = _WORDS.get(raw.strip().lower(), raw)
    try:
        share = float(raw)
    except (TypeError, ValueError):
        raise BadInput(f"expected {SAMPLING_EXPECTED}") from None
    if not 0.0 <= share <= 1.0:
        raise BadInput(f"expected {SAMPLING_EXPECTED}")
    return share


def _subnets(raw: Any) -> tuple[str, ...]:
    items = _listed(raw)
    if any(isinstance(item, (bool, int, float, Mapping)) for item in items):
        raise BadInput("expected networks such as 10.0.0.0/24")
    return tuple(str(item) for item in items)


def _ports(raw: Any) -> tuple[int, ...]:
    ports = []
    for item in _listed(raw):
        try:
            port = int(item)
        except (TypeError, ValueError):
            port = 0
        if isinstance(item, (bool, float)) or not 1 <= port <= 65535:
            raise BadInput("expected port numbers from 1 to 65535")
        ports.append(port)
    if not ports:
        raise BadInput("expected at least one port")
    return tuple(dict.fromkeys(ports))


def _redis_url(raw: Any) -> str:
    if not isinstance(raw, str) or not re.match(r"(rediss?|unix)://[^\s/]*", raw.strip()):
        raise BadInput("expected redis://host:port, rediss://host:port or unix:///path")
    return raw.strip()


def _redis_host(raw: Any) -> str:
    host = raw.strip().strip("[]") if isinstance(raw, str) else ""
    if not re.fullmatch(r"[\w.:%-]+", host):
        raise BadInput("expected a host name or an address, without a port")
    return host


def _port(raw: Any) -> int:
    ports = _ports(raw)
    if len(ports) > 1:
        raise BadInput("expected one port number from 1 to 65535")
    return ports[0]


def _agents_key(raw: Any) -> str:
    if not isinstance(raw, str) or not re.fullmatch(r"[!-~]{16,200}", raw.strip()):
        raise BadInput("expected the key of `sollol agent`: at least 16 visible ASCII characters")
    return raw.strip()


def _flag(raw: Any) -> bool:
    if isinstance(raw, str):
        raw = {1.0: True, 0.0: False}.get(_WORDS.get(raw.strip().lower(), -1.0), raw)
    if not isinstance(raw, bool):
        raise BadInput("expected true or false")
    return raw


def _http_url(raw: Any) -> str:
    if not isinstance(raw, str) or not re.fullmatch(r"https?://[^\s/]+(/\S*)?", raw.strip()):
        raise BadInput("expected the URL of a receiver, such as http://127.0.0.1:4318")
    return raw.strip().rstrip("/")


def _listed(raw: Any) -> Sequence[Any]:
    if isinstance(raw, str):
        return [item for item in _SEPARATORS.split(raw) if item]
    if isinstance(raw, Iterable) and not isinstance(raw, Mapping):
        return list(raw)
    return [raw]


READERS: dict[str, Callable[[Any], Any]] = {
    "ollama_host": _ollama_host,
    "nodes": _nodes,
    "node_options": _node_options,
    "app_name": _name,
    "observer_sampling": _sampling,
    "discovery_subnets": _subnets,
    "discovery_ports": _ports,
    "redis_url": _redis_url,
    "redis_host": _redis_host,
    "redis_port": _port,
    "otel_enabled": _flag,
    "otel_endpoint": _http_url,
    "agents_key": _agents_key,
    "agents_port": _port,
}
