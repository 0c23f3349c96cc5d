"""Read the machine of an agent: memory, disk, load, temperature, and its Ollama's folder and settings."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from sollol.agent.drivers import GpuDriver, read_gpus
from sollol.agent.owner import NO_LOOKS, Looks, read_owner
from sollol.agent.report import AgentReport, OllamaReport
from sollol.core.endpoint import DEFAULT_PORT

SHOWN_SETTINGS: Final = (
    "OLLAMA_CONTEXT_LENGTH", "OLLAMA_FLASH_ATTENTION", "OLLAMA_GPU_OVERHEAD", "OLLAMA_HOST", "OLLAMA_KEEP_ALIVE",
    "OLLAMA_KV_CACHE_TYPE", "OLLAMA_LOAD_TIMEOUT", "OLLAMA_MAX_LOADED_MODELS", "OLLAMA_MAX_QUEUE", "OLLAMA_MODELS",
    "OLLAMA_NUM_PARALLEL", "OLLAMA_SCHED_SPREAD",
)  # fmt: skip
FOLDERS: Final = ("~/.ollama/models", "/usr/share/ollama/.ollama/models", "/var/lib/ollama/.ollama/models")


def models_folder(given: str | None) -> Path | None:
    """Return the folder of Ollama's models: the given one, OLLAMA_MODELS, or where Ollama keeps them by default."""
    named = given or os.environ.get("OLLAMA_MODELS")
    if named:
        return Path(named).expanduser()
    return next((path for path in (Path(name).expanduser() for name in FOLDERS) if (path / "blobs").is_dir()), None)


def ollama_settings(port: int) -> dict[str, str]:
    """Return the settings of the Ollama at a port of this machine, as far as this process may read them.

    They are read from the process of `ollama serve`, since the agent's own environment is another one. Where none has
    the port in OLLAMA_HOST, a container may have changed it: the only Ollama is taken then.
    """
    import psutil  # of the extra `agent`

    found: list[dict[str, str]] = []
    for process in psutil.process_iter(["name"]):
        try:
            if "ollama" in (process.info["name"] or "").lower() and "serve" in process.cmdline():
                found.append(process.environ())
        except (psutil.Error, OSError):
            continue
    own = [environment for environment in found if port_of(environment.get("OLLAMA_HOST", "")) == port]
    if own or len(found) == 1:
        return _shown((own or found)[0])
    return {} if found else _shown(os.environ)


def port_of(host: str) -> int:
    """Return the port that a value of OLLAMA_HOST names, or Ollama's own."""
    named = re.search(r":(\d+)/?$", host)
    return int(named[1]) if named else DEFAULT_PORT


def _shown(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: environment[name][:300] for name in SHOWN_SETTINGS if name in environment}


def read_machine(
    agent: str,
    drivers: Sequence[GpuDriver],
    folder: Path | None,
    ollama: OllamaReport,
    *,
    can_restart: bool,
    looks: Looks = NO_LOOKS,
) -> AgentReport:
    """Return the report of this machine; runs in a thread."""
    import psutil

    gpus, problems = read_gpus(drivers)
    uses, unseen = read_owner(looks)
    memory = psutil.virtual_memory()
    disk = psutil.disk_usage(str(folder)) if folder is not None and folder.is_dir() else None
    return AgentReport(
        agent,
        time.time(),
        gpus,
        memory.total,
        memory.available,
        disk.total if disk else None,
        disk.free if disk else None,
        _load(),
        _temperature(),
        ollama,
        can_restart,
        (*problems, *unseen),
        uses,
    )


def _load() -> float | None:
    import psutil

    try:
        return psutil.getloadavg()[0]
    except OSError:
        return None


def _temperature() -> float | None:
    """Return the highest temperature of the processor's sensors in °C, None without one."""
    import psutil

    read = getattr(psutil, "sensors_temperatures", None)  # not on all systems
    found = read() if read is not None else {}
    heats = [sensor.current for name in ("coretemp", "k10temp", "cpu_thermal") for sensor in found.get(name, ())]
    return max(heats, default=None)
