"""Probe nodes without a pool, and show them in the shape of `pool.snapshot()`.

Requests of other programs to these nodes are not visible, so queue and requests are empty and `watching` is true. A
silent node does not delay a frame: its late answer is shown in a later one.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from typing import Any

import msgspec

from sollol.backends.probe import PROBE_TIMEOUTS, ProbeFailed, probe
from sollol.core.endpoint import Endpoint, parse_endpoint
from sollol.core.types import NodeFacts
from sollol.duties import log_fault
from sollol.errors import BadInput
from sollol.observe.findings import Evidence, findings_of
from sollol.observe.overview import Overview, verdict
from sollol.observe.rows import CallTotals, NodeStateRow, Snapshot
from sollol.observe.snapshot import loaded_row
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

    def row(self) -> NodeStateRow:
        """Return the node's row of a snapshot."""
        row = NodeStateRow(self.endpoint.key, url=self.endpoint.url, why=self.why)
        facts = self.facts
        if facts is None:
            row.state, row.available = "down" if self.why else "unknown", not self.why
            return row
        row.state, row.version, row.latency_ms = "up", facts.version, self.latency_ms
        row.models, row.loaded_models = sorted(facts.models), sorted(facts.loaded)
        row.loaded = [loaded_row(name, held) for name, held in sorted(facts.loaded.items())]
        row.has_gpu = any(held.size_vram > 0 for held in facts.loaded.values())
        return row


class Watch:
    """Probe nodes on one running loop and return their snapshots."""

    def __init__(self, nodes: Iterable[Any]) -> None:
        endpoints = dict.fromkeys(parse_endpoint(node) for node in nodes)
        self._nodes = [Watched(endpoint) for endpoint in endpoints]
        self._transport: Transport | None = None

    async def snapshot(self, patience_s: float | None = PATIENCE_S) -> Snapshot:
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
        return Snapshot(
            app_name="",
            version=__version__,
            routing_mode=None,
            routing_strategy="",
            watching=True,
            totals=CallTotals(),
            nodes=[node.row() for node in self._nodes],
        )

    async def overview(self) -> Overview:
        """Return the snapshot with findings about the nodes."""
        found = await self.snapshot()
        problems = findings_of(Evidence(found, time.time()))
        return Overview(
            **msgspec.structs.asdict(found),
            verdict=verdict(found, problems, None),
            findings=problems,
            events=[],
            latest=None,
            spans=[],
        )

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
