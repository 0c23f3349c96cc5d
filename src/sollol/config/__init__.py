"""Settings from arguments, environment and file.

The same program runs on a laptop, in a container and on a server. The order is the usual one, from strong to weak:
arguments, environment, file (`SOLLOL_CONFIG`, TOML), defaults. Only settings that are used exist.

A value that cannot be used raises ConfigError with the file or variable, the field, the value and the expected values.
An unknown key in the file is an error too: a misspelt setting that is silently ignored costs an afternoon.

Importing this module takes a few milliseconds, because tomllib is loaded only with a file.
`docs/configuration.md` lists every setting; a test keeps it complete.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from sollol.config.problems import sentence, without_secrets
from sollol.config.readers import READERS, has_tables
from sollol.core.endpoint import Endpoint
from sollol.errors import BadInput, ConfigError
from sollol.files import read_bounded
from sollol.former import find_former
from sollol.node_options import NodeOptions

GATEWAY_TABLES = (
    "gateway", "limits", "routing", "aliases", "fallbacks", "digests", "store", "alerts", "metrics", "models",
    "registry", "controller",
)  # fmt: skip


class OtelSettings(NamedTuple):
    """Where spans and metrics are sent. `endpoint` None: by the variables of OpenTelemetry."""

    endpoint: str | None = None


class Settings(NamedTuple):
    """All settings. Frozen; compare two with ==."""

    ollama_host: Endpoint | None = None
    """The node of Ollama's own variable: an additional node, not the whole list."""
    nodes: tuple[Endpoint, ...] = ()
    app_name: str | None = None
    observer_sampling: float = 1.0
    """The share of observed requests, 0.0 (off) to 1.0."""
    discovery_subnets: tuple[str, ...] | None = None
    """None: the private networks of this machine."""
    discovery_ports: tuple[int, ...] = (11434,)
    redis_url: str | None = None
    redis_host: str | None = None
    redis_port: int = 6379
    otel_enabled: bool = False
    otel_endpoint: str | None = None
    agents_key: str | None = None
    agents_port: int = 11437
    """The base URL of an OTLP/HTTP receiver; the variables of OpenTelemetry go before it."""
    gateway: Mapping[str, Mapping[str, Any]] = MappingProxyType({})
    """The file's tables for `sollol serve`, unchanged: parsed by `sollol.gateway.settings`."""
    node_options: Mapping[str, NodeOptions] = MappingProxyType({})
    """The wishes of the owners of nodes, by "host:port"."""
    origins: Mapping[str, str] = MappingProxyType({})
    """Field of these settings -> where its value came from; without those that have their default."""

    @property
    def redis(self) -> str | None:
        """The URL of the Redis that applications share: `redis_url`, else of `redis_host`; None without both."""
        if self.redis_url or not self.redis_host:
            return self.redis_url
        host = f"[{self.redis_host}]" if ":" in self.redis_host else self.redis_host
        return f"redis://{host}:{self.redis_port}"

    @property
    def otel(self) -> OtelSettings | None:
        """Where spans and metrics are sent; None for nowhere."""
        return OtelSettings(self.otel_endpoint) if self.otel_enabled else None


def load_settings(
    env: Mapping[str, str] | None = None,
    *,
    config: str | os.PathLike[str] | None = None,
    nodes: Iterable[Any] | None = None,
    app_name: str | None = None,
    observer_sampling: bool | float | None = None,
    discovery_subnets: Iterable[str] | None = None,
    discovery_ports: Iterable[int] | None = None,
) -> Settings:
    """Return the settings: arguments over environment over file over defaults. None means "not given".

    `env` replaces `os.environ`; `config` is the path of a TOML file and replaces `SOLLOL_CONFIG`.

    Raises:
        ConfigError: A value of the file or the environment cannot be used.
        BadInput: An argument cannot be used.
    """
    variables = os.environ if env is None else env
    path = config if config is not None else variables.get("SOLLOL_CONFIG", "").strip() or None
    found: dict[str, Any] = {}
    origins: dict[str, str] = {}
    if path is not None:
        found.update(_from_file(os.fspath(path)))
        origins = dict.fromkeys(found, f"file {os.fspath(path)}")
    found.update(_from_environment(variables))
    origins |= {field: name for name, field in VARIABLES.items() if variables.get(name, "").strip()}
    given = {
        "nodes": nodes,
        "app_name": app_name,
        "observer_sampling": observer_sampling,
        "discovery_subnets": discovery_subnets,
        "discovery_ports": discovery_ports,
    }
    given = {name: value for name, value in given.items() if value is not None}
    found.update(_read(BadInput, "argument {}", given))
    origins |= dict.fromkeys(given, "argument")
    return Settings(**found, origins=origins)


_IN_FILE = {
    "nodes": "nodes",
    "app_name": "app_name",
    "observer_sampling": "observer_sampling",
    "discovery.subnets": "discovery_subnets",
    "discovery.ports": "discovery_ports",
    "redis.url": "redis_url",
    "redis.host": "redis_host",
    "redis.port": "redis_port",
    "otel.enabled": "otel_enabled",
    "otel.endpoint": "otel_endpoint",
    "agents.key": "agents_key",
    "agents.port": "agents_port",
}
_TABLES = ("discovery", "redis", "otel", "agents")
VARIABLES = {
    "OLLAMA_HOST": "ollama_host",
    "SOLLOL_NODES": "nodes",
    "SOLLOL_APP_NAME": "app_name",
    "SOLLOL_OBSERVER_SAMPLING": "observer_sampling",
    "SOLLOL_DISCOVERY_SUBNETS": "discovery_subnets",
    "SOLLOL_DISCOVERY_PORTS": "discovery_ports",
    "SOLLOL_REDIS_URL": "redis_url",
    "SOLLOL_REDIS_HOST": "redis_host",
    "SOLLOL_REDIS_PORT": "redis_port",
    "SOLLOL_OTEL": "otel_enabled",
    "SOLLOL_AGENTS_KEY": "agents_key",
    "SOLLOL_AGENTS_PORT": "agents_port",
}
"""Environment variable -> setting. `SOLLOL_CONFIG` names the file."""


def problems_of(env: Mapping[str, str] | None = None, *, config: str | None = None) -> list[str]:
    """Return all problems of the environment and the file, except the gateway's tables."""
    problems = []
    variables = os.environ if env is None else env
    for variable, field in VARIABLES.items():
        if raw := variables.get(variable, "").strip():
            problems += _problems_with(f"environment variable {variable}", {field: raw})
    if not config:
        return problems
    try:
        content, tables = _contents_of(config)
    except ConfigError as problem:
        return [*problems, str(problem)]
    return problems + [str(problem) for problem in _read_file(config, content, tables, {})]


def gateway_tables(path: str) -> dict[str, Any]:
    """Return the tables of `sollol serve` of a file, none if it is unreadable."""
    try:
        tables = _contents_of(path)[1]
    except ConfigError:
        return {}
    return {name: table for name, table in tables.items() if isinstance(table, dict)}


def _problems_with(place: str, values: Mapping[str, Any]) -> list[str]:
    found = []
    for field, raw in values.items():
        try:
            _read(ConfigError, place, {field: raw})
        except ConfigError as problem:
            found.append(str(problem))
    return found


def _read(error: type[BadInput], place: str, values: Mapping[str, Any]) -> dict[str, Any]:
    read = {}
    for field, raw in values.items():
        try:
            read[field] = READERS[field](raw)
        except BadInput as problem:
            shown = without_secrets(raw) if field == "redis_url" and isinstance(raw, str) else raw
            shown = "***" if field == "agents_key" else shown
            raise error(sentence(place.format(field), shown, str(problem))) from None
    return read


def _from_environment(env: Mapping[str, str]) -> dict[str, Any]:
    read: dict[str, Any] = {}
    for variable, field in VARIABLES.items():
        raw = env.get(variable, "").strip()
        if raw:  # an empty variable counts as unset
            value = _read(ConfigError, f"environment variable {variable}", {field: raw})
            read.update(value)
    return read


def _from_file(path: str) -> dict[str, Any]:
    content, tables = _contents_of(path)
    values: dict[str, Any] = {}
    for problem in _read_file(path, content, tables, values):
        raise problem
    return {**values, "gateway": tables} if tables else values


def _read_file(
    path: str, content: Mapping[str, Any], tables: Mapping[str, Any], values: dict[str, Any]
) -> Iterator[ConfigError]:
    """Yield the problems of a file, and store its settings in `values`."""
    where = f"configuration file {path}"
    own = {name: content.get(name, {}) for name in _TABLES}
    for name, table in [*tables.items(), *own.items()]:
        if not isinstance(table, dict):
            yield ConfigError(sentence(f"{where}: {name}", table, "expected a table"))
    given = {name: raw for name, raw in content.items() if name not in _TABLES}
    for name, table in own.items():
        if isinstance(table, dict):
            given |= {f"{name}.{key}": raw for key, raw in table.items()}
    for name, raw in given.items():
        field = _IN_FILE.get(name)
        if field is None:
            yield ConfigError(f"{where}: {name} is not a setting; expected {_SETTINGS[name.rpartition('.')[0]]}")
            continue
        try:
            if field == "nodes" and has_tables(raw):
                values.update(_read(ConfigError, f"{where}: {name}", {"node_options": raw}))
            values.update(_read(ConfigError, f"{where}: {name}", {field: raw}))
        except ConfigError as problem:
            yield problem


def _contents_of(path: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the content of the file, and separately the gateway's tables.

    Raises:
        ConfigError: The file is unreadable or not TOML.
    """
    import tomllib

    try:
        content = tomllib.loads(read_bounded(path).decode())
    except OSError as problem:
        why = problem.strerror or str(problem)
        raise ConfigError(f"configuration file {path}: {why}; check SOLLOL_CONFIG or --config") from None
    except RecursionError:
        raise ConfigError(f"configuration file {path} is not valid TOML: it is nested too deep") from None
    except ValueError as problem:  # TOMLDecodeError, no UTF-8, a number of thousands of digits
        raise ConfigError(f"configuration file {path} is not valid TOML: {problem}") from None
    return content, {name: content.pop(name) for name in GATEWAY_TABLES if name in content}


_SETTINGS = {
    "": "nodes, app_name, observer_sampling, [discovery], [redis], [otel] and [agents]; for `sollol serve` also "
    + ", ".join(f"[{name}]" for name in GATEWAY_TABLES),
    "discovery": "subnets and ports",
    "redis": "url, host and port",
    "otel": "enabled and endpoint",
    "agents": "key and port",
}


def __getattr__(name: str) -> Any:
    return find_former("config", name)
