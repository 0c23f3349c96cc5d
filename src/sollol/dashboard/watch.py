"""Probe nodes without a pool, and show them in the shape of `pool.snapshot()`.

Requests of other programs to these nodes are not visible, so queue and requests are empty and `watching` is true. A
silent node does not delay a frame: its late answer is shown in a later one.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from typing import Any

from sollol.backends.probe import PROBE_TIMEOUTS, ProbeFailed, probe
from sollol.core.endpoint import Endpoint, parse_endpoint
from sollol.core.types import NodeFacts
from sollol.duties import log_fault
from sollol.errors import BadInput
from sollol.observe.findings import Evidence, findings_of
from sollol.observe.monitor import verdict
from sollol.transport.base import Call, Transport, TransportFault
from sollol.version import __version__

PATIENCE_S = 0.7


class Watched:
    """Hold a node and the result of its last probe."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.facts: NodeFacts | None = None
        self.why = ""
        self.latency_ms = 0.0
        self.probing: asyncio.Task[None] | None = None

    async def probe(self, transport: Transport) -> None:
        """Probe the node and record the result."""
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
        except Exception as error:  # the other nodes are shown all the same
            self.facts, self.why = None, f"{type(error).__name__}: {error}"
            log_fault(f"probing {self.endpoint.key}", error)

    def row(self) -> dict[str, Any]:
        """Return the node's row of a snapshot."""
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
            "loading": [],
            "replicas": [],
            "breakers": [],
            "drained": False,
            "since": None,
            "has_gpu": any(model.size_vram > 0 for model in loaded.values()),
            "models": sorted(facts.models) if facts else [],
            "loaded": [
                {"model": name, **model._asdict(), "processor": model.processor}
                for name, model in sorted(loaded.items())
            ],
        }


class Watch:
    """Probe nodes on one running loop and return their snapshots."""

    def __init__(self, nodes: Iterable[Any]) -> None:
        endpoints = dict.fromkeys(parse_endpoint(node) for node in nodes)
        self._nodes = [Watched(endpoint) for endpoint in endpoints]
        self._transport: Transport | None = None

    async def snapshot(self, patience_s: float | None = PATIENCE_S) -> dict[str, Any]:
        """Return the state of all nodes, after at most `patience_s` seconds; None waits for every node."""
        if self._transport is None:
            from sollol.transport.http import HttpTransport

            self._transport = HttpTransport()
        for node in self._nodes:
            if node.probing is None or node.probing.done():
                node.probing = asyncio.create_task(node.probe(self._transport))
        probes = [node.probing for node in self._nodes if node.probing is not None]
        if probes:
            await asyncio.wait(probes, timeout=patience_s)
        return {
            "app_name": "",
            "version": __version__,
            "routing_mode": None,
            "routing_strategy": "",
            "watching": True,
            "totals": {"total_requests": 0, "successful_requests": 0, "failed_requests": 0, "faults": 0},
            "nodes": [node.row() for node in self._nodes],
            "waiting": [],
            "running": [],
            "recent": [],
            "calibration": {"median": None, "p90": None, "count": 0},
            "mixed_digests": {},
            "notices": [],
        }

    async def overview(self) -> dict[str, Any]:
        """Return the snapshot with findings about the nodes."""
        found = await self.snapshot()
        problems = findings_of(Evidence(found, time.time()))
        return {
            **found,
            "verdict": verdict(found, problems, None),
            "findings": [finding.as_dict() for finding in problems],
            "events": [],
            "latest": None,
            "spans": [],
        }

    async def series(self, span: str) -> dict[str, Any]:
        """Raise BadInput, because requests are not seen."""
        raise BadInput(f"span={span!r}: the nodes are watched without a pool, so no requests are seen; pass a pool")

    async def history(self, words: str, before: int | None) -> dict[str, Any]:
        """Return no requests, because none are seen."""
        return {"rows": [], "next": None, "stored": False}

    async def explain(self, task_id: int) -> dict[str, Any]:
        """Raise BadInput, because there are no requests to explain."""
        raise BadInput(f"task_id={task_id}: the nodes are watched without a pool, so no requests are seen; pass a pool")

    async def metrics(self) -> bytes:
        """Raise BadInput, because requests are not seen."""
        raise BadInput("the nodes are watched without a pool, so there are no metrics; pass a pool")

    async def aclose(self) -> None:
        """Cancel the probes and close the connections."""
        for node in self._nodes:
            if node.probing is not None:
                node.probing.cancel()
        await asyncio.gather(*(node.probing for node in self._nodes if node.probing), return_exceptions=True)
        if self._transport is not None:
            await self._transport.aclose()
