"""Find what is wrong with agents, and what is wrong by their reports."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from sollol.agent.client import AgentState
from sollol.agent.report import AgentReport
from sollol.observe.findings import ERROR, INFO, WARNING, Finding

HOT_C: Final = 90.0
DISK_LEAST: Final = 5_000_000_000  # bytes


def agent_findings(states: Mapping[str, AgentState]) -> list[Finding]:
    """Return the findings of the last look at all agents."""
    return [finding for node, state in states.items() for finding in _of(node, state)]


def _of(node: str, state: AgentState) -> Iterator[Finding]:
    if state.problem:
        yield Finding(
            "agent", WARNING, node, f"The agent of {node} cannot be used: {state.problem}.",
            "The node goes on as one without an agent: no room on disks, no GPU, no blobs from there.",
            f"On {node}, look at `sollol agent`: does it run, and with the key of [agents]?",
        )  # fmt: skip
    if state.report is not None:
        yield from _reported(node, state.report)


def _reported(node: str, report: AgentReport) -> Iterator[Finding]:
    if report.ollama.why:
        fix = f"POST /agent/restart to its agent restarts it, or on {node}: `ollama serve`."
        yield Finding(
            "agent-ollama", ERROR, node, f"The agent of {node} runs, and its Ollama does not: {report.ollama.why}.",
            "The node's share of the work is done by the others.",
            fix if report.can_restart else f"On {node}, start Ollama: `ollama serve`, or its service.",
        )  # fmt: skip
    if report.disk_free_bytes is not None and report.disk_free_bytes < DISK_LEAST:
        yield Finding(
            "agent-disk", WARNING, node,
            f"{report.disk_free_bytes / 1e9:.1f} GB are free on the disk of the models of {node}.",
            "No further model can be pulled there.", f"`sollol models rm MODEL --on {node}`, or make room otherwise.",
            {"free": report.disk_free_bytes},
        )  # fmt: skip
    for gpu in report.gpus:
        if gpu.temperature_c is not None and gpu.temperature_c >= HOT_C:
            yield Finding(
                "agent-hot", WARNING, node, f"{gpu.name} in {node} has {gpu.temperature_c:.0f} °C.",
                "It slows itself down, and answers come later.", "Look at its fans and its dust.",
                {"temperature_c": gpu.temperature_c},
            )  # fmt: skip
    if report.owner_busy:
        yield Finding(
            "agent-owner", INFO, node, f"{node} gets no new work: {report.owner_busy}.",
            "The other nodes do its share.", "Nothing: work comes again when that ends.",
        )  # fmt: skip
    for problem in report.problems:
        yield Finding(
            "agent-driver", WARNING, node, f"The agent of {node} cannot read all of its machine: {problem}.",
            "What it cannot read is unknown: a GPU, or whether the owner uses the machine.",
            "Update the driver of the GPU or the agent; run an agent with --yield-to-owner in the owner's session.",
        )  # fmt: skip
