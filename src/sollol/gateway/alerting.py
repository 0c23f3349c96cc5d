"""Send the gateway's findings to the addresses of the table [alerts]."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final

from sollol.duties import Duties
from sollol.engine.engine import Engine
from sollol.gateway.settings import AlertSettings
from sollol.observe.alerts import AlertMessage, AlertPolicy, send, shown_address
from sollol.observe.findings import findings_of
from sollol.pool.aio import AsyncOllamaPool

LOOK_EVERY_S: Final = 10.0
PAUSE_MOST_S: Final = 600.0  # before an address that fails is tried again
WAITING_MOST: Final = 20  # messages that wait for one address; the oldest are dropped


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
        self._addresses = [_Address(url, engine.dispatcher.notify_operator) for url in urls]
        self._policy = policy

    async def look(self) -> None:
        """Look once."""
        found = findings_of(self._engine.monitor().evidence(self._pool.read_snapshot()))
        messages = self._policy.look(found, time.time())
        await asyncio.gather(*(address.send(messages, time.monotonic()) for address in self._addresses))


class _Address:
    """Send messages to one address in order; those that fail are sent later."""

    def __init__(self, url: str, notify: Callable[[str], None]) -> None:
        self._url = url
        self._notify = notify
        self._waiting: deque[AlertMessage] = deque(maxlen=WAITING_MOST)
        self._failures = 0
        self._next_at = 0.0

    async def send(self, messages: Iterable[AlertMessage], at: float) -> None:
        """Send these messages after those that wait, unless the address has just failed."""
        self._waiting.extend(messages)
        while self._waiting and at >= self._next_at:
            try:
                await asyncio.to_thread(send, self._url, self._waiting[0])
            except (OSError, ValueError) as error:
                if not self._failures:
                    self._notify(f"an alert to {shown_address(self._url)} was not sent and is tried again: {error}")
                self._failures += 1
                self._next_at = at + min(LOOK_EVERY_S * 2.0 ** min(self._failures - 1, 10), PAUSE_MOST_S)
            else:
                self._waiting.popleft()
                self._failures = 0
