"""Read the GPUs of a machine: NVIDIA by its library, AMD by sysfs, Apple and Intel by their tools.

A driver returns the GPUs that it finds, none where it finds nothing of its kind, and raises DriverProblem where it
finds something that it cannot read. All wait for devices or programs, so they run in a thread.
"""

from __future__ import annotations

import importlib
import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

from sollol.agent.report import GpuReport

RUN_S: Final = 5.0  # the longest time of a tool
AMD_VENDOR: Final = "0x1002"
Run = Callable[[Sequence[str]], str]


class DriverProblem(Exception):
    """A GPU is there and cannot be read; the text is for its owner."""


class GpuDriver(Protocol):
    """One way to read GPUs."""

    def read(self) -> list[GpuReport]:
        """Return the GPUs. Raises DriverProblem."""
        ...


def run_tool(command: Sequence[str], most_s: float = RUN_S) -> str:
    """Run a program of the system for at most `most_s` seconds and return its output.

    Raises:
        FileNotFoundError: It is not installed.
        DriverProblem: It failed, or took too long.
    """
    found = shutil.which(command[0])
    if found is None:
        raise FileNotFoundError(command[0])
    try:
        done = subprocess.run([found, *command[1:]], capture_output=True, timeout=most_s, check=True, text=True)
    except (subprocess.SubprocessError, OSError, UnicodeDecodeError) as error:
        raise DriverProblem(f"{command[0]} failed: {error}") from None
    return done.stdout


class NvidiaDriver:
    """Read NVIDIA's GPUs through NVML (the package nvidia-ml-py)."""

    def __init__(self, nvml: Any = None) -> None:
        """`nvml`: the library's module; by default pynvml, if it is installed."""
        self._nvml = nvml

    def read(self) -> list[GpuReport]:
        """Return the GPUs, none without the library or a driver."""
        nvml = self._nvml
        if nvml is None:
            try:
                nvml = importlib.import_module("pynvml")
            except ImportError:
                return []
        try:
            nvml.nvmlInit()
        except nvml.NVMLError as error:
            if self._is_absent(nvml, error):
                return []
            raise DriverProblem(f"NVML does not start: {error}") from None
        try:
            return [self._gpu(nvml, nvml.nvmlDeviceGetHandleByIndex(i)) for i in range(nvml.nvmlDeviceGetCount())]
        except nvml.NVMLError as error:
            raise DriverProblem(f"NVML: {error}") from None
        finally:
            nvml.nvmlShutdown()

    @staticmethod
    def _is_absent(nvml: Any, error: Any) -> bool:
        absent = (getattr(nvml, "NVML_ERROR_LIBRARY_NOT_FOUND", 12), getattr(nvml, "NVML_ERROR_DRIVER_NOT_LOADED", 9))
        return getattr(error, "value", None) in absent

    @staticmethod
    def _gpu(nvml: Any, handle: Any) -> GpuReport:
        def value(read: Callable[[], Any]) -> Any:
            try:
                return read()
            except nvml.NVMLError:  # not supported by this GPU
                return None

        name = nvml.nvmlDeviceGetName(handle)
        memory = value(lambda: nvml.nvmlDeviceGetMemoryInfo(handle))
        rates = value(lambda: nvml.nvmlDeviceGetUtilizationRates(handle))
        power = value(lambda: nvml.nvmlDeviceGetPowerUsage(handle))
        return GpuReport(
            name.decode() if isinstance(name, bytes) else str(name),
            "nvidia",
            None if memory is None else int(memory.total),
            None if memory is None else int(memory.used),
            None if rates is None else rates.gpu / 100,
            value(lambda: float(nvml.nvmlDeviceGetTemperature(handle, 0))),
            None if power is None else power / 1000,
        )


class AmdDriver:
    """Read AMD's GPUs from the files of the kernel's driver."""

    def __init__(self, root: Path = Path("/sys/class/drm")) -> None:
        self._root = root

    def read(self) -> list[GpuReport]:
        """Return the GPUs; graphics of a processor without memory of its own are left out."""
        found = []
        for device in sorted(self._root.glob("card[0-9]*/device")):
            if _text(device / "vendor") != AMD_VENDOR or (total := _number(device / "mem_info_vram_total")) is None:
                continue
            busy, used = _number(device / "gpu_busy_percent"), _number(device / "mem_info_vram_used")
            sensors = next(iter(sorted(device.glob("hwmon/hwmon*"))), None)
            heat = _number(sensors / "temp1_input") if sensors else None
            power = (_number(sensors / "power1_average") or _number(sensors / "power1_input")) if sensors else None
            found.append(
                GpuReport(
                    _text(device / "product_name") or f"AMD {_text(device / 'device')}",
                    "amd",
                    total,
                    used,
                    None if busy is None else min(1.0, busy / 100),
                    None if heat is None else heat / 1_000,
                    None if power is None else power / 1_000_000,
                )
            )
        return found


def _text(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError:
        return ""


def _number(file: Path) -> int | None:
    text = _text(file)
    return int(text) if text.isascii() and text.isdigit() else None


class AppleDriver:
    """Read Apple's GPU from ioreg; it shares the memory of the machine."""

    def __init__(self, run: Run = run_tool) -> None:
        self._run = run

    def read(self) -> list[GpuReport]:
        """Return the GPU, none on other systems."""
        try:
            text = self._run(("ioreg", "-r", "-d", "1", "-w", "0", "-c", "IOAccelerator"))
            memory = int(self._run(("sysctl", "-n", "hw.memsize")))
        except FileNotFoundError:
            return []
        except ValueError:
            raise DriverProblem("sysctl did not print the size of the memory") from None
        found = []
        for block in text.split("+-o ")[1:]:
            model = re.search(r'"model" = (?:<)?"([^"]+)"', block)
            busy = re.search(r'"Device Utilization %"=(\d+)', block)
            used = re.search(r'"In use system memory"=(\d+)', block)
            if model is not None:
                found.append(
                    GpuReport(
                        model[1], "apple", memory, int(used[1]) if used else None,
                        min(1.0, int(busy[1]) / 100) if busy else None,
                    )
                )  # fmt: skip
        return found


class IntelDriver:
    """Read Intel's GPUs with xpu-smi."""

    def __init__(self, run: Run = run_tool) -> None:
        self._run = run

    def read(self) -> list[GpuReport]:
        """Return the GPUs, none without the tool."""
        try:
            listed = json.loads(self._run(("xpu-smi", "discovery", "-j")))
            return [self._gpu(device) for device in listed.get("device_list", [])]
        except FileNotFoundError:
            return []
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise DriverProblem(f"xpu-smi printed something else than expected: {error}") from None

    def _gpu(self, device: dict[str, Any]) -> GpuReport:
        number = str(device["device_id"])
        details = json.loads(self._run(("xpu-smi", "discovery", "-d", number, "-j")))
        stats = json.loads(self._run(("xpu-smi", "stats", "-d", number, "-j")))
        values = {row["metrics_type"]: row["value"] for row in stats.get("device_level", [])}
        used, busy = values.get("XPUM_STATS_MEMORY_USED"), values.get("XPUM_STATS_GPU_UTILIZATION")
        total = details.get("memory_physical_size_byte")
        return GpuReport(
            str(device["device_name"]),
            "intel",
            int(total) if total is not None else None,
            int(used * 1024**2) if used is not None else None,
            min(1.0, busy / 100) if busy is not None else None,
            values.get("XPUM_STATS_GPU_CORE_TEMPERATURE"),
            values.get("XPUM_STATS_POWER"),
        )


def all_drivers() -> tuple[GpuDriver, ...]:
    """Return the drivers of all makers."""
    return NvidiaDriver(), AmdDriver(), AppleDriver(), IntelDriver()


def read_gpus(drivers: Sequence[GpuDriver]) -> tuple[tuple[GpuReport, ...], tuple[str, ...]]:
    """Read all drivers; return the GPUs, and what could not be read, in words."""
    gpus: list[GpuReport] = []
    problems = list(_problems(drivers, gpus))
    return tuple(gpus), tuple(problems)


def _problems(drivers: Sequence[GpuDriver], gpus: list[GpuReport]) -> Iterator[str]:
    for driver in drivers:
        try:
            gpus += driver.read()
        except DriverProblem as problem:
            yield str(problem)[:300]
