"""Connect many simulated nodes with one network and one schedule of faults.

`SimTransport` raises what the HTTP transport would: refused and unreachable connections, the timeouts of a call, cuts.
Leaving (cancelling `send`, closing a reply) reaches the node at once. The network has no bandwidth, only latency: half
of a node's round trip before the request, half before its answer's head.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

from sollol.core.endpoint import Endpoint
from sollol.sim.faults import FaultEvent, apply, parse_events
from sollol.sim.models import NodeSpec
from sollol.sim.node import SimNode
from sollol.sim.reply import SimReply
from sollol.transport.base import Call, Fault, TransportFault


class World:
    """Hold nodes by their key, and a schedule of faults.

    `schedule` has FaultEvents, or their JSON. They count from the call of `start`, which the transport's first request
    makes.
    """

    def __init__(
        self, specs: Iterable[NodeSpec | SimNode], schedule: Sequence[FaultEvent | dict[str, Any]] = ()
    ) -> None:
        self.nodes: dict[str, SimNode] = {}
        for spec in specs:
            self.add(spec)
        plain = [e for e in schedule if isinstance(e, FaultEvent)]
        parsed = parse_events([e for e in schedule if isinstance(e, dict)])
        self.schedule = sorted([*plain, *parsed], key=lambda event: event.at_s)
        for event in self.schedule:
            if event.node and event.node not in self.nodes:
                raise ValueError(f"fault {event.action!r} is for {event.node}; there are {', '.join(self.nodes)}")
        self._timers: list[asyncio.TimerHandle] = []
        self._started = False

    def __getitem__(self, key: str) -> SimNode:
        return self.nodes[key]

    def add(self, spec: NodeSpec | SimNode) -> SimNode:
        """Add a node, at any time."""
        node = spec if isinstance(spec, SimNode) else SimNode(spec)
        if node.spec.key in self.nodes:
            raise ValueError(f"two nodes are called {node.spec.key}; give them different hosts or ports")
        self.nodes[node.spec.key] = node
        return node

    @property
    def endpoints(self) -> list[Endpoint]:
        """Return the addresses of all nodes."""
        return [Endpoint(node.spec.host, node.spec.port) for node in self.nodes.values()]

    def transport(self) -> SimTransport:
        """Return a transport to these nodes."""
        return SimTransport(self)

    def start(self) -> None:
        """Set the timers of the schedule. A second call does nothing."""
        if self._started:
            return
        self._started = True
        loop = asyncio.get_running_loop()
        self._timers = [loop.call_later(event.at_s, self._happen, event) for event in self.schedule]

    def stop(self) -> None:
        """Cancel the faults that have not happened."""
        for timer in self._timers:
            timer.cancel()

    def _happen(self, event: FaultEvent) -> None:
        targets = [self.nodes[event.node]] if event.node else list(self.nodes.values())
        for node in targets:
            apply(node, event)

    def digest(self) -> str:
        """Return a hash of all requests, their times and their ends. The same run has the same hash."""
        state = hashlib.blake2b(digest_size=16)
        for key, node in self.nodes.items():
            state.update(f"{key}\n".encode())
            for entry in node.counters.log:
                state.update(repr(entry).encode())
        return state.hexdigest()


class SimTransport:
    """Send requests to the nodes of a World, in memory."""

    def __init__(self, world: World) -> None:
        self.world = world

    async def send(self, node: Endpoint, call: Call) -> SimReply:
        """Send a request and return the reply."""
        self.world.start()
        target = self.world.nodes.get(node.key)
        if target is None:
            raise TransportFault(Fault.CONNECT, f"{node.key}: no such host")
        await self._connect(target, call)
        reply = await self._first_byte(target, call)
        half_s = target.spec.latency_s / 2
        if half_s:
            await asyncio.sleep(half_s)
        reply.idle_s = call.timeouts.idle_s
        if call.method == "HEAD":
            await reply.read()
        elif not call.stream:
            await self._whole(reply)
        return reply

    async def _connect(self, target: SimNode, call: Call) -> None:
        key, limit_s = target.spec.key, call.timeouts.connect_s
        half_s = target.spec.latency_s / 2
        if target.state == "unreachable" or (limit_s is not None and target.spec.latency_s > limit_s):
            await _wait(limit_s)
            raise TransportFault(Fault.CONNECT_TIMEOUT, f"{key}: no connection after {limit_s:g} s")
        if half_s:
            await asyncio.sleep(half_s)
        if target.state != "up":
            raise TransportFault(Fault.CONNECT, f"{key}: connection refused")

    async def _first_byte(self, target: SimNode, call: Call) -> SimReply:
        limit_s = call.timeouts.first_byte_s
        try:
            async with asyncio.timeout(limit_s):
                return await target.handle(call)
        except TimeoutError:
            message = f"{target.spec.key}: no answer after {limit_s:g} s"
            raise TransportFault(Fault.FIRST_BYTE_TIMEOUT, message) from None

    async def _whole(self, reply: SimReply) -> None:
        """Wait for the complete body, and leave it in the reply."""
        if reply.complete and not reply.cut_short:
            return
        try:
            body = await reply.read()
        except BaseException:
            await reply.aclose()
            raise
        reply.push_back(body)

    async def aclose(self) -> None:
        """Stop the schedule."""
        self.world.stop()


async def _wait(seconds: float | None) -> None:
    """Wait for some seconds; None waits for ever."""
    if seconds is None:
        await asyncio.get_running_loop().create_future()
    else:
        await asyncio.sleep(seconds)
