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
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from sollol.core.endpoint import Endpoint, parse_endpoint
from sollol.errors import BadInput, ConfigError
from sollol.files import read_bounded
from sollol.former import find_former
from sollol.node_options import NodeOptions, parse_node_options

SAMPLING_EXPECTED = "true, false (off) or a fraction from 0 to 1, such as 0.1"
_WORDS = {"true": 1.0, "yes": 1.0, "on": 1.0, "false": 0.0, "no": 0.0, "off": 0.0}
GATEWAY_TABLES = (
    "gateway", "limits", "routing", "aliases", "fallbacks", "digests", "store", "alerts", "metrics", "models",
    "registry", "controller",
)  # fmt: skip
_SEPARATORS = re.compile(r"[\s,;]+")


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


# Each reader receives a raw value (text from the environment, or a typed one) and returns the setting, or
# raises BadInput with the expected values.


def _nodes(raw: Any) -> tuple[Endpoint, ...]:
    items = list(raw) if _has_tables(raw) else _listed(raw)
    return tuple(dict.fromkeys(parse_endpoint(item) for item in items))


def _has_tables(raw: Any) -> bool:
    """Check whether the nodes are tables with the wishes of their owners, by address."""
    return isinstance(raw, Mapping) and bool(raw) and all(isinstance(value, Mapping) for value in raw.values())


def _node_options(raw: Any) -> Mapping[str, NodeOptions]:
    found = {}
    for name, table in raw.items() if _has_tables(raw) else ():
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


_READERS: dict[str, Callable[[Any], Any]] = {
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


def each_problem(content: dict[str, Any], convert: Callable[[], Any], explain: Callable[[str], str]) -> list[str]:
    """Return all problems of `content` and remove them from it.

    `convert` raises msgspec's ValidationError for the first one.
    """
    import msgspec

    found: list[str] = []
    while True:
        try:
            convert()
        except msgspec.ValidationError as problem:
            text = str(problem)
            found.append(explain(text))
            _remove(content, text, convert)
        else:
            return found


def _remove(content: dict[str, Any], problem: str, convert: Callable[[], Any]) -> None:
    """Remove the setting of msgspec's message: a key of a table, or of the file itself."""
    import msgspec

    what, _, where = problem.partition(" - at `$")
    steps = re.findall(r"\w[\w-]*|\[\.\.\.\]", where)
    unknown = re.match(r"Object contains unknown field `(.*)`", what)
    if unknown:
        steps.append(unknown[1])
    table: Any = content
    if len(steps) > 1 and isinstance(content.get(steps[0]), dict):
        table, steps = content[steps[0]], steps[1:]
    if steps[0] in table:
        del table[steps[0]]
        return
    for name in list(table):  # a table of free names: the message does not have the name
        value = table.pop(name)
        try:
            convert()
        except msgspec.ValidationError as other:
            if str(other) != problem:
                return
        else:
            return
        table[name] = value
    table.clear()


def _read(error: type[BadInput], place: str, values: Mapping[str, Any]) -> dict[str, Any]:
    read = {}
    for field, raw in values.items():
        try:
            read[field] = _READERS[field](raw)
        except BadInput as problem:
            shown = without_secrets(raw) if field == "redis_url" and isinstance(raw, str) else raw
            shown = "***" if field == "agents_key" else shown
            raise error(_sentence(place.format(field), shown, str(problem))) from None
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
            yield ConfigError(_sentence(f"{where}: {name}", table, "expected a table"))
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
            if field == "nodes" and _has_tables(raw):
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


def explained(path: str, content: Mapping[str, Any], problem: str, known: Mapping[str, str]) -> str:
    """Return msgspec's message as a sentence for the user, with the value.

    Its own is 'Expected `int`, got `str` - at `$.discovery.ports[0]`'. `known`: the settings of each table.
    """
    what, _, where = problem.partition(" - at `$")
    field = where.rstrip("`").lstrip(".")
    unknown = re.match(r"Object contains unknown field `(.*)`", what)
    if unknown:
        name = ".".join(filter(None, (field, unknown[1])))
        return f"configuration file {path}: {name} is not a setting; expected {known[field]}"
    value: Any = content
    for step in re.findall(r"\w[\w-]*|\[\.\.\.\]", field):
        try:
            value = value[int(step) if isinstance(value, list) else step]
        except (KeyError, IndexError, ValueError, TypeError):
            break
    field = field.replace("[...]", "")
    expected = re.sub(r", got .*", "", what).removeprefix("Expected ").replace("`", "").replace("object", "table")
    if field.endswith(".key"):
        value = "***"  # a secret
    return _sentence(f"configuration file {path}: {field}", value, f"expected {expected}")


def _sentence(place: str, raw: Any, problem: str) -> str:
    shown = re.sub(r"(['\"]api_key['\"]: )(['\"]).*?\2", r"\1'***'", repr(raw))
    shown = re.sub(r"//[^\s'\"]*@", "//***@", shown)  # keep passwords out of logs, also those with / or @
    return f"{place}: {shown} cannot be used; {problem}"


def without_secrets(url: str) -> str:
    """Return the URL of a Redis without its user, password and parameters; "***" where these have no clear place."""
    if "@" not in url and "?" not in url:
        return url
    from urllib.parse import urlsplit

    scheme, found, rest = url.partition("://")
    try:
        parts = urlsplit(f"redis://{rest}")
    except ValueError:
        return "***"
    if not found or "@" in parts.path + parts.query + parts.fragment:
        return "***"
    return f"{scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def config_home() -> Path:
    """Return $XDG_CONFIG_HOME/sollol, by default ~/.config/sollol."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "sollol"


def state_home() -> Path:
    """Return $XDG_STATE_HOME/sollol, by default ~/.local/state/sollol."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "sollol"


def find_file(given: str | None = None) -> str | None:
    """Return the configuration file: the given one, SOLLOL_CONFIG, ./sollol.toml, or the user's own."""
    named = given or os.environ.get("SOLLOL_CONFIG", "").strip()
    if named:
        return named
    for path in (Path("sollol.toml"), config_home() / "sollol.toml"):
        if path.is_file():
            return str(path)
    return None


def __getattr__(name: str) -> Any:
    return find_former("config", name)
