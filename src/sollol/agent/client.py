"""Read the report of an agent, and check it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from sollol.agent.report import AgentReport, BadReport, contradiction, parse_report
from sollol.backends.agent_proof import has_key
from sollol.backends.probe import ProbeFailed, probe
from sollol.core.endpoint import Endpoint, with_key
from sollol.core.types import LoadedModel
from sollol.transport.base import Call, Fault, Timeouts, Transport, TransportFault

TIMEOUTS: Final = Timeouts(connect_s=1.5, first_byte_s=5.0, idle_s=5.0)
OTHER_KEY: Final = "it has another key than [agents] in the settings"
MOST: Final = 256 * 1024  # bytes of a report


class AgentState(NamedTuple):
    """Hold the result of one look at an agent: a report, a problem, or neither where no agent runs."""

    report: AgentReport | None = None
    problem: str = ""


def agent_of(node: Endpoint, port: int, key: str) -> Endpoint:
    """Return the address of the agent beside a node."""
    return with_key(Endpoint(node.host, port), key)


def rooms_of(states: Mapping[str, AgentState]) -> dict[str, int]:
    """Return node -> free bytes on the disk of its models, where an agent reports them."""
    reports = {node: state.report for node, state in states.items() if state.report is not None}
    return {node: found.disk_free_bytes for node, found in reports.items() if found.disk_free_bytes is not None}


async def read_agent(
    transport: Transport,
    agent: Endpoint,
    loaded: Mapping[str, LoadedModel],
    *,
    ran: bool = False,
    node: Endpoint | None = None,
) -> AgentState:
    """Look at an agent once.

    Args:
        transport: The way to it.
        agent: Its address, with the key.
        loaded: The models in memory, as its node lists them.
        ran: It has answered before, so that its silence is a problem.
        node: The node, whose list is read again if the report contradicts `loaded`, which may be old.
    """
    bare = agent._replace(api_key="")
    try:
        async with asyncio.timeout(10.0):
            proven = await has_key(transport, bare, agent.api_key, 5.0)
            if not proven:
                return AgentState(problem="" if proven is None else OTHER_KEY)
            reply = await transport.send(agent, Call("GET", "/agent/report", timeouts=TIMEOUTS, most=MOST))
            body = await reply.read()
    except TimeoutError:
        return AgentState(problem="it does not answer in time")
    except TransportFault as fault:
        is_absent = fault.fault in (Fault.CONNECT, Fault.CONNECT_TIMEOUT)
        return AgentState() if is_absent and not ran else AgentState(problem=f"it does not answer: {fault}")
    if reply.status in (401, 403):
        return AgentState(problem=OTHER_KEY)
    if reply.status != 200:
        return AgentState(problem=f"it answers {reply.status}")
    try:
        report = parse_report(body, time.time())
    except BadReport as bad:
        return AgentState(problem=str(bad))
    lie = contradiction(report, loaded)
    if lie and node is not None:
        try:
            lie = contradiction(report, (await probe(transport, node)).loaded)
        except (ProbeFailed, TransportFault):  # without its list there is nothing to contradict
            lie = ""
    return AgentState(problem=lie) if lie else AgentState(report)


async def read_agents(
    transport: Transport,
    nodes: Sequence[tuple[Endpoint, Mapping[str, LoadedModel]]],
    port: int,
    key: str,
    before: Mapping[str, AgentState],
) -> dict[str, AgentState]:
    """Look at the agents of all nodes; return node -> state."""
    states = await asyncio.gather(
        *(
            read_agent(
                transport,
                agent_of(node, port, key),
                loaded,
                ran=before.get(node.key, AgentState()) != AgentState(),
                node=node,
            )
            for node, loaded in nodes
        )
    )
    return {node.key: state for (node, _), state in zip(nodes, states, strict=True)}
