from __future__ import annotations

from typing import NamedTuple


class Limits(NamedTuple):
    max_body_bytes: int = 64 * 1024 * 1024
    max_head_bytes: int = 64 * 1024
    header_timeout_s: float = 10.0
    body_timeout_s: float = 30.0
    idle_timeout_s: float = 75.0
    max_connections: int = 10_000
    queue: int = 10_000
    request_timeout_s: float | None = None


class GatewaySettings(NamedTuple):
    host: str = "127.0.0.1"
    port: int = 11435
    cors_origins: tuple[str, ...] = ()
    limits: Limits = Limits()
    drain_s: float = 30.0
    aliases: tuple[str, ...] = ()

    def resolve_model(self, name: str) -> str:
        return name

    def fallbacks_of(self, name: str) -> tuple[str, ...]:
        return ()
