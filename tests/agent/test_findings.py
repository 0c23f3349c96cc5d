"""What is wrong by the report of an agent: each check fires, and is silent where all is well."""

from __future__ import annotations

from typing import Any

import pytest

from sollol.agent.client import AgentState
from sollol.agent.findings import DISK_LEAST, HOT_C, agent_findings
from sollol.agent.report import AgentReport, GpuReport, OllamaReport

GPU = GpuReport("RTX 4090", "nvidia", 24 * 10**9, 10**9, 0.5, temperature_c=60.0)
GOOD = {"gpus": (GPU,), "memory_bytes": 64 * 10**9, "disk_bytes": 10**12, "disk_free_bytes": 10**11}


def found(**more: Any) -> list[Any]:
    report = AgentReport("1.0.0", 1_796_000_000.0, **{**GOOD, **more})
    return agent_findings({"gpu-1:11434": AgentState(report=report)})


@pytest.mark.parametrize(
    ("check", "more", "words"),
    [
        ("agent-ollama", {"ollama": OllamaReport(why="it does not answer")}, "its Ollama does not: it does not answer"),
        ("agent-disk", {"disk_free_bytes": DISK_LEAST - 1}, "5.0 GB are free on the disk of the models of gpu-1:11434"),
        (
            "agent-hot",
            {"gpus": (GpuReport("RTX 4090", "nvidia", temperature_c=HOT_C),)},
            "RTX 4090 in gpu-1:11434 has 90",
        ),
        (
            "agent-driver",
            {"problems": ("nvidia: no permission",)},
            "cannot read all of its machine: nvidia: no permission",
        ),
        (
            "agent-owner",
            {"owner_uses": ("call",)},
            "gpu-1:11434 gets no new work: its owner is busy: a call runs there",
        ),
    ],
)
def test_a_check_fires(check: str, more: dict[str, Any], words: str) -> None:
    (finding,) = found(**more)
    assert finding.id == check
    assert words in finding.summary
    assert finding.cost
    assert finding.fix


def test_an_agent_without_a_fault_has_no_finding() -> None:
    assert found() == []
    assert found(gpus=(), disk_free_bytes=None) == []
    assert agent_findings({"gpu-1:11434": AgentState()}) == []


def test_the_fix_names_the_restart_that_its_owner_permits() -> None:
    why = OllamaReport(why="it does not answer")
    assert "/agent/restart" in found(ollama=why, can_restart=True)[0].fix
    assert "ollama serve" in found(ollama=why)[0].fix


@pytest.mark.parametrize(
    ("more", "memory"),
    [
        ({}, 24 * 10**9),
        ({"gpus": (GPU, GPU)}, 48 * 10**9),
        ({"gpus": ()}, 64 * 10**9),
        ({"gpus": (GPU, GpuReport("x", "intel"))}, None),
        ({"gpus": (), "memory_bytes": 0}, None),
    ],
)
def test_the_memory_of_models_is_that_of_all_gpus_or_of_the_machine(more: dict[str, Any], memory: int | None) -> None:
    assert AgentReport("1.0.0", 1.0, **{**GOOD, **more}).model_memory_bytes == memory
