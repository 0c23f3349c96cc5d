"""The configuration of an application: fields that mean something here are applied, the others are kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Final

from sollol.errors import BadInput
from sollol.pool.keywords import warn_once
from sollol.workload.validation import short

# Fields of Ray, Dask, InfluxDB and of checks that run by themselves now.
UNUSED: Final = (
    "ray_workers", "dask_workers", "dask_scheduler", "autobatch_enabled", "autobatch_interval",
    "autobatch_min_batch_size", "autobatch_max_batch_size", "metrics_enabled", "metrics_port",
    "adaptive_metrics_enabled", "adaptive_metrics_interval", "influxdb_enabled", "influxdb_url", "influxdb_token",
    "influxdb_org", "influxdb_bucket", "health_check_enabled", "health_check_interval", "max_retries",
    "retry_backoff_multiplier", "embedding_timeout", "health_check_timeout",
)  # fmt: skip
STRATEGIES: Final = {"performance": "intelligent", "round_robin": "round_robin", "priority": "intelligent"}
LEVELS: Final = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")


@dataclass
class SOLLOLConfig:
    """Fields of SOLLOL 0.9. Used are `hosts`, `gateway_port`, `gateway_host`, `routing_strategy`, `chat_timeout`."""

    ray_workers: int = 2
    dask_workers: int = 2
    dask_scheduler: str | None = None
    hosts: list[str] = field(default_factory=lambda: ["127.0.0.1:11434"])
    gateway_port: int = 8000
    gateway_host: str = "127.0.0.1"
    routing_strategy: str = "performance"
    autobatch_enabled: bool = True
    autobatch_interval: int = 60
    autobatch_min_batch_size: int = 1
    autobatch_max_batch_size: int = 100
    metrics_enabled: bool = True
    metrics_port: int = 9090
    adaptive_metrics_enabled: bool = True
    adaptive_metrics_interval: int = 30
    influxdb_enabled: bool = True
    influxdb_url: str = "http://localhost:8086"
    influxdb_token: str | None = None
    influxdb_org: str = "sollol"
    influxdb_bucket: str = "sollol_metrics"
    health_check_enabled: bool = True
    health_check_interval: int = 120
    max_retries: int = 3
    retry_backoff_multiplier: float = 0.5
    chat_timeout: float = 300.0
    embedding_timeout: float = 60.0
    health_check_timeout: float = 5.0
    log_level: str = "INFO"

    def __post_init__(self) -> None:
        self.validate()
        defaults = {each.name: each.default for each in fields(self)}
        changed = [name for name in UNUSED if getattr(self, name) != defaults[name]]
        if changed:
            warn_once(f"SOLLOLConfig: {', '.join(changed)} have no effect any more and can be removed")

    def validate(self) -> None:
        """Validate the fields that are used.

        Raises:
            BadInput: A field cannot be used.
        """
        if not self.hosts or not all(isinstance(host, str) and host for host in self.hosts):
            raise BadInput(f"hosts={short(self.hosts)}; expected a list with one host at least")
        for name in ("gateway_port", "metrics_port"):
            port = getattr(self, name)
            if isinstance(port, bool) or not isinstance(port, int) or not 0 < port < 65536:
                raise BadInput(f"{name}={short(port)}; expected a port from 1 to 65535")
        if self.routing_strategy not in STRATEGIES:
            raise BadInput(f"routing_strategy={short(self.routing_strategy)}; expected one of {', '.join(STRATEGIES)}")
        if not self.chat_timeout > 0:
            raise BadInput(f"chat_timeout={short(self.chat_timeout)}; expected seconds above 0")
        if self.log_level not in LEVELS:
            raise BadInput(f"log_level={short(self.log_level)}; expected one of {', '.join(LEVELS)}")

    def to_dict(self) -> dict[str, Any]:
        """Return the fields by name."""
        return asdict(self)

    @classmethod
    def from_dict(cls, config_dict: Mapping[str, Any]) -> SOLLOLConfig:
        """Return a configuration with these fields.

        Raises:
            BadInput: A field does not exist, or cannot be used.
        """
        unknown = config_dict.keys() - {each.name for each in fields(cls)}
        if unknown:
            raise BadInput(f"SOLLOLConfig has no {', '.join(sorted(unknown))}; see SOLLOLConfig().to_dict()")
        return cls(**config_dict)

    def pool_arguments(self) -> dict[str, Any]:
        """Return the arguments of a pool with this configuration."""
        return {
            "nodes": self.hosts,
            "routing_strategy": STRATEGIES[self.routing_strategy],
            "timeout": self.chat_timeout,
        }
