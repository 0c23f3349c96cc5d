"""Nodes without a pool: asked directly, in the shape of `pool.snapshot()`.

What other programs ask of these nodes is not seen: there is no queue and there are no requests here, and the key
`watching` says so. A silent node delays no frame: what it answers late is shown in a later one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

from sollol.backends.probe import PROBE_TIMEOUTS, ProbeFailed, probe
from sollol.core.endpoint import Endpoint, parse_endpoint
from sollol.core.types import NodeFacts
from sollol.duties import log_fault
from sollol.errors import BadInput
from sollol.transport.base import Call, Transport, TransportFault
from sollol.version import __version__

PATIENCE_S = 0.7


class Watched:
    """A node, and what was last heard of it."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.facts: NodeFacts | None = None
        self.why = ""
        self.latency_ms = 0.0
        self.asking: asyncio.Task[None] | None = None

    async def ask(self, transport: Transport) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            reply = await transport.send(self.endpoint, Call("GET", "/api/version", timeouts=PROBE_TIMEOUTS))
            await reply.read()
            latency_ms = (loop.time() - began) * 1000
            self.facts, self.why = await probe(transport, self.endpoint), ""
            self.latency_ms = latency_ms
        except (ProbeFailed, TransportFault) as error:
            self.facts, self.why = None, str(error)
        except Exception as error:  # the others are shown all the same
            self.facts, self.why = None, f"{type(error).__name__}: {error}"
            log_fault(f"asking {self.endpoint.key} how it is", error)

    def row(self) -> dict[str, Any]:
        facts = self.facts
        state = "up" if facts else "down" if self.why else "unknown"
        loaded = facts.loaded if facts else {}
        return {
            "host": self.endpoint.key,
            "url": self.endpoint.url,
            "state": state,
            "why": self.why,
            "version": facts.version if facts else "",
            "active_requests": 0,
            "slots": {},
            "latency_ms": self.latency_ms if facts else 0.0,
            "success_rate": 1.0,
            "total_requests": 0,
            "failed_requests": 0,
            "batch_throughput": 0.0,
            "items": 0,
            "unable": [],
            "models": sorted(facts.models) if facts else [],
            "loaded": [
                {"model": name, **model._asdict(), "processor": model.processor}
                for name, model in sorted(loaded.items())
            ],
        }


class Watch:
    """Lives on one running loop. `snapshot(None)` waits for every node, else for `patience_s`."""

    def __init__(self, nodes: Iterable[Any]) -> None:
        endpoints = dict.fromkeys(parse_endpoint(node) for node in nodes)
        self._nodes = [Watched(endpoint) for endpoint in endpoints]
        self._transport: Transport | None = None

    async def snapshot(self, patience_s: float | None = PATIENCE_S) -> dict[str, Any]:
        if self._transport is None:
            from sollol.transport.http import HttpTransport

            self._transport = HttpTransport()
        for node in self._nodes:
            if node.asking is None or node.asking.done():
                node.asking = asyncio.create_task(node.ask(self._transport))
        asked = [node.asking for node in self._nodes if node.asking is not None]
        if asked:
            await asyncio.wait(asked, timeout=patience_s)
        return {
            "app_name": "",
            "version": __version__,
            "routing_mode": None,
            "routing_strategy": "",
            "watching": True,
            "totals": {"total_requests": 0, "successful_requests": 0, "failed_requests": 0},
            "nodes": [node.row() for node in self._nodes],
            "waiting": [],
            "running": [],
            "recent": [],
            "calibration": {"median": None, "p90": None, "count": 0},
            "mixed_digests": {},
            "notices": [],
        }

    async def explain(self, task_id: int) -> dict[str, Any]:
        raise BadInput(f"task_id={task_id} is not known: the nodes alone are watched here, and no requests are seen")

    async def aclose(self) -> None:
        for node in self._nodes:
            if node.asking is not None:
                node.asking.cancel()
        await asyncio.gather(*(node.asking for node in self._nodes if node.asking), return_exceptions=True)
        if self._transport is not None:
            await self._transport.aclose()
