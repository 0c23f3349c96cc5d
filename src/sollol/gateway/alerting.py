"""Send the gateway's findings to the addresses of the table [alerts]."""

from __future__ import annotations

import asyncio
import time
from typing import Any, Final

from sollol.duties import Duties
from sollol.engine.engine import Engine
from sollol.gateway.settings import AlertSettings
from sollol.observe.alerts import AlertMessage, AlertPolicy, send, shown_address
from sollol.observe.findings import findings_of
from sollol.pool.aio import AsyncOllamaPool

LOOK_EVERY_S: Final = 10.0


def keep_alerting(duties: Duties, pool: AsyncOllamaPool, engine: Engine, settings: AlertSettings) -> None:
    """Start the duty that sends findings, if the settings name an address."""
    if settings.urls:
        policy = AlertPolicy(settings.severity, settings.every_s)
        duties.keep("alerts", Alerting(pool, engine, settings.urls, policy).look, LOOK_EVERY_S)


class Alerting:
    """Look at the findings every few seconds, and send what the policy chooses."""

    def __init__(self, pool: AsyncOllamaPool, engine: Engine, urls: tuple[str, ...], policy: AlertPolicy) -> None:
        self._pool = pool
        self._engine = engine
        self._urls = urls
        self._policy = policy
        self._failing: set[str] = set()

    async def look(self) -> None:
        """Look once."""
        snapshot: dict[str, Any] = self._pool.snapshot()
        found = findings_of(self._engine.monitor().evidence(snapshot))
        for message in self._policy.look(found, time.time()):
            await asyncio.gather(*(self._send(url, message) for url in self._urls))

    async def _send(self, url: str, message: AlertMessage) -> None:
        try:
            await asyncio.to_thread(send, url, message)
            self._failing.discard(url)
        except (OSError, ValueError) as error:
            if url not in self._failing:
                self._failing.add(url)
                self._engine.dispatcher.notify_operator(f"an alert to {shown_address(url)} was not sent: {error}")
