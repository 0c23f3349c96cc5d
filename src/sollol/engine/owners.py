"""Carry out the wishes of the owners of nodes: quiet hours, budgets, sleep and the packet that ends it."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Final

from sollol.core.events import NodeDrained, NodeOwned, WakeRequested
from sollol.engine.engine import Engine
from sollol.node_options import NodeOptions

log: Final = logging.getLogger("sollol")
EVERY_S: Final = 15.0
WAKE_PORT: Final = 9  # "discard": no program answers there
LIMITED: Final = "255.255.255.255"
QUIET: Final = "quiet hours of its owner"


def magic_packet(mac: bytes) -> bytes:
    """Return the packet that starts the machine with this network card."""
    return b"\xff" * 6 + mac * 16


class Owners:
    """Look at the wishes every few seconds.

    Args:
        engine: The engine of the pool.
        options: The wishes by node, "host:port".
        clock: Return the local time.
        broadcasts: Return the addresses that reach the network card of a host.
    """

    def __init__(
        self,
        engine: Engine,
        options: Mapping[str, NodeOptions],
        clock: Callable[[], datetime] = datetime.now,
        broadcasts: Callable[[str], Sequence[str]] = lambda host: (),
    ) -> None:
        self._engine = engine
        self._options = dict(options)
        self._clock = clock
        self._broadcasts = broadcasts
        self._sent: dict[str, tuple[bool, int]] = {}
        self._quiet: set[str] = set()
        self._warmed: dict[str, str] = {}
        self._memory: Callable[[str], int | None] = lambda node: None
        engine.dispatcher.wake = self._wake

    def use_memory(self, memory: Callable[[str], int | None]) -> None:
        """Set how the size of a node's memory is found, for budgets that are a share of it."""
        self._memory = memory

    def budget(self, node: str) -> int | None:
        """Return the most bytes of models of a node; None without a bound."""
        wishes = self._options.get(node)
        if wishes is None:
            return None
        if wishes.budget:
            return wishes.budget
        memory = self._memory(node) if wishes.budget_share else None
        return None if memory is None else round(memory * wishes.budget_share)

    async def tick(self) -> None:
        """Look once."""
        now = self._clock()
        for key, wishes in self._options.items():
            if key not in self._engine.scheduler.view().nodes:
                self._sent.pop(key, None)
                self._quiet.discard(key)
                continue
            wanted = bool(wishes.mac), self.budget(key) or 0
            if self._sent.get(key) != wanted:
                self._sent[key] = wanted
                self._engine.dispatcher.feed(NodeOwned(key, *wanted))
            is_quiet = any(hours.includes(now) for hours in wishes.quiet)
            if is_quiet is not (key in self._quiet):
                self._quiet ^= {key}
                self._engine.dispatcher.feed(NodeDrained(key, is_quiet, QUIET))
            if wishes.warm_at is not None:
                self._warm(key, wishes.warm_at, now)

    def _warm(self, key: str, warm_at: int, now: datetime) -> None:
        minute, day = now.hour * 60 + now.minute, now.date().isoformat()
        if warm_at <= minute < warm_at + 5 and self._warmed.get(key) != day:
            self._warmed[key] = day
            self._engine.dispatcher.feed(WakeRequested(key, f"it is {now:%H:%M}, the time that its owner set"))

    def _wake(self, key: str) -> None:
        wishes = self._options[key]
        host = self._engine.scheduler.view().nodes[key].endpoint.host
        try:
            addresses = self._broadcasts(host) or [LIMITED]
        except OSError:  # the system does not list its networks
            addresses = [LIMITED]
        for address in [wishes.wake] if wishes.wake else [(address, WAKE_PORT) for address in addresses]:
            family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
            try:
                with socket.socket(family, socket.SOCK_DGRAM) as sender:
                    sender.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
                    sender.sendto(magic_packet(wishes.mac), address)
            except OSError as error:
                self._engine.dispatcher.notify_operator(
                    f"the packet that wakes {key} was not sent to {address[0]}: {error}"
                )
