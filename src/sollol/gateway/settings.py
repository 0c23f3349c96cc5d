"""Validate the settings of `sollol serve`: the tables of the configuration file, with all defaults.

`sollol.config` reads the file. These are its tables [gateway], [limits], [routing], [aliases], [fallbacks],
[digests], [store], [alerts], [models] and [registry]. The limits protect the server's memory from its callers.

Over 400 lines, because each table is a structure with its defaults and their reasons.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec

from sollol.config import OtelSettings, Settings
from sollol.config.paths import config_home, state_home
from sollol.config.problems import each_problem, explained
from sollol.core.endpoint import Endpoint, parse_endpoint
from sollol.core.types import RoutingMode, RoutingStrategy, canonical_model
from sollol.errors import BadInput, ConfigError
from sollol.http_server.host_guard import is_loopback
from sollol.http_server.limits import Seconds, ServerLimits
from sollol.models.desired import DesiredModel
from sollol.node_options import NodeOptions

Name = Annotated[str, msgspec.Meta(min_length=1)]
HostName = Annotated[str, msgspec.Meta(pattern=r"^(\*\.)?[a-z0-9_-]+(\.[a-z0-9_-]+)*$")]
Digest = Annotated[str, msgspec.Meta(pattern=r"^(sha256:)?[0-9a-f]{7,64}$")]
_FIXED: Final = (
    "store",
    "alerts",
    "metrics",
    "registry",
    "controller",
    "redis",
    "otel",
    "agents_key",
    "agents_port",
)  # tables that are read once, at the start
ARGUMENT: Final = "command line"
_ADDRESS: Final = re.compile(r"(\[[0-9A-Fa-f:.%]+\]|[^\s:\[\]]+):([0-9]{1,5})")
_ORIGIN: Final = re.compile(r"\*|[a-z][a-z0-9+.-]*://[^/\s]+")


class Listen(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The table [gateway]."""

    host: str = "127.0.0.1"
    port: Annotated[int, msgspec.Meta(ge=0, le=65_535)] = 11435
    insecure: bool = False
    require_keys: bool = False
    keys_file: str | None = None
    cors_origins: tuple[str, ...] = ()
    allowed_hosts: tuple[HostName, ...] = ()
    drain_s: Annotated[float, msgspec.Meta(ge=0, le=3_600)] = 30.0


class Limits(ServerLimits, frozen=True, forbid_unknown_fields=True):
    """The table [limits]."""

    queue: Annotated[int, msgspec.Meta(ge=1)] = 10_000
    request_timeout_s: Seconds | None = None


class Routing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The table [routing]."""

    mode: Literal["fast", "reliable", "async"] | None = None
    strategy: Literal["round_robin", "latency_first", "least_loaded", "fairness", "intelligent"] = "intelligent"
    hedge: bool | None = None
    on_mixed_digests: Literal["allow", "one"] = "allow"
    share_contexts: bool = True


class StoreSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The table [store]."""

    enabled: bool = True
    path: str | None = None
    days: Annotated[float, msgspec.Meta(gt=0, le=3_650)] = 30.0
    requests: Annotated[int, msgspec.Meta(ge=0, le=10_000_000)] = 100_000


class AlertSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The table [alerts]."""

    urls: tuple[Annotated[str, msgspec.Meta(pattern=r"^[a-z][a-z0-9+.-]*://\S+$")], ...] = ()
    severity: Literal["error", "warning", "info"] = "warning"
    every_s: Annotated[float, msgspec.Meta(ge=60)] = 3_600.0


class MetricsSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The table [metrics]."""

    listen: str | None = None
    keys: Literal["admin", "any", "none"] = "admin"

    @property
    def address(self) -> tuple[str, int]:
        """Host and port of an own address, ("", 0) without one."""
        host, _, port = (self.listen or ":0").rpartition(":")
        return host.strip("[]"), int(port)


class ControllerSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The table [controller]."""

    enabled: bool = False
    dry_run: bool = False
    priority_models: tuple[Name, ...] = ()
    every_s: Annotated[float, msgspec.Meta(ge=5, le=3_600)] = 30.0


class RegistrySettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The table [registry]."""

    enabled: bool = False
    host: str = "127.0.0.1"
    port: Annotated[int, msgspec.Meta(ge=0, le=65_535)] = 11436
    folder: str | None = None
    max_gb: Annotated[float, msgspec.Meta(gt=0, le=1_000_000)] = 200.0
    upstream: Annotated[str, msgspec.Meta(pattern=r"^(https?://[^/\s]+)?$")] = ""
    key: Annotated[str, msgspec.Meta(pattern=r"^([A-Za-z0-9][A-Za-z0-9_-]{19,79})?$")] = ""

    @property
    def path(self) -> Path:
        """The folder of the blobs."""
        return Path(self.folder).expanduser() if self.folder else state_home() / "registry"


class _Tables(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    gateway: Listen = Listen()
    limits: Limits = Limits()
    routing: Routing = Routing()
    aliases: dict[Name, Name] = {}
    fallbacks: dict[Name, list[Name]] = {}
    digests: dict[Name, Digest] = {}
    store: StoreSettings = StoreSettings()
    alerts: AlertSettings = AlertSettings()
    metrics: MetricsSettings = MetricsSettings()
    models: dict[Name, DesiredModel] = {}
    registry: RegistrySettings = RegistrySettings()
    controller: ControllerSettings = ControllerSettings()


_KNOWN: Final = {
    name: ", ".join(field.name for field in msgspec.structs.fields(table))
    for name, table in (
        ("gateway", Listen),
        ("limits", Limits),
        ("routing", Routing),
        ("store", StoreSettings),
        ("alerts", AlertSettings),
        ("metrics", MetricsSettings),
        ("registry", RegistrySettings),
        ("controller", ControllerSettings),
        ("models[...]", DesiredModel),  # as msgspec names the table of one model
    )
}


class GatewaySettings(msgspec.Struct, frozen=True):
    """All settings of a gateway, validated. Replaced as a whole when the file changes."""

    listen: Listen = Listen()
    limits: Limits = Limits()
    routing: Routing = Routing()
    aliases: Mapping[str, str] = {}
    fallbacks: Mapping[str, tuple[str, ...]] = {}
    digests: Mapping[str, str] = {}
    nodes: tuple[Endpoint, ...] = ()
    app_name: str = ""
    observer_sampling: float = 1.0
    store: StoreSettings = StoreSettings()
    alerts: AlertSettings = AlertSettings()
    models: Mapping[str, DesiredModel] = {}
    registry: RegistrySettings = RegistrySettings()
    redis: str | None = None
    origins: Mapping[str, str] = {}  # setting, such as "gateway.port" -> where its value came from
    otel: OtelSettings | None = None
    agents_key: str | None = None
    agents_port: int = 11437
    metrics: MetricsSettings = MetricsSettings()
    controller: ControllerSettings = ControllerSettings()
    load_wait_s: float | None = None  # longest wait for a load; None for no bound
    node_options: Mapping[str, NodeOptions] = {}  # by "host:port"

    @property
    def mode(self) -> RoutingMode | None:
        """The routing mode of requests without one."""
        return RoutingMode(self.routing.mode) if self.routing.mode else None

    @property
    def strategy(self) -> RoutingStrategy:
        """The routing strategy of requests without a mode."""
        return RoutingStrategy(self.routing.strategy)

    @property
    def keys_path(self) -> Path:
        """The path of the keys file. Raises ConfigError for one that `gateway_settings` refuses."""
        return _keys_path(self.listen.keys_file)

    def store_path(self, port: int) -> Path:
        """Return the path of the store of a gateway that listens on `port`."""
        if self.store.path:
            return Path(self.store.path).expanduser()
        return state_home() / f"serve-{port}.sqlite3"

    @property
    def needs_keys(self) -> bool:
        """Check whether keys are required: by a setting, or because other machines can reach the gateway."""
        return self.listen.require_keys or not (is_loopback(self.listen.host) or self.listen.insecure)

    def resolve_model(self, name: str) -> str:
        """Return the model behind an alias, or the name itself."""
        aliases = self.aliases
        if not aliases:
            return name
        return aliases.get(canonical_model(name), name)

    def fallbacks_of(self, name: str) -> tuple[str, ...]:
        """Return the models to try if no node can serve this one."""
        return self.fallbacks.get(canonical_model(name), ()) if self.fallbacks else ()

    def controlling(self, enabled: bool, dry_run: bool) -> GatewaySettings:
        """Return the settings with the arguments of the command line for the controller."""
        own = self.controller
        found = msgspec.structs.replace(own, enabled=own.enabled or enabled, dry_run=own.dry_run or dry_run)
        given = {"enabled": enabled, "dry_run": dry_run}
        origins = {**self.origins, **{f"controller.{name}": ARGUMENT for name, is_given in given.items() if is_given}}
        return msgspec.structs.replace(self, controller=found, origins=origins)

    def listening(self, host: str | None = None, port: int | None = None, insecure: bool = False) -> GatewaySettings:
        """Return the settings with the arguments of the command line."""
        own = self.listen
        listen = msgspec.structs.replace(
            own,
            host=own.host if host is None else host,
            port=own.port if port is None else port,
            insecure=own.insecure or insecure,
        )
        given = {"host": host is not None, "port": port is not None, "insecure": insecure}
        origins = {**self.origins, **{f"gateway.{name}": ARGUMENT for name, is_given in given.items() if is_given}}
        return msgspec.structs.replace(self, listen=listen, origins=origins)


def gateway_settings(settings: Settings, path: str = "") -> GatewaySettings:
    """Return the validated settings.

    Raises:
        ConfigError: With the file, the field, the value and the expected values.
    """
    found, problems = _read(settings, path or os.environ.get("SOLLOL_CONFIG", ""))
    if problems:
        raise ConfigError(problems[0])
    return found


def problems_of(settings: Settings, path: str) -> list[str]:
    """Return all problems in the gateway's tables."""
    return _read(settings, path)[1]


def not_applied(new: GatewaySettings, old: GatewaySettings) -> list[str]:
    """Return a message for each new setting that a running gateway cannot apply."""
    found = [
        f"{name} is {getattr(new.listen, name)!r} now, and {getattr(old.listen, name)!r} stays in use"
        for name in ("host", "port")
        if getattr(new.listen, name) != getattr(old.listen, name)
    ]
    found += [
        f"[{name}] has changed, and its old settings stay in use"
        for name in _FIXED
        if getattr(new, name) != getattr(old, name)
    ]
    if old.nodes and not new.nodes:
        found.append("nodes names none now, and those before stay in use")
    return found


def applicable(new: GatewaySettings, old: GatewaySettings) -> GatewaySettings:
    """Return the new settings with the old values that a running gateway cannot change."""
    fixed = {name: getattr(old, name) for name in _FIXED}
    address = ("gateway.host", "gateway.port")
    origins = {name: origin for name, origin in new.origins.items() if name not in address}
    origins |= {name: old.origins[name] for name in address if name in old.origins}
    found = new.listening(old.listen.host, old.listen.port)
    return msgspec.structs.replace(found, **fixed, origins=origins)


def _read(settings: Settings, where: str) -> tuple[GatewaySettings, list[str]]:
    """Return the settings without their invalid fields, and the problems."""
    content: dict[str, Any] = {name: dict(table) for name, table in settings.gateway.items()}
    load_wait_s = content.get("models", {}).pop("load_wait_s", None)  # beside the tables of models
    problems = each_problem(
        content,
        lambda: msgspec.convert(content, _Tables),
        lambda problem, name: explained(where, content, problem, _KNOWN, name),
    )
    tables = msgspec.convert(content, _Tables)
    faults = list(_faults(tables))
    if load_wait_s is not None and (isinstance(load_wait_s, bool) or not _is_positive(load_wait_s)):
        faults.insert(0, f"models.load_wait_s: {load_wait_s!r} cannot be used; expected seconds above 0")
        load_wait_s = None
    try:
        aliases = _resolved(tables.aliases)
    except ConfigError as problem:
        aliases = {}
        faults.append(str(problem))
    problems += [f"configuration file {where}: {fault}" for fault in faults]
    found = GatewaySettings(
        tables.gateway,
        tables.limits,
        tables.routing,
        aliases,
        {canonical_model(name): tuple(others) for name, others in tables.fallbacks.items()},
        tables.digests,
        settings.nodes,
        settings.app_name or "",
        settings.observer_sampling,
        tables.store,
        tables.alerts,
        tables.models,
        tables.registry,
        settings.redis,
        _origins(settings),
        settings.otel,
        settings.agents_key,
        settings.agents_port,
        tables.metrics,
        tables.controller,
        load_wait_s,
        settings.node_options,
    )
    return found, problems


def _faults(tables: _Tables) -> Iterator[str]:
    """Yield what is wrong with values that have the right type."""
    for origin in tables.gateway.cors_origins:
        if not _ORIGIN.fullmatch(origin):
            yield (
                f"gateway.cors_origins: {origin!r} cannot be used; expected an origin "
                'such as "https://chat.example.org", without a path, or "*" for every site'
            )
    yield from _model_faults(tables.models)
    own = tables.metrics.listen
    address = _ADDRESS.fullmatch(own) if own is not None else None
    if own is not None and (address is None or int(address[2]) > 65_535):
        yield f'metrics.listen: {own!r} cannot be used; expected HOST:PORT such as "127.0.0.1:9464"'
    try:
        _keys_path(tables.gateway.keys_file)
    except ConfigError as problem:
        yield str(problem)


def _model_faults(tables: Mapping[str, DesiredModel]) -> Iterator[str]:
    first: dict[str, str] = {}
    for name, table in tables.items():
        other = first.setdefault(canonical_model(name), name)
        if other != name:
            yield f"models: {other!r} and {name!r} are one model; expected one table for each"
        for node in table.nodes:
            try:
                parse_endpoint(node)
            except BadInput as problem:
                yield f"models.nodes: {node!r} of {name!r} cannot be used; {problem}"


def _is_positive(value: Any) -> bool:
    return isinstance(value, int | float) and 0 < value < float("inf")


def _origins(settings: Settings) -> dict[str, str]:
    """Return where each setting came from that has not its default."""
    file = settings.origins.get("gateway", "")
    found = {f"{table}.{name}": file for table, values in settings.gateway.items() for name in values}
    return found | {name: origin for name, origin in settings.origins.items() if name != "gateway"}


def _keys_path(setting: str | None) -> Path:
    if not setting:
        return config_home() / "keys.json"
    if "\0" in setting:
        raise ConfigError(f"gateway.keys_file: {setting!r} has a NUL, which no file name can have; name a file")
    try:
        return Path(setting).expanduser()
    except RuntimeError:
        raise ConfigError(f"gateway.keys_file: {setting!r} names a user who does not exist; name a file") from None


def _resolved(aliases: Mapping[str, str]) -> dict[str, str]:
    """Return each alias with the model at the end of its chain. Raises ConfigError for a circle."""
    by_name = {canonical_model(name): target for name, target in aliases.items()}
    found = {}
    for alias, first in by_name.items():
        target, seen = first, [alias]
        while canonical_model(target) in by_name:
            seen.append(canonical_model(target))
            if seen[-1] in seen[:-1]:
                raise ConfigError(f"aliases {' -> '.join(seen)} never end; expected the name of a model")
            target = by_name[seen[-1]]
        found[alias] = target
    return found


def check_keys(settings: GatewaySettings, keys: int) -> None:
    """Check that there are keys if they are required.

    Raises:
        BadInput: There are none.
    """
    if settings.needs_keys and not keys:
        host = settings.listen.host
        raise BadInput(
            f"listening on {host} lets other machines in, and there are no keys in {settings.keys_path}; make one with "
            "`sollol keys add NAME`, listen on 127.0.0.1, or pass --insecure to permit all callers"
        )


def template() -> dict[str, list[tuple[str, Any]]]:
    """Return table -> its settings with their defaults."""
    return {
        name: [(field.name, field.default) for field in msgspec.structs.fields(table)]
        for name, table in (
            ("gateway", Listen),
            ("limits", Limits),
            ("routing", Routing),
            ("store", StoreSettings),
            ("alerts", AlertSettings),
            ("metrics", MetricsSettings),
            ("registry", RegistrySettings),
            ("controller", ControllerSettings),
        )
    }
