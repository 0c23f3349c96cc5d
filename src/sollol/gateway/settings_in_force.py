"""List the settings in force, each with its value and where that came from."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from sollol.config.problems import without_secrets
from sollol.gateway.settings import GatewaySettings

DEFAULT: Final = "default"
TABLES: Final = ("limits", "routing", "store", "alerts", "metrics", "registry", "controller")


def settings_in_force(settings: GatewaySettings) -> list[dict[str, Any]]:
    """Return rows with `name`, `value` and `origin`. Passwords and the addresses of alerts are left out."""
    values: dict[str, Any] = {
        "nodes": [endpoint.key for endpoint in settings.nodes] or "found by discovery",
        "app_name": settings.app_name,
        "observer_sampling": settings.observer_sampling,
    }
    values |= {f"gateway.{name}": value for name, value in msgspec.structs.asdict(settings.listen).items()}
    for table in TABLES:
        values |= {f"{table}.{name}": value for name, value in msgspec.structs.asdict(getattr(settings, table)).items()}
    values["alerts.urls"] = [f"{url.partition(':')[0]}://***" for url in settings.alerts.urls]
    values["registry.key"] = "***" if settings.registry.key else None
    for table in ("aliases", "fallbacks", "digests"):
        values |= {f"{table}.{name}": value for name, value in getattr(settings, table).items()}
    values |= {f"models.{name}": msgspec.structs.asdict(table) for name, table in settings.models.items()}
    values["otel"] = None if settings.otel is None else without_secrets(settings.otel.endpoint or "")
    values["redis"] = None if settings.redis is None else without_secrets(settings.redis)
    origins = settings.origins
    redis = next((origin for name, origin in origins.items() if name in ("redis_url", "redis_host")), DEFAULT)
    return [
        {"name": name, "value": value, "origin": redis if name == "redis" else origins.get(name, DEFAULT)}
        for name, value in values.items()
    ]
