"""Look at the agents beside the nodes every few seconds, and keep what they report.

A node whose agent is absent, has another key, or sends wrong values, counts as one without an agent. A finding reports
the fault.
"""

from __future__ import annotations

from typing import Any, Final

from sollol.agent.client import AgentState, agent_of, read_agents, rooms_of
from sollol.agent.findings import agent_findings
from sollol.agent.report import AgentReport
from sollol.core.events import GpuReported, NodeDrained
from sollol.core.state.replica import Node
from sollol.duties import Duties
from sollol.engine.engine import Engine
from sollol.observe.findings import Finding
from sollol.registry.seeders import Seeder
from sollol.transport.base import Call, Timeouts

EVERY_S: Final = 15.0
RESTARTING: Final = Timeouts(connect_s=3.0, first_byte_s=90.0, idle_s=10.0)


class Agents:
    """The last look at the agents of all nodes."""

    def __init__(self, engine: Engine, key: str, port: int) -> None:
        self._engine = engine
        self._key = key
        self._port = port
        self._states: dict[str, AgentState] = {}
        self._busy: dict[str, str] = {}  # node -> why no new work should come to its owner's machine

    def start(self, duties: Duties) -> None:
        """Look now, and every few seconds from now on."""
        duties.keep("the agents", self.look, EVERY_S)

    async def look(self) -> None:
        """Look at all agents once."""
        nodes = [node for node in self._nodes() if not node.asleep]  # which a call could wake
        pairs = [(node.endpoint, dict(node.loaded)) for node in nodes]
        self._states = await read_agents(self._engine.transport, pairs, self._port, self._key, self._states)
        self._yield_to_owners()
        self._report_gpus()

    def _yield_to_owners(self) -> None:
        """Keep new work from nodes whose owners are busy, and let it come again."""
        reports, nodes = self.reports(), {node.key for node in self._nodes()}
        self._busy = {key: why for key, why in self._busy.items() if key in nodes}
        for key in nodes:
            report = reports.get(key)
            why, before = report.owner_busy if report is not None else "", self._busy.get(key, "")
            if why != before:
                for drained, reason in ((False, before), (True, why)):
                    if reason:
                        self._engine.dispatcher.feed(NodeDrained(key, drained, reason))
                self._busy[key] = why

    def _report_gpus(self) -> None:
        """Give the scheduler what is new about the GPUs of the nodes."""
        reports = self.reports()
        for node in self._nodes():
            report = reports.get(node.key)
            total, free = (None, None) if report is None else report.gpu_memory
            if (total, free) != (node.gpu_total, node.gpu_free):
                self._engine.dispatcher.feed(GpuReported(node.key, total, free))

    def _nodes(self) -> list[Node]:
        return list(self._engine.scheduler.view().nodes.values())

    def reports(self) -> dict[str, AgentReport]:
        """Return node -> report, of agents that can be trusted."""
        return {key: state.report for key, state in self._states.items() if state.report is not None}

    def memory(self, node: str) -> int | None:
        """Return the bytes of memory that models use on a node; None if no agent reports them."""
        report = self.reports().get(node)
        return None if report is None else report.model_memory_bytes

    def rooms(self) -> dict[str, int]:
        """Return node -> free bytes on its disk."""
        return rooms_of(self._states)

    def seeders(self) -> dict[str, Seeder]:
        """Return node -> seeder, of nodes whose agents can send blobs."""
        hosts = {node.key: node.endpoint.host for node in self._nodes()}
        found = {}
        for key, report in self.reports().items():
            if report.disk_bytes is not None and key in hosts:
                host = f"[{hosts[key]}]" if ":" in hosts[key] else hosts[key]
                found[key] = Seeder(f"http://{host}:{self._port}", self._key)
        return found

    async def restart(self, key: str) -> tuple[int, bytes]:
        """Let the agent of a node restart its Ollama; return the status and the JSON of its answer.

        Raises:
            TransportFault: The agent did not answer.
        """
        node = next(node for node in self._nodes() if node.key == key)
        call = Call("POST", "/agent/restart", timeouts=RESTARTING, most=64 * 1024)
        reply = await self._engine.transport.send(agent_of(node.endpoint, self._port, self._key), call)
        return reply.status, await reply.read()

    def findings(self) -> list[Finding]:
        """Return what is wrong with the agents, or by what they report."""
        return agent_findings(self._states)

    def shown(self) -> dict[str, Any]:
        """Return the states for displays: node -> report or problem."""
        return {
            key: {"problem": state.problem, "report": state.report}
            for key, state in self._states.items()
            if state != AgentState()
        }
