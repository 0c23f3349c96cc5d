"""Define the report of an agent, and check one that came over the network. Pure.

An agent is as little trusted as a node: numbers have bounds, texts have lengths, and a value that contradicts itself
or the node's own lists is not used.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Final, Literal

import msgspec

from sollol.core.types import LoadedModel
from sollol.observe.replica_state import moment

SKEW_S: Final = 300.0  # of the agent's clock; an older report is stale
VRAM_SEEN: Final = 0.5  # share of the memory that Ollama lists, which a GPU must have in use

GPU_STEP: Final = 256 * 2**20  # of free memory, so that not each report is a change

Bytes = Annotated[int, msgspec.Meta(ge=0, le=2**50)]  # of a disk
Memory = Annotated[int, msgspec.Meta(ge=0, le=2**46)]  # of a machine
GpuMemory = Annotated[int, msgspec.Meta(ge=0, le=2**42)]  # of one GPU; Apple's is that of the machine
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Text = Annotated[str, msgspec.Meta(max_length=300)]

OwnerUse = Literal["full-screen program", "call"]
FULL_SCREEN: Final = "full-screen program"
CALL: Final = "call"


class BadReport(ValueError):
    """A report that cannot be used, with the reason."""


class GpuReport(msgspec.Struct, frozen=True):
    """One GPU. None: the driver does not report it.

    Attributes:
        driver: nvidia, amd, apple or intel.
        memory_bytes: All of its memory; what it shares with the machine on Apple's.
        used_bytes: Memory in use, by all programs.
        busy: Share of the time in which it worked.
    """

    name: Text
    driver: Text
    memory_bytes: GpuMemory | None = None
    used_bytes: GpuMemory | None = None
    busy: Share | None = None
    temperature_c: Annotated[float, msgspec.Meta(ge=-50, le=200)] | None = None
    power_w: Annotated[float, msgspec.Meta(ge=0, le=5_000)] | None = None


class OllamaReport(msgspec.Struct, frozen=True):
    """The Ollama beside the agent: its version, its OLLAMA_ settings, and why it does not answer."""

    version: Text = ""
    settings: Annotated[dict[Text, Text], msgspec.Meta(max_length=100)] = {}
    why: Text = ""


class AgentReport(msgspec.Struct, frozen=True):
    """The facts about one machine.

    Attributes:
        at: When it was made, in seconds since 1970.
        memory_bytes, available_bytes: Of the machine.
        disk_free_bytes: On the disk of the models; None if their folder is unknown.
        can_restart: Its owner has named a command that restarts Ollama.
        problems: The values that could not be read, and why, in words.
        owner_uses: The owner's use of the machine that keeps new work away, in words; with the owner's option only.
    """

    agent: Text
    at: Annotated[float, msgspec.Meta(ge=0, le=1e11)]
    gpus: Annotated[tuple[GpuReport, ...], msgspec.Meta(max_length=64)] = ()
    memory_bytes: Memory = 0
    available_bytes: Memory = 0
    disk_bytes: Bytes | None = None
    disk_free_bytes: Bytes | None = None
    load: Annotated[float, msgspec.Meta(ge=0, le=100_000)] | None = None
    temperature_c: Annotated[float, msgspec.Meta(ge=-50, le=200)] | None = None
    ollama: OllamaReport = OllamaReport()
    can_restart: bool = False
    problems: Annotated[tuple[Text, ...], msgspec.Meta(max_length=20)] = ()
    owner_uses: Annotated[tuple[OwnerUse, ...], msgspec.Meta(max_length=5)] = ()

    @property
    def owner_busy(self) -> str:
        """Why no new work should come, in words; "" if it may."""
        return f"its owner is busy: a {' and a '.join(self.owner_uses)} runs there" if self.owner_uses else ""

    @property
    def model_memory_bytes(self) -> int | None:
        """The memory that models use: of all GPUs, or of a machine without one; None if it is unknown."""
        sizes = [gpu.memory_bytes for gpu in self.gpus]
        known = [size for size in sizes if size is not None]
        if sizes:
            return sum(known) if len(known) == len(sizes) else None
        return self.memory_bytes or None

    @property
    def gpu_memory(self) -> tuple[int | None, int | None]:
        """The memory of all GPUs, 0 without one, and its free part in steps of GPU_STEP; None for unknown."""
        totals = [gpu.memory_bytes for gpu in self.gpus]
        used = [gpu.used_bytes for gpu in self.gpus]
        known, in_use = [size for size in totals if size is not None], [size for size in used if size is not None]
        if len(known) < len(totals) or (not totals and self.problems):  # a driver may have failed
            return None, None
        total = sum(known)
        return total, (total - sum(in_use)) // GPU_STEP * GPU_STEP if len(in_use) == len(used) else None


def parse_report(raw: bytes, now: float) -> AgentReport:
    """Return the report in `raw`. `now`: in seconds since 1970.

    Raises:
        BadReport: It has another form, impossible values, or another time.
    """
    try:
        found = msgspec.json.decode(raw, type=AgentReport)
    except (msgspec.DecodeError, RecursionError) as error:
        raise BadReport(f"its report cannot be used: {error}") from None
    if abs(found.at - now) > SKEW_S:
        raise BadReport(f"its report is {abs(found.at - now):,.0f} s away from the time here")
    if found.available_bytes > found.memory_bytes:
        raise BadReport("it reports more free memory than there is")
    if found.disk_bytes is not None and (found.disk_free_bytes or 0) > found.disk_bytes:
        raise BadReport("it reports more room on the disk than there is")
    for gpu in found.gpus:
        if gpu.memory_bytes is not None and (gpu.used_bytes or 0) > gpu.memory_bytes:
            raise BadReport(f"it reports more memory in use on {gpu.name} than there is")
    return found


def contradiction(report: AgentReport, loaded: Mapping[str, LoadedModel]) -> str:
    """Return how a report contradicts the node's own list of models in memory, "" if it does not.

    The list may be a minute old, so models that may have left the memory since do not count.
    """
    listed = sum(model.size_vram for model in loaded.values() if moment(model.expires_at, report.at + 1) > report.at)
    if not listed or not report.gpus:
        return ""
    used = [gpu.used_bytes for gpu in report.gpus if gpu.used_bytes is not None]
    if len(used) == len(report.gpus) and sum(used) < VRAM_SEEN * listed:
        return f"it reports {sum(used):,} bytes in use on the GPU, while Ollama lists {listed:,} there"
    memory = report.model_memory_bytes
    if memory is not None and listed > memory:
        return f"it reports GPUs of {memory:,} bytes, while Ollama lists {listed:,} there"
    return ""
